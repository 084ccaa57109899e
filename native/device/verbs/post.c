// SPDX-License-Identifier: MIT OR Apache-2.0
/* What is posted on a queue pair and what completes there.
 *
 * qp->sent and qp->received remember every request that has not completed, in posting order; the hardware's wr_id
 * says where.  A completion of a send retires everything up to it, since requests complete in order and the quiet
 * ones before it say nothing.  Invariant: sent_len <= sent_cap, which is the depth of the hardware's queue, and
 * sent_user <= attr.send_wr, so the device's own requests always find room.
 *
 * What is posted waits until the flush, and goes to the hardware as one chain: for soft-RoCE and soft-iWARP each call
 * is a system call that costs as much as what it does.
 *
 * A flush is never told by itself: what was posted stays in these rings and is given back by qp.c, behind
 * the reason. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "device/verbs/verbs.h"

enum { POST_MAX = 16 }; /* requests of one call */

/* --- sending --------------------------------------------------------------------------------------- */

static uint32_t sent_place(const struct verbs_qp *qp, uint32_t ahead)
{
    return (qp->sent_head + qp->sent_len + ahead) % qp->sent_cap;
}

static void sent_push(struct verbs_qp *qp, const struct verbs_sent *sent, bool quiet)
{
    qp->sent[sent_place(qp, 0)] = *sent;
    qp->sent_len++;
    if (!sent->own) qp->sent_user++;
    qp->sent_quiet = quiet ? qp->sent_quiet + 1 : 0;
}

/* Bytes that are copied now: the caller's memory is its own again. */
static int fill_copy(const struct exsi_send_wr *in, struct verbs_waiting *w, uint64_t *total)
{
    for (uint32_t i = 0; i < in->num_sge; i++) {
        if (in->sge[i].len > VERBS_INLINE - *total) return -EINVAL;
        memcpy(w->copy + *total, in->sge[i].addr, in->sge[i].len);
        *total += in->sge[i].len;
    }
    w->sge[0] = (struct ibv_sge){.addr = (uint64_t)(uintptr_t)w->copy, .length = (uint32_t)*total};
    w->wr.num_sge = 1;
    if (*total) w->wr.send_flags |= IBV_SEND_INLINE;
    return 0;
}

static int fill_pieces(struct verbs_qp *qp, const struct exsi_send_wr *in, struct verbs_waiting *w, uint64_t *total)
{
    bool fragile = false;
    *total = 0;
    if (in->num_sge > EXSI_MAX_SGE) return -EINVAL;
    if (in->flags & EXSI_WR_INLINE) return fill_copy(in, w, total);
    for (uint32_t i = 0; i < in->num_sge; i++) {
        struct ibv_mr *mr;
        if (!in->sge[i].mr) return -EINVAL;
        EXSI_TRY(verbs_mr_in(in->sge[i].mr, qp->domain, &mr));
        w->sge[i] =
            (struct ibv_sge){.addr = (uint64_t)(uintptr_t)in->sge[i].addr, .length = in->sge[i].len, .lkey = mr->lkey};
        *total += in->sge[i].len;
        fragile |= in->sge[i].mr->mem.fragile;
    }
    w->wr.num_sge = (int)in->num_sge;
    /* What is short travels in the request itself: the adapter need not fetch it. */
    if (*total && *total <= VERBS_INLINE && in->op != EXSI_WR_READ && !fragile) w->wr.send_flags |= IBV_SEND_INLINE;
    return *total <= qp->adapter->max_msg ? 0 : -EMSGSIZE;
}

static int fill_op(const struct verbs_qp *qp, const struct exsi_send_wr *in, struct ibv_send_wr *wr)
{
    wr->wr.rdma.remote_addr = in->raddr;
    wr->wr.rdma.rkey = in->rkey;
    switch (in->op) {
    case EXSI_WR_SEND: wr->opcode = IBV_WR_SEND; return VERBS_SENT_SEND;
    case EXSI_WR_WRITE: wr->opcode = IBV_WR_RDMA_WRITE; return VERBS_SENT_WRITE;
    case EXSI_WR_WRITE_IMM:
        if (qp->adapter->iwarp) return -EOPNOTSUPP;
        wr->opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
        wr->imm_data = htonl(in->imm);
        return VERBS_SENT_WRITE;
    case EXSI_WR_READ: wr->opcode = IBV_WR_RDMA_READ; return VERBS_SENT_READ;
    }
    return -EINVAL;
}

