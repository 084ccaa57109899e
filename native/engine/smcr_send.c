// SPDX-License-Identifier: MIT OR Apache-2.0
/* The sending half of SMC-R: WRITEs into the peer's ring, from where the caller's bytes lie or, of small sends, from
 * the staging ring (smcr_stage.c), and the CDC message behind them, without which they do not exist for the peer.
 *
 * Who may send stands in link->ready and has its turn there: a few WRITEs and one CDC message, then the next.  So
 * connections share the link's send queue, and whatever one has to say while there is no room goes into one message.
 * What is staged goes at once, unless staged bytes are on the way: then it waits for their completion, and for company,
 * as long as nothing stands behind it.
 * Invariant: put - freed never exceeds the peer's ring; a completed WRITE is the oldest of link->writes. */
#include "engine/smcr_flow.h"

/* WRITEs of one turn; with nobody else waiting, more of them share a CDC message. */
#define TURN_WRITES  4u
#define ALONE_WRITES 16u
/* So long no send may complete while others wait for room. */
#define STUCK_NS 10000000000u

static bool has_room(struct exsi_smcr *l, uint32_t n)
{
    if (exsi_ep_room(l->ep, n)) return true;
    if (exsi_timer_running(&l->stuck_timer)) return false;
    if (exsi_timer_start(&l->ep->group->poller, &l->stuck_timer, STUCK_NS) < 0)
        exsi_ep_fail(l->ep, ENOMEM, "no memory for a timer");
    return false;
}

void smcr_want(struct smcr_flow *f)
{
    if (exsi_list_empty(&f->ready_node)) exsi_list_append(&f->link->ready, &f->ready_node);
    exsi_ep_touch(f->link->ep);
}

static uint32_t space(const struct smcr_flow *f)
{
    return f->open ? exsi_smc_free(f->put, f->freed, f->peer_size) : 0;
}

static bool may_write(const struct smcr_flow *f)
{
    return f->open && !f->over && !f->urgent_hold && !((f->said | f->heard) & SMCR_FINAL) && space(f) > 0;
}

bool smcr_is_writable(struct smcr_flow *f)
{
    if (f->broken || f->over) return true; /* a send does not wait, it is refused */
    if (f->fin_wanted || f->unposted || !f->open || (f->said | f->heard) & SMCR_FINAL) return false;
    return smcr_stage_room(f) > 0 || (may_write(f) && !smcr_staged(f));
}

/* What is staged waits, for the completion that is on its way. */
static bool is_held(const struct smcr_flow *f)
{
    return smcr_staged(f) && smcr_stage_is_away(f) && !f->cdc_due && !smcr_stage_is_due(f) &&
           (!f->unposted || smcr_waits_for_stage(f, f->unposted));
}

/* --- one turn ------------------------------------------------------------------------------------------ */

uint8_t smcr_producer_flags(const struct smcr_flow *f)
{
    uint8_t flags = 0;
    if (f->unsent >= space(f)) flags |= EXSI_SMC_WRITER_BLOCKED;
    if (f->urgents || f->urgent_now) flags |= EXSI_SMC_URGENT_PENDING;
    if (f->urgent_now) flags |= EXSI_SMC_URGENT_PRESENT;
    return flags;
}

static void send_cdc(struct smcr_flow *f)
{
    uint8_t wire[EXSI_SMC_MESSAGE_LEN];
    struct exsi_smc_cdc c = {.seq = (uint16_t)(f->seq_out + 1),
                             .token = f->peer_token,
                             .producer = f->put,
                             .consumer = f->taken,
                             .producer_flags = smcr_producer_flags(f)};
    uint8_t flags = smcr_end_flags(f);
    c.connection_flags = f->said | flags;
    exsi_smc_cdc_encode(&c, wire);
    if (exsi_ep_send(f->link->ep, wire, sizeof wire, true) < 0) return;
    f->seq_out = c.seq;
    f->said = c.connection_flags;
    f->told = f->taken;
    f->cdc_due = f->urgent_passed = f->urgent_now = false;
    if (f->said & EXSI_SMC_ABORT) f->abort = false;
    f->link->cdc_out++;
}

/* The oldest that was not begun is wholly out: on to the next. */
static void posted(struct smcr_flow *f)
{
    struct exsi_op *op = f->unposted;
    f->unposted = exsi_list_after(&f->sends, op, struct exsi_op, node);
    if (!(op->flags & EXSI_OPF_URGENT) || !op->len) return;
    f->urgents--;
    f->urgent_now = f->urgent_hold = true;
}

