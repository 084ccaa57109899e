// SPDX-License-Identifier: MIT OR Apache-2.0
/* The engines against a plain model, under random schedules (ES-API I1, I2, I3, I6, I9, I10,
 * I11, I12, I14): posts, arrivals, completions,
 * cancels, half-closes and aborts in any order, both directions at once, with few credits, few
 * advertisements and rings of 1 to 64 bytes.  Debug assertions inside the engine are part of the test.
 *
 *   test_engine_random [--steps N] [--seed S] [--episode E] [--fault NAME]
 * A failure prints the seed and the episode; --seed S --episode E runs just that one.
 *
 * test_engine_faults is the same over engines with seeded faults: without --fault it runs itself once
 * with each of them, and each of these runs must fail. */
#include <fcntl.h>
#include <getopt.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sim/model.h"
#include "tap.h"

struct run {
    struct pair pair;
    struct model model;
    uint64_t rng, steps;
    uint32_t send_bias, recv_bias, max_len;
    bool shut_early;
};

static uint32_t below(struct run *r, uint32_t n)
{
    return sim_below(&r->rng, n);
}
static bool chance(struct run *r, uint32_t percent)
{
    return below(r, 100) < percent;
}

static void random_config(struct run *r, struct exsi_engine_config *c)
{
    *c = (struct exsi_engine_config){
        .ring_bytes = 1 + below(r, chance(r, 30) ? 4 : 64),
        .max_adverts = 1 + below(r, 6),
        .recv_slots = EXSI_MIN_CREDITS + below(r, chance(r, 70) ? 2 : 30),
        .max_transfer = chance(r, 50) ? 1 << 20 : 1 + below(r, 40),
        .direct_threshold = chance(r, 70) ? 0 : below(r, 60),
        .direct_hold_us = chance(r, 10) ? 1 : 0,
        .strict_keys = chance(r, 5),
    };
}

static void connect_pair(struct run *r, bool packets, uint64_t seed)
{
    struct exsi_engine_config cfg[2];
    struct sim_options opt = {
        .immediate = chance(r, 50),
        .region_keys = chance(r, 15),
        .late_bind = chance(r, 30),
        .async_percent = chance(r, 50) ? 0 : below(r, 101),
        .max_keys = chance(r, 80) ? 0 : 3 + below(r, 4),
        .max_msg = chance(r, 80) ? 1 << 30 : 1 + below(r, 64),
    };
    random_config(r, &cfg[0]);
    random_config(r, &cfg[1]);
    if (packets && opt.region_keys) cfg[0].strict_keys = cfg[1].strict_keys = false;
    pair_connect(&r->pair, packets ? &exsi_engine_seqpacket : &exsi_engine_stream, cfg, &opt, seed);
    r->send_bias = 2 + below(r, 20);
    r->recv_bias = 2 + below(r, 20);
    r->max_len = 1 + below(r, chance(r, 50) ? 20 : SLOT_BYTES - 1);
    r->shut_early = chance(r, 30);
}

static uint32_t random_len(struct run *r)
{
    return chance(r, 3) ? 0 : 1 + below(r, r->max_len);
}

static uint32_t random_split(struct run *r, uint32_t len)
{
    return len > 1 && chance(r, 15) ? 1 + below(r, len - 1) : 0;
}

static void post_send(struct run *r, int side)
{
    uint32_t len = random_len(r), flags = 0;
    if (r->model.packets && chance(r, 10)) flags |= EXSI_OPF_STRICT_SIZE;
    if (r->shut_early && below(r, 400) == 0) flags |= EXSI_OPF_SHUT_WR;
    model_post_send(&r->model, side, len, random_split(r, len), flags);
}

static void post_recv(struct run *r, int side)
{
    uint32_t len = random_len(r);
    model_post_recv(&r->model, side, len, r->model.packets ? 0 : random_split(r, len),
                    chance(r, 30) ? EXSI_OPF_WAITALL : 0);
}

static void run_quiet(struct run *r)
{
    do {
        while (pair_step(&r->pair)) r->steps++;
        model_events(&r->model);
        exsi_poller_run(&r->pair.group->poller);
        pair_deliver(&r->pair);
    } while (pair_step(&r->pair));
    model_events(&r->model);
}

