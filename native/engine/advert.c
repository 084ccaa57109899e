// SPDX-License-Identifier: MIT OR Apache-2.0
/* Advertisements in both directions, and how receives end (engine/flow.h).
 *
 * Ours: a receive has at most one live advertisement.  Its key lives exactly as long as it: bound with
 * the ADVERT, ended when it is used up or void, and no event is given before the key has ended.
 * Invariants: live_adverts counts the entries of recvs with adv_id != 0 and is at most the peer's limit;
 * an entry that waits for its advertisement holds back those behind it, or data would skip it.
 * The peer's: a FIFO of at most cfg.max_adverts; each id in it once. */
#include "engine/flow.h"

/* --- the peer's ------------------------------------------------------------------------------------ */

static struct exsi_advert *advert_at(struct exsi_flow *f, uint32_t i)
{
    uint32_t at = f->adv_head + i;
    return &f->adverts[at < f->cfg.max_adverts ? at : at - f->cfg.max_adverts];
}

static bool advert_repeats(struct exsi_flow *f, uint32_t id)
{
    /* Ids that count up by one cannot repeat a live one. */
    if (id != f->adv_last + 1 && f->adv_last != 0) f->adv_wild = true;
    f->adv_last = id;
    if (!f->adv_wild) return false;
    for (uint32_t i = 0; i < f->adv_len; i++)
        if (advert_at(f, i)->id == id) return true;
    return false;
}

bool exsi_flow_advert_add(struct exsi_flow *f, const struct exsi_control *c)
{
    if (f->adv_len == f->cfg.max_adverts) {
        exsi_flow_fail(f, "more than %u advertisements", f->cfg.max_adverts);
        return false;
    }
    if (c->seq > f->sent) {
        exsi_flow_fail(f, "seq: ADVERT made after more data than was sent");
        return false;
    }
    if (advert_repeats(f, c->id)) {
        exsi_flow_fail(f, "id: ADVERT %u is live already", c->id);
        return false;
    }
    *advert_at(f, f->adv_len++) = (struct exsi_advert){
        .addr = c->addr,
        .ind = c->ind,
        .id = c->id,
        .rkey = c->rkey,
        .len = c->len,
        .waitall = c->flags & EXSI_CTLF_WAITALL,
    };
    exsi_count(f->ep->stats, adverts_received, 1);
    return true;
}

void exsi_flow_advert_pop(struct exsi_flow *f)
{
    assert(f->adv_len > 0);
    if (++f->adv_head == f->cfg.max_adverts) f->adv_head = 0;
    f->adv_len--;
}

static void advert_remove(struct exsi_flow *f, uint32_t id)
{
    for (uint32_t i = 0; i < f->adv_len; i++) {
        if (advert_at(f, i)->id != id) continue;
        for (; i + 1 < f->adv_len; i++) *advert_at(f, i) = *advert_at(f, i + 1);
        f->adv_len--;
        return;
    }
}

void exsi_flow_revoke_arrived(struct exsi_flow *f, uint32_t id)
{
    if (f->revoked_len == f->cfg.max_adverts) {
        exsi_flow_fail(f, "more than %u REVOKEs without an answer", f->cfg.max_adverts);
        return;
    }
    advert_remove(f, id);
    uint32_t at = f->revoked_head + f->revoked_len++;
    f->revoked[at < f->cfg.max_adverts ? at : at - f->cfg.max_adverts] = id;
}

/* ES-API 2.3.6 */
bool exsi_flow_pump_revoked(struct exsi_flow *f, uint32_t busy)
{
    while (f->revoked_len) {
        uint32_t id = f->revoked[f->revoked_head];
        if (id == busy) return true;
        if (!exsi_flow_control(f, &(struct exsi_control){.type = EXSI_CTL_REVOKED, .id = id})) return false;
        if (++f->revoked_head == f->cfg.max_adverts) f->revoked_head = 0;
        f->revoked_len--;
    }
    return true;
}

/* --- ours ------------------------------------------------------------------------------------------ */

bool exsi_flow_advertise(struct exsi_flow *f, struct exsi_op *op, uint32_t len, uint8_t flags, uint64_t ind)
{
    uint8_t *at = NULL;
    struct exsi_dmr *dmr = NULL;
    bool fragile;
    uint32_t rkey = 0;
    if (f->live_adverts >= f->peer_adverts || !exsi_flow_may_send(f, 1)) return false;
    if (len) {
        exsi_op_span(op, op->done, &at, &dmr, &fragile);
        int rc = exsi_ep_key_bind(f->ep, dmr, at, len, &rkey);
        f->bind_error = -rc;
        if (rc < 0) return false;
    }
    struct exsi_control c = {
        .type = EXSI_CTL_ADVERT,
        .flags = flags,
        .id = exsi_flow_next_id(f),
        .addr = (uint64_t)(uintptr_t)at,
        .rkey = rkey,
        .len = len,
        .ind = ind,
        .seq = f->arrived,
    };
    op->e.recv.adv_id = c.id;
    op->e.recv.adv_len = len;
    op->e.recv.adv_ind = ind;
    op->e.recv.rkey = rkey;
    f->live_adverts++;
    exsi_count(f->ep->stats, adverts_sent, 1);
    /* A failure is the end of the connection: its ending clears up. */
    return exsi_flow_control(f, &c);
}

