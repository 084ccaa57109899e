/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* exs.h: the Extended Sockets API (ES-API) for C programs.
 *
 * Post, then collect: a call with an event queue returns at once, and exactly one event comes to that
 * queue later.  From an accepted call until its event was dequeued the buffer belongs to the library.
 * A call with EXS_QHANDLE_INVALID as its queue blocks until the operation is done and returns its result.
 *
 * All functions return -1 (or an invalid handle) and set errno on failure; all may be called from any
 * thread.  Only calls without a queue and exs_qdequeue block.  After fork every handle is dead in the child
 * (EINVAL) until the child calls exs_init again.
 *
 * Progress is made by whoever waits: a program that computes for long between its dequeues should make its
 * sockets with EXS_SO_PROGRESS = EXS_PROGRESS_THREAD.
 *
 * Link with libexs.a and -pthread. */
#ifndef EXS_H
#define EXS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#define EXS_HANDLE_(type, value) (type{value})
#else
#define EXS_HANDLE_(type, value) ((type){value})
#endif

#ifdef EXS_BUILDING
#define EXS_API __attribute__((visibility("default")))
#else
#define EXS_API
#endif

/* --- handles ------------------------------------------------------------------------------------ */

/* Distinct struct types, so that arguments in the wrong order do not compile.  Compare with the functions
 * below; the members are the library's. */
typedef struct {
    uint64_t exs_h;
} exs_mhandle_t; /* registered memory */
typedef struct {
    uint64_t exs_h;
} exs_qhandle_t;             /* event queue */
typedef void *exs_ahandle_t; /* the caller's own, returned in the event */

#define EXS_MHANDLE_INVALID      EXS_HANDLE_(exs_mhandle_t, 0)
#define EXS_MHANDLE_UNREGISTERED EXS_HANDLE_(exs_mhandle_t, UINT64_MAX)
#define EXS_QHANDLE_INVALID      EXS_HANDLE_(exs_qhandle_t, 0)

static inline int exs_mhandle_valid(exs_mhandle_t mh)
{
    return mh.exs_h != 0;
}
static inline int exs_qhandle_valid(exs_qhandle_t qh)
{
    return qh.exs_h != 0;
}

/* --- constants ------------------------------------------------------------------------------------ */

#define EXS_VERSION1 1
#define EXS_VERSION  EXS_VERSION1

/* exs_mregister */
#define EXS_ACCESS_READ  0x1   /* the library reads the memory: sending */
#define EXS_ACCESS_WRITE 0x2   /* the library and the peer write it: receiving */
#define EXS_MRF_SHARED   0x100 /* the memory is shared with other processes; has no effect */

/* exs_qmodify, exs_qstatus */
#define EXS_QATTR_DEPTH  1 /* slots */
#define EXS_QATTR_EVENTS 2 /* events present; status only */
#define EXS_QATTR_SIGNAL 3 /* EXS_SIG_DISABLE only */
#define EXS_QATTR_WAIT   4 /* EXS_WAIT_... */

#define EXS_SIG_DISABLE 0
#define EXS_SIG_ENABLE  1

#define EXS_WAIT_ADAPTIVE  0 /* spin a little, then sleep */
#define EXS_WAIT_NOTIFY    1 /* sleep */
#define EXS_WAIT_BUSY_POLL 2 /* spin */

#define EXS_EVTVEC_MAX 1024 /* most events of one dequeue */

/* exs_poll */
#define EXS_POLLIN  0x10 /* data, the end of data, or a connection to accept */
#define EXS_POLLOUT 0x20 /* a send would be taken without waiting */

/* exs_sendfile: what a piece is */
#define EXS_IOVEC 1
#define EXS_FDVEC 2

/* flags of transfer calls, beside MSG_WAITALL and MSG_DONTWAIT */
#define EXS_SHUT_WR 0x01000000 /* the end of data follows this send */

