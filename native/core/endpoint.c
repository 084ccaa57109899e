// SPDX-License-Identifier: MIT OR Apache-2.0
/* One queue pair with its receives, its send budget and its end (core/endpoint.h).
 *
 * Owns the receive slots and the ring's memory, the account of posted sends, and the order of death: first error,
 * abort, DISCONNECTED, engine->on_error once.  Knows no message.
 *
 * The account: every signalled request pushes onto sq_fifo how many requests its completion retires,
 * itself and the unsignalled ones since the last signalled; requests complete in posting order, so a
 * completion pops the oldest entry.  Invariant: sq_used = sum(sq_fifo) + sq_unsignalled. */
#include "core/endpoint.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine_table.h"

/* wr_id of requests that no engine asked about (SENDs, notices without data). */
#define WR_OWN UINT64_MAX
/* Those whose source is a block of ours. */
#define WR_BLOCK (UINT64_MAX - 1)
/* Longest message that can be received: control messages of every engine are far shorter. */
#define MAX_SLOT  256
#define MAX_SPILL 8192

/* A message on its way out that stands in a block of the pool. */
struct sent_block {
    struct exsi_list node; /* endpoint->blocks */
    struct exsi_block block;
};

/* Its own memory file: on one host the peer may fill it itself, while we compute.  A peer may keep it mapped for
 * longer than the connection lasts, so no ring serves a second one. */
static int make_ring(struct exsi_ctx *ctx, struct exsi_device *dev, size_t len, struct exsi_ep_memory *m)
{
    uint64_t handle;
    void *addr;
    uint32_t flags = EXSI_MR_READ | EXSI_MR_WRITE | EXSI_MR_ONE_PEER | EXSI_MR_MAPPED;
    EXSI_TRY(exsi_mr_allocate(ctx, len, flags, &handle, &addr));
    int rc = exsi_mr_get(ctx, handle, addr, len, EXSI_MR_WRITE, &m->ring_mr);
    int closed = exsi_mr_close_later(ctx, handle);
    if (rc == 0) rc = closed;
    if (rc == 0) rc = exsi_mr_on(ctx, m->ring_mr, dev, &m->ring_dmr);
    if (rc == 0)
        m->ring = addr;
    else if (m->ring_mr)
        exsi_mr_put(ctx, m->ring_mr);
    return rc;
}

int exsi_ep_memory_new(struct exsi_ctx *ctx, struct exsi_device *dev, const struct exsi_ep_attr *attr,
                       struct exsi_ep_memory *out)
{
    *out = (struct exsi_ep_memory){0};
    EXSI_TRY(exsi_pool_take(ctx, dev, (size_t)attr->recv_slots * attr->recv_slot_len, &out->slots));
    int rc = attr->ring_len ? make_ring(ctx, dev, attr->ring_len, out) : 0;
    if (rc == 0 && attr->spill_len) rc = exsi_pool_take(ctx, dev, attr->spill_len, &out->spill);
    if (rc < 0) {
        exsi_pool_give(&out->slots);
        if (out->ring_mr) exsi_mr_put(ctx, out->ring_mr);
        *out = (struct exsi_ep_memory){0};
    }
    return rc;
}

void exsi_ep_memory_drop(struct exsi_group *g, struct exsi_ep_memory *m)
{
    exsi_pool_give(&m->slots);
    exsi_pool_give(&m->spill);
    if (m->ring_mr) exsi_mr_put_in(g, m->ring_mr);
    *m = (struct exsi_ep_memory){0};
}

int exsi_ep_new(struct exsi_group *g, struct exsi_device *dev, const struct exsi_engine_ops *engine,
                const struct exsi_ep_attr *attr, struct exsi_ep_memory *memory, struct exsi_stats *stats,
                struct exsi_endpoint **out)
{
    assert(attr->recv_slots > 0 && attr->recv_slot_len <= MAX_SLOT && attr->send_wr >= 4);
    assert(attr->spill_len <= MAX_SPILL);
    int rc = -ENOMEM;
    struct exsi_endpoint *ep = calloc(1, sizeof *ep);
    if (!ep) goto fail;
    ep->group = g;
    ep->dev = dev;
    ep->ops = dev->ops;
    ep->engine = engine;
    ep->attr = *attr;
    ep->stats = stats;
    exsi_list_init(&ep->dirty_node);
    exsi_list_init(&ep->attached);
    exsi_list_init(&ep->blocks);
    rc = exsi_group_part(g, dev, &ep->part);
    if (rc < 0) goto fail;
    rc = -ENOMEM;
    ep->sq_fifo = malloc(attr->send_wr * sizeof *ep->sq_fifo);
    if (!ep->sq_fifo) goto fail;
    ep->memory = *memory;
    exsi_list_init(&ep->group_node);
    exsi_list_append(&g->endpoints, &ep->group_node);
    *out = ep;
    return 0;
fail:
    exsi_ep_memory_drop(g, memory);
    free(ep);
    return rc;
}

