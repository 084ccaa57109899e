// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SMC-R engine on the simulated device, and its peer, which is played by hand: what it receives is noted, what it
 * says is up to the test.  Nothing moves but by the functions under "time". */
#ifndef SMCR_PLAYED_H
#define SMCR_PLAYED_H

#include <string.h>

#include "engine/smcr.h"
#include "sim/sim.h"
#include "tap.h"

enum { SIZE = 16384, SLOTS = 64, CONNS = 2, RING = CONNS * SIZE };

/* The engine's side of a connection. */
struct conn {
    struct exsi_attach at;
    struct exsi_stats stats;
    struct exsi_smcr_rmb *rmb;
    uint32_t token;
    uint16_t seq; /* of the peer */
    uint32_t changed;
};

static struct exsi_ctx *ctx;
static struct exsi_group *group;
static struct sim *sim;
static struct exsi_eq *eq;
static struct exsi_endpoint *ep;
static struct exsi_stats stats;
static struct conn conns[CONNS];

/* The peer: its queue pair, its rings, what it received. */
static struct exsi_qp *peer;
static struct exsi_stats peer_stats;
static uint8_t slots[SLOTS][64], rings[RING], source[SIZE];
static struct exsi_dmr *slot_mr, *ring_mr, *source_mr;
static uint32_t rkey;
static struct exsi_smc_cdc said[70000];
static int n_said, n_other;
static uint8_t other[64];

/* The simulated device is put into the context by hand; none is found. */
const struct exsi_device_entry *exsi_device_registry(int *n)
{
    *n = 0;
    return NULL;
}

static const struct exsi_device_ops *dev_ops(void)
{
    return sim_device(sim)->ops;
}

/* --- the peer ------------------------------------------------------------------------------------------------ */

static struct exsi_dmr *region(void *at, size_t len, uint32_t access)
{
    struct exsi_mem mem = {.addr = at, .len = len, .access = access, .memfd = -1};
    struct exsi_dmr *mr;
    must(dev_ops()->reg_mr(sim_device(sim), &mem, &mr) == 0);
    return mr;
}

static void post_slot(uint64_t i)
{
    struct exsi_recv_wr wr = {.wr_id = i, .sge = {slots[i], 64, slot_mr}};
    must(dev_ops()->post_recv(peer, &wr, 1) == 0);
}

static void peer_received(const struct exsi_wc *wc)
{
    if (wc->op != EXSI_WC_RECV || wc->error) return;
    struct exsi_smc_cdc c;
    if (exsi_smc_cdc_decode(slots[wc->wr_id], wc->byte_len, &c) == 0) {
        must(n_said < (int)(sizeof said / sizeof *said));
        said[n_said++] = c;
    } else {
        memcpy(other, slots[wc->wr_id], 64);
        n_other++;
    }
    post_slot(wc->wr_id);
}

static void peer_post(struct exsi_send_wr *wr)
{
    must(dev_ops()->post_send(peer, wr, 1) == 0);
    dev_ops()->qp_flush(peer);
}

static void peer_send(const void *bytes, uint32_t len)
{
    struct exsi_send_wr wr = {.op = EXSI_WR_SEND, .flags = EXSI_WR_INLINE | EXSI_WR_SIGNALED, .num_sge = 1};
    wr.sge[0] = (struct exsi_sge){(void *)(uintptr_t)bytes, len, NULL};
    peer_post(&wr);
}

__attribute__((unused)) static void peer_write(struct conn *c, uint32_t at, uint32_t len)
{
    struct exsi_send_wr wr = {.op = EXSI_WR_WRITE, .flags = EXSI_WR_SIGNALED, .num_sge = 1, .rkey = c->rmb->rkey};
    wr.raddr = (uint64_t)(uintptr_t)c->rmb->base + at;
    wr.sge[0] = (struct exsi_sge){source, len, source_mr};
    peer_post(&wr);
}

/* --- time ------------------------------------------------------------------------------------------------------- */

/* What waits for the lock to be left, such as memory. */
static void errands(void)
{
    exsi_group_lock(group);
    exsi_group_unlock(group);
}

