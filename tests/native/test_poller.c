// SPDX-License-Identifier: MIT OR Apache-2.0
/* Descriptors and timers of one poller. */
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/poller.h"
#include "tap.h"

#define MS 1000000u

struct counter {
    struct exsi_watch watch;
    struct exsi_timer timer;
    struct exsi_poller *poller;
    struct counter *other; /* to be taken out by the handler */
    int fd, calls, order;
    uint32_t events;
};

static int next_order;

static void on_event(struct exsi_watch *w, uint32_t events)
{
    struct counter *c = exsi_container_of(w, struct counter, watch);
    c->calls++;
    c->events = events;
    if (c->other) exsi_poller_del(c->poller, &c->other->watch);
}

static void on_timer(struct exsi_timer *t)
{
    struct counter *c = exsi_container_of(t, struct counter, timer);
    c->calls++;
    c->order = next_order++;
    if (c->other) exsi_timer_stop(c->poller, &c->other->timer);
}

static void on_timer_again(struct exsi_timer *t)
{
    struct counter *c = exsi_container_of(t, struct counter, timer);
    c->calls++;
    must(exsi_timer_start(c->poller, t, 0) == 0);
}

static void counter_init(struct counter *c, struct exsi_poller *p)
{
    memset(c, 0, sizeof *c);
    c->poller = p;
    c->watch.fn = on_event;
    c->watch.fd = -1;
    c->timer.fn = on_timer;
    c->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    must(c->fd >= 0);
}

static bool readable(struct exsi_poller *p, int timeout_ms)
{
    struct pollfd pfd = {.fd = exsi_poller_fd(p), .events = POLLIN};
    return poll(&pfd, 1, timeout_ms) == 1;
}

static void ring(int fd)
{
    must(eventfd_write(fd, 1) == 0);
}

static void test_watch_is_level_triggered(void)
{
    struct exsi_poller p;
    struct counter c;
    must(exsi_poller_init(&p) == 0);
    counter_init(&c, &p);
    ok(exsi_poller_add(&p, &c.watch, c.fd, EPOLLIN) == 0, "add");
    ok(exsi_poller_run(&p) == 0 && !readable(&p, 0), "nothing is ready");
    ring(c.fd);
    ok(readable(&p, 0), "the poller's descriptor says that there is work");
    ok(exsi_poller_run(&p) == 1 && exsi_poller_run(&p) == 1 && c.events == EPOLLIN, "it is told until it is gone");
    uint64_t before = p.syscalls;
    exsi_poller_mod(&p, &c.watch, EPOLLIN);
    ok(p.syscalls == before, "the same interest costs no system call");
    exsi_poller_mod(&p, &c.watch, 0);
    ok(exsi_poller_run(&p) == 0, "no interest, no handler");
    exsi_poller_mod(&p, &c.watch, EPOLLIN | EPOLLOUT);
    ok(exsi_poller_run(&p) == 1 && c.events == (EPOLLIN | EPOLLOUT), "interest is back");
    exsi_poller_del(&p, &c.watch);
    exsi_poller_del(&p, &c.watch);
    ok(exsi_poller_run(&p) == 0 && c.watch.fd == -1, "taken out, twice without harm");
    ok(exsi_poller_add(&p, &c.watch, -1, EPOLLIN) == -EBADF, "a bad descriptor is refused");
    close(c.fd);
    exsi_poller_fini(&p);
}

static void test_del_inside_a_handler_strikes_the_other_out(void)
{
    struct exsi_poller p;
    struct counter c[2];
    must(exsi_poller_init(&p) == 0);
    for (int i = 0; i < 2; i++) {
        counter_init(&c[i], &p);
        must(exsi_poller_add(&p, &c[i].watch, c[i].fd, EPOLLIN) == 0);
        ring(c[i].fd);
    }
    c[0].other = &c[1];
    c[1].other = &c[0];
    ok(exsi_poller_run(&p) == 1 && c[0].calls + c[1].calls == 1, "only the first of the two ran");
    for (int i = 0; i < 2; i++) {
        exsi_poller_del(&p, &c[i].watch);
        close(c[i].fd);
    }
    exsi_poller_fini(&p);
}

static void test_more_descriptors_than_a_batch(void)
{
    static struct counter c[100];
    struct exsi_poller p;
    int lonely = 0;
    must(exsi_poller_init(&p) == 0);
    for (int i = 0; i < 100; i++) {
        counter_init(&c[i], &p);
        must(exsi_poller_add(&p, &c[i].watch, c[i].fd, EPOLLIN) == 0);
        ring(c[i].fd);
    }
    for (int i = 0; i < 4; i++) exsi_poller_run(&p);
    for (int i = 0; i < 100; i++) {
        lonely += c[i].calls == 0;
        exsi_poller_del(&p, &c[i].watch);
        close(c[i].fd);
    }
    ok(lonely == 0, "nobody starves");
    exsi_poller_fini(&p);
}

/* Run until the poller has nothing due, at most limit_ms. */
static void run_for(struct exsi_poller *p, int limit_ms)
{
    uint64_t end = exsi_now_ns() + (uint64_t)limit_ms * MS;
    while (exsi_now_ns() < end) {
        readable(p, 1);
        exsi_poller_run(p);
    }
}

