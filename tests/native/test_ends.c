// SPDX-License-Identifier: MIT OR Apache-2.0
/* How things end when the other side does not help: silent, full, gone, killed, or not there yet.  Every
 * wait has a bound and every operation one event. */
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "pair.h"

#define MIB (1u << 20)

/* The event on one side while the other side sleeps. */
static exsi_event alone(struct side *s, uint64_t cookie, unsigned ms)
{
    exsi_event ev = {.kind = 0};
    uint64_t end = exsi_now_ns() + (uint64_t)ms * 1000000u;
    while (exsi_now_ns() < end) {
        side_step(s);
        if (side_find(s, cookie, &ev)) break;
    }
    return ev;
}

static void pair_run_side(struct side *s, unsigned ms)
{
    uint64_t end = exsi_now_ns() + (uint64_t)ms * 1000000u;
    while (exsi_now_ns() < end) side_step(s);
}

static int close_side(struct pair *p, struct side *s, int abort)
{
    exsi_posted out;
    int rc = exsi_socket_close(s->ctx, s->sock, abort, 77, s->eq, &out);
    return pair_result(p, s, rc, &out, 77).error;
}

/* --- a peer that ends the connection ------------------------------------------------------------------- */

/* We close before we could know: the sends say that they were lost, the close succeeds.  ES-API 1.9 */
static void test_close_of_a_reset_connection(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    pair_open(&p, m);
    pair_run(&p, 5);
    uint8_t *src = calloc(16, MIB);
    must(src);
    must(exsi_send(p.client.ctx, p.client.sock, src, 16 * MIB, 0, 0, 1, p.client.eq, NULL) == 0);
    must(exsi_socket_close(p.server.ctx, p.server.sock, 1, 9, p.server.eq, &out) >= 0);
    if (!m->threaded) pair_run_side(&p.server, 5);
    must(exsi_socket_close(p.client.ctx, p.client.sock, 0, 2, p.client.eq, NULL) == 0);
    exsi_event send_ev = pair_wait(&p, &p.client, 1), close_ev = pair_wait(&p, &p.client, 2);
    ok(send_ev.kind == EXSI_OP_SEND && send_ev.error == ECONNRESET, "%s: a send to a peer that aborts: ECONNRESET (%d)",
       m->name, send_ev.error);
    ok(close_ev.kind == EXSI_OP_CLOSE && close_ev.error == 0,
       "%s: and the close that comes before we know succeeds (%d)", m->name, close_ev.error);
    pair_close(&p);
    /* And one that we know to be dead. */
    pair_open(&p, m);
    must(close_side(&p, &p.server, 1) == 0);
    int rc = exsi_recv(p.client.ctx, p.client.sock, src, 100, 0, 0, 3, p.client.eq, &out);
    ok(pair_result(&p, &p.client, rc, &out, 3).error == ECONNRESET && close_side(&p, &p.client, 0) == 0,
       "%s: so does one of a connection that is known to be dead", m->name);
    pair_close(&p);
    free(src);
}

/* --- a peer that says nothing ------------------------------------------------------------------------ */

/* ES-API 1.9 */
static void test_silent_close(const struct mode *m)
{
    struct pair p;
    pair_open(&p, m);
    pair_run(&p, 5);
    uint8_t *src = calloc(16, MIB);
    must(src);
    must(exsi_send(p.client.ctx, p.client.sock, src, 16 * MIB, 0, 0, 1, p.client.eq, NULL) == 0);
    uint64_t t0 = exsi_now_ns();
    must(exsi_socket_close(p.client.ctx, p.client.sock, 0, 2, p.client.eq, NULL) == 0);
    exsi_event close_ev = alone(&p.client, 2, 4000), send_ev = alone(&p.client, 1, 100);
    double s = (double)(exsi_now_ns() - t0) / 1e9;
    ok(close_ev.kind == EXSI_OP_CLOSE && close_ev.error == ETIMEDOUT && s > 1.0 && s < 3.5,
       "%s: a close that the peer does not help is over after close_timeout (%d, %.1f s)", m->name, close_ev.error, s);
    ok(send_ev.kind == EXSI_OP_SEND && send_ev.error == ETIMEDOUT, "%s: its send ends with ETIMEDOUT (%d)", m->name,
       send_ev.error);
    pair_close(&p);
    free(src);
}

