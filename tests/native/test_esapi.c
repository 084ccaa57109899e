// SPDX-License-Identifier: MIT OR Apache-2.0
/* The literal ES-API, function by function (es-api.md 1.2).  Both ends are in this process; what blocks has
 * its peer in a thread. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "exs.h"
#include "tap.h"

#define QUEUE EXS_QHANDLE_INVALID
#define NOMEM EXS_MHANDLE_UNREGISTERED

static struct sockaddr_in loopback(void)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static exs_event_t one(exs_qhandle_t qh)
{
    exs_event_t ev;
    struct timeval limit = {.tv_sec = 8};
    int n = exs_qdequeue(qh, &ev, 1, &limit);
    if (n != 1) printf("Bail out! no event: %d, %s\n", n, n < 0 ? strerror(errno) : "time is over");
    must(n == 1);
    return ev;
}

/* The event of a kind; others meanwhile are a fault of the test. */
static exs_event_t expect(exs_qhandle_t qh, int type, exs_ahandle_t ah)
{
    exs_event_t ev = one(qh);
    ok(ev.exs_evt_type == type && ev.exs_evt_ahandle == ah, "event %d with its cookie (got %d)", type, ev.exs_evt_type);
    return ev;
}

static int listener(int type, struct sockaddr_in *at)
{
    socklen_t len = sizeof *at;
    *at = loopback();
    int fd = exs_socket(AF_INET, type, 0);
    must(fd >= 0 && exs_bind(fd, (struct sockaddr *)at, len) == 0 && exs_listen(fd, 8) == 0);
    must(exs_getsockname(fd, (struct sockaddr *)at, &len) == 0 && at->sin_port != 0);
    return fd;
}

struct ends {
    int client, server, listener;
    exs_qhandle_t qh;
    struct sockaddr_in at;
};

static struct ends connected(int type)
{
    struct ends e = {.qh = exs_qcreate(64)};
    e.listener = listener(type, &e.at);
    must(exs_qhandle_valid(e.qh));
    e.client = exs_socket(AF_INET, type, 0);
    must(exs_accept(e.listener, NULL, 0, 0, (void *)1, e.qh) == 0);
    must(exs_connect(e.client, (struct sockaddr *)&e.at, sizeof e.at, (void *)2, e.qh) == 0);
    for (int i = 0; i < 2; i++) {
        exs_event_t ev = one(e.qh);
        must(ev.exs_evt_errno == 0);
        if (ev.exs_evt_type == EXS_EVT_ACCEPT) e.server = ev.exs_evt_union.exs_evt_accept.exs_evt_new_socket;
    }
    must(e.server > 0);
    return e;
}

static void disconnect(struct ends *e)
{
    must(exs_close(e->client, 0, QUEUE) == 0 && exs_close(e->server, 0, QUEUE) == 0 &&
         exs_close(e->listener, 0, QUEUE) == 0);
    must(exs_qdelete(e->qh) == 0);
}

/* --- start ---------------------------------------------------------------------------------------- */

static void test_init(void)
{
    ok(exs_socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EINVAL, "nothing works before exs_init");
    ok(exs_init(99) == -1 && errno == EINVAL, "an unknown version is refused");
    ok(exs_init(EXS_VERSION) == 0, "exs_init");
    ok(exs_init(EXS_VERSION) == 0, "again: no effect");
}

/* --- memory ----------------------------------------------------------------------------------------- */

static void test_memory(void)
{
    static char buf[4096];
    exs_mhandle_t mh = exs_mregister(buf, sizeof buf, EXS_ACCESS_READ | EXS_MRF_SHARED);
    ok(exs_mhandle_valid(mh), "exs_mregister");
    ok(exs_mderegister(mh) == 0, "exs_mderegister");
    ok(exs_mderegister(mh) == -1 && errno == EINVAL, "a stale handle is EINVAL");
    ok(!exs_mhandle_valid(exs_mregister(buf, 0, EXS_ACCESS_READ)) && errno == EINVAL, "length 0 is EINVAL");
    ok(!exs_mhandle_valid(exs_mregister(buf, 1, 0x40)) && errno == EINVAL, "unknown flags are EINVAL");
    ok(!exs_mhandle_valid(exs_mregister((void *)8, 4096, EXS_ACCESS_READ)) && errno == EFAULT,
       "unmapped memory is EFAULT");
}

