// SPDX-License-Identifier: MIT OR Apache-2.0
/* The receiving half of SMC-R: what a CDC message says, and reading from our own ring.
 *
 * Bytes are copied once, into the caller's memory, or lent where they lie.  The peer is told how far we have read by
 * every CDC message, and by one of its own when it may be waiting for that.
 * Invariant: came never runs ahead of told by more than the ring, and taken lies between them. */
#include "base/copy.h"
#include "engine/smcr_flow.h"

bool smcr_is_readable(const struct smcr_flow *f)
{
    return f->over || smcr_is_eof(f) || f->recv_shut || (smcr_arrived(f) > 0 && !f->lent);
}

/* --- reading ----------------------------------------------------------------------------------------------- */

/* Tell the peer, if it may be waiting for that. */
static void consider_update(struct smcr_flow *f)
{
    struct exsi_smc_update u = {
        .unconfirmed = exsi_smc_distance(f->told, f->taken, f->rmb->size),
        .unread = smcr_arrived(f),
        .writer_blocked = f->peer_flags & EXSI_SMC_WRITER_BLOCKED,
        .urgent_passed = f->urgent_passed,
    };
    if (!exsi_smc_update_is_due(&u, f->rmb->size)) return;
    f->cdc_due = true;
    smcr_want(f);
}

static void taken(struct smcr_flow *f, uint32_t n)
{
    exsi_smc_advance(&f->taken, n, f->rmb->size);
    if (!f->urgent_left) return;
    f->urgent_passed |= n >= f->urgent_left;
    f->urgent_left -= exsi_min_u32(n, f->urgent_left);
}

/* Contiguous bytes that lie there. */
static uint32_t lies(const struct smcr_flow *f)
{
    return f->rmb ? exsi_min_u32(smcr_arrived(f), f->rmb->size - f->taken.count) : 0;
}

/* One contiguous piece; false: the receiver's memory is gone. */
static bool copy_piece(struct smcr_flow *f, struct exsi_op *op)
{
    uint8_t *dst;
    struct exsi_dmr *dmr;
    bool fragile;
    size_t n = exsi_op_span(op, op->done, &dst, &dmr, &fragile);
    n = exsi_min_u64(n, lies(f));
    if (exsi_copy(dst, f->rmb->base + f->taken.count, n, fragile) < 0) return false;
    exsi_count(f->at->stats, bytes_copied, n);
    taken(f, (uint32_t)n);
    op->done += n;
    op->event_flags |= EXSI_EV_INDIRECT;
    return true;
}

static void end_recv(struct exsi_op *op, int error)
{
    exsi_list_unlink(&op->node);
    exsi_op_finish(op, error, op->done);
}

void smcr_end_recvs(struct smcr_flow *f, int error)
{
    struct exsi_op *op;
    while ((op = exsi_list_first(&f->recvs, struct exsi_op, node))) {
        if (!error && !op->done && op->len) op->event_flags |= EXSI_EV_EOF;
        end_recv(op, op->done ? 0 : error);
    }
}

static void deliver(struct smcr_flow *f)
{
    struct exsi_op *op;
    while (!f->lent && (op = exsi_list_first(&f->recvs, struct exsi_op, node))) {
        bool sound = true;
        while (sound && op->done < op->len && lies(f)) sound = copy_piece(f, op);
        if (!sound)
            end_recv(op, op->done ? 0 : EFAULT);
        else if (op->done == op->len || (op->done && !(op->flags & EXSI_OPF_WAITALL)))
            end_recv(op, 0);
        else
            return;
    }
}

/* Nobody reads any more.  Behind our own end that is data which the peer must not believe to have arrived. */
static void discard(struct smcr_flow *f)
{
    uint32_t n = smcr_arrived(f);
    if (!n || f->lent) return;
    f->unread |= f->fin_wanted;
    while (n) {
        uint32_t piece = lies(f);
        taken(f, piece);
        n -= piece;
    }
}

void smcr_settle(struct smcr_flow *f)
{
    if (!f->rmb || f->over) return;
    if (f->recv_shut)
        discard(f);
    else
        deliver(f);
    consider_update(f);
    if (smcr_arrived(f) || f->lent) return;
    if (f->recv_shut || smcr_is_eof(f)) smcr_end_recvs(f, 0);
}

int smcr_recv(struct exsi_attach *at, struct exsi_op *op)
{
    struct smcr_flow *f = smcr_flow_of(at);
    if (f->over && !smcr_arrived(f)) {
        if (!smcr_is_eof(f) && f->error) return -f->error;
        op->event_flags |= EXSI_EV_EOF;
        exsi_op_finish(op, 0, 0);
        return 0;
    }
    exsi_list_append(&f->recvs, &op->node);
    if (!f->over) {
        smcr_settle(f);
        smcr_report(f);
        return 0;
    }
    /* What came before the link went down. */
    deliver(f);
    smcr_end_recvs(f, smcr_is_eof(f) ? 0 : f->error);
    return 0;
}

int64_t smcr_take(struct exsi_attach *at, void *buf, size_t len, bool fragile)
{
    struct smcr_flow *f = smcr_flow_of(at);
    size_t got = 0;
    if (!exsi_list_empty(&f->recvs) || f->lent) return -EAGAIN;
    while (got < len && lies(f)) {
        size_t n = exsi_min_u64(lies(f), len - got);
        if (exsi_copy((uint8_t *)buf + got, f->rmb->base + f->taken.count, n, fragile) < 0) {
            if (!got) return -EFAULT;
            break;
        }
        taken(f, (uint32_t)n);
        got += n;
    }
    if (got) {
        exsi_count(at->stats, bytes_copied, got);
        if (!f->over) consider_update(f);
        smcr_report(f);
        return (int64_t)got;
    }
    if (len == 0 || smcr_is_eof(f) || f->recv_shut) return 0;
    return f->over ? -f->error : -EAGAIN;
}

