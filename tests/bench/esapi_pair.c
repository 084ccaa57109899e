// SPDX-License-Identifier: MIT OR Apache-2.0
/* One side of a pair of programs that use nothing but exs.h: what ES-API costs without an interpreter.
 *
 *   esapi_pair TYPE DEVICE HOST WAIT listen | esapi_pair TYPE DEVICE HOST WAIT connect PORT
 *
 * TYPE is stream or seqpacket, WAIT adaptive or busy.  Obeys the lines of exs.cli.bench.side: "throughput SIZE COUNT
 * DEPTH" and "roundtrip SIZE COUNT DEPTH"; the listener receives (and says when it is ready), the other side sends and
 * measures.  One event queue for everything; the memory is registered once; receives are posted ahead. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <exs.h>

enum { BUFFER = 16 << 20, SLAB = 64 << 10, MAX_TRIPS = 1 << 20, EVENTS = 64, QUEUE = 1024, AHEAD = 4 };

struct side {
    int fd;
    int receives, stream;
    exs_qhandle_t queue;
    char *out, *in; /* BUFFER each */
    exs_mhandle_t out_mh, in_mh;
    double *trips;
    uint64_t sent, received, bytes; /* events since the operation began, and the bytes of those that received */
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* --- transfers ------------------------------------------------------------------------------------------------ */

static void post_send(const struct side *s, size_t len)
{
    if (exs_send(s->fd, s->out, len, 0, s->out_mh, NULL, s->queue) < 0) fail("exs_send");
}

static void post_recv(const struct side *s, char *at, size_t len, int flags)
{
    if (exs_recv(s->fd, at, len, flags, s->in_mh, at, s->queue) < 0) fail("exs_recv");
}

/* One event or more; those that received are handed to each. */
static void take(struct side *s, void (*each)(struct side *s, char *at, void *arg), void *arg)
{
    exs_event_t events[EVENTS];
    int n = exs_qdequeue(s->queue, events, EVENTS, NULL);
    if (n < 0) fail("exs_qdequeue");
    for (int i = 0; i < n; i++) {
        const exs_event_t *e = &events[i];
        errno = e->exs_evt_errno;
        if (e->exs_evt_errno && e->exs_evt_errno != ECANCELED) fail("event");
        if (e->exs_evt_type == EXS_EVT_SEND) {
            s->sent++;
            continue;
        }
        s->received++;
        s->bytes += e->exs_evt_union.exs_evt_xfer.exs_evt_length;
        if (each) each(s, e->exs_evt_ahandle, arg);
    }
}

static void start(struct side *s)
{
    s->sent = s->received = s->bytes = 0;
}

static void ready(void)
{
    puts("{\"ready\": true}");
    fflush(stdout);
}

/* --- throughput ------------------------------------------------------------------------------------------------- */

struct bulk {
    size_t slab;
    int flags;
    uint64_t total, posted, most;
};

static void again(struct side *s, char *at, void *arg)
{
    struct bulk *b = arg;
    if (s->bytes >= b->total || b->posted == b->most) return;
    post_recv(s, at, b->slab, b->flags);
    b->posted++;
}

static void swallow(struct side *s, size_t size, uint64_t count, uint64_t depth)
{
    struct bulk b = {.slab = s->stream && size < SLAB ? SLAB : size, .total = size * count, .most = count};
    /* With MSG_WAITALL and with messages no more may be posted than will come, or what follows would fill it. */
    if (s->stream && size >= SLAB) b.flags = MSG_WAITALL;
    if (s->stream && !b.flags) b.most = UINT64_MAX;
    for (; b.posted < depth && b.posted < b.most && (b.posted + 1) * b.slab <= BUFFER; b.posted++)
        post_recv(s, s->in + b.posted * b.slab, b.slab, b.flags);
    ready();
    while (s->bytes < b.total) take(s, again, &b);
    if (b.posted > s->received) exs_cancel(s->fd, NULL, EXS_CAF_FILDES);
    while (b.posted > s->received) take(s, NULL, NULL);
    post_send(s, 1);
    while (!s->sent) take(s, NULL, NULL);
}

static void pour(struct side *s, size_t size, uint64_t count, uint64_t depth)
{
    uint64_t posted = 0;
    while (s->sent < count) {
        for (; posted < count && posted - s->sent < depth; posted++) post_send(s, size);
        take(s, NULL, NULL);
    }
    post_recv(s, s->in, 1, 0);
    while (!s->received) take(s, NULL, NULL);
}

/* --- round trips -------------------------------------------------------------------------------------------------- */

