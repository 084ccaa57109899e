// SPDX-License-Identifier: MIT OR Apache-2.0
/* Two SMC-R links on the simulated device, several connections on them, and random schedules: posts, arrivals,
 * completions, views, cancels, half closes, closes and aborts in any order, both directions at once.  Byte i of a
 * stream is a function of i, so every byte that arrives is checked; the device counts each WRITE outside of a ring.
 * The memory of a send is overwritten as soon as it is over, and sends end in the order in which they were posted.
 *
 *   test_smcr_random [STEPS [SEED [EPISODE]]]
 * A failure prints the seed and the episode. */
#include <string.h>

#include "engine/smcr_flow.h"
#include "sim/sim.h"
#include "tap.h"

enum { CONNS = 4, SLOTS = 6, SLOT_BYTES = 40000, MEMORY = 2 * SLOTS * SLOT_BYTES };

struct slot {
    bool busy;
    uint64_t op, from, number; /* from: position in the stream (send) */
    uint32_t len;
};

/* One side of a connection. */
struct end {
    struct exsi_attach at;
    struct exsi_stats stats;
    struct exsi_smcr_rmb *rmb;
    struct slot send[SLOTS], recv[SLOTS];
    uint64_t sent, got; /* posted to be sent; received and checked */
    uint64_t cut;       /* where a cancelled send ended the stream; UINT64_MAX: it did not */
    uint64_t n_sends, n_over;
    uint32_t lent, busy;
    void *view;
    bool closed, attached;
    int side, index;
};

struct side {
    struct exsi_endpoint *ep;
    struct exsi_stats stats;
    uint8_t *memory; /* of its operations: CONNS times MEMORY */
    struct exsi_dmr *dmr;
    struct exsi_eq *eq;
    struct end end[CONNS];
};

static struct exsi_ctx *ctx;
static struct exsi_group *group;
static struct sim *sim;
static struct side sides[2];
static uint64_t rng, steps, events, staged;
static int n_conns;
static bool over; /* ends may be untidy from now on */
static char wrong[200];

#define wrong_if(cond, ...)                                                                                            \
    do {                                                                                                               \
        if ((cond) && !wrong[0]) snprintf(wrong, sizeof wrong, __VA_ARGS__);                                           \
    } while (0)

const struct exsi_device_entry *exsi_device_registry(int *n)
{
    *n = 0;
    return NULL;
}

static uint32_t below(uint32_t n)
{
    return sim_below(&rng, n);
}

static uint8_t byte_at(const struct end *from, uint64_t i)
{
    return (uint8_t)(i * 31 + (i >> 13) * 7 + (uint64_t)from->index * 59 + (uint64_t)from->side * 101);
}

static struct end *peer_of(const struct end *e)
{
    return &sides[1 - e->side].end[e->index];
}

static uint8_t *memory_of(const struct end *e, bool recv, int slot)
{
    return sides[e->side].memory + e->index * MEMORY + ((recv ? SLOTS : 0) + slot) * SLOT_BYTES;
}

/* --- time ------------------------------------------------------------------------------------------------------ */

/* What waits for the lock to be left, such as memory. */
static void errands(void)
{
    exsi_group_lock(group);
    exsi_group_unlock(group);
}

static void deliver(void)
{
    const struct exsi_device_ops *ops = sim_device(sim)->ops;
    struct exsi_part *part = sides[0].ep->part;
    struct exsi_wc wc[16];
    struct exsi_cm_event ev;
    int n;
    if (below(4)) errands();
    exsi_group_flush(group);
    while ((n = ops->poll_cq(part, wc, 16)) > 0) {
        for (int i = 0; i < n; i++) exsi_ep_completion(wc[i].qp->user, &wc[i]);
        if (below(2)) exsi_group_flush(group);
    }
    while (ops->poll_cm(part, &ev) == 1) exsi_ep_disconnected(ev.qp->user, ev.error);
    exsi_group_flush(group);
}

static bool step(void)
{
    bool did = sim_step(sim);
    deliver();
    steps++;
    return did;
}

/* --- operations --------------------------------------------------------------------------------------------------- */

