// SPDX-License-Identifier: MIT OR Apache-2.0
/* Event queues: reservation, order, the descriptor, closing, and two threads. */
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/eq.h"
#include "null_device.h"
#include "tap.h"

static struct exsi_ctx *open_ctx(void)
{
    struct exsi_ctx *ctx;
    must(exsi_ctx_open(&ctx) == 0);
    return ctx;
}

static struct exsi_eq *open_eq(struct exsi_ctx *ctx, struct exsi_group *g, uint32_t depth)
{
    struct exsi_eq *eq;
    must(exsi_eq_open(ctx, g, depth, &eq) == 0);
    return eq;
}

static void post(struct exsi_eq *eq, uint64_t cookie)
{
    must(exsi_eq_reserve(eq) == 0);
    exsi_eq_push(eq, &(struct exsi_event){.cookie = cookie});
}

static bool readable(const struct exsi_eq *eq, int timeout_ms)
{
    struct pollfd pfd = {.fd = eq->epoll_fd, .events = POLLIN};
    return poll(&pfd, 1, timeout_ms) == 1;
}

/* ES-API Q1 */
static void test_a_slot_is_held_until_its_event_is_taken(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_eq *eq = open_eq(ctx, NULL, 2);
    struct exsi_event ev[4];
    ok(exsi_eq_reserve(eq) == 0 && exsi_eq_reserve(eq) == 0, "as many slots as the queue is deep");
    ok(exsi_eq_reserve(eq) == -EAGAIN, "and no more");
    exsi_eq_push(eq, &(struct exsi_event){.cookie = 1});
    ok(exsi_eq_reserve(eq) == -EAGAIN, "an event that lies there still holds its slot");
    ok(exsi_eq_take(eq, ev, 4) == 1 && ev[0].cookie == 1, "taken");
    ok(exsi_eq_reserve(eq) == 0, "now it is free");
    ok(exsi_eq_close(eq) == -EBUSY, "operations in flight keep the queue open");
    exsi_eq_unreserve(eq);
    exsi_eq_unreserve(eq);
    post(eq, 3);
    ok(exsi_eq_close(eq) == 0, "events that nobody fetched do not");
    exsi_ctx_free(ctx);
}

static void test_order_over_the_wrap_and_resize(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_eq *eq = open_eq(ctx, NULL, 4);
    struct exsi_event ev[8];
    uint64_t in = 0, out = 0;
    bool ordered = true;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 3; i++) post(eq, in++);
        int n = exsi_eq_take(eq, ev, 3);
        for (int i = 0; i < n; i++) ordered = ordered && ev[i].cookie == out++;
    }
    ok(ordered && out == in, "first in, first out");
    for (int i = 0; i < 4; i++) post(eq, in++);
    ok(exsi_eq_resize(eq, 3) == -EINVAL && exsi_eq_resize(eq, 0) == -EINVAL, "not below what is reserved");
    ok(exsi_eq_resize(eq, 8) == 0 && eq->depth == 8, "deeper");
    for (int i = 0; i < 4; i++) post(eq, in++);
    ok(exsi_eq_len(eq) == 8 && exsi_eq_take(eq, ev, 8) == 8 && ev[0].cookie == out && ev[7].cookie == in - 1,
       "what lay there is kept in order");
    ok(exsi_eq_resize(eq, 1) == 0 && exsi_eq_take(eq, ev, 8) == 0, "shallower when empty");
    struct exsi_eq *none;
    ok(exsi_eq_open(ctx, NULL, 0, &none) == -EINVAL, "a queue without a slot is refused");
    ok(exsi_eq_close(eq) == 0, "close");
    exsi_ctx_free(ctx);
}

static void test_descriptor_signals_only_when_armed(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_eq *eq = open_eq(ctx, NULL, 8);
    struct exsi_event ev[8];
    post(eq, 1);
    ok(!readable(eq, 0), "not armed: no signal");
    ok(exsi_eq_arm(eq) == 1 && exsi_eq_arm(eq) == 0, "arming says whether it changed anything");
    ok(readable(eq, 0), "arming over an event signals at once");
    post(eq, 2);
    ok(exsi_eq_take(eq, ev, 1) == 1 && readable(eq, 0), "events left: still readable");
    ok(exsi_eq_take(eq, ev, 8) == 1 && !readable(eq, 0), "empty: not readable");
    post(eq, 3);
    ok(readable(eq, 0), "armed: a push signals");
    ok(exsi_eq_take(eq, ev, 8) == 1 && exsi_eq_disarm(eq) == 1 && exsi_eq_disarm(eq) == 0, "disarm");
    post(eq, 4);
    post(eq, 5);
    ok(!readable(eq, 0), "disarmed: quiet again");
    ok(exsi_eq_take(eq, ev, 1) == 1 && readable(eq, 0), "but a rest that was not fetched is shown");
    ok(exsi_eq_take(eq, ev, 8) == 1 && exsi_eq_close(eq) == 0, "close");
    exsi_ctx_free(ctx);
}

