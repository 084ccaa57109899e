// SPDX-License-Identifier: MIT OR Apache-2.0
/* SMC-R connections between two contexts of one process, through the face of the core: every size, both directions,
 * slow readers, ends in every order, many connections on one link.
 *   test_smcr [DEVICE]   on another device than soft; tests/lab/test_native.py runs it on soft-RoCE, with smaller
 * counts */
#include "smc_pair.h"

enum { BIG = 1 << 20 };

static struct smc smc;
static uint8_t out_a[BIG], out_b[BIG], in_a[BIG], in_b[BIG];

/* --- data ------------------------------------------------------------------------------------------------ */

static bool carry(struct end *from, struct end *to, const uint8_t *src, uint8_t *dst, size_t len)
{
    memset(dst, 0xa5, len);
    if (end_send(from, src, len, 0, 1) < 0 || end_recv(to, dst, len, EXSI_OPF_WAITALL, 2) < 0) return false;
    exsi_event r = end_wait(&smc, to, 2), s = end_wait(&smc, from, 1);
    return !r.error && !s.error && r.value == len && s.value == len && memcmp(src, dst, len) == 0;
}

static void test_sizes(void)
{
    static const uint32_t sizes[] = {1, 2, 44, 100, 4096, 4097, 16383, 16384, 16385, 32769, 65536, 524287, 524288, BIG};
    struct conn c;
    fill(out_a, BIG, 1);
    fill(out_b, BIG, 2);
    for (uint32_t code = 0; code <= 5; code += smc_small ? 5 : 1) {
        bool good = true;
        smc_connect(&smc, code, 5 - code, &c);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            good &= carry(&c.a, &c.b, out_a, in_b, sizes[i]);
            good &= carry(&c.b, &c.a, out_b, in_a, sizes[i]);
        }
        ok(good, "points 77, 78: rings of %u and %u KiB, 1 byte to 1 MiB", 16u << code, 16u << (5 - code));
        must(end_close(&c.a, false, 3) == 0 && end_close(&c.b, false, 4) == 0);
        ok(!end_wait(&smc, &c.a, 3).error && !end_wait(&smc, &c.b, 4).error, "and closed in order");
    }
}

/* Both directions at once, in pieces that fit nothing; the readers are slow in turns. */
static void test_both_ways(uint32_t code, uint32_t piece, size_t total)
{
    struct conn c;
    size_t sent[2] = {0}, got[2] = {0};
    bool busy[2] = {false}, good = true;
    const uint8_t *src[2] = {out_a, out_b};
    uint64_t deadline = exsi_now_ns() + 4 * WAIT_NS;
    smc_connect(&smc, code, code, &c);
    struct end *end[2] = {&c.a, &c.b};
    for (unsigned turn = 0; (got[0] < total || got[1] < total) && good && exsi_now_ns() < deadline; turn++) {
        for (int i = 0; i < 2; i++) {
            exsi_event ev;
            if (busy[i] && side_find(end[i]->side, 10 + (uint64_t)i, &ev)) {
                good &= ev.error == 0;
                sent[i] += ev.value;
                busy[i] = false;
            }
            if (!busy[i] && sent[i] < total) {
                size_t at = sent[i] % BIG, n = exsi_min_u64(exsi_min_u64(piece, BIG - at), total - sent[i]);
                good &= end_send(end[i], src[i] + at, n, 0, 10 + (uint64_t)i) >= 0;
                busy[i] = true;
            }
            if (turn / 8 % 3 == (unsigned)i) continue; /* asleep */
            int64_t n = end_take(end[i], in_a, 1 + turn * 977 % (2 * piece));
            if (n == -EAGAIN) continue;
            good &= n > 0;
            for (int64_t k = 0; good && k < n; k++) good = in_a[k] == src[1 - i][(got[i] + (size_t)k) % BIG];
            got[i] += n > 0 ? (size_t)n : 0;
        }
        pair_step(&smc.p);
    }
    ok(good && got[0] == total && got[1] == total, "points 70, 74: %zu KiB both ways through %u KiB in pieces of %u",
       total >> 10, 16u << code, piece);
    must(end_close(&c.a, true, 5) == 0 && end_close(&c.b, true, 6) == 0);
    (void)end_wait(&smc, &c.a, 5);
    (void)end_wait(&smc, &c.b, 6);
}