static uint8_t *slot_at(const struct exsi_endpoint *ep, uint32_t slot)
{
    return ep->memory.slots.addr + (size_t)slot * ep->attr.recv_slot_len;
}

static int post_slot(struct exsi_endpoint *ep, uint32_t slot)
{
    struct exsi_recv_wr wr = {
        .wr_id = slot,
        .sge = {slot_at(ep, slot), ep->attr.recv_slot_len, ep->memory.slots.dmr},
    };
    if (ep->attr.spill_len)
        wr.spill = (struct exsi_sge){ep->memory.spill.addr, ep->attr.spill_len, ep->memory.spill.dmr};
    return ep->ops->post_recv(ep->qp, &wr, 1);
}

int exsi_ep_make_qp(struct exsi_endpoint *ep, struct exsi_cm_id *id)
{
    struct exsi_qp_attr attr = {
        .send_wr = ep->attr.send_wr,
        .recv_wr = ep->attr.recv_slots,
        .max_recv_len = ep->attr.spill_len ? ep->attr.spill_len : ep->attr.recv_slot_len,
        .max_keys = ep->attr.max_keys,
        .strict_keys = ep->attr.strict_keys,
        .gid = ep->attr.gid,
        .user = ep,
        .stats = ep->stats,
        .log_id = ep->log_id,
    };
    struct exsi_qp_info info = {0};
    ep->attr.gid = NULL;
    EXSI_TRY(ep->ops->qp_create(ep->part, id, &attr, &ep->qp));
    ep->ops->qp_query(ep->qp, &info);
    ep->key_per_range = info.key_per_range;
    for (uint32_t i = 0; i < ep->attr.recv_slots; i++) {
        int rc = post_slot(ep, i);
        if (rc < 0) {
            ep->ops->qp_destroy(ep->qp);
            ep->qp = NULL;
            return rc;
        }
    }
    ep->cm = id;
    ep->state = EXSI_EP_READY;
    return 0;
}

int exsi_ep_open_engine(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg)
{
    EXSI_TRY(ep->engine->ep_open(ep, cfg));
    ep->opened = true;
    return 0;
}

void exsi_ep_up(struct exsi_endpoint *ep)
{
    if (ep->state != EXSI_EP_READY) return;
    ep->state = EXSI_EP_UP;
    ep->engine->on_up(ep);
}

void exsi_ep_free(struct exsi_endpoint *ep)
{
    assert(exsi_list_empty(&ep->attached));
    ep->state = EXSI_EP_DEAD;
    if (ep->qp) ep->ops->qp_destroy(ep->qp);
    if (ep->cm) ep->ops->cm_destroy(ep->cm);
    ep->qp = NULL;
    ep->cm = NULL;
    /* After the queue pair: its keys bar the regions behind them from going. */
    if (ep->opened) ep->engine->ep_close(ep);
    ep->opened = false;
    exsi_list_unlink(&ep->dirty_node);
    exsi_list_unlink(&ep->group_node);
    exsi_list_append(&ep->group->dead, &ep->group_node);
}

/* The oldest of _send_block is out. */
static void end_block(struct exsi_endpoint *ep)
{
    struct sent_block *b = exsi_list_first(&ep->blocks, struct sent_block, node);
    exsi_list_unlink(&b->node);
    exsi_pool_give(&b->block);
    free(b);
}

void exsi_group_reap(struct exsi_group *g)
{
    exsi_list_for_safe (ep, &g->dead, struct exsi_endpoint, group_node) {
        exsi_list_unlink(&ep->group_node);
        while (!exsi_list_empty(&ep->blocks)) end_block(ep);
        exsi_ep_memory_drop(g, &ep->memory);
        free(ep->sq_fifo);
        free(ep);
    }
}

int exsi_ep_attach(struct exsi_endpoint *ep, struct exsi_attach *at)
{
    at->ep = ep;
    int rc = ep->engine->attach(at);
    if (rc < 0) {
        at->ep = NULL;
        return rc;
    }
    exsi_list_append(&ep->attached, &at->node);
    return 0;
}