static void test_silent_cancel(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    char *in = malloc(MIB);
    must(in);
    pair_open(&p, m);
    must(exsi_recv(p.server.ctx, p.server.sock, in, MIB, 0, 0, 1, p.server.eq, &out) == 0);
    pair_run(&p, 5);
    uint64_t t0 = exsi_now_ns();
    int rc = exsi_cancel(p.server.ctx, p.server.sock, out.op, NULL);
    must(rc == 0);
    exsi_event ev = alone(&p.server, 1, 4000);
    double s = (double)(exsi_now_ns() - t0) / 1e9;
    exsi_socket_info info;
    must(exsi_socket_query(p.server.ctx, p.server.sock, &info) == 0);
    ok(ev.kind == EXSI_OP_RECV && ev.error == ECANCELED && s < 3.5,
       "%s: an advertised receive is withdrawn in bounded time (%d, %.1f s)", m->name, ev.error, s);
    ok(info.state == EXSI_SOCK_DEAD && info.error == ETIMEDOUT && info.reason[0], "%s: it cost the connection: %s",
       m->name, info.reason);
    pair_close(&p);
    free(in);
}

static void test_silent_listener(const struct mode *m)
{
    struct pair p;
    exsi_posted out, out2;
    pair_listen(&p, m);
    p.opt.connect_timeout_ms = 600;
    uint64_t a, b;
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &a) == 0);
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &b) == 0);
    must(exsi_connect(p.client.ctx, a, &p.addr, sizeof p.addr, 1, p.client.eq, &out) == 0);
    must(exsi_connect(p.client.ctx, b, &p.addr, sizeof p.addr, 2, p.client.eq, NULL) == 0);
    for (int i = 0; i < 20; i++) side_step(&p.client);
    ok(exsi_cancel(p.client.ctx, a, out.op, &out2) == 1 && out2.event.error == ECANCELED, "%s: a connect is cancelled",
       m->name);
    exsi_event ev = alone(&p.client, 2, 3000);
    ok(ev.kind == EXSI_OP_CONNECT && ev.error == ETIMEDOUT, "%s: a connect that nobody answers: ETIMEDOUT (%d)",
       m->name, ev.error);
    must(exsi_socket_close(p.client.ctx, a, 0, 0, 0, NULL) == 0);
    /* Close while it is under way. */
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &a) == 0);
    must(exsi_connect(p.client.ctx, a, &p.addr, sizeof p.addr, 3, p.client.eq, NULL) == 0);
    for (int i = 0; i < 20; i++) side_step(&p.client);
    int rc = exsi_socket_close(p.client.ctx, a, 0, 4, p.client.eq, &out);
    ok(rc == 1 && out.event.error == 0 && alone(&p.client, 3, 100).error == ECANCELED, "%s: closing ends the connect",
       m->name);
    pair_run(&p, 20);
    pair_close(&p);
}

/* --- listeners --------------------------------------------------------------------------------------------- */

static void test_backlog(const struct mode *m)
{
    struct pair p;
    enum { N = 4 };
    uint64_t socks[N];
    int refused = 0;
    pair_listen(&p, m);
    must(exsi_listen(p.server.ctx, p.listener, 3) == 0);
    for (unsigned i = 0; i < N; i++) {
        must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &socks[i]) == 0);
        must(exsi_connect(p.client.ctx, socks[i], &p.addr, sizeof p.addr, i, p.client.eq, NULL) == 0);
        refused += pair_wait(&p, &p.client, i).error == ECONNREFUSED;
    }
    ok(refused == 1, "%s: with three waiting the fourth is refused", m->name);
    exsi_socket_info info;
    must(exsi_socket_query(p.client.ctx, socks[N - 1], &info) == 0);
    ok(strstr(info.reason, "wait to be accepted") != NULL, "%s: and told why: %s", m->name, info.reason);
    char in[4];
    must(exsi_recv(p.client.ctx, socks[0], in, 4, 0, 0, 50, p.client.eq, NULL) == 0);
    pair_run(&p, 5);
    must(exsi_socket_close(p.server.ctx, p.listener, 0, 0, 0, NULL) == 0);
    exsi_event ev = pair_wait(&p, &p.client, 50);
    ok(ev.error == ECONNRESET, "%s: a listener that closes resets what waits (%d)", m->name, ev.error);
    pair_close(&p);
}

