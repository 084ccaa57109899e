// SPDX-License-Identifier: MIT OR Apache-2.0
/* The call face end to end: two contexts, real devices, every mode. */
#include "pair.h"

#define MIB (1u << 20)

static void fill(uint8_t *b, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++) b[i] = (uint8_t)(seed + i * 7 + (i >> 8) * 13);
}

static uint64_t region(struct side *s, void *addr, size_t len)
{
    uint64_t mr;
    must(exsi_mem_register(s->ctx, addr, len, EXSI_MR_READ | EXSI_MR_WRITE, &mr) == 0);
    return mr;
}

/* One transfer of n bytes, the receive posted ahead; the receive's event. */
static exsi_event move(struct pair *p, struct side *from, struct side *to, uint8_t *src, uint64_t src_mr, size_t n,
                       uint8_t *dst, uint64_t dst_mr, size_t room, uint32_t recv_flags)
{
    must(exsi_recv(to->ctx, to->sock, dst, room, recv_flags, dst_mr, 1, to->eq, NULL) == 0);
    pair_run(p, 2);
    /* Ahead of the data means: the sender has heard of it, however busy the machine is. */
    for (int i = 0; i < 2000 && pair_stat(from, "adverts_received") < pair_stat(to, "adverts_sent"); i++)
        pair_run(p, 1);
    must(exsi_send(from->ctx, from->sock, src, n, 0, src_mr, 2, from->eq, NULL) == 0);
    exsi_event s = pair_wait(p, from, 2);
    ok(s.error == 0 && s.value == n, "send of %zu: error %d, value %llu", n, s.error, (unsigned long long)s.value);
    return pair_wait(p, to, 1);
}

static void test_transfers(const struct mode *m)
{
    struct pair p;
    pair_open(&p, m);
    exsi_socket_info info;
    must(exsi_socket_query(p.client.ctx, p.client.sock, &info) == 0);
    ok(info.state == EXSI_SOCK_CONNECTED && info.device[0], "%s: connected by %s, path %s", m->name, info.device,
       info.path);

    uint8_t *src = malloc(MIB), *dst = malloc(MIB);
    must(src && dst);
    uint64_t cs = region(&p.client, src, MIB), ss = region(&p.server, src, MIB);
    uint64_t cd = region(&p.client, dst, MIB), sd = region(&p.server, dst, MIB);
    size_t sizes[] = {1, 48, 4096, 8191, 65536, 100003, MIB};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        fill(src, sizes[i], i);
        memset(dst, 0, MIB);
        exsi_event r =
            move(&p, &p.client, &p.server, src, cs, sizes[i], dst, sd, MIB, sizes[i] == MIB ? EXSI_OPF_WAITALL : 0);
        ok(r.error == 0 && r.value == sizes[i] && memcmp(src, dst, sizes[i]) == 0,
           "%s: %zu bytes to the server: %d %llu", m->name, sizes[i], r.error, (unsigned long long)r.value);
        memset(dst, 0, MIB);
        r = move(&p, &p.server, &p.client, src, ss, sizes[i], dst, cd, MIB, 0);
        ok(r.error == 0 && r.value == sizes[i] && memcmp(src, dst, sizes[i]) == 0,
           "%s: %zu bytes to the client: %d %llu", m->name, sizes[i], r.error, (unsigned long long)r.value);
    }
    /* Small direct transfers on the shared-memory rings are copied by the device; large ones never. */
    uint64_t before = pair_stat(&p.server, "bytes_copied"), direct = pair_stat(&p.server, "bytes_direct");
    move(&p, &p.client, &p.server, src, cs, MIB, dst, sd, MIB, 0);
    if (m->path != EXSI_PATH_SHM_RING)
        ok(pair_stat(&p.server, "bytes_copied") == before, "%s: a posted receive of 1 MiB is not copied", m->name);
    ok(pair_stat(&p.server, "bytes_direct") == direct + MIB, "%s: it came direct", m->name);

    ok(exsi_mem_close(p.client.ctx, cs) == 0 && exsi_mem_close(p.server.ctx, sd) == 0, "%s: regions are free", m->name);
    pair_close(&p);
    free(src);
    free(dst);
}

