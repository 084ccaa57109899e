// SPDX-License-Identifier: MIT OR Apache-2.0
/* A simulated device: the device table over an in-memory ordered link whose every step is somebody's
 * choice.  Nothing moves by itself: sim_step picks one of the things that could happen next (a request
 * arrives at the peer, a completion becomes visible, a key has ended) by the simulation's own random
 * numbers, so a run is repeated by its seed.
 *
 * What a correct engine never does is counted as a violation and named: a message that finds no posted
 * receive, a write behind a dead key or outside its range, a source outside its region. */
#ifndef SIM_H
#define SIM_H

#include "core/endpoint.h"
#include "device/device.h"

struct sim_options {
    bool immediate;         /* WRITE with immediate data */
    bool region_keys;       /* no keys per range */
    bool late_bind;         /* keys can be bound on linked queue pairs only */
    bool waits;             /* a message waits for its receive, as on RoCE */
    uint32_t async_percent; /* of invalidations take their time */
    uint32_t max_keys;      /* bound at once per queue pair; 0: any number */
    uint64_t max_msg;
};

struct sim;

/* A device of its own, put into ctx as one more.  Freed with the context. */
struct sim *sim_open(struct exsi_ctx *ctx, const struct sim_options *opt, uint64_t seed);
struct exsi_device *sim_device(struct sim *sim);
void sim_set(struct sim *sim, const struct sim_options *opt, uint64_t seed);
/* Connect two queue pairs. */
void sim_link(struct exsi_qp *a, struct exsi_qp *b);
/* One random thing happens; false: nothing can. */
bool sim_step(struct sim *sim);
/* Both sides ended in order: DISCONNECTED without an error once all is polled. */
void sim_disconnect(struct exsi_qp *qp);
/* What is posted and has not arrived at the peer. */
uint32_t sim_in_flight(const struct exsi_qp *qp);
/* Keys of a queue pair that are live. */
uint32_t sim_keys(const struct exsi_qp *qp);
/* Let everything happen but arrivals at other queue pairs: completions and ended keys. */
bool sim_step_local(struct sim *sim);
/* First violation in words, or NULL. */
const char *sim_violation(const struct sim *sim);

/* splitmix64: small, good enough, and the same everywhere. */
static inline uint64_t sim_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline uint32_t sim_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)((sim_next(state) >> 32) * n >> 32);
}

#endif
