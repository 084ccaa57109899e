// SPDX-License-Identifier: MIT OR Apache-2.0
/* One started operation: made by a post, ended exactly once.
 * Invariant: while an op is in group->ops it holds one slot of its queue, one use of the region of every
 * piece, and its staging memory; end_op gives back all of it but the slot, which goes with the event. */
#include "core/op.h"

#include <stdlib.h>
#include <string.h>

#include "core/endpoint.h"

int exsi_op_new(struct exsi_group *g, struct exsi_eq *eq, enum exsi_op_kind kind, uint64_t cookie, struct exsi_op **out)
{
    if (eq) EXSI_TRY(exsi_eq_reserve(eq));
    uint64_t handle;
    struct exsi_op *op = exsi_slab_take(&g->ops, &handle);
    if (!op) {
        if (eq) exsi_eq_unreserve(eq);
        return -ENOMEM;
    }
    exsi_list_init(&op->node);
    op->group = g;
    op->eq = eq;
    op->handle = handle;
    op->cookie = cookie;
    op->kind = (uint8_t)kind;
    op->iov = &op->iov1;
    *out = op;
    return 0;
}

int exsi_op_pieces(struct exsi_op *op, uint32_t n)
{
    assert(op->iov == &op->iov1 && op->n_iov == 0);
    if (n > 1) {
        struct exsi_iov *iov = calloc(n, sizeof *iov);
        if (!iov) return -ENOMEM;
        op->iov = iov;
    }
    op->n_iov = n;
    return 0;
}

void exsi_op_stage(struct exsi_op *op, const struct exsi_block *block, size_t len)
{
    assert(!op->staging.addr && op->iov == &op->iov1);
    op->staging = *block;
    op->iov1 = (struct exsi_iov){.base = block->addr, .len = len, .dmr = block->dmr};
    op->n_iov = 1;
    op->len = len;
}

/* Everything but the queue slot and the event. */
static void end_op(struct exsi_op *op)
{
    exsi_list_unlink(&op->node);
    for (uint32_t i = 0; i < op->n_iov; i++)
        if (op->iov[i].mr) exsi_mr_put_in(op->group, op->iov[i].mr);
    if (op->iov != &op->iov1) free(op->iov);
    exsi_pool_give(&op->staging);
    exsi_slab_give(&op->group->ops, op->handle);
}

void exsi_op_drop(struct exsi_op *op)
{
    struct exsi_eq *eq = op->eq;
    if (op->group->caller_op == op) op->group->caller_op = NULL;
    end_op(op);
    if (eq) exsi_eq_unreserve(eq);
}

static void count_op(const struct exsi_op *op, uint64_t value)
{
    if (!op->attach || !op->attach->stats) return;
    exsi_count(op->attach->stats, operations, 1);
    if (op->kind == EXSI_OP_SEND) exsi_count(op->attach->stats, bytes_sent, value);
    if (op->kind == EXSI_OP_RECV) exsi_count(op->attach->stats, bytes_received, value);
}

/* ES-API I12 */
void exsi_op_finish(struct exsi_op *op, int error, uint64_t value)
{
    assert(error >= 0);
    struct exsi_group *g = op->group;
    struct exsi_eq *eq = op->eq;
    bool of_caller = g->caller_op == op;
    op->error = error;
    if (op->kind == EXSI_OP_RECV) op->done = value;
    count_op(op, value);
    if (op->attach && op->attach->finished) op->attach->finished(op->attach, op);
    struct exsi_event ev = {.cookie = op->cookie,
                            .value = value,
                            .extra = op->extra,
                            .error = op->error,
                            .kind = op->kind,
                            .flags = op->event_flags};
    /* Before the event is out: its reader may close the region or the queue at once. */
    end_op(op);
    if (of_caller) {
        g->caller_op = NULL;
        g->caller_event = ev;
        g->caller_done = true;
        if (eq) exsi_eq_unreserve(eq);
    } else if (eq) {
        exsi_eq_push(eq, &ev);
    }
}

size_t exsi_op_span(const struct exsi_op *op, uint64_t off, uint8_t **ptr, struct exsi_dmr **dmr, bool *fragile)
{
    for (uint32_t i = 0; i < op->n_iov; i++) {
        const struct exsi_iov *v = &op->iov[i];
        if (off < v->len) {
            *ptr = v->base + off;
            *dmr = v->dmr;
            *fragile = v->mr && v->mr->mem.fragile;
            return v->len - (size_t)off;
        }
        off -= v->len;
    }
    return 0;
}

struct exsi_op *exsi_op_find(struct exsi_group *g, uint64_t handle)
{
    return exsi_slab_find(&g->ops, handle);
}