static void test_exact_fill(void)
{
    struct conn c;
    smc_connect(&smc, 0, 0, &c);
    for (int i = 0; i < 5; i++) {
        must(end_send(&c.a, out_a, 16384, 0, 1) == 0);
        must(!end_wait(&smc, &c.a, 1).error);
        must(end_send(&c.a, out_b, 100, 0, 2) == 0);
        smc_until(&smc, end_info(&c.b).readable);
        int64_t n = end_take(&c.b, in_b, BIG);
        ok(n == 16384 && memcmp(in_b, out_a, 16384) == 0, "point 71: a full ring, round %d", i);
        must(!end_wait(&smc, &c.a, 2).error);
        must(end_recv(&c.b, in_b, 100, EXSI_OPF_WAITALL, 3) == 0);
        ok(end_wait(&smc, &c.b, 3).value == 100 && memcmp(in_b, out_b, 100) == 0, "and what waited for room");
        /* So that the next round begins elsewhere in the ring; what goes back says that it is empty. */
        must(carry(&c.a, &c.b, out_a, in_b, 77) && carry(&c.b, &c.a, out_b, in_a, 1));
    }
    must(end_close(&c.a, true, 0) == 0 && end_close(&c.b, true, 0) == 0);
}

static void test_view(void)
{
    struct conn c;
    void *at;
    uint64_t len, seen = 0;
    smc_connect(&smc, 0, 0, &c);
    ok(exsi_recv_view(c.b.side->ctx, c.b.sock, &at, &len) == -EAGAIN, "nothing to lend yet");
    must(end_send(&c.a, out_a, 60000, 0, 1) == 0);
    bool good = true;
    uint64_t end = exsi_now_ns() + WAIT_NS;
    while (seen < 60000 && exsi_now_ns() < end) {
        pair_step(&smc.p);
        int rc = exsi_recv_view(c.b.side->ctx, c.b.sock, &at, &len);
        if (rc == -EAGAIN) continue;
        good &= rc == 1 && memcmp(at, out_a + seen, len) == 0;
        good &= exsi_recv_view(c.b.side->ctx, c.b.sock, &at, &len) == -EBUSY;
        good &= end_close(&c.b, false, 9) == -EBUSY;
        good &= exsi_recv_release(c.b.side->ctx, c.b.sock, len + 1) == -EINVAL;
        uint64_t n = len > 5000 ? 5000 : len;
        must(exsi_recv_release(c.b.side->ctx, c.b.sock, n) == 0);
        seen += n;
    }
    ok(good && seen == 60000, "a view lends the ring's own bytes; its release gives them back to the writer");
    struct side side = *c.b.side;
    side.sock = c.b.sock;
    ok(pair_stat(&side, "bytes_copied") == 0, "and nothing was copied");
    ok(!end_wait(&smc, &c.a, 1).error, "the writer got all of it in");
    must(end_shutdown(&c.a, SHUT_WR, 2) == 0 && !end_wait(&smc, &c.a, 2).error);
    smc_until(&smc, end_info(&c.b).readable);
    ok(exsi_recv_view(c.b.side->ctx, c.b.sock, &at, &len) == 0, "at the end of the stream there is nothing to lend");
    must(end_close(&c.a, true, 0) == 0 && end_close(&c.b, true, 0) == 0);
}

/* --- ends -------------------------------------------------------------------------------------------------- */

/* Both sides' flows are through. */
static bool both_done(struct conn *c, bool clean)
{
    exsi_smc_notice n;
    bool good = true;
    for (int i = 0; i < 2; i++) {
        const struct end *e = i ? &c->b : &c->a;
        good &= smc_notice(&smc, i, &n) && n.kind == EXSI_SMC_CONNECTION_DONE && n.token == e->token &&
                n.socket == e->sock && n.clean == (uint32_t)clean;
        good &= exsi_smc_rmb_close(e->side->ctx, smc.link[i], e->rmb) == 0;
    }
    return good;
}

