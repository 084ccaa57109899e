// SPDX-License-Identifier: MIT OR Apache-2.0
/* The completion ring of a part.  Every posted request has its place reserved, so completing cannot
 * fail.  Invariant: len <= posted <= cap. */
#include <stdlib.h>

#include "device/soft/qp.h"

static int cq_grow(struct soft_cq *cq, uint32_t need)
{
    uint32_t cap = cq->cap ? cq->cap : 64;
    while (cap < need) cap *= 2;
    if (cap == cq->cap) return 0;
    struct exsi_wc *ring = malloc(cap * sizeof *ring);
    if (!ring) return -ENOMEM;
    for (uint32_t i = 0; i < cq->len; i++) ring[i] = cq->ring[(cq->head + i) & (cq->cap - 1)];
    free(cq->ring);
    cq->ring = ring;
    cq->cap = cap;
    cq->head = 0;
    return 0;
}

int soft_cq_reserve(struct soft_part *part, uint32_t n)
{
    struct soft_cq *cq = &part->cq;
    if (cq->posted + n > cq->cap) EXSI_TRY(cq_grow(cq, cq->posted + n));
    cq->posted += n;
    return 0;
}

void soft_cq_unreserve(struct soft_part *part, uint32_t n)
{
    assert(part->cq.posted >= n + part->cq.len);
    part->cq.posted -= n;
}

void soft_cq_push(struct soft_qp *qp, const struct exsi_wc *wc)
{
    struct soft_cq *cq = &qp->part->cq;
    assert(cq->len < cq->posted && cq->posted <= cq->cap);
    cq->ring[(cq->head + cq->len++) & (cq->cap - 1)] = *wc;
    qp->cq_pending++;
}

/* Entries of a queue pair that goes away are struck out, not moved: polling steps over them. */
void soft_cq_forget(struct soft_qp *qp)
{
    struct soft_cq *cq = &qp->part->cq;
    for (uint32_t i = 0; i < cq->len && qp->cq_pending; i++) {
        struct exsi_wc *wc = &cq->ring[(cq->head + i) & (cq->cap - 1)];
        if (wc->qp != &qp->qp) continue;
        wc->qp = NULL;
        qp->cq_pending--;
    }
}

int soft_cq_poll(struct exsi_part *p, struct exsi_wc *wc, int max)
{
    struct soft_part *part = soft_part_of(p);
    struct soft_cq *cq = &part->cq;
    int n = 0;
    soft_qp_settle(part);
    while (n < max && cq->len) {
        const struct exsi_wc *at = &cq->ring[cq->head];
        cq->head = (cq->head + 1) & (cq->cap - 1);
        cq->len--;
        cq->posted--;
        if (!at->qp) continue;
        soft_qp_of(at->qp)->cq_pending--;
        wc[n++] = *at;
    }
    return n;
}

void soft_cq_fini(struct soft_part *part)
{
    free(part->cq.ring);
    part->cq = (struct soft_cq){0};
}
