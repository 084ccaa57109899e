// SPDX-License-Identifier: MIT OR Apache-2.0
/* One epoll set with handlers, and the only clock of the core: timers behind one timerfd.
 * Everything that can make a progress group do something is in its poller, so the poller's own
 * descriptor says "there is work".  Not locked: used under the group's lock, except that
 * exsi_poller_fd may be waited on by anyone. */
#ifndef EXSI_POLLER_H
#define EXSI_POLLER_H

#include "base/base.h"

struct exsi_watch;
typedef void exsi_watch_fn(struct exsi_watch *w, uint32_t events);

/* Embedded in its owner.  fd < 0: not in the set. */
struct exsi_watch {
    int fd;
    uint32_t events;
    exsi_watch_fn *fn;
};

struct exsi_timer;
typedef void exsi_timer_fn(struct exsi_timer *t);

/* Embedded in its owner; zero-initialised means "not running". */
struct exsi_timer {
    uint64_t deadline_ns;
    exsi_timer_fn *fn;
    uint32_t heap_index; /* 0: not running, else index + 1 */
};

struct exsi_poller {
    int epoll_fd, timer_fd;
    struct exsi_timer **heap;
    uint32_t heap_len, heap_cap;
    uint64_t armed_ns; /* what the timerfd is set to, 0: off */
    void *batch;       /* events now being dispatched, so that _del can strike a dead one out */
    int batch_len;
    uint64_t syscalls;
};

EXSI_MUST_CHECK int exsi_poller_init(struct exsi_poller *p);
void exsi_poller_fini(struct exsi_poller *p);

/* Readable while a watched descriptor is ready or a timer is due. */
static inline int exsi_poller_fd(const struct exsi_poller *p)
{
    return p->epoll_fd;
}

/* w->fn must be set.  Level-triggered; EPOLLERR and EPOLLHUP always reported.  Borrows w until _del. */
EXSI_MUST_CHECK int exsi_poller_add(struct exsi_poller *p, struct exsi_watch *w, int fd, uint32_t events);
/* Change interest; no system call if it is the same. */
void exsi_poller_mod(struct exsi_poller *p, struct exsi_watch *w, uint32_t events);
/* Take out (before the descriptor is closed).  Safe inside any handler, also for another's watch. */
void exsi_poller_del(struct exsi_poller *p, struct exsi_watch *w);

/* (Re)start: fn runs once in a later exsi_poller_run, after after_ns.  -ENOMEM. */
EXSI_MUST_CHECK int exsi_timer_start(struct exsi_poller *p, struct exsi_timer *t, uint64_t after_ns);
void exsi_timer_stop(struct exsi_poller *p, struct exsi_timer *t);
static inline bool exsi_timer_running(const struct exsi_timer *t)
{
    return t->heap_index != 0;
}

/* Run what is ready and due, without waiting; how many handlers ran. */
int exsi_poller_run(struct exsi_poller *p);

#endif
