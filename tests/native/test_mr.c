// SPDX-License-Identifier: MIT OR Apache-2.0
/* The memory table: uses, closing, stale handles, device registrations, sealed memory. */
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/mr.h"
#include "null_device.h"
#include "tap.h"

static struct exsi_ctx *open_ctx(void)
{
    struct exsi_ctx *ctx;
    must(exsi_ctx_open(&ctx) == 0);
    return ctx;
}

/* ES-API 1.5 */
static void test_get_checks_range_and_access(void)
{
    static uint8_t other[1];
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_mr *mr;
    uint64_t h;
    uint8_t *buf = malloc(1000);
    must(buf);
    ok(exsi_mr_open(ctx, buf, 1000, EXSI_MR_READ, &h) == 0, "open");
    ok(exsi_mr_get(ctx, h, buf, 1000, EXSI_MR_READ, &mr) == 0 && mr->mem.addr == buf, "the whole region");
    exsi_mr_put(ctx, mr);
    ok(exsi_mr_get(ctx, h, buf + 1000, 0, EXSI_MR_READ, &mr) == 0, "nothing, at its end");
    exsi_mr_put(ctx, mr);
    ok(exsi_mr_get(ctx, h, buf + 1, 1000, EXSI_MR_READ, &mr) == -EFAULT, "one byte too far");
    ok(exsi_mr_get(ctx, h, buf - 1, 10, EXSI_MR_READ, &mr) == -EFAULT, "one byte before");
    ok(exsi_mr_get(ctx, h, buf + 8, SIZE_MAX, EXSI_MR_READ, &mr) == -EFAULT, "a length that wraps");
    ok(exsi_mr_get(ctx, h, other, 1, EXSI_MR_READ, &mr) == -EFAULT, "other memory");
    ok(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_WRITE, &mr) == -EACCES, "no right to write");
    ok(exsi_mr_in_use(ctx, h) == 0, "a refusal leaves no use behind");
    ok(exsi_mr_close(ctx, h) == 0, "close");
    exsi_ctx_free(ctx);
    free(buf);
}

/* ES-API 1.5 */
static void test_open_refuses_nonsense(void)
{
    struct exsi_ctx *ctx = open_ctx();
    uint64_t h;
    uint8_t byte;
    void *gone = mmap(NULL, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(gone != MAP_FAILED && munmap(gone, 65536) == 0);
    ok(exsi_mr_open(ctx, &byte, 0, EXSI_MR_READ, &h) == -EINVAL, "no length");
    ok(exsi_mr_open(ctx, &byte, SIZE_MAX, EXSI_MR_READ, &h) == -EINVAL, "a range that wraps");
    ok(exsi_mr_open(ctx, gone, 65536, EXSI_MR_READ, &h) == -EFAULT, "not mapped");
    ok(exsi_mr_close(ctx, 0) == -EBADF && exsi_mr_close(ctx, UINT64_MAX) == -EBADF, "no handle at all");
    ok(exsi_mr_close(ctx, (uint64_t)EXSI_HANDLE_MR << 56 | (uint64_t)1 << 32 | 5) == -EBADF, "a slot never used");
    exsi_ctx_free(ctx);
}

static void test_close_waits_for_nobody(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_mr *a, *b, *c;
    uint64_t h, next;
    uint8_t buf[64];
    must(exsi_mr_open(ctx, buf, sizeof buf, EXSI_MR_READ, &h) == 0);
    must(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &a) == 0 && exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &b) == 0);
    ok(exsi_mr_in_use(ctx, h) == 2 && exsi_mr_close(ctx, h) == -EBUSY, "in use twice: busy");
    ok(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &c) == 0, "and nothing happened to it");
    exsi_mr_put(ctx, c);
    ok(exsi_mr_close_later(ctx, h) == 0, "close later");
    ok(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &c) == -EBADF && exsi_mr_in_use(ctx, h) == 2, "no new uses");
    ok(exsi_mr_close_later(ctx, h) == -EBADF && exsi_mr_close(ctx, h) == -EBADF, "and no second close");
    exsi_mr_put(ctx, a);
    exsi_mr_put(ctx, b);
    must(exsi_mr_in_use(ctx, h) == -EBADF);
    must(exsi_mr_open(ctx, buf, sizeof buf, EXSI_MR_READ, &next) == 0);
    ok((uint32_t)next == (uint32_t)h && next != h, "the last put freed the slot, with a new generation");
    ok(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &c) == -EBADF, "the stale handle finds nothing");
    ok(exsi_mr_close(ctx, next) == 0, "close");
    exsi_ctx_free(ctx);
}