static void check_flow(const struct end *e)
{
    const struct smcr_flow *f = e->at.flow;
    const struct smcr_stage *st = &f->stage;
    uint64_t unsent = smcr_staged(f);
    bool begun = false;
    exsi_list_for (op, &f->sends, const struct exsi_op, node) {
        begun |= op == f->unposted;
        if (!op->e.send.cut) unsent += op->len - op->e.send.posted;
        wrong_if(!begun && !op->e.send.cut && op->e.send.posted < op->len, "a send was passed over");
    }
    wrong_if(!(st->freed <= st->out && st->out <= st->in && st->in - st->freed <= st->size), "the staging ring");
    wrong_if(unsent != f->unsent, "%llu bytes unsent, not %llu", (unsigned long long)f->unsent,
             (unsigned long long)unsent);
}

/* The sizes that are copied and those that are not, both sides of the border. */
static uint32_t some_length(void)
{
    switch (below(10)) {
    case 0: return 0;
    case 1:
    case 2:
    case 3: return 1 + below(200);
    case 4:
    case 5: return 1 + below(3000);
    case 6:
    case 7: return 8192 - 100 + below(200);
    default: return 1 + below(SLOT_BYTES);
    }
}

static void give_pieces(struct exsi_op *op, uint8_t *at, uint32_t len, struct exsi_dmr *dmr)
{
    uint32_t n = 1 + below(3), from = 0;
    must(exsi_op_pieces(op, n) == 0);
    op->len = len;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t piece = k == n - 1 ? len - from : below(len - from + 1);
        op->iov[k] = (struct exsi_iov){.base = at + from, .len = piece, .dmr = dmr};
        from += piece;
    }
}

static void post(struct end *e, bool recv)
{
    int i = 0;
    struct slot *all = recv ? e->recv : e->send, *s;
    while (i < SLOTS && all[i].busy) i++;
    if (i == SLOTS || e->closed || e->lent) return;
    s = &all[i];
    struct exsi_op *op;
    uint32_t len = some_length();
    uint64_t cookie = (uint64_t)e->index << 16 | (uint64_t)recv << 8 | (uint64_t)i;
    must(exsi_op_new(group, sides[e->side].eq, recv ? EXSI_OP_RECV : EXSI_OP_SEND, cookie, &op) == 0);
    uint8_t *at = memory_of(e, recv, i);
    for (uint32_t k = 0; !recv && k < len; k++) at[k] = byte_at(e, e->sent + k);
    op->attach = &e->at;
    if (recv && below(3) == 0) op->flags = EXSI_OPF_WAITALL;
    if (!recv && len && below(20) == 0) op->flags = EXSI_OPF_URGENT;
    give_pieces(op, at, len, sides[e->side].dmr);
    *s = (struct slot){.busy = true, .op = op->handle, .from = e->sent, .len = len, .number = e->n_sends};
    e->busy++;
    if (!recv) e->sent += len;
    if (!recv) e->n_sends++;
    int rc = recv ? exsi_engine_smcr.recv(&e->at, op) : exsi_engine_smcr.send(&e->at, op);
    check_flow(e);
    if (rc == 0) return;
    exsi_op_drop(op);
    e->busy--;
    s->busy = false;
    if (!recv) e->sent -= len;
    if (!recv) e->n_sends--;
}

static void check_bytes(struct end *e, const uint8_t *at, uint64_t len)
{
    const struct end *from = peer_of(e);
    for (uint64_t i = 0; i < len && !wrong[0]; i++)
        wrong_if(at[i] != byte_at(from, e->got + i), "connection %d to side %d: byte %llu is not what was sent",
                 e->index, e->side, (unsigned long long)(e->got + i));
    e->got += len;
    wrong_if(e->got > from->sent, "connection %d: more arrived than was sent", e->index);
}

static void ended(struct end *e, bool recv, int i, const struct exsi_event *ev)
{
    struct slot *s = recv ? &e->recv[i] : &e->send[i];
    wrong_if(!s->busy, "an event too many");
    wrong_if(ev->value > s->len, "more than was asked for");
    wrong_if(ev->error && ev->error != ECANCELED && !over && !(ev->error == EPIPE && e->cut != UINT64_MAX),
             "an operation ended with %d", ev->error);
    s->busy = false;
    e->busy--;
    if (recv) {
        check_bytes(e, memory_of(e, true, i), ev->value);
        return;
    }
    memset(memory_of(e, false, i), 0xee, s->len);
    if (ev->error == 0) {
        wrong_if(ev->value != s->len, "a send of %u ended with %u", s->len, (uint32_t)ev->value);
        wrong_if(s->number < e->n_over, "a send ended before an older one");
        e->n_over = s->number + 1;
    } else if (ev->error == ECANCELED && !over) {
        /* Nothing was posted behind it (cancel_send). */
        e->sent = s->from + ev->value;
        if (ev->value) e->cut = e->sent;
    }
}

