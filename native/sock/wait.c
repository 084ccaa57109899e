// SPDX-License-Identifier: MIT OR Apache-2.0
/* Taking events from a queue, and sleeping on it.
 *
 * The rule of every sleeper: say that you are about to sleep (pushes signal, peers ring), make one more
 * pass, look once more, and only then sleep.  What comes after the look makes the descriptor readable.
 * A blocking waiter polls the queue's own epoll set, which holds the group's descriptors too, so it does
 * not matter which of several waiters wakes: it runs the progress for all. */
#include "sock/sock.h"

#include <poll.h>

/* Passes between two looks at the descriptors while spinning: each look is a system call. */
#define FD_EVERY 32u
/* And between two hints to the processor that this is a spin: a pass takes longer than one. */
#define RELAX_EVERY 8u
#define SPIN_TRIES  4u
#define SPIN_REST   32u

static bool progress(struct exsi_eq *eq, bool fds)
{
    struct exsi_group *g = eq->group;
    bool did = false;
    if (!g) return false;
    exsi_group_lock(g);
    if (!g->closed) did = exsi_progress(g, fds);
    exsi_group_unlock(g);
    exsi_group_let_in(g);
    return did;
}

/* --- for loops that sleep elsewhere ------------------------------------------------------------------- */

static void disarm_locked(struct exsi_eq *eq)
{
    if (!exsi_eq_disarm(eq) || !eq->group) return;
    eq->group->armed_eqs--;
    exsi_doorbell(eq->group);
}

static void arm_locked(struct exsi_eq *eq)
{
    if (!exsi_eq_arm(eq) || !eq->group) return;
    eq->group->armed_eqs++;
    exsi_doorbell(eq->group);
}

static void lock_group(struct exsi_eq *eq)
{
    if (eq->group) exsi_group_lock(eq->group);
}

static void unlock_group(struct exsi_eq *eq)
{
    if (eq->group) exsi_group_unlock(eq->group);
}

void exsi_wait_disarm(struct exsi_eq *eq)
{
    lock_group(eq);
    disarm_locked(eq);
    unlock_group(eq);
}

int exsi_wait_poll(struct exsi_eq *eq, exsi_event *out, int max)
{
    lock_group(eq);
    disarm_locked(eq);
    if (eq->group && !eq->group->closed) (void)exsi_progress(eq->group, true);
    unlock_group(eq);
    return exsi_eq_take(eq, out, max);
}

/* Spinning pays where events come within the spin.  Where the last few came later it only burns what the
 * peer may need; one wait in SPIN_REST then tries whether that has changed. */
static bool spin_pays(struct exsi_eq *eq)
{
    unsigned misses = atomic_load_explicit(&eq->spin_misses, memory_order_relaxed);
    if (misses < SPIN_TRIES || misses % SPIN_REST == 0) return true;
    atomic_store_explicit(&eq->spin_misses, misses + 1, memory_order_relaxed);
    return false;
}

static void spin_ended(struct exsi_eq *eq, bool hit)
{
    unsigned misses = atomic_load_explicit(&eq->spin_misses, memory_order_relaxed);
    atomic_store_explicit(&eq->spin_misses, hit ? 0 : misses + 1, memory_order_relaxed);
}

static int spin(struct exsi_eq *eq, exsi_event *out, int max, uint32_t spin_us)
{
    uint64_t end = exsi_now_ns() + (uint64_t)spin_us * 1000u;
    for (unsigned i = 1;; i++) {
        (void)progress(eq, i % FD_EVERY == 1);
        int n = exsi_eq_take(eq, out, max);
        if (n > 0 || exsi_now_ns() >= end) {
            spin_ended(eq, n > 0);
            return n;
        }
        exsi_cpu_relax();
    }
}

int exsi_wait_drain(struct exsi_eq *eq, exsi_event *out, int max, uint32_t spin_us)
{
    /* Who does not spin is about to sleep: the look that comes after arming is look enough. */
    int n = exsi_eq_take(eq, out, max);
    bool spins = n == 0 && spin_us > 0 && spin_pays(eq);
    if (n > 0 || spins) exsi_wait_disarm(eq);
    if (spins) n = spin(eq, out, max, spin_us);
    if (n > 0) return n;
    lock_group(eq);
    arm_locked(eq);
    if (eq->group && !eq->group->closed) (void)exsi_progress(eq->group, true);
    n = exsi_eq_take(eq, out, max);
    if (n > 0) disarm_locked(eq);
    /* Half of a large message was moved: nobody rings for the other half. */
    if (n == 0 && eq->group && eq->group->busy) exsi_eq_kick_fd(eq);
    unlock_group(eq);
    return n;
}