/* Data and the end of it came before anybody accepted. */
static void test_late_accept(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    char in[16];
    if (m->type != SOCK_STREAM) return; /* a message waits for its receive */
    pair_listen(&p, m);
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &p.client.sock) == 0);
    must(exsi_connect(p.client.ctx, p.client.sock, &p.addr, sizeof p.addr, 1, p.client.eq, NULL) == 0);
    must(pair_wait(&p, &p.client, 1).error == 0);
    must(exsi_send(p.client.ctx, p.client.sock, "early bird", 10, EXSI_OPF_SHUT_WR, 0, 2, p.client.eq, NULL) == 0);
    must(pair_wait(&p, &p.client, 2).error == 0);
    ok(exsi_send(p.client.ctx, p.client.sock, "x", 1, 0, 0, 3, p.client.eq, NULL) == -EPIPE,
       "%s: SHUT_WR with the send", m->name);
    ok(close_side(&p, &p.client, 0) == 0, "%s: sent, closed, not accepted yet", m->name);
    pair_run(&p, 30);
    int rc = exsi_accept(p.server.ctx, p.listener, 4, p.server.eq, &out);
    exsi_event ev = pair_result(&p, &p.server, rc, &out, 4);
    must(ev.error == 0);
    p.server.sock = ev.value;
    rc = exsi_recv(p.server.ctx, p.server.sock, in, 16, 0, 0, 5, p.server.eq, &out);
    ev = pair_result(&p, &p.server, rc, &out, 5);
    ok(ev.error == 0 && ev.value == 10 && memcmp(in, "early bird", 10) == 0, "%s: the data is there (%d)", m->name,
       ev.error);
    rc = exsi_recv(p.server.ctx, p.server.sock, in, 16, 0, 0, 6, p.server.eq, &out);
    ev = pair_result(&p, &p.server, rc, &out, 6);
    ok(ev.error == 0 && ev.value == 0 && (ev.flags & EXSI_EV_EOF), "%s: and its end (%d)", m->name, ev.error);
    pair_close(&p);
}

/* --- groups and queues that go ------------------------------------------------------------------------------- */

static void test_group_free(const struct mode *m)
{
    struct pair p;
    char in[2][64];
    exsi_event ev;
    pair_open(&p, m);
    uint64_t eq;
    must(exsi_eq_new(p.server.ctx, 0, 16, &eq) == 0);
    must(exsi_recv(p.server.ctx, p.server.sock, in[0], 64, 0, 0, 1, eq, NULL) == 0);
    must(exsi_accept(p.server.ctx, p.listener, 2, eq, NULL) == 0);
    must(exsi_recv(p.client.ctx, p.client.sock, in[1], 64, 0, 0, 3, p.client.eq, NULL) == 0);
    pair_run(&p, 5);
    ok(exsi_group_free(p.server.ctx, p.server.group) == 0, "%s: a group goes with all in it", m->name);
    int aborted = 0;
    while (exsi_eq_drain(p.server.ctx, eq, &ev, 1, 0) == 1) aborted += ev.error == ECONNABORTED;
    ok(aborted == 2, "%s: each operation has its event", m->name);
    ok(exsi_group_free(p.server.ctx, p.server.group) == -EBADF, "%s: once", m->name);
    uint64_t sock;
    ok(exsi_socket_new(p.server.ctx, p.server.group, AF_INET, m->type, NULL, &sock) == -EBADF, "%s: no new sockets",
       m->name);
    ok(exsi_send(p.server.ctx, p.server.sock, "x", 1, 0, 0, 4, eq, NULL) == -EBADF, "%s: nor the old ones", m->name);
    ev = alone(&p.client, 3, 3000);
    ok(ev.error == ECONNRESET, "%s: the peer is told (%d)", m->name, ev.error);
    pair_close(&p);
}

struct waiter {
    exsi_ctx *ctx;
    uint64_t eq;
    int result;
};

static void *wait_for_ever(void *arg)
{
    struct waiter *w = arg;
    exsi_event ev;
    w->result = exsi_eq_wait(w->ctx, w->eq, &ev, 1, 1, -1, EXSI_WAIT_ADAPTIVE, 20);
    return NULL;
}

