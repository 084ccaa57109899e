// SPDX-License-Identifier: MIT OR Apache-2.0
/* The root object: devices, memory table, log, counters, and the lists of everything that hangs off
 * it.  There may be several in one process (tests do it); nothing of the core is global.
 *
 * Locks: group->lock (everything a group owns)  <  eq->lock, in this order, and never held across a system
 * call that may block.  ctx->lock (sum of closed sockets) is a leaf: it may be taken under
 * a group's lock, for a child socket is born in the middle of progress, and nothing is locked under it.
 * ctx->opening (one opens a device at a time, which may block) comes before all of them.
 * Handles are followed without a lock (core/table.h, core/mr.h). */
#ifndef EXSI_CTX_H
#define EXSI_CTX_H

#include <pthread.h>

#include "base/list.h"
#include "core/pool.h"
#include "core/table.h"
#include "device/device.h"

#define EXSI_MAX_DEVICES 4

struct exsi_open_device {
    const struct exsi_device_entry *entry;
    _Atomic(struct exsi_device *) dev; /* NULL until first use, or absent */
    char reason[EXSI_REASON_MAX];      /* why it is not there; under ctx->opening, as the next */
    bool tried;
    struct exsi_pool pool;
};

struct exsi_mr_table;

struct exsi_ctx {
    pthread_mutex_t lock;
    pthread_mutex_t opening;
    struct exsi_log log;
    struct exsi_stats closed_stats; /* sum of sockets that are gone; under lock */
    struct exsi_stats stats;        /* what belongs to no socket: registrations */
    struct exsi_table groups, eqs, sockets, endpoints;
    struct exsi_open_device devices[EXSI_MAX_DEVICES];
    int n_devices;
    struct exsi_mr_table *mrs;
    volatile uint32_t *fork_page; /* wiped by fork: 0 in a child */
};

/* 0 or -errno.  Opens no device and starts no thread: those come with first use. */
EXSI_MUST_CHECK int exsi_ctx_open(struct exsi_ctx **out);
/* Frees all.  Every group is closed and the progress thread joined (exsi_close in api.c does that
 * first); queues and regions that are left are ended here.  In a forked child it frees nothing. */
void exsi_ctx_free(struct exsi_ctx *ctx);
/* 0, or -EINVAL in a child of fork, where every handle is dead. */
EXSI_MUST_CHECK static inline int exsi_ctx_check(const struct exsi_ctx *ctx)
{
    return *ctx->fork_page ? 0 : -EINVAL;
}
/* The device by name ("soft", "verbs"), opened at first use: 0, or -EOPNOTSUPP with reason filled.
 * Opening may block: without any lock, unless the device is known to be open. */
EXSI_MUST_CHECK int exsi_ctx_device(struct exsi_ctx *ctx, const char *name, struct exsi_device **out, char *reason);
/* The device if it is there: opened at the first question; a failure then stands, for the question is often asked.
 * Without any lock. */
struct exsi_device *exsi_ctx_device_once(struct exsi_ctx *ctx, const char *name);
/* Its index in ctx->devices (and in every array that goes with it); -EINVAL for a stranger.  No lock needed. */
int exsi_ctx_device_index(const struct exsi_ctx *ctx, const struct exsi_device *dev);

#endif
