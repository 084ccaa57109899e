// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the C core does on one host, without Python: two processes, both spinning, beside the limits of
 * the host measured in the same run.  JSON on stdout.
 *
 *   shm_core [--path shm-vm|shm-ring|tcp] [--type stream|seqpacket] [--rounds N] [--seconds S]
 *
 * Round trip: one message of 64 bytes each way, receives posted ahead.  Rate: 64-byte messages one way.
 * Throughput: one buffer sent again and again (hot) into one buffer, receives posted ahead.  The limits
 * are process_vm_writev into a sleeping child, and memcpy. */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/api.h"
#include "core/mr.h"
#include "core/op.h"

#define MAX_ROUNDS 32
#define BUF        (16u << 20)
#define DEPTH      64

static double seconds = 0.15;

static void check(int rc, const char *what)
{
    if (rc >= 0) return;
    fprintf(stderr, "shm_core: %s: %s\n", what, strerror(-rc));
    exit(1);
}

/* --- one end ---------------------------------------------------------------------------------------- */

struct end {
    exsi_ctx *ctx;
    uint64_t group, eq, sock, mr;
    uint8_t *buf;
    bool allocated;
    exsi_event ev[DEPTH];
};

static exsi_event wait_one(struct end *e)
{
    exsi_event ev;
    int n;
    while ((n = exsi_eq_poll(e->ctx, e->eq, &ev, 1)) == 0) {
    }
    check(n, "poll");
    if (ev.error) {
        fprintf(stderr, "shm_core: event of kind %d: %s\n", ev.kind, strerror(ev.error));
        exit(1);
    }
    return ev;
}

/* The event of a post: from the call or from the queue. */
static exsi_event result(struct end *e, int rc, const exsi_posted *out, const char *what)
{
    check(rc, what);
    return rc == 1 ? out->event : wait_one(e);
}

