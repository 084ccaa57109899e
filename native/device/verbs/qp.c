// SPDX-License-Identifier: MIT OR Apache-2.0
/* Life of a queue pair: how it is made, how it ends.  What is posted on it is post.c's.
 *
 * Death has one order, whatever caused it: _down brings the hardware's half to the error state, what has completed
 * until then is polled, _bury destroys that half, so that nothing lands any more, and only then is everything that
 * was still posted given back as ECANCELED and DISCONNECTED told.  The flush completions of the
 * hardware are not waited for: they come late or never for requests that were posted in the error state.
 *
 * Invariant: a queue pair stands in part->downs from _down until DISCONNECTED was polled. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/verbs/verbs.h"

enum {
    DEFAULT_CLOSE_MS = 5000,
    CAUSE_MS = 2000, /* where a completion does not say why, the reason comes within */
};

static uint64_t ns_of_ms(uint32_t ms)
{
    return (uint64_t)ms * 1000000u;
}

/* --- making -------------------------------------------------------------------------------------- */

static void close_late(struct exsi_timer *t)
{
    struct verbs_qp *qp = exsi_container_of(t, struct verbs_qp, close_timer);
    verbs_qp_fail(qp, ETIMEDOUT, "the peer did not close in time");
}

static void cause_late(struct exsi_timer *t)
{
    struct verbs_qp *qp = exsi_container_of(t, struct verbs_qp, cause_timer);
    if (qp->suspect)
        verbs_qp_fail(qp, qp->suspect, "the peer refused what it had allowed");
    else if (!qp->adapter->iwarp)
        /* Nothing of ours failed, and rdma_cm leaves a queue pair alone when the peer goes: the device found fault with
         * what the peer sent.  (rxe tells it by no event.) */
        verbs_qp_fail(qp, EPROTO, "the peer wrote with a key that is not valid there, or sent what the device refuses");
    else
        verbs_qp_fail(qp, ECONNRESET, "the connection broke");
}

static int alloc_rings(struct verbs_qp *qp)
{
    const struct exsi_qp_attr *attr = &qp->attr;
    const struct ibv_device_attr *most = &qp->adapter->attr;
    bool windows = verbs_has_windows(qp->adapter, qp->domain);
    uint32_t keys = windows ? (attr->max_keys ? attr->max_keys : attr->send_wr) : 0;
    qp->sent_cap = attr->send_wr + VERBS_KEY_WRS * keys + VERBS_OWN_WRS;
    uint32_t recv_cap = attr->recv_wr ? attr->recv_wr : 1;
    if (qp->sent_cap > (uint32_t)most->max_qp_wr || recv_cap > (uint32_t)most->max_qp_wr) return -EINVAL;
    qp->attr.recv_wr = recv_cap;
    EXSI_TRY(verbs_keys_init(&qp->keys, keys));
    qp->sent = calloc(qp->sent_cap, sizeof *qp->sent);
    qp->received = calloc(recv_cap, sizeof *qp->received);
    qp->waiting = calloc(VERBS_WAITING, sizeof *qp->waiting);
    return qp->sent && qp->received && qp->waiting ? 0 : -ENOMEM;
}

static int open_hardware(struct verbs_qp *qp)
{
    struct ibv_qp_init_attr init = {
        .send_cq = qp->cq->cq,
        .recv_cq = qp->cq->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = qp->sent_cap,
                .max_recv_wr = qp->attr.recv_wr,
                .max_send_sge = EXSI_MAX_SGE,
                .max_recv_sge = qp->id ? 1 : 2, /* one spills */
                .max_inline_data = VERBS_INLINE},
    };
    if (!qp->id) return verbs_raw_open(qp, &init);
    struct rdma_cm_id *cm = qp->id->cm;
    if (qp->part->lib->rdma_create_qp(cm, qp->domain->pd, &init) < 0) return -errno;
    qp->ibqp = cm->qp;
    qp->port = cm->port_num;
    return 0;
}

static struct verbs_qp *qp_new(struct verbs_part *part, struct verbs_id *id, const struct exsi_qp_attr *attr)
{
    struct verbs_qp *qp = calloc(1, sizeof *qp);
    if (!qp) return NULL;
    qp->part = part;
    qp->id = id;
    qp->attr = *attr;
    qp->qp.user = attr->user;
    qp->own_domain.slot = -1;
    exsi_list_init(&qp->part_node);
    exsi_list_init(&qp->down_node);
    exsi_list_init(&qp->stricken_node);
    exsi_list_init(&qp->device_node);
    qp->close_timer.fn = close_late;
    qp->cause_timer.fn = cause_late;
    return qp;
}

static int open_domain(struct verbs_qp *qp)
{
    qp->domain = &qp->adapter->domain;
    /* A window can only be bound on a queue pair that is connected, and a raw one's keys are told before that. */
    if (!qp->attr.strict_keys || (qp->adapter->windows && qp->id)) return 0;
    EXSI_TRY(verbs_domain_open(&qp->own_domain, qp->adapter));
    qp->domain = &qp->own_domain;
    return 0;
}