/* I11: bytes wait to be sent, a receive waits for them, and nothing can happen. */
static bool stands_still(const struct model *m)
{
    for (int side = 0; side < 2; side++) {
        if (!m->busy_sends[side] || m->recv_shut[1 - side]) continue;
        for (uint32_t i = 0; i < SLOTS; i++)
            if (m->recv[1 - side][i].busy && m->recv[1 - side][i].len) return true;
    }
    return false;
}

/* A held send has a real clock; after its moment everything that can go must have gone. */
static void check_progress(struct run *r)
{
    struct model *m = &r->model;
    run_quiet(r);
    for (int tries = 0; tries < 20 && stands_still(m) && !m->wrong[0]; tries++) {
        usleep(20);
        run_quiet(r);
    }
    if (stands_still(m))
        wrong(m, "it stands still: sends %u %u, receives %u %u", m->busy_sends[0], m->busy_sends[1], m->busy_recvs[0],
              m->busy_recvs[1]);
}

/* Nobody may have ended the connection yet. */
static void check_alive(struct run *r)
{
    for (int i = 0; i < 2; i++) {
        int error = r->pair.side[i].ep->error;
        if (error) wrong(&r->model, "side %d: the connection failed with %d", i, error);
    }
}

static void act(struct run *r)
{
    int side = (int)below(r, 2);
    uint32_t dice = below(r, 100);
    r->steps++;
    if (dice < r->send_bias)
        post_send(r, side);
    else if (dice < r->send_bias + r->recv_bias)
        post_recv(r, side);
    else if (dice < r->send_bias + r->recv_bias + 3)
        model_cancel(&r->model, side, chance(r, 60), below(r, SLOTS));
    else if (dice < r->send_bias + r->recv_bias + 5)
        model_take(&r->model, side, 1 + below(r, SLOT_BYTES - 1));
    else if (dice == 99 && r->shut_early && below(r, 40) == 0)
        model_shut_send(&r->model, side);
    else if (dice == 98 && r->shut_early && below(r, 40) == 0)
        model_shut_recv(&r->model, side);
    else
        pair_step(&r->pair);
    if (below(r, 500) == 0) check_progress(r);
    check_alive(r);
    if (chance(r, 50)) model_events(&r->model);
}

static bool side_done(struct run *r, int side)
{
    uint32_t ready = pair_ready(&r->pair, side);
    return ready & EXSI_CHANGE_PEER_FIN && ready & EXSI_CHANGE_FIN_ACKED && !r->model.busy_sends[side] &&
           !r->model.busy_recvs[side];
}

/* Receive until both sides have seen the other's end.  Whatever stands still before that is a deadlock. */
static void drain(struct run *r)
{
    struct model *m = &r->model;
    for (int side = 0; side < 2; side++) model_shut_send(m, side);
    for (int idle = 0, turns = 0; idle < 3 && turns++ < 20000 && !m->wrong[0] && !sim_violation(r->pair.sim);) {
        uint64_t before = m->events;
        check_progress(r);
        if (side_done(r, 0) && side_done(r, 1)) {
            /* What lies in the rings. */
            for (int side = 0; side < 2; side++) model_take(m, side, SLOT_BYTES - 1);
            return;
        }
        for (int side = 0; side < 2; side++)
            if (m->busy_recvs[side] < 2 && !(m->recv_shut[side] && !m->packets)) post_recv(r, side);
        run_quiet(r);
        check_alive(r);
        /* A held send has a real clock. */
        idle = m->events == before ? idle + 1 : 0;
        if (idle) usleep(10);
    }
    wrong(m, "deadlock: sends %u %u, receives %u %u, ready %x %x", m->busy_sends[0], m->busy_sends[1], m->busy_recvs[0],
          m->busy_recvs[1], pair_ready(&r->pair, 0), pair_ready(&r->pair, 1));
}