/* ahead: requests of the same call before this one. */
static int fill(struct verbs_qp *qp, uint32_t ahead, const struct exsi_send_wr *in, struct verbs_sent *sent)
{
    struct verbs_waiting *w = &qp->waiting[qp->waiting_len + ahead];
    struct ibv_send_wr *wr = &w->wr;
    uint64_t total = 0;
    *wr = (struct ibv_send_wr){.wr_id = qp->wr_base | sent_place(qp, ahead), .sg_list = w->sge};
    EXSI_TRY(fill_pieces(qp, in, w, &total));
    int kind = fill_op(qp, in, wr);
    EXSI_TRY(kind);
    bool signalled = in->flags & EXSI_WR_SIGNALED;
    /* iWARP: siw hands on the pages of a WRITE by reference, and only its own completion says that they are free.
     * Its SENDs too: the end in order waits for them, and has no mark that every iWARP peer takes. */
    if (signalled || qp->adapter->iwarp) wr->send_flags |= IBV_SEND_SIGNALED;
    if (in->flags & EXSI_WR_SOLICITED) wr->send_flags |= IBV_SEND_SOLICITED;
    *sent =
        (struct verbs_sent){.wr_id = in->wr_id, .len = (uint32_t)total, .kind = (uint8_t)kind, .signalled = signalled};
    return 0;
}

/* Providers name a window by its last key, and leave it to the caller to remember that. */
static void windows_bound(const struct verbs_waiting *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (w[i].wr.opcode == IBV_WR_BIND_MW) w[i].wr.bind_mw.mw->rkey = w[i].wr.bind_mw.rkey;
}

/* Requests that the hardware did not take, or because the queue pair broke under them took only in part, stand in
 * qp->sent all the same, and come back from there. */
static void hand_over(struct verbs_qp *qp, struct ibv_send_wr *wr)
{
    struct ibv_send_wr *bad = NULL;
    int rc = ibv_post_send(qp->ibqp, wr, &bad);
    if (rc == 0) return;
    if (rc < 0) rc = errno;
    if (bad == wr && (rc == ENOMEM || rc == EINVAL) && qp->up)
        verbs_qp_fail(qp, rc, "%s refused a work request: %s", qp->adapter->name, strerror(rc));
    else
        verbs_qp_lost(qp, 0);
}

void verbs_qp_flush(struct exsi_qp *eqp)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    uint32_t n = qp->waiting_len;
    if (!n) return;
    qp->waiting_len = 0;
    for (uint32_t i = 0; i + 1 < n; i++) qp->waiting[i].wr.next = &qp->waiting[i + 1].wr;
    qp->waiting[n - 1].wr.next = NULL;
    hand_over(qp, &qp->waiting[0].wr);
    windows_bound(qp->waiting, n);
}

/* n more can wait, or go out now. */
static void make_room(struct verbs_qp *qp, uint32_t n)
{
    if (VERBS_WAITING - qp->waiting_len < n) verbs_qp_flush(&qp->qp);
}

int verbs_qp_post_send(struct exsi_qp *eqp, const struct exsi_send_wr *wr, int n)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    struct verbs_sent sent[POST_MAX];
    if (n < 0 || n > POST_MAX) return -EINVAL;
    if (qp->told) return -ENOTCONN;
    if (qp->shut && !qp->down) return -EPIPE;
    if (!qp->up && !qp->down) return -EINVAL;
    if ((uint32_t)n > qp->attr.send_wr - qp->sent_user) return -ENOMEM;
    make_room(qp, (uint32_t)n);
    for (int i = 0; i < n; i++) EXSI_TRY(fill(qp, (uint32_t)i, &wr[i], &sent[i]));
    for (int i = 0; i < n; i++)
        sent_push(qp, &sent[i], !(qp->waiting[qp->waiting_len + (uint32_t)i].wr.send_flags & IBV_SEND_SIGNALED));
    if (!qp->down) qp->waiting_len += (uint32_t)n;
    return 0;
}

int verbs_qp_post_own(struct verbs_qp *qp, const struct ibv_send_wr *wr, enum verbs_sent_kind kind, uint64_t key,
                      bool signalled)
{
    if (qp->down || !qp->up) return -ENOTCONN;
    if (qp->sent_len == qp->sent_cap) return -ENOMEM;
    struct verbs_sent sent = {.wr_id = key, .kind = (uint8_t)kind, .signalled = signalled, .own = true};
    make_room(qp, 1);
    if (qp->down) return -ENOTCONN;
    struct ibv_send_wr *mine = &qp->waiting[qp->waiting_len++].wr;
    *mine = *wr;
    mine->wr_id = qp->wr_base | sent_place(qp, 0);
    if (signalled || qp->adapter->iwarp) mine->send_flags |= IBV_SEND_SIGNALED;
    sent_push(qp, &sent, !(mine->send_flags & IBV_SEND_SIGNALED));
    return 0;
}

