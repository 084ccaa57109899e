// SPDX-License-Identifier: MIT OR Apache-2.0
/* Event queues.  Q1, the reservation rule: every accepted post holds one slot from the post until its
 * event is dequeued, so a queue can never overflow and no event is lost.  The queue has a lock of its
 * own (last in the order), because posts of several groups may answer to it.
 *
 * Life: the table of the context holds one reference, everybody who found the queue by its handle one
 * more (exsi_eq_get, exsi_eq_put), so a queue that is closed under a waiting thread stays in memory until
 * that thread has left.  Operations need none: while they hold slots, closing is refused.
 *
 * Signals.  Whoever wants to sleep on epoll_fd arms the queue, makes one more progress pass, and looks
 * once more; a push to an armed queue signals event_fd.  While an API call runs that will report what
 * lies in the queue (quiet), a push leaves the signal away, unless some thread is inside a blocking
 * dequeue.  Invariant: if the queue is armed and not empty, event_fd is readable, or the API call that
 * kept it quiet owes its caller the count of what is there. */
#ifndef EXSI_EQ_H
#define EXSI_EQ_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/event.h"
#include "core/group.h"

struct exsi_eq {
    struct exsi_ctx *ctx;
    struct exsi_group *group; /* inline group that feeds it, or NULL; fixed */
    uint64_t handle;
    pthread_mutex_t lock;
    struct exsi_event *ring;
    uint32_t depth, head, len; /* events present */
    uint32_t reserved;         /* posts whose event has not been dequeued (present ones included) */
    int event_fd, epoll_fd;    /* epoll_fd = {event_fd, the group's poller}: what users wait on */
    bool armed;                /* somebody may sleep on epoll_fd: a push must signal */
    bool signalled;            /* event_fd holds a count */
    uint32_t quiet;            /* API calls that will report pending events themselves */
    uint32_t waiters;          /* threads in a blocking dequeue */
    atomic_uint spin_misses;   /* waits in a row that no spin would have shortened, or did not */
    bool closed;
};

/* depth at least 1.  The group (may be NULL) must be inline; the queue keeps a reference to it. */
EXSI_MUST_CHECK int exsi_eq_open(struct exsi_ctx *ctx, struct exsi_group *inline_group, uint32_t depth,
                                 struct exsi_eq **out);
/* The queue behind a handle with a reference more, or NULL. */
EXSI_MUST_CHECK struct exsi_eq *exsi_eq_get(struct exsi_ctx *ctx, uint64_t handle);
/* Drop a reference; the last one frees the queue. */
void exsi_eq_put(struct exsi_eq *eq);
/* Ends the handle, wakes every waiter (they find eq->closed) and drops the table's reference.  -EBUSY
 * while slots are reserved by operations in flight, -EBADF if already closed; undelivered events are
 * discarded.  Adjusts no armed_eqs: the caller disarms first, under the group's lock. */
EXSI_MUST_CHECK int exsi_eq_close(struct exsi_eq *eq);
/* -EINVAL below what is reserved. */
EXSI_MUST_CHECK int exsi_eq_resize(struct exsi_eq *eq, uint32_t depth);
/* One slot: 0, -EAGAIN when the queue is full, -EBADF when it is closed. */
EXSI_MUST_CHECK int exsi_eq_reserve(struct exsi_eq *eq);
/* Give a slot back without an event (the call itself reported). */
void exsi_eq_unreserve(struct exsi_eq *eq);
/* Never fails: the slot was reserved. */
void exsi_eq_push(struct exsi_eq *eq, const struct exsi_event *ev);
/* Take up to max present events; frees their slots.  The descriptor stays readable if events are left
 * and clears when none are. */
int exsi_eq_take(struct exsi_eq *eq, struct exsi_event *out, int max);
uint32_t exsi_eq_len(struct exsi_eq *eq);

/* From now on a push signals; events that are there already signal at once.  1 if this call armed it
 * (then the caller counts the group's armed_eqs), 0 if it was armed before.  With the group's lock held,
 * if the queue has a group, so that count and flag agree. */
EXSI_MUST_CHECK int exsi_eq_arm(struct exsi_eq *eq);
/* Nobody sleeps: pushes cost no system call.  1 if this call disarmed it, else 0.  Same lock. */
EXSI_MUST_CHECK int exsi_eq_disarm(struct exsi_eq *eq);
/* Readable until the next take that leaves the queue empty, whatever it holds. */
void exsi_eq_kick_fd(struct exsi_eq *eq);
bool exsi_eq_is_closed(struct exsi_eq *eq);
/* Around the body of a blocking dequeue: pushes signal for this thread even during quiet calls. */
void exsi_eq_wait_begin(struct exsi_eq *eq);
void exsi_eq_wait_end(struct exsi_eq *eq);
/* Around an API call that reports pending events itself.  _end returns how many lie in the queue, read
 * under the lock with the mark already gone: a push before is in the count, a push after signals. */
void exsi_eq_quiet_begin(struct exsi_eq *eq);
EXSI_MUST_CHECK uint32_t exsi_eq_quiet_end(struct exsi_eq *eq);

#endif
