// SPDX-License-Identifier: MIT OR Apache-2.0
/* Several sockets on one endpoint, as SMC-R needs it: a toy engine of which no layer below knows anything.
 *
 * Each flow has a token; data goes by silent WRITEs into the peer's buffer, and a 44-byte SEND names the
 * token and the count.  The endpoint outlives its sockets and answers a link test by itself.  On the
 * simulated device, and on soft with raw queue pairs that are connected in the four steps. */
#include <poll.h>
#include <string.h>

#include "core/engine_table.h"
#include "sim/sim.h"
#include "tap.h"

#define FLOWS     3
#define BUFFER    65536
#define CDC       0xfe
#define TEST_LINK 0x07

struct toy_flow {
    struct exsi_attach at;
    struct exsi_stats stats;
    uint32_t token, peer_token, rkey, peer_rkey;
    uint64_t peer_addr;
    uint8_t *buffer;            /* where the peer writes: a part of the side's memory */
    uint64_t put, got, arrived; /* bytes sent, delivered, announced */
    struct exsi_list recvs, sends;
};

struct toy_side {
    struct exsi_endpoint *ep;
    struct exsi_eq *eq;
    struct exsi_stats stats;
    uint8_t *memory; /* FLOWS receive buffers, then FLOWS send buffers */
    struct exsi_dmr *dmr;
    struct toy_flow flow[FLOWS];
    uint32_t strays, tests, errors;
};

struct toy_message {
    uint8_t type, zero[3];
    exsi_be32 token, count;
    uint8_t rest[32];
};
_Static_assert(sizeof(struct toy_message) == 44, "as long as a CDC message");

static struct exsi_ctx *ctx;
static struct exsi_group *group;
static struct toy_side sides[2];

static struct toy_side *side_of(struct exsi_endpoint *ep)
{
    return &sides[ep == sides[1].ep];
}

/* --- the engine ------------------------------------------------------------------------------------- */

static void toy_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out)
{
    (void)cfg;
    *out = (struct exsi_ep_attr){.recv_slots = 64, .recv_slot_len = sizeof(struct toy_message), .send_wr = 64};
}
static int toy_open(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg)
{
    (void)cfg;
    ep->engine_state = side_of(ep);
    return 0;
}
static void toy_close(struct exsi_endpoint *ep)
{
    ep->engine_state = NULL;
}
static void toy_nothing(struct exsi_endpoint *ep)
{
    (void)ep;
}

/* The endpoint knows its sockets; which one is meant, the engine alone can tell. */
static struct toy_flow *route(struct exsi_endpoint *ep, uint32_t token)
{
    exsi_list_for (at, &ep->attached, struct exsi_attach, node) {
        struct toy_flow *f = at->flow;
        if (f->token == token) return f;
    }
    return NULL;
}

static void say(struct exsi_endpoint *ep, uint8_t type, uint32_t token, uint32_t count)
{
    struct toy_message m = {.type = type, .token = exsi_put32(token), .count = exsi_put32(count)};
    must(exsi_ep_send(ep, &m, sizeof m, true) == 0);
}

static void deliver(struct toy_flow *f)
{
    struct exsi_op *op;
    while (f->got < f->arrived && (op = exsi_list_first(&f->recvs, struct exsi_op, node))) {
        uint64_t n = exsi_min_u64(op->len, f->arrived - f->got);
        memcpy(op->iov[0].base, f->buffer + f->got, n);
        f->got += n;
        exsi_list_unlink(&op->node);
        exsi_op_finish(op, 0, n);
    }
}

static void toy_recv(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word)
{
    struct toy_side *s = ep->engine_state;
    struct toy_message m;
    must(!word && len == sizeof m);
    memcpy(&m, data, sizeof m);
    if (m.type == TEST_LINK) {
        s->tests++;
        if (exsi_get32(m.count)) say(ep, TEST_LINK, 0, exsi_get32(m.count) - 1);
        return;
    }
    struct toy_flow *f = route(ep, exsi_get32(m.token));
    if (!f) {
        s->strays++;
        return;
    }
    f->arrived += exsi_get32(m.count);
    deliver(f);
}

static void toy_write_done(struct exsi_endpoint *ep, uint64_t id, int error)
{
    struct exsi_op *op = exsi_op_find(group, id);
    (void)ep;
    if (!op || error) return;
    exsi_list_unlink(&op->node);
    exsi_op_finish(op, 0, op->len);
}
static void toy_key(struct exsi_endpoint *ep, uint64_t id)
{
    (void)ep, (void)id;
}

