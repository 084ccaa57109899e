// SPDX-License-Identifier: MIT OR Apache-2.0
/* The verbs device against its contract (device/device.h): two parts in one process, on a real adapter.  Its address
 * is the argument; the lab has adapters of both kinds. */
#include <errno.h>

#include "device/device.h"

extern const struct exsi_device_ops exsi_verbs_ops;

#define PAIR_OPS          (&exsi_verbs_ops)
#define PAIR_OWN          /* nothing */
#define PAIR_SIDE_OPEN(s) ((void)(s))
#define PAIR_SIDE_END(s)  ((void)(s))

#include "device_pair.h"

enum { DEPTH = 16, BIG = 1 << 20 };

static const struct exsi_cm_options options = {
    .connect_timeout_ms = 15000, .close_timeout_ms = 15000, .keepalive_ms = 0};

static struct pair pair;
static const char *host;
static bool immediate; /* RoCE or InfiniBand; else iWARP */

static int count(const struct side *s, int error)
{
    int n = 0;
    for (int i = 0; i < s->n_wc; i++) n += s->wc[i].error == error;
    return n;
}

static void end_both(struct pair *p)
{
    side_end(&p->a);
    side_end(&p->b);
}

/* --- data ------------------------------------------------------------------------------------------ */

static void test_names(struct pair *p)
{
    struct exsi_qp_info a, b;
    pair_connect(p, &options, DEPTH);
    ops->qp_query(p->a.qp, &a);
    ops->qp_query(p->b.qp, &b);
    immediate = a.immediate;
    ok(a.peer.in.sin_port == p->b.addr.in.sin_port && b.local.in.sin_port == a.peer.in.sin_port, "ports are known");
    ok(a.local.in.sin_port == b.peer.in.sin_port && a.path[0] == 0, "on both sides; there is no path");
    ok(p->a.private_len >= 7 && memcmp(p->a.private_data, "welcome", 7) == 0, "private data of the answer");
    ok(p->b.private_len >= 5 && memcmp(p->b.private_data, "hello", 5) == 0, "and of the request");
    end_both(p);
}

static void test_sizes(struct pair *p)
{
    static const uint32_t sizes[] = {1, 2, 63, 64, 65, 4095, 4096, 4097, 65536, 100001, BIG};
    struct mem out = mem_new(p, BIG, 0), in = mem_new(p, BIG, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    pair_connect(p, &options, DEPTH);
    /* The active side speaks first. */
    post_recv(&p->b, &in, 0, 100, 1);
    struct exsi_send_wr first = wr_send(&out, 0, 1, 1);
    must(post(&p->a, &first, 1) == 0 && pair_until(p, p->b.n_recv == 1));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint32_t len = sizes[i], rkey;
        int sends = p->b.n_send, recvs = p->a.n_recv;
        mem_fill(&out, len);
        memset(in.at, 0, in.len);
        must(ops->key_bind(p->a.qp, in.mr, in.at, len, &rkey) == 0);
        post_recv(&p->a, &out, 0, 0, 7);
        /* A message of a's, so that b's use of the key stands behind its birth. */
        post_recv(&p->b, &in, 0, 0, 8);
        struct exsi_send_wr word = {.op = EXSI_WR_SEND, .flags = EXSI_WR_SIGNALED}, wr[2];
        must(post(&p->a, &word, 1) == 0 && pair_until(p, p->b.n_recv == (int)i + 2));
        wr[0] = wr_write(&out, 0, len, in.at, rkey, i);
        wr[1] = (struct exsi_send_wr){.wr_id = 99, .op = EXSI_WR_SEND};
        if (immediate) wr[1] = (struct exsi_send_wr){.wr_id = 99, .op = EXSI_WR_WRITE_IMM, .imm = 0xa1b2c3d4};
        must(post(&p->b, wr, 2) == 0);
        must(pair_until(p, p->a.n_recv == recvs + 1 && p->b.n_send == sends + 1));
        const struct exsi_wc *got = &p->a.wc[p->a.n_wc - 1];
        for (int k = 0; k < p->a.n_wc; k++)
            if (p->a.wc[k].wr_id == 7) got = &p->a.wc[k];
        bool told = immediate ? got->op == EXSI_WC_RECV_IMM && got->imm == 0xa1b2c3d4 : got->op == EXSI_WC_RECV;
        ok(told && memcmp(in.at, out.at, len) == 0, "WRITE of %u bytes, and its notice", len);
        ok(p->b.wc[p->b.n_wc - 1].wr_id == i && p->b.wc[p->b.n_wc - 1].op == EXSI_WC_WRITE, "only the WRITE is told");
        int rc = ops->key_invalidate(p->a.qp, rkey, 1000 + i);
        ops->qp_flush(p->a.qp);
        must(rc == 0 || (rc == 1 && pair_until(p, p->a.wc[p->a.n_wc - 1].op == EXSI_WC_INVALIDATE)));
    }
    end_both(p);
    mem_free(p, &out);
    mem_free(p, &in);
}

