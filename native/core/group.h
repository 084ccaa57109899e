// SPDX-License-Identifier: MIT OR Apache-2.0
/* A progress group: the sockets whose engines run together, under one lock and one poller.
 * One for each trio run and one for the literal ES-API (inline), one for all sockets with
 * progress="thread".  What progress does stands in sock/progress.c; this is what it owns.
 *
 * Life: the context's table holds one reference, every finder of the handle (exsi_group_get) and every
 * event queue of the group one more.  exsi_group_close ends all that it owns at once and marks it
 * closed; the memory and the lock stay until the last reference is dropped.  Whoever takes the lock
 * after a lookup must look at closed.
 *
 * No memory is registered or freed under the lock, since that may block for as long as pages are pinned. */
#ifndef EXSI_GROUP_H
#define EXSI_GROUP_H

#include "core/ctx.h"
#include "core/event.h"

struct exsi_group;
struct exsi_op;
struct exsi_thread;

/* Something that may block (registering and freeing memory): noted under the lock, run by whoever leaves it.
 * Embedded in what it is about; run may take the lock again, and free what the errand is embedded in. */
struct exsi_errand {
    struct exsi_list node;
    void (*run)(struct exsi_errand *e, struct exsi_group *g);
};

struct exsi_group {
    struct exsi_ctx *ctx;
    uint64_t handle;
    pthread_mutex_t lock;
    atomic_uint lock_waiters; /* the progress thread yields to posts */
    bool threaded;
    struct exsi_poller poller;
    struct exsi_part *parts[EXSI_MAX_DEVICES]; /* index as ctx->devices; opened at first use */
    struct exsi_list endpoints;                /* exsi_endpoint.group_node */
    struct exsi_list dirty;                    /* endpoints that posted since the last flush */
    struct exsi_list dead;                     /* endpoints to free once nobody is inside them */
    struct exsi_list errands;                  /* to run once the lock is left */
    struct exsi_slab ops;                      /* struct exsi_op, under lock */
    struct exsi_stats stats;                   /* wake-ups and poller system calls of the group */

    /* Sleepers: peers in shared memory must ring while anybody sleeps on this group. */
    uint32_t sleepers, armed_eqs;
    bool doorbell;       /* what the parts were last told */
    bool busy;           /* the last run of progress ended by its bound, not for lack of work */
    bool fds_found;      /* the last look at the descriptors was not in vain */
    uint32_t fds_unseen; /* passes of spinning waiters since */

    /* The operation whose API call is running: its completion is handed back by the call. */
    struct exsi_op *caller_op;
    bool caller_done;
    struct exsi_event caller_event; /* valid when caller_done */

    /* sock/'s. */
    struct exsi_list sockets;   /* every socket whose memory the core still needs */
    struct exsi_list changed;   /* sockets to look at before the lock is left */
    struct exsi_list links;     /* those that share one queue pair hang on these */
    struct exsi_thread *thread; /* threaded groups: who runs the progress */
    bool ending;                /* under lock: no new sockets, exsi_group_close follows */

    bool closed; /* under lock */
};

EXSI_MUST_CHECK int exsi_group_open(struct exsi_ctx *ctx, bool threaded, struct exsi_group **out);
/* Every socket and endpoint has been ended by sock/.  Takes the lock itself; drops the table's reference.
 * -EBADF if somebody else closed it. */
EXSI_MUST_CHECK int exsi_group_close(struct exsi_group *g);
/* The group behind a handle with a reference more, or NULL. */
EXSI_MUST_CHECK struct exsi_group *exsi_group_get(struct exsi_ctx *ctx, uint64_t handle);
/* A reference more, for somebody who has one. */
void exsi_group_hold(struct exsi_group *g);
void exsi_group_put(struct exsi_group *g);
/* Locks for posting callers: announces itself, so that a busy progress thread lets go. */
void exsi_group_lock(struct exsi_group *g);
/* Runs the errands that were noted under the lock: no other lock is held, and the caller has a reference. */
void exsi_group_unlock(struct exsi_group *g);
/* Lock held.  e->run is called soon, by one thread, without the lock. */
void exsi_group_errand(struct exsi_group *g, struct exsi_errand *e);
/* The group's part of a device, opened at first use.  Lock held. */
EXSI_MUST_CHECK int exsi_group_part(struct exsi_group *g, struct exsi_device *dev, struct exsi_part **out);

#endif
