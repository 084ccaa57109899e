// SPDX-License-Identifier: MIT OR Apache-2.0
/* Keys of a queue pair.  Where the adapter has type-2 memory windows a key is a window bound to the range, good on this
 * queue pair only (ES-API 2.3.9); elsewhere it is the region's.
 *
 * A window costs a system call to make, so it is kept until the queue pair ends; binding and ending it are work
 * requests. Only the low eight bits of its key change from bind to bind. Invariant: a window is FREE, BOUND, or ENDING
 * until its invalidate was polled; none is bound while it is not FREE. */
#include <stdlib.h>
#include <string.h>

#include "device/verbs/verbs.h"

int verbs_keys_init(struct verbs_keys *keys, uint32_t cap)
{
    keys->keys = calloc(cap, sizeof *keys->keys);
    if (!keys->keys && cap) return -ENOMEM;
    keys->cap = cap;
    return 0;
}

void verbs_keys_fini(struct verbs_qp *qp)
{
    struct verbs_keys *keys = &qp->keys;
    for (uint32_t i = 0; i < keys->n; i++) {
        int rc = ibv_dealloc_mw(keys->keys[i].mw);
        if (rc) exsi_log(qp->part->log, EXSI_LOG_ERROR, qp->attr.log_id, "a memory window stays: %s", strerror(rc));
    }
    free(keys->keys);
    *keys = (struct verbs_keys){0};
}

static void give_back(struct verbs_keys *keys, uint32_t index)
{
    keys->keys[index].state = VERBS_KEY_FREE;
    keys->keys[index].next_free = keys->free_key;
    keys->free_key = index + 1;
}

static int take(struct verbs_qp *qp, uint32_t *index)
{
    struct verbs_keys *keys = &qp->keys;
    if (!keys->free_key) {
        if (keys->n == keys->cap) return -EAGAIN;
        errno = 0;
        struct ibv_mw *mw = ibv_alloc_mw(qp->domain->pd, IBV_MW_TYPE_2);
        if (!mw) return errno ? -errno : -ENOMEM;
        keys->keys[keys->n] = (struct verbs_key){.mw = mw, .rkey = mw->rkey};
        give_back(keys, keys->n++);
    }
    *index = keys->free_key - 1;
    keys->free_key = keys->keys[*index].next_free;
    return 0;
}

int verbs_key_bind(struct exsi_qp *eqp, struct exsi_dmr *dmr, void *addr, size_t len, uint32_t *rkey)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    struct ibv_mr *mr;
    uint32_t index = 0;
    uint64_t base = (uint64_t)(uintptr_t)dmr->mem.addr, at = (uint64_t)(uintptr_t)addr;
    if (!len || at < base || !exsi_range_inside(at - base, len, dmr->mem.len)) return -EINVAL;
    if (!(dmr->mem.access & EXSI_ACCESS_REMOTE_WRITE)) return -EACCES;
    EXSI_TRY(verbs_mr_in(dmr, qp->domain, &mr));
    if (!verbs_has_windows(qp->adapter, qp->domain)) {
        *rkey = mr->rkey;
        return 0;
    }
    if (!qp->up || qp->down) return -ENOTCONN;
    EXSI_TRY(take(qp, &index));
    struct verbs_key *key = &qp->keys.keys[index];
    struct ibv_send_wr wr = {
        .opcode = IBV_WR_BIND_MW,
        .bind_mw = {.mw = key->mw,
                    .rkey = ibv_inc_rkey(key->rkey),
                    .bind_info = {.mr = mr, .addr = at, .length = len, .mw_access_flags = IBV_ACCESS_REMOTE_WRITE}},
    };
    int rc = verbs_qp_post_own(qp, &wr, VERBS_SENT_BIND, index, false);
    if (rc < 0) {
        give_back(&qp->keys, index);
        return rc;
    }
    key->rkey = wr.bind_mw.rkey;
    key->state = VERBS_KEY_BOUND;
    *rkey = key->rkey;
    return 0;
}

int verbs_key_invalidate(struct exsi_qp *eqp, uint32_t rkey, uint64_t wr_id)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    struct verbs_keys *keys = &qp->keys;
    /* In the error state no key opens anything. */
    if (!verbs_has_windows(qp->adapter, qp->domain) || qp->down) return 0;
    for (uint32_t i = 0; i < keys->n; i++) {
        struct verbs_key *key = &keys->keys[i];
        if (key->rkey != rkey || key->state != VERBS_KEY_BOUND) continue;
        struct ibv_send_wr wr = {.opcode = IBV_WR_LOCAL_INV, .invalidate_rkey = rkey};
        EXSI_TRY(verbs_qp_post_own(qp, &wr, VERBS_SENT_INVALIDATE, i, true));
        key->state = VERBS_KEY_ENDING;
        key->wr_id = wr_id;
        return 1;
    }
    return -EINVAL;
}

uint64_t verbs_key_ended(struct verbs_qp *qp, uint32_t index)
{
    assert(index < qp->keys.n && qp->keys.keys[index].state == VERBS_KEY_ENDING);
    give_back(&qp->keys, index);
    return qp->keys.keys[index].wr_id;
}