static void drain_notices(void)
{
    static exsi_smc_notice n;
    pair_run(&smc.p, 20);
    for (int i = 0; i < 2; i++)
        while (exsi_smc_link_take(smc_side(&smc, i)->ctx, smc.link[i], &n) == 1) continue;
}

static void test_orderly(bool a_first)
{
    struct conn c;
    smc_connect(&smc, 0, 0, &c);
    struct end *first = a_first ? &c.a : &c.b, *second = a_first ? &c.b : &c.a;
    must(end_send(first, out_a, 50000, 0, 1) == 0);
    must(end_recv(second, in_b, 50000, EXSI_OPF_WAITALL, 2) == 0);
    must(end_close(first, false, 3) == 0);
    exsi_event r = end_wait(&smc, second, 2);
    ok(r.error == 0 && r.value == 50000 && !end_wait(&smc, first, 1).error, "point 85: all data before the close");
    ok(!end_wait(&smc, first, 3).error, "the close is over");
    must(end_recv(second, in_b, 10, 0, 4) == 0);
    r = end_wait(&smc, second, 4);
    ok(r.error == 0 && r.value == 0 && r.flags & EXSI_EV_EOF, "then the end of the stream");
    ok(end_send(second, out_b, 10, 0, 5) == -EPIPE, "and nobody to send to");
    must(end_close(second, false, 6) == 0);
    ok(!end_wait(&smc, second, 6).error && both_done(&c, true), "both are through, the rings are free");
}

static void test_half_close(void)
{
    struct conn c;
    smc_connect(&smc, 0, 0, &c);
    must(end_shutdown(&c.a, SHUT_WR, 1) == 0);
    ok(!end_wait(&smc, &c.a, 1).error, "point 86: one direction is shut");
    must(end_recv(&c.b, in_b, 10, 0, 2) == 0);
    exsi_event r = end_wait(&smc, &c.b, 2);
    ok(r.error == 0 && r.value == 0 && r.flags & EXSI_EV_EOF, "the other side reads its end");
    ok(carry(&c.b, &c.a, out_b, in_a, 100000), "and still sends");
    ok(end_send(&c.a, out_a, 1, 0, 3) == -EPIPE, "while this one does not");
    must(end_close(&c.b, false, 4) == 0 && !end_wait(&smc, &c.b, 4).error);
    must(end_close(&c.a, false, 5) == 0 && !end_wait(&smc, &c.a, 5).error);
    ok(both_done(&c, true), "then both close");
}

static void test_simultaneous(void)
{
    struct conn c;
    smc_connect(&smc, 0, 0, &c);
    must(end_close(&c.a, false, 1) == 0 && end_close(&c.b, false, 2) == 0);
    ok(!end_wait(&smc, &c.a, 1).error && !end_wait(&smc, &c.b, 2).error && both_done(&c, true),
       "point 88: both close at once");
}

static void test_unread(void)
{
    struct conn c;
    smc_connect(&smc, 0, 0, &c);
    must(end_send(&c.a, out_a, 1000, 0, 1) == 0 && !end_wait(&smc, &c.a, 1).error);
    smc_until(&smc, end_info(&c.b).readable);
    must(end_recv(&c.a, in_a, 10, 0, 2) == 0);
    must(end_close(&c.b, false, 3) == 0 && !end_wait(&smc, &c.b, 3).error);
    ok(end_wait(&smc, &c.a, 2).error == ECONNRESET, "point 87: closed with unread data: the peer is reset");
    ok(end_info(&c.a).error == ECONNRESET && end_info(&c.a).state == EXSI_SOCK_DEAD, "and knows why");
    must(end_close(&c.a, false, 4) == 0 && !end_wait(&smc, &c.a, 4).error);
    ok(both_done(&c, true), "both are through");
}

