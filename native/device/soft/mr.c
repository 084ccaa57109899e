// SPDX-License-Identifier: MIT OR Apache-2.0
/* Regions and keys.  A region pins nothing and has no key of its own: a peer writes only through a
 * key that was bound to a range for its one queue pair.  An rkey is an index and random bits, so that
 * a key that has ended is not taken for its successor.
 * Invariant: a key that is not free lies inside its region, and its region outlives it. */
#include <stdlib.h>

#include "device/soft/qp.h"

enum { KEY_MAX = 1 << SOFT_KEY_BITS, KEY_INDEX_MASK = KEY_MAX - 1 };

int soft_mr_reg(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out)
{
    struct soft_device *sdev = exsi_container_of(dev, struct soft_device, dev);
    uint64_t addr = (uint64_t)(uintptr_t)mem->addr;
    if (!mem->len || addr + mem->len < addr) return -EINVAL;
    struct soft_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return -ENOMEM;
    mr->dmr.mem = *mem;
    atomic_init(&mr->users, 0);
    if (mem->memfd >= 0 && !(mem->access & EXSI_ACCESS_ONE_PEER)) {
        mr->region = calloc(1, sizeof *mr->region);
        if (!mr->region) {
            free(mr);
            return -ENOMEM;
        }
        mr->region->id = atomic_fetch_add_explicit(&sdev->next_region, 1, memory_order_relaxed) + 1;
        atomic_init(&mr->region->refs, 1);
    }
    *out = &mr->dmr;
    return 0;
}

void soft_mr_dereg(struct exsi_device *dev, struct exsi_dmr *dmr)
{
    struct soft_device *sdev = exsi_container_of(dev, struct soft_device, dev);
    struct soft_mr *mr = soft_mr_of(dmr);
    assert(atomic_load_explicit(&mr->users, memory_order_relaxed) == 0);
    if (mr->region) {
        /* The mark before the count: whoever sees the count finds the mark. */
        atomic_store_explicit(&mr->region->gone, true, memory_order_relaxed);
        atomic_fetch_add_explicit(&sdev->regions_gone, 1, memory_order_release);
        soft_region_put(mr->region);
    }
    free(mr);
}

/* Random bits in stock, so that binding a key is no system call. */
static uint32_t key_bits(struct soft_part *part)
{
    for (;;) {
        if (!part->random_left) {
            exsi_random(part->random, sizeof part->random);
            part->random_left = sizeof part->random / sizeof *part->random;
        }
        uint32_t bits = part->random[--part->random_left] & ~(uint32_t)KEY_INDEX_MASK;
        if (bits) return bits; /* so no key is ever 0 */
    }
}

static int keys_grow(struct soft_qp *qp)
{
    uint32_t n = qp->n_keys ? qp->n_keys * 2 : 8;
    if (n > KEY_MAX) return -ENOMEM;
    struct soft_key *keys = realloc(qp->keys, n * sizeof *keys);
    if (!keys) return -ENOMEM;
    qp->keys = keys;
    for (uint32_t i = n; i-- > qp->n_keys;) {
        keys[i] = (struct soft_key){.next_free = qp->free_key};
        qp->free_key = i + 1;
    }
    qp->n_keys = n;
    return 0;
}

static void key_lend(struct soft_qp *qp, const struct soft_key *key)
{
    const struct exsi_mem *mem = &key->mr->dmr.mem;
    if (!qp->path || !(mem->access & EXSI_ACCESS_ONE_PEER) || mem->memfd < 0) return;
    qp->path->ops->lend(qp->path, key->rkey, key->mr, key->addr, key->len);
}

int soft_key_bind(struct exsi_qp *eqp, struct exsi_dmr *dmr, void *addr, size_t len, uint32_t *rkey)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    struct soft_mr *mr = soft_mr_of(dmr);
    uint64_t base = (uint64_t)(uintptr_t)dmr->mem.addr, at = (uint64_t)(uintptr_t)addr;
    if (at < base || !exsi_range_inside(at - base, len, dmr->mem.len)) return -EINVAL;
    if (qp->state == SOFT_QP_DOWN) return -ENOTCONN;
    if (!qp->free_key) EXSI_TRY(keys_grow(qp));
    uint32_t index = qp->free_key - 1, old = qp->keys[index].rkey;
    struct soft_key *key = &qp->keys[index];
    qp->free_key = key->next_free;
    *key = (struct soft_key){.mr = mr, .addr = at, .len = len};
    do key->rkey = key_bits(qp->part) | index;
    while (key->rkey == old);
    atomic_fetch_add_explicit(&mr->users, 1, memory_order_relaxed);
    *rkey = key->rkey;
    key_lend(qp, key);
    return 0;
}

static struct soft_key *key_find(struct soft_qp *qp, uint32_t rkey)
{
    uint32_t index = rkey & KEY_INDEX_MASK;
    if (index >= qp->n_keys) return NULL;
    struct soft_key *key = &qp->keys[index];
    return key->mr && key->rkey == rkey ? key : NULL;
}

/* The rkey stays in the free slot: its successor must differ from it. */
static void key_end(struct soft_qp *qp, struct soft_key *key)
{
    atomic_fetch_sub_explicit(&key->mr->users, 1, memory_order_relaxed);
    key->mr = NULL;
    key->next_free = qp->free_key;
    qp->free_key = (uint32_t)(key - qp->keys) + 1;
}

int soft_key_invalidate(struct exsi_qp *eqp, uint32_t rkey, uint64_t wr_id)
{
    (void)wr_id;
    struct soft_qp *qp = soft_qp_of(eqp);
    struct soft_key *key = key_find(qp, rkey);
    if (!key) return -EINVAL;
    key_end(qp, key);
    return 0;
}

/* ES-API 2.3.9 */
int soft_key_check(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst, bool *fragile)
{
    const struct soft_key *key = key_find(qp, rkey);
    if (!key) return -ENOENT;
    if (!(key->mr->dmr.mem.access & EXSI_ACCESS_REMOTE_WRITE)) return -EACCES;
    if (raddr < key->addr || !exsi_range_inside(raddr - key->addr, len, key->len)) return -ERANGE;
    *dst = (void *)(uintptr_t)raddr;
    *fragile = key->mr->dmr.mem.fragile;
    return 0;
}

void soft_keys_lend(struct soft_qp *qp)
{
    for (uint32_t i = 0; i < qp->n_keys; i++)
        if (qp->keys[i].mr) key_lend(qp, &qp->keys[i]);
}

void soft_keys_fini(struct soft_qp *qp)
{
    for (uint32_t i = 0; i < qp->n_keys; i++)
        if (qp->keys[i].mr) key_end(qp, &qp->keys[i]);
    free(qp->keys);
    qp->keys = NULL;
    qp->n_keys = qp->free_key = 0;
}