static void roundtrip(struct side *s, size_t size, uint64_t count)
{
    int flags = s->stream ? MSG_WAITALL : 0;
    uint64_t posted = 0;
    for (; posted < AHEAD && posted < count; posted++) post_recv(s, s->in + posted % AHEAD * size, size, flags);
    if (s->receives) ready();
    for (uint64_t i = 0; i < count; i++) {
        double began = wall();
        if (s->receives)
            while (s->received <= i) take(s, NULL, NULL);
        post_send(s, size);
        /* Behind the send: it is for a later message. */
        if (i > 0 && posted < count) post_recv(s, s->in + posted++ % AHEAD * size, size, flags);
        while (s->sent <= i || (!s->receives && s->received <= i)) take(s, NULL, NULL);
        if (i < MAX_TRIPS) s->trips[i] = 1e6 * (wall() - began);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void obey(struct side *s, const char *op, size_t size, uint64_t count, uint64_t depth)
{
    int trips = !strcmp(op, "roundtrip");
    double w = wall(), c = cpu();
    start(s);
    if (trips)
        roundtrip(s, size, count);
    else if (s->receives)
        swallow(s, size, count, depth);
    else
        pour(s, size, count, depth);
    w = wall() - w;
    c = cpu() - c;
    printf("{\"seconds\": %.9f, \"cpu\": %.6f", w, c);
    if (trips && !s->receives) {
        size_t n = count < MAX_TRIPS ? (size_t)count : MAX_TRIPS;
        qsort(s->trips, n, sizeof *s->trips, compare);
        printf(", \"p50\": %.3f, \"p99\": %.3f", s->trips[n / 2], s->trips[n * 99 / 100]);
    }
    puts("}");
    fflush(stdout);
}

/* --- set-up ---------------------------------------------------------------------------------------------------------
 */

static int new_socket(const struct side *s, const char *device)
{
    int fd = exs_socket(AF_INET, s->stream ? SOCK_STREAM : SOCK_SEQPACKET, 0);
    if (fd < 0 || exs_setsockopt(fd, SOL_EXS, EXS_SO_DEVICE, device, (socklen_t)strlen(device) + 1)) fail("exs_socket");
    return fd;
}

static void connect_side(struct side *s, const char *device, const char *host, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t len = sizeof a;
    int fd = new_socket(s, device);
    if (inet_pton(AF_INET, host, &a.sin_addr) != 1) exit(2);
    if (!s->receives) {
        a.sin_port = htons((uint16_t)atoi(port));
        if (exs_connect(fd, (struct sockaddr *)&a, len, NULL, EXS_QHANDLE_INVALID)) fail("exs_connect");
        s->fd = fd;
        return;
    }
    if (exs_bind(fd, (struct sockaddr *)&a, len) || exs_listen(fd, 1) ||
        exs_getsockname(fd, (struct sockaddr *)&a, &len))
        fail("exs_listen");
    printf("{\"address\": \"%d\"}\n", ntohs(a.sin_port));
    fflush(stdout);
    s->fd = exs_accept(fd, NULL, 0, 0, NULL, EXS_QHANDLE_INVALID);
    if (s->fd < 0) fail("exs_accept");
    exs_close(fd, NULL, EXS_QHANDLE_INVALID);
}

static void prepare(struct side *s, int wait)
{
    s->out = aligned_alloc(4096, BUFFER);
    s->in = aligned_alloc(4096, BUFFER);
    s->trips = malloc(MAX_TRIPS * sizeof *s->trips);
    if (!s->out || !s->in || !s->trips) fail("malloc");
    memset(s->out, 'x', BUFFER);
    memset(s->in, 'x', BUFFER);
    s->out_mh = exs_mregister(s->out, BUFFER, EXS_ACCESS_READ);
    s->in_mh = exs_mregister(s->in, BUFFER, EXS_ACCESS_WRITE);
    if (!exs_mhandle_valid(s->out_mh) || !exs_mhandle_valid(s->in_mh)) fail("exs_mregister");
    s->queue = exs_qcreate(QUEUE);
    if (!exs_qhandle_valid(s->queue) || exs_qmodify(s->queue, EXS_QATTR_WAIT, wait)) fail("exs_qcreate");
}

int main(int argc, char **argv)
{
    if (argc < 6 || (argc < 7 && strcmp(argv[5], "listen"))) return 2;
    struct side s = {.receives = argc < 7, .stream = !strcmp(argv[1], "stream")};
    if (exs_init(EXS_VERSION)) fail("exs_init");
    prepare(&s, strcmp(argv[4], "busy") ? EXS_WAIT_ADAPTIVE : EXS_WAIT_BUSY_POLL);
    connect_side(&s, argv[2], argv[3], argv[6]);
    puts("{}");
    fflush(stdout);
    char line[128], op[16];
    size_t size;
    unsigned long long count, depth;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%15s %zu %llu %llu", op, &size, &count, &depth) != 4 || size * AHEAD > BUFFER) return 2;
        obey(&s, op, size, count, depth);
    }
    exs_close(s.fd, NULL, EXS_QHANDLE_INVALID);
    return 0;
}