static void test_abort(void)
{
    struct conn c, other;
    smc_connect(&smc, 0, 0, &c);
    smc_connect(&smc, 0, 0, &other);
    must(end_send(&c.a, out_a, BIG, 0, 1) == 0 && end_recv(&c.b, in_b, BIG, EXSI_OPF_WAITALL, 2) == 0);
    pair_run(&smc.p, 2);
    must(end_recv(&c.a, in_a, 10, 0, 3) == 0);
    must(end_close(&c.a, true, 4) == 0);
    ok(end_wait(&smc, &c.a, 3).error == ECONNABORTED && !end_wait(&smc, &c.a, 4).error, "an abort ends operations");
    exsi_event s = end_wait(&smc, &c.a, 1);
    ok(s.error == ECONNABORTED || s.value == BIG, "also those that are under way");
    exsi_event r = end_wait(&smc, &c.b, 2);
    ok(r.error == ECONNRESET || r.value > 0, "and the peer's");
    ok(end_info(&c.b).error == ECONNRESET, "who learns of it");
    must(end_close(&c.b, false, 5) == 0 && !end_wait(&smc, &c.b, 5).error);
    ok(both_done(&c, true), "both are through");
    ok(carry(&other.a, &other.b, out_a, in_b, 100000), "the other connection of the link goes on");
    must(end_close(&other.a, true, 0) == 0 && end_close(&other.b, true, 0) == 0);
    drain_notices();
}

static void test_given_up(void)
{
    struct conn c;
    smc_connect(&smc, 0, 0, &c);
    must(end_recv(&c.a, in_a, 10, 0, 1) == 0 && end_recv(&c.b, in_b, 10, 0, 2) == 0);
    exsi_ctx *ctx = c.a.side->ctx;
    ok(exsi_smc_connection_abort(ctx, c.a.sock, 0) == -EINVAL, "an abort has a reason");
    ok(exsi_smc_connection_abort(ctx, c.a.sock, EHOSTDOWN) == 0 && end_wait(&smc, &c.a, 1).error == EHOSTDOWN,
       "which operations end with");
    ok(end_wait(&smc, &c.b, 2).error == ECONNRESET, "the peer is reset");
    ok(end_info(&c.a).state == EXSI_SOCK_DEAD && end_info(&c.a).error == EHOSTDOWN &&
           end_send(&c.a, out_a, 1, 0, 3) == -EHOSTDOWN,
       "and the socket stays to be closed");
    must(end_close(&c.a, false, 4) == 0 && !end_wait(&smc, &c.a, 4).error);
    must(end_close(&c.b, false, 5) == 0 && !end_wait(&smc, &c.b, 5).error);
    ok(both_done(&c, true), "both are through");
}

static void test_cancel(void)
{
    struct conn c;
    exsi_posted posted;
    smc_connect(&smc, 0, 0, &c);
    struct side *s = c.a.side;
    must(exsi_recv(s->ctx, c.a.sock, in_a, 100, 0, 0, 1, s->eq, &posted) == 0);
    exsi_posted cancelled;
    ok(exsi_cancel(s->ctx, c.a.sock, posted.op, &cancelled) == 1 && cancelled.event.error == ECANCELED,
       "a receive is cancelled at once");
    must(end_send(&c.a, out_a, 16384, 0, 2) == 0 && !end_wait(&smc, &c.a, 2).error);
    must(exsi_send(s->ctx, c.a.sock, out_b, 5000, 0, 0, 3, s->eq, &posted) == 0);
    ok(exsi_cancel(s->ctx, c.a.sock, posted.op, &cancelled) == 1 && cancelled.event.error == ECANCELED &&
           cancelled.event.value == 0,
       "a send that has not begun too");
    must(exsi_send(s->ctx, c.a.sock, out_b, 50000, 0, 0, 4, s->eq, &posted) == 0);
    must(end_recv(&c.b, in_b, 26384, EXSI_OPF_WAITALL, 5) == 0 && end_wait(&smc, &c.b, 5).value == 26384);
    int rc = exsi_cancel(s->ctx, c.a.sock, posted.op, &cancelled);
    must(rc >= 0);
    exsi_event ev = rc == 1 ? cancelled.event : end_wait(&smc, &c.a, 4);
    ok(ev.error == ECANCELED && ev.value > 0 && ev.value < 50000 && ev.flags & EXSI_EV_SEND_SHUT,
       "one that is partly out says how far (%llu) and shuts the direction", (unsigned long long)ev.value);
    ok(end_send(&c.a, out_a, 1, 0, 6) == -EPIPE, "in which nothing more goes");
    must(end_close(&c.a, true, 0) == 0 && end_close(&c.b, true, 0) == 0);
    drain_notices();
}