static void take_events(void)
{
    struct exsi_event ev;
    for (int k = 0; k < 2; k++)
        while (exsi_eq_take(sides[k].eq, &ev, 1) == 1) {
            events++;
            ended(&sides[k].end[ev.cookie >> 16], ev.cookie >> 8 & 1, (int)(ev.cookie & 0xff), &ev);
        }
}

static void take(struct end *e)
{
    static uint8_t buf[SLOT_BYTES];
    if (e->closed || !e->attached) return;
    take_events();
    int64_t n = exsi_engine_smcr.take(&e->at, buf, 1 + below(SLOT_BYTES), false);
    if (n > 0) check_bytes(e, buf, (uint64_t)n);
}

static void view(struct end *e)
{
    uint64_t len;
    if (e->closed || !e->attached) return;
    take_events();
    if (e->lent) {
        uint32_t n = below(e->lent + 1);
        check_bytes(e, e->view, n);
        must(exsi_smcr_lend_over(&e->at, n) == 0);
        e->lent = 0;
    } else if (exsi_smcr_lend(&e->at, &e->view, &len) == 1) {
        e->lent = (uint32_t)len;
    }
}

/* The newest, so that the bytes of others keep their place. */
static void cancel_send(struct end *e)
{
    take_events();
    for (int i = 0; i < SLOTS && !e->closed; i++) {
        const struct slot *s = &e->send[i];
        if (!s->busy || s->number != e->n_sends - 1) continue;
        struct exsi_op *op = exsi_op_find(group, s->op);
        must(op && op->attach == &e->at);
        bool whole = op->len && op->e.send.posted == op->len;
        exsi_engine_smcr.cancel(&e->at, op);
        wrong_if(whole && !exsi_op_find(group, s->op), "a send that was copied was cancelled");
        break;
    }
    check_flow(e);
    take_events();
}

static void cancel(struct end *e, uint32_t slot)
{
    struct slot *s = &e->recv[slot];
    struct exsi_op *op = s->busy ? exsi_op_find(group, s->op) : NULL;
    if (op && op->kind == EXSI_OP_RECV && op->attach == &e->at) exsi_engine_smcr.cancel(&e->at, op);
}

/* --- set-up and ends
 * -------------------------------------------------------------------------------------------------- */

static void changed(struct exsi_attach *at, uint32_t what)
{
    (void)at, (void)what;
}

static void make_ring(struct side *s, struct end *e, uint32_t size)
{
    struct exsi_mr *mr;
    struct exsi_dmr *dmr;
    uint64_t handle;
    void *at = aligned_alloc(4096, size);
    uint32_t flags = EXSI_MR_READ | EXSI_MR_WRITE | EXSI_MR_ONE_PEER | EXSI_MR_SAFE | EXSI_MR_HEAP;
    must(at && exsi_mr_open(ctx, at, size, flags, &handle) == 0);
    must(exsi_mr_get(ctx, handle, at, size, EXSI_MR_WRITE, &mr) == 0 && exsi_mr_close_later(ctx, handle) == 0);
    must(exsi_mr_on(ctx, mr, sim_device(sim), &dmr) == 0);
    must(exsi_smcr_rmb_new(exsi_smcr_of(s->ep), mr, dmr, at, size, &e->rmb) == 0);
}