static void test_sender_first(const struct mode *m)
{
    struct pair p;
    pair_open(&p, m);
    uint8_t *src = malloc(MIB), *dst = calloc(1, MIB);
    must(src && dst);
    fill(src, MIB, 3);
    /* Not registered, and the receiver late: through the ring (STREAM), or waiting for a receive. */
    must(exsi_send(p.client.ctx, p.client.sock, src, 3 * MIB / 4, 0, 0, 2, p.client.eq, NULL) == 0);
    must(exsi_send(p.client.ctx, p.client.sock, src + 3 * MIB / 4, 100, 0, 0, 3, p.client.eq, NULL) == 0);
    pair_run(&p, 5);
    must(exsi_recv(p.server.ctx, p.server.sock, dst, 3 * MIB / 4, EXSI_OPF_WAITALL, 0, 1, p.server.eq, NULL) == 0);
    must(exsi_recv(p.server.ctx, p.server.sock, dst + 3 * MIB / 4, 100, EXSI_OPF_WAITALL, 0, 4, p.server.eq, NULL) ==
         0);
    exsi_event a = pair_wait(&p, &p.server, 1), b = pair_wait(&p, &p.server, 4);
    ok(a.error == 0 && a.value == 3 * MIB / 4 && b.error == 0 && b.value == 100 &&
           memcmp(src, dst, 3 * MIB / 4 + 100) == 0,
       "%s: sender first, unregistered memory", m->name);
    ok(pair_wait(&p, &p.client, 2).error == 0 && pair_wait(&p, &p.client, 3).error == 0, "%s: both sends end", m->name);
    pair_close(&p);
    free(src);
    free(dst);
}

static void test_both_ways(const struct mode *m)
{
    enum { N = 32, LEN = 60000 };
    struct pair p;
    pair_open(&p, m);
    uint8_t *mem = malloc(4ul * N * LEN);
    must(mem);
    uint8_t *cs = mem, *cr = cs + N * LEN, *ss = cr + N * LEN, *sr = ss + N * LEN;
    fill(cs, N * LEN, 1);
    fill(ss, N * LEN, 99);
    uint64_t cm = region(&p.client, mem, 4ul * N * LEN), sm = region(&p.server, mem, 4ul * N * LEN);
    for (unsigned i = 0; i < N; i++) {
        must(exsi_send(p.client.ctx, p.client.sock, cs + i * LEN, LEN, 0, cm, 100 + i, p.client.eq, NULL) == 0);
        must(exsi_send(p.server.ctx, p.server.sock, ss + i * LEN, LEN, 0, sm, 100 + i, p.server.eq, NULL) == 0);
    }
    for (unsigned i = 0; i < N; i++) {
        must(exsi_recv(p.client.ctx, p.client.sock, cr + i * LEN, LEN, EXSI_OPF_WAITALL, cm, 200 + i, p.client.eq,
                       NULL) == 0);
        must(exsi_recv(p.server.ctx, p.server.sock, sr + i * LEN, LEN, EXSI_OPF_WAITALL, sm, 200 + i, p.server.eq,
                       NULL) == 0);
    }
    int bad = 0;
    for (unsigned i = 0; i < N; i++) {
        exsi_event a = pair_wait(&p, &p.client, 100 + i), b = pair_wait(&p, &p.server, 100 + i);
        exsi_event c = pair_wait(&p, &p.client, 200 + i), d = pair_wait(&p, &p.server, 200 + i);
        bad += a.error || b.error || c.error || d.error || c.value != LEN || d.value != LEN;
    }
    ok(bad == 0 && memcmp(cs, sr, N * LEN) == 0 && memcmp(ss, cr, N * LEN) == 0, "%s: %d each way at once", m->name, N);
    pair_close(&p);
    free(mem);
}