/* --- the link ------------------------------------------------------------------------------------------------ */

static void test_llc(void)
{
    static exsi_smc_notice n;
    uint8_t msg[8192];
    fill(msg, sizeof msg, 5);
    static const uint32_t lens[] = {44, 88, 45, 300, 8192, 44};
    bool good = true;
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        msg[0] = 0x22;
        good &= exsi_smc_llc_send(smc.p.client.ctx, smc.link[0], msg, lens[i]) == 0;
    }
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++)
        good &=
            smc_notice(&smc, 1, &n) && n.kind == EXSI_SMC_LLC && n.len == lens[i] && memcmp(n.bytes, msg, lens[i]) == 0;
    ok(good, "point 43: LLC messages of 44 to 8192 bytes, the queue pair stays");
    ok(exsi_smc_llc_send(smc.p.client.ctx, smc.link[0], msg, 43) == -EMSGSIZE &&
           exsi_smc_llc_send(smc.p.client.ctx, smc.link[0], msg, 8193) == -EMSGSIZE,
       "shorter and longer ones are refused");
    /* TEST_LINK is nobody's business but the link's. */
    uint64_t before = smc_info(&smc, 1).tests_answered;
    memset(msg, 0, 44);
    msg[0] = 0x27;
    msg[1] = 44;
    must(exsi_smc_llc_send(smc.p.client.ctx, smc.link[0], msg, 44) == 0);
    smc_until(&smc, smc_info(&smc, 1).tests_answered > before);
    ok(smc_info(&smc, 1).tests_answered == before + 1 && exsi_smc_link_take(smc.p.server.ctx, smc.link[1], &n) == 0 &&
           exsi_smc_link_take(smc.p.client.ctx, smc.link[0], &n) == 0,
       "point 53: TEST_LINK is answered, and nobody is told");
}

static void test_wait(void)
{
    static exsi_smc_notice n;
    struct side *s = &smc.p.server;
    exsi_posted out;
    uint8_t msg[44] = {0x26, 44};
    must(exsi_smc_link_wait(s->ctx, smc.link[1], 77, s->eq, &out) == 0);
    ok(exsi_smc_link_wait(s->ctx, smc.link[1], 78, s->eq, &out) == -EBUSY, "one waits for notices");
    must(exsi_smc_llc_send(smc.p.client.ctx, smc.link[0], msg, 44) == 0);
    exsi_event ev = pair_wait(&smc.p, s, 77);
    ok(ev.error == 0 && ev.kind == EXSI_OP_NOTICE, "and is told when there is one");
    ok(exsi_smc_link_wait(s->ctx, smc.link[1], 79, s->eq, &out) == 1 && out.event.cookie == 79,
       "or that one lies there");
    must(exsi_smc_link_take(s->ctx, smc.link[1], &n) == 1 && exsi_smc_link_take(s->ctx, smc.link[1], &n) == 0);
    must(exsi_smc_link_wait(s->ctx, smc.link[1], 80, s->eq, NULL) == 0);
    must(exsi_smc_link_cancel(s->ctx, smc.link[1]) == 0);
    ok(pair_wait(&smc.p, s, 80).error == ECANCELED, "a wait can be cancelled");
}