static void test_refused_posts(struct pair *p)
{
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    struct exsi_send_wr wr[5];
    pair_connect(p, &options, 4);
    for (int i = 0; i < 5; i++) wr[i] = wr_send(&m, 0, 8, (uint64_t)i);
    ok(post(&p->a, wr, 5) == -ENOMEM, "five do not fit into a queue of four");
    wr[3].sge[0].mr = NULL;
    ok(post(&p->a, wr, 4) == -EINVAL, "a request without memory, behind three good ones");
    wr[3] = wr_write(&m, 0, 8, NULL, 0, 0);
    wr[3].op = EXSI_WR_WRITE_IMM;
    if (!immediate) ok(post(&p->a, wr, 4) == -EOPNOTSUPP, "no immediate data on iWARP");
    wr[3] = wr_send(&m, 0, 65, 3);
    wr[3].flags |= EXSI_WR_INLINE;
    ok(post(&p->a, wr, 4) == -EINVAL, "more inline bytes than the device copies");
    for (int i = 0; i < 4; i++) post_recv(&p->b, &m, 100 * (size_t)i, 100, (uint64_t)i);
    struct exsi_recv_wr one = {.sge = {m.at, 8, m.mr}};
    ok(ops->post_recv(p->b.qp, &one, 1) == -ENOMEM, "a fifth receive");
    pair_for_ms(p, 50);
    ok(p->b.n_recv == 0, "all or none: nothing of it was sent");
    wr[3] = wr_send(&m, 0, 8, 3);
    ok(post(&p->a, wr, 4) == 0 && pair_until(p, p->b.n_recv == 4 && p->a.n_send == 4), "the four then are");
    end_both(p);
    mem_free(p, &m);
}

/* --- ends -------------------------------------------------------------------------------------------- */

static void test_end_in_order(struct pair *p, bool quiet)
{
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    pair_connect(p, &options, DEPTH);
    for (int i = 0; i < DEPTH; i++) post_recv(&p->b, &m, 0, 100, (uint64_t)i);
    for (int i = 0; i < 10; i++) {
        struct exsi_send_wr wr = wr_send(&m, 0, 50, (uint64_t)i);
        if (quiet) wr.flags = 0;
        must(post(&p->a, &wr, 1) == 0);
    }
    ops->cm_disconnect(p->a.id);
    struct exsi_send_wr late = wr_send(&m, 0, 50, 0);
    ok(post(&p->a, &late, 1) == -EPIPE, "nothing is posted behind the end");
    ok(pair_until(p, p->a.down && p->b.down) && p->a.error == 0 && p->b.error == 0, "both learn of an end in order");
    ok(p->b.n_recv == 10 && p->b.n_flushed == DEPTH - 10,
       "after everything that was sent; the other receives come back");
    ok(p->a.n_send == (quiet ? 0 : 10) && p->a.n_flushed == 0, "and all sends are out");
    ok(post(&p->a, &late, 1) == -ENOTCONN, "afterwards there is no connection");
    end_both(p);
    mem_free(p, &m);
}

static void test_abort(struct pair *p)
{
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    pair_connect(p, &options, DEPTH);
    for (int i = 0; i < 5; i++) post_recv(&p->a, &m, 0, 100, 100 + (uint64_t)i);
    for (int i = 0; i < 3; i++) post_recv(&p->b, &m, 0, 100, 200 + (uint64_t)i);
    ops->qp_abort(p->a.qp);
    post_recv(&p->a, &m, 0, 100, 105);
    ok(pair_until(p, p->a.down) && p->a.error == ECONNABORTED, "an abort ends here at once");
    bool order = true;
    for (int i = 0; i < p->a.n_wc; i++) order &= p->a.wc[i].wr_id == 100 + (uint64_t)i && p->a.wc[i].error == ECANCELED;
    ok(order && p->a.n_wc == 6, "every receive came back, in order, also the one posted since");
    ok(pair_until(p, p->b.down) && p->b.n_flushed == 3, "and there");
    end_both(p);
    mem_free(p, &m);
}