static void episode(struct run *r, uint64_t seed)
{
    struct model *m = &r->model;
    r->rng = seed;
    bool packets = chance(r, 35);
    connect_pair(r, packets, sim_next(&r->rng));
    model_start(m, &r->pair, packets);
    uint32_t steps = 100 + below(r, 2500);
    bool abort = chance(r, 20);
    for (uint32_t i = 0; i < steps && !m->wrong[0] && !sim_violation(r->pair.sim); i++) act(r);
    model_events(m);
    if (m->wrong[0] || sim_violation(r->pair.sim)) return;
    if (abort) {
        m->over = true;
        exsi_ep_fail(r->pair.side[below(r, 2)].ep, ECONNABORTED, "abort");
    } else {
        drain(r);
        if (m->wrong[0] || sim_violation(r->pair.sim)) return;
        m->over = true;
        pair_disconnect(&r->pair);
    }
    run_quiet(r);
    model_compare(m, !abort);
    for (int i = 0; i < 2; i++)
        if (r->pair.side[i].dead_reports != 1) wrong(m, "side %d was told %u times", i, r->pair.side[i].dead_reports);
    if (!m->wrong[0]) pair_drop(&r->pair);
}

static bool failed(struct run *r, uint64_t seed, uint64_t number)
{
    const char *what = sim_violation(r->pair.sim);
    if (!what && r->model.wrong[0]) what = r->model.wrong;
    if (what)
        printf("# %s: %s (--seed %llu --episode %llu)\n", r->model.packets ? "seqpacket" : "stream", what,
               (unsigned long long)seed, (unsigned long long)number);
    return what;
}

struct arguments {
    uint64_t steps, seed, only;
    const char *fault;
};

static int run_all(const struct arguments *a)
{
    static struct run r;
    uint64_t n;
    bool bad = false;
    pair_open(&r.pair);
    for (n = a->only; r.steps < a->steps && !bad; n++) {
        uint64_t state = a->seed * 1000003 + n;
        episode(&r, sim_next(&state));
        bad = failed(&r, a->seed, n);
        if (a->only) break;
    }
    ok(!bad, "%llu steps, %llu episodes, %llu events, seed %llu", (unsigned long long)r.steps, (unsigned long long)n,
       (unsigned long long)r.model.events, (unsigned long long)a->seed);
    if (!bad) {
        model_end(&r.model);
        pair_close(&r.pair);
    }
    return tap_done();
}

#ifdef EXSI_SEED_FAULTS
#include "engine/flow.h"
struct exsi_faults exsi_faults;
static const struct {
    const char *name;
    bool *flag;
} faults[] = {
    {"skip-s1", &exsi_faults.skip_s1},
    {"skip-settle-a", &exsi_faults.skip_settle_a},
    {"ind-less", &exsi_faults.ind_less},
    {"ack-before-copy", &exsi_faults.ack_before_copy},
    {"drop-waitall-rest", &exsi_faults.drop_waitall_rest},
    {"cancel-at-once", &exsi_faults.cancel_at_once},
    {"fin-early", &exsi_faults.fin_early},
    {"ring-wrap", &exsi_faults.ring_wrap},
    {"revoked-late", &exsi_faults.revoked_late},
    {"spend-reserve", &exsi_faults.spend_reserve},
};

/* A run in a process of its own, silent: an assertion is a finding too. */
static bool run_finds(const struct arguments *a, bool *flag)
{
    fflush(stdout);
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
        if (flag) *flag = true;
        _exit(run_all(a) != 0);
    }
    int status;
    must(waitpid(pid, &status, 0) == pid);
    return status != 0;
}

static int run_faults(const struct arguments *a)
{
    bool seen = false;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        if (a->fault && strcmp(a->fault, faults[i].name) != 0) continue;
        seen = true;
        if (a->fault) {
            *faults[i].flag = true;
            return run_all(a);
        }
        ok(run_finds(a, faults[i].flag), "%s is found", faults[i].name);
    }
    ok(!run_finds(a, NULL), "without a fault nothing is found");
    return seen ? tap_done() : 99;
}
#else
static int run_faults(const struct arguments *a)
{
    return a->fault ? 99 : run_all(a);
}
#endif

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"steps", 1, 0, 's'}, {"seed", 1, 0, 'r'}, {"episode", 1, 0, 'e'}, {"fault", 1, 0, 'f'}, {0}};
    struct arguments a = {.steps = 1000000, .seed = 20261121};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 's') a.steps = strtoull(optarg, NULL, 0);
        if (c == 'r') a.seed = strtoull(optarg, NULL, 0);
        if (c == 'e') a.only = strtoull(optarg, NULL, 0);
        if (c == 'f') a.fault = optarg;
        if (c == '?') return 99;
    }
    return run_faults(&a);
}
