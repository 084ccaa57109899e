// SPDX-License-Identifier: MIT OR Apache-2.0
/* One epoll set, one timerfd, one heap of timers.
 *
 * Invariant: if the heap is not empty, the timerfd is set to its earliest deadline or to an earlier
 * moment.  It is not moved when a timer is stopped or put off, since one wake-up too many is cheaper than
 * a system call for each timer that never fires. */
#include "base/poller.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BATCH 64

int exsi_poller_init(struct exsi_poller *p)
{
    memset(p, 0, sizeof *p);
    p->epoll_fd = p->timer_fd = -1;
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->epoll_fd < 0) goto fail;
    p->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (p->timer_fd < 0) goto fail;
    /* The poller itself stands for the timerfd; watches stand for themselves. */
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = p};
    if (epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->timer_fd, &ev) < 0) goto fail;
    return 0;

fail:;
    int rc = -errno;
    exsi_poller_fini(p);
    return rc;
}

void exsi_poller_fini(struct exsi_poller *p)
{
    if (p->timer_fd >= 0) close(p->timer_fd);
    if (p->epoll_fd >= 0) close(p->epoll_fd);
    free(p->heap);
    memset(p, 0, sizeof *p);
    p->epoll_fd = p->timer_fd = -1;
}

/* --- descriptors -------------------------------------------------------------------------------- */

int exsi_poller_add(struct exsi_poller *p, struct exsi_watch *w, int fd, uint32_t events)
{
    assert(w->fn);
    struct epoll_event ev = {.events = events, .data.ptr = w};
    p->syscalls++;
    if (epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0) {
        w->fd = -1;
        return -errno;
    }
    w->fd = fd;
    w->events = events;
    return 0;
}

void exsi_poller_mod(struct exsi_poller *p, struct exsi_watch *w, uint32_t events)
{
    if (w->fd < 0 || w->events == events) return;
    struct epoll_event ev = {.events = events, .data.ptr = w};
    w->events = events;
    p->syscalls++;
    int rc = epoll_ctl(p->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev);
    assert(rc == 0); /* fails only for a descriptor that is not in the set */
    (void)rc;
}

void exsi_poller_del(struct exsi_poller *p, struct exsi_watch *w)
{
    if (w->fd < 0) return;
    p->syscalls++;
    epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
    w->fd = -1;
    struct epoll_event *batch = p->batch;
    for (int i = 0; i < p->batch_len; i++)
        if (batch[i].data.ptr == w) batch[i].data.ptr = NULL;
}

/* --- timers ------------------------------------------------------------------------------------- */

static void heap_put(struct exsi_poller *p, uint32_t i, struct exsi_timer *t)
{
    p->heap[i] = t;
    t->heap_index = i + 1;
}

static void heap_up(struct exsi_poller *p, uint32_t i, struct exsi_timer *t)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 2;
        if (p->heap[parent]->deadline_ns <= t->deadline_ns) break;
        heap_put(p, i, p->heap[parent]);
        i = parent;
    }
    heap_put(p, i, t);
}

static void heap_down(struct exsi_poller *p, uint32_t i, struct exsi_timer *t)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= p->heap_len) break;
        if (child + 1 < p->heap_len && p->heap[child + 1]->deadline_ns < p->heap[child]->deadline_ns) child++;
        if (t->deadline_ns <= p->heap[child]->deadline_ns) break;
        heap_put(p, i, p->heap[child]);
        i = child;
    }
    heap_put(p, i, t);
}

static void heap_remove(struct exsi_poller *p, struct exsi_timer *t)
{
    uint32_t i = t->heap_index - 1;
    struct exsi_timer *last = p->heap[--p->heap_len];
    t->heap_index = 0;
    if (last == t) return;
    heap_down(p, i, last);
    heap_up(p, last->heap_index - 1, last);
}

/* Set the timerfd to deadline_ns (0: off).  Also makes it unreadable until then. */
static void set_clock(struct exsi_poller *p, uint64_t deadline_ns)
{
    struct itimerspec its = {
        .it_value = {.tv_sec = (time_t)(deadline_ns / 1000000000u), .tv_nsec = (long)(deadline_ns % 1000000000u)}};
    p->armed_ns = deadline_ns;
    p->syscalls++;
    int rc = timerfd_settime(p->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
    assert(rc == 0);
    (void)rc;
}

int exsi_timer_start(struct exsi_poller *p, struct exsi_timer *t, uint64_t after_ns)
{
    if (t->heap_index) heap_remove(p, t);
    if (p->heap_len == p->heap_cap) {
        uint32_t cap = p->heap_cap ? 2 * p->heap_cap : 16;
        struct exsi_timer **heap = realloc(p->heap, cap * sizeof(struct exsi_timer *));
        if (!heap) return -ENOMEM;
        p->heap = heap;
        p->heap_cap = cap;
    }
    /* At least one nanosecond from now, so that a handler that starts its timer again with 0 is not
     * run again in the same pass; at most about 30 years, so that the sum cannot wrap. */
    t->deadline_ns = exsi_now_ns() + exsi_max_u64(1, exsi_min_u64(after_ns, 1000000000000000000u));
    heap_up(p, p->heap_len++, t);
    if (p->armed_ns == 0 || t->deadline_ns < p->armed_ns) set_clock(p, t->deadline_ns);
    return 0;
}

void exsi_timer_stop(struct exsi_poller *p, struct exsi_timer *t)
{
    if (t->heap_index) heap_remove(p, t);
}

static int run_timers(struct exsi_poller *p)
{
    int ran = 0;
    uint64_t now = exsi_now_ns();
    while (p->heap_len > 0 && p->heap[0]->deadline_ns <= now) {
        struct exsi_timer *t = p->heap[0];
        heap_remove(p, t);
        t->fn(t);
        ran++;
    }
    set_clock(p, p->heap_len > 0 ? p->heap[0]->deadline_ns : 0);
    return ran;
}

/* --- the pass ----------------------------------------------------------------------------------- */

int exsi_poller_run(struct exsi_poller *p)
{
    struct epoll_event batch[BATCH];
    p->syscalls++;
    int n = epoll_wait(p->epoll_fd, batch, BATCH, 0);
    if (n <= 0) return 0; /* EINTR: whatever is ready still is in the next pass */

    int ran = 0;
    bool timers_due = false;
    p->batch = batch;
    p->batch_len = n;
    for (int i = 0; i < n; i++) {
        if (batch[i].data.ptr == p) {
            timers_due = true;
            continue;
        }
        struct exsi_watch *w = batch[i].data.ptr;
        if (!w) continue; /* taken out by an earlier handler of this batch */
        /* Interest may have been given up by one as well. */
        uint32_t events = batch[i].events & (w->events | EPOLLERR | EPOLLHUP);
        if (!events) continue;
        w->fn(w, events);
        ran++;
    }
    p->batch = NULL;
    p->batch_len = 0;
    return timers_due ? ran + run_timers(p) : ran;
}