static void test_device_registration_is_lazy_and_ends_with_the_region(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_device *dev;
    struct exsi_dmr *one, *two;
    struct exsi_mr *mr;
    uint64_t h;
    uint8_t buf[64];
    char reason[EXSI_REASON_MAX];
    must(exsi_ctx_device(ctx, "null", &dev, reason) == 0);
    must(exsi_mr_open(ctx, buf, sizeof buf, EXSI_MR_READ | EXSI_MR_WRITE, &h) == 0);
    must(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &mr) == 0);
    ok(atomic_load(&null_state.registered) == 0, "not before the first use");
    null_state.fail_reg = ENOMEM;
    ok(exsi_mr_on(ctx, mr, dev, &one) == -ENOMEM, "the device may refuse");
    null_state.fail_reg = 0;
    ok(exsi_mr_on(ctx, mr, dev, &one) == 0 && exsi_mr_on(ctx, mr, dev, &two) == 0 && one == two, "made once");
    ok(one->mem.addr == buf && one->mem.access == (EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE), "as asked");
    exsi_mr_put(ctx, mr);
    ok(exsi_mr_close(ctx, h) == 0 && atomic_load(&null_state.registered) == 0, "deregistered by the close");
    must(exsi_mr_open(ctx, buf, sizeof buf, EXSI_MR_READ, &h) == 0);
    must(exsi_mr_get(ctx, h, buf, 1, EXSI_MR_READ, &mr) == 0 && exsi_mr_on(ctx, mr, dev, &one) == 0);
    ok(one->mem.access == 0, "read only");
    exsi_mr_put(ctx, mr);
    exsi_ctx_free(ctx);
    ok(atomic_load(&null_state.registered) == 0 && null_state.opened == 0, "the context ends what is left");
}

static void test_fragile_is_found_or_told(void)
{
    static const uint8_t constant[64] = {1};
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_mr *mr;
    uint64_t h[3];
    must(exsi_mr_open(ctx, (void *)(uintptr_t)constant, 64, EXSI_MR_READ, &h[0]) == 0);
    must(exsi_mr_open(ctx, (void *)(uintptr_t)constant, 64, EXSI_MR_READ | EXSI_MR_SAFE, &h[1]) == 0);
    must(exsi_mr_open(ctx, h, sizeof h, EXSI_MR_READ | EXSI_MR_FRAGILE | EXSI_MR_TEMPORARY, &h[2]) == 0);
    must(exsi_mr_get(ctx, h[0], constant, 64, EXSI_MR_READ, &mr) == 0);
    ok(mr->mem.fragile, "a page of the program's file");
    exsi_mr_put(ctx, mr);
    must(exsi_mr_get(ctx, h[1], constant, 64, EXSI_MR_READ, &mr) == 0);
    ok(!mr->mem.fragile && !mr->temporary, "said to be safe");
    exsi_mr_put(ctx, mr);
    must(exsi_mr_get(ctx, h[2], h, 1, EXSI_MR_READ, &mr) == 0);
    ok(mr->mem.fragile && mr->temporary, "said to be fragile");
    exsi_mr_put(ctx, mr);
    exsi_ctx_free(ctx);
}

static void test_allocated_memory_is_sealed(void)
{
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_mr *mr;
    uint64_t h;
    void *at;
    must(exsi_mr_allocate(ctx, 100000, EXSI_MR_READ | EXSI_MR_WRITE, &h, &at) == 0);
    must(exsi_mr_get(ctx, h, at, 100000, EXSI_MR_READ, &mr) == 0);
    int fd = mr->mem.memfd, seals = fcntl(fd, F_GET_SEALS);
    ok(fd >= 0 && !mr->mem.fragile, "a memory file");
    ok((seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "sealed");
    ok(ftruncate(fd, 0) < 0, "it cannot be cut");
    ok(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, "nobody else may map it for writing");
    memset(at, 'x', 100000);
    exsi_mr_put(ctx, mr);
    ok(exsi_mr_get(ctx, h, at, 100001, EXSI_MR_READ, &mr) == -EFAULT, "only what was asked for is the region");
    must(exsi_mr_close(ctx, h) == 0);
    ok(((uint8_t *)at)[99999] == 'x', "the mapping outlives the region");
    exsi_mr_unmap(at, 100000);

    must(exsi_mr_allocate(ctx, 4096, EXSI_MR_READ | EXSI_MR_WRITE | EXSI_MR_ONE_PEER, &h, &at) == 0);
    must(exsi_mr_get(ctx, h, at, 1, EXSI_MR_WRITE, &mr) == 0);
    void *peer = mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, mr->mem.memfd, 0);
    ok(peer != MAP_FAILED && (mr->mem.access & EXSI_ACCESS_ONE_PEER), "one-peer memory may be mapped by the peer");
    munmap(peer, 4096);
    exsi_mr_put(ctx, mr);
    exsi_mr_unmap(at, 4096);

    ok(exsi_mr_allocate(ctx, 0, EXSI_MR_READ, &h, &at) == -EINVAL, "no length");
    ok(exsi_mr_allocate(ctx, SIZE_MAX / 2, EXSI_MR_READ, &h, &at) == -ENOMEM, "too much");
    must(exsi_mr_allocate(ctx, ((size_t)2 << 20) + 5, EXSI_MR_READ | EXSI_MR_HUGE, &h, &at) == 0);
    ok(((uint8_t *)at)[(2 << 20) + 4] == 0, "huge pages or not, the memory is there");
    exsi_mr_unmap(at, ((size_t)2 << 20) + 5);
    exsi_ctx_free(ctx);
}