static void test_quiet_calls_report_instead_of_signalling(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_eq *eq = open_eq(ctx, NULL, 8);
    struct exsi_event ev[8];
    must(exsi_eq_arm(eq) == 1);
    exsi_eq_quiet_begin(eq);
    post(eq, 1);
    ok(!readable(eq, 0), "no signal within a quiet call");
    ok(exsi_eq_quiet_end(eq) == 1, "which reports what lies there");
    post(eq, 2);
    ok(readable(eq, 0), "a push after it signals");
    ok(exsi_eq_take(eq, ev, 8) == 2, "take");
    exsi_eq_quiet_begin(eq);
    exsi_eq_quiet_begin(eq);
    ok(exsi_eq_quiet_end(eq) == 0, "two calls at once");
    post(eq, 3);
    ok(!readable(eq, 0) && exsi_eq_quiet_end(eq) == 1, "the second one reports");
    exsi_eq_quiet_begin(eq);
    exsi_eq_wait_begin(eq);
    ok(readable(eq, 0), "a thread that blocks is not kept waiting by a quiet call");
    exsi_eq_wait_end(eq);
    ok(exsi_eq_quiet_end(eq) == 1 && exsi_eq_take(eq, ev, 8) == 1, "and the call reports as well");
    ok(exsi_eq_close(eq) == 0, "close");
    exsi_ctx_free(ctx);
}

static void test_close_wakes_and_references_keep(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_eq *eq = open_eq(ctx, NULL, 4);
    struct exsi_event ev;
    uint64_t handle = eq->handle;
    struct exsi_eq *mine = exsi_eq_get(ctx, handle);
    ok(mine == eq, "found by its handle");
    ok(exsi_eq_close(eq) == 0 && !exsi_eq_get(ctx, handle), "after close the handle is dead");
    ok(mine->closed && readable(mine, 0), "a waiter wakes");
    ok(exsi_eq_take(mine, &ev, 1) == 0 && readable(mine, 0), "and so does the next one");
    ok(exsi_eq_reserve(mine) == -EBADF && exsi_eq_close(mine) == -EBADF && exsi_eq_resize(mine, 9) == -EBADF,
       "nothing works on it any more");
    exsi_eq_put(mine);
    exsi_ctx_free(ctx);
}

static void nothing(struct exsi_watch *w, uint32_t events)
{
    (void)w;
    (void)events;
}

static void test_group_work_makes_the_queue_readable(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_group *g;
    must(exsi_group_open(ctx, false, &g) == 0);
    struct exsi_eq *eq = open_eq(ctx, g, 4);
    struct exsi_watch w = {.fn = nothing, .fd = -1};
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    must(fd >= 0 && exsi_poller_add(&g->poller, &w, fd, EPOLLIN) == 0);
    ok(!readable(eq, 0), "idle");
    must(eventfd_write(fd, 1) == 0);
    ok(readable(eq, 0), "the inline group has work");
    exsi_poller_del(&g->poller, &w);
    close(fd);
    ok(exsi_group_close(g) == 0 && g->closed, "the group may end before its queue");
    ok(!readable(eq, 0), "which is idle then");
    exsi_ctx_free(ctx);
}

static void test_ctx_devices_and_fork_page(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_group *g;
    struct exsi_part *part, *again;
    struct exsi_device *dev, *same;
    char reason[EXSI_REASON_MAX];
    ok(exsi_ctx_device(ctx, "ghost", &dev, reason) == -EOPNOTSUPP && strcmp(reason, "nobody has one") == 0, "absent");
    ok(exsi_ctx_device(ctx, "nonsense", &dev, reason) == -EOPNOTSUPP && strstr(reason, "nonsense"), "unknown");
    null_state.fail_open = EPERM;
    ok(exsi_ctx_device(ctx, "null", &dev, reason) == -EOPNOTSUPP && strcmp(reason, "told to fail") == 0, "failing");
    null_state.fail_open = 0;
    ok(exsi_ctx_device(ctx, "null", &dev, reason) == 0 && exsi_ctx_device(ctx, "null", &same, NULL) == 0 && dev == same,
       "opened once, a failure is not remembered");
    must(exsi_group_open(ctx, false, &g) == 0);
    g->doorbell = true;
    ok(exsi_group_part(g, dev, &part) == 0 && exsi_group_part(g, dev, &again) == 0 && part == again, "one part");
    ok(null_state.asleep, "a part that comes late is told that somebody sleeps");
    uint64_t handle = g->handle;
    struct exsi_group *mine = exsi_group_get(ctx, handle);
    ok(mine == g && exsi_group_close(g) == 0 && null_state.parts == 0, "closing ends the parts");
    ok(!exsi_group_get(ctx, handle) && exsi_group_close(mine) == -EBADF, "and the handle, once");
    exsi_group_put(mine);
    ok(exsi_ctx_check(ctx) == 0, "the context is ours");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int rc = exsi_ctx_check(ctx);
        exsi_ctx_free(ctx);
        _exit(rc == -EINVAL && null_state.opened == 1 ? 0 : 1);
    }
    int status;
    must(child > 0 && waitpid(child, &status, 0) == child);
    ok(status == 0, "but a child's it is not, and there nothing is freed");
    exsi_ctx_free(ctx);
    ok(null_state.opened == 0, "freeing closes the device");
}