static void test_refusals(void)
{
    struct conn c;
    struct end e;
    smc_connect(&smc, 0, 0, &c);
    exsi_ctx *ctx = smc.p.client.ctx;
    uint64_t sock, rmb, vaddr;
    uint32_t rkey;
    ok(exsi_smc_rmb_new(ctx, smc.link[0], 16, &rmb, &rkey, &vaddr) == -EINVAL, "no ring of code 16");
    must(exsi_smc_rmb_new(ctx, smc.link[0], 0, &rmb, &rkey, &vaddr) == 0);
    ok(exsi_smc_connection_new(ctx, smc.link[0], c.a.rmb, 5, NULL, &sock) == -EBUSY, "a ring serves one connection");
    ok(exsi_smc_connection_new(ctx, smc.link[0], rmb, c.a.token, NULL, &sock) == -EEXIST, "a token too");
    ok(exsi_smc_connection_new(ctx, smc.link[0], rmb, 0, NULL, &sock) == -EINVAL, "which is not 0");
    ok(exsi_smc_connection_new(ctx, smc.link[0], 999, 5, NULL, &sock) == -EBADF, "no such ring");
    ok(exsi_smc_rmb_close(ctx, smc.link[0], c.a.rmb) == -EBUSY, "a ring in use stays");
    ok(exsi_smc_rmb_close(ctx, smc.link[0], rmb) == 0 && exsi_smc_rmb_close(ctx, smc.link[0], rmb) == -EBADF,
       "one that is not goes, once");
    must(smc_end_new(&smc, 0, 0, &e) == 0);
    ok(end_send(&e, out_a, 1, 0, 1) == -ENOTCONN && end_recv(&e, in_a, 1, 0, 1) == -ENOTCONN, "not open yet");
    ok(exsi_smc_connection_open(ctx, e.sock, 1, 0x1000, 16385, 1) == -EINVAL &&
           exsi_smc_connection_open(ctx, e.sock, 1, 0x1000, 8192, 1) == -EINVAL &&
           exsi_smc_connection_open(ctx, e.sock, 1, UINT64_MAX - 100, 16384, 1) == -EINVAL &&
           exsi_smc_connection_open(ctx, e.sock, 1, 0x1000, 16384, 0) == -EINVAL,
       "a peer that cannot be");
    ok(smc_end_open(&c.a, &c.b) == -EISCONN, "open already");
    must(end_close(&e, false, 2) == 0);
    ok(!end_wait(&smc, &e, 2).error, "one that never was open is closed");
    must(end_close(&c.a, true, 0) == 0 && end_close(&c.b, true, 0) == 0);
    drain_notices();
}

/* The peer may have a ring and a token of ours long before we know of its own. */
static void test_early_data(void)
{
    struct conn c;
    must(smc_end_new(&smc, 0, 0, &c.a) == 0 && smc_end_new(&smc, 1, 0, &c.b) == 0);
    must(smc_end_open(&c.a, &c.b) == 0);
    uint64_t before = smc_info(&smc, 1).cdc_received;
    must(end_send(&c.a, out_a, 3000, 0, 1) == 0 && !end_wait(&smc, &c.a, 1).error);
    smc_until(&smc, smc_info(&smc, 1).cdc_received > before);
    must(smc_end_open(&c.b, &c.a) == 0);
    ok(end_take(&c.b, in_b, BIG) == 3000 && memcmp(in_b, out_a, 3000) == 0, "what came before it was open is there");
    ok(carry(&c.b, &c.a, out_b, in_a, 40000), "and the other way goes as always");
    must(end_close(&c.a, true, 0) == 0 && end_close(&c.b, true, 0) == 0);
    drain_notices();
}