static void test_many_regions(void)
{
    static uint64_t h[1000];
    static uint8_t buf[1000];
    struct exsi_ctx *ctx = open_ctx();
    struct exsi_mr *mr;
    bool found = true;
    for (int i = 0; i < 1000; i++) must(exsi_mr_open(ctx, &buf[i], 1, EXSI_MR_READ | EXSI_MR_SAFE, &h[i]) == 0);
    for (int i = 0; i < 1000; i++) {
        found = found && exsi_mr_get(ctx, h[i], &buf[i], 1, EXSI_MR_READ, &mr) == 0 && mr->handle == h[i];
        exsi_mr_put(ctx, mr);
    }
    ok(found, "each handle finds its own region through all chunks");
    exsi_ctx_free(ctx);
}

/* --- threads: uses against closing ------------------------------------------------------------------- */

struct race {
    struct exsi_ctx *ctx;
    struct exsi_device *dev;
    _Atomic uint64_t handle;
    atomic_bool stop;
    atomic_int bad, hits;
    uint8_t *memory;
};

static void *use_region(void *arg)
{
    struct race *r = arg;
    while (!atomic_load(&r->stop)) {
        struct exsi_mr *mr;
        struct exsi_dmr *dmr;
        uint64_t h = atomic_load(&r->handle);
        if (exsi_mr_get(r->ctx, h, r->memory, 1, EXSI_MR_READ, &mr) < 0) continue;
        if (mr->handle != h || exsi_mr_on(r->ctx, mr, r->dev, &dmr) < 0 || dmr->mem.addr != r->memory)
            atomic_fetch_add(&r->bad, 1);
        atomic_fetch_add(&r->hits, 1);
        exsi_mr_put(r->ctx, mr);
    }
    return NULL;
}

/* On a busy machine the others might not run at all while a region is open. */
static void wait_for_use(struct race *r)
{
    int before = atomic_load(&r->hits);
    for (int i = 0; i < 100000 && atomic_load(&r->hits) == before; i++) usleep(100);
}

static void test_threads_use_while_another_closes(void)
{
    static uint8_t memory[16];
    struct race r = {.ctx = open_ctx(), .memory = memory};
    char reason[EXSI_REASON_MAX];
    pthread_t threads[2];
    must(exsi_ctx_device(r.ctx, "null", &r.dev, reason) == 0);
    for (int i = 0; i < 2; i++) must(pthread_create(&threads[i], NULL, use_region, &r) == 0);
    for (int i = 0; i < 2000; i++) {
        uint64_t h;
        must(exsi_mr_open(r.ctx, memory, sizeof memory, EXSI_MR_READ | EXSI_MR_SAFE, &h) == 0);
        atomic_store(&r.handle, h);
        if (i % 100 == 0) wait_for_use(&r);
        int rc = i % 2 ? exsi_mr_close_later(r.ctx, h) : exsi_mr_close(r.ctx, h);
        if (rc == -EBUSY) rc = exsi_mr_close_later(r.ctx, h);
        if (rc < 0) atomic_fetch_add(&r.bad, 1);
    }
    atomic_store(&r.stop, true);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    ok(atomic_load(&r.bad) == 0, "no use of a wrong or ended region");
    ok(atomic_load(&r.hits) > 0, "and there were uses (%d)", atomic_load(&r.hits));
    ok(atomic_load(&null_state.registered) == 0, "every registration was ended");
    exsi_ctx_free(r.ctx);
}

int main(void)
{
    test_get_checks_range_and_access();
    test_open_refuses_nonsense();
    test_close_waits_for_nobody();
    test_device_registration_is_lazy_and_ends_with_the_region();
    test_fragile_is_found_or_told();
    test_allocated_memory_is_sealed();
    test_many_regions();
    test_threads_use_while_another_closes();
    return tap_done();
}
