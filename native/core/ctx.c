// SPDX-License-Identifier: MIT OR Apache-2.0
/* The root object: opening and freeing it, its devices, its tables of handles.
 * Invariant: devices[i].entry never changes after open; devices[i].dev goes from NULL to a device once. */
#include "core/ctx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/eq.h"
#include "core/mr.h"

/* A page that the kernel empties in a child: one load tells whether we are still who we were. */
static int open_fork_page(struct exsi_ctx *ctx)
{
    size_t len = sizeof *ctx->fork_page;
    void *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return -errno;
    if (madvise(page, len, MADV_WIPEONFORK) < 0) {
        int rc = -errno;
        munmap(page, len);
        return rc;
    }
    ctx->fork_page = page;
    *ctx->fork_page = 1;
    return 0;
}

static void list_devices(struct exsi_ctx *ctx)
{
    int n;
    const struct exsi_device_entry *entries = exsi_device_registry(&n);
    assert(n <= EXSI_MAX_DEVICES);
    for (int i = 0; i < n; i++) ctx->devices[i].entry = &entries[i];
    ctx->n_devices = n;
}

int exsi_ctx_open(struct exsi_ctx **out)
{
    struct exsi_ctx *ctx = calloc(1, sizeof *ctx);
    if (!ctx) return -ENOMEM;
    int rc = open_fork_page(ctx);
    if (rc < 0) goto fail_page;
    rc = exsi_mr_table_open(ctx);
    if (rc < 0) goto fail_table;

    pthread_mutex_init(&ctx->lock, NULL);
    pthread_mutex_init(&ctx->opening, NULL);
    exsi_log_init(&ctx->log);
    exsi_table_init(&ctx->groups, EXSI_HANDLE_GROUP);
    exsi_table_init(&ctx->eqs, EXSI_HANDLE_EQ);
    exsi_table_init(&ctx->sockets, EXSI_HANDLE_SOCKET);
    exsi_table_init(&ctx->endpoints, EXSI_HANDLE_ENDPOINT);
    list_devices(ctx);
    for (int i = 0; i < EXSI_MAX_DEVICES; i++) exsi_pool_init(&ctx->devices[i].pool);
    *out = ctx;
    return 0;

fail_table:
    munmap((void *)(uintptr_t)ctx->fork_page, sizeof *ctx->fork_page);
fail_page:
    free(ctx);
    return rc;
}

/* Groups are gone, and with them every operation: no queue has a reserved slot but for events that
 * nobody fetched. */
static void close_queues(struct exsi_ctx *ctx)
{
    for (uint32_t i = 0; i < ctx->eqs.cap; i++) {
        struct exsi_eq *eq = exsi_table_get_at(&ctx->eqs, i, NULL);
        if (!eq) continue;
        int rc = exsi_eq_close(eq);
        assert(rc == 0);
        (void)rc;
        exsi_eq_put(eq);
    }
}

void exsi_ctx_free(struct exsi_ctx *ctx)
{
    /* Descriptors and mappings in a child are the parent's too; locks may be held for ever. */
    if (exsi_ctx_check(ctx) < 0) return;
    close_queues(ctx);
    exsi_mr_table_close(ctx);
    for (int i = 0; i < ctx->n_devices; i++) {
        struct exsi_open_device *d = &ctx->devices[i];
        exsi_pool_fini(&d->pool);
        if (d->dev) d->entry->ops->close(d->dev);
    }
    exsi_table_fini(&ctx->endpoints);
    exsi_table_fini(&ctx->sockets);
    exsi_table_fini(&ctx->eqs);
    exsi_table_fini(&ctx->groups);
    exsi_log_fini(&ctx->log);
    pthread_mutex_destroy(&ctx->opening);
    pthread_mutex_destroy(&ctx->lock);
    munmap((void *)(uintptr_t)ctx->fork_page, sizeof *ctx->fork_page);
    free(ctx);
}

/* --- devices -------------------------------------------------------------------------------------- */

/* A failure is not remembered: the next caller may have more descriptors or permissions.  Under ctx->opening. */
static struct exsi_device *try_device(struct exsi_ctx *ctx, struct exsi_open_device *d)
{
    struct exsi_device *dev = atomic_load_explicit(&d->dev, memory_order_relaxed);
    if (dev) return dev;
    d->tried = true;
    d->reason[0] = '\0';
    if (!d->entry->ops) {
        snprintf(d->reason, sizeof d->reason, "%s", d->entry->absent);
        return NULL;
    }
    int rc = d->entry->ops->open(&ctx->log, &dev, d->reason);
    if (rc < 0) {
        if (!d->reason[0]) snprintf(d->reason, sizeof d->reason, "%s: open failed with error %d", d->entry->name, -rc);
        return NULL;
    }
    /* Release: who finds it without the lock finds it whole. */
    atomic_store_explicit(&d->dev, dev, memory_order_release);
    return dev;
}

static struct exsi_open_device *find_device(struct exsi_ctx *ctx, const char *name)
{
    for (int i = 0; i < ctx->n_devices; i++)
        if (strcmp(ctx->devices[i].entry->name, name) == 0) return &ctx->devices[i];
    return NULL;
}

struct exsi_device *exsi_ctx_device_once(struct exsi_ctx *ctx, const char *name)
{
    struct exsi_open_device *d = find_device(ctx, name);
    if (!d) return NULL;
    /* Acquire: pairs with the release in try_device. */
    struct exsi_device *dev = atomic_load_explicit(&d->dev, memory_order_acquire);
    if (dev) return dev;
    pthread_mutex_lock(&ctx->opening);
    if (!d->tried) (void)try_device(ctx, d);
    dev = atomic_load_explicit(&d->dev, memory_order_relaxed);
    pthread_mutex_unlock(&ctx->opening);
    return dev;
}

int exsi_ctx_device(struct exsi_ctx *ctx, const char *name, struct exsi_device **out, char *reason)
{
    struct exsi_open_device *d = find_device(ctx, name);
    *out = NULL;
    if (reason) reason[0] = '\0';
    if (!d) {
        if (reason) snprintf(reason, EXSI_REASON_MAX, "there is no device of the name \"%.32s\"", name);
        return -EOPNOTSUPP;
    }
    /* Acquire: pairs with the release in try_device. */
    *out = atomic_load_explicit(&d->dev, memory_order_acquire);
    if (*out) return 0;
    pthread_mutex_lock(&ctx->opening);
    *out = try_device(ctx, d);
    if (!*out && reason) snprintf(reason, EXSI_REASON_MAX, "%s", d->reason);
    pthread_mutex_unlock(&ctx->opening);
    return *out ? 0 : -EOPNOTSUPP;
}

int exsi_ctx_device_index(const struct exsi_ctx *ctx, const struct exsi_device *dev)
{
    for (int i = 0; i < ctx->n_devices; i++)
        if (ctx->devices[i].entry->ops == dev->ops) return i;
    return -EINVAL;
}
