// SPDX-License-Identifier: MIT OR Apache-2.0
/* Credits, control messages, and the sends of a flow (engine/flow.h).
 *
 * A message takes a receive at the peer.  Invariant: credit + messages on their way + what the peer owes
 * us == peer_slots; the last two credits are for CREDIT alone, which is sent when half of our receives
 * are owed: so both sides can always give back, whatever else waits (ES-API 2.3.5). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/flow.h"

void exsi_flow_ep_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out)
{
    uint32_t slots = cfg->recv_slots < EXSI_MIN_CREDITS ? EXSI_MIN_CREDITS : exsi_min_u32(cfg->recv_slots, 0xffff);
    out->recv_slots = slots;
    out->recv_slot_len = EXSI_CONTROL_LEN;
    /* A message costs up to two requests, and so many can be on their way to a peer like us. */
    out->send_wr = 2 * slots;
    /* One for each advertisement, and the ring's. */
    out->max_keys = exsi_min_u32(cfg->max_adverts, 0xffff) + 1;
    out->strict_keys = cfg->strict_keys;
}

int exsi_flow_init(struct exsi_flow *f, struct exsi_endpoint *ep, const struct exsi_engine_config *cfg,
                   const struct exsi_flow_ops *ops)
{
    f->ops = ops;
    f->ep = ep;
    f->cfg = *cfg;
    if (f->cfg.max_adverts == 0) f->cfg.max_adverts = 1;
    if (f->cfg.max_adverts > 0xffff) f->cfg.max_adverts = 0xffff;
    if (f->cfg.max_transfer == 0 || f->cfg.max_transfer > EXSI_MAX_WRITE) f->cfg.max_transfer = EXSI_MAX_WRITE;
    f->slots = ep->attr.recv_slots;
    exsi_list_init(&f->sends);
    exsi_list_init(&f->recvs);
    exsi_list_init(&f->ending);
    f->adverts = malloc(f->cfg.max_adverts * sizeof *f->adverts);
    f->revoked = malloc(f->cfg.max_adverts * sizeof *f->revoked);
    if (f->adverts && f->revoked) return 0;
    exsi_flow_fini(f);
    return -ENOMEM;
}

void exsi_flow_fini(struct exsi_flow *f)
{
    assert(exsi_list_empty(&f->sends) && exsi_list_empty(&f->recvs) && exsi_list_empty(&f->ending));
    free(f->adverts);
    free(f->revoked);
    f->adverts = NULL;
    f->revoked = NULL;
}

/* Asked of the queue pair: the way that it took may carry less than the device can. */
static bool carries_immediate(const struct exsi_flow *f)
{
    struct exsi_qp_info info = {0};
    f->ep->ops->qp_query(f->ep->qp, &info);
    return f->ep->dev->caps.has_immediate && info.immediate;
}

/* --- set-up ---------------------------------------------------------------------------------- */

/* ES-API 2.2 */
void exsi_flow_hello(const struct exsi_flow *f, uint16_t type, struct exsi_hello *out)
{
    *out = (struct exsi_hello){
        .version = EXSI_PROTOCOL_VERSION,
        .min_version = EXSI_PROTOCOL_VERSION,
        .flags = (uint16_t)(type | (carries_immediate(f) ? EXSI_HELLO_IMMEDIATE : 0)),
        .credits = (uint16_t)f->slots,
        .max_adverts = (uint16_t)f->cfg.max_adverts,
        .max_transfer = (uint32_t)f->cfg.max_transfer,
    };
}