static void make_side(int k)
{
    struct side *s = &sides[k];
    struct exsi_ep_attr attr = {0};
    struct exsi_ep_memory memory;
    struct exsi_mem mem = {.addr = s->memory, .len = CONNS * MEMORY, .memfd = -1};
    must(sim_device(sim)->ops->reg_mr(sim_device(sim), &mem, &s->dmr) == 0);
    exsi_engine_smcr.ep_attr(NULL, &attr);
    /* A short send queue, so that connections wait for their turn. */
    attr.send_wr = 16 + below(60);
    attr.recv_slots = 4 + below(60);
    must(exsi_ep_memory_new(ctx, sim_device(sim), &attr, &memory) == 0);
    must(exsi_ep_new(group, sim_device(sim), &exsi_engine_smcr, &attr, &memory, &s->stats, &s->ep) == 0);
    must(exsi_ep_make_qp(s->ep, NULL) == 0 && exsi_ep_open_engine(s->ep, &(struct exsi_engine_config){0}) == 0);
    for (int i = 0; i < n_conns; i++) {
        struct end *e = &s->end[i];
        *e = (struct end){.side = k, .index = i, .cut = UINT64_MAX, .attached = true};
        e->at.stats = &e->stats;
        e->at.changed = changed;
        exsi_list_init(&e->at.node);
        make_ring(s, e, EXSI_SMC_RMBE_MIN << below(3));
        must(exsi_ep_attach(s->ep, &e->at) == 0);
        must(exsi_smcr_bind(&e->at, e->rmb, 1 + (uint32_t)i * 256) == 0);
    }
}

static void begin(uint64_t seed)
{
    struct sim_options opt = {.waits = true, .max_msg = below(3) ? 1 << 20 : 1 + below(5000)};
    sim_set(sim, &opt, seed);
    n_conns = 1 + (int)below(CONNS);
    over = false;
    for (int k = 0; k < 2; k++) make_side(k);
    sim_link(sides[0].ep->qp, sides[1].ep->qp);
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < n_conns; i++) {
            const struct exsi_smcr_rmb *r = sides[1 - k].end[i].rmb;
            struct exsi_smcr_peer p = {
                .addr = (uint64_t)(uintptr_t)r->base, .rkey = r->rkey, .size = r->size, .token = 1 + (uint32_t)i * 256};
            must(exsi_smcr_open(&sides[k].end[i].at, &p) == 0);
        }
        exsi_ep_up(sides[k].ep);
    }
    deliver();
}

static void act(void)
{
    struct end *e = &sides[below(2)].end[below((uint32_t)n_conns)];
    switch (below(16)) {
    case 0:
    case 1: post(e, false); break;
    case 2:
    case 3: post(e, true); break;
    case 4: take(e); break;
    case 5: view(e); break;
    case 6: cancel(e, below(SLOTS)); break;
    case 7:
        if (below(8) == 0) cancel_send(e);
        break;
    default: step();
    }
    if (below(2)) take_events();
    if (e->attached && e->at.flow) check_flow(e);
    steps++;
}

static void run_quiet(void)
{
    do {
        deliver();
        while (step()) take_events();
        deliver();
        take_events();
    } while (step());
}

/* What was sent arrives, when it is asked for. */
static void drain(void)
{
    for (int turn = 0; turn < 4000 && !wrong[0]; turn++) {
        bool all = true;
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < n_conns; i++) {
                struct end *e = &sides[k].end[i];
                if (e->lent) view(e);
                if (e->got == peer_of(e)->sent) continue;
                all = false;
                take(e);
                post(e, true);
            }
        run_quiet();
        /* One that waits for all of its bytes gives up what it has. */
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < n_conns; i++)
                for (uint32_t r = 0; r < SLOTS; r++) cancel(&sides[k].end[i], r);
        take_events();
        if (all) return;
    }
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n_conns; i++)
            wrong_if(sides[k].end[i].got != peer_of(&sides[k].end[i])->sent,
                     "deadlock: connection %d to side %d: %llu of %llu arrived", i, k,
                     (unsigned long long)sides[k].end[i].got, (unsigned long long)peer_of(&sides[k].end[i])->sent);
}

static void end_in_order(void)
{
    over = true;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n_conns; i++) {
            if (below(2)) exsi_engine_smcr.shutdown_send(&sides[k].end[i].at);
            if (below(2)) run_quiet();
        }
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n_conns; i++) {
            struct end *e = &sides[k].end[i];
            e->closed = true;
            exsi_engine_smcr.shutdown_send(&e->at);
            exsi_engine_smcr.shutdown_recv(&e->at);
            if (below(2)) run_quiet();
        }
    run_quiet();
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n_conns; i++) {
            struct end *e = &sides[k].end[i];
            wrong_if(e->at.error, "a close in order ended with %d", e->at.error);
            wrong_if(!(exsi_engine_smcr.ready(&e->at) & EXSI_CHANGE_FIN_ACKED),
                     "connection %d, side %d: the ends were not exchanged, ready %x, peer %x", i, k,
                     exsi_engine_smcr.ready(&e->at), exsi_engine_smcr.ready(&peer_of(e)->at));
            exsi_engine_smcr.disconnect(&e->at);
        }
}