/* --- threads: no event lost, no wake-up lost ---------------------------------------------------------- */

#define EVENTS 20000

struct pair {
    struct exsi_eq *eq;
    atomic_bool stuck;
};

static void *produce(void *arg)
{
    struct pair *p = arg;
    for (uint64_t i = 0; i < EVENTS;) {
        int rc = exsi_eq_reserve(p->eq);
        if (rc == -EAGAIN) {
            sched_yield();
            continue;
        }
        must(rc == 0);
        exsi_eq_push(p->eq, &(struct exsi_event){.cookie = i++});
        if (i % 64 == 0) sched_yield();
    }
    return NULL;
}

/* As a user sleeps: take; if nothing came, arm, take once more, and only then wait. */
static uint64_t consume(struct pair *p, bool blocking)
{
    struct exsi_event ev[16];
    uint64_t next = 0;
    while (next < EVENTS) {
        int n = exsi_eq_take(p->eq, ev, 16);
        for (int i = 0; i < n; i++)
            if (ev[i].cookie != next++) return 0;
        if (n > 0) {
            if (!blocking) (void)!exsi_eq_disarm(p->eq);
            continue;
        }
        if (blocking)
            exsi_eq_wait_begin(p->eq);
        else
            (void)!exsi_eq_arm(p->eq);
        if (exsi_eq_len(p->eq) == 0 && !readable(p->eq, 5000)) atomic_store(&p->stuck, true);
        if (blocking) exsi_eq_wait_end(p->eq);
        if (atomic_load(&p->stuck)) return 0;
    }
    return next;
}

static void test_no_event_and_no_wakeup_is_lost(bool blocking)
{
    struct exsi_ctx *ctx = open_ctx();
    struct pair p = {.eq = open_eq(ctx, NULL, 32)};
    pthread_t producer;
    must(pthread_create(&producer, NULL, produce, &p) == 0);
    uint64_t got = consume(&p, blocking);
    ok(!atomic_load(&p.stuck), "%s: no wake-up was lost", blocking ? "waiting" : "armed");
    ok(got == EVENTS, "%s: every event came, in order", blocking ? "waiting" : "armed");
    must(got == EVENTS); /* else the producer would never end */
    pthread_join(producer, NULL);
    ok(exsi_eq_close(p.eq) == 0, "close");
    exsi_ctx_free(ctx);
}

static void *wait_for_close(void *arg)
{
    struct exsi_eq *eq = arg;
    exsi_eq_wait_begin(eq);
    bool woke = readable(eq, 5000);
    exsi_eq_wait_end(eq);
    exsi_eq_put(eq);
    return (void *)(uintptr_t)woke;
}

static void test_close_under_a_waiting_thread(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_eq *eq = open_eq(ctx, NULL, 4), *theirs = exsi_eq_get(ctx, eq->handle);
    pthread_t waiter;
    void *woke;
    must(pthread_create(&waiter, NULL, wait_for_close, theirs) == 0);
    usleep(1000);
    ok(exsi_eq_close(eq) == 0, "closed while a thread waits");
    pthread_join(waiter, &woke);
    ok(woke != NULL, "it woke");
    exsi_ctx_free(ctx);
}

int main(void)
{
    test_a_slot_is_held_until_its_event_is_taken();
    test_order_over_the_wrap_and_resize();
    test_descriptor_signals_only_when_armed();
    test_quiet_calls_report_instead_of_signalling();
    test_close_wakes_and_references_keep();
    test_group_work_makes_the_queue_readable();
    test_ctx_devices_and_fork_page();
    test_no_event_and_no_wakeup_is_lost(false);
    test_no_event_and_no_wakeup_is_lost(true);
    test_close_under_a_waiting_thread();
    return tap_done();
}