static void test_messages(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    pair_open(&p, m);
    char a[] = "abcdefgh", b[] = "0123456789", in[3][8];
    exsi_piece send[] = {{a, 8, 0}, {b, 10, 0}}, recv[] = {{in[0], 5, 0}, {in[1], 8, 0}, {in[2], 5, 0}};
    memset(in, 0, sizeof in);
    must(exsi_recvmsg(p.server.ctx, p.server.sock, recv, 3, EXSI_OPF_WAITALL, 1, p.server.eq, NULL) == 0);
    int rc = exsi_sendmsg(p.client.ctx, p.client.sock, send, 2, 0, 2, p.client.eq, &out);
    ok(pair_result(&p, &p.client, rc, &out, 2).value == 18, "%s: sendmsg of two pieces", m->name);
    exsi_event ev = pair_wait(&p, &p.server, 1);
    ok(ev.error == 0 && ev.value == 18 && memcmp(in[0], "abcde", 5) == 0 && memcmp(in[1], "fgh01234", 8) == 0 &&
           memcmp(in[2], "56789", 5) == 0,
       "%s: recvmsg into three pieces: %d %llu", m->name, ev.error, (unsigned long long)ev.value);
    if (m->type == SOCK_SEQPACKET) {
        must(exsi_recv(p.server.ctx, p.server.sock, in, 4, 0, 0, 3, p.server.eq, NULL) == 0);
        must(exsi_send(p.client.ctx, p.client.sock, b, 10, 0, 0, 4, p.client.eq, NULL) == 0);
        ev = pair_wait(&p, &p.server, 3);
        ok(ev.value == 4 && (ev.flags & EXSI_EV_TRUNCATED) && ev.extra == 10, "%s: a long message is cut, and told so",
           m->name);
        must(exsi_recv(p.server.ctx, p.server.sock, in, 4, 0, 0, 3, p.server.eq, NULL) == 0);
        must(exsi_send(p.client.ctx, p.client.sock, NULL, 0, 0, 0, 5, p.client.eq, NULL) == 0);
        ev = pair_wait(&p, &p.server, 3);
        ok(ev.error == 0 && ev.value == 0 && !(ev.flags & EXSI_EV_EOF), "%s: an empty message is a message", m->name);
        (void)pair_wait(&p, &p.client, 5);
    }
    pair_close(&p);
}

static void test_ends(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    char in[64];
    pair_open(&p, m);
    must(exsi_recv(p.server.ctx, p.server.sock, in, 64, 0, 0, 1, p.server.eq, NULL) == 0);
    int rc = exsi_send(p.client.ctx, p.client.sock, "last words", 10, 0, 0, 2, p.client.eq, &out);
    must(pair_result(&p, &p.client, rc, &out, 2).error == 0);
    rc = exsi_shutdown(p.client.ctx, p.client.sock, SHUT_WR, 3, p.client.eq, &out);
    ok(pair_result(&p, &p.client, rc, &out, 3).error == 0, "%s: shutdown", m->name);
    exsi_event ev = pair_wait(&p, &p.server, 1);
    ok(ev.error == 0 && ev.value == 10 && memcmp(in, "last words", 10) == 0, "%s: what was sent before arrives",
       m->name);
    rc = exsi_recv(p.server.ctx, p.server.sock, in, 64, 0, 0, 4, p.server.eq, &out);
    ev = pair_result(&p, &p.server, rc, &out, 4);
    ok(ev.error == 0 && ev.value == 0 && (ev.flags & EXSI_EV_EOF), "%s: then end of stream", m->name);
    rc = exsi_send(p.client.ctx, p.client.sock, "x", 1, 0, 0, 5, p.client.eq, NULL);
    ok(rc == -EPIPE, "%s: no send after shutdown", m->name);
    /* The other direction lives. */
    must(exsi_recv(p.client.ctx, p.client.sock, in, 64, 0, 0, 6, p.client.eq, NULL) == 0);
    rc = exsi_send(p.server.ctx, p.server.sock, "still here", 10, 0, 0, 7, p.server.eq, &out);
    must(pair_result(&p, &p.server, rc, &out, 7).error == 0);
    ok(pair_wait(&p, &p.client, 6).value == 10, "%s: the other direction goes on", m->name);

    rc = exsi_socket_close(p.server.ctx, p.server.sock, 0, 8, p.server.eq, &out);
    ok(pair_result(&p, &p.server, rc, &out, 8).error == 0, "%s: close in order", m->name);
    ok(exsi_send(p.server.ctx, p.server.sock, "x", 1, 0, 0, 9, p.server.eq, NULL) == -EBADF, "%s: the handle is dead",
       m->name);
    rc = exsi_recv(p.client.ctx, p.client.sock, in, 64, 0, 0, 10, p.client.eq, &out);
    ev = pair_result(&p, &p.client, rc, &out, 10);
    ok(ev.error == 0 && ev.value == 0, "%s: the peer reads the end: %d", m->name, ev.error);
    rc = exsi_socket_close(p.client.ctx, p.client.sock, 0, 11, p.client.eq, &out);
    ok(pair_result(&p, &p.client, rc, &out, 11).error == 0, "%s: the other close", m->name);
    pair_close(&p);
}