/* One side aborts some; the others go on. */
static void end_untidy(void)
{
    over = true;
    for (int i = 0; i < n_conns; i++) {
        struct end *e = &sides[below(2)].end[i];
        exsi_engine_smcr.abort(&e->at, ECONNABORTED, "the test");
        e->closed = true;
        if (below(2)) run_quiet();
    }
    if (below(3) == 0) exsi_ep_fail(sides[below(2)].ep, ECONNABORTED, "the test ends the link");
    run_quiet();
    if (sides[0].ep->state >= EXSI_EP_FAILING) return;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n_conns; i++)
            wrong_if(!sides[k].end[i].at.error, "an abort left side %d of connection %d alone", k, i);
}

static void finish(void)
{
    for (int k = 0; k < 2 && !wrong[0]; k++)
        for (int i = 0; i < n_conns; i++) {
            struct end *e = &sides[k].end[i];
            wrong_if(e->busy, "%u operations never ended", e->busy);
            wrong_if(!(exsi_engine_smcr.ready(&e->at) & EXSI_CHANGE_DEAD), "connection %d of side %d is not dead", i,
                     k);
            if (wrong[0]) return;
            if (e->lent) must(exsi_smcr_lend_over(&e->at, 0) == 0);
            staged += ((const struct smcr_flow *)e->at.flow)->stage.in;
            exsi_ep_detach(&e->at);
        }
    for (int k = 0; k < 2; k++) {
        exsi_ep_disconnected(sides[k].ep, ECONNABORTED);
        exsi_ep_free(sides[k].ep);
        sim_device(sim)->ops->dereg_mr(sim_device(sim), sides[k].dmr);
    }
    exsi_group_reap(group);
    errands(); /* regions end */
}

static bool episode(uint64_t seed)
{
    rng = seed;
    begin(sim_next(&rng));
    uint32_t n = 200 + below(3000);
    for (uint32_t i = 0; i < n && !wrong[0] && !sim_violation(sim); i++) act();
    if (!wrong[0] && !sim_violation(sim)) {
        if (below(4)) {
            /* The end mark is behind all data, also that which is copied and not written. */
            for (int i = 0; i < n_conns; i++)
                if (below(3) == 0) exsi_engine_smcr.shutdown_send(&sides[below(2)].end[i].at);
            drain();
            if (!wrong[0]) end_in_order();
        } else {
            end_untidy();
        }
    }
    if (!wrong[0] && !sim_violation(sim)) finish();
    return !wrong[0] && !sim_violation(sim);
}

int main(int argc, char **argv)
{
    uint64_t most = argc > 1 ? strtoull(argv[1], NULL, 0) : 200000, n = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 20261128, only = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
    struct sim_options opt = {0};
    must(exsi_ctx_open(&ctx) == 0 && exsi_group_open(ctx, false, &group) == 0);
    ctx->log.threshold = EXSI_LOG_ERROR + 1;
    sim = sim_open(ctx, &opt, 1);
    for (int k = 0; k < 2; k++) {
        must(exsi_eq_open(ctx, NULL, 1024, &sides[k].eq) == 0);
        sides[k].memory = calloc(CONNS, MEMORY);
        must(sides[k].memory);
    }
    bool good = true;
    for (n = only; steps < most && good; n++) {
        uint64_t state = seed * 1000003 + n;
        good = episode(sim_next(&state));
        if (only) break;
    }
    if (!good)
        printf("# %s (seed %llu, episode %llu)\n", wrong[0] ? wrong : sim_violation(sim), (unsigned long long)seed,
               (unsigned long long)(n - !only));
    ok(good, "%llu steps, %llu episodes, %llu events, seed %llu", (unsigned long long)steps, (unsigned long long)n,
       (unsigned long long)events, (unsigned long long)seed);
    ok(only || staged > steps, "%llu bytes were copied", (unsigned long long)staged);
    if (!good) return tap_done();
    for (int k = 0; k < 2; k++) {
        must(exsi_eq_close(sides[k].eq) == 0);
        free(sides[k].memory);
    }
    must(exsi_group_close(group) == 0);
    exsi_ctx_free(ctx);
    return tap_done();
}