static void end_open(struct end *e, const exsi_options *opt, int type, bool allocated)
{
    void *at = NULL;
    check(exsi_open(&e->ctx), "open");
    check(exsi_group_new(e->ctx, 0, &e->group), "group");
    check(exsi_eq_new(e->ctx, e->group, 1024, &e->eq), "queue");
    check(exsi_socket_new(e->ctx, e->group, AF_INET, type, opt, &e->sock), "socket");
    if (allocated) {
        check(exsi_mem_allocate(e->ctx, BUF, EXSI_MR_READ | EXSI_MR_WRITE, &e->mr, &at), "allocate");
    } else {
        at = mmap(NULL, BUF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(exsi_mem_register(e->ctx, at, BUF, EXSI_MR_READ | EXSI_MR_WRITE, &e->mr), "register");
    }
    e->buf = at;
    memset(e->buf, 1, BUF);
}

static void post_recv(struct end *e, size_t off, size_t len)
{
    check(exsi_recv(e->ctx, e->sock, e->buf + off, len, EXSI_OPF_WAITALL, e->mr, 1, e->eq, NULL), "recv");
}

static int drain(struct end *e)
{
    int n;
    while ((n = exsi_eq_poll(e->ctx, e->eq, e->ev, DEPTH)) == 0) {
    }
    check(n, "poll");
    for (int i = 0; i < n; i++) check(-e->ev[i].error, "event");
    return n;
}

/* What the receiver counted, for the other process to print. */
struct counts {
    uint64_t direct, indirect, copied, mapped;
};

static struct counts *counts; /* shared */

static uint64_t counter(struct end *e, const char *name)
{
    uint64_t v[64];
    int n = exsi_statistics(e->ctx, e->sock, v, 64);
    for (int i = 0; i < n; i++)
        if (!strcmp(exsi_statistics_name(i), name)) return v[i];
    return 0;
}

static void publish(struct end *e)
{
    *counts = (struct counts){counter(e, "bytes_direct"), counter(e, "bytes_indirect"), counter(e, "bytes_copied"),
                              counter(e, "bytes_mapped")};
}

/* --- a test is a number of messages of one size; the server does what the client asks for ------------- */

enum what { RTT, FLOW, QUIT };

struct ask {
    uint32_t what, depth;
    uint64_t size, count;
};

/* Receive `count` messages with `depth` posted ahead; answer each (RTT) or the last one. */
static void serve(struct end *e, const struct ask *a)
{
    exsi_posted out;
    uint64_t posted = 0, got = 0;
    while (posted < a->count && posted < a->depth) {
        post_recv(e, 0, a->size);
        posted++;
    }
    check(exsi_send(e->ctx, e->sock, "ready", 8, 0, 0, 2, e->eq, &out), "send");
    while (got < a->count) {
        int n = drain(e);
        for (int i = 0; i < n; i++) {
            if (e->ev[i].kind != EXSI_OP_RECV) continue;
            got++;
            if (posted < a->count) {
                post_recv(e, 0, a->size);
                posted++;
            }
            if (a->what == RTT) check(exsi_send(e->ctx, e->sock, e->buf, a->size, 0, e->mr, 2, e->eq, &out), "send");
        }
    }
    publish(e);
    if (a->what == FLOW) check(exsi_send(e->ctx, e->sock, "done", 8, 0, 0, 2, e->eq, &out), "send");
}

static _Noreturn void server(int up, const exsi_options *opt, int type, bool allocated)
{
    struct end e = {0};
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint32_t len = sizeof addr;
    exsi_posted out;
    end_open(&e, opt, type, allocated);
    check(exsi_bind(e.ctx, e.sock, &addr, sizeof addr), "bind");
    check(exsi_listen(e.ctx, e.sock, 1), "listen");
    check(exsi_sockname(e.ctx, e.sock, &addr, &len), "sockname");
    check(write(up, &addr, sizeof addr) == sizeof addr ? 0 : -EPIPE, "tell");
    e.sock = result(&e, exsi_accept(e.ctx, e.sock, 1, e.eq, &out), &out, "accept").value;
    for (;;) {
        struct ask a;
        int rc = exsi_recv(e.ctx, e.sock, e.buf, sizeof a, EXSI_OPF_WAITALL, e.mr, 1, e.eq, &out);
        check(rc, "recv");
        /* Sends of the test before may end in between. */
        if (rc == 0)
            while (wait_one(&e).kind != EXSI_OP_RECV) {
            }
        memcpy(&a, e.buf, sizeof a);
        if (a.what == QUIT) break;
        serve(&e, &a);
    }
    exit(0);
}

/* Ask, wait until the other side is ready. */
static void begin(struct end *e, const struct ask *a)
{
    exsi_posted out;
    post_recv(e, BUF - 64, 8);
    int rc = exsi_send(e->ctx, e->sock, a, sizeof *a, 0, 0, 2, e->eq, &out);
    check(rc, "send");
    for (int want = 1 + (rc == 0); want > 0;) want -= drain(e);
}

static double rtt_us(struct end *e, uint64_t size, uint64_t count)
{
    struct ask a = {RTT, 4, size, count};
    exsi_posted out;
    begin(e, &a);
    uint64_t posted = 0;
    for (; posted < 4; posted++) post_recv(e, 0, size);
    uint64_t t0 = exsi_now_ns();
    for (uint64_t i = 0; i < count; i++) {
        check(exsi_send(e->ctx, e->sock, e->buf + 4096, size, 0, e->mr, 2, e->eq, &out), "send");
        for (bool got = false; !got;) {
            int n = drain(e);
            for (int k = 0; k < n; k++) got |= e->ev[k].kind == EXSI_OP_RECV;
        }
        if (posted < count) {
            post_recv(e, 0, size);
            posted++;
        }
    }
    return (double)(exsi_now_ns() - t0) / 1e3 / (double)count;
}

/* Seconds for count messages. */
static double flow(struct end *e, uint64_t size, uint64_t count, uint32_t depth, bool split)
{
    struct ask a = {FLOW, depth, size, count};
    uint64_t sent = 0, ended = 0;
    exsi_posted out;
    begin(e, &a);
    post_recv(e, BUF - 64, 8);
    uint64_t t0 = exsi_now_ns();
    bool last = false;
    while (!last) {
        while (sent < count && sent - ended < depth) {
            int rc;
            uint64_t room = exsi_min_u64(count - sent, depth - (sent - ended));
            if (split) {
                rc = exsi_send_split(e->ctx, e->sock, e->buf, size * room, size, 0, e->mr, 2, e->eq, &out);
                check(rc, "send");
                sent += (uint64_t)rc;
            } else {
                rc = exsi_send(e->ctx, e->sock, e->buf, size, 0, e->mr, 2, e->eq, &out);
                check(rc, "send");
                sent++;
                ended += rc == 1;
            }
        }
        int n = exsi_eq_poll(e->ctx, e->eq, e->ev, DEPTH);
        check(n, "poll");
        for (int k = 0; k < n; k++) {
            check(-e->ev[k].error, "event");
            if (e->ev[k].kind == EXSI_OP_RECV)
                last = true;
            else
                ended++;
        }
    }
    double t = (double)(exsi_now_ns() - t0) / 1e9;
    while (ended < sent) ended += (uint64_t)drain(e);
    return t;
}

/* --- limits ---------------------------------------------------------------------------------------------- */

static double vm_mibs(pid_t child, uint8_t *mine, uint8_t *theirs, size_t size)
{
    uint64_t t0 = exsi_now_ns(), end = t0 + (uint64_t)(seconds * 1e9), n = 0, now;
    do {
        struct iovec l = {mine, size}, r = {theirs, size};
        if (process_vm_writev(child, &l, 1, &r, 1, 0) != (ssize_t)size) check(-errno, "process_vm_writev");
        n++;
    } while ((now = exsi_now_ns()) < end);
    return (double)n * (double)size / 1048576.0 / ((double)(now - t0) / 1e9);
}

static double memcpy_mibs(uint8_t *a, uint8_t *b, size_t size)
{
    uint64_t t0 = exsi_now_ns(), end = t0 + (uint64_t)(seconds * 1e9), n = 0, now;
    do {
        for (size_t i = 0; i < 1 + (1u << 20) / size; i++) {
            memcpy(a, b, size);
            __asm__ volatile("" : : "r"(a) : "memory");
            n++;
        }
    } while ((now = exsi_now_ns()) < end);
    return (double)n * (double)size / 1048576.0 / ((double)(now - t0) / 1e9);
}

/* --- rounds ------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static const size_t sizes[] = {4096, 65536, 1 << 20, 16 << 20};
#define N_SIZES 4

static double flow_mibs(struct end *e, size_t size, double *indirect)
{
    struct counts before = *counts;
    uint32_t depth = size > (1u << 20) ? 4 : 8;
    uint64_t count = exsi_max_u64(16, (uint64_t)(seconds * 4e9) / size);
    double t = flow(e, size, count, depth, false);
    *indirect = (double)(counts->indirect - before.indirect) / ((double)count * (double)size);
    return (double)count * (double)size / 1048576.0 / t;
}

struct how {
    const char *path;
    int type, rounds;
    bool allocated;
};

static bool parse(struct how *h, int argc, char **argv)
{
    *h = (struct how){"shm-vm", SOCK_STREAM, 5, false};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--path") && i + 1 < argc)
            h->path = argv[++i];
        else if (!strcmp(argv[i], "--type") && i + 1 < argc)
            h->type = !strcmp(argv[++i], "stream") ? SOCK_STREAM : SOCK_SEQPACKET;
        else if (!strcmp(argv[i], "--rounds") && i + 1 < argc)
            h->rounds = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--seconds") && i + 1 < argc)
            seconds = atof(argv[++i]);
        else if (!strcmp(argv[i], "--allocated"))
            h->allocated = true;
        else
            return false;
    }
    if (h->rounds < 1 || h->rounds > MAX_ROUNDS) h->rounds = 5;
    return true;
}

/* One value a round, of each figure. */
struct figures {
    double rtt[MAX_ROUNDS], rate[MAX_ROUNDS], batch[MAX_ROUNDS];
    double exs[N_SIZES][MAX_ROUNDS], writev[N_SIZES][MAX_ROUNDS], copy[N_SIZES][MAX_ROUNDS],
        indirect[N_SIZES][MAX_ROUNDS];
};

static void measure(struct figures *f, struct end *e, pid_t sleeper, uint8_t *a, uint8_t *b, int rounds)
{
    for (int r = -1; r < rounds; r++) { /* one to warm up */
        int k = r < 0 ? 0 : r;
        f->rtt[k] = rtt_us(e, 64, r < 0 ? 1000 : (uint64_t)(seconds * 4e5));
        uint64_t n = r < 0 ? 10000 : (uint64_t)(seconds * 3e6);
        f->rate[k] = (double)n / flow(e, 64, n, DEPTH, false);
        f->batch[k] = (double)n / flow(e, 64, n, DEPTH, true);
        for (int s = 0; s < N_SIZES; s++) {
            f->writev[s][k] = vm_mibs(sleeper, a, b, sizes[s]);
            f->exs[s][k] = flow_mibs(e, sizes[s], &f->indirect[s][k]);
            f->copy[s][k] = memcpy_mibs(a, b, sizes[s]);
        }
    }
}

static void report(struct figures *f, const struct how *h, const char *path)
{
    printf("{\"path\": \"%s\", \"type\": \"%s\", \"allocated\": %s, \"rounds\": %d,\n \"rtt_64_us\": %.2f, "
           "\"rate_64_per_s\": %.0f, "
           "\"rate_64_batch_per_s\": %.0f,\n \"throughput_mib_s\": {",
           path, h->type == SOCK_STREAM ? "stream" : "seqpacket", h->allocated ? "true" : "false", h->rounds,
           median(f->rtt, h->rounds), median(f->rate, h->rounds), median(f->batch, h->rounds));
    for (int s = 0; s < N_SIZES; s++) {
        double t = median(f->exs[s], h->rounds), l = median(f->writev[s], h->rounds), c = median(f->copy[s], h->rounds);
        printf("%s\n  \"%zu\": {\"exs\": %.0f, \"process_vm_writev\": %.0f, \"memcpy\": %.0f, \"to_writev\": %.2f, "
               "\"to_memcpy\": %.2f, \"indirect\": %.2f}",
               s ? "," : "", sizes[s], t, l, c, t / l, t / c, median(f->indirect[s], h->rounds));
    }
    printf("}}\n");
}

/* A process to write to, whose pages are there. */
static pid_t start_sleeper(uint8_t *b)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(b, 3, BUF);
    for (;;) pause();
}