static void test_close_with_data(const struct mode *m)
{
    enum { N = 300000 };
    struct pair p;
    exsi_posted out;
    pair_open(&p, m);
    uint8_t *src = malloc(N), *dst = malloc(N);
    must(src && dst);
    fill(src, N, 5);
    must(exsi_send(p.client.ctx, p.client.sock, src, N, 0, 0, 1, p.client.eq, NULL) == 0);
    int rc = exsi_socket_close(p.client.ctx, p.client.sock, 0, 2, p.client.eq, NULL);
    must(rc == 0);
    uint64_t got = 0;
    exsi_event ev = {0};
    do {
        rc = exsi_recv(p.server.ctx, p.server.sock, dst + got, N - got ? N - got : 1, 0, 0, 3, p.server.eq, &out);
        ev = pair_result(&p, &p.server, rc, &out, 3);
        got += ev.value;
    } while (ev.error == 0 && ev.value > 0 && got < N);
    ok(ev.error == 0 && got == N && memcmp(src, dst, N) == 0, "%s: what was sent before close arrives whole: %d, %llu",
       m->name, ev.error, (unsigned long long)got);
    ok(pair_wait(&p, &p.client, 1).error == 0 && pair_wait(&p, &p.client, 2).error == 0, "%s: send and close end well",
       m->name);
    rc = exsi_recv(p.server.ctx, p.server.sock, dst, N, 0, 0, 4, p.server.eq, &out);
    ev = pair_result(&p, &p.server, rc, &out, 4);
    ok(ev.error == 0 && ev.value == 0, "%s: and then the end", m->name);
    pair_close(&p);
    free(src);
    free(dst);
}

static void test_abort(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    char in[64], in2[64];
    pair_open(&p, m);
    must(exsi_recv(p.server.ctx, p.server.sock, in, 64, 0, 0, 1, p.server.eq, NULL) == 0);
    must(exsi_recv(p.client.ctx, p.client.sock, in2, 64, 0, 0, 2, p.client.eq, NULL) == 0);
    pair_run(&p, 5);
    int rc = exsi_socket_close(p.client.ctx, p.client.sock, 1, 3, p.client.eq, &out);
    ok(pair_result(&p, &p.client, rc, &out, 3).error == 0, "%s: abort", m->name);
    ok(pair_wait(&p, &p.client, 2).error == ECONNABORTED, "%s: its own receive ends with ECONNABORTED", m->name);
    exsi_event ev = pair_wait(&p, &p.server, 1);
    ok(ev.error == ECONNRESET, "%s: the peer's with ECONNRESET (%d)", m->name, ev.error);
    rc = exsi_send(p.server.ctx, p.server.sock, "x", 1, 0, 0, 4, p.server.eq, NULL);
    ok(rc == -ECONNRESET, "%s: later sends are refused with it (%d)", m->name, rc);
    pair_close(&p);
}