static void toy_error(struct exsi_endpoint *ep)
{
    struct toy_side *s = ep->engine_state;
    s->errors++;
    exsi_list_for (at, &ep->attached, struct exsi_attach, node) {
        struct toy_flow *f = at->flow;
        exsi_list_for_safe (op, &f->recvs, struct exsi_op, node) exsi_op_finish(op, ECONNRESET, 0);
        exsi_list_for_safe (op, &f->sends, struct exsi_op, node) exsi_op_finish(op, ECONNRESET, 0);
    }
}

static int toy_attach(struct exsi_attach *at)
{
    at->flow = exsi_container_of(at, struct toy_flow, at);
    return 0;
}
static void toy_detach(struct exsi_attach *at)
{
    at->flow = NULL;
}

static int toy_send(struct exsi_attach *at, struct exsi_op *op)
{
    struct toy_flow *f = at->flow;
    if (!exsi_ep_room(at->ep, 2)) return -EAGAIN;
    uint8_t *src;
    struct exsi_dmr *dmr;
    bool fragile;
    size_t n = exsi_op_span(op, 0, &src, &dmr, &fragile);
    must(exsi_ep_write_silent(at->ep, op->handle, src, (uint32_t)n, dmr, f->peer_addr + f->put, f->peer_rkey) == 0);
    say(at->ep, CDC, f->peer_token, (uint32_t)n);
    f->put += n;
    exsi_list_append(&f->sends, &op->node);
    return 0;
}
static int toy_op_recv(struct exsi_attach *at, struct exsi_op *op)
{
    struct toy_flow *f = at->flow;
    exsi_list_append(&f->recvs, &op->node);
    deliver(f);
    return 0;
}

static const struct exsi_engine_ops toy = {
    .name = "toy",
    .ep_attr = toy_attr,
    .ep_open = toy_open,
    .ep_close = toy_close,
    .on_up = toy_nothing,
    .before_flush = toy_nothing,
    .on_recv = toy_recv,
    .on_write_done = toy_write_done,
    .on_invalidated = toy_key,
    .on_room = toy_nothing,
    .on_error = toy_error,
    .attach = toy_attach,
    .detach = toy_detach,
    .send = toy_send,
    .recv = toy_op_recv,
};

/* --- two sides ---------------------------------------------------------------------------------------- */

static void make_side(struct exsi_device *dev, int i)
{
    struct toy_side *s = &sides[i];
    struct exsi_ep_attr attr = {0};
    struct exsi_ep_memory memory;
    size_t len = 2 * FLOWS * BUFFER;
    memset(s, 0, sizeof *s);
    must(exsi_eq_open(ctx, NULL, 256, &s->eq) == 0);
    s->memory = calloc(1, len);
    must(s->memory);
    struct exsi_mem mem = {
        .addr = s->memory, .len = len, .access = EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE, .memfd = -1};
    must(dev->ops->reg_mr(dev, &mem, &s->dmr) == 0);
    toy.ep_attr(NULL, &attr);
    must(exsi_ep_memory_new(ctx, dev, &attr, &memory) == 0);
    must(exsi_ep_new(group, dev, &toy, &attr, &memory, &s->stats, &s->ep) == 0);
    must(exsi_ep_make_qp(s->ep, NULL) == 0 && exsi_ep_open_engine(s->ep, NULL) == 0);
    for (uint32_t k = 0; k < FLOWS; k++) {
        struct toy_flow *f = &s->flow[k];
        f->buffer = s->memory + k * BUFFER;
        f->token = 1000 * (uint32_t)(i + 1) + k;
        f->at.stats = &f->stats;
        exsi_list_init(&f->recvs);
        exsi_list_init(&f->sends);
        must(exsi_ep_key_bind(s->ep, s->dmr, f->buffer, BUFFER, &f->rkey) == 0);
        must(exsi_ep_attach(s->ep, &f->at) == 0);
    }
}

/* What CLC and LLC would say. */
static void introduce(void)
{
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < FLOWS; k++) {
            struct toy_flow *mine = &sides[i].flow[k], *theirs = &sides[1 - i].flow[k];
            mine->peer_token = theirs->token;
            mine->peer_rkey = theirs->rkey;
            mine->peer_addr = (uint64_t)(uintptr_t)theirs->buffer;
        }
}

