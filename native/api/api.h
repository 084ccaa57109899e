// SPDX-License-Identifier: MIT OR Apache-2.0
/* The face of the core towards Python (and towards esapi/): context first, handles for everything,
 * 0 or a count or -errno as result.  Only exsi_eq_wait may block (and exsi_group_free for a moment).
 * Every call may come from any thread.
 *
 * A post (exsi_send, exsi_recv, exsi_connect ...) returns
 *     0          accepted: exactly one event with this cookie will come to the queue,
 *     1          accepted and already over: the event stands in out->event and in no queue
 *                (only if out is given),
 *     -errno     refused: no event, nothing happened, buffers are the caller's.
 * From acceptance until its event was dequeued (or returned as 1) the buffer is the library's.
 *
 * exs.cdef.h is what Python sees of this; a test compares the two. */
#ifndef EXSI_API_H
#define EXSI_API_H

#include "sock/types.h"

/* --- context and groups ----------------------------------------------------------------------- */
int exsi_open(exsi_ctx **out);
/* Frees all groups as exsi_group_free, then everything.  No other thread is inside a call. */
void exsi_close(exsi_ctx *ctx);
int exsi_forked(exsi_ctx *ctx); /* 1 in a forked child */
/* threaded: the one such group of the context, made with its thread at the first call. */
int exsi_group_new(exsi_ctx *ctx, int threaded, uint64_t *group);
/* Aborts what is open in it.  What was closed in order gets up to a quarter of a second to reach its peer:
 * the one call beside exsi_eq_wait that may wait. */
int exsi_group_free(exsi_ctx *ctx, uint64_t group);
int exsi_log_drain(exsi_ctx *ctx, struct exsi_log_record *out, int max);
void exsi_log_threshold(exsi_ctx *ctx, int level);

/* --- devices ------------------------------------------------------------------------------------ */
typedef struct {
    char name[16], summary[96], reason[160];
    uint64_t max_msg;
    uint32_t max_inline;
    uint8_t present, has_immediate, has_key_per_range, has_read, pins_memory;
} exsi_device_info;
int exsi_devices(exsi_ctx *ctx, exsi_device_info *out, int max);

/* --- memory ---------------------------------------------------------------------------------------- */
int exsi_mem_register(exsi_ctx *ctx, void *addr, size_t len, uint32_t flags, uint64_t *mr);
int exsi_mem_allocate(exsi_ctx *ctx, size_t len, uint32_t flags, uint64_t *mr, void **addr);
void exsi_mem_unmap(void *addr, size_t len); /* of exsi_mem_allocate; len as asked there */
int exsi_mem_close(exsi_ctx *ctx, uint64_t mr);
int exsi_mem_close_later(exsi_ctx *ctx, uint64_t mr);
int exsi_mem_in_use(exsi_ctx *ctx, uint64_t mr);