static void test_cancel(const struct mode *m)
{
    struct pair p;
    exsi_posted out, out2;
    char in[64];
    pair_open(&p, m);
    must(exsi_recv(p.server.ctx, p.server.sock, in, 64, 0, 0, 1, p.server.eq, &out) == 0);
    pair_run(&p, 5);
    int rc = exsi_cancel(p.server.ctx, p.server.sock, out.op, &out2);
    exsi_event ev = pair_result(&p, &p.server, rc, &out2, 1);
    ok(ev.error == ECANCELED && ev.value == 0, "%s: an advertised receive is cancelled", m->name);
    ok(exsi_cancel(p.server.ctx, p.server.sock, out.op, &out2) == -EBADF, "%s: once", m->name);
    must(exsi_recv(p.server.ctx, p.server.sock, in, 64, 0, 0, 2, p.server.eq, NULL) == 0);
    rc = exsi_send(p.client.ctx, p.client.sock, "after", 5, 0, 0, 3, p.client.eq, &out);
    must(pair_result(&p, &p.client, rc, &out, 3).error == 0);
    ok(pair_wait(&p, &p.server, 2).value == 5, "%s: the connection goes on", m->name);

    must(exsi_accept(p.server.ctx, p.listener, 4, p.server.eq, &out) == 0);
    ok(exsi_cancel(p.server.ctx, p.listener, out.op, &out2) == 1 && out2.event.error == ECANCELED &&
           out2.event.cookie == 4,
       "%s: an accept is cancelled at once", m->name);
    must(exsi_accept(p.server.ctx, p.listener, 5, p.server.eq, NULL) == 0);
    must(exsi_poll(p.server.ctx, p.server.sock, EXSI_OPF_POLL_IN, 5, p.server.eq, NULL) == 0);
    ok(exsi_cancel_match(p.server.ctx, 0, 1, 5) == 2, "%s: cancel by cookie finds both", m->name);
    ok(pair_wait(&p, &p.server, 5).error == ECANCELED && pair_wait(&p, &p.server, 5).error == ECANCELED,
       "%s: and ends both", m->name);
    pair_close(&p);
}

static void test_poll(const struct mode *m)
{
    struct pair p;
    exsi_posted out;
    char in[64];
    pair_open(&p, m);
    must(exsi_poll(p.server.ctx, p.server.sock, EXSI_OPF_POLL_IN | EXSI_OPF_POLL_OUT, 1, p.server.eq, &out) >= 0);
    if (m->type == SOCK_STREAM) {
        must(exsi_poll(p.server.ctx, p.server.sock, EXSI_OPF_POLL_IN, 2, p.server.eq, NULL) == 0);
        pair_run(&p, 5);
        exsi_event none;
        ok(!side_find(&p.server, 2, &none), "%s: nothing to read yet", m->name);
        must(exsi_send(p.client.ctx, p.client.sock, "hello", 5, 0, 0, 3, p.client.eq, NULL) == 0);
        ok(pair_wait(&p, &p.server, 2).value == EXSI_OPF_POLL_IN, "%s: readable", m->name);
        int rc = exsi_recv(p.server.ctx, p.server.sock, in, 64, EXSI_OPF_DONTWAIT, 0, 4, 0, &out);
        ok(rc == 1 && out.event.value == 5 && memcmp(in, "hello", 5) == 0, "%s: taken without waiting", m->name);
        rc = exsi_recv(p.server.ctx, p.server.sock, in, 64, EXSI_OPF_DONTWAIT, 0, 4, 0, &out);
        ok(rc == -EAGAIN, "%s: then there is nothing", m->name);
    }
    must(exsi_poll(p.server.ctx, p.listener, EXSI_OPF_POLL_IN, 6, p.server.eq, NULL) == 0);
    uint64_t other;
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &other) == 0);
    must(exsi_connect(p.client.ctx, other, &p.addr, sizeof p.addr, 7, p.client.eq, NULL) == 0);
    must(pair_wait(&p, &p.client, 7).error == 0);
    ok(pair_wait(&p, &p.server, 6).value == EXSI_OPF_POLL_IN, "%s: a listener with a connection is readable", m->name);
    pair_close(&p);
}

static void test_refusals(const struct mode *m)
{
    struct pair p;
    exsi_socket_info info;
    pair_listen(&p, m);
    uint64_t sock;
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type == SOCK_STREAM ? SOCK_SEQPACKET : SOCK_STREAM,
                         &p.opt, &sock) == 0);
    ok(exsi_send(p.client.ctx, sock, "x", 1, 0, 0, 1, p.client.eq, NULL) == -ENOTCONN, "%s: not connected", m->name);
    must(exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 1, p.client.eq, NULL) == 0);
    exsi_event ev = pair_wait(&p, &p.client, 1);
    must(exsi_socket_query(p.client.ctx, sock, &info) == 0);
    ok(ev.error == EPROTO && strstr(info.reason, "type"), "%s: another type is EPROTO (%d: %s)", m->name, ev.error,
       info.reason);

    must(exsi_socket_close(p.server.ctx, p.listener, 0, 0, 0, NULL) >= 0);
    pair_run(&p, 2);
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &p.opt, &sock) == 0);
    must(exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 2, p.client.eq, NULL) == 0);
    ev = pair_wait(&p, &p.client, 2);
    ok(ev.error == ECONNREFUSED, "%s: nobody listens (%d)", m->name, ev.error);
    exsi_options bad = p.opt;
    strcpy(bad.device, "ghost");
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, m->type, &bad, &sock) == 0);
    int rc = exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 3, p.client.eq, NULL);
    must(exsi_socket_query(p.client.ctx, sock, &info) == 0);
    ok(rc == -EOPNOTSUPP && info.reason[0], "%s: an absent device (%d): %s", m->name, rc, info.reason);
    pair_close(&p);
}

