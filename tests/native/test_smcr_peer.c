// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SMC-R engine against a peer that is played by hand: what its CDC messages say and when, and what a peer may say
 * that keeps no rule.  On the simulated device, where a WRITE outside of its key is a violation. */
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

static void peer_write(struct conn *c, uint32_t at, uint32_t len)
{
    struct exsi_send_wr wr = {.op = EXSI_WR_WRITE, .flags = EXSI_WR_SIGNALED, .num_sge = 1, .rkey = c->rmb->rkey};
    wr.raddr = (uint64_t)(uintptr_t)c->rmb->base + at;
    wr.sge[0] = (struct exsi_sge){source, len, source_mr};
    peer_post(&wr);
}

/* --- time ------------------------------------------------------------------------------------------------------- */

static void deliver(void)
{
    struct exsi_wc wc[16];
    struct exsi_cm_event ev;
    int n;
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
    exsi_group_lock(group);
    exsi_group_unlock(group); /* regions end when it is left */
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
static void say(struct conn *c, struct exsi_smc_cursor producer, struct exsi_smc_cursor consumer, uint8_t pf,
                uint8_t cf)
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

static struct exsi_smc_cursor at(uint64_t position)
{
    return (struct exsi_smc_cursor){(uint16_t)(position / SIZE), (uint32_t)(position % SIZE)};
}

static const struct exsi_smc_cdc *last(void)
{
    static const struct exsi_smc_cdc none;
    return n_said ? &said[n_said - 1] : &none;
}

static bool logged(const char *text)
{
    struct exsi_log_record rec;
    bool hit = false;
    while (exsi_log_take(&ctx->log, &rec, 1) == 1) hit |= strstr(rec.text, text) != NULL;
    return hit;
}

/* The connection that the peer spoilt has ended with EPROTO, and only that one. */
static bool only_first_ended(const char *why)
{
    bool told = last()->connection_flags & EXSI_SMC_ABORT && last()->token == 0x900;
    bool dead = exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_DEAD && conns[0].at.error == EPROTO;
    bool named = logged(why);
    must(post(&conns[1], EXSI_OP_SEND, source, 10, 0, 99) == 0);
    run();
    return told && dead && named && event(99, 0, 10) && !conns[1].at.error && ep->state == EXSI_EP_UP;
}

/* --- what it says ---------------------------------------------------------------------------------------------------
 */

static void test_sequence(void)
{
    begin(true);
    bool good = true;
    uint64_t sent = 0;
    for (int i = 0; i < 66000 && good; i++) {
        must(post(&conns[0], EXSI_OP_SEND, source, 1, 0, 1) == 0);
        run();
        good = event(1, 0, 1) && last()->seq == (uint16_t)(i + 1) && last()->producer.count == ++sent % SIZE;
        if (sent % 8000 == 0) say(&conns[0], at(0), at(sent), 0, 0);
    }
    ok(good && n_said == 66000, "point 68: numbers from 1 on, one more each, through 65535 to 0");
    finish("numbers");
}

static void test_blocked(void)
{
    struct conn *c = &conns[0];
    begin(true);
    must(post(c, EXSI_OP_SEND, source, 100, 0, 1) == 0);
    run();
    ok(event(1, 0, 100) && !(last()->producer_flags & EXSI_SMC_WRITER_BLOCKED), "point 73: room left: not blocked");
    must(post(c, EXSI_OP_SEND, source, SIZE - 100, 0, 2) == 0);
    run();
    ok(event(2, 0, SIZE - 100) && last()->producer_flags == EXSI_SMC_WRITER_BLOCKED && last()->producer.wrap == 1 &&
           last()->producer.count == 0,
       "as much as there was room: blocked");
    must(post(c, EXSI_OP_SEND, source, 50, 0, 3) == 0);
    int before = n_said;
    run();
    ok(n_said == before && exsi_eq_len(eq) == 0, "a full ring: nothing to say, nothing written");
    say(c, at(0), at(4000), 0, 0);
    ok(event(3, 0, 50) && last()->producer_flags == 0 && last()->producer.count == 50, "room again: written, cleared");
    say(c, at(0), at(SIZE + 50), 0, 0);
    must(post(c, EXSI_OP_SEND, source, SIZE - 1, 0, 4) == 0);
    run();
    ok(event(4, 0, SIZE - 1) && last()->producer.wrap == 2 && last()->producer.count == 49 &&
           memcmp(rings + 50, source, SIZE - 50) == 0 && memcmp(rings, source + SIZE - 50, 49) == 0,
       "point 72: across the end in two WRITEs");
    finish("a full ring");
}

static void test_updates(void)
{
    static uint8_t in[SIZE];
    struct conn *c = &conns[0];
    begin(true);
    peer_write(c, 0, 3000);
    say(c, at(3000), at(0), 0, 0);
    must(post(c, EXSI_OP_RECV, in, 3000, 0, 1) == 0);
    run();
    ok(event(1, 0, 3000) && memcmp(in, source, 3000) == 0 && n_said == 0,
       "points 75, 84: read, and the writer has room: nobody is told");
    say(c, at(3000), at(0), EXSI_SMC_UPDATE_REQUESTED, 0);
    ok(n_said == 1 && last()->consumer.count == 3000 && last()->token == 0x900, "point 76: asked, and told");
    say(c, at(3000), at(0), EXSI_SMC_UPDATE_REQUESTED, 0);
    ok(n_said == 2, "also when nothing has changed");
    peer_write(c, 3000, SIZE - 3000);
    peer_write(c, 0, 3000);
    say(c, at(3000 + SIZE), at(0), EXSI_SMC_WRITER_BLOCKED, 0);
    must(post(c, EXSI_OP_RECV, in, 2304, 0, 2) == 0);
    run();
    ok(event(2, 0, 2304) && n_said == 2, "below the limit nobody is told");
    must(post(c, EXSI_OP_RECV, in, 1, 0, 3) == 0);
    run();
    ok(event(3, 0, 1) && n_said == 3 && last()->consumer.count == 5305, "above it a blocked writer is");
    finish("updates");
}

static void test_urgent_in(void)
{
    static uint8_t in[1000];
    struct conn *c = &conns[0];
    begin(true);
    say(c, at(0), at(0), EXSI_SMC_URGENT_PENDING, 0);
    peer_write(c, 0, 10);
    say(c, at(10), at(0), EXSI_SMC_URGENT_PENDING | EXSI_SMC_URGENT_PRESENT, 0);
    must(post(c, EXSI_OP_RECV, in, 9, 0, 1) == 0);
    run();
    ok(event(1, 0, 9) && n_said == 0, "before the urgent byte nobody is told");
    must(post(c, EXSI_OP_RECV, in, 100, 0, 2) == 0);
    run();
    ok(event(2, 0, 1) && in[0] == source[9] && n_said == 1 && last()->consumer.count == 10,
       "point 82: it comes in its place, and its sender is told at once");
    finish("urgent data from the peer");
}

static void test_urgent_out(void)
{
    struct conn *c = &conns[0];
    begin(true);
    must(post(c, EXSI_OP_SEND, source, 100, EXSI_OPF_URGENT, 1) == 0);
    must(post(c, EXSI_OP_SEND, source, 50, 0, 2) == 0);
    run();
    ok(event(1, 0, 100) && n_said == 1 && last()->producer.count == 100 &&
           last()->producer_flags == (EXSI_SMC_URGENT_PENDING | EXSI_SMC_URGENT_PRESENT),
       "point 83: the message behind the urgent byte says so");
    say(c, at(0), at(99), 0, 0);
    ok(exsi_eq_len(eq) == 0, "and nothing follows");
    say(c, at(0), at(100), 0, 0);
    ok(event(2, 0, 50) && last()->producer.count == 150 && last()->producer_flags == 0, "until it was read");
    must(post(c, EXSI_OP_SEND, source, SIZE, EXSI_OPF_URGENT, 3) == 0);
    run();
    ok(last()->producer_flags & EXSI_SMC_URGENT_PENDING && !(last()->producer_flags & EXSI_SMC_URGENT_PRESENT),
       "a part of urgent data: it is pending");
    say(c, at(0), at(150), 0, 0);
    ok(event(3, 0, SIZE) && last()->producer_flags & EXSI_SMC_URGENT_PRESENT, "and then present");
    finish("urgent data of ours");
}

/* --- ends
 * -------------------------------------------------------------------------------------------------------------- */

static void test_close_flags(void)
{
    static uint8_t in[100];
    begin(true);
    exsi_engine_smcr.shutdown_send(&conns[0].at);
    exsi_engine_smcr.shutdown_recv(&conns[0].at);
    run();
    ok(n_said == 1 && last()->connection_flags == EXSI_SMC_CLOSED, "point 85: a close says closed");
    ok(!(exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_FIN_ACKED), "and waits for the peer's");
    say(&conns[0], at(0), at(0), 0, EXSI_SMC_CLOSED);
    ok(exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_FIN_ACKED, "which ends it");

    exsi_engine_smcr.shutdown_send(&conns[1].at);
    run();
    ok(last()->connection_flags == EXSI_SMC_SENDING_DONE, "point 86: a half close says done");
    peer_write(&conns[1], 0, 50);
    say(&conns[1], at(50), at(0), 0, 0);
    must(post(&conns[1], EXSI_OP_RECV, in, 100, 0, 1) == 0);
    run();
    ok(event(1, 0, 50), "data still comes");
    exsi_engine_smcr.shutdown_recv(&conns[1].at);
    run();
    ok(last()->connection_flags == (EXSI_SMC_SENDING_DONE | EXSI_SMC_CLOSED), "then closed, with done still set");
    finish("closes");
}

static void test_abort_flags(void)
{
    begin(true);
    peer_write(&conns[0], 0, 50);
    say(&conns[0], at(50), at(0), 0, 0);
    exsi_engine_smcr.shutdown_send(&conns[0].at);
    exsi_engine_smcr.shutdown_recv(&conns[0].at);
    run();
    ok(last()->connection_flags == EXSI_SMC_ABORT, "point 87: closed with unread data: abort");
    say(&conns[1], at(0), at(0), 0, EXSI_SMC_ABORT);
    ok(conns[1].at.error == ECONNRESET && last()->connection_flags == EXSI_SMC_ABORT && last()->token == 0x901,
       "the peer's abort is answered");
    finish("aborts");
}

static void test_data_behind_done(void)
{
    static uint8_t in[100];
    begin(true);
    peer_write(&conns[0], 0, 20);
    say(&conns[0], at(10), at(0), 0, EXSI_SMC_SENDING_DONE);
    say(&conns[0], at(20), at(0), 0, EXSI_SMC_SENDING_DONE);
    must(post(&conns[0], EXSI_OP_RECV, in, 100, EXSI_OPF_WAITALL, 1) == 0);
    run();
    ok(event(1, 0, 10), "what comes behind done does not count");
    finish("data behind done");
}

/* --- a peer that keeps no rule
 * -------------------------------------------------------------------------------------------- */

static void test_ignored(void)
{
    static uint8_t in[100];
    struct conn *c = &conns[0], stranger = {.token = 0x777};
    begin(true);
    say(&stranger, at(50), at(0), 0, EXSI_SMC_ABORT);
    ok(exsi_smcr_of(ep)->strays == 1, "point 79: an unknown token is nobody's");
    peer_write(c, 0, 50);
    say(c, at(50), at(0), 0, 0);
    c->seq = 65000;
    say(c, at(70), at(0), 0, EXSI_SMC_ABORT);
    ok(!c->at.error, "point 69: an old number says nothing");
    c->seq = 1;
    say(c, at(20), at(0), 0, 0);
    say(c, (struct exsi_smc_cursor){65535, 100}, (struct exsi_smc_cursor){65535, 5}, 0, 0);
    must(post(c, EXSI_OP_RECV, in, 100, 0, 1) == 0);
    run();
    ok(event(1, 0, 50) && !c->at.error, "point 80: cursors that go backwards are ignored");
    peer_send("\xfe\x2c", 2);
    peer_send("", 0);
    run();
    ok(ep->state == EXSI_EP_UP, "point 97: a message that is cut says nothing");
    finish("what is ignored");
}

static void test_violation(const char *name, struct exsi_smc_cursor producer, struct exsi_smc_cursor consumer,
                           const char *why)
{
    static uint8_t in[100];
    begin(true);
    must(post(&conns[0], EXSI_OP_SEND, source, 100, 0, 1) == 0);
    run();
    must(event(1, 0, 100) && post(&conns[0], EXSI_OP_RECV, in, 100, 0, 2) == 0);
    (void)logged("");
    say(&conns[0], producer, consumer, 0, 0);
    ok(event(2, EPROTO, 0) && only_first_ended(why), "%s ends its connection and nothing else", name);
    finish(name);
}

static void test_validation(void)
{
    begin(true);
    say(&conns[0], at(0), at(0), 0, 0);
    conns[0].seq = 0;
    say(&conns[0], (struct exsi_smc_cursor){9, 99}, (struct exsi_smc_cursor){9, 99}, EXSI_SMC_FAILOVER_VALIDATION, 0);
    ok(!conns[0].at.error, "a validation of what arrived changes nothing");
    (void)logged("");
    conns[0].seq = 5;
    say(&conns[0], at(0), at(0), EXSI_SMC_FAILOVER_VALIDATION, 0);
    ok(only_first_ended("sequence number"), "one of what did not ends the connection");
    finish("failover validation");
}

static void test_before_rts(void)
{
    uint8_t ask[EXSI_SMC_MESSAGE_LEN] = {0x07, 44};
    memset(ask + 4, 0x5a, 16);
    begin(false);
    peer_send(ask, sizeof ask);
    must(post(&conns[0], EXSI_OP_SEND, source, 100, 0, 1) == 0);
    run();
    ok(n_other == 0 && n_said == 0, "point 41: before RTS nothing is sent");
    exsi_ep_up(ep);
    run();
    ask[3] = 0x80;
    ok(n_other == 1 && memcmp(other, ask, sizeof ask) == 0 && event(1, 0, 100),
       "point 53: then the test is answered, its 16 bytes echoed, and data goes");
    finish("before RTS");
}

int main(void)
{
    must(exsi_ctx_open(&ctx) == 0);
    must(exsi_group_open(ctx, false, &group) == 0);
    must(exsi_eq_open(ctx, NULL, 64, &eq) == 0);
    struct sim_options opt = {0};
    sim = sim_open(ctx, &opt, 1);
    for (size_t i = 0; i < sizeof source; i++) source[i] = (uint8_t)(i * 7 + i / 256);
    test_sequence();
    test_blocked();
    test_updates();
    test_urgent_in();
    test_urgent_out();
    test_close_flags();
    test_abort_flags();
    test_data_behind_done();
    test_ignored();
    test_violation("a producer outside of the ring", (struct exsi_smc_cursor){0, SIZE}, at(0), "producer cursor");
    test_violation("a producer beyond the free part", at(SIZE + 1), at(0), "producer cursor");
    test_violation("a consumer beyond what was written", at(0), at(101), "consumer cursor");
    test_violation("a consumer outside of the ring", at(0), (struct exsi_smc_cursor){0, 0xffffffff}, "consumer cursor");
    test_validation();
    test_before_rts();
    must(exsi_eq_close(eq) == 0);
    must(exsi_group_close(group) == 0);
    exsi_ctx_free(ctx);
    return tap_done();
}