static bool progress(struct sim *sim)
{
    struct exsi_part *part = sides[0].ep->part;
    const struct exsi_device_ops *ops = part->dev->ops;
    struct exsi_wc wc[16];
    struct exsi_cm_event ev;
    int n, did = 0;
    exsi_group_flush(group);
    did += exsi_poller_run(&group->poller);
    did += ops->part_progress(part);
    if (sim) did += sim_step(sim);
    while ((n = ops->poll_cq(part, wc, 16)) > 0)
        for (int i = 0; i < n; i++, did++) exsi_ep_completion(wc[i].qp->user, &wc[i]);
    while (ops->poll_cm(part, &ev) == 1) {
        did++;
        if (ev.kind == EXSI_CM_DISCONNECTED) exsi_ep_disconnected(ev.qp->user, ev.error);
        if (ev.kind == EXSI_CM_ESTABLISHED && ev.qp) exsi_ep_up(ev.qp->user);
    }
    exsi_group_flush(group);
    return did > 0;
}

/* Until the events are there, within a bound. */
static uint32_t wait_events(struct sim *sim, int side, uint32_t wanted)
{
    uint64_t until = exsi_now_ns() + 10000000000u;
    while (exsi_eq_len(sides[side].eq) < wanted && exsi_now_ns() < until) {
        if (progress(sim)) continue;
        struct pollfd fd = {.fd = exsi_poller_fd(&group->poller), .events = POLLIN};
        poll(&fd, 1, 2);
    }
    return exsi_eq_len(sides[side].eq);
}

static int post(int side, int flow, enum exsi_op_kind kind, uint8_t *base, size_t len)
{
    struct toy_flow *f = &sides[side].flow[flow];
    struct exsi_op *op;
    must(exsi_op_new(group, sides[side].eq, kind, (uint64_t)flow, &op) == 0);
    op->attach = &f->at;
    op->len = len;
    must(exsi_op_pieces(op, 1) == 0);
    op->iov[0] = (struct exsi_iov){.base = base, .len = len, .dmr = sides[side].dmr};
    int rc = kind == EXSI_OP_SEND ? toy.send(&f->at, op) : toy.recv(&f->at, op);
    if (rc < 0) exsi_op_drop(op);
    return rc;
}

static uint8_t *outgoing(int side, int flow)
{
    return sides[side].memory + (FLOWS + flow) * BUFFER;
}

/* Every flow sends in both directions, interleaved; each must get its own bytes. */
static void test_traffic(struct sim *sim, const char *where)
{
    static uint8_t in[2][FLOWS][BUFFER];
    enum { ROUNDS = 8, LEN = 3000 };
    bool whole = true;
    struct exsi_event ev;
    for (int side = 0; side < 2; side++)
        for (int k = 0; k < FLOWS; k++)
            for (int i = 0; i < BUFFER; i++) outgoing(side, k)[i] = (uint8_t)(i * 3 + k * 50 + side * 7);
    for (int r = 0; r < ROUNDS; r++) {
        for (int side = 0; side < 2; side++)
            for (int k = 0; k < FLOWS; k++) {
                must(post(side, k, EXSI_OP_RECV, in[side][k] + r * LEN, LEN) == 0);
                must(post(side, k, EXSI_OP_SEND, outgoing(side, k) + r * LEN, LEN) == 0);
            }
        for (int side = 0; side < 2; side++) {
            whole &= wait_events(sim, side, 2 * FLOWS) == 2 * FLOWS;
            while (exsi_eq_take(sides[side].eq, &ev, 1) == 1) whole &= ev.error == 0 && ev.value == LEN;
        }
    }
    for (int side = 0; side < 2; side++)
        for (int k = 0; k < FLOWS; k++) whole &= memcmp(in[side][k], outgoing(1 - side, k), ROUNDS * LEN) == 0;
    ok(whole, "%s: three sockets on one endpoint, each gets its own bytes", where);
}

