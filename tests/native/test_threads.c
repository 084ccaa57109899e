// SPDX-License-Identifier: MIT OR Apache-2.0
/* Any call from any thread: several threads post, cancel, close and ask on the same sockets, which live in an
 * inline and in the threaded group.  Every accepted post must yield exactly one event, and nothing may be
 * left.  Run it under the thread sanitizer. */
#include <pthread.h>

#include "pair.h"

#define THREADS 4
#define SLOTS   6
#define STEPS   4000
#define LEN     3000
#define BUFS    64
#define RECV    100u

struct world {
    exsi_ctx *ctx;
    uint64_t group[2]; /* inline, threaded */
    uint64_t listener[2];
    struct sockaddr_in addr[2];
    pthread_mutex_t lock;
    uint64_t socks[SLOTS]; /* connected ends, put in by whoever made or accepted them */
    atomic_bool stop;
};

struct worker {
    struct world *w;
    unsigned seed;
    uint64_t eq;
    uint64_t accepted, events;
    uint8_t out[LEN];
    uint8_t in[BUFS][LEN]; /* each for one receive at a time, whose cookie is RECV + its index */
    bool taken[BUFS];
};

static unsigned pick(struct worker *k, unsigned n)
{
    k->seed = k->seed * 1103515245u + 12345u;
    return (k->seed >> 8) % n;
}

static uint64_t any_socket(struct worker *k)
{
    pthread_mutex_lock(&k->w->lock);
    uint64_t s = k->w->socks[pick(k, SLOTS)];
    pthread_mutex_unlock(&k->w->lock);
    return s;
}

/* Into a random place; what stood there is returned to be closed. */
static uint64_t put_socket(struct worker *k, uint64_t sock)
{
    pthread_mutex_lock(&k->w->lock);
    uint64_t *place = &k->w->socks[pick(k, SLOTS)], old = *place;
    *place = sock;
    pthread_mutex_unlock(&k->w->lock);
    return old;
}

static void posted(struct worker *k, int rc)
{
    k->accepted += rc == 0;
}

static void close_socket(struct worker *k, uint64_t sock)
{
    if (sock) posted(k, exsi_socket_close(k->w->ctx, sock, pick(k, 2) == 0, 7, k->eq, NULL));
}

static void take_events(struct worker *k, int64_t timeout_us)
{
    exsi_event ev[32];
    int n = exsi_eq_wait(k->w->ctx, k->eq, ev, 32, 1, timeout_us, EXSI_WAIT_ADAPTIVE, 5);
    must(n >= 0);
    for (int i = 0; i < n; i++) {
        k->events++;
        if (ev[i].kind == EXSI_OP_RECV) k->taken[ev[i].cookie - RECV] = false;
        if (ev[i].kind == EXSI_OP_ACCEPT && ev[i].error == 0) close_socket(k, put_socket(k, ev[i].value));
    }
}

static void open_socket(struct worker *k)
{
    struct world *w = k->w;
    int g = pick(k, 2) == 0;
    exsi_options opt;
    uint64_t sock;
    exsi_options_default(&opt);
    opt.close_timeout_ms = 500;
    opt.ring_bytes = 65536;
    opt.path = pick(k, 2) ? EXSI_PATH_TCP : EXSI_PATH_SHM;
    if (exsi_socket_new(w->ctx, w->group[g], AF_INET, SOCK_STREAM, &opt, &sock) < 0) return;
    posted(k, exsi_accept(w->ctx, w->listener[g], 5, k->eq, NULL));
    int rc = exsi_connect(w->ctx, sock, &w->addr[g], sizeof w->addr[g], 6, k->eq, NULL);
    posted(k, rc);
    close_socket(k, rc == 0 ? put_socket(k, sock) : sock);
}

static void receive(struct worker *k, uint64_t sock)
{
    unsigned i = pick(k, BUFS);
    if (k->taken[i]) return;
    int rc = exsi_recv(k->w->ctx, sock, k->in[i], 1 + pick(k, LEN - 1), 0, 0, RECV + i, k->eq, NULL);
    k->taken[i] = rc == 0;
    posted(k, rc);
}

