// SPDX-License-Identifier: MIT OR Apache-2.0
/* The receiving half of STREAM: rules R1 to R5 and SETTLE.
 *
 * Owns iarr, icop and the ring's contents.  Invariant (I9): after every entry the ring is empty or no
 * receive is posted; so a live advertisement implies an empty ring. */
#include "engine/stream.h"

#include "base/copy.h"

static uint64_t in_ring(const struct exsi_stream *s)
{
    return s->iarr - s->icop;
}

bool exsi_stream_readable(const struct exsi_stream *s)
{
    return in_ring(s) > 0 && exsi_list_empty(&s->f.ending);
}

/* Bytes that lie together at the head of the ring. */
static size_t ring_span(const struct exsi_stream *s)
{
    return exsi_min_u64(in_ring(s), s->ring_len - s->get);
}

static void ring_taken(struct exsi_stream *s, size_t n)
{
    s->icop += n;
    s->get += (uint32_t)n;
    if (s->get == s->ring_len) s->get = 0;
}

static void discard(struct exsi_stream *s)
{
    while (in_ring(s)) ring_taken(s, ring_span(s));
}

/* --- SETTLE ---------------------------------------------------------------------------------------- */

static bool is_full(const struct exsi_op *op)
{
    return op->done == op->len;
}

/* Copy one contiguous piece; false: the receiver's memory is gone.  ES-API I1, I3 */
static bool copy_piece(struct exsi_stream *s, struct exsi_op *op)
{
    uint8_t *dst;
    struct exsi_dmr *dmr;
    bool fragile;
    size_t n = exsi_op_span(op, op->done, &dst, &dmr, &fragile);
    n = exsi_min_u64(n, ring_span(s));
    if (exsi_copy(dst, s->ring + s->get, n, fragile) < 0) return false;
    exsi_count(s->f.ep->stats, bytes_copied, n);
    ring_taken(s, n);
    op->done += n;
    op->event_flags |= EXSI_EV_INDIRECT;
    return true;
}

/* a: the ring goes into the posted receives, in order. */
static void deliver(struct exsi_stream *s)
{
    struct exsi_flow *f = &s->f;
    struct exsi_op *op;
    while ((op = exsi_list_first(&f->recvs, struct exsi_op, node))) {
        bool sound = true;
        while (sound && !is_full(op) && in_ring(s)) sound = copy_piece(s, op);
        if (!sound)
            exsi_flow_end_recv(f, op, op->done ? 0 : EFAULT);
        else if (is_full(op) || (op->done && !(op->flags & EXSI_OPF_WAITALL)))
            exsi_flow_end_recv(f, op, 0);
        else
            return;
    }
}

/* ES-API SETTLE, I9 */
void exsi_stream_settle(struct exsi_flow *f)
{
    struct exsi_stream *s = exsi_stream_of(f);
    if (f->recv_shut)
        discard(s);
    else if (!EXSI_FAULT(skip_settle_a))
        deliver(s);
    f->freed = EXSI_FAULT(ack_before_copy) ? s->iarr : s->icop;
    if (in_ring(s)) return;
    /* d */
    if (f->eof)
        exsi_flow_end_recvs(f, 0);
    else if (f->dead)
        exsi_flow_end_recvs(f, f->error);
}

/* b and c: indirect bytes came, so every advertisement is void. */
static void void_adverts(struct exsi_flow *f)
{
    exsi_list_for (op, &f->recvs, struct exsi_op, node) {
        if (f->live_adverts == 0) break;
        exsi_flow_unadvertise(f, op);
    }
    f->next_advert = exsi_list_first(&f->recvs, struct exsi_op, node);
}

static void end_cancelling(struct exsi_flow *f)
{
    exsi_list_for_safe (op, &f->recvs, struct exsi_op, node) {
        if (op->cancelling && op->e.recv.adv_id == 0) exsi_flow_end_cancelled(f, op);
    }
}

/* --- advertising (SETTLE e, f) ----------------------------------------------------------------------- */

/* May the entries behind op be advertised?  Not while a part of op that they must wait for is not. */
static bool bars(const struct exsi_op *op)
{
    return (op->flags & EXSI_OPF_WAITALL) && !op->cancelling && op->e.recv.adv_len < op->len - op->done;
}

/* One more advertisement for op; false: it and those behind wait. */
static bool advertise_one(struct exsi_stream *s, struct exsi_op *op)
{
    struct exsi_flow *f = &s->f;
    uint8_t *at;
    struct exsi_dmr *dmr;
    bool fragile;
    if (op->e.recv.key_pending) return false;
    /* Short ones cost less through the ring than a key does. */
    if (op->len - op->done < f->cfg.direct_threshold) return false;
    if (f->cfg.strict_keys && !f->ep->key_per_range) return false;
    size_t len = exsi_op_span(op, op->done, &at, &dmr, &fragile);
    uint8_t flags = op->flags & EXSI_OPF_WAITALL ? EXSI_CTLF_WAITALL : 0;
    return exsi_flow_advertise(f, op, (uint32_t)exsi_min_u64(len, UINT32_MAX & ~4095u), flags, s->iarr);
}

