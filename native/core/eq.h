// SPDX-License-Identifier: MIT OR Apache-2.0
/* Event queues.  Q1, the reservation rule: every accepted post holds one slot from the post until its
 * event is dequeued, so a queue can never overflow and no event is lost.  The queue has a lock of its
 * own (last in the order), because posts of several groups may answer to it. */
#ifndef EXSI_EQ_H
#define EXSI_EQ_H

#include <pthread.h>

#include "core/group.h"

/* What happened, as it crosses into Python (one batch is unpacked as "<QQQiHH": 32 bytes). */
struct exsi_event {
    uint64_t cookie;   /* the poster's */
    uint64_t value;    /* bytes; accept: handle of the new socket */
    uint64_t extra;    /* recv: full length of a truncated message; send: bytes handed over on error */
    int32_t error;     /* 0 or a positive errno */
    uint16_t kind;     /* enum exsi_op_kind */
    uint16_t flags;    /* enum exsi_event_flag */
};
_Static_assert(sizeof(struct exsi_event) == 32, "Python unpacks 32 bytes");

enum exsi_event_flag {
    EXSI_EV_TRUNCATED = 1,  /* message longer than the buffer; extra is its length */
    EXSI_EV_EOR = 2,        /* a whole message */
    EXSI_EV_DIRECT = 4,     /* at least one byte came straight into the buffer */
    EXSI_EV_INDIRECT = 8,   /* at least one byte came through the ring */
    EXSI_EV_EOF = 16,       /* recv: 0 bytes because the peer ended */
    EXSI_EV_SEND_SHUT = 32, /* a cancelled send was partly out: the direction refuses further sends */
};

struct exsi_eq {
    struct exsi_ctx *ctx;
    struct exsi_group *group;     /* inline group that feeds it, or NULL; fixed */
    uint64_t handle;
    pthread_mutex_t lock;
    struct exsi_event *ring;
    uint32_t depth, head, len;    /* events present */
    uint32_t reserved;            /* posts whose event has not been dequeued (present ones included) */
    int event_fd, epoll_fd;       /* epoll_fd = {event_fd, the group's poller}: what users wait on */
    bool armed;                   /* somebody may sleep on epoll_fd: a push must signal */
    bool signalled;               /* event_fd holds a count */
    uint32_t quiet;               /* API calls that will report pending events themselves */
    uint32_t waiters;             /* threads in a blocking dequeue */
    bool closed;
};

EXSI_MUST_CHECK int exsi_eq_open(struct exsi_ctx *ctx, struct exsi_group *inline_group, uint32_t depth,
                                 struct exsi_eq **out);
/* -EBUSY while slots are reserved by operations in flight; undelivered events are discarded. */
EXSI_MUST_CHECK int exsi_eq_close(struct exsi_eq *eq);
/* -EINVAL below what is reserved. */
EXSI_MUST_CHECK int exsi_eq_resize(struct exsi_eq *eq, uint32_t depth);
/* One slot: 0, or -EAGAIN when the queue is full. */
EXSI_MUST_CHECK int exsi_eq_reserve(struct exsi_eq *eq);
/* Give a slot back without an event (the call itself reported). */
void exsi_eq_unreserve(struct exsi_eq *eq);
/* Never fails: the slot was reserved. */
void exsi_eq_push(struct exsi_eq *eq, const struct exsi_event *ev);
/* Take up to max present events; frees their slots. */
int exsi_eq_take(struct exsi_eq *eq, struct exsi_event *out, int max);
uint32_t exsi_eq_len(struct exsi_eq *eq);

#endif
