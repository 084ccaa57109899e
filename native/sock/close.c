// SPDX-License-Identifier: MIT OR Apache-2.0
/* Shutdown, close, abort and cancel (ES-API 1.9), and the bound on each.
 *
 * A graceful close ends in two steps.  Its operation is over when the device has everything that was
 * accepted and the end mark behind it; from then on the handle is dead.  The endpoint lingers until the
 * peer has acknowledged the end mark, because only then may the transport be taken down.  One timer of
 * close_timeout bounds the whole; after it the connection is aborted.
 *
 * Invariant: a socket in state CLOSED takes no new operation; those it still has end by themselves, or
 * with the abort. */
#include "sock/sock.h"

static void on_timer(struct exsi_timer *t);

static void start_timer(struct exsi_socket *s, uint64_t after_ns)
{
    if (exsi_timer_running(&s->timer)) return;
    s->timer.fn = on_timer;
    /* Without the timer nothing bounds the peer: rather end the connection now. */
    if (exsi_timer_start(&s->group->poller, &s->timer, after_ns) < 0)
        exsi_close_abort(s, ENOMEM, "no memory for a timer");
}

static uint64_t timeout_ns(const struct exsi_socket *s)
{
    return (uint64_t)s->opt.close_timeout_ms * 1000000u;
}

/* --- operations of a socket -------------------------------------------------------------------------- */

typedef bool op_fn(struct exsi_op *op, void *arg);

/* For each live operation of s (of the group if NULL): fn may finish it.  How many fn counted. */
static int for_ops(struct exsi_group *g, const struct exsi_socket *s, op_fn *fn, void *arg)
{
    int n = 0;
    for (uint32_t i = 0; i < g->ops.cap; i++) {
        struct exsi_op *op = exsi_slab_at(&g->ops, i, NULL);
        if (op && op->attach && (!s || op->attach == &s->attach)) n += fn(op, arg);
    }
    return n;
}

static struct exsi_socket *socket_of(const struct exsi_op *op)
{
    return exsi_container_of(op->attach, struct exsi_socket, attach);
}

/* --- abort ----------------------------------------------------------------------------------------------- */

void exsi_close_abort(struct exsi_socket *s, int error, const char *why)
{
    s->aborted = true;
    if (s->ep && !s->dead) s->engine->abort(&s->attach, error, why);
    exsi_sock_changed(&s->attach, 0);
}

struct overdue {
    uint64_t now_ns, bound_ns, next_ns;
};

static bool is_overdue(struct exsi_op *op, void *arg)
{
    struct overdue *o = arg;
    if (!op->cancel_ns) return false;
    uint64_t end = op->cancel_ns + o->bound_ns;
    if (end <= o->now_ns) return true;
    if (!o->next_ns || end < o->next_ns) o->next_ns = end;
    return false;
}

static void on_timer(struct exsi_timer *t)
{
    struct exsi_socket *s = exsi_container_of(t, struct exsi_socket, timer);
    struct overdue o = {.now_ns = exsi_now_ns(), .bound_ns = timeout_ns(s)};
    bool closing = s->state == EXSI_SOCK_CLOSING || s->state == EXSI_SOCK_CLOSED;
    if (closing) {
        s->overdue = true;
        exsi_close_abort(s, ETIMEDOUT, "the peer did not acknowledge the close in time");
    } else if (for_ops(s->group, s, is_overdue, &o) > 0) {
        exsi_close_abort(s, ETIMEDOUT, "the peer did not answer a cancelled operation in time");
    } else if (o.next_ns) {
        start_timer(s, o.next_ns - o.now_ns);
    }
}

/* --- cancel ---------------------------------------------------------------------------------------------- */

/* ES-API 1.9 */
void exsi_close_cancel(struct exsi_socket *s, struct exsi_op *op)
{
    switch ((enum exsi_op_kind)op->kind) {
    case EXSI_OP_SEND:
    case EXSI_OP_RECV: {
        if (op->cancelling) return;
        uint64_t handle = op->handle;
        op->cancelling = true;
        op->cancel_ns = exsi_now_ns();
        s->engine->cancel(&s->attach, op);
        if (exsi_op_find(s->group, handle) && !s->dead) start_timer(s, timeout_ns(s));
        return;
    }
    case EXSI_OP_CONNECT: exsi_conn_fail(s, ECANCELED); return;
    case EXSI_OP_POLL: exsi_poll_end(op, ECANCELED, 0); return;
    case EXSI_OP_NOTICE: /* a link's: no socket has it */
    case EXSI_OP_ACCEPT:
    case EXSI_OP_SHUTDOWN: exsi_op_finish(op, ECANCELED, 0); return;
    case EXSI_OP_CLOSE:
        /* Closed in any case: what could not be done in order is done at once. */
        op->cancelling = true;
        exsi_close_abort(s, ECONNABORTED, "close was cancelled");
        return;
    }
}

struct match {
    bool by_cookie;
    uint64_t cookie;
};

static bool cancel_if(struct exsi_op *op, void *arg)
{
    const struct match *m = arg;
    if (m->by_cookie && op->cookie != m->cookie) return false;
    exsi_close_cancel(socket_of(op), op);
    return true;
}