/* --- queues ------------------------------------------------------------------------------------------ */

static void test_queues(void)
{
    int n = 0;
    exs_event_t ev[4];
    struct timeval zero = {0}, little = {.tv_usec = 20000};
    exs_qhandle_t qh = exs_qcreate(10);
    ok(exs_qhandle_valid(qh), "exs_qcreate");
    ok(!exs_qhandle_valid(exs_qcreate(0)) && errno == EINVAL, "of depth 0: EINVAL");
    ok(exs_qstatus(qh, EXS_QATTR_DEPTH, &n) == 0 && n == 10, "depth");
    ok(exs_qstatus(qh, EXS_QATTR_EVENTS, &n) == 0 && n == 0, "events");
    ok(exs_qmodify(qh, EXS_QATTR_DEPTH, 20) == 0 && exs_qstatus(qh, EXS_QATTR_DEPTH, &n) == 0 && n == 20, "deeper");
    ok(exs_qmodify(qh, EXS_QATTR_WAIT, EXS_WAIT_NOTIFY) == 0 && exs_qstatus(qh, EXS_QATTR_WAIT, &n) == 0 &&
           n == EXS_WAIT_NOTIFY,
       "wait strategy");
    exs_signal_t sig = {.exs_sig_enable = EXS_SIG_ENABLE};
    ok(exs_qmodify(qh, EXS_QATTR_SIGNAL, &sig) == -1 && errno == EOPNOTSUPP, "no signals");
    ok(exs_qdequeue(qh, ev, 4, &zero) == 0, "polled: nothing");
    ok(exs_qdequeue(qh, ev, 4, &little) == 0, "after a time: nothing");
    ok(exs_qdequeue(qh, ev, 0, &zero) == -1 && errno == EINVAL, "count 0 is EINVAL");
    ok(exs_qdequeue(qh, ev, -21, &zero) == -1 && errno == EINVAL, "a threshold beyond the depth is EINVAL");
    ok(exs_qdequeue(qh, ev, EXS_EVTVEC_MAX + 1, &zero) == -1 && errno == EINVAL, "more than EXS_EVTVEC_MAX is EINVAL");
    ok(exs_qfd(qh) >= 0, "exs_qfd");
    ok(exs_qdelete(qh) == 0, "exs_qdelete");
    ok(exs_qdequeue(qh, ev, 1, &zero) == -1 && errno == EINVAL, "then the handle is EINVAL");
}

/* --- sockets -------------------------------------------------------------------------------------------- */

