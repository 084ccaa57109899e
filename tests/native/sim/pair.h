// SPDX-License-Identifier: MIT OR Apache-2.0
/* Two endpoints of one engine, linked through the simulated device, with a queue and a region each:
 * what the engine tests stand on.  No sockets and no threads; time is pair_step. */
#ifndef PAIR_H
#define PAIR_H

#include "engine/engine.h"
#include "sim.h"

#define PAIR_MEMORY (1u << 18)

struct side {
    struct exsi_endpoint *ep;
    struct exsi_attach at;
    struct exsi_stats stats;
    struct exsi_eq *eq;
    uint32_t changed; /* enum exsi_change bits reported so far */
    uint32_t dead_reports;
    uint8_t *memory; /* PAIR_MEMORY bytes, registered */
    struct exsi_dmr *dmr;
};

struct pair {
    struct exsi_ctx *ctx;
    struct exsi_group *group;
    struct sim *sim;
    struct side side[2]; /* 0 dialled */
};

void pair_config(struct exsi_engine_config *cfg);
/* Device, context, group: once; then any number of connections, one after the other. */
void pair_open(struct pair *p);
void pair_close(struct pair *p);
/* Two endpoints, their hellos exchanged, linked and up. */
void pair_connect(struct pair *p, const struct exsi_engine_ops *engine, const struct exsi_engine_config cfg[2],
                  const struct sim_options *opt, uint64_t seed);
/* Both sides end the connection in order. */
void pair_disconnect(struct pair *p);
/* One endpoint with its engine and attachment, not linked; and its end. */
void pair_make_side(struct pair *p, int side, const struct exsi_engine_ops *engine,
                    const struct exsi_engine_config *cfg);
void pair_drop_side(struct pair *p, struct side *s);
/* Destroys both endpoints; every operation must have ended. */
void pair_drop(struct pair *p);
/* Start what was posted and hand out every completion that can be polled. */
void pair_deliver(struct pair *p);
/* One random thing happens and is handed out; false: nothing could. */
bool pair_step(struct pair *p);
/* Until nothing can happen. */
void pair_run(struct pair *p);
/* A send or receive of [base, base + len) of the side's memory, in two pieces if split != 0.  The engine's answer. */
int pair_post(struct pair *p, int side, enum exsi_op_kind kind, uint8_t *base, size_t len, size_t split, uint32_t flags,
              uint64_t cookie, uint64_t *op);
bool pair_event(struct pair *p, int side, struct exsi_event *ev);
/* The next event is the one of this cookie, with this error and value; returns its flags, or -1. */
int pair_expect(struct pair *p, int side, uint64_t cookie, int error, uint64_t value);
/* No event is there. */
bool pair_silent(struct pair *p, int side);
/* As if the peer of this side had sent it. */
void pair_say(struct pair *p, int side, const struct exsi_control *c);
void pair_say_word(struct pair *p, int side, uint32_t word);
/* Log records since the last call that contain text. */
int pair_logged(struct pair *p, const char *text);
void pair_cancel(struct pair *p, int side, uint64_t op);
uint32_t pair_ready(struct pair *p, int side);

#endif
