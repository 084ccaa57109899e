// SPDX-License-Identifier: MIT OR Apache-2.0
/* The native thread of a threaded group: progress while Python computes.
 *
 * It blocks every signal (else Ctrl-C might be delivered here and never interrupt the main thread's wait),
 * gives the lock up at once to whoever announces itself, and sleeps only after it told the peers to ring
 * and looked once more.  Invariant: while it sleeps the group counts it among its sleepers. */
#include "sock/sock.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SPIN_NS 20000u
/* Passes between two looks at the descriptors while spinning: each look is a system call. */
#define FD_EVERY 32u

struct exsi_thread {
    struct exsi_group *group;
    pthread_t thread;
    int epoll_fd, stop_fd;
    atomic_bool stop;
};

static bool stopping(struct exsi_thread *t)
{
    return atomic_load_explicit(&t->stop, memory_order_acquire);
}

/* Progress until nothing has happened for SPIN_NS. */
static void run(struct exsi_thread *t)
{
    struct exsi_group *g = t->group;
    uint64_t idle_since = 0;
    for (unsigned n = 0; !stopping(t); n++) {
        pthread_mutex_lock(&g->lock);
        bool did = exsi_progress(g, n % FD_EVERY == 0);
        exsi_group_unlock(g);
        exsi_group_let_in(g);
        uint64_t now = exsi_now_ns();
        if (did) {
            idle_since = 0;
            continue;
        }
        if (!idle_since) idle_since = now;
        if (now - idle_since > SPIN_NS) return;
        exsi_cpu_relax();
    }
}

static void sleep_until_work(struct exsi_thread *t)
{
    struct exsi_group *g = t->group;
    struct epoll_event ev;
    pthread_mutex_lock(&g->lock);
    g->sleepers++;
    exsi_doorbell(g);
    bool did = exsi_progress(g, true);
    exsi_group_unlock(g);
    if (!did && !stopping(t)) {
        int rc = epoll_wait(t->epoll_fd, &ev, 1, -1);
        (void)rc; /* whatever woke us, the next pass looks at everything */
    }
    pthread_mutex_lock(&g->lock);
    g->sleepers--;
    exsi_doorbell(g);
    exsi_group_unlock(g);
}

static void *thread_main(void *arg)
{
    struct exsi_thread *t = arg;
    while (!stopping(t)) {
        run(t);
        sleep_until_work(t);
    }
    return NULL;
}

static int open_descriptors(struct exsi_thread *t)
{
    t->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (t->stop_fd < 0) return -errno;
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll_fd < 0) return -errno;
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = t->stop_fd};
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->stop_fd, &ev) < 0) return -errno;
    ev.data.fd = exsi_poller_fd(&t->group->poller);
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, ev.data.fd, &ev) < 0) return -errno;
    return 0;
}

static void free_thread(struct exsi_thread *t)
{
    if (t->epoll_fd >= 0) close(t->epoll_fd);
    if (t->stop_fd >= 0) close(t->stop_fd);
    free(t);
}

int exsi_thread_start(struct exsi_group *g)
{
    struct exsi_thread *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    t->group = g;
    t->epoll_fd = t->stop_fd = -1;
    atomic_init(&t->stop, false);
    int rc = open_descriptors(t);
    if (rc == 0) {
        sigset_t all, old;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = -pthread_create(&t->thread, NULL, thread_main, t);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    if (rc < 0) {
        free_thread(t);
        return rc;
    }
    g->thread = t;
    return 0;
}

void exsi_thread_stop(struct exsi_group *g)
{
    struct exsi_thread *t = g->thread;
    if (!t) return;
    uint64_t one = 1;
    atomic_store_explicit(&t->stop, true, memory_order_release);
    ssize_t n = write(t->stop_fd, &one, sizeof one);
    (void)n; /* a fresh counter takes it */
    pthread_join(t->thread, NULL);
    g->thread = NULL;
    free_thread(t);
}