static void step(struct worker *k)
{
    struct world *w = k->w;
    uint64_t sock = any_socket(k), stats[32];
    exsi_socket_info info;
    switch (pick(k, 16)) {
    case 0: open_socket(k); break;
    case 1:
    case 2:
    case 3: posted(k, exsi_send(w->ctx, sock, k->out, 1 + pick(k, LEN - 1), 0, 0, 1, k->eq, NULL)); break;
    case 4:
    case 5:
    case 6: receive(k, sock); break;
    case 7: posted(k, exsi_poll(w->ctx, sock, EXSI_OPF_POLL_IN, 3, k->eq, NULL)); break;
    case 8: (void)!exsi_cancel_match(w->ctx, sock, 1, RECV + pick(k, BUFS)); break;
    case 9: (void)!exsi_cancel_match(w->ctx, 0, 1, 3); break;
    case 10: (void)!exsi_socket_query(w->ctx, sock, &info); break;
    case 11: (void)!exsi_statistics(w->ctx, pick(k, 2) ? sock : 0, stats, 32); break;
    case 12:
        if (pick(k, 8) == 0) close_socket(k, sock);
        break;
    case 13:
        if (pick(k, 8) == 0) posted(k, exsi_shutdown(w->ctx, sock, SHUT_WR, 4, k->eq, NULL));
        break;
    default: take_events(k, 0); break;
    }
}

static void *work(void *arg)
{
    struct worker *k = arg;
    for (int i = 0; i < STEPS; i++) step(k);
    return NULL;
}

static void world_open(struct world *w)
{
    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    must(exsi_open(&w->ctx) == 0);
    for (int g = 0; g < 2; g++) {
        uint32_t len = sizeof w->addr[g];
        exsi_options opt;
        exsi_options_default(&opt);
        opt.close_timeout_ms = 500;
        opt.ring_bytes = 65536;
        w->addr[g] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        must(exsi_group_new(w->ctx, g, &w->group[g]) == 0);
        must(exsi_socket_new(w->ctx, w->group[g], AF_INET, SOCK_STREAM, &opt, &w->listener[g]) == 0);
        must(exsi_bind(w->ctx, w->listener[g], &w->addr[g], len) == 0 && exsi_listen(w->ctx, w->listener[g], 64) == 0);
        must(exsi_sockname(w->ctx, w->listener[g], &w->addr[g], &len) == 0);
    }
}

/* Abort everything; then every post has its event. */
static void settle(struct worker *workers)
{
    struct world *w = workers[0].w;
    uint64_t end = exsi_now_ns() + WAIT_NS;
    for (int i = 0; i < SLOTS; i++) (void)!exsi_socket_close(w->ctx, w->socks[i], 1, 0, 0, NULL);
    for (int g = 0; g < 2; g++) (void)!exsi_socket_close(w->ctx, w->listener[g], 1, 0, 0, NULL);
    bool all = false;
    while (!all && exsi_now_ns() < end) {
        all = true;
        for (int i = 0; i < THREADS; i++) {
            take_events(&workers[i], 1000);
            for (int s = 0; s < SLOTS; s++) (void)!exsi_socket_close(w->ctx, w->socks[s], 1, 0, 0, NULL);
            all &= workers[i].events == workers[i].accepted;
        }
    }
}

static void run(unsigned seed)
{
    int before = count_fds();
    struct world w;
    struct worker *workers = calloc(THREADS, sizeof *workers);
    pthread_t threads[THREADS];
    must(workers);
    world_open(&w);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].w = &w;
        workers[i].seed = seed * 7919u + i;
        must(exsi_eq_new(w.ctx, w.group[0], 4096, &workers[i].eq) == 0);
        must(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    uint64_t accepted = 0, events = 0;
    for (int i = 0; i < THREADS; i++) must(pthread_join(threads[i], NULL) == 0);
    settle(workers);
    for (int i = 0; i < THREADS; i++) {
        accepted += workers[i].accepted;
        events += workers[i].events;
    }
    ok(accepted == events && accepted > 0, "seed %u: %llu posts, %llu events", seed, (unsigned long long)accepted,
       (unsigned long long)events);
    exsi_close(w.ctx);
    free(workers);
    ok(count_fds() == before, "seed %u: no descriptor is left", seed);
}

int main(int argc, char **argv)
{
    unsigned first = argc > 1 ? (unsigned)atoi(argv[1]) : 1, n = argc > 2 ? (unsigned)atoi(argv[2]) : 4;
    for (unsigned seed = first; seed < first + n; seed++) run(seed);
    return tap_done();
}