/* What a queue pair left in the completion queue is nobody's. */
static void test_destroyed_with_completions(struct pair *p)
{
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    for (int round = 0; round < 3; round++) {
        pair_connect(p, &options, DEPTH);
        for (int i = 0; i < 8; i++) post_recv(&p->b, &m, 0, 100, 1000 + (uint64_t)i);
        struct exsi_send_wr wr = wr_send(&m, 0, 50, 2000);
        for (int i = 0; i < 8; i++) must(post(&p->a, &wr, 1) == 0);
        uint64_t until = exsi_now_ns() + 200000000u;
        while (exsi_now_ns() < until) usleep(1000); /* they arrive, and are not polled */
        end_both(p);
    }
    pair_connect(p, &options, DEPTH);
    post_recv(&p->b, &m, 0, 100, 1);
    struct exsi_send_wr wr = wr_send(&m, 0, 50, 2);
    must(post(&p->a, &wr, 1) == 0 && pair_until(p, p->a.n_send && p->b.n_recv));
    ok(p->a.n_wc == 1 && p->a.wc[0].wr_id == 2 && p->b.n_wc == 1 && p->b.wc[0].wr_id == 1,
       "nothing of others is polled");
    end_both(p);
    mem_free(p, &m);
}

/* --- set-ups that fail ---------------------------------------------------------------------------------- */

static void dial(struct pair *p, const union exsi_addr *to, uint32_t timeout_ms)
{
    struct exsi_cm_options opt = options;
    opt.connect_timeout_ms = timeout_ms;
    must(ops->cm_resolve(p->a.part, NULL, to, &opt, NULL, &p->a.id) == 0);
    must(pair_until(p, p->a.resolved || p->a.failed));
    if (p->a.failed) return;
    pair_qp(&p->a, p->a.id, DEPTH);
    must(ops->cm_connect(p->a.id, "hello", 5) == 0);
}

static void test_refusals(struct pair *p)
{
    union exsi_addr nobody = p->b.addr;
    nobody.in.sin_port = htons(9);
    dial(p, &nobody, 15000);
    ok(pair_until(p, p->a.failed) && p->a.error == ECONNREFUSED, "nobody listens: %s", p->a.reason);
    side_end(&p->a);
    dial(p, &p->b.addr, 15000);
    must(pair_until(p, p->b.requested));
    ops->cm_reject(p->b.id, "because", 7);
    p->b.id = NULL;
    ok(pair_until(p, p->a.failed) && p->a.error == ECONNREFUSED, "a refusal: %s", p->a.reason);
    ok(p->a.private_len >= 7 && memcmp(p->a.private_data, "because", 7) == 0, "with private data");
    end_both(p);
}

static void test_no_answer(struct pair *p)
{
    uint64_t start = exsi_now_ns();
    dial(p, &p->b.addr, 1000);
    ok(pair_until(p, p->a.failed) && p->a.error == ETIMEDOUT, "no answer in time: %s", p->a.reason);
    ok(exsi_now_ns() - start < 3000000000u, "within the bound that was asked for");
    start = exsi_now_ns();
    side_end(&p->a);
    ok(exsi_now_ns() - start < 1000000000u, "and the end does not wait for the peer");
    if (p->b.requested) ops->cm_reject(p->b.id, "", 0);
    p->b.id = NULL;
    end_both(p);
}

static void test_given_up(struct pair *p)
{
    for (int i = 0; i < 3; i++) {
        dial(p, &p->b.addr, 15000);
        if (i == 1) pair_for_ms(p, 30);
        side_end(&p->a);
        pair_for_ms(p, 100); /* the request may have gone out */
        side_end(&p->b);
    }
    ok(true, "dialling is given up at any moment");
    pair_connect(p, &options, DEPTH);
    ok(p->a.up && p->b.up, "and a new connection works");
    end_both(p);
}

/* --- peers that break the rules --------------------------------------------------------------------------- */

static void test_dead_key(struct pair *p)
{
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE), in = mem_new(p, 4096, 3);
    struct exsi_qp_info info;
    uint32_t rkey;
    pair_connect(p, &options, DEPTH);
    ops->qp_query(p->a.qp, &info);
    must(ops->key_bind(p->a.qp, in.mr, in.at, 100, &rkey) == 0);
    post_recv(&p->b, &m, 0, 0, 8);
    struct exsi_send_wr word = {.op = EXSI_WR_SEND, .flags = EXSI_WR_SIGNALED}, wr;
    must(post(&p->a, &word, 1) == 0 && pair_until(p, p->b.n_recv == 1));
    mem_fill(&m, 1);
    if (info.key_per_range) {
        int rc = ops->key_invalidate(p->a.qp, rkey, 1);
        ops->qp_flush(p->a.qp);
        must(rc == 1 && pair_until(p, p->a.wc[p->a.n_wc - 1].op == EXSI_WC_INVALIDATE));
    } else {
        rkey ^= 0x5500;
    }
    wr = wr_write(&m, 0, 50, in.at, rkey, 5);
    must(post(&p->b, &wr, 1) == 0);
    ok(pair_until(p, p->a.down && p->b.down), "a WRITE with a dead key ends the connection: %d there, %d here, %s",
       p->b.error, p->a.error, p->b.reason);
    ok(p->a.error == EPROTO || p->a.error == 0, "the victim knows why, or sees the other's end");
    bool untouched = true;
    for (size_t i = 0; i < in.len; i++) untouched &= in.at[i] == 0;
    ok(untouched && (count(&p->b, 0) == 1 || !immediate), "and hits nothing");
    end_both(p);
    mem_free(p, &m);
    mem_free(p, &in);
}