int exsi_flow_peer_hello(struct exsi_flow *f, uint16_t type, const struct exsi_hello *in, char *reason)
{
    if (!(in->flags & type)) {
        snprintf(reason, EXSI_REASON_MAX, "the peer's socket type is not %s",
                 type == EXSI_HELLO_STREAM ? "STREAM" : "SEQPACKET");
        return -EPROTO;
    }
    if (f->ep->active && in->version > EXSI_PROTOCOL_VERSION) {
        snprintf(reason, EXSI_REASON_MAX, "the peer chose protocol version %u, which was not offered", in->version);
        return -EPROTO;
    }
    f->ep->immediate = (in->flags & EXSI_HELLO_IMMEDIATE) && carries_immediate(f);
    f->credit = f->peer_slots = in->credits;
    f->peer_adverts = in->max_adverts;
    uint64_t most = exsi_min_u64(in->max_transfer, f->cfg.max_transfer);
    f->max_write = (uint32_t)exsi_min_u64(most, f->ep->dev->caps.max_msg);
    return 0;
}

int exsi_flow_attach(struct exsi_attach *at)
{
    struct exsi_flow *f = at->ep->engine_state;
    if (!f || f->at) return -EISCONN;
    f->at = at;
    at->flow = f;
    return 0;
}

void exsi_flow_detach(struct exsi_attach *at)
{
    struct exsi_flow *f = at->flow;
    assert(exsi_list_empty(&f->sends) && exsi_list_empty(&f->recvs) && exsi_list_empty(&f->ending));
    f->at = NULL;
    at->flow = NULL;
}

void exsi_flow_go_live(struct exsi_flow *f)
{
    if (f->live) return;
    struct exsi_qp_info info = {0};
    f->ep->ops->qp_query(f->ep->qp, &info);
    if (info.max_msg) f->max_write = (uint32_t)exsi_min_u64(f->max_write, info.max_msg);
    f->live = true;
}

/* --- control messages -------------------------------------------------------------------------- */

/* ES-API 2.3.5, I13 */
bool exsi_flow_may_send(struct exsi_flow *f, uint32_t n_wr)
{
    if (!f->live || !exsi_flow_running(f)) return false;
    if (f->credit <= (EXSI_FAULT(spend_reserve) ? 0 : EXSI_RESERVED_CREDITS)) {
        if (!f->stalled) exsi_count(f->ep->stats, credit_stalls, 1);
        f->stalled = true;
        return false;
    }
    f->stalled = false;
    return exsi_ep_room(f->ep, n_wr);
}

/* The caller has seen that there is a credit and room. */
static bool send_control(struct exsi_flow *f, struct exsi_control *c)
{
    uint8_t wire[EXSI_CONTROL_LEN];
    c->credits = (uint16_t)f->owed;
    c->freed = f->freed;
    if (f->eof) c->flags |= EXSI_CTLF_FIN_PROCESSED;
    exsi_control_encode(c, wire);
    if (exsi_ep_send(f->ep, wire, sizeof wire, false) < 0) return false;
    f->credit--;
    f->owed = 0;
    f->acked = f->freed;
    f->eof_told = f->eof;
    f->ack_wanted = false;
    return true;
}

bool exsi_flow_control(struct exsi_flow *f, struct exsi_control *c)
{
    return exsi_flow_may_send(f, 1) && send_control(f, c);
}

static bool send_credit(struct exsi_flow *f)
{
    if (!f->live || !exsi_flow_running(f) || f->credit == 0 || !exsi_ep_room(f->ep, 1)) return false;
    return send_control(f, &(struct exsi_control){.type = EXSI_CTL_CREDIT});
}

/* ES-API 2.3.5 */
void exsi_flow_return_credit(struct exsi_flow *f)
{
    if (f->opened && f->owed >= f->slots / 2) (void)send_credit(f);
}

/* ES-API 2.2 */
bool exsi_flow_first_credit(struct exsi_flow *f)
{
    if (!f->opened && f->ep->active) f->opened = send_credit(f);
    if (!f->ep->active) f->opened = f->live;
    return f->opened;
}

