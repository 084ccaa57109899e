// SPDX-License-Identifier: MIT OR Apache-2.0
/* What this host allows, as a long-lived process that obeys lines, so that it is measured in the same rounds as
 * everything else:
 *
 *   memcpy SIZE MS | writev SIZE MS | cacheline 0 MS
 *
 * memcpy and process_vm_writev move one block again and again (hot, 4 KiB pages, private memory; writev into a
 * child that sleeps).  cacheline is a round trip over one shared line, both processes spinning.  Each line is
 * answered by JSON: {"mib_per_s": ..., "cpu_per_gib": ...} or {"us": ...}. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 64 << 20, LINE = 64 };

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

static char *block(void)
{
    char *p = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) exit(1);
    madvise(p, BLOCK, MADV_NOHUGEPAGE);
    memset(p, 'x', BLOCK);
    return p;
}

static void move(pid_t child, char *to, char *from, size_t size, double seconds)
{
    struct iovec local = {from, size}, remote = {to, size};
    double start = wall(), spent = cpu(), now = start;
    uint64_t n = 0;
    size_t batch = size < (1 << 20) ? (1 << 20) / size : 1; /* a look at the clock costs, beside 4 KiB */
    while (now - start < seconds) {
        for (size_t i = 0; i < batch; i++) {
            if (child) {
                if (process_vm_writev(child, &local, 1, &remote, 1, 0) != (ssize_t)size) exit(1);
            } else {
                memcpy(to, from, size);
                __asm__ volatile("" : : "r"(to) : "memory");
            }
        }
        n += batch;
        now = wall();
    }
    double gib = (double)n * (double)size / (double)(1 << 30);
    printf("{\"mib_per_s\": %.1f, \"cpu_per_gib\": %.4f}\n", gib * 1024 / (now - start), (cpu() - spent) / gib);
}

static void cacheline(_Atomic uint32_t *line, double seconds)
{
    double start = wall(), now = start;
    uint32_t n = 0;
    while (now - start < seconds) {
        for (int i = 0; i < 1000; i++) {
            n++;
            atomic_store_explicit(&line[0], n, memory_order_release);
            while (atomic_load_explicit(&line[LINE / 4], memory_order_acquire) != n) {
            }
        }
        now = wall();
    }
    printf("{\"us\": %.4f}\n", 1e6 * (now - start) / n);
}

static void echo_lines(_Atomic uint32_t *line)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uint32_t seen = 0;;) {
        uint32_t n = atomic_load_explicit(&line[0], memory_order_acquire);
        if (n == UINT32_MAX) _exit(0);
        if (n == seen) continue;
        seen = n;
        atomic_store_explicit(&line[LINE / 4], n, memory_order_release);
    }
}

static void run_cacheline(double seconds)
{
    _Atomic uint32_t *line = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (line == MAP_FAILED) exit(1);
    pid_t other = fork();
    if (other == 0) echo_lines(line);
    cacheline(line, seconds);
    atomic_store(&line[0], UINT32_MAX);
    waitpid(other, NULL, 0);
    munmap((void *)line, 4096);
}

int main(void)
{
    char *to = block(), *from = block();
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        memset(to, 'y', BLOCK);
        for (;;) pause();
    }
    char line[128], op[16];
    size_t size;
    double ms;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%15s %zu %lf", op, &size, &ms) != 3 || size > BLOCK) break;
        if (!strcmp(op, "cacheline"))
            run_cacheline(ms / 1e3);
        else
            move(strcmp(op, "writev") ? 0 : child, to, from, size, ms / 1e3);
        fflush(stdout);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