static void test_queue_free(const struct mode *m)
{
    struct pair p;
    pthread_t thread;
    pair_listen(&p, m);
    struct waiter w = {.ctx = p.server.ctx};
    must(exsi_eq_new(p.server.ctx, m->threaded ? 0 : p.server.group, 4, &w.eq) == 0);
    must(pthread_create(&thread, NULL, wait_for_ever, &w) == 0);
    usleep(20000);
    ok(exsi_eq_free(p.server.ctx, w.eq) == 0, "%s: a queue goes under a waiting thread", m->name);
    must(pthread_join(thread, NULL) == 0);
    ok(w.result == -EBADF, "%s: which wakes with EBADF", m->name);
    pair_close(&p);
}

/* Two threads sleep on queues of one group; each must get its own event, whoever runs the progress. */
static void test_two_waiters(const struct mode *m)
{
    struct pair p;
    pthread_t threads[2];
    struct waiter w[2];
    char in[2][8];
    exsi_posted out;
    pair_open(&p, m);
    for (int i = 0; i < 2; i++) {
        w[i] = (struct waiter){.ctx = p.server.ctx};
        must(exsi_eq_new(p.server.ctx, m->threaded ? 0 : p.server.group, 4, &w[i].eq) == 0);
        must(exsi_recv(p.server.ctx, p.server.sock, in[i], 4, 0, 0, 1, w[i].eq, NULL) == 0);
        must(pthread_create(&threads[i], NULL, wait_for_ever, &w[i]) == 0);
    }
    usleep(20000);
    for (int i = 0; i < 2; i++) {
        int rc = exsi_send(p.client.ctx, p.client.sock, "wake", 4, 0, 0, 2, p.client.eq, &out);
        if (rc == 0) must(alone(&p.client, 2, 3000).kind == EXSI_OP_SEND);
        must(rc >= 0);
    }
    /* The client's side has to run for credits and notices; the waiters run the server's. */
    uint64_t end = exsi_now_ns() + 50000000u;
    while (exsi_now_ns() < end) side_step(&p.client);
    for (int i = 0; i < 2; i++) {
        must(pthread_join(threads[i], NULL) == 0);
        ok(w[i].result == 1, "%s: waiter %d has its event", m->name, i);
    }
    pair_close(&p);
}

/* --- processes -------------------------------------------------------------------------------------------------- */

/* A server in a child process: tells its address, accepts, and calls `body`. */
static pid_t serve(const struct mode *m, struct sockaddr_in *addr, void (*body)(struct side *))
{
    int up[2];
    must(pipe(up) == 0);
    fflush(stdout);
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        struct pair p;
        close(up[0]);
        pair_listen(&p, m);
        must(exsi_accept(p.server.ctx, p.listener, C_ACCEPT, p.server.eq, NULL) == 0);
        must(write(up[1], &p.addr, sizeof p.addr) == sizeof p.addr);
        exsi_event ev = alone(&p.server, C_ACCEPT, 8000);
        must(ev.error == 0 && ev.kind == EXSI_OP_ACCEPT);
        p.server.sock = ev.value;
        body(&p.server);
        exsi_close(p.server.ctx);
        exsi_close(p.client.ctx);
        _exit(0);
    }
    close(up[1]);
    must(read(up[0], addr, sizeof *addr) == sizeof *addr);
    close(up[0]);
    return pid;
}

static void client_open(struct side *s, const struct mode *m, const struct sockaddr_in *addr)
{
    exsi_options opt;
    exsi_options_default(&opt);
    opt.path = m->path;
    side_open(s, m->threaded);
    must(exsi_socket_new(s->ctx, s->group, AF_INET, m->type, &opt, &s->sock) == 0);
    must(exsi_connect(s->ctx, s->sock, addr, sizeof *addr, C_CONNECT, s->eq, NULL) == 0);
    exsi_event ev = alone(s, C_CONNECT, 8000);
    must(ev.kind == EXSI_OP_CONNECT && ev.error == 0);
}

static void sleep_for_ever(struct side *s)
{
    for (;;) side_step(s);
}

