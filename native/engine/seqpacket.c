// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SEQPACKET engine: every receive is advertised, a message goes whole into exactly one (ES-API 2.4).
 *
 * There is no ring, so an advertisement is never void, and a send waits for one.  Invariants: message k
 * of the sender fills receive k of those not revoked; one message per advertisement; bit 29 of the notice
 * word stands on the last segment alone; nothing of a new message goes out while a REVOKED is owed. */
#include "engine/flow.h"

#include <stdio.h>
#include <stdlib.h>

struct seqpacket {
    struct exsi_flow f;
    /* Sending: the advertisement that the message at f.unposted has begun to fill. */
    struct exsi_advert cur; /* id 0: none */
    uint64_t limit;         /* bytes of the message that go out */
    bool ended;             /* its last segment is out */
    /* Receiving: LENGTH came for the message that is next; 0: none. */
    uint64_t full_len;
    bool begun;     /* segments of a message came, its end did not */
    uint32_t sinks; /* after SHUT_RD: empty advertisements that swallow messages */
};

/* Enough that a sender whose messages nobody wants does not wait for us. */
#define MAX_SINKS 4

static struct seqpacket *of(const struct exsi_flow *f)
{
    return exsi_container_of(f, struct seqpacket, f);
}

static uint32_t ready_bits(struct exsi_flow *f)
{
    uint32_t bits = exsi_flow_ready(f);
    if (!f->fin_wanted && !f->unposted && f->adv_len && f->opened && exsi_flow_may_send(f, exsi_ep_write_cost(f->ep)))
        bits |= EXSI_CHANGE_WRITABLE;
    return bits;
}

/* --- sending ------------------------------------------------------------------------------------------- */

/* Take the oldest advertisement for the message; false: not now, or (*over) the send has ended.  ES-API 2.4 */
static bool begin_message(struct seqpacket *s, struct exsi_op *op, bool *over)
{
    struct exsi_flow *f = &s->f;
    *over = false;
    if (!f->adv_len || f->revoked_len) return false;
    struct exsi_advert *a = exsi_flow_advert(f);
    bool cut = op->len > a->len;
    if (cut && (op->flags & EXSI_OPF_STRICT_SIZE)) {
        *over = true;
        exsi_flow_posted(f);
        exsi_list_unlink(&op->node);
        exsi_op_finish(op, EMSGSIZE, 0);
        return false;
    }
    if (cut && !exsi_flow_control(f, &(struct exsi_control){.type = EXSI_CTL_LENGTH, .seq = op->len})) return false;
    s->cur = *a;
    s->limit = exsi_min_u64(op->len, a->len);
    s->ended = false;
    op->e.send.begun = true;
    exsi_flow_advert_pop(f);
    return true;
}

static bool send_segment(struct seqpacket *s, struct exsi_op *op)
{
    struct exsi_flow *f = &s->f;
    uint8_t *src = NULL;
    struct exsi_dmr *dmr = NULL;
    bool fragile;
    if (!exsi_flow_may_send(f, exsi_ep_write_cost(f->ep))) return false;
    uint64_t at = op->e.send.posted, left = s->limit - at;
    uint64_t k = left ? exsi_min_u64(exsi_op_span(op, at, &src, &dmr, &fragile), left) : 0;
    k = exsi_min_u64(k, f->max_write);
    uint32_t word = exsi_word(EXSI_WORD_DIRECT, k == left, (uint32_t)k);
    if (!exsi_flow_write(f, op, src, dmr, (uint32_t)k, s->cur.addr + at, s->cur.rkey, word)) return false;
    s->ended = k == left;
    return true;
}

/* The message at the head, as far as it goes; false: it or those behind must wait. */
static bool send_message(struct seqpacket *s, struct exsi_op *op)
{
    struct exsi_flow *f = &s->f;
    bool over;
    if (!op->e.send.begun && !begin_message(s, op, &over)) return over;
    while (!s->ended)
        if (!send_segment(s, op)) return false;
    f->sent++;
    s->cur.id = 0;
    exsi_flow_posted(f);
    /* Those that were refused for this message may be answered now, and must be before the next. */
    return exsi_flow_pump_revoked(f, 0);
}

static void pump_messages(struct seqpacket *s)
{
    struct exsi_flow *f = &s->f;
    if (!f->unposted) return;
    while (f->unposted && send_message(s, f->unposted)) continue;
    /* Empty messages end without a completion of their own. */
    exsi_flow_retire_sends(f);
}

/* --- receiving ------------------------------------------------------------------------------------------ */