void exsi_ep_detach(struct exsi_attach *at)
{
    if (!at->ep) return;
    at->ep->engine->detach(at);
    exsi_list_unlink(&at->node);
    at->ep = NULL;
}

/* --- sending ------------------------------------------------------------------------------- */

bool exsi_ep_room(struct exsi_endpoint *ep, uint32_t n)
{
    if (ep->attr.send_wr - ep->sq_used >= n) return true;
    ep->room_wanted = true;
    return false;
}

uint32_t exsi_ep_write_cost(const struct exsi_endpoint *ep)
{
    return ep->immediate ? 1 : 2;
}

static bool can_post(const struct exsi_endpoint *ep)
{
    return ep->qp && !ep->shut && (ep->state == EXSI_EP_UP || ep->state == EXSI_EP_READY);
}

/* Account for one posted request. */
static void sq_charge(struct exsi_endpoint *ep, bool signalled)
{
    ep->sq_used++;
    if (!signalled) {
        ep->sq_unsignalled++;
        return;
    }
    uint32_t at = ep->sq_fifo_head + ep->sq_fifo_len++;
    if (at >= ep->attr.send_wr) at -= ep->attr.send_wr;
    ep->sq_fifo[at] = (uint16_t)(ep->sq_unsignalled + 1);
    ep->sq_unsignalled = 0;
}

/* A signalled request completed. */
static void sq_retire(struct exsi_endpoint *ep)
{
    assert(ep->sq_fifo_len > 0);
    ep->sq_used -= ep->sq_fifo[ep->sq_fifo_head];
    if (++ep->sq_fifo_head == ep->attr.send_wr) ep->sq_fifo_head = 0;
    ep->sq_fifo_len--;
}

/* Every quarter of the queue one of our own requests is signalled, so that room comes back. */
static bool sq_sign_own(const struct exsi_endpoint *ep, uint32_t before)
{
    return ep->sq_unsignalled + before + 1 >= ep->attr.send_wr / 4;
}

static void mark_dirty(struct exsi_endpoint *ep)
{
    if (exsi_list_empty(&ep->dirty_node)) exsi_list_append(&ep->group->dirty, &ep->dirty_node);
}

void exsi_ep_touch(struct exsi_endpoint *ep)
{
    mark_dirty(ep);
}

/* The account is only charged for what the device took. */
static int post(struct exsi_endpoint *ep, const struct exsi_send_wr *wr, int n)
{
    int rc = ep->ops->post_send(ep->qp, wr, n);
    if (rc < 0) {
        exsi_ep_fail(ep, -rc, "the device refused a work request");
        return rc;
    }
    for (int i = 0; i < n; i++) sq_charge(ep, wr[i].flags & EXSI_WR_SIGNALED);
    mark_dirty(ep);
    return 0;
}

static void fill_own(struct exsi_send_wr *wr, enum exsi_wr_op op, bool signalled)
{
    wr->wr_id = WR_OWN;
    wr->op = op;
    wr->flags = signalled ? EXSI_WR_SIGNALED : 0;
    wr->num_sge = 0;
    wr->rkey = 0;
    wr->imm = 0;
    wr->raddr = 0;
}

static void fill_inline(struct exsi_send_wr *wr, const void *data, uint32_t len)
{
    wr->flags |= EXSI_WR_INLINE;
    wr->num_sge = 1;
    wr->sge[0].addr = (void *)(uintptr_t)data;
    wr->sge[0].len = len;
    wr->sge[0].mr = NULL;
}

int exsi_ep_send(struct exsi_endpoint *ep, const void *data, uint32_t len, bool solicited)
{
    if (!can_post(ep)) return -EPIPE;
    if (len > ep->dev->caps.max_inline) return -EMSGSIZE;
    struct exsi_send_wr wr;
    fill_own(&wr, EXSI_WR_SEND, sq_sign_own(ep, 0));
    fill_inline(&wr, data, len);
    if (solicited) wr.flags |= EXSI_WR_SOLICITED;
    return post(ep, &wr, 1);
}