int verbs_qp_create(struct exsi_part *epart, struct exsi_cm_id *eid, const struct exsi_qp_attr *attr,
                    struct exsi_qp **out)
{
    struct verbs_part *part = verbs_part_of(epart);
    struct verbs_id *id = eid ? verbs_id_of(eid) : NULL;
    if (id && (id->qp || (id->state != VERBS_ID_RESOLVED && id->state != VERBS_ID_REQUESTED))) return -EINVAL;
    struct verbs_qp *qp = qp_new(part, id, attr);
    if (!qp) return -ENOMEM;
    int rc = 0;
    if (id)
        qp->adapter = id->adapter;
    else
        rc = verbs_raw_adapter(part, attr->gid, &qp->adapter);
    if (rc == 0) rc = verbs_seat_open(part, qp->adapter, &qp->seat);
    if (rc == 0) rc = open_domain(qp);
    if (rc == 0) rc = alloc_rings(qp);
    if (rc == 0) rc = verbs_cq_get(qp->seat, qp->sent_cap + qp->attr.recv_wr, &qp->cq);
    if (rc == 0) {
        qp->cq_room = qp->sent_cap + qp->attr.recv_wr;
        rc = verbs_slot_take(part, qp);
    }
    if (rc == 0) rc = open_hardware(qp);
    if (rc < 0) {
        exsi_log(part->log, EXSI_LOG_WARNING, attr->log_id, "no queue pair: %s", strerror(-rc));
        verbs_qp_free(qp);
        return rc;
    }
    if (id) id->qp = qp;
    qp->attr.gid = NULL; /* it was the caller's */
    verbs_async_watch(qp);
    *out = &qp->qp;
    return 0;
}

/* Where it is reached; async.c watches whether that address stays. */
static void learn_gid(struct verbs_qp *qp)
{
    struct ibv_qp_attr attr = {0};
    struct ibv_qp_init_attr init;
    const struct verbs_lib *lib = qp->part->lib;
    if (qp->gid_known || qp->adapter->iwarp || lib->ibv_query_qp(qp->ibqp, &attr, IBV_QP_AV, &init)) return;
    qp->gid_index = attr.ah_attr.grh.sgid_index;
    qp->gid_known = lib->ibv_query_gid(qp->adapter->ctx, qp->port, qp->gid_index, &qp->gid) == 0;
}

void verbs_qp_up(struct verbs_qp *qp)
{
    if (qp->up || qp->down) return;
    qp->up = true;
    learn_gid(qp);
    verbs_alive_start(qp);
}

/* --- the end --------------------------------------------------------------------------------------- */

static void to_error(struct verbs_qp *qp)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    (void)qp->part->lib->ibv_modify_qp(qp->ibqp, &attr, IBV_QP_STATE);
}

/* librdmacm brings the queue pair out of RTS itself: on InfiniBand to the error state, and the peer is told by a
 * message; on iWARP to its orderly end, which the peer sees as the end of the TCP stream. */
static int leave(struct verbs_qp *qp)
{
    qp->left = true;
    return qp->part->lib->rdma_disconnect(qp->id->cm) < 0 ? -errno : 0;
}

void verbs_qp_down(struct verbs_qp *qp, int error)
{
    struct verbs_part *part = qp->part;
    if (qp->down) return;
    /* The last word may be among them.  If they are refused we are here again, with none. */
    verbs_qp_flush(&qp->qp);
    if (qp->down) return;
    qp->down = true;
    if (!qp->error) qp->error = error;
    exsi_timer_stop(part->poller, &qp->close_timer);
    exsi_timer_stop(part->poller, &qp->cause_timer);
    exsi_timer_stop(part->poller, &qp->alive_timer);
    bool connected = qp->id && qp->id->state == VERBS_ID_UP;
    if (connected && !qp->left && !qp->adapter->iwarp) (void)leave(qp);
    if (qp->ibqp) to_error(qp);
    if (qp->id) {
        exsi_timer_stop(part->poller, &qp->id->timer);
        exsi_list_unlink(&qp->id->event_node);
        qp->id->state = VERBS_ID_DEAD;
    }
    exsi_list_append(&part->downs, &qp->down_node);
}

void verbs_qp_fail(struct verbs_qp *qp, int error, const char *fmt, ...)
{
    if (qp->down) return;
    va_list ap;
    va_start(ap, fmt);
    if (!qp->error) vsnprintf(qp->reason, sizeof qp->reason, fmt, ap);
    va_end(ap);
    exsi_log(qp->part->log, EXSI_LOG_INFO, qp->attr.log_id, "connection lost: %s", qp->reason);
    verbs_qp_down(qp, error);
}

void verbs_qp_abort(struct exsi_qp *eqp)
{
    verbs_qp_down(verbs_qp_of(eqp), ECONNABORTED);
}