/* Behind all receives that still wait for their REVOKED: whatever comes is cut to nothing. */
static void pump_sinks(struct seqpacket *s)
{
    struct exsi_flow *f = &s->f;
    while (s->sinks < MAX_SINKS && f->live_adverts + s->sinks < f->peer_adverts && !f->eof) {
        struct exsi_control c = {.type = EXSI_CTL_ADVERT, .seq = f->arrived};
        if (!exsi_flow_may_send(f, 1)) return;
        c.id = exsi_flow_next_id(f);
        if (!exsi_flow_control(f, &c)) return;
        s->sinks++;
    }
}

static void pump_adverts(struct seqpacket *s)
{
    struct exsi_flow *f = &s->f;
    if (f->recv_shut) pump_sinks(s);
    f->bind_error = 0;
    while (f->next_advert && !f->eof && !f->recv_shut) {
        struct exsi_op *op = f->next_advert;
        uint32_t len = (uint32_t)exsi_min_u64(op->len, UINT32_MAX);
        if (!op->cancelling && !op->e.recv.adv_id && !exsi_flow_advertise(f, op, len, 0, 0)) break;
        f->next_advert = exsi_list_after(&f->recvs, op, struct exsi_op, node);
    }
    /* No key, and none will come back: there is no other way to receive. */
    if (f->bind_error && !f->live_adverts && !f->keys_pending)
        exsi_ep_fail(f->ep, f->bind_error, "no key could be bound for a receive");
}

static void finish_message(struct seqpacket *s, struct exsi_op *op)
{
    struct exsi_flow *f = &s->f;
    uint64_t full = s->full_len;
    if (full && (full <= op->done || op->e.recv.adv_len != 0)) {
        exsi_flow_fail(f, "seq: LENGTH for a message that was not cut");
        return;
    }
    op->event_flags |= EXSI_EV_EOR;
    if (full) {
        op->event_flags |= EXSI_EV_TRUNCATED;
        op->extra = full;
    }
    s->full_len = 0;
    s->begun = false;
    f->arrived++;
    exsi_flow_end_recv(f, op, 0);
}

/* A message that nobody wants. */
static void swallow(struct seqpacket *s, bool end, uint32_t count)
{
    if (count || !end) {
        exsi_flow_fail(&s->f, "count: message beyond its advertisement");
        return;
    }
    s->sinks--;
    s->full_len = 0;
    s->f.arrived++;
}

/* ES-API 2.4 */
static void on_word(struct exsi_flow *f, uint32_t word)
{
    struct seqpacket *s = of(f);
    enum exsi_word_kind kind;
    bool end;
    uint32_t count;
    const char *reason;
    if (exsi_word_decode(word, &kind, &end, &count, &reason) < 0) {
        exsi_flow_fail(f, "%s", reason);
        return;
    }
    if (kind != EXSI_WORD_DIRECT || f->eof) {
        exsi_flow_fail(f, f->eof ? "data behind FIN" : "notice word: indirect in seqpacket");
        return;
    }
    struct exsi_op *op = exsi_flow_first_live(f);
    if (!op && s->sinks) {
        swallow(s, end, count);
        return;
    }
    if (!op || count > op->e.recv.adv_len) {
        exsi_flow_fail(f, op ? "count: message beyond its advertisement" : "message without an advertisement");
        return;
    }
    exsi_count(f->ep->stats, bytes_direct, count);
    op->done += count;
    op->e.recv.adv_len -= count;
    if (count) op->event_flags |= EXSI_EV_DIRECT;
    s->begun = true;
    if (end) finish_message(s, op);
}

static void on_length(struct seqpacket *s, const struct exsi_control *c)
{
    if (s->full_len || s->begun) {
        exsi_flow_fail(&s->f, "LENGTH inside a message");
        return;
    }
    s->full_len = c->seq;
}

static void on_revoked(struct seqpacket *s, uint32_t id)
{
    struct exsi_op *op = exsi_flow_revoked(&s->f, id);
    if (!op) return;
    if (op->done) {
        exsi_flow_fail(&s->f, "REVOKED inside a message");
        return;
    }
    exsi_flow_end_cancelled(&s->f, op);
}

static void on_fin(struct seqpacket *s, const struct exsi_control *c)
{
    if (s->begun || s->full_len) {
        exsi_flow_fail(&s->f, "FIN inside a message");
        return;
    }
    if (exsi_flow_fin_arrived(&s->f, c)) exsi_flow_end_recvs(&s->f, 0);
}

/* --- both ------------------------------------------------------------------------------------------------ */