int exsi_ep_send_block(struct exsi_endpoint *ep, struct exsi_block *block, uint32_t len, bool solicited)
{
    struct sent_block *b = can_post(ep) ? calloc(1, sizeof *b) : NULL;
    if (!b) {
        exsi_pool_give(block);
        return can_post(ep) ? -ENOMEM : -EPIPE;
    }
    b->block = *block;
    *block = (struct exsi_block){0};
    exsi_list_init(&b->node);
    exsi_list_append(&ep->blocks, &b->node);
    struct exsi_send_wr wr = {.wr_id = WR_BLOCK,
                              .op = EXSI_WR_SEND,
                              .flags = EXSI_WR_SIGNALED | (solicited ? EXSI_WR_SOLICITED : 0),
                              .num_sge = 1,
                              .sge[0] = {b->block.addr, len, b->block.dmr}};
    return post(ep, &wr, 1);
}

static void fill_write(struct exsi_send_wr *wr, uint64_t wr_id, const void *src, uint32_t len, struct exsi_dmr *mr,
                       uint64_t raddr, uint32_t rkey)
{
    wr->wr_id = wr_id;
    wr->op = EXSI_WR_WRITE;
    wr->flags = EXSI_WR_SIGNALED;
    wr->num_sge = 1;
    wr->rkey = rkey;
    wr->imm = 0;
    wr->raddr = raddr;
    wr->sge[0].addr = (void *)(uintptr_t)src;
    wr->sge[0].len = len;
    wr->sge[0].mr = mr;
}

int exsi_ep_write(struct exsi_endpoint *ep, uint64_t wr_id, const void *src, uint32_t len, struct exsi_dmr *mr,
                  uint64_t raddr, uint32_t rkey, uint32_t word)
{
    if (!can_post(ep)) return -EPIPE;
    struct exsi_send_wr wr[2];
    if (ep->immediate) {
        if (len)
            fill_write(wr, wr_id, src, len, mr, raddr, rkey);
        else
            fill_own(wr, EXSI_WR_WRITE_IMM, sq_sign_own(ep, 0));
        wr[0].op = EXSI_WR_WRITE_IMM;
        wr[0].imm = word;
        return post(ep, wr, 1);
    }
    exsi_be32 notice = exsi_put32(word);
    struct exsi_send_wr *send = wr;
    if (len) fill_write(send++, wr_id, src, len, mr, raddr, rkey);
    /* Behind a WRITE, which is signalled, the count starts anew. */
    fill_own(send, EXSI_WR_SEND, len ? ep->attr.send_wr / 4 <= 1 : sq_sign_own(ep, 0));
    fill_inline(send, &notice, sizeof notice);
    return post(ep, wr, len ? 2 : 1);
}

int exsi_ep_write_silent(struct exsi_endpoint *ep, uint64_t wr_id, const void *src, uint32_t len, struct exsi_dmr *mr,
                         uint64_t raddr, uint32_t rkey)
{
    if (!can_post(ep)) return -EPIPE;
    struct exsi_send_wr wr;
    fill_write(&wr, wr_id, src, len, mr, raddr, rkey);
    return post(ep, &wr, 1);
}

int exsi_ep_key_bind(struct exsi_endpoint *ep, struct exsi_dmr *mr, void *addr, size_t len, uint32_t *rkey)
{
    if (!ep->qp) return -EPIPE;
    EXSI_TRY(ep->ops->key_bind(ep->qp, mr, addr, len, rkey));
    mark_dirty(ep);
    return 0;
}

int exsi_ep_key_invalidate(struct exsi_endpoint *ep, uint32_t rkey, uint64_t wr_id)
{
    if (!ep->qp) return 0;
    int rc = ep->ops->key_invalidate(ep->qp, rkey, wr_id);
    if (rc > 0) mark_dirty(ep);
    return rc;
}

void exsi_group_flush(struct exsi_group *g)
{
    struct exsi_endpoint *ep;
    while ((ep = exsi_list_first(&g->dirty, struct exsi_endpoint, dirty_node))) {
        if (ep->opened) ep->engine->before_flush(ep);
        exsi_list_unlink(&ep->dirty_node);
        if (ep->qp) ep->ops->qp_flush(ep->qp);
    }
}

/* --- completions ----------------------------------------------------------------------------- */

/* One that is longer than its slot, put together.  All receives share the buffer of the rest: a peer that has two
 * such messages on the way spoils both, and nothing else. */