/* flags in the event, beside MSG_TRUNC and MSG_EOR */
#define EXS_XF_DIRECT   0x1000 /* at least one byte came straight into the buffer */
#define EXS_XF_INDIRECT 0x2000 /* at least one byte came through the library's ring */

/* exs_cancel: which operations */
#define EXS_CAF_FILDES  0x1
#define EXS_CAF_AHANDLE 0x2

/* Options at level SOL_SOCKET that ES-API adds. */
#define SO_ASYNC_RECV_ORDERED 0x4501 /* always 1 */
#define SO_ASYNC_SEND_TIMEOUT 0x4502 /* not offered: EOPNOTSUPP */
#define SO_ASYNC_RECV_TIMEOUT 0x4503
#define EXS_TIMEOUT_ONCE      1

/* Options of this library, at level SOL_EXS.  All but _PATH_NAME are set before bind, listen or connect. */
#define SOL_EXS                0x4558
#define EXS_SO_DEVICE          1 /* char[]: "auto", "soft" */
#define EXS_SO_PATH            2 /* char[]: "auto", "tcp", "shm", "shm-vm", "shm-ring"; get: the path taken */
#define EXS_SO_RING            3 /* int: bytes of the stream's ring, 65536 or more */
#define EXS_SO_PROGRESS        4 /* int: EXS_PROGRESS_... */
#define EXS_SO_CLOSE_TIMEOUT   5 /* int: milliseconds */
#define EXS_SO_CONNECT_TIMEOUT 6 /* int: milliseconds */
#define EXS_SO_CRC             7 /* int: ask for CRC on the wire */
#define EXS_SO_STRICT_SIZE     8 /* int: EMSGSIZE instead of truncating a message at the receiver */
#define EXS_SO_REASON          9 /* char[], get: the last error of the connection, in words */

#define EXS_PROGRESS_INLINE 0
#define EXS_PROGRESS_THREAD 1

enum {
    EXS_EVT_SEND = 1,
    EXS_EVT_RECV = 2,
    EXS_EVT_CONNECT = 3,
    EXS_EVT_ACCEPT = 4,
    EXS_EVT_SHUTDOWN = 5,
    EXS_EVT_CLOSE = 6,
    EXS_EVT_POLL = 7,
    EXS_EVT_SENDMSG = 8,
    EXS_EVT_RECVMSG = 9,
    EXS_EVT_SENDFILE = 10,
    EXS_EVT_SENDTIMEOUT = 11, /* never delivered */
    EXS_EVT_RECVTIMEOUT = 12,
};

/* --- records --------------------------------------------------------------------------------------- */

typedef struct {
    void *exs_iov_base;
    size_t exs_iov_len;
    exs_mhandle_t exs_iov_mhandle;
} exs_iovec_t;

typedef struct {
    exs_iovec_t *exs_msg_iov;
    int exs_msg_iovlen;
    void *exs_msg_control; /* must be NULL: there is no ancillary data */
    size_t exs_msg_controllen;
    int exs_msg_flags; /* recvmsg without a queue: MSG_TRUNC, MSG_EOR */
} exs_msghdr_t;

typedef struct {
    int exs_fdv_fd;
    off_t exs_fdv_offset;
    size_t exs_fdv_len;
} exs_fdvec_t;

typedef struct {
    int exs_xff_type; /* EXS_IOVEC or EXS_FDVEC */
    union {
        exs_iovec_t exs_xff_iov;
        exs_fdvec_t exs_xff_fdv;
    } exs_xff_u;
} exs_xferfile_t;

typedef struct {
    struct sockaddr *exs_acc_addr; /* storage of the caller, the library's until the event */
    socklen_t exs_acc_addrlen;     /* room; after the event: length of the peer's address */
} exs_acceptaddr_t;

typedef struct {
    int exs_pfd_fd;
    short exs_pfd_events; /* EXS_POLLIN, EXS_POLLOUT */
    short exs_pfd_revents;
} exs_pollfd_t;

typedef struct {
    int exs_evt_new_socket; /* -1 on error */
    exs_acceptaddr_t *exs_evt_addr;
} exs_evt_accept_t;

