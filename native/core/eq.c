// SPDX-License-Identifier: MIT OR Apache-2.0
/* Event queues.  Invariant: len <= reserved <= depth; signalled says exactly whether event_fd holds a
 * count; and a closed queue is signalled.  Which pushes signal stands in must_signal. */
#include "core/eq.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define DEPTH_MAX (1u << 24)

static int open_descriptors(struct exsi_eq *eq)
{
    eq->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (eq->event_fd < 0) return -errno;
    eq->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (eq->epoll_fd < 0) return -errno;
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = eq->event_fd};
    if (epoll_ctl(eq->epoll_fd, EPOLL_CTL_ADD, eq->event_fd, &ev) < 0) return -errno;
    if (!eq->group) return 0;
    ev.data.fd = exsi_poller_fd(&eq->group->poller);
    if (epoll_ctl(eq->epoll_fd, EPOLL_CTL_ADD, ev.data.fd, &ev) < 0) return -errno;
    return 0;
}

static void free_queue(struct exsi_eq *eq)
{
    if (eq->epoll_fd >= 0) close(eq->epoll_fd);
    if (eq->event_fd >= 0) close(eq->event_fd);
    if (eq->group) exsi_group_put(eq->group);
    pthread_mutex_destroy(&eq->lock);
    free(eq->ring);
    free(eq);
}

int exsi_eq_open(struct exsi_ctx *ctx, struct exsi_group *inline_group, uint32_t depth, struct exsi_eq **out)
{
    if (depth == 0 || depth > DEPTH_MAX) return -EINVAL;
    struct exsi_eq *eq = calloc(1, sizeof *eq);
    if (!eq) return -ENOMEM;
    eq->ctx = ctx;
    eq->depth = depth;
    eq->event_fd = eq->epoll_fd = -1;
    pthread_mutex_init(&eq->lock, NULL);
    if (inline_group) {
        assert(!inline_group->threaded);
        exsi_group_hold(inline_group);
        eq->group = inline_group;
    }
    eq->ring = calloc(depth, sizeof *eq->ring);
    int rc = eq->ring ? open_descriptors(eq) : -ENOMEM;
    /* Last: from here on others can find it. */
    if (rc == 0) rc = exsi_table_add(&ctx->eqs, eq, &eq->handle);
    if (rc < 0) {
        free_queue(eq);
        return rc;
    }
    *out = eq;
    return 0;
}

struct exsi_eq *exsi_eq_get(struct exsi_ctx *ctx, uint64_t handle)
{
    return exsi_table_get(&ctx->eqs, handle);
}

void exsi_eq_put(struct exsi_eq *eq)
{
    if (exsi_table_put(&eq->ctx->eqs, eq->handle)) free_queue(eq);
}

/* --- the descriptor; lock held --------------------------------------------------------------------- */

static void signal_on(struct exsi_eq *eq)
{
    if (eq->signalled) return;
    uint64_t one = 1;
    ssize_t n = write(eq->event_fd, &one, sizeof one);
    assert(n == sizeof one); /* a counter of at most 1 is never full */
    (void)n;
    eq->signalled = true;
}

static void signal_off(struct exsi_eq *eq)
{
    if (!eq->signalled) return;
    uint64_t count;
    ssize_t n = read(eq->event_fd, &count, sizeof count);
    assert(n == sizeof count);
    (void)n;
    eq->signalled = false;
}

static bool must_signal(const struct exsi_eq *eq)
{
    bool listening = eq->waiters > 0 || (eq->armed && eq->quiet == 0);
    return eq->closed || (eq->len > 0 && listening);
}

/* --- slots and events ------------------------------------------------------------------------------ */

/* ES-API Q1 */
int exsi_eq_reserve(struct exsi_eq *eq)
{
    int rc = 0;
    pthread_mutex_lock(&eq->lock);
    if (eq->closed)
        rc = -EBADF;
    else if (eq->reserved == eq->depth)
        rc = -EAGAIN;
    else
        eq->reserved++;
    pthread_mutex_unlock(&eq->lock);
    return rc;
}

void exsi_eq_unreserve(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    assert(eq->reserved > eq->len);
    eq->reserved--;
    pthread_mutex_unlock(&eq->lock);
}