void smcr_cancel_recv(struct smcr_flow *f, struct exsi_op *op)
{
    /* Bytes that were taken from the stream must not vanish. */
    end_recv(op, op->done ? 0 : ECANCELED);
    smcr_report(f);
}

void smcr_shutdown_recv(struct exsi_attach *at)
{
    struct smcr_flow *f = smcr_flow_of(at);
    f->recv_shut = true;
    smcr_end_recvs(f, 0);
    smcr_settle(f);
    smcr_want(f);
    smcr_report(f);
}

/* --- views -------------------------------------------------------------------------------------------------- */

int exsi_smcr_lend(struct exsi_attach *at, void **addr, uint64_t *len)
{
    struct smcr_flow *f = smcr_flow_of(at);
    if (f->lent || !exsi_list_empty(&f->recvs)) return -EBUSY;
    f->lent = lies(f);
    if (f->lent) {
        *addr = f->rmb->base + f->taken.count;
        *len = f->lent;
        smcr_report(f);
        return 1;
    }
    if (smcr_is_eof(f) || f->recv_shut) return 0;
    return f->over ? -f->error : -EAGAIN;
}

int exsi_smcr_lend_over(struct exsi_attach *at, uint64_t n)
{
    struct smcr_flow *f = smcr_flow_of(at);
    if (!f->lent || n > f->lent) return -EINVAL;
    f->lent = 0;
    taken(f, (uint32_t)n);
    exsi_count(at->stats, bytes_received, n);
    smcr_settle(f);
    smcr_report(f);
    return 0;
}

bool exsi_smcr_is_lent(const struct exsi_attach *at)
{
    const struct smcr_flow *f = smcr_flow_of(at);
    return f && f->lent > 0;
}

/* --- what the peer says --------------------------------------------------------------------------------------- */

/* How far the peer has read of what we wrote. */
static bool hear_consumer(struct smcr_flow *f, struct exsi_smc_cursor c)
{
    uint32_t by, out = f->open ? exsi_smc_distance(f->freed, f->put, f->peer_size) : 0;
    /* Before the peer's ring is known nothing was written there. */
    uint32_t size = f->open ? f->peer_size : EXSI_SMC_RMBE_MIN;
    switch (exsi_smc_move(f->freed, c, out, size, &by)) {
    case EXSI_SMC_OUTSIDE:
        smcr_violation(f, "consumer cursor %u/%u: more was read than was written, or outside the RMBE", c.wrap,
                       c.count);
        return false;
    case EXSI_SMC_BACKWARD: return true;
    case EXSI_SMC_FORWARD: break;
    }
    if (!by) return true;
    exsi_smc_advance(&f->freed, by, size);
    if (f->urgent_hold && by == out) f->urgent_hold = false;
    if (f->unposted || smcr_staged(f)) smcr_want(f);
    return true;
}

/* How far the peer has written. */
static bool hear_producer(struct smcr_flow *f, const struct exsi_smc_cdc *c)
{
    uint32_t by, size = f->rmb->size, most = size - exsi_smc_distance(f->told, f->came, size);
    switch (exsi_smc_move(f->came, c->producer, most, size, &by)) {
    case EXSI_SMC_OUTSIDE:
        smcr_violation(f, "producer cursor %u/%u: beyond the free part of the RMBE, or outside of it", c->producer.wrap,
                       c->producer.count);
        return false;
    case EXSI_SMC_BACKWARD: return true;
    case EXSI_SMC_FORWARD: break;
    }
    /* The promise was that no more would come. */
    if (f->heard & (EXSI_SMC_SENDING_DONE | SMCR_FINAL)) return true;
    exsi_smc_advance(&f->came, by, size);
    f->received += by;
    if (f->at) exsi_count(f->at->stats, bytes_indirect, by);
    if (c->producer_flags & EXSI_SMC_URGENT_PRESENT) {
        f->urgent_left = smcr_arrived(f);
        f->urgent_passed |= !f->urgent_left;
    }
    return true;
}

/* Data was lost on another link if it names a message that did not arrive.  Its cursors mean nothing. */
static void hear_validation(struct smcr_flow *f, uint16_t seq)
{
    if (exsi_smc_seq_is_old(seq, f->seq_in))
        smcr_violation(f, "sequence number %u: failover validation of more than %u that arrived", seq, f->seq_in);
}

void smcr_cdc(struct smcr_flow *f, const struct exsi_smc_cdc *c)
{
    if (f->over || f->left) {
        /* All that counts now is whether the peer is through. */
        if (!(c->producer_flags & EXSI_SMC_FAILOVER_VALIDATION)) f->heard |= c->connection_flags & SMCR_FINAL;
        smcr_step(f);
        return;
    }
    if (c->producer_flags & EXSI_SMC_FAILOVER_VALIDATION) {
        hear_validation(f, c->seq);
        return;
    }
    if (exsi_smc_seq_is_old(f->seq_in, c->seq)) return;
    f->seq_in = c->seq;
    if (!hear_consumer(f, c->consumer) || !hear_producer(f, c)) return;
    f->peer_flags = c->producer_flags;
    if (c->producer_flags & EXSI_SMC_UPDATE_REQUESTED) {
        f->cdc_due = true;
        smcr_want(f);
    }
    smcr_settle(f);
    if (c->connection_flags & ~f->heard) smcr_heard(f, c->connection_flags & ~f->heard);
    smcr_report(f);
}