typedef struct {
    exs_pollfd_t *exs_evt_fds;
    int exs_evt_nfds;
    int exs_evt_nready;
} exs_evt_poll_t;

typedef struct {
    void *exs_evt_buffer;
    exs_mhandle_t exs_evt_mhandle;
    size_t exs_evt_length;      /* bytes taken or placed */
    size_t exs_evt_full_length; /* with MSG_TRUNC: of the whole message */
    int exs_evt_flags;
} exs_evt_xfer_t;

typedef struct {
    const exs_msghdr_t *exs_evt_msghdr;
    size_t exs_evt_length;
    size_t exs_evt_full_length;
    int exs_evt_flags;
} exs_evt_xfermsg_t;

typedef struct {
    exs_xferfile_t *exs_evt_vec;
    int exs_evt_count;
    size_t exs_evt_length;
} exs_evt_xferfile_t;

typedef struct {
    int exs_evt_type;  /* EXS_EVT_... */
    int exs_evt_errno; /* 0, or the errno of the operation */
    int exs_evt_socket;
    exs_ahandle_t exs_evt_ahandle;
    union {
        exs_evt_accept_t exs_evt_accept;
        exs_evt_poll_t exs_evt_poll;
        exs_evt_xfer_t exs_evt_xfer;
        exs_evt_xfermsg_t exs_evt_xfermsg;
        exs_evt_xferfile_t exs_evt_xferfile;
    } exs_evt_union;
} exs_event_t;

/* Signal delivery (EXS_QATTR_SIGNAL) is not offered; the type is here for programs that name it. */
typedef struct {
    int exs_sig_enable;
    int exs_sig_signo;
} exs_signal_t;

/* --- start ------------------------------------------------------------------------------------------ */

/* Once per process before anything else, with EXS_VERSION.  Again: no effect; another version: EINVAL. */
EXS_API int exs_init(int version);

/* --- memory ------------------------------------------------------------------------------------------- */

/* Register [addr, addr + len); the memory stays the caller's and must live until exs_mderegister.
 * EINVAL (length 0, flags), EFAULT (not mapped), ENOMEM (memory lock limit, see RLIMIT_MEMLOCK). */
EXS_API exs_mhandle_t exs_mregister(void *addr, size_t len, int flags);
/* EBUSY while an operation uses it. */
EXS_API int exs_mderegister(exs_mhandle_t mh);

/* --- event queues ---------------------------------------------------------------------------------------- */

/* A queue with depth slots: each accepted call holds one until its event was dequeued, and a call that finds
 * none is refused with EAGAIN. */
EXS_API exs_qhandle_t exs_qcreate(int depth);
/* EBUSY while calls are in flight; events that nobody fetched are discarded. */
EXS_API int exs_qdelete(exs_qhandle_t qh);
/* cnt > 0: wait for one event, take up to cnt.  cnt < 0: wait for |cnt|.  timeout NULL: no limit; zero:
 * poll.  Returns how many events stand in vec (fewer, also 0, when the time was over); EINTR if a signal came
 * and there was no event. */
EXS_API int exs_qdequeue(exs_qhandle_t qh, exs_event_t *vec, int cnt, struct timeval *timeout);
/* EXS_QATTR_DEPTH: int; EXS_QATTR_WAIT: int; EXS_QATTR_SIGNAL: const exs_signal_t * that disables. */
EXS_API int exs_qmodify(exs_qhandle_t qh, int attr, ...);
/* The attribute goes to the int * that follows. */
EXS_API int exs_qstatus(exs_qhandle_t qh, int attr, ...);
/* A descriptor that is readable while a dequeue has something to do (it may find no event).  Before sleeping
 * on it dequeue with a zero timeout until that returns 0.  The queue's own: do not close it. */
EXS_API int exs_qfd(exs_qhandle_t qh);

/* --- sockets ------------------------------------------------------------------------------------------------ */