static void received_long(struct exsi_endpoint *ep, const struct exsi_wc *wc)
{
    uint8_t copy[MAX_SPILL];
    uint32_t slot = (uint32_t)wc->wr_id, own = ep->attr.recv_slot_len;
    uint32_t len = exsi_min_u32(wc->byte_len, ep->attr.spill_len);
    memcpy(copy, slot_at(ep, slot), own);
    memcpy(copy + own, ep->memory.spill.addr + own, len - own);
    int rc = post_slot(ep, slot);
    if (rc < 0)
        exsi_ep_fail(ep, -rc, "a receive could not be posted again");
    else
        ep->engine->on_recv(ep, copy, len, NULL);
}

/* The copy is what makes the slot free before the engine sees the message. */
static void received(struct exsi_endpoint *ep, const struct exsi_wc *wc)
{
    uint8_t copy[MAX_SLOT];
    uint32_t slot = (uint32_t)wc->wr_id, len = 0;
    if (wc->op == EXSI_WC_RECV && ep->attr.spill_len && wc->byte_len > ep->attr.recv_slot_len) {
        received_long(ep, wc);
        return;
    }
    if (wc->op == EXSI_WC_RECV) {
        len = exsi_min_u32(wc->byte_len, ep->attr.recv_slot_len);
        memcpy(copy, slot_at(ep, slot), len);
    }
    int rc = post_slot(ep, slot);
    if (rc < 0) {
        exsi_ep_fail(ep, -rc, "a receive could not be posted again");
        return;
    }
    ep->engine->on_recv(ep, copy, len, wc->op == EXSI_WC_RECV_IMM ? &wc->imm : NULL);
}

static void sent(struct exsi_endpoint *ep, const struct exsi_wc *wc)
{
    /* After an error also unsignalled requests complete, and the account means nothing any more. */
    if (wc->error == 0 && ep->state < EXSI_EP_FAILING) sq_retire(ep);
    if (wc->wr_id == WR_BLOCK) end_block(ep);
    if (wc->op != EXSI_WC_SEND && wc->wr_id != WR_OWN) ep->engine->on_write_done(ep, wc->wr_id, wc->error);
    if (ep->room_wanted && ep->state < EXSI_EP_FAILING) {
        ep->room_wanted = false;
        ep->engine->on_room(ep);
    }
}

void exsi_ep_completion(struct exsi_endpoint *ep, const struct exsi_wc *wc)
{
    if (ep->state == EXSI_EP_DEAD) return;
    /* ECANCELED is a flush: the error that caused it is told elsewhere, by DISCONNECTED at the latest. */
    if (wc->error != 0 && wc->error != ECANCELED)
        exsi_ep_fail(ep, wc->error, "work request failed, device status %u", wc->vendor);
    switch (wc->op) {
    case EXSI_WC_RECV:
    case EXSI_WC_RECV_IMM:
        if (wc->error == 0 && ep->state < EXSI_EP_FAILING) received(ep, wc);
        break;
    case EXSI_WC_SEND:
    case EXSI_WC_WRITE:
    case EXSI_WC_READ: sent(ep, wc); break;
    case EXSI_WC_INVALIDATE:
        if (wc->error == 0) ep->engine->on_invalidated(ep, wc->wr_id);
        break;
    }
}

void exsi_ep_disconnect(struct exsi_endpoint *ep)
{
    if (ep->shut || ep->state >= EXSI_EP_FAILING) return;
    ep->shut = true;
    if (ep->cm) ep->ops->cm_disconnect(ep->cm);
}

void exsi_ep_fail(struct exsi_endpoint *ep, int error, const char *fmt, ...)
{
    if (ep->state >= EXSI_EP_FAILING) return;
    char text[EXSI_LOG_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    ep->error = error;
    snprintf(ep->reason, sizeof ep->reason, "%.*s", EXSI_REASON_MAX - 1, text);
    ep->state = EXSI_EP_FAILING;
    exsi_log(&ep->group->ctx->log, error == ECONNABORTED ? EXSI_LOG_DEBUG : EXSI_LOG_WARNING, ep->log_id,
             "connection ends: %s (errno %d)", text, error);
    if (ep->qp) ep->ops->qp_abort(ep->qp);
}

void exsi_ep_disconnected(struct exsi_endpoint *ep, int error)
{
    if (ep->state == EXSI_EP_DEAD) return;
    if (ep->error == 0) ep->error = error;
    ep->state = EXSI_EP_DEAD;
    /* Before the operations end: its keys bar their regions from going, and the peer is told at once. */
    if (ep->qp) ep->ops->qp_destroy(ep->qp);
    ep->qp = NULL;
    if (ep->opened) ep->engine->on_error(ep);
}
