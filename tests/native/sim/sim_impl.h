// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside the simulated device: its state, shared by sim.c (queue pairs, steps) and sim_keys.c (memory). */
#ifndef SIM_IMPL_H
#define SIM_IMPL_H

#include <stdio.h>

#include "sim.h"

#define SQ_MAX 512
#define RQ_MAX 256
#define KEYS   4096
#define QPS    8
#define CQ_MAX 4096

struct sim_key {
    struct exsi_dmr *mr;
    struct sim_qp *qp; /* NULL: any */
    uint8_t *addr;
    size_t len;
    uint32_t generation;
    bool live;
};

struct fifo {
    uint32_t head, len;
};

struct sim_qp {
    struct exsi_qp qp;
    struct sim *sim;
    struct sim_qp *peer;
    struct exsi_send_wr sq[SQ_MAX];
    uint8_t sq_inline[SQ_MAX][64];
    struct fifo sqf;       /* posted, not arrived */
    uint32_t flushed;      /* of these, those that may go */
    uint32_t depth, in_sq; /* in_sq: until the completion that retires it was polled */
    struct exsi_recv_wr rq[RQ_MAX];
    struct fifo rqf;
    uint32_t max_recv_len;
    struct exsi_wc sdone[SQ_MAX], rdone[RQ_MAX + SQ_MAX], idone[KEYS];
    struct fifo sdonef, rdonef, idonef;
    uint32_t retires[SQ_MAX]; /* requests that each entry of sdone frees */
    uint32_t unsignalled;
    uint32_t keys;
    bool aborted, ended, told;
    int error;
};

struct sim_part {
    struct exsi_part part;
};

struct sim {
    struct exsi_device dev;
    struct exsi_device_entry entry;
    struct sim_options opt;
    uint64_t rng;
    struct sim_part part;
    struct sim_qp *qps[QPS];
    struct sim_key keys[KEYS];
    uint32_t key_hand;
    struct exsi_wc cq[CQ_MAX];
    struct fifo cqf;
    char violation[160];
};

static inline struct sim *sim_of(const struct exsi_device *dev)
{
    return (struct sim *)(uintptr_t)dev;
}
static inline struct sim_qp *qp_of(const struct exsi_qp *qp)
{
    return (struct sim_qp *)(uintptr_t)qp;
}

#define violate(sim, ...)                                                                                              \
    do {                                                                                                               \
        if (!(sim)->violation[0]) snprintf((sim)->violation, sizeof(sim)->violation, __VA_ARGS__);                     \
    } while (0)

static inline uint32_t fifo_put(struct fifo *f, uint32_t cap)
{
    assert(f->len < cap);
    return (f->head + f->len++) % cap;
}
static inline uint32_t fifo_take(struct fifo *f, uint32_t cap)
{
    assert(f->len > 0);
    uint32_t at = f->head;
    f->head = (f->head + 1) % cap;
    f->len--;
    return at;
}

/* --- sim_keys.c */
struct sim_key *sim_key_find(struct sim *s, uint32_t rkey);
void sim_key_end(struct sim_qp *qp, struct sim_key *k);
int sim_reg_mr(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out);
void sim_dereg_mr(struct exsi_device *dev, struct exsi_dmr *mr);
int sim_key_bind(struct exsi_qp *q, struct exsi_dmr *mr, void *addr, size_t len, uint32_t *rkey);
int sim_key_invalidate(struct exsi_qp *q, uint32_t rkey, uint64_t wr_id);

#endif