/* One WRITE; false: not now.  src lies in staged memory, or in what op sends. */
static bool write_some(struct smcr_flow *f, const uint8_t *src, size_t len, struct exsi_dmr *dmr, struct exsi_op *op)
{
    struct exsi_smcr *l = f->link;
    if (!may_write(f) || !has_room(l, 2 + SMCR_RESERVE)) return false;
    uint64_t most = exsi_min_u64(exsi_smc_span(f->put, f->freed, f->peer_size), l->ep->dev->caps.max_msg);
    uint32_t n = (uint32_t)exsi_min_u64(len, most);
    assert(exsi_range_inside(f->put.count, n, f->peer_size));
    if (exsi_ep_write_silent(l->ep, 0, src, n, dmr, f->peer_addr + f->put.count, f->peer_rkey) < 0) return false;
    uint32_t at = l->write_head + l->write_len++;
    if (at >= l->ep->attr.send_wr) at -= l->ep->attr.send_wr;
    l->writes[at] = (struct smcr_write){.flow = f, .len = n, .staged = !op};
    exsi_smc_advance(&f->put, n, f->peer_size);
    f->written += n;
    f->in_flight++;
    f->unsent -= n;
    if (!op) {
        smcr_stage_sent(f, n);
        return true;
    }
    op->e.send.posted += n;
    op->e.send.in_flight++;
    return true;
}

static bool write_staged(struct smcr_flow *f)
{
    uint8_t *src;
    struct exsi_dmr *dmr;
    uint32_t len = smcr_stage_span(f, &src, &dmr);
    return write_some(f, src, len, dmr, NULL);
}

static bool write_op(struct smcr_flow *f, struct exsi_op *op)
{
    uint8_t *src;
    struct exsi_dmr *dmr;
    bool fragile;
    size_t len = exsi_op_span(op, op->e.send.posted, &src, &dmr, &fragile);
    return write_some(f, src, len, dmr, op);
}

/* Those that need no WRITE of their own. */
static void pass_over(struct smcr_flow *f)
{
    while (f->unposted && !f->urgent_now &&
           (f->unposted->e.send.posted == f->unposted->len || smcr_stage_op(f, f->unposted)))
        posted(f);
}

/* How many WRITEs went out.  An urgent byte ends them: the CDC message must point behind it. */
static uint32_t write_all(struct smcr_flow *f, uint32_t most)
{
    pass_over(f);
    if (is_held(f)) return 0;
    uint32_t n = 0;
    for (; n < most && !f->urgent_now; n++) {
        if (!smcr_staged(f) && (!f->unposted || smcr_waits_for_stage(f, f->unposted))) break;
        if (!(smcr_staged(f) ? write_staged(f) : write_op(f, f->unposted))) break;
        pass_over(f);
    }
    return n;
}

/* It has something that can be written now. */
static bool has_more(const struct smcr_flow *f)
{
    if (!may_write(f)) return false;
    return smcr_staged(f) ? !is_held(f) : f->unposted && !smcr_waits_for_stage(f, f->unposted);
}

/* True: it has more to send and may. */
static bool turn(struct smcr_flow *f)
{
    if (!f->open || f->said & EXSI_SMC_ABORT) return false;
    bool alone = exsi_list_empty(&f->link->ready);
    uint32_t n = f->over ? 0 : write_all(f, alone ? ALONE_WRITES : TURN_WRITES);
    if (n || f->cdc_due || f->urgent_now || smcr_end_flags(f)) send_cdc(f);
    /* Empty ones end without a completion of their own, those that were copied too. */
    smcr_retire_sends(f);
    return has_more(f);
}

void smcr_pump(struct exsi_endpoint *ep)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    struct smcr_flow *f;
    if (ep->state != EXSI_EP_UP || ep->shut || !smcr_pump_llc(l)) return;
    while ((f = exsi_list_first(&l->ready, struct smcr_flow, ready_node)) && has_room(l, 2 + SMCR_RESERVE)) {
        exsi_list_unlink(&f->ready_node);
        bool more = turn(f);
        if (ep->state != EXSI_EP_UP) return;
        if (more) exsi_list_append(&l->ready, &f->ready_node);
        smcr_step(f); /* it may be gone afterwards */
    }
}

/* --- sends ----------------------------------------------------------------------------------------------- */