static void pump_all(struct seqpacket *s)
{
    struct exsi_flow *f = &s->f;
    bool answered = exsi_flow_pump_revoked(f, s->cur.id);
    pump_adverts(s);
    if (!exsi_flow_pump_acks(f) || !exsi_flow_pump_revokes(f) || !answered) return;
    pump_messages(s);
    exsi_flow_pump_fin(f);
}

static void pump(struct exsi_flow *f)
{
    if (f->live && exsi_flow_running(f) && exsi_flow_first_credit(f)) {
        pump_all(of(f));
        exsi_flow_return_credit(f);
    }
    assert(f->credit <= f->peer_slots && f->owed <= f->slots && f->live_adverts <= f->peer_adverts);
    exsi_flow_report(f, ready_bits(f));
}

static void on_control(struct exsi_flow *f, const struct exsi_control *c)
{
    struct seqpacket *s = of(f);
    if (!exsi_flow_header(f, c)) return;
    switch (c->type) {
    case EXSI_CTL_ADVERT:
        if (c->ind)
            exsi_flow_fail(f, "ind: not 0 in seqpacket");
        else
            (void)exsi_flow_advert_add(f, c);
        break;
    case EXSI_CTL_LENGTH: on_length(s, c); break;
    case EXSI_CTL_REVOKED: on_revoked(s, c->id); break;
    case EXSI_CTL_FIN: on_fin(s, c); break;
    case EXSI_CTL_RING: exsi_flow_fail(f, "type: RING in seqpacket"); break;
    default: break; /* ACK, CREDIT, PONG: the header was all */
    }
}

/* A receive behind the end, or on a socket whose connection is over, waits for nothing. */
static void settle(struct exsi_flow *f)
{
    if (f->eof || f->dead) exsi_flow_end_recvs(f, f->eof ? 0 : f->error);
}

/* A message that has begun cannot be taken back: the peer's receive waits for its end. */
static void cancel_send(struct exsi_flow *f, struct exsi_op *op)
{
    if (op->e.send.begun) return;
    if (op->flags & EXSI_OPF_SHUT_WR && !f->fin_sent) f->fin_wanted = f->shut_asked;
    if (f->unposted == op) exsi_flow_posted(f);
    exsi_list_unlink(&op->node);
    exsi_op_finish(op, ECANCELED, 0);
}

static void shut_recv(struct exsi_flow *f)
{
    f->recv_shut = true;
    exsi_flow_cancel_all_recvs(f);
}

static const struct exsi_flow_ops flow_ops = {
    .pump = pump,
    .ready = ready_bits,
    .word = on_word,
    .control = on_control,
    .settle = settle,
    .cancel_send = cancel_send,
    .shut_recv = shut_recv,
};

/* --- the table -------------------------------------------------------------------------------------------- */

static int ep_open(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg)
{
    /* Every receive is exposed, so without keys of its own range nothing can be received. */
    if (cfg->strict_keys && !ep->key_per_range) {
        snprintf(ep->reason, sizeof ep->reason,
                 "strict_keys: messages need keys of a range, for which this device has no memory windows");
        return -EOPNOTSUPP;
    }
    struct seqpacket *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    int rc = exsi_flow_init(&s->f, ep, cfg, &flow_ops);
    if (rc < 0) {
        free(s);
        return rc;
    }
    ep->engine_state = &s->f;
    return 0;
}

static void ep_close(struct exsi_endpoint *ep)
{
    struct seqpacket *s = of(ep->engine_state);
    exsi_flow_fini(&s->f);
    free(s);
    ep->engine_state = NULL;
}

static void hello(struct exsi_endpoint *ep, struct exsi_hello *out)
{
    exsi_flow_hello(ep->engine_state, EXSI_HELLO_SEQPACKET, out);
}

static int peer_hello(struct exsi_endpoint *ep, const struct exsi_hello *in, char *reason)
{
    return exsi_flow_peer_hello(ep->engine_state, EXSI_HELLO_SEQPACKET, in, reason);
}

/* --- socket half ------------------------------------------------------------------------------------------- */

/* Nothing lies here unasked: only the end can be reported. */
static int64_t take(struct exsi_attach *at, void *buf, size_t len, bool fragile)
{
    const struct exsi_flow *f = exsi_flow_of(at);
    (void)buf, (void)len, (void)fragile;
    if (f->eof || f->recv_shut) return 0;
    if (f->dead) return f->error ? -f->error : 0;
    return -EAGAIN;
}

const struct exsi_engine_ops exsi_engine_seqpacket = {
    .name = "seqpacket",
    .ep_attr = exsi_flow_ep_attr,
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
    .on_error = exsi_flow_on_error,
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
