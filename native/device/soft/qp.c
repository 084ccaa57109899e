// SPDX-License-Identifier: MIT OR Apache-2.0
/* All semantics of soft's queue pairs: send queue, posted receives, order of completions, the end.
 * Knows nothing of sockets or shared memory: a path moves the bytes and reports to the sink below.
 *
 * Invariants: completions of one queue pair are queued in posting order per direction; every posted
 * request is completed or silently retired exactly once; once the state is DOWN all have been, the
 * path has stopped, and DISCONNECTED is queued exactly once.
 *
 * A sink must not call back into its path, so it only notes (part->work); soft_qp_settle acts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/soft/cm.h"
#include "device/soft/qp.h"

static uint32_t sq_slot(const struct soft_qp *qp, uint32_t i)
{
    return (qp->sq_head + i) % qp->sq_cap;
}

static struct soft_tx *sq_at(const struct soft_qp *qp, uint32_t slot)
{
    return &qp->sq[slot / SOFT_TX_CHUNK][slot % SOFT_TX_CHUNK];
}

struct soft_tx *soft_qp_tx(struct soft_qp *qp, uint32_t i)
{
    return i < qp->sq_len ? sq_at(qp, sq_slot(qp, i)) : NULL;
}

static void note_work(struct soft_qp *qp)
{
    if (exsi_list_empty(&qp->work_node)) exsi_list_append(&qp->part->work, &qp->work_node);
}

/* --- completions ------------------------------------------------------------------------------- */

static void complete_send(struct soft_qp *qp, const struct exsi_send_wr *wr, int error)
{
    if (!error && !(wr->flags & EXSI_WR_SIGNALED)) {
        soft_cq_unreserve(qp->part, 1);
        return;
    }
    struct exsi_wc wc = {
        .wr_id = wr->wr_id, .qp = &qp->qp, .op = wr->op == EXSI_WR_SEND ? EXSI_WC_SEND : EXSI_WC_WRITE, .error = error};
    soft_cq_push(qp, &wc);
}

static void sq_pop(struct soft_qp *qp)
{
    qp->sq_head = (qp->sq_head + 1) % qp->sq_cap;
    if (--qp->sq_len == 0) qp->sq_head = 0;
}

static void complete_recv(struct soft_qp *qp, uint32_t len, int error)
{
    struct exsi_wc wc = {
        .wr_id = qp->rq[qp->rq_head].wr_id, .qp = &qp->qp, .op = EXSI_WC_RECV, .error = error, .byte_len = len};
    qp->rq_head = (qp->rq_head + 1) % qp->rq_cap;
    qp->rq_len--;
    soft_cq_push(qp, &wc);
}

void soft_qp_down(struct soft_qp *qp, int error, const char *reason)
{
    if (qp->state == SOFT_QP_DOWN) return;
    qp->state = SOFT_QP_DOWN;
    qp->error = error;
    if (reason) snprintf(qp->reason, sizeof qp->reason, "%s", reason);
    exsi_timer_stop(qp->part->poller, &qp->close_timer);
    exsi_list_unlink(&qp->work_node);
    while (qp->sq_len) {
        const struct soft_tx *tx = soft_qp_tx(qp, 0);
        complete_send(qp, &tx->wr, tx->done ? 0 : ECANCELED);
        sq_pop(qp);
    }
    while (qp->rq_len) complete_recv(qp, 0, ECANCELED);
    exsi_list_append(&qp->part->events, &qp->event.node);
}

/* --- the sink ---------------------------------------------------------------------------------- */

static int sink_tagged(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst, bool *fragile)
{
    if (qp->state != SOFT_QP_UP) return -ECANCELED;
    return soft_key_check(qp, rkey, raddr, len, dst, fragile);
}

static void sink_tagged_done(struct soft_qp *qp, uint32_t len, bool last)
{
    (void)last;
    exsi_count(qp->stats, bytes_device, len);
}

/* RFC 5041 §5.3 */
static int sink_untagged(struct soft_qp *qp, uint32_t msn, uint32_t mo, uint32_t len, void **dst)
{
    if (qp->state != SOFT_QP_UP) return -ECANCELED;
    if (msn != qp->rx_msn) return -EPROTO;
    if (mo != qp->rx_mo) return -ERANGE;
    if (!qp->rq_len) return -ENOBUFS;
    const struct exsi_recv_wr *r = &qp->rq[qp->rq_head];
    bool spills = mo + len > r->sge.len && r->spill.len;
    const struct exsi_sge *sge = spills ? &r->spill : &r->sge;
    if (!exsi_range_inside(mo, len, sge->len)) return -EMSGSIZE;
    *dst = (uint8_t *)sge->addr + mo;
    return 0;
}