bool exsi_flow_pump_acks(struct exsi_flow *f)
{
    if (f->pong_wanted) {
        if (!exsi_flow_control(f, &(struct exsi_control){.type = EXSI_CTL_PONG, .seq = f->pong_seq})) return false;
        f->pong_wanted = false;
    }
    if (f->ack_wanted || (f->eof && !f->eof_told))
        return exsi_flow_control(f, &(struct exsi_control){.type = EXSI_CTL_ACK});
    return true;
}

/* ES-API S2 */
bool exsi_flow_pump_fin(struct exsi_flow *f)
{
    if (!f->fin_wanted || f->fin_sent) return true;
    if (f->unposted && !EXSI_FAULT(fin_early)) return true;
    if (!exsi_flow_control(f, &(struct exsi_control){.type = EXSI_CTL_FIN, .seq = f->sent})) return false;
    f->fin_sent = true;
    return true;
}

/* --- what arrives ------------------------------------------------------------------------------ */

bool exsi_flow_arrived(struct exsi_flow *f)
{
    if (f->owed == f->slots) {
        exsi_flow_fail(f, "credits overrun: more messages than receives were granted");
        return false;
    }
    f->owed++;
    exsi_flow_go_live(f);
    return true;
}

bool exsi_flow_decode(struct exsi_flow *f, const void *data, uint32_t len, const uint32_t *word, bool *is_word,
                      uint32_t *value, struct exsi_control *c)
{
    const char *reason;
    *is_word = true;
    if (word) {
        *value = *word;
        if (f->ep->immediate) return true;
        exsi_flow_fail(f, "immediate data that was not agreed on");
        return false;
    }
    if (len == EXSI_WORD_LEN) {
        exsi_be32 w;
        memcpy(&w, data, sizeof w);
        *value = exsi_get32(w);
        return true;
    }
    *is_word = false;
    if (exsi_control_decode(data, len, c, &reason) == 0) return true;
    exsi_flow_fail(f, "%s", reason);
    return false;
}

static bool take_credits(struct exsi_flow *f, const struct exsi_control *c)
{
    if (c->credits > f->peer_slots - f->credit) {
        exsi_flow_fail(f, "credits: %u returned, %u were out", c->credits, f->peer_slots - f->credit);
        return false;
    }
    f->credit += c->credits;
    return true;
}

bool exsi_flow_header(struct exsi_flow *f, const struct exsi_control *c)
{
    if (!take_credits(f, c)) return false;
    if ((c->flags & EXSI_CTLF_FIN_PROCESSED) && !f->fin_acked) {
        if (!f->fin_sent) {
            exsi_flow_fail(f, "flags: a FIN was acknowledged that was not sent");
            return false;
        }
        f->fin_acked = true;
    }
    switch (c->type) {
    case EXSI_CTL_PING:
        f->pong_wanted = true;
        f->pong_seq = c->seq;
        return false;
    case EXSI_CTL_RESET:
        exsi_ep_fail(f->ep, ECONNRESET, "the peer reset the connection, reason %u", c->len);
        return false;
    case EXSI_CTL_REVOKE: exsi_flow_revoke_arrived(f, c->id); return false;
    default: return true;
    }
}

/* ES-API R4, I2, I14 */
bool exsi_flow_fin_arrived(struct exsi_flow *f, const struct exsi_control *c)
{
    if (f->eof) {
        exsi_flow_fail(f, "a second FIN");
        return false;
    }
    if (c->seq != f->arrived) {
        exsi_flow_fail(f, "seq: FIN after %llu, but %llu arrived", (unsigned long long)c->seq,
                       (unsigned long long)f->arrived);
        return false;
    }
    f->eof = true;
    return true;
}

/* --- what the socket is told --------------------------------------------------------------------- */

uint32_t exsi_flow_ready(const struct exsi_flow *f)
{
    uint32_t bits = 0;
    if (f->eof || f->dead || f->recv_shut) bits |= EXSI_CHANGE_READABLE;
    if (f->eof) bits |= EXSI_CHANGE_PEER_FIN;
    if (f->fin_sent) bits |= EXSI_CHANGE_FIN_SENT;
    if (f->fin_acked) bits |= EXSI_CHANGE_FIN_ACKED;
    if (f->dead) bits |= EXSI_CHANGE_DEAD;
    return bits;
}