static void test_options(void)
{
    int n = 0;
    char text[160];
    socklen_t len = sizeof n;
    int fd = exs_socket(AF_INET, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
    ok(fd >= 0 && fcntl(fd, F_GETFD) >= 0, "a descriptor that the system knows");
    ok(exs_getsockopt(fd, SOL_SOCKET, SO_TYPE, &n, &len) == 0 && n == SOCK_SEQPACKET, "SO_TYPE");
    ok(exs_getsockopt(fd, SOL_SOCKET, SO_ASYNC_RECV_ORDERED, &n, &len) == 0 && n == 1, "receives are ordered");
    n = 0;
    ok(exs_setsockopt(fd, SOL_SOCKET, SO_ASYNC_RECV_ORDERED, &n, sizeof n) == -1 && errno == EINVAL, "always");
    ok(exs_setsockopt(fd, SOL_SOCKET, SO_ASYNC_SEND_TIMEOUT, &n, sizeof n) == -1 && errno == EOPNOTSUPP, "no timers");
    n = 131072;
    ok(exs_setsockopt(fd, SOL_EXS, EXS_SO_RING, &n, sizeof n) == 0, "EXS_SO_RING");
    ok(exs_getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &n, &len) == 0 && n == 131072, "is SO_RCVBUF");
    ok(exs_setsockopt(fd, SOL_EXS, EXS_SO_PATH, "nowhere", 8) == -1 && errno == EINVAL, "an unknown path");
    ok(exs_setsockopt(fd, SOL_EXS, EXS_SO_PATH, "tcp", 4) == 0, "a known path");
    len = sizeof text;
    ok(exs_getsockopt(fd, SOL_EXS, EXS_SO_PATH, text, &len) == 0 && strcmp(text, "tcp") == 0 && len == 4, "read back");
    ok(exs_setsockopt(fd, SOL_SOCKET, 12345, &n, sizeof n) == -1 && errno == ENOPROTOOPT, "an unknown option");
    ok(exs_fcntl(fd, F_GETFL) & O_NONBLOCK, "O_NONBLOCK from the type");
    ok(exs_fcntl(fd, F_SETFL, 0) == 0 && !(exs_fcntl(fd, F_GETFL) & O_NONBLOCK), "cleared");
    struct sockaddr_in name;
    len = sizeof name;
    ok(exs_getpeername(fd, (struct sockaddr *)&name, &len) == -1 && errno == ENOTCONN, "no peer yet");
    ok(exs_send(fd, "x", 1, 0, NOMEM, 0, QUEUE) == -1 && errno == ENOTCONN, "no send either");
    ok(exs_close(fd, 0, QUEUE) == 0, "exs_close");
    ok(exs_close(fd, 0, QUEUE) == -1 && errno == EBADF, "twice: EBADF");
    int pipes[2];
    must(pipe(pipes) == 0);
    ok(exs_send(pipes[1], "x", 1, 0, NOMEM, 0, QUEUE) == -1 && errno == ENOTSOCK, "a foreign descriptor is ENOTSOCK");
    close(pipes[0]);
    close(pipes[1]);
    ok(exs_socket(AF_UNIX, SOCK_STREAM, 0) == -1 && errno == EAFNOSUPPORT, "a family that is not ours");
    ok(exs_socket(AF_INET, SOCK_DGRAM, 0) == -1 && errno == EPROTONOSUPPORT, "no datagrams");
}

/* --- transfers -------------------------------------------------------------------------------------------- */

/* The slide: register with READ access, queue of ten, send, dequeue, length and errno. */
static void test_slide(int type)
{
    static char out[200000], in[200000];
    struct ends e = connected(type);
    memset(out, 'a', sizeof out);
    exs_qhandle_t qh = exs_qcreate(10);
    exs_mhandle_t rd = exs_mregister(out, sizeof out, EXS_ACCESS_READ),
                  wr = exs_mregister(in, sizeof in, EXS_ACCESS_WRITE);
    ok(exs_recv(e.server, in, sizeof in, MSG_WAITALL, rd, 0, e.qh) == -1 && (errno == EACCES || errno == EFAULT),
       "no write access");
    ok(exs_recv(e.server, in, sizeof in, MSG_WAITALL, wr, (void *)7, e.qh) == 0, "exs_recv");
    ok(exs_mderegister(wr) == -1 && errno == EBUSY, "memory in use is EBUSY");
    /* Let the advertisement through: the receiver is ahead then. */
    struct timeval little = {.tv_usec = 10000};
    must(exs_qdequeue(qh, &(exs_event_t){0}, 1, &little) == 0);
    ok(exs_send(e.client, out, sizeof out, 0, rd, 0, qh) == 0, "exs_send");
    exs_event_t ev = expect(qh, EXS_EVT_SEND, 0);
    ok(ev.exs_evt_union.exs_evt_xfer.exs_evt_length == sizeof out && ev.exs_evt_errno == 0 &&
           ev.exs_evt_socket == e.client,
       "length and errno");
    ev = expect(e.qh, EXS_EVT_RECV, (void *)7);
    ok(ev.exs_evt_errno == 0 && ev.exs_evt_union.exs_evt_xfer.exs_evt_length == sizeof in &&
           memcmp(in, out, sizeof in) == 0 && ev.exs_evt_union.exs_evt_xfer.exs_evt_buffer == in &&
           (ev.exs_evt_union.exs_evt_xfer.exs_evt_flags & EXS_XF_DIRECT),
       "received, direct");
    ok(exs_mderegister(rd) == 0 && exs_mderegister(wr) == 0 && exs_qdelete(qh) == 0, "all given back");
    ok(exs_send(e.client, out, 1, MSG_OOB, NOMEM, 0, e.qh) == -1 && errno == EOPNOTSUPP, "no out-of-band data");
    disconnect(&e);
}