static void deliver(void)
{
    struct exsi_wc wc[16];
    struct exsi_cm_event ev;
    int n;
    errands();
    exsi_group_flush(group);
    while ((n = dev_ops()->poll_cq(ep->part, wc, 16)) > 0) {
        for (int i = 0; i < n; i++) {
            if (wc[i].qp == peer)
                peer_received(&wc[i]);
            else
                exsi_ep_completion(ep, &wc[i]);
        }
        exsi_group_flush(group);
    }
    while (dev_ops()->poll_cm(ep->part, &ev) == 1)
        if (ev.qp != peer) exsi_ep_disconnected(ep, ev.error);
    exsi_group_flush(group);
}

static void run(void)
{
    do deliver();
    while (sim_step(sim));
    deliver();
}

/* --- the engine's side ------------------------------------------------------------------------------------------- */

static void changed(struct exsi_attach *at, uint32_t what)
{
    exsi_container_of(at, struct conn, at)->changed |= what;
}

static void make_ring(struct conn *c)
{
    struct exsi_mr *mr;
    struct exsi_dmr *dmr;
    uint64_t handle;
    void *at = aligned_alloc(4096, SIZE);
    must(at);
    uint32_t flags = EXSI_MR_READ | EXSI_MR_WRITE | EXSI_MR_ONE_PEER | EXSI_MR_SAFE | EXSI_MR_HEAP;
    must(exsi_mr_open(ctx, at, SIZE, flags, &handle) == 0);
    must(exsi_mr_get(ctx, handle, at, SIZE, EXSI_MR_WRITE, &mr) == 0 && exsi_mr_close_later(ctx, handle) == 0);
    must(exsi_mr_on(ctx, mr, sim_device(sim), &dmr) == 0);
    must(exsi_smcr_rmb_new(exsi_smcr_of(ep), mr, dmr, at, SIZE, &c->rmb) == 0);
}

static void make_conn(int i)
{
    struct conn *c = &conns[i];
    *c = (struct conn){.token = 0x100u + (uint32_t)i};
    c->at.stats = &c->stats;
    c->at.changed = changed;
    exsi_list_init(&c->at.node);
    make_ring(c);
    must(exsi_ep_attach(ep, &c->at) == 0 && exsi_smcr_bind(&c->at, c->rmb, c->token) == 0);
    struct exsi_smcr_peer p = {
        .addr = (uint64_t)(uintptr_t)(rings + i * SIZE), .rkey = rkey, .size = SIZE, .token = 0x900u + (uint32_t)i};
    must(exsi_smcr_open(&c->at, &p) == 0);
}

