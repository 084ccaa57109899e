// SPDX-License-Identifier: MIT OR Apache-2.0
/* The sending half of STREAM: rules S1 to S6.
 *
 * Owns isent, ifreed, put and the use of the peer's advertisements.  Invariant: an advertisement is used
 * only while its ind equals isent (docs/explanation/stream-algorithm.md says why that is enough), and
 * isent - ifreed never exceeds the peer's ring. */
#include "engine/stream.h"

#define MOST_IN_VAIN 7

/* The match rule.  isent never falls, so what is void stays void.  ES-API 2.3.4, I4 */
static bool is_void(const struct exsi_stream *s, const struct exsi_advert *a)
{
    if (EXSI_FAULT(skip_s1)) return false;
    if (EXSI_FAULT(ind_less)) return a->ind > s->isent;
    return a->ind != s->isent;
}

/* ES-API S1 */
static void drop_void(struct exsi_stream *s)
{
    while (s->f.adv_len && is_void(s, exsi_flow_advert(&s->f))) {
        exsi_flow_advert_pop(&s->f);
        exsi_count(s->f.ep->stats, adverts_void, 1);
    }
}

static uint64_t ring_space(const struct exsi_stream *s)
{
    return s->peer_rkey ? s->peer_len - (s->isent - s->ifreed) : 0;
}

bool exsi_stream_writable(struct exsi_stream *s)
{
    struct exsi_flow *f = &s->f;
    if (f->broken) return true; /* a send does not wait, it is refused */
    if (f->fin_wanted || f->unposted || !f->opened) return false;
    if (!f->adv_len && !ring_space(s)) return false;
    return exsi_flow_may_send(f, exsi_ep_write_cost(f->ep));
}

/* ES-API S3, 2.3.7 */
static bool send_direct(struct exsi_stream *s, struct exsi_op *op, const uint8_t *src, struct exsi_dmr *dmr, size_t len)
{
    struct exsi_flow *f = &s->f;
    struct exsi_advert *a = exsi_flow_advert(f);
    uint32_t k = (uint32_t)exsi_min_u64(len, exsi_min_u32(a->len, f->max_write));
    if (!exsi_flow_write(f, op, src, dmr, k, a->addr, a->rkey, exsi_word(EXSI_WORD_DIRECT, false, k))) return false;
    f->sent += k;
    a->addr += k;
    a->len -= k;
    if (!a->waitall || a->len == 0 || EXSI_FAULT(drop_waitall_rest)) exsi_flow_advert_pop(f);
    return true;
}

/* ES-API S4 */
static bool send_indirect(struct exsi_stream *s, struct exsi_op *op, const uint8_t *src, struct exsi_dmr *dmr,
                          size_t len)
{
    struct exsi_flow *f = &s->f;
    uint64_t most = exsi_min_u64(ring_space(s), f->max_write);
    if (!EXSI_FAULT(ring_wrap)) most = exsi_min_u64(most, s->peer_len - s->put);
    uint32_t k = (uint32_t)exsi_min_u64(len, most);
    uint64_t raddr = s->peer_ring + s->put;
    if (!exsi_flow_write(f, op, src, dmr, k, raddr, s->peer_rkey, exsi_word(EXSI_WORD_INDIRECT, false, k)))
        return false;
    f->sent += k;
    s->isent += k;
    s->put += k;
    if (s->put >= s->peer_len) s->put -= s->peer_len;
    return true;
}

/* A large send whose peer has advertised may wait for the next advertisement: a sender that is ahead by a moment would
 * fill the ring, and every ADVERT after that comes too late.  Once in vain for each time that the peer advertised, and
 * ever more rarely with a peer that asks for its data in another way: 2, 4 ... 64 times are left out then. */
static bool hold(struct exsi_stream *s, const struct exsi_op *op)
{
    const struct exsi_engine_config *cfg = &s->f.cfg;
    if (!cfg->direct_hold_us || !s->advert_seen || op->len - op->e.send.posted < cfg->direct_threshold) return false;
    if (exsi_timer_running(&s->hold)) return true;
    if (s->holds_to_skip) {
        s->holds_to_skip--;
        s->advert_seen = false;
        return false;
    }
    return exsi_timer_start(&s->f.ep->group->poller, &s->hold, (uint64_t)cfg->direct_hold_us * 1000) == 0;
}