/* A raw queue pair's peer knows of no credits: what comes too early waits in the transport. */
static bool sink_may_receive(struct soft_qp *qp)
{
    if (!qp->raw || qp->rq_len || qp->state != SOFT_QP_UP) return true;
    qp->starved = true;
    return false;
}

/* A piece of a message lay across the end of its own buffer. */
static void split(const struct exsi_recv_wr *r, uint32_t mo, uint32_t len)
{
    if (mo >= r->sge.len || mo + len <= r->sge.len) return;
    memcpy((uint8_t *)r->sge.addr + mo, (uint8_t *)r->spill.addr + mo, r->sge.len - mo);
}

/* RFC 5041 §5.4 */
static void sink_untagged_done(struct soft_qp *qp, uint32_t mo, uint32_t len, bool last, bool solicited)
{
    (void)solicited; /* every completion wakes the one who polls */
    assert(mo == qp->rx_mo);
    exsi_count(qp->stats, bytes_device, len);
    split(&qp->rq[qp->rq_head], mo, len);
    qp->rx_mo = mo + len;
    if (!last) return;
    complete_recv(qp, qp->rx_mo, 0);
    qp->rx_msn++;
    qp->rx_mo = 0;
}

static void sink_tx_done(struct soft_qp *qp)
{
    for (;;) {
        const struct soft_tx *tx = soft_qp_tx(qp, 0);
        if (!tx || !tx->done) break;
        exsi_count(qp->stats, bytes_device, tx->len);
        complete_send(qp, &tx->wr, 0);
        sq_pop(qp);
    }
    if (qp->shut) note_work(qp);
}

static void sink_peer_closed(struct soft_qp *qp)
{
    qp->peer_closed = true;
    note_work(qp);
}

static void sink_broken(struct soft_qp *qp, int error, const char *reason)
{
    if (qp->state == SOFT_QP_DOWN) return;
    if (error < 0) error = -error;
    exsi_log(qp->part->log, error == EPROTO ? EXSI_LOG_WARNING : EXSI_LOG_INFO, qp->log_id, "connection lost: %s",
             reason);
    soft_qp_down(qp, error, reason);
}

const struct soft_sink_ops soft_qp_sink = {
    .tagged = sink_tagged,
    .tagged_done = sink_tagged_done,
    .untagged = sink_untagged,
    .untagged_done = sink_untagged_done,
    .may_receive = sink_may_receive,
    .tx_done = sink_tx_done,
    .peer_closed = sink_peer_closed,
    .broken = sink_broken,
};

/* --- life -------------------------------------------------------------------------------------- */

static void close_late(struct exsi_timer *t)
{
    struct soft_qp *qp = exsi_container_of(t, struct soft_qp, close_timer);
    char reason[EXSI_REASON_MAX];
    snprintf(reason, sizeof reason, "the peer did not close within %u ms", qp->close_timeout_ms);
    exsi_log(qp->part->log, EXSI_LOG_INFO, qp->log_id, "%s", reason);
    qp->path->ops->abort(qp->path);
    soft_qp_down(qp, ETIMEDOUT, reason);
}

static uint32_t ring_cap(uint32_t wanted)
{
    return wanted < 1 ? 1 : wanted;
}

static int qp_alloc(struct soft_qp *qp, const struct exsi_qp_attr *attr)
{
    uint32_t chunks = (ring_cap(attr->send_wr) + SOFT_TX_CHUNK - 1) / SOFT_TX_CHUNK;
    qp->sq_cap = chunks * SOFT_TX_CHUNK;
    qp->rq_cap = ring_cap(attr->recv_wr);
    qp->sq = calloc(chunks, sizeof *qp->sq);
    qp->rq = calloc(qp->rq_cap, sizeof *qp->rq);
    return qp->sq && qp->rq ? 0 : -ENOMEM;
}

static void qp_free(struct soft_qp *qp)
{
    if (qp->sq)
        for (uint32_t i = 0; i < qp->sq_cap / SOFT_TX_CHUNK; i++) free(qp->sq[i]);
    free(qp->sq);
    free(qp->rq);
    free(qp);
}

