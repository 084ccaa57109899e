// SPDX-License-Identifier: MIT OR Apache-2.0
/* Regions and keys of the simulated device: a key is of one range, on one queue pair, until it is ended. */
#include <stdlib.h>

#include "sim_impl.h"

static struct sim_key *key_new(struct sim *s, uint32_t *rkey)
{
    for (uint32_t i = 0; i < KEYS; i++) {
        uint32_t at = (s->key_hand + i) % KEYS;
        if (s->keys[at].live) continue;
        s->key_hand = at + 1;
        s->keys[at].generation++;
        s->keys[at].live = true;
        *rkey = s->keys[at].generation << 12 | at;
        return &s->keys[at];
    }
    return NULL;
}

struct sim_key *sim_key_find(struct sim *s, uint32_t rkey)
{
    struct sim_key *k = &s->keys[rkey & (KEYS - 1)];
    return k->live && (k->generation & 0xfffff) == rkey >> 12 ? k : NULL;
}

int sim_reg_mr(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out)
{
    struct exsi_dmr *mr = calloc(1, sizeof *mr);
    if (!mr) return -ENOMEM;
    mr->mem = *mem;
    if (!dev->caps.has_key_per_range && mem->access & EXSI_ACCESS_REMOTE_WRITE) {
        uint32_t rkey;
        struct sim_key *k = key_new(sim_of(dev), &rkey);
        assert(k);
        k->mr = mr;
        k->qp = NULL;
        k->addr = mem->addr;
        k->len = mem->len;
    }
    *out = mr;
    return 0;
}

void sim_dereg_mr(struct exsi_device *dev, struct exsi_dmr *mr)
{
    struct sim *s = sim_of(dev);
    for (uint32_t i = 0; i < KEYS; i++) {
        if (!s->keys[i].live || s->keys[i].mr != mr) continue;
        if (s->keys[i].qp) violate(s, "a region was closed while a key of it was live");
        s->keys[i].live = false;
    }
    free(mr);
}

/* The key of a whole region, good on every queue pair. */
static int region_key(struct sim *s, const struct exsi_dmr *mr, uint32_t *rkey)
{
    for (uint32_t i = 0; i < KEYS; i++) {
        if (!s->keys[i].live || s->keys[i].mr != mr) continue;
        *rkey = s->keys[i].generation << 12 | i;
        return 0;
    }
    return -EACCES;
}

int sim_key_bind(struct exsi_qp *q, struct exsi_dmr *mr, void *addr, size_t len, uint32_t *rkey)
{
    struct sim_qp *qp = qp_of(q);
    struct sim *s = qp->sim;
    if (s->opt.region_keys) return region_key(s, mr, rkey);
    if (s->opt.late_bind && !qp->peer) return -ENOTCONN;
    if (s->opt.max_keys && qp->keys >= s->opt.max_keys) return -EAGAIN;
    if (!(mr->mem.access & EXSI_ACCESS_REMOTE_WRITE)) return -EACCES;
    if (!exsi_range_inside((uint64_t)((uint8_t *)addr - (uint8_t *)mr->mem.addr), len, mr->mem.len)) return -EFAULT;
    struct sim_key *k = key_new(s, rkey);
    if (!k) return -ENOMEM;
    k->mr = mr;
    k->qp = qp;
    k->addr = addr;
    k->len = len;
    qp->keys++;
    return 0;
}

void sim_key_end(struct sim_qp *qp, struct sim_key *k)
{
    k->live = false;
    qp->keys--;
}

int sim_key_invalidate(struct exsi_qp *q, uint32_t rkey, uint64_t wr_id)
{
    struct sim_qp *qp = qp_of(q);
    if (qp->sim->opt.region_keys) return 0;
    struct sim_key *k = sim_key_find(qp->sim, rkey);
    if (!k || k->qp != qp) {
        violate(qp->sim, "a dead key was ended again");
        return -EINVAL;
    }
    if (qp->aborted || sim_below(&qp->sim->rng, 100) >= qp->sim->opt.async_percent) {
        sim_key_end(qp, k);
        return 0;
    }
    uint32_t at = fifo_put(&qp->idonef, KEYS);
    qp->idone[at] = (struct exsi_wc){.wr_id = wr_id, .qp = q, .op = EXSI_WC_INVALIDATE, .imm = rkey};
    return 1;
}