static void test_kill(const struct mode *m)
{
    struct sockaddr_in addr;
    struct side s;
    char in[64];
    uint8_t *big = calloc(8, MIB);
    must(big);
    pid_t pid = serve(m, &addr, sleep_for_ever);
    client_open(&s, m, &addr);
    must(exsi_recv(s.ctx, s.sock, in, 64, 0, 0, 1, s.eq, NULL) == 0);
    must(exsi_send(s.ctx, s.sock, big, 8 * MIB, 0, 0, 2, s.eq, NULL) == 0);
    (void)alone(&s, 999, 20);
    kill(pid, SIGKILL);
    must(waitpid(pid, NULL, 0) == pid);
    exsi_event r = alone(&s, 1, 4000), w = alone(&s, 2, 4000);
    ok(r.kind == EXSI_OP_RECV && r.error == ECONNRESET, "%s: killed peer: receive ends with ECONNRESET (%d)", m->name,
       r.error);
    ok(w.kind == EXSI_OP_SEND && w.error == ECONNRESET, "%s: and the send (%d)", m->name, w.error);
    exsi_close(s.ctx);
    free(big);
}

static uint8_t farewell[3 * MIB];

/* Send, close, end the context and the process at once. */
static void send_and_go(struct side *s)
{
    exsi_event ev;
    for (size_t i = 0; i < sizeof farewell; i++) farewell[i] = (uint8_t)(i * 17 + (i >> 10));
    must(exsi_send(s->ctx, s->sock, farewell, sizeof farewell, 0, 0, 1, s->eq, NULL) == 0);
    must(exsi_socket_close(s->ctx, s->sock, 0, 2, s->eq, NULL) == 0);
    ev = alone(s, 1, 8000);
    must(ev.kind == EXSI_OP_SEND && ev.error == 0);
    ev = alone(s, 2, 8000);
    must(ev.kind == EXSI_OP_CLOSE && ev.error == 0);
}

static void test_exit_after_close(const struct mode *m)
{
    struct sockaddr_in addr;
    struct side s;
    uint8_t *in = calloc(1, sizeof farewell + 1);
    must(in);
    pid_t pid = serve(m, &addr, send_and_go);
    client_open(&s, m, &addr);
    size_t got = 0;
    exsi_event ev;
    do {
        must(exsi_recv(s.ctx, s.sock, in + got, sizeof farewell + 1 - got, 0, 0, 1, s.eq, NULL) == 0);
        ev = alone(&s, 1, 8000);
        if (ev.kind == EXSI_OP_RECV && ev.error == 0) got += ev.value;
    } while (ev.error == 0 && ev.value > 0);
    bool same = true;
    for (size_t i = 0; i < got; i++) same &= in[i] == (uint8_t)(i * 17 + (i >> 10));
    ok(got == sizeof farewell && same && ev.error == 0 && ev.kind == EXSI_OP_RECV,
       "%s: what was closed in order arrives although the sender's process is gone (%zu, %d)", m->name, got, ev.error);
    int status;
    must(waitpid(pid, &status, 0) == pid);
    ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: which ended well", m->name);
    exsi_close(s.ctx);
    free(in);
}

static void run(const struct mode *m)
{
    int before = count_fds();
    if (!m->threaded) { /* a threaded side is never silent */
        test_silent_close(m);
        test_silent_cancel(m);
        test_silent_listener(m);
    }
    test_close_of_a_reset_connection(m);
    test_backlog(m);
    test_late_accept(m);
    test_group_free(m);
    test_queue_free(m);
    if (m->type == SOCK_STREAM) test_two_waiters(m);
    test_kill(m);
    if (m->type == SOCK_STREAM) test_exit_after_close(m);
    ok(count_fds() == before, "%s: no descriptor is left (%d, %d)", m->name, before, count_fds());
}

int main(int argc, char **argv)
{
    static const struct mode modes[] = {
        {"stream tcp", SOCK_STREAM, EXSI_PATH_TCP, false, false},
        {"seqpacket tcp", SOCK_SEQPACKET, EXSI_PATH_TCP, false, false},
        {"stream shm", SOCK_STREAM, EXSI_PATH_SHM, false, false},
        {"seqpacket shm", SOCK_SEQPACKET, EXSI_PATH_SHM, false, false},
        {"stream shm-ring", SOCK_STREAM, EXSI_PATH_SHM_RING, false, false},
        {"stream tcp thread", SOCK_STREAM, EXSI_PATH_TCP, true, false},
        {"stream shm thread", SOCK_STREAM, EXSI_PATH_SHM, true, false},
    };
    for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++)
        if (argc < 2 || strstr(modes[i].name, argv[1])) run(&modes[i]);
    return tap_done();
}