/* --- event queues -------------------------------------------------------------------------------- */
int exsi_eq_new(exsi_ctx *ctx, uint64_t inline_group, uint32_t depth, uint64_t *eq); /* group 0: none */
int exsi_eq_free(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_fd(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_depth(exsi_ctx *ctx, uint64_t eq, uint32_t depth); /* 0 asks; returns the depth */
int exsi_eq_count(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_in_flight(exsi_ctx *ctx, uint64_t eq); /* posts whose event is not in the queue yet */
/* Run the queue's inline group once, then take events.  An empty result arms the descriptor: only then
 * may the caller sleep on it.  spin_us: poll that long for a first event. */
int exsi_eq_drain(exsi_ctx *ctx, uint64_t eq, exsi_event *out, int max, uint32_t spin_us);
/* As exsi_eq_drain without spinning, for a loop that will look again before it sleeps: never arms, and disarms
 * what was armed, so that peers need not ring and pushes cost no system call. */
int exsi_eq_poll(exsi_ctx *ctx, uint64_t eq, exsi_event *out, int max);
/* The descriptor is readable until the next drain or poll: for a loop that has taken events when it was already
 * on its way to sleep. */
int exsi_eq_kick(exsi_ctx *ctx, uint64_t eq);
/* Wait for at least `least` events, at most timeout_us (negative: no limit); wait: enum exsi_wait.
 * Returns how many (maybe fewer on time-out), -EINTR if a signal came and none was there, -EBADF if
 * the queue was freed meanwhile. */
int exsi_eq_wait(exsi_ctx *ctx, uint64_t eq, exsi_event *out, int max, int least, int64_t timeout_us, int wait,
                 uint32_t spin_us);

/* --- sockets --------------------------------------------------------------------------------------- */
void exsi_options_default(exsi_options *out);

/* type: SOCK_STREAM or SOCK_SEQPACKET; family AF_INET or AF_INET6. */
int exsi_socket_new(exsi_ctx *ctx, uint64_t group, int family, int type, const exsi_options *opt, uint64_t *sock);
int exsi_bind(exsi_ctx *ctx, uint64_t sock, const void *addr, uint32_t len);
int exsi_listen(exsi_ctx *ctx, uint64_t sock, int backlog);
int exsi_sockname(exsi_ctx *ctx, uint64_t sock, void *addr, uint32_t *len);
int exsi_peername(exsi_ctx *ctx, uint64_t sock, void *addr, uint32_t *len);

int exsi_socket_query(exsi_ctx *ctx, uint64_t sock, exsi_socket_info *out);

/* One counter per name of EXSI_STATS_FIELDS, in that order; returns how many.  sock 0: the process. */
int exsi_statistics(exsi_ctx *ctx, uint64_t sock, uint64_t *out, int max);
const char *exsi_statistics_name(int i); /* NULL behind the last */

/* --- the TCP option of SMC-R ------------------------------------------------------------------------- */
/* What the map of the option's program says of a socket. */
enum exsi_smc_option_state {
    EXSI_SMC_OPTION_WANTED = 1,   /* put it into the SYN, or into SYN-ACKs */
    EXSI_SMC_OPTION_ANSWERED = 2, /* the SYN-ACK had it */
};
/* A key of the map is a socket's cookie, or this and the port of a listener: a listener needs both. */
#define EXSI_SMC_OPTION_PORT 0x8000000000000000
/* Load the program and attach it to the control group with that folder, for as long as both descriptors, the
 * caller's, are open.  On failure why (160 bytes) says in words what failed. */
int exsi_smc_option_attach(const char *folder, int *map_fd, int *link_fd, char *why);
int exsi_smc_option_set(int map_fd, uint64_t key, uint32_t state);  /* 0: take it out */
int exsi_smc_option_get(int map_fd, uint64_t key, uint32_t *state); /* -ENOENT: it is not there */

/* --- posts: cookie and queue as above; out may be NULL -------------------------------------------- */
int exsi_connect(exsi_ctx *ctx, uint64_t sock, const void *addr, uint32_t len, uint64_t cookie, uint64_t eq,
                 exsi_posted *out);
/* event.value: handle of the new socket, in the listener's group with the listener's options. */
int exsi_accept(exsi_ctx *ctx, uint64_t sock, uint64_t cookie, uint64_t eq, exsi_posted *out);

/* mr 0: not registered.  A send of at most EXSI_COPY_MAX is copied then, all else is registered for the
 * call.  Such memory is taken to be no file that could shrink; FRAGILE: it may be, LOOK: find out. */
int exsi_send(exsi_ctx *ctx, uint64_t sock, const void *buf, size_t len, uint32_t flags, uint64_t mr, uint64_t cookie,
              uint64_t eq, exsi_posted *out);
/* With DONTWAIT: what is there now is copied, out->event.value says how much (returns 1), else -EAGAIN. */
int exsi_recv(exsi_ctx *ctx, uint64_t sock, void *buf, size_t len, uint32_t flags, uint64_t mr, uint64_t cookie,
              uint64_t eq, exsi_posted *out);

int exsi_sendmsg(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                 uint64_t eq, exsi_posted *out);
int exsi_recvmsg(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                 uint64_t eq, exsi_posted *out);
/* A batch: op i is vec[i] with cookie base + i.  Returns how many were accepted (the first refusal ends the
 * batch: its -errno if none was).  All complete through the queue. */
int exsi_send_many(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                   uint64_t eq, exsi_posted *out);
int exsi_recv_many(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                   uint64_t eq, exsi_posted *out);
/* The same for one range cut into pieces of `piece` bytes (the last one may be shorter). */
int exsi_send_split(exsi_ctx *ctx, uint64_t sock, void *base, size_t len, size_t piece, uint32_t flags, uint64_t mr,
                    uint64_t cookie, uint64_t eq, exsi_posted *out);
/* flags: EXSI_OPF_POLL_IN, EXSI_OPF_POLL_OUT; event.value: which hold. */
int exsi_poll(exsi_ctx *ctx, uint64_t sock, uint32_t flags, uint64_t cookie, uint64_t eq, exsi_posted *out);
/* The same over n sockets of one group; event.extra: the index of the one that was ready first. */
int exsi_poll_many(exsi_ctx *ctx, const uint64_t *socks, const uint32_t *flags, int n, uint64_t cookie, uint64_t eq,
                   exsi_posted *out);
/* how: SHUT_WR or SHUT_RD; SHUT_WR is over when the FIN was given to the device. */
int exsi_shutdown(exsi_ctx *ctx, uint64_t sock, int how, uint64_t cookie, uint64_t eq, exsi_posted *out);
/* Graceful (abort 0): FIN behind what was accepted, receives cancelled; over when the device has it all.
 * The connection lingers in the core until the peer answers or close_timeout.  abort 1: at once, every
 * operation ends with ECONNABORTED.  The handle is dead when the event is there.  eq 0: no event. */
int exsi_socket_close(exsi_ctx *ctx, uint64_t sock, int abort, uint64_t cookie, uint64_t eq, exsi_posted *out);

/* Ask for the end of an operation.  1: it ended within the call, its event is in out (never in the
 * queue); 0: its event will come; -EBADF: no such operation (any more). */
int exsi_cancel(exsi_ctx *ctx, uint64_t sock, uint64_t op, exsi_posted *out);
/* All operations of a socket (sock != 0) and/or with a cookie (match_cookie); events come; how many. */
int exsi_cancel_match(exsi_ctx *ctx, uint64_t sock, int match_cookie, uint64_t cookie);

/* --- links and connections of SMC-R ------------------------------------------------------------------ *
 * CLC and LLC are the caller's.  Here are the queue pair, the rings that peers write (RMBs), the data path, and
 * TEST_LINK, which is answered in any state. */
typedef struct {
    uint8_t gid[16], mac[6];
    uint8_t gid_index, mtu_code; /* IBTA: 1 = 256 ... 5 = 4096 */
    uint32_t qpn, psn;           /* 24 bits each */
} exsi_smc_address;

enum exsi_smc_notice_kind { EXSI_SMC_LLC = 1, EXSI_SMC_CONNECTION_DONE = 2, EXSI_SMC_LINK_DOWN = 3 };

typedef struct {
    uint32_t kind;    /* enum exsi_smc_notice_kind */
    uint32_t len;     /* LLC: of bytes; a whole message, also a short one or one of unknown type */
    uint32_t token;   /* CONNECTION_DONE: our alert token, free again */
    int32_t error;    /* CONNECTION_DONE, LINK_DOWN: positive errno; 0: in order */
    uint64_t socket;  /* CONNECTION_DONE: the handle that it had */
    uint32_t clean;   /* CONNECTION_DONE: 1: the peer is through, its ring may serve another; 0: it never said so */
    char reason[160]; /* LINK_DOWN: in words */
    uint8_t bytes[8192];
} exsi_smc_notice;

typedef struct {
    char device[16], reason[160];
    uint8_t up, down; /* neither: not in RTS yet */
    int32_t error;
    uint32_t connections;
    uint64_t cdc_received, cdc_sent, cdc_unknown, llc_received, llc_sent, tests_answered, tests_sent;
    uint64_t idle_ms; /* since something came */
    uint32_t rings;   /* registered on it, those that wait for another connection included */
    uint64_t ring_bytes;
} exsi_smc_link_info;

/* A place in a ring: how often its end was passed, and the offset. */
typedef struct {
    uint32_t wrap, count;
} exsi_smc_cursor_info;

typedef struct {
    uint64_t socket;            /* the handle that it has, or had before it was closed */
    uint32_t token, peer_token; /* alert tokens; what is the peer's is 0 before it is known */
    uint32_t size, peer_size;   /* of our ring and of the peer's */
    /* In the peer's ring: how far we have written; how far the peer has read, as it has told. */
    exsi_smc_cursor_info produced, peer_consumed;
    /* In ours: how far the peer has written, as it has told; how far was read; how far the peer was told. */
    exsi_smc_cursor_info peer_produced, consumed, told;
    uint64_t sent, received; /* bytes written into the peer's ring, and by the peer into ours, since the beginning */
    uint64_t unsent;         /* bytes accepted and not written: there was no room, or no turn yet */
    uint64_t unread;         /* bytes that came and were not read */
    uint8_t producer_flags, peer_producer_flags;     /* octets of CDC: ours that is said next, the peer's last one */
    uint8_t connection_flags, peer_connection_flags; /* the same, of all that were ever said */
    int32_t error;                                   /* what ended it, positive; 0: in order */
} exsi_smc_connection_info;

/* device: "verbs", "soft", "" (the best); gid: 16 bytes, or NULL.  Receives are posted.  -EADDRNOTAVAIL: no device has
 * that GID. */
int exsi_smc_link_new(exsi_ctx *ctx, uint64_t group, const char *device, const uint8_t *gid, uint64_t *link);
int exsi_smc_link_address(exsi_ctx *ctx, uint64_t link, exsi_smc_address *own);
int exsi_smc_link_to_rtr(exsi_ctx *ctx, uint64_t link, const exsi_smc_address *peer);
/* Only from then on anything is sent; what was asked for before waits. */
int exsi_smc_link_to_rts(exsi_ctx *ctx, uint64_t link);
/* TEST_LINK after so long without anything received (0: never); without an answer in time the link is down. */
int exsi_smc_link_active(exsi_ctx *ctx, uint64_t link, uint8_t version, uint32_t test_interval_ms,
                         uint32_t test_timeout_ms);
/* 44 to 8192 bytes, copied; one longer than 44 at a time is on its way.  -EAGAIN: too many wait. */
int exsi_smc_llc_send(exsi_ctx *ctx, uint64_t link, const void *msg, uint32_t len);
/* A post: its event says that there is something to take.  -EBUSY: one is outstanding. */
int exsi_smc_link_wait(exsi_ctx *ctx, uint64_t link, uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_smc_link_cancel(exsi_ctx *ctx, uint64_t link); /* the wait, if there is one, ends with ECANCELED */
int exsi_smc_link_take(exsi_ctx *ctx, uint64_t link, exsi_smc_notice *out); /* 1, or 0: nothing */
int exsi_smc_link_query(exsi_ctx *ctx, uint64_t link, exsi_smc_link_info *out);
/* The handle is dead at once.  Connections end with ECONNABORTED and tell their peers; the queue pair goes a moment
 * later. */
int exsi_smc_link_close(exsi_ctx *ctx, uint64_t link);

/* A ring of 16 KiB << size_code, for one connection after the other; rkey and vaddr are for the peer. */
int exsi_smc_rmb_new(exsi_ctx *ctx, uint64_t link, uint32_t size_code, uint64_t *rmb, uint32_t *rkey, uint64_t *vaddr);
int exsi_smc_rmb_close(exsi_ctx *ctx, uint64_t link, uint64_t rmb); /* -EBUSY while a connection has it */

/* A socket, not connected yet.  -EEXIST: the token is in use; -EBUSY: the ring is; -EUSERS: 255 are there. */
int exsi_smc_connection_new(exsi_ctx *ctx, uint64_t link, uint64_t rmb, uint32_t own_token, const exsi_options *opt,
                            uint64_t *sock);
/* Connected: what the peer told.  What it has sent meanwhile is there.  -EINVAL: a size, address or token that cannot
 * be. */
int exsi_smc_connection_open(exsi_ctx *ctx, uint64_t sock, uint32_t peer_rkey, uint64_t peer_vaddr, uint64_t peer_size,
                             uint32_t peer_token);
/* End it at once for a reason that the link does not know: its operations end with error (positive), the peer is told
 * "abort", the socket stays to be closed. */
int exsi_smc_connection_abort(exsi_ctx *ctx, uint64_t sock, int error);
/* What can be seen of the connection on a link that has this alert token of ours, also when its socket is closed and
 * the peer has not answered yet.  Does not block; changes nothing; copies into *out, which is the caller's.  -EBADF: no
 * such link; -ENOENT: no such connection on it (any more). */
int exsi_smc_connection_query(exsi_ctx *ctx, uint64_t link, uint32_t own_token, exsi_smc_connection_info *out);
/* Lend received bytes where they lie: 1; 0 at the end of the stream; -EAGAIN: none there (exsi_poll); -EBUSY: a view is
 * out, or receives are posted.  While it is out receives wait, and the socket cannot be closed (-EBUSY). */
int exsi_recv_view(exsi_ctx *ctx, uint64_t sock, void **addr, uint64_t *len);
int exsi_recv_release(exsi_ctx *ctx, uint64_t sock, uint64_t n); /* n of them are read; the others come again */

#endif