static void test_many(void)
{
    static struct conn c[255];
    const int n = smc_small ? 40 : 255;
    struct end e;
    bool good = true;
    for (int i = 0; i < n; i++) smc_connect(&smc, 0, 0, &c[i]);
    ok(smc_small || smc_end_new(&smc, 0, 0, &e) == -EUSERS, "point 98: 255 connections on one link, and no more");
    for (int i = 0; i < n; i++) {
        good &= end_send(&c[i].a, out_a + i, 30000, 0, 1000 + (uint64_t)i) >= 0;
        good &= end_recv(&c[i].b, in_b + i * 4000, 4000, EXSI_OPF_WAITALL, 2000 + (uint64_t)i) >= 0;
    }
    for (int i = 0; i < n && good; i++) {
        exsi_event ev = end_wait(&smc, &c[i].b, 2000 + (uint64_t)i);
        good &= !ev.error && ev.value == 4000 && memcmp(in_b + i * 4000, out_a + i, 4000) == 0;
    }
    ok(good, "each gets its own bytes");
    for (int i = 0; i < n; i++) must(end_close(&c[i].a, true, 0) == 0 && end_close(&c[i].b, true, 0) == 0);
    smc_until(&smc, smc_info(&smc, 0).connections + smc_info(&smc, 1).connections == 0);
    ok(smc_info(&smc, 0).connections == 0 && smc_info(&smc, 1).connections == 0, "all have gone");
    for (int i = 0; i < n; i++)
        must(exsi_smc_rmb_close(c[i].a.side->ctx, smc.link[0], c[i].a.rmb) == 0 &&
             exsi_smc_rmb_close(c[i].b.side->ctx, smc.link[1], c[i].b.rmb) == 0);
    drain_notices();
}

/* One after the other, on rings that are used again. */
static void test_sequential(void)
{
    struct conn c;
    bool good = true;
    exsi_smc_notice n;
    const int rounds = smc_small ? 30 : 1000;
    smc_connect(&smc, 0, 0, &c);
    int fds = count_fds(); /* with those of its two rings, which stay */
    for (int i = 0; i < rounds && good; i++) {
        good &= carry(&c.a, &c.b, out_a, in_b, 20000);
        must(end_close(&c.a, false, 1) == 0);
        must(end_close(&c.b, false, 2) == 0);
        good &= !end_wait(&smc, &c.a, 1).error && !end_wait(&smc, &c.b, 2).error;
        for (int k = 0; k < 2; k++) good &= smc_notice(&smc, k, &n) && n.clean;
        for (int k = 0; k < 2 && i < rounds - 1; k++) {
            struct end *e = k ? &c.b : &c.a;
            must(exsi_smc_connection_new(e->side->ctx, smc.link[k], e->rmb, e->token, NULL, &e->sock) == 0);
        }
        if (i < rounds - 1) must(smc_end_open(&c.a, &c.b) == 0 && smc_end_open(&c.b, &c.a) == 0);
    }
    ok(good && smc_info(&smc, 0).connections == 0 && smc_info(&smc, 1).connections == 0 && count_fds() == fds,
       "point 94: %d connections one after the other leave nothing", rounds);
}

static void test_link_close(void)
{
    struct conn c;
    struct side *a = &smc.p.client, *b = &smc.p.server;
    static exsi_smc_notice n;
    smc_connect(&smc, 0, 0, &c);
    must(end_recv(&c.a, in_a, 10, 0, 1) == 0 && end_recv(&c.b, in_b, 10, 0, 2) == 0);
    must(exsi_smc_link_wait(a->ctx, smc.link[0], 3, a->eq, NULL) == 0);
    must(exsi_smc_link_close(a->ctx, smc.link[0]) == 0);
    ok(end_wait(&smc, &c.a, 1).error == ECONNABORTED && pair_wait(&smc.p, a, 3).error == ECANCELED,
       "a link that is closed ends its connections");
    ok(end_wait(&smc, &c.b, 2).error == ECONNRESET, "whose peers are told");
    ok(exsi_smc_link_query(a->ctx, smc.link[0], &(exsi_smc_link_info){0}) == -EBADF, "its handle is dead");
    /* RoCE tells nobody that a queue pair is gone. */
    must(exsi_smc_link_active(b->ctx, smc.link[1], VERSION, 100, 2000) == 0);
    bool down = false;
    while (!down && smc_notice(&smc, 1, &n)) down = n.kind == EXSI_SMC_LINK_DOWN;
    ok(down && n.error > 0, "the other side's link goes down (%s)", n.reason);
    must(end_close(&c.a, false, 4) == 0 && end_close(&c.b, false, 5) == 0);
    ok(!end_wait(&smc, &c.a, 4).error && !end_wait(&smc, &c.b, 5).error, "the sockets are closed afterwards");
    must(exsi_smc_link_close(b->ctx, smc.link[1]) == 0);
}