int soft_qp_create(struct exsi_part *epart, struct exsi_cm_id *id, const struct exsi_qp_attr *attr,
                   struct exsi_qp **out)
{
    struct soft_part *part = soft_part_of(epart);
    if (attr->send_wr > SOFT_MAX_WR || attr->recv_wr > SOFT_MAX_WR) return -EINVAL;
    struct soft_qp *qp = calloc(1, sizeof *qp);
    if (!qp) return -ENOMEM;
    exsi_list_init(&qp->node);
    exsi_list_init(&qp->work_node);
    exsi_list_init(&qp->event.node);
    qp->event.qp = qp;
    qp->part = part;
    qp->qp.user = attr->user;
    qp->stats = attr->stats;
    qp->log_id = attr->log_id;
    qp->max_recv_len = attr->max_recv_len;
    qp->rx_msn = 1;
    qp->close_timer.fn = close_late;
    int rc = qp_alloc(qp, attr);
    if (rc == 0) rc = id ? soft_id_adopt(id, qp) : soft_raw_open(qp, attr->gid);
    if (rc < 0) {
        qp_free(qp);
        return rc;
    }
    exsi_list_append(&part->qps, &qp->node);
    *out = &qp->qp;
    return 0;
}

void soft_qp_destroy(struct exsi_qp *eqp)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    struct soft_part *part = qp->part;
    /* A raw queue pair has no way to disconnect: what completed must still reach the peer, and then the end. */
    if (qp->raw && qp->path && qp->state == SOFT_QP_UP && !qp->sq_len) qp->path->ops->shut(qp->path);
    exsi_timer_stop(part->poller, &qp->close_timer);
    exsi_list_unlink(&qp->node);
    exsi_list_unlink(&qp->work_node);
    exsi_list_unlink(&qp->event.node);
    if (qp->path) {
        if (qp->state != SOFT_QP_DOWN && (!qp->raw || qp->sq_len)) qp->path->ops->abort(qp->path);
        qp->path->ops->free(qp->path);
    }
    if (qp->raw)
        soft_raw_close(qp);
    else if (qp->id)
        soft_id_orphan(qp->id);
    soft_cq_forget(qp);
    soft_cq_unreserve(part, qp->sq_len + qp->rq_len);
    soft_keys_fini(qp);
    qp_free(qp);
}

void soft_qp_attach(struct soft_qp *qp, struct soft_path *path)
{
    assert(!qp->path && qp->state == SOFT_QP_INIT);
    path->qp = qp;
    path->sink = &soft_qp_sink;
    path->stats = qp->stats;
    path->raw = qp->raw != NULL;
    qp->path = path;
    soft_keys_lend(qp);
}

void soft_qp_start(struct soft_qp *qp)
{
    if (qp->state != SOFT_QP_INIT) return;
    qp->state = SOFT_QP_UP;
    int rc = qp->path->ops->start(qp->path);
    if (rc < 0) {
        qp->path->ops->abort(qp->path);
        soft_qp_down(qp, -rc, strerror(-rc));
        return;
    }
    soft_qp_flush(&qp->qp);
}

void soft_qp_shut(struct soft_qp *qp)
{
    if (qp->state != SOFT_QP_UP || qp->shut) return;
    qp->shut = true;
    if (exsi_timer_start(qp->part->poller, &qp->close_timer, (uint64_t)qp->close_timeout_ms * 1000000u) < 0) {
        qp->path->ops->abort(qp->path);
        soft_qp_down(qp, ENOMEM, NULL);
        return;
    }
    qp->path->ops->shut(qp->path);
    note_work(qp);
}

/* The peer ended in order: answer in kind, and the end is there when our own queue is out. */
static void qp_settle(struct soft_qp *qp)
{
    if (qp->state != SOFT_QP_UP) return;
    if (qp->starved && qp->rq_len) {
        qp->starved = false;
        qp->path->ops->resume(qp->path);
        if (qp->state != SOFT_QP_UP) return;
    }
    if (qp->peer_closed && !qp->shut) soft_qp_shut(qp);
    if (qp->state == SOFT_QP_UP && qp->peer_closed && !qp->sq_len) soft_qp_down(qp, 0, NULL);
}

void soft_qp_settle(struct soft_part *part)
{
    while (!exsi_list_empty(&part->work)) {
        struct soft_qp *qp = exsi_list_first(&part->work, struct soft_qp, work_node);
        exsi_list_unlink(&qp->work_node);
        qp_settle(qp);
        if (qp->state == SOFT_QP_DOWN) exsi_list_unlink(&qp->work_node);
    }
}

void soft_qp_abort(struct exsi_qp *eqp)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    if (qp->state == SOFT_QP_DOWN) return;
    if (qp->path) qp->path->ops->abort(qp->path);
    soft_qp_down(qp, ECONNABORTED, NULL);
}

void soft_qp_query(struct exsi_qp *eqp, struct exsi_qp_info *out)
{
    const struct soft_qp *qp = soft_qp_of(eqp);
    *out = (struct exsi_qp_info){
        .local = qp->local, .peer = qp->peer, .max_msg = qp->part->part.dev->caps.max_msg, .key_per_range = true};
    if (!qp->path) return;
    strncpy(out->path, qp->path->ops->name(qp->path), sizeof out->path - 1);
    out->max_msg = qp->path->max_msg;
}