static void test_lives(struct sim *sim, const char *where)
{
    static uint8_t in[100];
    struct exsi_event ev;
    exsi_ep_detach(&sides[1].flow[1].at);
    must(post(0, 1, EXSI_OP_SEND, outgoing(0, 1), 100) == 0);
    must(post(1, 2, EXSI_OP_RECV, in, 100) == 0);
    must(post(0, 2, EXSI_OP_SEND, outgoing(0, 2), 100) == 0);
    (void)wait_events(sim, 1, 1);
    ok(exsi_eq_take(sides[1].eq, &ev, 1) == 1 && ev.cookie == 2 && sides[1].strays == 1 &&
           memcmp(in, outgoing(0, 2), 100) == 0,
       "%s: one socket left, the others go on", where);
    (void)wait_events(sim, 0, 2);
    while (exsi_eq_take(sides[0].eq, &ev, 1) == 1) continue;
    exsi_ep_detach(&sides[1].flow[0].at);
    exsi_ep_detach(&sides[1].flow[2].at);
    say(sides[0].ep, TEST_LINK, 0, 5);
    uint64_t until = exsi_now_ns() + 10000000000u;
    while (sides[0].tests + sides[1].tests < 6 && exsi_now_ns() < until) progress(sim);
    ok(sides[1].tests == 3 && sides[0].tests == 3, "%s: an endpoint without sockets still answers", where);
}

static void test_end(struct sim *sim, const char *where)
{
    static uint8_t in[100];
    struct exsi_event ev;
    must(post(0, 0, EXSI_OP_RECV, in, 100) == 0 && post(0, 1, EXSI_OP_RECV, in, 100) == 0 &&
         post(0, 2, EXSI_OP_RECV, in, 100) == 0);
    exsi_ep_fail(sides[1].ep, ECONNABORTED, "killed by the test");
    bool ended = wait_events(sim, 0, 3) == 3;
    while (exsi_eq_take(sides[0].eq, &ev, 1) == 1) ended &= ev.error == ECONNRESET;
    uint64_t until = exsi_now_ns() + 10000000000u;
    while (!sides[1].errors && exsi_now_ns() < until) progress(sim);
    ok(ended && sides[0].errors == 1 && sides[1].errors == 1, "%s: its death ends the operations of all its sockets",
       where);
}

static void end_sides(struct exsi_device *dev)
{
    for (int i = 0; i < 2; i++) {
        struct toy_side *s = &sides[i];
        for (int k = 0; k < FLOWS; k++) exsi_ep_detach(&s->flow[k].at);
        exsi_ep_free(s->ep);
        s->ep = NULL; /* the next one may lie where this one was */
        dev->ops->dereg_mr(dev, s->dmr);
        must(exsi_eq_close(s->eq) == 0);
        free(s->memory);
    }
    exsi_group_reap(group);
}

static void test_all(struct sim *sim, struct exsi_device *dev, const char *where)
{
    test_traffic(sim, where);
    test_lives(sim, where);
    test_end(sim, where);
    end_sides(dev);
}

static void on_sim(void)
{
    struct sim_options opt = {.max_msg = 1 << 20};
    struct sim *sim = sim_open(ctx, &opt, 11);
    for (int i = 0; i < 2; i++) make_side(sim_device(sim), i);
    sim_link(sides[0].ep->qp, sides[1].ep->qp);
    for (int i = 0; i < 2; i++) exsi_ep_up(sides[i].ep);
    introduce();
    test_all(sim, sim_device(sim), "sim");
    ok(sim_violation(sim) == NULL, "sim: no violation");
}

/* Create, read the own address, (receives are posted,) to RTR, to RTS. */
static void on_soft(void)
{
    struct exsi_device *dev;
    char reason[EXSI_REASON_MAX];
    struct exsi_raw_address addr[2];
    must(exsi_ctx_device(ctx, "soft", &dev, reason) == 0);
    for (int i = 0; i < 2; i++) {
        make_side(dev, i);
        must(dev->ops->raw_query(sides[i].ep->qp, &addr[i]) == 0);
    }
    for (int i = 0; i < 2; i++) {
        must(dev->ops->raw_to_rtr(sides[i].ep->qp, &addr[1 - i]) == 0);
        must(dev->ops->raw_to_rts(sides[i].ep->qp) == 0);
        exsi_ep_up(sides[i].ep);
    }
    introduce();
    test_all(NULL, dev, "soft");
}

int main(void)
{
    must(exsi_ctx_open(&ctx) == 0);
    must(exsi_group_open(ctx, false, &group) == 0);
    on_sim();
    on_soft();
    must(exsi_group_close(group) == 0);
    exsi_ctx_free(ctx);
    return tap_done();
}