static void test_threshold(void)
{
    struct ends e = connected(SOCK_STREAM);
    exs_event_t ev[8];
    char in[8];
    struct timeval limit = {.tv_sec = 8}, zero = {0};
    for (int i = 0; i < 6; i++) must(exs_recv(e.server, in + i, 1, 0, NOMEM, (void *)(intptr_t)(10 + i), e.qh) == 0);
    for (int i = 0; i < 6; i++) must(exs_send(e.client, "x", 1, 0, NOMEM, (void *)(intptr_t)(20 + i), e.qh) == 0);
    ok(exs_qdequeue(e.qh, ev, -8, &limit) == 8, "a threshold of eight waits for eight");
    int n = exs_qdequeue(e.qh, ev, -4, &limit);
    ok(n == 4, "and for the other four");
    ok(exs_qdequeue(e.qh, ev, 8, &zero) == 0, "that was all");
    disconnect(&e);
}

static void test_vectors(int type)
{
    struct ends e = connected(type);
    char a[4], b[16];
    exs_iovec_t out[] = {{"one", 3, NOMEM}, {"two", 3, NOMEM}}, in[] = {{a, 4, NOMEM}, {b, 16, NOMEM}};
    exs_msghdr_t send = {.exs_msg_iov = out, .exs_msg_iovlen = 2}, recv = {.exs_msg_iov = in, .exs_msg_iovlen = 2};
    must(exs_recvmsg(e.server, &recv, 0, (void *)1, e.qh) == 0);
    ok(exs_sendmsg(e.client, &send, 0, 0, QUEUE) == 6, "exs_sendmsg, waited for");
    size_t got = 0;
    exs_event_t ev = expect(e.qh, EXS_EVT_RECVMSG, (void *)1);
    got = ev.exs_evt_union.exs_evt_xfermsg.exs_evt_length;
    ok(ev.exs_evt_errno == 0 && got >= 3 && memcmp(a, "onet", got < 4 ? got : 4) == 0, "exs_recvmsg: %zu bytes", got);
    if (type == SOCK_SEQPACKET) {
        ok(got == 6 && memcmp(b, "wo", 2) == 0 && (ev.exs_evt_union.exs_evt_xfermsg.exs_evt_flags & MSG_EOR),
           "the whole message");
        must(exs_recv(e.server, b, 2, 0, NOMEM, 0, e.qh) == 0);
        must(exs_send(e.client, "long", 4, 0, NOMEM, 0, QUEUE) == 4);
        ev = expect(e.qh, EXS_EVT_RECV, 0);
        ok(ev.exs_evt_union.exs_evt_xfer.exs_evt_length == 2 &&
               (ev.exs_evt_union.exs_evt_xfer.exs_evt_flags & MSG_TRUNC) &&
               ev.exs_evt_union.exs_evt_xfer.exs_evt_full_length == 4,
           "cut, and told so");
    }
    send.exs_msg_control = a;
    ok(exs_sendmsg(e.client, &send, 0, 0, QUEUE) == -1 && errno == EOPNOTSUPP, "no ancillary data");
    disconnect(&e);
}