int smcr_send(struct exsi_attach *at, struct exsi_op *op)
{
    struct smcr_flow *f = smcr_flow_of(at);
    if (f->over) return f->error ? -f->error : -EPIPE;
    if (f->fin_wanted || f->broken) return -EPIPE;
    if (f->link->ep->state >= EXSI_EP_FAILING) return -ECONNABORTED;
    exsi_list_append(&f->sends, &op->node);
    f->unsent += op->len;
    if (op->flags & EXSI_OPF_URGENT && op->len) f->urgents++;
    if (op->flags & EXSI_OPF_SHUT_WR) f->fin_wanted = true;
    if (!f->unposted && smcr_stage_op(f, op))
        smcr_retire_sends(f); /* over, unless others before it are on the way */
    else if (!f->unposted)
        f->unposted = op;
    if (!is_held(f)) smcr_want(f);
    return 0;
}

static void finish_send(struct smcr_flow *f, struct exsi_op *op)
{
    exsi_list_unlink(&op->node);
    op->extra = op->done;
    if (op->done == op->len && !op->e.send.cut) {
        op->extra = 0;
        exsi_op_finish(op, 0, op->len);
    } else if (op->cancelling) {
        if (op->e.send.posted) op->event_flags |= EXSI_EV_SEND_SHUT;
        exsi_op_finish(op, ECANCELED, op->done);
    } else if (f->over && f->error) {
        exsi_op_finish(op, f->error, op->done);
    } else {
        exsi_op_finish(op, f->heard & EXSI_SMC_CLOSED ? ECONNRESET : EPIPE, op->done);
    }
}

void smcr_retire_sends(struct smcr_flow *f)
{
    struct exsi_op *op;
    while ((op = exsi_list_first(&f->sends, struct exsi_op, node)) && op != f->unposted && !op->e.send.in_flight)
        finish_send(f, op);
}

/* From op on, what is not posted will not be. */
static void cut_from(struct smcr_flow *f, struct exsi_op *first)
{
    for (struct exsi_op *op = first; op; op = exsi_list_after(&f->sends, op, struct exsi_op, node)) {
        f->unsent -= op->len - op->e.send.posted;
        if (op->flags & EXSI_OPF_URGENT && op->len && op->e.send.posted < op->len) f->urgents--;
        op->e.send.cut = true;
    }
    f->unposted = NULL;
    f->broken = true;
}

void smcr_cut_sends(struct smcr_flow *f)
{
    f->unsent -= smcr_stage_drop(f);
    cut_from(f, f->unposted);
    smcr_retire_sends(f);
}

void smcr_cancel_send(struct smcr_flow *f, struct exsi_op *op)
{
    if (op->e.send.cut || (op->len && op->e.send.posted == op->len)) return;
    op->cancelling = true;
    if (op->e.send.posted) {
        assert(!smcr_staged(f)); /* it would stand before this one */
        /* What stands behind a cut cannot go out either: the peer would take it for the rest. */
        cut_from(f, op);
        f->fin_wanted = f->shut_asked;
        smcr_retire_sends(f);
        smcr_want(f);
        return;
    }
    if (op->flags & EXSI_OPF_SHUT_WR) f->fin_wanted = f->shut_asked;
    if (op->flags & EXSI_OPF_URGENT && op->len) f->urgents--;
    f->unsent -= op->len;
    if (f->unposted == op) f->unposted = exsi_list_after(&f->sends, op, struct exsi_op, node);
    exsi_list_unlink(&op->node);
    exsi_op_finish(op, ECANCELED, 0);
    /* It may have stood before an empty one that is out. */
    smcr_retire_sends(f);
    smcr_want(f);
}

/* The oldest send of the flow with WRITEs on the way: they complete in posting order. */
static struct exsi_op *oldest_in_flight(struct smcr_flow *f)
{
    exsi_list_for (op, &f->sends, struct exsi_op, node)
        if (op->e.send.in_flight) return op;
    return NULL;
}

void smcr_write_done(struct exsi_endpoint *ep, uint64_t wr_id, int error)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    (void)wr_id;
    assert(l->write_len > 0);
    if (error) return; /* the link is over: on_error ends everything */
    const struct smcr_write w = l->writes[l->write_head];
    if (++l->write_head == ep->attr.send_wr) l->write_head = 0;
    l->write_len--;
    struct smcr_flow *f = w.flow;
    assert(f->in_flight > 0);
    f->in_flight--;
    if (w.staged) {
        smcr_stage_done(f, w.len);
    } else {
        struct exsi_op *op = oldest_in_flight(f);
        assert(op);
        op->e.send.in_flight--;
        op->done += w.len;
    }
    smcr_retire_sends(f);
    if (smcr_staged(f) || (f->unposted && smcr_waits_for_stage(f, f->unposted))) smcr_want(f);
    smcr_step(f);
}