void exsi_stream_hold_over(struct exsi_timer *t)
{
    struct exsi_stream *s = exsi_container_of(t, struct exsi_stream, hold);
    s->advert_seen = false;
    if (s->holds_in_vain < MOST_IN_VAIN) s->holds_in_vain++;
    s->holds_to_skip = (uint8_t)(1u << (s->holds_in_vain - 1));
    if (s->holds_in_vain == 1) s->holds_to_skip = 0;
    exsi_stream_pump(&s->f);
}

/* ES-API S5 */
static bool send_piece(struct exsi_stream *s, struct exsi_op *op)
{
    struct exsi_flow *f = &s->f;
    drop_void(s);
    if (!f->adv_len && (!ring_space(s) || hold(s, op))) return false;
    if (!exsi_flow_may_send(f, exsi_ep_write_cost(f->ep))) return false;
    uint8_t *src;
    struct exsi_dmr *dmr;
    bool fragile;
    size_t len = exsi_op_span(op, op->e.send.posted, &src, &dmr, &fragile);
    return f->adv_len ? send_direct(s, op, src, dmr, len) : send_indirect(s, op, src, dmr, len);
}

void exsi_stream_pump_data(struct exsi_stream *s)
{
    struct exsi_flow *f = &s->f;
    if (!f->unposted) return;
    while (f->unposted) {
        struct exsi_op *op = f->unposted;
        if (op->e.send.posted == op->len)
            exsi_flow_posted(f);
        else if (!send_piece(s, op))
            break;
    }
    /* Empty sends end without a completion of their own. */
    exsi_flow_retire_sends(f);
}

bool exsi_stream_freed(struct exsi_stream *s, uint64_t freed)
{
    if (freed > s->isent) {
        exsi_flow_fail(&s->f, "freed: more than was sent through the ring");
        return false;
    }
    s->ifreed = exsi_max_u64(s->ifreed, freed);
    return true;
}

void exsi_stream_advert(struct exsi_stream *s, const struct exsi_control *c)
{
    struct exsi_flow *f = &s->f;
    if (c->len == 0) {
        exsi_flow_fail(f, "len: ADVERT of nothing on a stream");
        return;
    }
    if (c->ind > s->isent) {
        exsi_flow_fail(f, "ind: ADVERT made after more ring data than was sent");
        return;
    }
    drop_void(s);
    if (!exsi_flow_advert_add(f, c)) return;
    drop_void(s);
    s->advert_seen = true;
    if (exsi_timer_running(&s->hold)) s->holds_in_vain = 0;
    exsi_timer_stop(&f->ep->group->poller, &s->hold);
}

void exsi_stream_ring(struct exsi_stream *s, const struct exsi_control *c)
{
    if (s->peer_rkey) {
        exsi_flow_fail(&s->f, "RING: the ring is known already");
        return;
    }
    if (c->len != s->peer_len) {
        exsi_flow_fail(&s->f, "len: RING differs from the hello");
        return;
    }
    s->peer_ring = c->addr;
    s->peer_rkey = c->rkey;
}

/* What stands behind a cut cannot go out either: the peer would take it for the rest. */
static void cut_from(struct exsi_flow *f, struct exsi_op *op)
{
    for (struct exsi_op *o = op; o; o = exsi_list_after(&f->sends, o, struct exsi_op, node)) o->e.send.cut = true;
    f->unposted = NULL;
    f->broken = true;
    f->fin_wanted = f->shut_asked;
}

void exsi_stream_cancel_send(struct exsi_flow *f, struct exsi_op *op)
{
    if (op->e.send.cut || (op->len && op->e.send.posted == op->len)) return;
    op->cancelling = true;
    if (op->e.send.posted) {
        cut_from(f, op);
        exsi_flow_retire_sends(f);
        return;
    }
    if (op->flags & EXSI_OPF_SHUT_WR && !f->fin_sent) f->fin_wanted = f->shut_asked;
    if (f->unposted == op) exsi_flow_posted(f);
    exsi_list_unlink(&op->node);
    exsi_op_finish(op, ECANCELED, 0);
    /* It may have stood before an empty one that is out. */
    exsi_flow_retire_sends(f);
}