static void begin(bool up)
{
    struct sim_options opt = {.max_msg = 1 << 20};
    struct exsi_ep_attr attr = {0};
    struct exsi_ep_memory memory;
    sim_set(sim, &opt, 4711);
    exsi_engine_smcr.ep_attr(NULL, &attr);
    must(exsi_ep_memory_new(ctx, sim_device(sim), &attr, &memory) == 0);
    must(exsi_ep_new(group, sim_device(sim), &exsi_engine_smcr, &attr, &memory, &stats, &ep) == 0);
    must(exsi_ep_make_qp(ep, NULL) == 0 && exsi_ep_open_engine(ep, &(struct exsi_engine_config){0}) == 0);
    struct exsi_qp_attr qattr = {
        .send_wr = 256, .recv_wr = SLOTS, .max_recv_len = 64, .stats = &peer_stats, .user = &peer};
    must(dev_ops()->qp_create(ep->part, NULL, &qattr, &peer) == 0);
    memset(rings, 0, sizeof rings);
    slot_mr = region(slots, sizeof slots, EXSI_ACCESS_LOCAL_WRITE);
    ring_mr = region(rings, sizeof rings, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    source_mr = region(source, sizeof source, 0);
    must(dev_ops()->key_bind(peer, ring_mr, rings, sizeof rings, &rkey) == 0);
    sim_link(ep->qp, peer);
    for (uint64_t i = 0; i < SLOTS; i++) post_slot(i);
    n_said = n_other = 0;
    for (int i = 0; i < CONNS; i++) make_conn(i);
    if (up) exsi_ep_up(ep);
    run();
}

static void finish(const char *what)
{
    struct exsi_event ev;
    ok(sim_violation(sim) == NULL, "%s: no write outside, no message without a receive", what);
    for (int i = 0; i < CONNS; i++)
        if (conns[i].at.flow) exsi_engine_smcr.abort(&conns[i].at, ECONNABORTED, "the test is over");
    run();
    for (int i = 0; i < CONNS; i++) exsi_ep_detach(&conns[i].at);
    exsi_ep_disconnected(ep, ECONNABORTED);
    exsi_ep_free(ep);
    dev_ops()->qp_destroy(peer);
    dev_ops()->dereg_mr(sim_device(sim), slot_mr);
    dev_ops()->dereg_mr(sim_device(sim), ring_mr);
    dev_ops()->dereg_mr(sim_device(sim), source_mr);
    exsi_group_reap(group);
    errands(); /* regions end */
    while (exsi_eq_take(eq, &ev, 1) == 1) continue;
}

/* A send or receive of plain memory; the simulated device checks no source that is a region of its own. */
static int post(struct conn *c, enum exsi_op_kind kind, void *at, size_t len, uint32_t flags, uint64_t cookie)
{
    struct exsi_op *op;
    must(exsi_op_new(group, eq, kind, cookie, &op) == 0);
    op->attach = &c->at;
    op->flags = flags;
    op->len = len;
    must(exsi_op_pieces(op, 1) == 0);
    op->iov[0] = (struct exsi_iov){.base = at, .len = len, .dmr = source_mr};
    int rc = kind == EXSI_OP_SEND ? exsi_engine_smcr.send(&c->at, op) : exsi_engine_smcr.recv(&c->at, op);
    if (rc < 0) exsi_op_drop(op);
    return rc;
}

static bool event(uint64_t cookie, int error, uint64_t value)
{
    struct exsi_event ev;
    if (exsi_eq_take(eq, &ev, 1) != 1) return false;
    if (ev.cookie == cookie && ev.error == error && ev.value == value) return true;
    printf("# event of %llu: error %d, value %llu\n", (unsigned long long)ev.cookie, ev.error,
           (unsigned long long)ev.value);
    return false;
}

/* A CDC message of the peer, numbered in order. */
__attribute__((unused)) static void say(struct conn *c, struct exsi_smc_cursor producer,
                                        struct exsi_smc_cursor consumer, uint8_t pf, uint8_t cf)
{
    uint8_t wire[EXSI_SMC_MESSAGE_LEN];
    struct exsi_smc_cdc m = {.seq = ++c->seq,
                             .token = c->token,
                             .producer = producer,
                             .consumer = consumer,
                             .producer_flags = pf,
                             .connection_flags = cf};
    exsi_smc_cdc_encode(&m, wire);
    peer_send(wire, sizeof wire);
    run();
}

__attribute__((unused)) static struct exsi_smc_cursor at(uint64_t position)
{
    return (struct exsi_smc_cursor){(uint16_t)(position / SIZE), (uint32_t)(position % SIZE)};
}

__attribute__((unused)) static const struct exsi_smc_cdc *last(void)
{
    static const struct exsi_smc_cdc none;
    return n_said ? &said[n_said - 1] : &none;
}

__attribute__((unused)) static bool logged(const char *text)
{
    struct exsi_log_record rec;
    bool hit = false;
    while (exsi_log_take(&ctx->log, &rec, 1) == 1) hit |= strstr(rec.text, text) != NULL;
    return hit;
}

/* --- all of it --------------------------------------------------------------------------------------------------- */

static void played_open(void)
{
    must(exsi_ctx_open(&ctx) == 0);
    must(exsi_group_open(ctx, false, &group) == 0);
    must(exsi_eq_open(ctx, NULL, 64, &eq) == 0);
    struct sim_options opt = {0};
    sim = sim_open(ctx, &opt, 1);
    for (size_t i = 0; i < sizeof source; i++) source[i] = (uint8_t)(i * 7 + i / 256);
}

static void played_close(void)
{
    must(exsi_eq_close(eq) == 0);
    must(exsi_group_close(group) == 0);
    exsi_ctx_free(ctx);
}

#endif
