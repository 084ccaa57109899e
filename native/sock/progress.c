// SPDX-License-Identifier: MIT OR Apache-2.0
/* Progress is a function: the thread that waits on a queue calls it, the thread of a threaded group
 * calls it, a test calls it.  One pass looks at descriptors and timers, at shared memory, at completions
 * and connection events, does what follows for the sockets, and starts what was posted meanwhile.
 *
 * Bounds: a run holds the lock for about a quarter of a millisecond, or until somebody waits for it. */
#include "sock/sock.h"

#include <sched.h>

#define BATCH         32
#define RUN_NS        250000u
#define SETTLE_ROUNDS 64

/* Completions first: what a connection event says comes after them (ES-API 1.9). */
static bool take_completions(struct exsi_part *part)
{
    struct exsi_wc wc[BATCH];
    int n, total = 0;
    do {
        n = part->dev->ops->poll_cq(part, wc, BATCH);
        for (int i = 0; i < n; i++) {
            struct exsi_endpoint *ep = wc[i].qp->user;
            if (ep->state == EXSI_EP_READY && wc[i].error == 0) exsi_conn_early(ep);
            exsi_ep_completion(ep, &wc[i]);
        }
        total += n > 0 ? n : 0;
    } while (n == BATCH && total < 8 * BATCH);
    return total > 0;
}

static bool take_event(struct exsi_group *g, struct exsi_part *part)
{
    struct exsi_cm_event ev;
    if (part->dev->ops->poll_cm(part, &ev) <= 0) return false;
    exsi_conn_event(g, &ev);
    return true;
}

static bool look_at_parts(struct exsi_group *g)
{
    bool did = false;
    for (int i = 0; i < EXSI_MAX_DEVICES; i++) {
        if (!g->parts[i]) continue;
        did |= take_completions(g->parts[i]);
        /* One at a time: each may post, and its completions come before the next event. */
        while (take_event(g, g->parts[i])) {
            did = true;
            (void)take_completions(g->parts[i]);
        }
    }
    return did;
}

/* fds: whether to look at descriptors; afterwards, whether one had something. */
static bool pass(struct exsi_group *g, bool *fds)
{
    bool did = false;
    if (*fds) {
        *fds = exsi_poller_run(&g->poller) > 0;
        did |= *fds;
        exsi_count(&g->stats, syscalls, g->poller.syscalls);
        g->poller.syscalls = 0;
    }
    for (int i = 0; i < EXSI_MAX_DEVICES; i++)
        if (g->parts[i]) did |= g->parts[i]->dev->ops->part_progress(g->parts[i]) > 0;
    did |= look_at_parts(g);
    did |= exsi_sock_look(g);
    exsi_group_flush(g);
    /* Engines may send only then, and what follows from that is for the next look. */
    return did || !exsi_list_empty(&g->changed);
}

/* Pass after pass while there is something to do; the clock is read only where that goes on. */
static void run_on(struct exsi_group *g, bool *fds)
{
    uint64_t end = 0;
    while ((g->busy = pass(g, fds)) && atomic_load_explicit(&g->lock_waiters, memory_order_relaxed) == 0) {
        uint64_t now = exsi_now_ns();
        if (!end)
            end = now + RUN_NS;
        else if (now >= end)
            return;
    }
}

bool exsi_progress(struct exsi_group *g, bool fds)
{
    bool looked = fds;
    bool did = g->busy = pass(g, &fds);
    if (looked) g->fds_found = fds;
    if (did) run_on(g, &fds);
    exsi_group_reap(g);
    return did;
}

void exsi_settle(struct exsi_group *g)
{
    for (int round = 0; round < SETTLE_ROUNDS; round++) {
        exsi_group_flush(g);
        bool did = look_at_parts(g);
        did |= exsi_sock_look(g);
        if (!did && exsi_list_empty(&g->dirty) && exsi_list_empty(&g->changed)) break;
    }
    exsi_group_reap(g);
}

void exsi_doorbell(struct exsi_group *g)
{
    bool asleep = g->sleepers > 0 || g->armed_eqs > 0;
    if (asleep == g->doorbell) return;
    g->doorbell = asleep;
    for (int i = 0; i < EXSI_MAX_DEVICES; i++)
        if (g->parts[i]) g->parts[i]->dev->ops->part_doorbell(g->parts[i], asleep);
}

void exsi_group_let_in(struct exsi_group *g)
{
    while (atomic_load_explicit(&g->lock_waiters, memory_order_relaxed) > 0) sched_yield();
}