/* --- blocking -------------------------------------------------------------------------------------------- */

static int sleep_on(struct exsi_eq *eq, uint64_t deadline_ns)
{
    struct pollfd fd = {.fd = eq->epoll_fd, .events = POLLIN};
    struct timespec ts, *limit = NULL;
    if (deadline_ns != UINT64_MAX) {
        uint64_t now = exsi_now_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
        ts = (struct timespec){.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
        limit = &ts;
    }
    return ppoll(&fd, 1, limit, NULL) < 0 ? -errno : 0;
}

/* Counted as a sleeper from before the last look until it is awake. */
static int look_and_sleep(struct exsi_eq *eq, uint64_t deadline_ns)
{
    struct exsi_group *g = eq->group;
    bool did = false;
    int rc = 0;
    exsi_eq_wait_begin(eq);
    if (g) {
        exsi_group_lock(g);
        g->sleepers++;
        exsi_doorbell(g);
        if (!g->closed) did = exsi_progress(g, true);
        exsi_group_unlock(g);
    }
    if (!did) rc = sleep_on(eq, deadline_ns);
    if (g) {
        exsi_group_lock(g);
        g->sleepers--;
        exsi_doorbell(g);
        exsi_group_unlock(g);
    }
    exsi_eq_wait_end(eq);
    return rc;
}

static void busy_pass(struct exsi_eq *eq, bool look)
{
    struct exsi_group *g = eq->group;
    if (!g) return;
    exsi_group_lock(g);
    bool fds = look || g->fds_found || ++g->fds_unseen >= FD_EVERY;
    if (fds) g->fds_unseen = 0;
    if (!g->closed) (void)exsi_progress(g, fds);
    exsi_group_unlock(g);
    exsi_group_let_in(g);
}

/* For a program that spins on its queue: clock and descriptors, a system call each, are looked at now and then, also
 * where each call finds its event in the first pass. */
static int wait_busy(struct exsi_eq *eq, exsi_event *out, int max, int least, int64_t timeout_us)
{
    uint64_t deadline = timeout_us < 0 ? UINT64_MAX : exsi_now_ns() + (uint64_t)timeout_us * 1000u;
    bool last = false;
    int n = 0;
    for (unsigned i = 1;; i++) {
        busy_pass(eq, last);
        n += exsi_eq_take(eq, out + n, max - n);
        if (n >= least || n == max || last) return n;
        if (i % RELAX_EVERY) continue;
        if (exsi_eq_is_closed(eq)) return n > 0 ? n : -EBADF;
        last = deadline != UINT64_MAX && exsi_now_ns() >= deadline;
        exsi_cpu_relax();
    }
}

/* ES-API 1.6 */
int exsi_wait_events(struct exsi_eq *eq, exsi_event *out, int max, int least, int64_t timeout_us, int mode,
                     uint32_t spin_us)
{
    if (mode == EXSI_WAIT_BUSY && timeout_us != 0) return wait_busy(eq, out, max, least, timeout_us);
    uint64_t start = exsi_now_ns(), idle_since = start;
    uint64_t deadline = timeout_us < 0 ? UINT64_MAX : start + (uint64_t)timeout_us * 1000u;
    uint64_t spin_ns = mode == EXSI_WAIT_ADAPTIVE && spin_us > 0 && spin_pays(eq) ? (uint64_t)spin_us * 1000u : 0;
    int n = 0;
    for (unsigned i = 0;; i++) {
        bool did = progress(eq, i % FD_EVERY == 0);
        n += exsi_eq_take(eq, out + n, max - n);
        if (n >= least || n == max) {
            if (spin_ns > 0 && i > 0) spin_ended(eq, true);
            return n;
        }
        if (exsi_eq_is_closed(eq)) return n > 0 ? n : -EBADF;
        uint64_t now = exsi_now_ns();
        if (now >= deadline) return n;
        if (did) idle_since = now;
        if (did || mode == EXSI_WAIT_BUSY || now - idle_since < spin_ns) {
            exsi_cpu_relax();
            continue;
        }
        if (spin_ns > 0) spin_ended(eq, false);
        spin_ns = 0;
        int rc = look_and_sleep(eq, deadline);
        if (rc < 0) {
            n += exsi_eq_take(eq, out + n, max - n);
            return n > 0 ? n : rc;
        }
        idle_since = exsi_now_ns();
        i = UINT32_MAX; /* what woke us is a descriptor: the next pass looks at them */
    }
}