/* siw completes a READ behind what was posted after it, so it can have no place among them.  An element of no length,
 * and not no element: siw looks at the first one of a READ anyway, where its library leaves that of an older request.
 */
static int post_apart(struct verbs_qp *qp, enum ibv_wr_opcode opcode, uint32_t index)
{
    struct ibv_sge nothing = {0};
    struct ibv_send_wr wr = {.wr_id = qp->wr_base | index,
                             .sg_list = &nothing,
                             .num_sge = 1,
                             .opcode = opcode,
                             .send_flags = IBV_SEND_SIGNALED};
    if (qp->down || !qp->up) return -ENOTCONN;
    hand_over(qp, &wr);
    return 0;
}

int verbs_qp_post_mark(struct verbs_qp *qp)
{
    /* Without a length neither key nor address mean anything (IBTA 9.4.3, RFC 5040 §5.2).  On InfiniBand the far
     * device acknowledges a WRITE; on iWARP only the answer to a READ says that it is there. */
    struct ibv_send_wr wr = {.opcode = IBV_WR_RDMA_WRITE};
    if (qp->adapter->iwarp) return post_apart(qp, IBV_WR_RDMA_READ, VERBS_WR_MARK);
    EXSI_TRY(verbs_qp_post_own(qp, &wr, VERBS_SENT_MARK, 0, true));
    verbs_qp_flush(&qp->qp);
    return 0;
}

int verbs_qp_post_nudge(struct verbs_qp *qp)
{
    return post_apart(qp, IBV_WR_RDMA_WRITE, VERBS_WR_NUDGE);
}

/* --- receiving --------------------------------------------------------------------------------------- */

/* From offset skip on. */
static int fill_sge(struct verbs_qp *qp, const struct exsi_sge *in, uint32_t skip, struct ibv_sge *out)
{
    struct ibv_mr *mr;
    EXSI_TRY(verbs_mr_in(in->mr, qp->domain, &mr));
    *out = (struct ibv_sge){.addr = (uint64_t)(uintptr_t)in->addr + skip, .length = in->len - skip, .lkey = mr->lkey};
    return 0;
}

static int post_one(struct verbs_qp *qp, const struct exsi_recv_wr *in)
{
    uint32_t place = (qp->recv_head + qp->recv_len) % qp->attr.recv_wr;
    if (!qp->down) {
        struct ibv_sge sge[2];
        struct ibv_recv_wr wr = {.wr_id = qp->wr_base | VERBS_WR_RECV | place, .sg_list = sge, .num_sge = 1};
        EXSI_TRY(fill_sge(qp, &in->sge, 0, sge));
        if (in->spill.len) EXSI_TRY(fill_sge(qp, &in->spill, in->sge.len, &sge[wr.num_sge++]));
        struct ibv_recv_wr *bad;
        int rc = ibv_post_recv(qp->ibqp, &wr, &bad);
        if (rc == ENOMEM || rc == EINVAL) return -rc;
        if (rc != 0) verbs_qp_lost(qp, 0);
    }
    qp->received[place] = in->wr_id;
    qp->recv_len++;
    return 0;
}

int verbs_qp_post_recv(struct exsi_qp *eqp, const struct exsi_recv_wr *wr, int n)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    if (qp->told) return -ENOTCONN;
    if (n < 0 || (uint32_t)n > qp->attr.recv_wr - qp->recv_len) return -ENOMEM;
    for (int i = 0; i < n; i++) EXSI_TRY(post_one(qp, &wr[i]));
    return 0;
}

/* --- completions --------------------------------------------------------------------------------------- */

/* The request failed for itself: the connection is over. */
static int failed(struct verbs_qp *qp, const struct ibv_wc *in)
{
    int error = verbs_status_errno(in->status);
    const char *text = qp->part->lib->ibv_wc_status_str(in->status);
    /* Our receives are in order, so one that fails is too short for what came; rxe does not call that a length error.
     */
    bool too_long =
        in->wr_id & VERBS_WR_RECV && (in->status == IBV_WC_LOC_LEN_ERR || in->status == IBV_WC_LOC_QP_OP_ERR);
    if (too_long) error = EPROTO;
    /* siw calls it so when TCP lost the connection under a request. */
    else if (qp->adapter->iwarp && in->status == IBV_WC_LOC_QP_OP_ERR)
        error = ECONNRESET;
    if (!qp->error) {
        qp->error = error;
        if (too_long)
            snprintf(qp->reason, sizeof qp->reason, "a message of the peer is longer than %u bytes",
                     qp->attr.max_recv_len);
        else
            snprintf(qp->reason, sizeof qp->reason, "a work request failed: %s", text);
    }
    verbs_qp_down(qp, error);
    return error;
}