/* ES-API 2.3.9 */
void exsi_flow_unadvertise(struct exsi_flow *f, struct exsi_op *op)
{
    if (op->e.recv.adv_id == 0) return;
    op->e.recv.adv_id = 0;
    op->e.recv.adv_len = 0;
    f->live_adverts--;
    if (op->e.recv.revoke == EXSI_REVOKE_WANTED) f->revokes_wanted--;
    op->e.recv.revoke = EXSI_REVOKE_NONE;
    if (op->e.recv.rkey == 0 || f->dead) return;
    int rc = exsi_ep_key_invalidate(f->ep, op->e.recv.rkey, op->handle);
    if (rc < 0) exsi_ep_fail(f->ep, -rc, "a key could not be ended");
    /* After a failure the end of the queue pair ends the key: until then the buffer stays ours. */
    op->e.recv.key_pending = rc != 0;
    f->keys_pending += rc != 0;
    op->e.recv.rkey = 0;
}

/* ES-API I8 */
struct exsi_op *exsi_flow_first_live(struct exsi_flow *f)
{
    if (f->live_adverts == 0) return NULL;
    exsi_list_for (op, &f->recvs, struct exsi_op, node)
        if (op->e.recv.adv_id) return op;
    return NULL;
}

/* ES-API R1 */
int exsi_flow_queue_recv(struct exsi_flow *f, struct exsi_op *op)
{
    if (f->ep->state == EXSI_EP_NEW) return -ENOTCONN;
    exsi_list_append(&f->recvs, &op->node);
    if (!f->next_advert) f->next_advert = op;
    return 0;
}

/* --- ends ------------------------------------------------------------------------------------------- */

static void finish_recv(struct exsi_op *op)
{
    exsi_op_finish(op, op->e.recv.error, op->done);
}

static void drain_ending(struct exsi_flow *f)
{
    struct exsi_op *op;
    while ((op = exsi_list_first(&f->ending, struct exsi_op, node)) && !op->e.recv.key_pending) {
        exsi_list_unlink(&op->node);
        finish_recv(op);
    }
}

/* ES-API I5 */
void exsi_flow_end_recv(struct exsi_flow *f, struct exsi_op *op, int error)
{
    exsi_flow_unadvertise(f, op);
    if (f->next_advert == op) f->next_advert = exsi_list_after(&f->recvs, op, struct exsi_op, node);
    exsi_list_unlink(&op->node);
    op->e.recv.error = error;
    op->e.recv.ended = true;
    if (op->e.recv.key_pending || !exsi_list_empty(&f->ending))
        exsi_list_append(&f->ending, &op->node);
    else
        finish_recv(op);
}

void exsi_flow_end_cancelled(struct exsi_flow *f, struct exsi_op *op)
{
    /* Bytes that were taken from the stream must not vanish. */
    int error = op->done || f->recv_shut ? 0 : ECANCELED;
    if (!error && !op->done) op->event_flags |= EXSI_EV_EOF;
    exsi_flow_end_recv(f, op, error);
}

/* ES-API 2.3.6 */
void exsi_flow_cancel_recv(struct exsi_flow *f, struct exsi_op *op)
{
    if (op->e.recv.ended || op->e.recv.revoke != EXSI_REVOKE_NONE) return;
    op->cancelling = true;
    if (op->e.recv.adv_id == 0 || EXSI_FAULT(cancel_at_once)) {
        exsi_flow_end_cancelled(f, op);
        return;
    }
    op->e.recv.revoke = EXSI_REVOKE_WANTED;
    f->revokes_wanted++;
}

void exsi_flow_cancel_all_recvs(struct exsi_flow *f)
{
    exsi_list_for_safe (op, &f->recvs, struct exsi_op, node) exsi_flow_cancel_recv(f, op);
}

void exsi_flow_end_recvs(struct exsi_flow *f, int error)
{
    struct exsi_op *op;
    while ((op = exsi_list_first(&f->recvs, struct exsi_op, node))) {
        if (op->cancelling) {
            exsi_flow_end_cancelled(f, op);
            continue;
        }
        if (!error && !op->done && op->len) op->event_flags |= EXSI_EV_EOF;
        exsi_flow_end_recv(f, op, op->done ? 0 : error);
    }
    if (!f->dead) return;
    while ((op = exsi_list_first(&f->ending, struct exsi_op, node))) {
        exsi_list_unlink(&op->node);
        finish_recv(op);
    }
}

bool exsi_flow_pump_revokes(struct exsi_flow *f)
{
    if (!f->revokes_wanted) return true;
    exsi_list_for (op, &f->recvs, struct exsi_op, node) {
        if (op->e.recv.revoke != EXSI_REVOKE_WANTED) continue;
        /* The peer remembers as many as it does advertisements. */
        if (f->revokes_out >= f->peer_adverts) return true;
        struct exsi_control c = {.type = EXSI_CTL_REVOKE, .id = op->e.recv.adv_id};
        if (!exsi_flow_control(f, &c)) return false;
        op->e.recv.revoke = EXSI_REVOKE_SENT;
        f->revokes_wanted--;
        f->revokes_out++;
    }
    return true;
}

struct exsi_op *exsi_flow_revoked(struct exsi_flow *f, uint32_t id)
{
    if (f->revokes_out == 0) return NULL;
    f->revokes_out--;
    exsi_list_for (op, &f->recvs, struct exsi_op, node) {
        if (op->e.recv.adv_id == id && op->e.recv.revoke == EXSI_REVOKE_SENT) return op;
    }
    return NULL;
}

void exsi_flow_invalidated(struct exsi_flow *f, uint64_t wr_id)
{
    struct exsi_op *op = exsi_op_find(f->ep->group, wr_id);
    if (!op || op->kind != EXSI_OP_RECV || op->attach != f->at || !op->e.recv.key_pending) return;
    op->e.recv.key_pending = false;
    f->keys_pending--;
    drain_ending(f);
}
