// SPDX-License-Identifier: MIT OR Apache-2.0
/* Operations: exactly one end, everything given back before the event is out. */
#include <string.h>

#include "core/endpoint.h"
#include "core/op.h"
#include "null_device.h"
#include "tap.h"

struct world {
    struct exsi_ctx *ctx;
    struct exsi_group *g;
    struct exsi_eq *eq;
    struct exsi_device *dev;
    struct exsi_stats stats;
    struct exsi_attach attach;
    int finished;
};

static void on_finished(struct exsi_attach *at, struct exsi_op *op)
{
    struct world *w = exsi_container_of(at, struct world, attach);
    w->finished += op->kind;
}

static void open_world(struct world *w)
{
    char reason[EXSI_REASON_MAX];
    memset(w, 0, sizeof *w);
    must(exsi_ctx_open(&w->ctx) == 0 && exsi_group_open(w->ctx, false, &w->g) == 0);
    must(exsi_eq_open(w->ctx, w->g, 2, &w->eq) == 0 && exsi_ctx_device(w->ctx, "null", &w->dev, reason) == 0);
    w->attach.stats = &w->stats;
    w->attach.finished = on_finished;
}

static void close_world(struct world *w)
{
    must(exsi_group_close(w->g) == 0);
    exsi_ctx_free(w->ctx);
    ok(atomic_load(&null_state.registered) == 0, "no registration is left");
}

static struct exsi_op *new_op(struct world *w, enum exsi_op_kind kind, uint64_t cookie)
{
    struct exsi_op *op;
    must(exsi_op_new(w->g, w->eq, kind, cookie, &op) == 0);
    op->attach = &w->attach;
    return op;
}

static void test_finish_delivers_one_event_and_gives_all_back(void)
{
    struct world w;
    struct exsi_list queue;
    struct exsi_event ev[4];
    uint8_t buf[100];
    uint64_t region;
    open_world(&w);
    exsi_list_init(&queue);
    must(exsi_mr_open(w.ctx, buf, sizeof buf, EXSI_MR_READ, &region) == 0);
    struct exsi_op *op = new_op(&w, EXSI_OP_SEND, 42);
    must(exsi_op_pieces(op, 1) == 0);
    op->iov[0] = (struct exsi_iov){.base = buf, .len = sizeof buf};
    must(exsi_mr_get(w.ctx, region, buf, sizeof buf, EXSI_MR_READ, &op->iov[0].mr) == 0);
    exsi_list_append(&queue, &op->node);
    op->event_flags = EXSI_EV_DIRECT;
    op->extra = 7;
    uint64_t handle = op->handle;
    ok(exsi_op_find(w.g, handle) == op, "found by its handle");
    ok(exsi_mr_close(w.ctx, region) == -EBUSY, "its region is in use");
    exsi_op_finish(op, 0, 100);
    ok(exsi_eq_take(w.eq, ev, 4) == 1, "one event");
    ok(ev[0].cookie == 42 && ev[0].value == 100 && ev[0].extra == 7 && ev[0].error == 0, "with its values");
    ok(ev[0].kind == EXSI_OP_SEND && ev[0].flags == EXSI_EV_DIRECT, "kind and flags");
    ok(!exsi_op_find(w.g, handle) && exsi_list_empty(&queue), "the op is gone from everywhere");
    ok(exsi_mr_close(w.ctx, region) == 0, "the region is free");
    ok(atomic_load(&w.stats.bytes_sent) == 100 && atomic_load(&w.stats.operations) == 1, "counted");
    ok(w.finished == EXSI_OP_SEND, "the socket was told");
    close_world(&w);
}

static void test_callers_own_operation_takes_no_queue_event(void)
{
    struct world w;
    struct exsi_event ev;
    open_world(&w);
    struct exsi_op *op = new_op(&w, EXSI_OP_RECV, 5), *other = new_op(&w, EXSI_OP_RECV, 6);
    w.g->caller_op = op;
    exsi_op_finish(other, ECONNRESET, 0);
    ok(!w.g->caller_done, "another op does not end the call");
    exsi_op_finish(op, 0, 9);
    ok(w.g->caller_done && !w.g->caller_op && w.g->caller_event.cookie == 5 && w.g->caller_event.value == 9,
       "the call gets the event");
    ok(exsi_eq_take(w.eq, &ev, 1) == 1 && ev.cookie == 6 && ev.error == ECONNRESET, "the queue has the other's");
    ok(w.eq->reserved == 0, "and no slot is kept");
    ok(atomic_load(&w.stats.bytes_received) == 9, "counted");
    close_world(&w);
}

static void test_refusals_leave_nothing(void)
{
    struct world w;
    struct exsi_op *ops[3];
    struct exsi_block block;
    open_world(&w);
    ok(exsi_op_new(w.g, w.eq, EXSI_OP_POLL, 1, &ops[0]) == 0 && exsi_op_new(w.g, w.eq, EXSI_OP_POLL, 2, &ops[1]) == 0,
       "as many as the queue has slots");
    ok(exsi_op_new(w.g, w.eq, EXSI_OP_POLL, 3, &ops[2]) == -EAGAIN, "and no more");
    ok(exsi_op_new(w.g, NULL, EXSI_OP_CLOSE, 3, &ops[2]) == 0, "one without a queue");
    exsi_op_finish(ops[2], 0, 0);
    exsi_op_drop(ops[0]);
    must(exsi_pool_take(w.ctx, w.dev, 64, &block) == 0);
    exsi_op_stage(ops[1], &block, 64);
    ok(ops[1]->iov[0].base == block.addr && ops[1]->len == 64, "staging");
    exsi_op_drop(ops[1]);
    ok(w.eq->reserved == 0 && exsi_eq_len(w.eq) == 0 && w.g->ops.used == 0, "dropped without an event");
    close_world(&w);
}

static void test_span_walks_the_pieces(void)
{
    struct world w;
    uint8_t a[10], b[20], *at;
    struct exsi_dmr *dmr, da, db;
    bool fragile;
    open_world(&w);
    struct exsi_op *op = new_op(&w, EXSI_OP_SEND, 1);
    must(exsi_op_pieces(op, 3) == 0);
    op->iov[0] = (struct exsi_iov){.base = a, .len = 10, .dmr = &da};
    op->iov[2] = (struct exsi_iov){.base = b, .len = 20, .dmr = &db};
    ok(exsi_op_span(op, 0, &at, &dmr, &fragile) == 10 && at == a && dmr == &da && !fragile, "the first piece");
    ok(exsi_op_span(op, 9, &at, &dmr, &fragile) == 1 && at == a + 9, "its last byte");
    ok(exsi_op_span(op, 10, &at, &dmr, &fragile) == 20 && at == b && dmr == &db, "an empty piece is stepped over");
    ok(exsi_op_span(op, 29, &at, &dmr, &fragile) == 1, "the very last byte");
    ok(exsi_op_span(op, 30, &at, &dmr, &fragile) == 0, "the end");
    exsi_op_drop(op);
    close_world(&w);
}

int main(void)
{
    test_finish_delivers_one_event_and_gives_all_back();
    test_callers_own_operation_takes_no_queue_event();
    test_refusals_leave_nothing();
    test_span_walks_the_pieces();
    return tap_done();
}