static void test_limits(const struct mode *m)
{
    struct pair p;
    static char in[300][8];
    uint64_t eq;
    exsi_posted out;
    pair_open(&p, m);
    must(exsi_eq_new(p.server.ctx, m->threaded ? 0 : p.server.group, 10, &eq) == 0);
    int n = 0, rc;
    while ((rc = exsi_recv(p.server.ctx, p.server.sock, in[n], 8, 0, 0, 1, eq, NULL)) == 0) n++;
    ok(n == 10 && rc == -EAGAIN, "%s: a queue of ten takes ten posts (%d, %d)", m->name, n, rc);
    ok(exsi_eq_free(p.server.ctx, eq) == -EBUSY, "%s: and is busy", m->name);
    ok(exsi_cancel_match(p.server.ctx, p.server.sock, 0, 0) == 10, "%s: cancel all of a socket", m->name);
    exsi_event ev[10];
    int got = 0;
    uint64_t end = exsi_now_ns() + WAIT_NS;
    while (got < 10 && exsi_now_ns() < end) {
        pair_step(&p);
        rc = exsi_eq_drain(p.server.ctx, eq, ev + got, 10 - got, 0);
        must(rc >= 0);
        got += rc;
    }
    int cancelled = 0;
    for (int i = 0; i < got; i++) cancelled += ev[i].error == ECANCELED;
    ok(cancelled == 10, "%s: ten cancelled", m->name);
    ok(exsi_eq_free(p.server.ctx, eq) == 0, "%s: then the queue can go", m->name);
    ok(exsi_eq_drain(p.server.ctx, eq, ev, 1, 0) == -EBADF, "%s: its handle is dead", m->name);
    rc = exsi_recv(p.server.ctx, p.server.sock, in[0], 8, 0x40000000, 0, 1, p.server.eq, &out);
    ok(rc == -EINVAL, "%s: unknown flags are refused", m->name);
    rc = exsi_recv(p.server.ctx, p.server.sock, in[0], 8, 0, 0x0300000100000001u + 77, 1, p.server.eq, &out);
    ok(rc == -EBADF, "%s: a stale region is refused (%d)", m->name, rc);
    pair_close(&p);
}

static void test_batches(const struct mode *m)
{
    enum { N = 20, LEN = 5000 };
    struct pair p;
    exsi_posted out;
    pair_open(&p, m);
    uint8_t *src = malloc(N * LEN), *dst = calloc(N, LEN);
    must(src && dst);
    fill(src, N * LEN, 8);
    uint64_t cm = region(&p.client, src, N * LEN), sm = region(&p.server, dst, N * LEN);
    exsi_piece in[N];
    for (unsigned i = 0; i < N; i++) in[i] = (exsi_piece){dst + i * LEN, LEN, sm};
    ok(exsi_recv_many(p.server.ctx, p.server.sock, in, N, EXSI_OPF_WAITALL, 500, p.server.eq, &out) == N,
       "%s: %d receives in one call", m->name, N);
    ok(exsi_send_split(p.client.ctx, p.client.sock, src, N * LEN, LEN, 0, cm, 600, p.client.eq, &out) == N,
       "%s: %d sends in one call", m->name, N);
    int bad = 0;
    for (unsigned i = 0; i < N; i++) {
        exsi_event r = pair_wait(&p, &p.server, 500 + i), s = pair_wait(&p, &p.client, 600 + i);
        bad += r.error || s.error || r.value != LEN;
    }
    ok(bad == 0 && memcmp(src, dst, N * LEN) == 0, "%s: all arrive", m->name);
    pair_close(&p);
    free(src);
    free(dst);
}