static bool recv_complete(struct verbs_qp *qp, const struct ibv_wc *in, struct exsi_wc *out)
{
    uint32_t place = (uint32_t)in->wr_id & VERBS_WR_INDEX_MASK;
    if (!qp->recv_len || place != qp->recv_head) return false;
    *out = (struct exsi_wc){.wr_id = qp->received[place], .qp = &qp->qp, .op = EXSI_WC_RECV, .vendor = in->status};
    qp->recv_head = (qp->recv_head + 1) % qp->attr.recv_wr;
    qp->recv_len--;
    if (in->status != IBV_WC_SUCCESS) {
        out->error = failed(qp, in);
        return true;
    }
    qp->heard = true;
    if (qp->id) verbs_id_heard(qp->id);
    out->byte_len = in->byte_len;
    exsi_count(qp->attr.stats, bytes_device, in->byte_len);
    if (in->wc_flags & IBV_WC_WITH_IMM) {
        out->op = EXSI_WC_RECV_IMM;
        out->imm = ntohl(in->imm_data);
    }
    return true;
}

/* Everything up to place is over; the last one. */
static struct verbs_sent retire(struct verbs_qp *qp, uint32_t n)
{
    struct verbs_sent last = {0};
    while (n--) {
        last = qp->sent[qp->sent_head];
        qp->sent_head = (qp->sent_head + 1) % qp->sent_cap;
        qp->sent_len--;
        if (!last.own) qp->sent_user--;
        exsi_count(qp->attr.stats, bytes_device, last.len);
    }
    if (qp->sent_quiet > qp->sent_len) qp->sent_quiet = qp->sent_len;
    return last;
}

static bool sent_complete(struct verbs_qp *qp, const struct ibv_wc *in, struct exsi_wc *out)
{
    uint32_t place = (uint32_t)in->wr_id & VERBS_WR_INDEX_MASK;
    if (place >= qp->sent_cap) return false;
    uint32_t behind = (place + qp->sent_cap - qp->sent_head) % qp->sent_cap;
    if (behind >= qp->sent_len) return false;
    struct verbs_sent sent = retire(qp, behind + 1);
    *out = (struct exsi_wc){.wr_id = sent.wr_id, .qp = &qp->qp, .vendor = in->status};
    out->error = in->status == IBV_WC_SUCCESS ? 0 : failed(qp, in);
    if (!out->error) {
        qp->heard |= !qp->adapter->iwarp; /* there it only says that TCP has the bytes */
        verbs_qp_drained(qp);
    }
    switch ((enum verbs_sent_kind)sent.kind) {
    case VERBS_SENT_SEND: out->op = EXSI_WC_SEND; break;
    case VERBS_SENT_WRITE: out->op = EXSI_WC_WRITE; break;
    case VERBS_SENT_READ: out->op = EXSI_WC_READ; break;
    case VERBS_SENT_BIND: return false;
    case VERBS_SENT_INVALIDATE:
        if (out->error) return false;
        out->op = EXSI_WC_INVALIDATE;
        out->wr_id = verbs_key_ended(qp, (uint32_t)sent.wr_id);
        return true;
    case VERBS_SENT_MARK: qp->mark_out = false; return false;
    }
    return sent.signalled || out->error;
}

/* What has no place among the others. */
static bool apart_complete(struct verbs_qp *qp, const struct ibv_wc *in, uint32_t index)
{
    if (index == VERBS_WR_MARK)
        qp->mark_out = false;
    else
        qp->nudge_out = false;
    if (in->status != IBV_WC_SUCCESS)
        (void)failed(qp, in);
    else if (index == VERBS_WR_MARK)
        qp->heard = true;
    return false;
}

/* The peer refused: either one of us breaks the rules, or its program has just died, for then the kernel ends its
 * windows before its queue pairs.  In that case the word that the connection is over follows. */
static bool is_refusal(enum ibv_wc_status status)
{
    return status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_INV_REQ_ERR || status == IBV_WC_REM_OP_ERR;
}

bool verbs_qp_complete(struct verbs_qp *qp, const struct ibv_wc *in, struct exsi_wc *out)
{
    /* Of one that was buried everything comes back as not done. */
    if (qp->buried) return false;
    if (in->status == IBV_WC_WR_FLUSH_ERR || is_refusal(in->status)) {
        verbs_qp_lost(qp, is_refusal(in->status) ? verbs_status_errno(in->status) : 0);
        return false;
    }
    uint32_t index = (uint32_t)in->wr_id & VERBS_WR_INDEX_MASK;
    if (in->wr_id & VERBS_WR_RECV) return recv_complete(qp, in, out);
    return index >= VERBS_WR_NUDGE ? apart_complete(qp, in, index) : sent_complete(qp, in, out);
}