static int temporary_file(size_t len)
{
    int fd = memfd_create("exs-test", MFD_CLOEXEC);
    must(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
    uint8_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(p != MAP_FAILED);
    for (size_t i = 0; i < len; i++) p[i] = (uint8_t)(i * 31 + (i >> 12));
    munmap(p, len);
    return fd;
}

static void test_sendfile(int type)
{
    enum { LEN = 1500000 };
    struct ends e = connected(type);
    int file = temporary_file(LEN);
    uint8_t *in = calloc(1, LEN + 8), *want = malloc(LEN);
    must(in && want && pread(file, want, LEN, 0) == LEN);
    exs_xferfile_t vec[2] = {{.exs_xff_type = EXS_IOVEC, .exs_xff_u.exs_xff_iov = {"headline", 8, NOMEM}},
                             {.exs_xff_type = EXS_FDVEC, .exs_xff_u.exs_xff_fdv = {file, 0, LEN}}};
    must(exs_recv(e.server, in, LEN + 8, MSG_WAITALL, NOMEM, (void *)1, e.qh) == 0);
    exs_qhandle_t qh = exs_qcreate(4);
    ok(exs_sendfile(e.client, vec, 2, type == SOCK_STREAM ? EXS_SHUT_WR : 0, (void *)9, qh) == 0, "exs_sendfile");
    exs_event_t ev = expect(e.qh, EXS_EVT_RECV, (void *)1);
    ok(ev.exs_evt_errno == 0 && ev.exs_evt_union.exs_evt_xfer.exs_evt_length == LEN + 8 &&
           memcmp(in, "headline", 8) == 0 && memcmp(in + 8, want, LEN) == 0,
       "memory and file arrive: %zu", ev.exs_evt_union.exs_evt_xfer.exs_evt_length);
    ev = expect(qh, EXS_EVT_SENDFILE, (void *)9);
    ok(ev.exs_evt_errno == 0 && ev.exs_evt_union.exs_evt_xferfile.exs_evt_length == LEN + 8, "with one event (%d)",
       ev.exs_evt_errno);
    ok(lseek(file, 0, SEEK_CUR) == 0, "the offset of the file did not move");
    if (type == SOCK_STREAM) {
        ok(exs_recv(e.server, in, 8, 0, NOMEM, 0, QUEUE) == 0, "EXS_SHUT_WR: the end follows");
        ok(exs_send(e.client, "x", 1, 0, NOMEM, 0, QUEUE) == -1 && errno == EPIPE, "and no more sends");
    } else {
        vec[1].exs_xff_u.exs_xff_fdv.exs_fdv_offset = LEN - 10;
        ok(exs_sendfile(e.client, vec, 2, 0, 0, QUEUE) == -1 && errno == EIO, "a file that ends early is EIO");
    }
    must(exs_qdelete(qh) == 0);
    disconnect(&e);
    close(file);
    free(in);
    free(want);
}

/* --- readiness, cancel, ends --------------------------------------------------------------------------------- */

static void test_poll(void)
{
    struct ends e = connected(SOCK_STREAM);
    char in[8];
    exs_pollfd_t fds[] = {{e.listener, EXS_POLLIN, 0}, {e.server, EXS_POLLIN, 0}};
    ok(exs_poll(fds, 2, (void *)5, e.qh) == 0, "exs_poll over two");
    must(exs_send(e.client, "ping", 4, 0, NOMEM, 0, QUEUE) == 4);
    exs_event_t ev = expect(e.qh, EXS_EVT_POLL, (void *)5);
    ok(ev.exs_evt_union.exs_evt_poll.exs_evt_nready == 1 && fds[1].exs_pfd_revents == EXS_POLLIN &&
           fds[0].exs_pfd_revents == 0,
       "the second is ready");
    ok(exs_recv(e.server, in, 8, MSG_DONTWAIT, NOMEM, 0, QUEUE) == 4, "taken without waiting");
    ok(exs_recv(e.server, in, 8, MSG_DONTWAIT, NOMEM, 0, QUEUE) == -1 && errno == EAGAIN, "then EAGAIN");
    exs_pollfd_t out = {e.client, EXS_POLLOUT, 0};
    ok(exs_poll(&out, 1, 0, QUEUE) == 1 && out.exs_pfd_revents == EXS_POLLOUT, "writable, without a queue");
    must(exs_fcntl(e.listener, F_SETFL, O_NONBLOCK) == 0);
    ok(exs_accept(e.listener, NULL, 0, 0, 0, QUEUE) == -1 && errno == EAGAIN, "nobody to accept");
    disconnect(&e);
}

static void test_cancel(void)
{
    struct ends e = connected(SOCK_STREAM);
    char in[8];
    must(exs_recv(e.server, in, 4, 0, NOMEM, (void *)11, e.qh) == 0);
    must(exs_recv(e.server, in + 4, 4, 0, NOMEM, (void *)12, e.qh) == 0);
    must(exs_accept(e.listener, NULL, 0, 0, (void *)12, e.qh) == 0);
    ok(exs_qdelete(e.qh) == -1 && errno == EBUSY, "a queue with calls in flight is EBUSY");
    ok(exs_cancel(-1, (void *)99, EXS_CAF_AHANDLE) == 0, "nothing to cancel");
    ok(exs_cancel(e.listener, (void *)12, EXS_CAF_AHANDLE | EXS_CAF_FILDES) == 1, "by both");
    exs_event_t ev = expect(e.qh, EXS_EVT_ACCEPT, (void *)12);
    ok(ev.exs_evt_errno == ECANCELED && ev.exs_evt_union.exs_evt_accept.exs_evt_new_socket == -1, "ECANCELED");
    ok(exs_cancel(-1, (void *)12, EXS_CAF_AHANDLE) == 1 &&
           expect(e.qh, EXS_EVT_RECV, (void *)12).exs_evt_errno == ECANCELED,
       "by cookie");
    ok(exs_cancel(e.server, 0, EXS_CAF_FILDES) == 1 &&
           expect(e.qh, EXS_EVT_RECV, (void *)11).exs_evt_errno == ECANCELED,
       "by socket");
    ok(exs_cancel(e.server, 0, 0) == -1 && errno == EINVAL, "by nothing: EINVAL");
    disconnect(&e);
}

static void test_ends(void)
{
    struct ends e = connected(SOCK_STREAM);
    char in[8];
    ok(exs_shutdown(e.client, SHUT_WR, (void *)3, e.qh) == 0, "exs_shutdown");
    ok(expect(e.qh, EXS_EVT_SHUTDOWN, (void *)3).exs_evt_errno == 0, "is over");
    ok(exs_recv(e.server, in, 8, 0, NOMEM, 0, QUEUE) == 0, "the peer reads the end");
    must(exs_recv(e.client, in, 8, 0, NOMEM, (void *)4, e.qh) == 0);
    struct linger l = {.l_onoff = 1, .l_linger = 0};
    ok(exs_setsockopt(e.client, SOL_SOCKET, SO_LINGER, &l, sizeof l) == 0, "linger 0");
    ok(exs_close(e.client, (void *)5, e.qh) == 0, "exs_close with a queue");
    exs_event_t a = one(e.qh), b = one(e.qh);
    if (a.exs_evt_type == EXS_EVT_CLOSE) {
        exs_event_t t = a;
        a = b;
        b = t;
    }
    ok(a.exs_evt_type == EXS_EVT_RECV && a.exs_evt_errno == ECONNABORTED, "what was in flight ends with ECONNABORTED");
    ok(b.exs_evt_type == EXS_EVT_CLOSE && b.exs_evt_errno == 0 && b.exs_evt_ahandle == (void *)5, "EXS_EVT_CLOSE");
    ok(fcntl(e.client, F_GETFD) == -1 && errno == EBADF, "the number is free when its last event was fetched");
    ok(exs_send(e.server, "x", 1, 0, NOMEM, 0, QUEUE) == -1 && errno == ECONNRESET,
       "the peer's send ends with ECONNRESET");
    must(exs_close(e.server, 0, QUEUE) == 0 && exs_close(e.listener, 0, QUEUE) == 0 && exs_qdelete(e.qh) == 0);
}

static void test_connect_later(void)
{
    struct sockaddr_in at;
    int lst = listener(SOCK_STREAM, &at), error = -1;
    socklen_t len = sizeof error;
    int fd = exs_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    ok(exs_connect(fd, (struct sockaddr *)&at, sizeof at, 0, QUEUE) == -1 && errno == EINPROGRESS, "EINPROGRESS");
    exs_pollfd_t p = {fd, EXS_POLLOUT, 0};
    ok(exs_poll(&p, 1, 0, QUEUE) == 1, "then writable");
    ok(exs_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0, "SO_ERROR 0");
    must(exs_close(fd, 0, QUEUE) == 0);
    must(exs_close(lst, 0, QUEUE) == 0);
    fd = exs_socket(AF_INET, SOCK_STREAM, 0);
    ok(exs_connect(fd, (struct sockaddr *)&at, sizeof at, 0, QUEUE) == -1 && errno == ECONNREFUSED,
       "nobody there: ECONNREFUSED");
    must(exs_close(fd, 0, QUEUE) == 0);
}

/* Several accepts armed by one call, with places for the addresses. */
static void test_accepts(void)
{
    struct sockaddr_in at, names[2];
    exs_acceptaddr_t slots[2] = {{(struct sockaddr *)&names[0], sizeof names[0]},
                                 {(struct sockaddr *)&names[1], sizeof names[1]}};
    int lst = listener(SOCK_STREAM, &at), fds[2], got[2];
    exs_qhandle_t qh = exs_qcreate(8);
    ok(exs_accept(lst, slots, 2, 0, 0, qh) == 0, "two accepts in one call");
    for (int i = 0; i < 2; i++) {
        struct sockaddr_in mine;
        socklen_t len = sizeof mine;
        fds[i] = exs_socket(AF_INET, SOCK_STREAM, 0);
        must(exs_connect(fds[i], (struct sockaddr *)&at, sizeof at, 0, QUEUE) == 0);
        must(exs_getsockname(fds[i], (struct sockaddr *)&mine, &len) == 0);
        exs_event_t ev = expect(qh, EXS_EVT_ACCEPT, 0);
        got[i] = ev.exs_evt_union.exs_evt_accept.exs_evt_new_socket;
        ok(ev.exs_evt_union.exs_evt_accept.exs_evt_addr == &slots[i] && names[i].sin_port == mine.sin_port,
           "slot %d has the name", i);
    }
    for (int i = 0; i < 2; i++) must(exs_close(fds[i], 0, QUEUE) == 0 && exs_close(got[i], 0, QUEUE) == 0);
    must(exs_close(lst, 0, QUEUE) == 0 && exs_qdelete(qh) == 0);
}

/* --- blocking calls, threads, signals, fork --------------------------------------------------------------------- */

static void *echo(void *arg)
{
    int fd = *(int *)arg;
    char buf[1000];
    ssize_t n;
    while ((n = exs_recv(fd, buf, sizeof buf, 0, NOMEM, 0, QUEUE)) > 0)
        if (exs_send(fd, buf, (size_t)n, 0, NOMEM, 0, QUEUE) != n) break;
    exs_shutdown(fd, SHUT_WR, 0, QUEUE);
    return (void *)n;
}

static void test_blocking(int progress)
{
    pthread_t thread;
    void *result;
    struct sockaddr_in at;
    int lst = listener(SOCK_STREAM, &at), client = exs_socket(AF_INET, SOCK_STREAM, 0), bad = 0;
    must(exs_setsockopt(client, SOL_EXS, EXS_SO_PROGRESS, &progress, sizeof progress) == 0);
    must(exs_connect(client, (struct sockaddr *)&at, sizeof at, 0, QUEUE) == 0);
    int server = exs_accept(lst, NULL, 0, 0, 0, QUEUE);
    ok(server >= 0, "accepted, without a queue");
    must(pthread_create(&thread, NULL, echo, &server) == 0);
    for (int i = 1; i <= 300; i++) {
        char out[1000], in[1000];
        memset(out, i, sizeof out);
        size_t len = (size_t)(i * 3);
        bad += exs_send(client, out, len, 0, NOMEM, 0, QUEUE) != (ssize_t)len;
        bad += exs_recv(client, in, len, MSG_WAITALL, NOMEM, 0, QUEUE) != (ssize_t)len || memcmp(in, out, len) != 0;
    }
    ok(bad == 0, "300 round trips with a thread, progress %d", progress);
    must(exs_shutdown(client, SHUT_WR, 0, QUEUE) == 0);
    must(pthread_join(thread, &result) == 0);
    ok(result == NULL, "the thread read the end");
    must(exs_close(client, 0, QUEUE) == 0 && exs_close(server, 0, QUEUE) == 0 && exs_close(lst, 0, QUEUE) == 0);
}

static void on_alarm(int sig)
{
    (void)sig;
}

static void test_signal(void)
{
    struct ends e = connected(SOCK_STREAM);
    struct sigaction act = {.sa_handler = on_alarm}, old;
    char in[4];
    exs_event_t ev;
    sigaction(SIGALRM, &act, &old);
    /* Again and again: the first may come before the wait has begun. */
    ualarm(50000, 50000);
    ok(exs_qdequeue(e.qh, &ev, 1, NULL) == -1 && errno == EINTR, "a signal ends the wait for events");
    ok(exs_recv(e.server, in, 4, 0, NOMEM, 0, QUEUE) == -1 && errno == EINTR,
       "and a receive without a queue, which is withdrawn");
    ualarm(0, 0);
    sigaction(SIGALRM, &old, NULL);
    must(exs_send(e.client, "yes", 3, 0, NOMEM, 0, QUEUE) == 3);
    ok(exs_recv(e.server, in, 4, 0, NOMEM, 0, QUEUE) == 3, "nothing was lost");
    disconnect(&e);
}

static void test_fork(void)
{
    struct ends e = connected(SOCK_STREAM);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int bad = !(exs_send(e.client, "x", 1, 0, NOMEM, 0, QUEUE) == -1 && errno == EINVAL);
        bad |= exs_init(EXS_VERSION) != 0;
        int fd = exs_socket(AF_INET, SOCK_STREAM, 0);
        bad |= fd < 0 || exs_close(fd, 0, QUEUE) != 0;
        _exit(bad);
    }
    int status;
    must(waitpid(pid, &status, 0) == pid);
    ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "after fork: EINVAL until exs_init");
    must(exs_send(e.client, "x", 1, 0, NOMEM, 0, QUEUE) == 1);
    char in[1];
    ok(exs_recv(e.server, in, 1, 0, NOMEM, 0, QUEUE) == 1, "the parent goes on");
    disconnect(&e);
}

int main(void)
{
    test_init();
    test_memory();
    test_queues();
    test_options();
    test_slide(SOCK_STREAM);
    test_slide(SOCK_SEQPACKET);
    test_threshold();
    test_vectors(SOCK_STREAM);
    test_vectors(SOCK_SEQPACKET);
    test_sendfile(SOCK_STREAM);
    test_sendfile(SOCK_SEQPACKET);
    test_poll();
    test_cancel();
    test_ends();
    test_connect_later();
    test_accepts();
    test_blocking(EXS_PROGRESS_INLINE);
    test_blocking(EXS_PROGRESS_THREAD);
    test_signal();
    test_fork();
    return tap_done();
}