void verbs_qp_lost(struct verbs_qp *qp, int suspect)
{
    if (!qp->suspect) qp->suspect = suspect;
    if (qp->down || qp->left || exsi_timer_running(&qp->cause_timer)) return;
    if (exsi_timer_start(qp->part->poller, &qp->cause_timer, ns_of_ms(CAUSE_MS)) < 0) verbs_qp_down(qp, ECONNRESET);
}

void verbs_qp_drained(struct verbs_qp *qp)
{
    if (!qp->shut || qp->left || qp->down || qp->sent_len) return;
    /* If it has ended meanwhile there is nobody left to tell. */
    if (leave(qp) < 0) verbs_qp_down(qp, 0);
}

void verbs_qp_shut(struct verbs_qp *qp)
{
    if (qp->shut || qp->down) return;
    uint32_t ms = qp->id->opt.close_timeout_ms;
    qp->shut = true;
    int rc = exsi_timer_start(qp->part->poller, &qp->close_timer, ns_of_ms(ms ? ms : DEFAULT_CLOSE_MS));
    /* Requests that complete in silence: the mark behind them does not. */
    if (rc == 0 && qp->sent_quiet) rc = verbs_qp_post_mark(qp);
    if (rc < 0)
        verbs_qp_fail(qp, -rc, "the connection could not be ended in order: %s", strerror(-rc));
    else
        verbs_qp_drained(qp);
}

void verbs_qp_bury(struct verbs_qp *qp)
{
    qp->buried = true;
    if (!qp->ibqp) return;
    /* Nothing lands in the error state, so the windows may go; and rxe waits 50 s for those that are bound to a queue
     * pair that is destroyed. */
    verbs_keys_fini(qp);
    /* librdmacm only knows of it: the queues are not its own. */
    if (qp->id) qp->id->cm->qp = NULL;
    (void)qp->part->lib->ibv_destroy_qp(qp->ibqp);
    verbs_async_forget(qp);
    qp->ibqp = NULL;
    qp->up = false;
}

/* The next of its requests that is given back, or none. */
static bool give_back(struct verbs_qp *qp, struct exsi_wc *out)
{
    while (qp->sent_len) {
        const struct verbs_sent *sent = &qp->sent[qp->sent_head];
        qp->sent_head = (qp->sent_head + 1) % qp->sent_cap;
        qp->sent_len--;
        if (sent->own) continue;
        qp->sent_user--;
        enum exsi_wc_op op = sent->kind == VERBS_SENT_SEND    ? EXSI_WC_SEND
                             : sent->kind == VERBS_SENT_WRITE ? EXSI_WC_WRITE
                                                              : EXSI_WC_READ;
        *out = (struct exsi_wc){.wr_id = sent->wr_id, .qp = &qp->qp, .op = op, .error = ECANCELED};
        return true;
    }
    if (!qp->recv_len) return false;
    *out =
        (struct exsi_wc){.wr_id = qp->received[qp->recv_head], .qp = &qp->qp, .op = EXSI_WC_RECV, .error = ECANCELED};
    qp->recv_head = (qp->recv_head + 1) % qp->attr.recv_wr;
    qp->recv_len--;
    return true;
}

int verbs_qp_poll_down(struct verbs_part *part, struct exsi_wc *wc, int max)
{
    int n = 0;
    exsi_list_for (qp, &part->downs, struct verbs_qp, down_node) {
        /* One that the kernel is still connecting never was in a state in which something could land. */
        if (qp->id && qp->id->blocks)
            qp->buried = true;
        else
            verbs_qp_bury(qp);
        while (n < max && give_back(qp, &wc[n])) n++;
        if (n == max) break;
    }
    return n;
}

void verbs_qp_free(struct verbs_qp *qp)
{
    if (!exsi_list_empty(&qp->part_node)) verbs_slot_drop(qp);
    if (qp->cq_room) verbs_cq_put(qp->cq, qp->cq_room);
    verbs_keys_fini(qp);
    if (qp->own_domain.pd) verbs_domain_close(&qp->own_domain);
    free(qp->sent);
    free(qp->received);
    free(qp->waiting);
    free(qp);
}

void verbs_qp_destroy(struct exsi_qp *eqp)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    struct verbs_id *id = qp->id;
    verbs_qp_down(qp, ECONNABORTED);
    exsi_list_unlink(&qp->down_node);
    if (id && verbs_id_orphan(id)) {
        verbs_slot_drop(qp);
        return;
    }
    verbs_qp_bury(qp);
    verbs_qp_free(qp);
}

void verbs_qp_query(struct exsi_qp *eqp, struct exsi_qp_info *out)
{
    const struct verbs_qp *qp = verbs_qp_of(eqp);
    *out = (struct exsi_qp_info){
        .max_msg = qp->adapter->max_msg,
        .immediate = !qp->adapter->iwarp,
        .key_per_range = verbs_has_windows(qp->adapter, qp->domain),
    };
    if (!qp->id) return;
    verbs_id_names(qp->id, &out->local, &out->peer);
}
