// SPDX-License-Identifier: MIT OR Apache-2.0
/* One side of a pair of blocking TCP sockets in C: the peer that the targets of path tcp are ratios to.  With "smc" its
 * sockets are the kernel's AF_SMC, of which a connection that fell back to TCP looks like any other: ask the kernel.
 *
 *   tcp_pair [tcp|smc HOST] listen | tcp_pair [tcp|smc HOST] connect PORT
 *
 * Obeys the lines of exs.cli.bench.side: "throughput SIZE COUNT DEPTH" and "roundtrip SIZE COUNT DEPTH"; the
 * listener receives (and says when it is ready), the other side sends and measures.  The depth means
 * nothing to a socket. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SMC_FAMILY = 43 };
enum { BUFFER = 16 << 20, SMALL_READ = 64 << 10, MAX_TRIPS = 1 << 20 };

struct side {
    int fd;
    int receives;
    char *buffer;
    double *trips;
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

static void send_bytes(const struct side *s, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = send(s->fd, s->buffer + done, len - done, MSG_NOSIGNAL);
        if (n < 0) fail("send");
        done += (size_t)n;
    }
}

static void receive_bytes(const struct side *s, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = recv(s->fd, s->buffer + done, len - done, 0);
        if (n <= 0) fail("recv");
        done += (size_t)n;
    }
}

/* Only counts: the best that a stream can do. */
static void swallow(const struct side *s, uint64_t total, size_t size)
{
    size_t step = size > SMALL_READ ? size : SMALL_READ;
    while (total) {
        ssize_t n = recv(s->fd, s->buffer, total < step ? (size_t)total : step, 0);
        if (n <= 0) fail("recv");
        total -= (uint64_t)n;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void throughput(const struct side *s, size_t size, uint64_t count)
{
    if (s->receives) {
        swallow(s, count * size, size);
        send_bytes(s, 1);
    } else {
        for (uint64_t i = 0; i < count; i++) send_bytes(s, size);
        receive_bytes(s, 1);
    }
}

static void roundtrip(const struct side *s, size_t size, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        double began = wall();
        if (s->receives) receive_bytes(s, size);
        send_bytes(s, size);
        if (!s->receives) receive_bytes(s, size);
        if (i < MAX_TRIPS) s->trips[i] = 1e6 * (wall() - began);
    }
}

static void obey(const struct side *s, const char *op, size_t size, uint64_t count)
{
    if (s->receives) {
        puts("{\"ready\": true}");
        fflush(stdout);
    }
    int trips = !strcmp(op, "roundtrip");
    double w = wall(), c = cpu();
    if (trips)
        roundtrip(s, size, count);
    else
        throughput(s, size, count);
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

static int listen_and_accept(int family, struct in_addr host)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = host};
    socklen_t len = sizeof a;
    int l = socket(family, SOCK_STREAM, 0);
    if (l < 0 || bind(l, (struct sockaddr *)&a, len) || listen(l, 1) || getsockname(l, (struct sockaddr *)&a, &len))
        fail("listen");
    printf("{\"address\": \"%d\"}\n", ntohs(a.sin_port));
    fflush(stdout);
    int fd = accept(l, NULL, NULL);
    if (fd < 0) fail("accept");
    close(l);
    return fd;
}

static int connect_to(int family, struct in_addr host, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr = host};
    int fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) fail("connect");
    return fd;
}

int main(int argc, char **argv)
{
    struct in_addr host = {htonl(INADDR_LOOPBACK)};
    int family = AF_INET;
    if (argc > 3) {
        if (!strcmp(argv[1], "smc")) family = SMC_FAMILY;
        if (inet_pton(AF_INET, argv[2], &host) != 1) return 2;
        argc -= 2;
        argv += 2;
    }
    if (argc < 2 || (argc < 3 && strcmp(argv[1], "listen"))) return 2;
    struct side s = {
        .receives = argc < 3, .buffer = aligned_alloc(4096, BUFFER), .trips = malloc(MAX_TRIPS * sizeof(double))};
    if (!s.buffer || !s.trips) fail("malloc");
    memset(s.buffer, 'x', BUFFER);
    s.fd = s.receives ? listen_and_accept(family, host) : connect_to(family, host, argv[2]);
    int on = 1;
    setsockopt(s.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    puts("{}");
    fflush(stdout);
    char line[128], op[16];
    size_t size;
    unsigned long long count;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%15s %zu %llu", op, &size, &count) != 3 || size > BUFFER) return 2;
        obey(&s, op, size, count);
    }
    return 0;
}