static pid_t start_server(int up, exsi_options *opt, const struct how *h)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    server(up, opt, h->type, h->allocated);
}

int main(int argc, char **argv)
{
    struct how h;
    exsi_options opt;
    exsi_options_default(&opt);
    if (!parse(&h, argc, argv))
        return fprintf(stderr, "usage: shm_core [--path P] [--type T] [--rounds N] [--seconds S] [--allocated]\n"), 2;
    opt.path = !strcmp(h.path, "tcp")        ? EXSI_PATH_TCP
               : !strcmp(h.path, "shm-ring") ? EXSI_PATH_SHM_RING
                                             : EXSI_PATH_SHM_VM;
    int up[2];
    check(pipe(up), "pipe");
    uint8_t *a = mmap(NULL, BUF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *b = mmap(NULL, BUF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(a, 1, BUF);
    memset(b, 2, BUF);
    counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t sleeper = start_sleeper(b), child = start_server(up[1], &opt, &h);
    struct sockaddr_in addr;
    struct end e = {0};
    exsi_posted out;
    exsi_socket_info info;
    end_open(&e, &opt, h.type, h.allocated);
    check(read(up[0], &addr, sizeof addr) == sizeof addr ? 0 : -EPIPE, "server");
    (void)result(&e, exsi_connect(e.ctx, e.sock, &addr, sizeof addr, 1, e.eq, &out), &out, "connect");
    check(exsi_socket_query(e.ctx, e.sock, &info), "query");

    static struct figures f;
    measure(&f, &e, sleeper, a, b, h.rounds);
    report(&f, &h, info.path);
    struct ask quit = {.what = QUIT};
    (void)result(&e, exsi_send(e.ctx, e.sock, &quit, sizeof quit, 0, 0, 2, e.eq, &out), &out, "send");
    int status;
    kill(sleeper, SIGKILL);
    waitpid(sleeper, &status, 0);
    waitpid(child, &status, 0);
    exsi_close(e.ctx);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
