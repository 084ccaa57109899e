// SPDX-License-Identifier: MIT OR Apache-2.0
/* Where small sends of SMC-R wait for their WRITE: a ring of registered memory for each connection that sends any.
 *
 * A send that was copied here is over at once, as on a socket of the kernel, and those that come while WRITEs are on
 * the way share the next one.  Owns the ring and its memory; what of it is written, and when, is smcr_send.c's.
 *
 * in, out and freed are bytes since the beginning: copied, given to the device, completed.
 * Invariants: freed <= out <= in <= freed + size.  What lies between out and in stands in the stream behind all that
 * was posted and before f->unposted.  The memory goes with the flow, so not before its WRITEs are over. */
#include <stdlib.h>

#include "base/copy.h"
#include "engine/smcr_flow.h"

/* A longer send is written from where it lies.  So much is copied in about a microsecond, which no completion beats,
 * and half of the smallest ring has room for it. */
#define SMALL 8192u
/* Enough that the next WRITE is full while one is on the way; a ring of the peer that is smaller takes no more. */
#define STAGE_BYTES 65536u

/* Memory is registered without the group's lock, which the first small send holds: that one goes without. */
struct smcr_stage_errand {
    struct exsi_errand errand;
    struct smcr_flow *flow; /* NULL: it is gone */
    struct exsi_device *dev;
    uint32_t size;
};

static bool is_small(const struct exsi_op *op)
{
    return op->len > 0 && op->len <= SMALL && !(op->flags & EXSI_OPF_URGENT) && !op->e.send.posted;
}

bool smcr_waits_for_stage(const struct smcr_flow *f, const struct exsi_op *op)
{
    return f->stage.size && !op->e.send.direct && is_small(op);
}

uint32_t smcr_stage_room(const struct smcr_flow *f)
{
    const struct smcr_stage *s = &f->stage;
    assert(s->freed <= s->out && s->out <= s->in && s->in - s->freed <= s->size);
    return s->size - (uint32_t)(s->in - s->freed);
}

/* --- memory ------------------------------------------------------------------------------------------------ */

static void run(struct exsi_errand *e, struct exsi_group *g)
{
    struct smcr_stage_errand *u = exsi_container_of(e, struct smcr_stage_errand, errand);
    struct exsi_block block = {0};
    int rc = exsi_pool_take(g->ctx, u->dev, u->size, &block);
    exsi_group_lock(g);
    struct smcr_flow *f = u->flow;
    if (f) f->stage.errand = NULL;
    if (f && rc == 0) {
        f->stage.block = block;
        f->stage.size = u->size;
        block = (struct exsi_block){0};
    }
    /* Not exsi_group_unlock: what was noted now is for the caller, who looks again. */
    pthread_mutex_unlock(&g->lock);
    exsi_pool_give(&block);
    free(u);
}

/* Once: without memory sends go as they do without. */
static void ask_for_memory(struct smcr_flow *f)
{
    if (f->stage.asked || !f->open) return;
    struct smcr_stage_errand *u = calloc(1, sizeof *u);
    f->stage.asked = true;
    if (!u) return;
    u->flow = f;
    u->dev = f->link->ep->dev;
    u->size = exsi_min_u32(STAGE_BYTES, f->peer_size);
    u->errand.run = run;
    f->stage.errand = u;
    exsi_group_errand(f->link->ep->group, &u->errand);
}

void smcr_stage_fini(struct smcr_flow *f)
{
    if (f->stage.errand) f->stage.errand->flow = NULL;
    exsi_pool_give(&f->stage.block);
}

/* --- in and out ---------------------------------------------------------------------------------------------- */

/* All bytes of the operation, which may lie in pieces, behind those that are staged; the ring may end among them. */
static bool copy_in(struct smcr_flow *f, const struct exsi_op *op)
{
    struct smcr_stage *s = &f->stage;
    uint64_t off = 0;
    while (off < op->len) {
        uint8_t *src;
        struct exsi_dmr *dmr;
        bool fragile;
        size_t n = exsi_op_span(op, off, &src, &dmr, &fragile);
        uint32_t at = (uint32_t)((s->in + off) & (s->size - 1));
        n = exsi_min_u64(n, s->size - at);
        assert(n > 0);
        if (exsi_copy(s->block.addr + at, src, n, fragile) < 0) return false;
        off += n;
    }
    return true;
}

bool smcr_stage_op(struct smcr_flow *f, struct exsi_op *op)
{
    if (!is_small(op)) return false;
    if (!f->stage.size) ask_for_memory(f);
    if (!smcr_waits_for_stage(f, op) || op->len > smcr_stage_room(f)) return false;
    if (!copy_in(f, op)) {
        op->e.send.direct = true; /* the device finds out what is wrong with its memory */
        return false;
    }
    if (f->at) exsi_count(f->at->stats, bytes_copied, op->len);
    f->stage.in += op->len;
    op->done = op->e.send.posted = op->len;
    return true;
}

uint32_t smcr_stage_span(const struct smcr_flow *f, uint8_t **src, struct exsi_dmr **dmr)
{
    const struct smcr_stage *s = &f->stage;
    uint32_t at = (uint32_t)(s->out & (s->size - 1));
    *src = s->block.addr + at;
    *dmr = s->block.dmr;
    return exsi_min_u32(smcr_staged(f), s->size - at);
}

void smcr_stage_sent(struct smcr_flow *f, uint32_t n)
{
    assert(n <= smcr_staged(f));
    f->stage.out += n;
}

void smcr_stage_done(struct smcr_flow *f, uint32_t n)
{
    assert(n <= f->stage.out - f->stage.freed);
    f->stage.freed += n;
}

uint32_t smcr_stage_drop(struct smcr_flow *f)
{
    uint32_t n = smcr_staged(f);
    f->stage.in = f->stage.out;
    return n;
}

bool smcr_stage_is_due(const struct smcr_flow *f)
{
    return smcr_staged(f) >= f->stage.size / 2;
}