/* System calls of the whole context, the poller's among them. */
static uint64_t system_calls(struct side *s)
{
    uint64_t all[64];
    int n = exsi_statistics(s->ctx, 0, all, 64);
    for (int i = 0; i < n; i++)
        if (strcmp(exsi_statistics_name(i), "syscalls") == 0) return all[i];
    return UINT64_MAX;
}

/* A program that spins must not pay for descriptors each time, and must see what only they announce. */
static void test_busy(const struct mode *m)
{
    enum { N = 200 };
    struct pair p;
    char out[] = "message", in[16];
    /* A message waits for word of the receive, which the client must hear; on a stream it is there. */
    int64_t limit_us = m->type == SOCK_STREAM ? 8000000 : 50;
    int good = 0;
    pair_open(&p, m);
    uint64_t before = system_calls(&p.server);
    for (unsigned i = 0; i < N; i++) {
        exsi_event ev = {0}, sent = {0};
        must(exsi_recv(p.server.ctx, p.server.sock, in, sizeof in, 0, 0, i, p.server.eq, NULL) == 0);
        must(exsi_send(p.client.ctx, p.client.sock, out, sizeof out, 0, 0, i, p.client.eq, NULL) == 0);
        for (int turns = 0; (!ev.kind || !sent.kind) && turns < 100000; turns++) {
            if (!sent.kind) (void)exsi_eq_wait(p.client.ctx, p.client.eq, &sent, 1, 1, 50, EXSI_WAIT_BUSY, 0);
            if (!ev.kind) (void)exsi_eq_wait(p.server.ctx, p.server.eq, &ev, 1, 1, limit_us, EXSI_WAIT_BUSY, 0);
        }
        good += sent.kind && !sent.error && ev.kind && !ev.error && ev.value == sizeof out && ev.cookie == i;
    }
    uint64_t calls = system_calls(&p.server) - before;
    ok(good == N, "%s: %d messages to a busy queue", m->name, N);
    if (m->type == SOCK_STREAM && m->path != EXSI_PATH_TCP && !m->threaded)
        ok(calls < N / 2, "%s: for which %llu system calls are made", m->name, (unsigned long long)calls);
    pair_close(&p);
}

static void run(const struct mode *m)
{
    int before = count_fds();
    test_transfers(m);
    test_sender_first(m);
    test_both_ways(m);
    test_messages(m);
    test_ends(m);
    test_close_with_data(m);
    test_abort(m);
    test_cancel(m);
    test_poll(m);
    test_refusals(m);
    test_limits(m);
    test_batches(m);
    test_busy(m);
    ok(count_fds() == before, "%s: no descriptor is left (%d, %d)", m->name, before, count_fds());
}

/* What a library of an RDMA device, if there is one, opens once and keeps is no leak of a test. */
static void warm_up(const struct mode *automatic)
{
    struct pair p;
    pair_open(&p, automatic);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    static const struct mode modes[] = {
        {"stream tcp", SOCK_STREAM, EXSI_PATH_TCP, false, false},
        {"seqpacket tcp", SOCK_SEQPACKET, EXSI_PATH_TCP, false, false},
        {"stream tcp crc", SOCK_STREAM, EXSI_PATH_TCP, false, true},
        {"stream shm", SOCK_STREAM, EXSI_PATH_SHM, false, false},
        {"seqpacket shm", SOCK_SEQPACKET, EXSI_PATH_SHM, false, false},
        {"stream shm-ring", SOCK_STREAM, EXSI_PATH_SHM_RING, false, false},
        {"seqpacket shm-ring", SOCK_SEQPACKET, EXSI_PATH_SHM_RING, false, false},
        {"stream tcp thread", SOCK_STREAM, EXSI_PATH_TCP, true, false},
        {"seqpacket shm thread", SOCK_SEQPACKET, EXSI_PATH_SHM, true, false},
        {"stream auto thread", SOCK_STREAM, EXSI_PATH_AUTO, true, false},
    };
    enum { MODES = sizeof modes / sizeof modes[0] };
    warm_up(&modes[MODES - 1]);
    for (unsigned i = 0; i < MODES; i++)
        if (argc < 2 || strstr(modes[i].name, argv[1])) run(&modes[i]);
    return tap_done();
}