void exsi_eq_push(struct exsi_eq *eq, const struct exsi_event *ev)
{
    pthread_mutex_lock(&eq->lock);
    assert(eq->len < eq->reserved);
    eq->ring[(eq->head + eq->len++) % eq->depth] = *ev;
    if (must_signal(eq)) signal_on(eq);
    pthread_mutex_unlock(&eq->lock);
}

int exsi_eq_take(struct exsi_eq *eq, struct exsi_event *out, int max)
{
    int n = 0;
    pthread_mutex_lock(&eq->lock);
    while (n < max && eq->len > 0) {
        out[n++] = eq->ring[eq->head];
        eq->head = (eq->head + 1) % eq->depth;
        eq->len--;
        eq->reserved--;
    }
    if (eq->len == 0 && !eq->closed)
        signal_off(eq);
    else if (eq->closed || eq->quiet == 0)
        signal_on(eq); /* the rest may be fetched by somebody who looks at the descriptor first */
    pthread_mutex_unlock(&eq->lock);
    return n;
}

uint32_t exsi_eq_len(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    uint32_t len = eq->len;
    pthread_mutex_unlock(&eq->lock);
    return len;
}

int exsi_eq_resize(struct exsi_eq *eq, uint32_t depth)
{
    if (depth == 0 || depth > DEPTH_MAX) return -EINVAL;
    struct exsi_event *ring = calloc(depth, sizeof *ring);
    if (!ring) return -ENOMEM;
    int rc = 0;
    pthread_mutex_lock(&eq->lock);
    if (eq->closed) {
        rc = -EBADF;
    } else if (depth < eq->reserved) {
        rc = -EINVAL;
    } else {
        for (uint32_t i = 0; i < eq->len; i++) ring[i] = eq->ring[(eq->head + i) % eq->depth];
        struct exsi_event *old = eq->ring;
        eq->ring = ring;
        ring = old;
        eq->head = 0;
        eq->depth = depth;
    }
    pthread_mutex_unlock(&eq->lock);
    free(ring);
    return rc;
}

int exsi_eq_close(struct exsi_eq *eq)
{
    int rc = 0;
    pthread_mutex_lock(&eq->lock);
    if (eq->closed) {
        rc = -EBADF;
    } else if (eq->reserved > eq->len) {
        rc = -EBUSY;
    } else {
        eq->closed = true;
        signal_on(eq);
    }
    pthread_mutex_unlock(&eq->lock);
    if (rc < 0) return rc;
    rc = exsi_table_close(&eq->ctx->eqs, eq->handle);
    assert(rc == 0); /* closed says so */
    exsi_eq_put(eq);
    return 0;
}

/* --- who listens ----------------------------------------------------------------------------------- */

int exsi_eq_arm(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    int changed = !eq->armed;
    eq->armed = true;
    if (must_signal(eq)) signal_on(eq);
    pthread_mutex_unlock(&eq->lock);
    return changed;
}

int exsi_eq_disarm(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    int changed = eq->armed;
    eq->armed = false;
    pthread_mutex_unlock(&eq->lock);
    return changed;
}

void exsi_eq_kick_fd(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    signal_on(eq);
    pthread_mutex_unlock(&eq->lock);
}

bool exsi_eq_is_closed(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    bool closed = eq->closed;
    pthread_mutex_unlock(&eq->lock);
    return closed;
}

void exsi_eq_wait_begin(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    eq->waiters++;
    if (must_signal(eq)) signal_on(eq);
    pthread_mutex_unlock(&eq->lock);
}

void exsi_eq_wait_end(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    assert(eq->waiters > 0);
    eq->waiters--;
    pthread_mutex_unlock(&eq->lock);
}

void exsi_eq_quiet_begin(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    eq->quiet++;
    pthread_mutex_unlock(&eq->lock);
}

uint32_t exsi_eq_quiet_end(struct exsi_eq *eq)
{
    pthread_mutex_lock(&eq->lock);
    assert(eq->quiet > 0);
    eq->quiet--;
    uint32_t len = eq->len;
    pthread_mutex_unlock(&eq->lock);
    return len;
}