int exsi_close_cancel_match(struct exsi_group *g, struct exsi_socket *s, bool match, uint64_t cookie)
{
    struct match m = {.by_cookie = match, .cookie = cookie};
    return for_ops(g, s, cancel_if, &m);
}

static bool cancel_recv(struct exsi_op *op, void *arg)
{
    (void)arg;
    if (op->kind != EXSI_OP_RECV) return false;
    exsi_close_cancel(socket_of(op), op);
    return true;
}

/* --- shutdown -------------------------------------------------------------------------------------------- */

/* ES-API 1.9 */
int exsi_close_shutdown(struct exsi_socket *s, int how, struct exsi_op *op)
{
    if (s->state != EXSI_SOCK_CONNECTED && s->state != EXSI_SOCK_DEAD) return -ENOTCONN;
    if (s->state == EXSI_SOCK_DEAD) {
        if (s->attach.error) return -s->attach.error;
        s->send_shut = true; /* both ends are down already */
        exsi_op_finish(op, 0, 0);
        return 0;
    }
    if (how == SHUT_RD || how == SHUT_RDWR) {
        s->recv_shut = true;
        s->engine->shutdown_recv(&s->attach);
    }
    if (how == SHUT_RD) {
        exsi_op_finish(op, 0, 0);
        return 0;
    }
    s->send_shut = s->shut_asked = true;
    exsi_list_append(&s->shutdowns, &op->node);
    s->engine->shutdown_send(&s->attach);
    exsi_sock_changed(&s->attach, 0);
    return 0;
}

static void finish_shutdowns(struct exsi_socket *s, int error)
{
    exsi_list_for_safe (op, &s->shutdowns, struct exsi_op, node) exsi_op_finish(op, error, 0);
}

/* --- close ------------------------------------------------------------------------------------------------- */

/* What still comes is discarded and acknowledged, or the peer would stall before it reads our end.  Not
 * while receives are being cancelled: they end with what they got, or ECANCELED. */
static void discard(struct exsi_socket *s)
{
    if (s->discarding || s->recvs > 0 || s->dead || s->aborted) return;
    s->discarding = true;
    s->engine->shutdown_recv(&s->attach);
}

static void close_connected(struct exsi_socket *s)
{
    s->state = EXSI_SOCK_CLOSING;
    s->send_shut = s->shut_asked = s->recv_shut = true;
    start_timer(s, timeout_ns(s));
    s->engine->shutdown_send(&s->attach);
    (void)for_ops(s->group, s, cancel_recv, NULL);
    discard(s);
}

void exsi_close_start(struct exsi_socket *s, bool abort, struct exsi_op *op)
{
    if (op) exsi_list_append(&s->closes, &op->node);
    exsi_poll_end_all(s, abort ? ECONNABORTED : ECANCELED);
    if (s->state == EXSI_SOCK_CONNECTED && !abort) {
        close_connected(s);
    } else {
        if (s->state == EXSI_SOCK_LISTENING) exsi_conn_unlisten(s, abort ? ECONNABORTED : ECANCELED);
        if (s->state == EXSI_SOCK_CONNECTING) exsi_conn_fail(s, abort ? ECONNABORTED : ECANCELED);
        if (s->state != EXSI_SOCK_CLOSED) s->state = EXSI_SOCK_CLOSING;
        exsi_close_abort(s, ECONNABORTED, "aborted by the program");
    }
    exsi_sock_changed(&s->attach, 0);
}

/* Closing: the op may be over.  A close succeeds also on a connection that the peer or the network has ended: the
 * handle is gone in any case, and what was lost is told by the operations that were under way.  Only what the
 * close itself did not get done is its own: the time that it was given ran out, or it was cancelled.  ES-API 1.9 */
static void finish_close(struct exsi_socket *s)
{
    s->state = EXSI_SOCK_CLOSED;
    exsi_list_for_safe (op, &s->closes, struct exsi_op, node)
        exsi_op_finish(op, op->cancelling ? ECANCELED : s->overdue ? ETIMEDOUT : 0, 0);
}

/* Closed: take the transport down once the peer has processed our end mark. */
static void disconnect(struct exsi_socket *s)
{
    s->disconnecting = true;
    s->engine->disconnect(&s->attach);
}

void exsi_close_step(struct exsi_socket *s, uint32_t ready)
{
    bool over = s->dead || !s->ep;
    bool fin_sent = (ready & EXSI_CHANGE_FIN_SENT) && s->sends == 0;
    if (!exsi_list_empty(&s->shutdowns) && (over || fin_sent)) finish_shutdowns(s, over ? s->attach.error : 0);
    if (s->state == EXSI_SOCK_CLOSING && (over || fin_sent)) finish_close(s);
    if (s->state != EXSI_SOCK_CLOSED) return;
    if (over) {
        if (s->sends == 0 && s->recvs == 0) exsi_sock_retire(s);
        return;
    }
    discard(s);
    if ((ready & EXSI_CHANGE_FIN_ACKED) && s->recvs == 0 && s->sends == 0 && !s->disconnecting && !s->aborted)
        disconnect(s);
}