/* --- posting ----------------------------------------------------------------------------------- */

int soft_qp_post_recv(struct exsi_qp *eqp, const struct exsi_recv_wr *wr, int n)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    if (n < 0 || (uint32_t)n > qp->rq_cap - qp->rq_len) return -ENOMEM;
    if (qp->down_polled) return -ENOTCONN;
    EXSI_TRY(soft_cq_reserve(qp->part, (uint32_t)n));
    for (int i = 0; i < n; i++) qp->rq[(qp->rq_head + qp->rq_len++) % qp->rq_cap] = wr[i];
    /* As verbs do it: a dead queue pair takes requests and gives them back at once. */
    while (qp->state == SOFT_QP_DOWN && qp->rq_len) complete_recv(qp, 0, ECANCELED);
    if (qp->starved) note_work(qp);
    return 0;
}

static bool sge_inside(const struct exsi_sge *sge)
{
    if (!sge->mr) return false;
    uint64_t base = (uint64_t)(uintptr_t)sge->mr->mem.addr, at = (uint64_t)(uintptr_t)sge->addr;
    return at >= base && exsi_range_inside(at - base, sge->len, sge->mr->mem.len);
}

static int send_check(const struct soft_qp *qp, const struct exsi_send_wr *wr, uint64_t *total)
{
    if (wr->op != EXSI_WR_SEND && wr->op != EXSI_WR_WRITE) return -EOPNOTSUPP;
    if (wr->num_sge > EXSI_MAX_SGE) return -EINVAL;
    *total = 0;
    for (uint32_t i = 0; i < wr->num_sge; i++) {
        *total += wr->sge[i].len;
        if (!(wr->flags & EXSI_WR_INLINE) && wr->sge[i].len && !sge_inside(&wr->sge[i])) return -EINVAL;
    }
    if (wr->flags & EXSI_WR_INLINE && *total > SOFT_MAX_INLINE) return -EINVAL;
    return *total <= qp->part->part.dev->caps.max_msg ? 0 : -EMSGSIZE;
}

static void tx_fill(struct soft_tx *tx, const struct exsi_send_wr *wr, uint32_t total)
{
    tx->wr = *wr;
    tx->len = total;
    tx->sent = tx->path_word = 0;
    tx->path_mark = 0;
    tx->done = false;
    if (!(wr->flags & EXSI_WR_INLINE)) return;
    uint32_t at = 0;
    for (uint32_t i = 0; i < wr->num_sge; i++) {
        if (wr->sge[i].len) memcpy(tx->inline_data + at, wr->sge[i].addr, wr->sge[i].len);
        at += wr->sge[i].len;
    }
    tx->wr.num_sge = total ? 1 : 0;
    tx->wr.sge[0] = (struct exsi_sge){tx->inline_data, total, NULL};
}

/* Memory for the next n entries, so that the posting itself cannot fail half way. */
static int sq_make_room(struct soft_qp *qp, uint32_t n)
{
    if (n > qp->sq_cap - qp->sq_len) return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        struct soft_tx **chunk = &qp->sq[sq_slot(qp, qp->sq_len + i) / SOFT_TX_CHUNK];
        if (*chunk) continue;
        *chunk = malloc(SOFT_TX_CHUNK * sizeof **chunk);
        if (!*chunk) return -ENOMEM;
    }
    return 0;
}

int soft_qp_post_send(struct exsi_qp *eqp, const struct exsi_send_wr *wr, int n)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    uint64_t total;
    if (n < 0) return -EINVAL;
    if (qp->down_polled) return -ENOTCONN;
    if (qp->shut && qp->state == SOFT_QP_UP) return -EPIPE;
    if (qp->raw && !soft_raw_may_send(qp)) return -EINVAL;
    for (int i = 0; i < n; i++) EXSI_TRY(send_check(qp, &wr[i], &total));
    EXSI_TRY(sq_make_room(qp, (uint32_t)n));
    EXSI_TRY(soft_cq_reserve(qp->part, (uint32_t)n));
    for (int i = 0; i < n; i++) {
        if (qp->state == SOFT_QP_DOWN) {
            complete_send(qp, &wr[i], ECANCELED);
            continue;
        }
        (void)send_check(qp, &wr[i], &total);
        tx_fill(sq_at(qp, sq_slot(qp, qp->sq_len)), &wr[i], (uint32_t)total);
        qp->sq_len++;
    }
    return 0;
}

void soft_qp_flush(struct exsi_qp *eqp)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    if (qp->state == SOFT_QP_UP && qp->sq_len) qp->path->ops->kick(qp->path);
}