/* point 54 */
static void test_silence(void)
{
    struct smc s;
    struct conn c;
    static exsi_smc_notice n;
    smc_open(&s, false);
    smc_connect(&s, 0, 0, &c);
    must(exsi_smc_link_active(s.p.client.ctx, s.link[0], VERSION, 30, 2000) == 0);
    smc_until(&s, smc_info(&s, 0).tests_sent >= 2);
    exsi_smc_link_info info = smc_info(&s, 0);
    ok(info.tests_sent >= 2 && !info.down, "point 54: a silent peer is asked (%llu times)",
       (unsigned long long)info.tests_sent);
    must(exsi_smc_link_active(s.p.client.ctx, s.link[0], VERSION, 30, 60) == 0);
    must(end_recv(&c.a, in_a, 10, 0, 1) == 0);
    uint64_t end = exsi_now_ns() + WAIT_NS;
    exsi_event ev = {0};
    while (!side_find(&s.p.client, 1, &ev) && exsi_now_ns() < end) side_step(&s.p.client); /* the server does nothing */
    ok(ev.error == ECONNABORTED, "one that does not answer is given up, its connections are aborted");
    int rc;
    do rc = exsi_smc_link_take(s.p.client.ctx, s.link[0], &n);
    while (rc == 1 && n.kind != EXSI_SMC_LINK_DOWN);
    ok(rc == 1 && n.error == ETIMEDOUT, "and the program is told why (%s)", n.reason);
    smc_close(&s);
}

/* A program that computes: the threads answer, and carry the data. */
static void test_threads(void)
{
    struct smc s;
    struct conn c;
    smc_open(&s, true);
    smc_connect(&s, 2, 2, &c);
    must(exsi_smc_link_active(s.p.client.ctx, s.link[0], 1, 20, 5000) == 0);
    memset(in_b, 0, BIG);
    must(end_send(&c.a, out_a, BIG, 0, 1) == 0 && end_recv(&c.b, in_b, BIG, EXSI_OPF_WAITALL, 2) == 0);
    for (int i = 0; i < 800 && smc_info(&s, 0).tests_sent < 2; i++) poll(NULL, 0, 10);
    ok(smc_info(&s, 0).tests_sent >= 2 && !smc_info(&s, 0).down, "TEST_LINK while nobody looks");
    ok(end_wait(&s, &c.b, 2).value == BIG && memcmp(in_b, out_a, BIG) == 0 && !end_wait(&s, &c.a, 1).error,
       "and a transfer");
    must(end_send(&c.b, out_b, 3000, 0, 3) == 0);
    smc_close(&s); /* with all of it open */
    ok(true, "contexts are closed with links open");
}

int main(int argc, char **argv)
{
    if (argc > 1) smc_device = argv[1];
    smc_small = argc > 1;
    int fds = count_fds();
    smc_open(&smc, false);
    test_sizes();
    drain_notices();
    const int less = smc_small ? 4 : 0;
    test_both_ways(0, 1, (size_t)1 << (14 - less));
    test_both_ways(0, 1000, (size_t)1 << (20 - less));
    test_both_ways(0, 16384, (size_t)1 << (21 - less));
    test_both_ways(0, 100000, (size_t)1 << (22 - less));
    test_both_ways(5, 1 << 20, (size_t)1 << (23 - less));
    test_exact_fill();
    test_view();
    drain_notices();
    test_orderly(true);
    test_orderly(false);
    test_half_close();
    test_simultaneous();
    test_unread();
    test_abort();
    test_given_up();
    test_cancel();
    test_llc();
    test_wait();
    test_refusals();
    test_early_data();
    test_many();
    test_sequential();
    test_link_close();
    smc_close(&smc);
    test_silence();
    test_threads();
    ok(count_fds() == fds, "no descriptor is left");
    return tap_done();
}
