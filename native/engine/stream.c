// SPDX-License-Identifier: MIT OR Apache-2.0
/* The STREAM engine: bytes go straight into an advertised buffer when the receiver is ahead, through a
 * ring at the receiver when the sender is ahead (ES-API 2.3, docs/explanation/stream-algorithm.md).
 *
 * This file owns set-up, the dispatch of what arrives, and the order in which things are sent.
 * Invariant of that order: REVOKED before any later data, ADVERT before ACK, FIN behind all data. */
#include "engine/stream.h"

#include <stdlib.h>

static uint32_t ready_bits(struct exsi_flow *f)
{
    struct exsi_stream *s = exsi_stream_of(f);
    uint32_t bits = exsi_flow_ready(f);
    if (exsi_stream_readable(s)) bits |= EXSI_CHANGE_READABLE;
    if (exsi_stream_writable(s)) bits |= EXSI_CHANGE_WRITABLE;
    return bits;
}

#ifndef NDEBUG
/* ES-API I6, I9, I10, and the books of advertisements; the others are what the random test is for. */
static void check_adverts(const struct exsi_stream *s)
{
    const struct exsi_flow *f = &s->f;
    uint32_t live = 0, i = 0;
    exsi_list_for (op, &f->recvs, struct exsi_op, node) {
        if (op->e.recv.adv_id == 0) continue;
        live++;
        assert(op->e.recv.adv_ind == s->iarr && op->e.recv.adv_len <= op->len - op->done);
    }
    assert(live == f->live_adverts && live <= f->peer_adverts);
    for (uint32_t at = f->adv_head; i < f->adv_len; i++, at = at + 1 == f->cfg.max_adverts ? 0 : at + 1)
        assert(f->adverts[at].ind <= s->isent);
}

static void check(const struct exsi_stream *s)
{
    const struct exsi_flow *f = &s->f;
    bool ring_empty = s->iarr == s->icop;
    if (EXSI_FAULT(skip_settle_a) || EXSI_FAULT(ack_before_copy) || EXSI_FAULT(skip_s1) || EXSI_FAULT(ind_less)) return;
    assert(s->iarr - s->icop <= s->ring_len);
    assert(ring_empty || exsi_list_empty(&f->recvs));
    assert(f->acked <= f->freed && f->freed == s->icop && s->icop <= s->iarr && s->iarr <= f->arrived);
    assert(s->ifreed <= s->isent && s->isent <= f->sent);
    assert(s->isent - s->ifreed <= s->peer_len || EXSI_FAULT(ring_wrap));
    assert(f->credit <= f->peer_slots && f->owed <= f->slots);
    check_adverts(s);
}
#else
static void check(const struct exsi_stream *s)
{
    (void)s;
}
#endif

/* --- what to send, in order --------------------------------------------------------------------------- */

/* Our first message: the ring's key if the hello had none, else any message of the active side. */
static bool open_link(struct exsi_stream *s)
{
    struct exsi_flow *f = &s->f;
    if (f->opened) return true;
    if (!s->ring_late) return exsi_flow_first_credit(f);
    if (!s->ring_rkey) {
        int rc = exsi_ep_key_bind(f->ep, f->ep->memory.ring_dmr, s->ring, s->ring_len, &s->ring_rkey);
        if (rc < 0) {
            exsi_ep_fail(f->ep, -rc, "no key could be bound for the ring");
            return false;
        }
    }
    struct exsi_control c = {
        .type = EXSI_CTL_RING, .addr = (uint64_t)(uintptr_t)s->ring, .rkey = s->ring_rkey, .len = s->ring_len};
    f->opened = exsi_flow_control(f, &c);
    return f->opened;
}

static void pump_all(struct exsi_stream *s)
{
    struct exsi_flow *f = &s->f;
    /* Data must not overtake REVOKED: the peer takes it for the first receive that is live there. */
    bool answered = EXSI_FAULT(revoked_late) || exsi_flow_pump_revoked(f, 0);
    exsi_stream_pump_adverts(s);
    if (!exsi_flow_pump_acks(f) || !exsi_flow_pump_revokes(f) || !answered) return;
    exsi_stream_pump_data(s);
    if (EXSI_FAULT(revoked_late)) (void)exsi_flow_pump_revoked(f, 0);
    exsi_flow_pump_fin(f);
}

/* ES-API I11 */
void exsi_stream_pump(struct exsi_flow *f)
{
    struct exsi_stream *s = exsi_stream_of(f);
    if (f->live && exsi_flow_running(f) && open_link(s)) {
        pump_all(s);
        exsi_flow_return_credit(f);
    }
    check(s);
    exsi_flow_report(f, ready_bits(f));
}