static void test_no_receive(struct pair *p)
{
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    pair_connect(p, &options, DEPTH);
    struct exsi_send_wr wr = wr_send(&m, 0, 50, 5);
    must(post(&p->a, &wr, 1) == 0);
    ok(pair_until(p, p->a.down) && (p->a.error || !immediate), "a SEND that finds no receive ends: %d, %s", p->a.error,
       p->a.reason);
    end_both(p);
    mem_free(p, &m);
}

/* --- keep-alive -------------------------------------------------------------------------------------------- */

static void test_idle(struct pair *p)
{
    struct exsi_cm_options opt = options;
    opt.keepalive_ms = 500;
    must(ops->cm_resolve(p->a.part, NULL, &p->b.addr, &opt, NULL, &p->a.id) == 0);
    must(pair_until(p, p->a.resolved));
    pair_qp(&p->a, p->a.id, DEPTH);
    must(ops->cm_connect(p->a.id, "hello", 5) == 0);
    must(pair_until(p, p->b.requested));
    pair_qp(&p->b, p->b.id, DEPTH);
    must(ops->cm_accept(p->b.id, "welcome", 7) == 0);
    must(pair_until(p, p->a.up && p->b.up));
    /* A probe takes nothing over from the request whose place in the device's queue it gets. */
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    for (int i = 0; i < 8 * DEPTH; i++) {
        struct exsi_send_wr wr = wr_send(&m, 0, 50, 5);
        post_recv(&p->b, &m, 100, 100, 1);
        must(post(&p->a, &wr, 1) == 0 && pair_until(p, p->a.n_send == i + 1 && p->b.n_recv == i + 1));
    }
    int told = p->a.n_wc;
    uint64_t until = exsi_now_ns() + 2000000000u;
    while (exsi_now_ns() < until) { /* b's program computes; its device answers */
        if (!side_run(&p->a)) usleep(10000);
    }
    ok(!p->a.down && p->a.n_wc == told, "an idle connection lives, and its probes are nobody's completions: %s",
       p->a.reason);
    end_both(p);
    mem_free(p, &m);
}

/* --- raw queue pairs ------------------------------------------------------------------------------------------ */

static void test_raw(struct pair *p)
{
    struct exsi_raw_address a, b;
    struct mem m = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    pair_qp(&p->a, NULL, DEPTH);
    pair_qp(&p->b, NULL, DEPTH);
    must(ops->raw_query(p->a.qp, &a) == 0 && ops->raw_query(p->b.qp, &b) == 0);
    ok(a.qpn != b.qpn && a.mtu_code >= 1 && a.mtu_code <= 5 && memcmp(a.gid, b.gid, 16) == 0, "addresses of raw ones");
    post_recv(&p->a, &m, 0, 100, 1);
    post_recv(&p->b, &m, 100, 100, 1);
    ok(ops->raw_to_rtr(p->a.qp, &b) == 0 && ops->raw_to_rtr(p->b.qp, &a) == 0, "ready to receive");
    ok(ops->raw_to_rts(p->a.qp) == 0 && ops->raw_to_rts(p->b.qp) == 0, "ready to send");
    struct exsi_send_wr wr = wr_send(&m, 1000, 50, 5);
    must(post(&p->a, &wr, 1) == 0 && post(&p->b, &wr, 1) == 0);
    ok(pair_until(p, p->a.n_recv == 1 && p->b.n_recv == 1 && p->a.n_send == 1 && p->b.n_send == 1), "both ways");
    post_recv(&p->a, &m, 0, 100, 2);
    ops->qp_abort(p->a.qp);
    ok(pair_until(p, p->a.down) && p->a.n_flushed == 1, "an abort gives back its receives");
    end_both(p);
    mem_free(p, &m);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        printf("1..0 # SKIP no address of a verbs adapter was given\n");
        return 0;
    }
    host = argv[1];
    pair_open(&pair);
    pair_listen(&pair, host, &options);
    test_names(&pair);
    test_sizes(&pair);
    test_refused_posts(&pair);
    test_end_in_order(&pair, false);
    test_end_in_order(&pair, true);
    test_abort(&pair);
    test_destroyed_with_completions(&pair);
    test_refusals(&pair);
    test_no_answer(&pair);
    test_given_up(&pair);
    test_dead_key(&pair);
    test_no_receive(&pair);
    test_idle(&pair);
    if (immediate) test_raw(&pair);
    pair_close(&pair);
    return tap_done();
}