/* family AF_INET or AF_INET6; type SOCK_STREAM or SOCK_SEQPACKET (SOCK_NONBLOCK may be added); protocol 0.
 * The descriptor number is a real one and never collides with others, but only exs calls take it. */
EXS_API int exs_socket(int family, int type, int protocol);
EXS_API int exs_bind(int fd, const struct sockaddr *addr, socklen_t addrlen);
EXS_API int exs_listen(int fd, int backlog);
EXS_API int exs_getsockname(int fd, struct sockaddr *addr, socklen_t *addrlen);
EXS_API int exs_getpeername(int fd, struct sockaddr *addr, socklen_t *addrlen);
EXS_API int exs_getsockopt(int fd, int level, int option, void *value, socklen_t *len);
EXS_API int exs_setsockopt(int fd, int level, int option, const void *value, socklen_t len);
/* F_GETFL and F_SETFL with O_NONBLOCK: calls without a queue try and fail instead of blocking. */
EXS_API int exs_fcntl(int fd, int cmd, ...);

/* --- operations -------------------------------------------------------------------------------------------- */

/* ah comes back in the event.  Return 0: accepted.  Without a queue: see each. */

/* Without a queue: 0 when connected; with O_NONBLOCK EINPROGRESS, then EXS_POLLOUT and SO_ERROR tell. */
EXS_API int exs_connect(int fd, const struct sockaddr *addr, socklen_t addrlen, exs_ahandle_t ah, exs_qhandle_t qh);
/* n slots (addr may be NULL, n 0 or 1 then) arm n accepts, filled in order, one event each; flags 0.
 * Without a queue: the new descriptor, n at most 1. */
EXS_API int exs_accept(int fd, exs_acceptaddr_t *addr, int n, int flags, exs_ahandle_t ah, exs_qhandle_t qh);
/* Without a queue: the byte count. */
EXS_API ssize_t exs_send(int fd, const void *buf, size_t len, int flags, exs_mhandle_t mh, exs_ahandle_t ah,
                         exs_qhandle_t qh);
EXS_API ssize_t exs_recv(int fd, void *buf, size_t len, int flags, exs_mhandle_t mh, exs_ahandle_t ah,
                         exs_qhandle_t qh);
/* The vectors are copied during the call. */
EXS_API ssize_t exs_sendmsg(int fd, const exs_msghdr_t *msg, int flags, exs_ahandle_t ah, exs_qhandle_t qh);
EXS_API ssize_t exs_recvmsg(int fd, exs_msghdr_t *msg, int flags, exs_ahandle_t ah, exs_qhandle_t qh);
/* Memory and pieces of files, in order; the files' offsets do not move.  While one runs the sending direction
 * is its own: other sends are refused with EAGAIN. */
EXS_API ssize_t exs_sendfile(int fd, exs_xferfile_t *vec, int cnt, int flags, exs_ahandle_t ah, exs_qhandle_t qh);
/* One event when the first of the sockets is ready; fds is the library's until then.  Without a queue: the
 * number of ready ones. */
EXS_API int exs_poll(exs_pollfd_t *fds, int nfds, exs_ahandle_t ah, exs_qhandle_t qh);
/* Ask for the end of operations: caf EXS_CAF_FILDES (those of fd), EXS_CAF_AHANDLE (those with ah), or both.
 * Each still yields its one event.  Returns how many were asked. */
EXS_API int exs_cancel(int fd, exs_ahandle_t ah, int caf);
/* SHUT_WR: sends that were accepted go out first. */
EXS_API int exs_shutdown(int fd, int how, exs_ahandle_t ah, exs_qhandle_t qh);
/* In order, as shutdown; with SO_LINGER on and time 0: at once, everything ends with ECONNABORTED.  It succeeds
 * also if the peer or the network has ended the connection: that is told by the operations under way, each in its
 * own event.  ETIMEDOUT: what was accepted could not be sent in time; fd is closed all the same. */
EXS_API int exs_close(int fd, exs_ahandle_t ah, exs_qhandle_t qh);

#ifdef __cplusplus
}
#endif

#endif
