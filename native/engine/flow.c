// SPDX-License-Identifier: MIT OR Apache-2.0
/* The rows of the engine table that STREAM and SEQPACKET share: what happens to the endpoint and what a socket
 * asks for, in the order in which both must do it.  What data means is the engine's (struct exsi_flow_ops).
 * Invariant: the last step of every row is pump, which sends what can go now and tells the socket what changed. */
#include "engine/flow.h"

static void pump(struct exsi_flow *f)
{
    f->ops->pump(f);
}

/* --- endpoint half ------------------------------------------------------------------------------------- */

void exsi_flow_on_up(struct exsi_endpoint *ep)
{
    if (ep->active) exsi_flow_go_live(ep->engine_state);
    pump(ep->engine_state);
}

/* They send at once. */
void exsi_flow_before_flush(struct exsi_endpoint *ep)
{
    (void)ep;
}

void exsi_flow_on_recv(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word)
{
    struct exsi_flow *f = ep->engine_state;
    struct exsi_control c;
    bool is_word;
    uint32_t value;
    if (exsi_flow_arrived(f) && exsi_flow_decode(f, data, len, word, &is_word, &value, &c)) {
        if (is_word)
            f->ops->word(f, value);
        else
            f->ops->control(f, &c);
    }
    pump(f);
}

void exsi_flow_on_write_done(struct exsi_endpoint *ep, uint64_t wr_id, int error)
{
    exsi_flow_write_done(ep->engine_state, wr_id, error);
}

void exsi_flow_on_invalidated(struct exsi_endpoint *ep, uint64_t wr_id)
{
    exsi_flow_invalidated(ep->engine_state, wr_id);
    pump(ep->engine_state);
}

void exsi_flow_on_room(struct exsi_endpoint *ep)
{
    pump(ep->engine_state);
}

void exsi_flow_on_error(struct exsi_endpoint *ep)
{
    struct exsi_flow *f = ep->engine_state;
    exsi_flow_end_all(f);
    exsi_flow_report(f, f->ops->ready(f));
}

/* --- socket half --------------------------------------------------------------------------------------- */

int exsi_flow_send(struct exsi_attach *at, struct exsi_op *op)
{
    struct exsi_flow *f = exsi_flow_of(at);
    if (op->flags & EXSI_OPF_URGENT) return -EOPNOTSUPP;
    EXSI_TRY(exsi_flow_queue_send(f, op));
    pump(f);
    return 0;
}

int exsi_flow_recv(struct exsi_attach *at, struct exsi_op *op)
{
    struct exsi_flow *f = exsi_flow_of(at);
    EXSI_TRY(exsi_flow_queue_recv(f, op));
    if (f->recv_shut) exsi_flow_end_cancelled(f, op);
    f->ops->settle(f);
    pump(f);
    return 0;
}

void exsi_flow_cancel(struct exsi_attach *at, struct exsi_op *op)
{
    struct exsi_flow *f = exsi_flow_of(at);
    if (op->kind == EXSI_OP_SEND)
        f->ops->cancel_send(f, op);
    else
        exsi_flow_cancel_recv(f, op);
    pump(f);
}

void exsi_flow_shutdown_send(struct exsi_attach *at)
{
    struct exsi_flow *f = exsi_flow_of(at);
    f->fin_wanted = f->shut_asked = true;
    pump(f);
}

void exsi_flow_shutdown_recv(struct exsi_attach *at)
{
    struct exsi_flow *f = exsi_flow_of(at);
    f->ops->shut_recv(f);
    pump(f);
}

/* One socket, one connection: its end is the endpoint's. */
void exsi_flow_abort(struct exsi_attach *at, int error, const char *why)
{
    exsi_ep_fail(at->ep, error, "%s", why);
}

void exsi_flow_disconnect(struct exsi_attach *at)
{
    exsi_ep_disconnect(at->ep);
}

uint32_t exsi_flow_ready_now(const struct exsi_attach *at)
{
    struct exsi_flow *f = exsi_flow_of(at);
    return f->ops->ready(f);
}