static void on_control(struct exsi_flow *f, const struct exsi_control *c)
{
    struct exsi_stream *s = exsi_stream_of(f);
    if (!exsi_stream_freed(s, c->freed) || !exsi_flow_header(f, c)) return;
    switch (c->type) {
    case EXSI_CTL_ADVERT: exsi_stream_advert(s, c); break;
    case EXSI_CTL_RING: exsi_stream_ring(s, c); break;
    case EXSI_CTL_REVOKED: exsi_stream_revoked(s, c->id); break;
    case EXSI_CTL_FIN:
        if (exsi_flow_fin_arrived(f, c)) exsi_stream_settle(f);
        break;
    case EXSI_CTL_LENGTH: exsi_flow_fail(f, "type: LENGTH on a stream"); break;
    default: break; /* ACK, CREDIT, PONG: the header was all */
    }
}

static const struct exsi_flow_ops flow_ops = {
    .pump = exsi_stream_pump,
    .ready = ready_bits,
    .word = exsi_stream_word,
    .control = on_control,
    .settle = exsi_stream_settle,
    .cancel_send = exsi_stream_cancel_send,
    .shut_recv = exsi_stream_shut_recv,
};

/* --- the table ----------------------------------------------------------------------------------------- */

static void ep_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out)
{
    exsi_flow_ep_attr(cfg, out);
    out->ring_len = cfg->ring_bytes;
}

/* Some devices bind keys only on a connected queue pair: then RING is our first message. */
static int ring_bind(struct exsi_stream *s)
{
    struct exsi_endpoint *ep = s->f.ep;
    int rc = exsi_ep_key_bind(ep, ep->memory.ring_dmr, s->ring, s->ring_len, &s->ring_rkey);
    if (rc == -ENOMEM) return rc;
    if (rc < 0) s->ring_rkey = 0;
    s->ring_late = s->ring_rkey == 0;
    return 0;
}

static int ep_open(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg)
{
    if (!ep->memory.ring) return -EINVAL;
    struct exsi_stream *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    int rc = exsi_flow_init(&s->f, ep, cfg, &flow_ops);
    if (rc < 0) goto fail_flow;
    s->ring = ep->memory.ring;
    s->ring_len = ep->attr.ring_len;
    s->hold.fn = exsi_stream_hold_over;
    rc = ring_bind(s);
    if (rc < 0) goto fail_ring;
    ep->engine_state = &s->f;
    return 0;
fail_ring:
    exsi_flow_fini(&s->f);
fail_flow:
    free(s);
    return rc;
}

static void ep_close(struct exsi_endpoint *ep)
{
    struct exsi_stream *s = exsi_stream_of(ep->engine_state);
    exsi_timer_stop(&ep->group->poller, &s->hold);
    exsi_flow_fini(&s->f);
    free(s);
    ep->engine_state = NULL;
}

static void hello(struct exsi_endpoint *ep, struct exsi_hello *out)
{
    struct exsi_stream *s = exsi_stream_of(ep->engine_state);
    exsi_flow_hello(&s->f, EXSI_HELLO_STREAM, out);
    out->ring_addr = (uint64_t)(uintptr_t)s->ring;
    out->ring_rkey = s->ring_rkey;
    out->ring_len = s->ring_len;
}

static int peer_hello(struct exsi_endpoint *ep, const struct exsi_hello *in, char *reason)
{
    struct exsi_stream *s = exsi_stream_of(ep->engine_state);
    EXSI_TRY(exsi_flow_peer_hello(&s->f, EXSI_HELLO_STREAM, in, reason));
    s->peer_ring = in->ring_addr;
    s->peer_rkey = in->ring_rkey;
    s->peer_len = in->ring_len;
    return 0;
}

static void on_error(struct exsi_endpoint *ep)
{
    struct exsi_stream *s = exsi_stream_of(ep->engine_state);
    exsi_timer_stop(&ep->group->poller, &s->hold);
    exsi_flow_on_error(ep);
}

/* --- socket half --------------------------------------------------------------------------------------- */

static int64_t take(struct exsi_attach *at, void *buf, size_t len, bool fragile)
{
    struct exsi_stream *s = exsi_stream_of(exsi_flow_of(at));
    int64_t got = exsi_stream_take(s, buf, len, fragile);
    if (got > 0) exsi_stream_pump(&s->f);
    return got;
}

const struct exsi_engine_ops exsi_engine_stream = {
    .name = "stream",
    .ep_attr = ep_attr,
    .ep_open = ep_open,
    .ep_close = ep_close,
    .hello = hello,
    .peer_hello = peer_hello,
    .on_up = exsi_flow_on_up,
    .before_flush = exsi_flow_before_flush,
    .on_recv = exsi_flow_on_recv,
    .on_write_done = exsi_flow_on_write_done,
    .on_invalidated = exsi_flow_on_invalidated,
    .on_room = exsi_flow_on_room,
    .on_error = on_error,
    .attach = exsi_flow_attach,
    .detach = exsi_flow_detach,
    .send = exsi_flow_send,
    .recv = exsi_flow_recv,
    .take = take,
    .cancel = exsi_flow_cancel,
    .shutdown_send = exsi_flow_shutdown_send,
    .shutdown_recv = exsi_flow_shutdown_recv,
    .abort = exsi_flow_abort,
    .disconnect = exsi_flow_disconnect,
    .ready = exsi_flow_ready_now,
};