static void test_timers_run_once_in_order(void)
{
    struct exsi_poller p;
    struct counter c[3];
    must(exsi_poller_init(&p) == 0);
    for (int i = 0; i < 3; i++) counter_init(&c[i], &p);
    must(exsi_timer_start(&p, &c[0].timer, 6 * MS) == 0);
    must(exsi_timer_start(&p, &c[1].timer, 2 * MS) == 0);
    must(exsi_timer_start(&p, &c[2].timer, 4 * MS) == 0);
    ok(exsi_timer_running(&c[0].timer) && exsi_poller_run(&p) == 0, "not before their time");
    ok(readable(&p, 1000), "the descriptor wakes a sleeper");
    run_for(&p, 30);
    ok(c[0].calls == 1 && c[1].calls == 1 && c[2].calls == 1, "each ran once");
    ok(c[1].order < c[2].order && c[2].order < c[0].order, "in the order of their deadlines");
    ok(!exsi_timer_running(&c[0].timer) && !readable(&p, 0), "and nothing is left");
    for (int i = 0; i < 3; i++) close(c[i].fd);
    exsi_poller_fini(&p);
}

static void test_stopped_and_restarted_timers(void)
{
    struct exsi_poller p;
    struct counter c[3];
    must(exsi_poller_init(&p) == 0);
    for (int i = 0; i < 3; i++) counter_init(&c[i], &p);
    must(exsi_timer_start(&p, &c[0].timer, 1 * MS) == 0);
    must(exsi_timer_start(&p, &c[1].timer, 1 * MS) == 0);
    must(exsi_timer_start(&p, &c[2].timer, 1 * MS) == 0);
    exsi_timer_stop(&p, &c[0].timer);
    exsi_timer_stop(&p, &c[0].timer);
    must(exsi_timer_start(&p, &c[1].timer, 300 * MS) == 0);
    run_for(&p, 4);
    ok(c[0].calls == 0, "a stopped one never runs");
    ok(c[1].calls == 0 && c[2].calls == 1, "one that was put off has not run yet");
    run_for(&p, 320);
    ok(c[1].calls == 1, "but does at its new time");
    ok(!readable(&p, 0), "a wake-up for a stopped timer clears itself");
    c[0].other = &c[1];
    c[1].other = &c[0];
    must(exsi_timer_start(&p, &c[0].timer, 1) == 0);
    must(exsi_timer_start(&p, &c[1].timer, 1) == 0);
    run_for(&p, 3);
    ok(c[0].calls + c[1].calls == 2, "a handler can stop one that is due as well");
    for (int i = 0; i < 3; i++) close(c[i].fd);
    exsi_poller_fini(&p);
}

static void test_timer_that_starts_itself_with_zero_does_not_trap_the_pass(void)
{
    struct exsi_poller p;
    struct counter c;
    must(exsi_poller_init(&p) == 0);
    counter_init(&c, &p);
    c.timer.fn = on_timer_again;
    must(exsi_timer_start(&p, &c.timer, 0) == 0);
    for (int i = 0; i < 100 && c.calls < 3; i++) {
        int before = c.calls;
        readable(&p, 10);
        exsi_poller_run(&p);
        must(c.calls - before <= 1);
    }
    ok(c.calls == 3, "once for each pass");
    must(exsi_timer_start(&p, &c.timer, UINT64_MAX) == 0);
    ok(c.timer.deadline_ns > exsi_now_ns(), "the longest time does not wrap");
    close(c.fd);
    exsi_poller_fini(&p);
}

static void test_heap_with_many_timers(void)
{
    static struct counter c[200];
    struct exsi_poller p;
    uint32_t x = 7;
    bool ordered = true;
    int ran = 0;
    must(exsi_poller_init(&p) == 0);
    for (int i = 0; i < 200; i++) {
        c[i] = (struct counter){.timer.fn = on_timer, .poller = &p};
        x = x * 1103515245u + 12345u;
        must(exsi_timer_start(&p, &c[i].timer, (x >> 16) % (3 * MS)) == 0);
    }
    for (int i = 0; i < 200; i += 3) exsi_timer_stop(&p, &c[i].timer);
    run_for(&p, 10);
    for (int i = 0; i < 200; i++) {
        ran += c[i].calls;
        for (int j = 0; j < 200; j++)
            if (c[i].calls && c[j].calls && c[i].timer.deadline_ns < c[j].timer.deadline_ns)
                ordered = ordered && c[i].order < c[j].order;
    }
    ok(ran == 133, "all but the stopped ones ran");
    ok(ordered, "in order");
    exsi_poller_fini(&p);
}

int main(void)
{
    test_watch_is_level_triggered();
    test_del_inside_a_handler_strikes_the_other_out();
    test_more_descriptors_than_a_batch();
    test_timers_run_once_in_order();
    test_stopped_and_restarted_timers();
    test_timer_that_starts_itself_with_zero_does_not_trap_the_pass();
    test_heap_with_many_timers();
    return tap_done();
}