static bool ack_due(const struct exsi_stream *s)
{
    const struct exsi_flow *f = &s->f;
    uint64_t unsaid = f->freed - f->acked;
    if (!unsaid) return false;
    /* Half of the ring; or the sender has filled what it knows of and nobody else will wake it. */
    return unsaid * 2 >= s->ring_len || (in_ring(s) == 0 && s->iarr - f->acked >= s->ring_len);
}

/* ES-API SETTLE */
void exsi_stream_pump_adverts(struct exsi_stream *s)
{
    struct exsi_flow *f = &s->f;
    while (f->next_advert && !f->eof && !f->recv_shut && !in_ring(s)) {
        struct exsi_op *op = f->next_advert;
        if (!op->cancelling && !is_full(op) && !op->e.recv.adv_id && !advertise_one(s, op)) break;
        if (bars(op)) break;
        f->next_advert = exsi_list_after(&f->recvs, op, struct exsi_op, node);
    }
    /* Behind the ADVERTs: an ACK before them would let the sender refill the ring and void them. */
    if (ack_due(s)) f->ack_wanted = true;
}

/* --- arrivals ---------------------------------------------------------------------------------------- */

/* ES-API R2 */
static void arrive_indirect(struct exsi_stream *s, uint32_t k)
{
    struct exsi_flow *f = &s->f;
    if (k > s->ring_len - (s->iarr - f->acked)) {
        exsi_flow_fail(f, "count: indirect data beyond the free part of the ring");
        return;
    }
    if (k > s->ring_len - (s->get + in_ring(s)) % s->ring_len) {
        exsi_flow_fail(f, "count: indirect data across the end of the ring");
        return;
    }
    f->arrived += k;
    s->iarr += k;
    exsi_count(f->ep->stats, bytes_indirect, k);
    bool live = f->live_adverts > 0;
    if (live) void_adverts(f);
    exsi_stream_settle(&s->f);
    if (live) end_cancelling(f);
}

/* ES-API R3, I7 */
static void arrive_direct(struct exsi_stream *s, uint32_t k)
{
    struct exsi_flow *f = &s->f;
    struct exsi_op *op = exsi_flow_first_live(f);
    if (!op || k > op->e.recv.adv_len) {
        exsi_flow_fail(f, op ? "count: direct data beyond its advertisement" : "direct data without an advertisement");
        return;
    }
    assert(op->e.recv.adv_ind == s->iarr && s->iarr == s->icop);
    f->arrived += k;
    exsi_count(f->ep->stats, bytes_direct, k);
    op->done += k;
    op->e.recv.adv_len -= k;
    op->event_flags |= EXSI_EV_DIRECT;
    if (is_full(op) || !(op->flags & EXSI_OPF_WAITALL)) {
        exsi_flow_end_recv(f, op, 0);
    } else if (op->e.recv.adv_len == 0) {
        exsi_flow_unadvertise(f, op);
        if (op->cancelling) exsi_flow_end_cancelled(f, op);
    }
    /* An empty receive may have come to the head. */
    exsi_stream_settle(&s->f);
}

void exsi_stream_word(struct exsi_flow *f, uint32_t word)
{
    struct exsi_stream *s = exsi_stream_of(f);
    enum exsi_word_kind kind;
    bool end;
    uint32_t count;
    const char *reason;
    if (exsi_word_decode(word, &kind, &end, &count, &reason) < 0) {
        exsi_flow_fail(f, "%s", reason);
        return;
    }
    if (end || f->eof) {
        exsi_flow_fail(f, end ? "notice word: end of message on a stream" : "data behind FIN");
        return;
    }
    if (kind == EXSI_WORD_DIRECT)
        arrive_direct(s, count);
    else
        arrive_indirect(s, count);
}

/* ES-API R5 */
void exsi_stream_revoked(struct exsi_stream *s, uint32_t id)
{
    struct exsi_op *op = exsi_flow_revoked(&s->f, id);
    if (!op) return;
    exsi_flow_end_cancelled(&s->f, op);
    exsi_stream_settle(&s->f);
}

/* --- what the socket asks for -------------------------------------------------------------------------- */

int64_t exsi_stream_take(struct exsi_stream *s, void *buf, size_t len, bool fragile)
{
    struct exsi_flow *f = &s->f;
    size_t got = 0;
    /* Behind every receive that was posted before, also one that waits only for its key. */
    if (!exsi_list_empty(&f->recvs) || !exsi_list_empty(&f->ending)) return -EAGAIN;
    while (got < len && in_ring(s)) {
        size_t n = exsi_min_u64(ring_span(s), len - got);
        if (exsi_copy((uint8_t *)buf + got, s->ring + s->get, n, fragile) < 0) return got ? (int64_t)got : -EFAULT;
        ring_taken(s, n);
        got += n;
    }
    if (got) {
        exsi_count(f->ep->stats, bytes_copied, got);
        f->freed = s->icop;
        return (int64_t)got;
    }
    if (len == 0 || f->eof || f->recv_shut) return 0;
    if (f->dead) return f->error ? -f->error : 0;
    return -EAGAIN;
}

void exsi_stream_shut_recv(struct exsi_flow *f)
{
    if (f->recv_shut) return;
    f->recv_shut = true;
    exsi_flow_cancel_all_recvs(f);
    exsi_stream_settle(f);
}