void exsi_flow_report(struct exsi_flow *f, uint32_t bits)
{
    uint32_t fresh = bits & ~f->seen;
    f->seen = bits;
    if (fresh && f->at && f->at->changed) f->at->changed(f->at, fresh);
}

/* --- sends --------------------------------------------------------------------------------------- */

bool exsi_flow_write(struct exsi_flow *f, struct exsi_op *op, const uint8_t *src, struct exsi_dmr *dmr, uint32_t len,
                     uint64_t raddr, uint32_t rkey, uint32_t word)
{
    /* Completions come in posting order, and so do sends: the length says all that is asked later. */
    if (exsi_ep_write(f->ep, len, src, len, dmr, raddr, rkey, word) < 0) return false;
    f->credit--;
    op->e.send.posted += len;
    if (len) op->e.send.in_flight++;
    return true;
}

int exsi_flow_queue_send(struct exsi_flow *f, struct exsi_op *op)
{
    if (f->fin_wanted || f->broken) return -EPIPE;
    if (f->dead) return f->error ? -f->error : -EPIPE;
    if (!exsi_flow_running(f)) return f->ep->error ? -f->ep->error : -ENOTCONN;
    exsi_list_append(&f->sends, &op->node);
    if (!f->unposted) f->unposted = op;
    if (op->flags & EXSI_OPF_SHUT_WR) f->fin_wanted = true;
    return 0;
}

void exsi_flow_posted(struct exsi_flow *f)
{
    f->unposted = exsi_list_after(&f->sends, f->unposted, struct exsi_op, node);
}

/* A cut send, or one that stood behind it. */
static void finish_cut(struct exsi_op *op)
{
    if (op->cancelling && op->e.send.posted) op->event_flags |= EXSI_EV_SEND_SHUT;
    op->extra = op->done;
    exsi_op_finish(op, op->cancelling ? ECANCELED : EPIPE, op->done);
}

/* ES-API 1.12, S6 */
void exsi_flow_retire_sends(struct exsi_flow *f)
{
    struct exsi_op *op;
    while ((op = exsi_list_first(&f->sends, struct exsi_op, node)) && op != f->unposted && !op->e.send.in_flight) {
        exsi_list_unlink(&op->node);
        if (op->e.send.cut)
            finish_cut(op);
        else
            exsi_op_finish(op, 0, op->len);
    }
}

void exsi_flow_write_done(struct exsi_flow *f, uint64_t len, int error)
{
    struct exsi_op *op = exsi_list_first(&f->sends, struct exsi_op, node);
    assert(op && op->e.send.in_flight > 0);
    if (error) return; /* the connection is over; on_error ends the operation */
    op->e.send.in_flight--;
    op->done += len;
    exsi_flow_retire_sends(f);
}

static void end_sends(struct exsi_flow *f)
{
    struct exsi_op *op;
    f->unposted = NULL;
    while ((op = exsi_list_first(&f->sends, struct exsi_op, node))) {
        exsi_list_unlink(&op->node);
        if (op->e.send.cut) {
            finish_cut(op);
            continue;
        }
        op->extra = op->done;
        exsi_op_finish(op, f->error ? f->error : ECONNRESET, op->done);
    }
}

void exsi_flow_end_all(struct exsi_flow *f)
{
    f->dead = true;
    f->error = f->ep->error;
    /* An end in order without FIN is none; with it, and nothing of ours on the way, all is well. */
    if (!f->error && !f->eof) f->error = ECONNRESET;
    if (f->at && f->error) f->at->error = f->error;
    end_sends(f);
    exsi_flow_end_recvs(f, f->eof ? 0 : f->error);
}
