// SPDX-License-Identifier: MIT OR Apache-2.0
/* The face of the core: argument checks and handle lookup, then one call downwards.
 *
 * Every call on a socket has the same frame: enter (not forked, handles found and held by a reference,
 * group locked), the call, leave (settle what it set off, unlock, drop the references).  An operation
 * that ended in between is handed back by the call itself if the caller asked for that (out). */
#include "api/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mr.h"
#include "sock/sock.h"

/* --- context and groups ----------------------------------------------------------------------- */

int exsi_open(exsi_ctx **out)
{
    return exsi_ctx_open(out);
}

static int end_group(struct exsi_group *g)
{
    exsi_group_lock(g);
    bool ending = g->ending;
    g->ending = true;
    exsi_group_unlock(g);
    if (ending) return -EBADF;
    exsi_thread_stop(g);
    exsi_sock_group_end(g);
    return exsi_group_close(g);
}

void exsi_close(exsi_ctx *ctx)
{
    if (exsi_ctx_check(ctx) < 0) return;
    for (uint32_t i = 0; i < ctx->groups.cap; i++) {
        struct exsi_group *g = exsi_table_get_at(&ctx->groups, i, NULL);
        if (!g) continue;
        (void)end_group(g);
        exsi_group_put(g);
    }
    exsi_ctx_free(ctx);
}

int exsi_forked(exsi_ctx *ctx)
{
    return exsi_ctx_check(ctx) < 0;
}

/* The threaded group of the context, with a reference more; NULL if there is none. */
static struct exsi_group *threaded_group(struct exsi_ctx *ctx)
{
    for (uint32_t i = 0; i < ctx->groups.cap; i++) {
        struct exsi_group *g = exsi_table_get_at(&ctx->groups, i, NULL);
        if (g && g->threaded) return g;
        if (g) exsi_group_put(g);
    }
    return NULL;
}

static int new_threaded(exsi_ctx *ctx, uint64_t *group)
{
    struct exsi_group *mine = NULL, *g = threaded_group(ctx);
    int rc = 0;
    if (!g) {
        EXSI_TRY(exsi_group_open(ctx, true, &mine));
        /* Two threads may have come here at once: the table decides whose group it is. */
        g = threaded_group(ctx);
        if (g == mine) rc = exsi_thread_start(mine);
        if (g != mine || rc < 0) (void)end_group(mine);
    }
    *group = g->handle;
    exsi_group_put(g);
    return rc;
}

int exsi_group_new(exsi_ctx *ctx, int threaded, uint64_t *group)
{
    struct exsi_group *g;
    EXSI_TRY(exsi_ctx_check(ctx));
    if (threaded) return new_threaded(ctx, group);
    EXSI_TRY(exsi_group_open(ctx, false, &g));
    *group = g->handle;
    return 0;
}

int exsi_group_free(exsi_ctx *ctx, uint64_t group)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    struct exsi_group *g = exsi_group_get(ctx, group);
    if (!g) return -EBADF;
    int rc = end_group(g);
    exsi_group_put(g);
    return rc;
}

int exsi_log_drain(exsi_ctx *ctx, exsi_log_record *out, int max)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    return exsi_log_take(&ctx->log, out, max);
}

void exsi_log_threshold(exsi_ctx *ctx, int level)
{
    if (exsi_ctx_check(ctx) < 0) return;
    pthread_mutex_lock(&ctx->log.lock);
    ctx->log.threshold = level;
    pthread_mutex_unlock(&ctx->log.lock);
}

/* --- devices ------------------------------------------------------------------------------------ */

int exsi_devices(exsi_ctx *ctx, exsi_device_info *out, int max)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    int n = ctx->n_devices < max ? ctx->n_devices : max;
    for (int i = 0; i < n; i++) {
        const struct exsi_device_entry *entry = ctx->devices[i].entry;
        struct exsi_device *dev = NULL;
        char reason[EXSI_REASON_MAX] = "";
        out[i] = (exsi_device_info){.present = exsi_ctx_device(ctx, entry->name, &dev, reason) == 0};
        snprintf(out[i].name, sizeof out[i].name, "%s", entry->name);
        snprintf(out[i].summary, sizeof out[i].summary, "%s", entry->summary);
        memcpy(out[i].reason, reason, sizeof out[i].reason);
        if (!dev) continue;
        out[i].max_msg = dev->caps.max_msg;
        out[i].max_inline = dev->caps.max_inline;
        out[i].has_immediate = dev->caps.has_immediate;
        out[i].has_key_per_range = dev->caps.has_key_per_range;
        out[i].has_read = dev->caps.has_read;
        out[i].pins_memory = dev->caps.pins_memory;
    }
    return n;
}

/* --- memory ---------------------------------------------------------------------------------------- */

#define MR_FLAGS (EXSI_MR_READ | EXSI_MR_WRITE)

int exsi_mem_register(exsi_ctx *ctx, void *addr, size_t len, uint32_t flags, uint64_t *mr)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    if (flags & ~(uint32_t)MR_FLAGS) return -EINVAL;
    return exsi_mr_open(ctx, addr, len, flags, mr);
}

int exsi_mem_allocate(exsi_ctx *ctx, size_t len, uint32_t flags, uint64_t *mr, void **addr)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    if (flags & ~(uint32_t)(MR_FLAGS | EXSI_MR_HUGE)) return -EINVAL;
    return exsi_mr_allocate(ctx, len, flags, mr, addr);
}

void exsi_mem_unmap(void *addr, size_t len)
{
    exsi_mr_unmap(addr, len);
}

int exsi_mem_close(exsi_ctx *ctx, uint64_t mr)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    return exsi_mr_close(ctx, mr);
}

int exsi_mem_close_later(exsi_ctx *ctx, uint64_t mr)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    return exsi_mr_close_later(ctx, mr);
}

int exsi_mem_in_use(exsi_ctx *ctx, uint64_t mr)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    return exsi_mr_in_use(ctx, mr);
}

/* --- event queues -------------------------------------------------------------------------------- */

int exsi_eq_new(exsi_ctx *ctx, uint64_t inline_group, uint32_t depth, uint64_t *out)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    struct exsi_group *g = NULL;
    if (inline_group) {
        g = exsi_group_get(ctx, inline_group);
        if (!g) return -EBADF;
    }
    struct exsi_eq *eq;
    int rc = g && g->threaded ? -EINVAL : exsi_eq_open(ctx, g, depth, &eq);
    if (rc == 0) *out = eq->handle;
    if (g) exsi_group_put(g);
    return rc;
}

/* Not forked, and the queue with a reference: 0 or -errno. */
static int find_eq(exsi_ctx *ctx, uint64_t handle, struct exsi_eq **eq)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    *eq = exsi_eq_get(ctx, handle);
    return *eq ? 0 : -EBADF;
}

int exsi_eq_free(exsi_ctx *ctx, uint64_t handle)
{
    struct exsi_eq *eq;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    exsi_wait_disarm(eq);
    int rc = exsi_eq_close(eq);
    exsi_eq_put(eq);
    return rc;
}

int exsi_eq_fd(exsi_ctx *ctx, uint64_t handle)
{
    struct exsi_eq *eq;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    int fd = eq->epoll_fd;
    exsi_eq_put(eq);
    return fd;
}

int exsi_eq_depth(exsi_ctx *ctx, uint64_t handle, uint32_t depth)
{
    struct exsi_eq *eq;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    int rc = depth ? exsi_eq_resize(eq, depth) : 0;
    if (rc == 0) {
        pthread_mutex_lock(&eq->lock);
        rc = (int)eq->depth;
        pthread_mutex_unlock(&eq->lock);
    }
    exsi_eq_put(eq);
    return rc;
}

int exsi_eq_count(exsi_ctx *ctx, uint64_t handle)
{
    struct exsi_eq *eq;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    int n = (int)exsi_eq_len(eq);
    exsi_eq_put(eq);
    return n;
}

int exsi_eq_in_flight(exsi_ctx *ctx, uint64_t handle)
{
    struct exsi_eq *eq;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    pthread_mutex_lock(&eq->lock);
    int n = (int)(eq->reserved - eq->len);
    pthread_mutex_unlock(&eq->lock);
    exsi_eq_put(eq);
    return n;
}

int exsi_eq_drain(exsi_ctx *ctx, uint64_t handle, exsi_event *out, int max, uint32_t spin_us)
{
    struct exsi_eq *eq;
    if (max < 1) return -EINVAL;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    int n = exsi_wait_drain(eq, out, max, spin_us);
    exsi_eq_put(eq);
    return n;
}

int exsi_eq_poll(exsi_ctx *ctx, uint64_t handle, exsi_event *out, int max)
{
    struct exsi_eq *eq;
    if (max < 1) return -EINVAL;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    int n = exsi_wait_poll(eq, out, max);
    exsi_eq_put(eq);
    return n;
}

int exsi_eq_kick(exsi_ctx *ctx, uint64_t handle)
{
    struct exsi_eq *eq;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    exsi_eq_kick_fd(eq);
    exsi_eq_put(eq);
    return 0;
}

int exsi_eq_wait(exsi_ctx *ctx, uint64_t handle, exsi_event *out, int max, int least, int64_t timeout_us, int wait,
                 uint32_t spin_us)
{
    struct exsi_eq *eq;
    if (max < 1 || least < 0 || least > max || wait < EXSI_WAIT_ADAPTIVE || wait > EXSI_WAIT_BUSY) return -EINVAL;
    EXSI_TRY(find_eq(ctx, handle, &eq));
    int n = exsi_wait_events(eq, out, max, least, timeout_us, wait, spin_us);
    exsi_eq_put(eq);
    return n;
}

/* --- sockets --------------------------------------------------------------------------------------- */

void exsi_options_default(exsi_options *out)
{
    *out = (exsi_options){
        .device = "auto",
        .path = EXSI_PATH_AUTO,
        .ring_bytes = 1u << 20,
        .max_adverts = 32,
        .max_ops = 256,
        .keepalive_ms = 10000,
        .close_timeout_ms = 5000,
        .connect_timeout_ms = 20000,
        .direct_threshold = 64u << 10,
        .direct_hold_us = 50,
    };
}

int exsi_options_check(const exsi_options *o)
{
    if (!memchr(o->device, '\0', sizeof o->device)) return -EINVAL;
    if (o->path > EXSI_PATH_SHM_RING) return -EINVAL;
    if (o->ring_bytes < 65536 || o->ring_bytes > 1u << 30) return -EINVAL;
    if (o->max_adverts < 1 || o->max_adverts > 4096 || o->max_ops < 1 || o->max_ops > 1u << 20) return -EINVAL;
    return o->connect_timeout_ms && o->close_timeout_ms ? 0 : -EINVAL;
}

int exsi_socket_new(exsi_ctx *ctx, uint64_t group, int family, int type, const exsi_options *opt, uint64_t *sock)
{
    exsi_options defaults;
    struct exsi_socket *s;
    EXSI_TRY(exsi_ctx_check(ctx));
    if (family != AF_INET && family != AF_INET6) return -EAFNOSUPPORT;
    if (type != SOCK_STREAM && type != SOCK_SEQPACKET) return -EPROTONOSUPPORT;
    exsi_options_default(&defaults);
    if (!opt) opt = &defaults;
    EXSI_TRY(exsi_options_check(opt));
    struct exsi_group *g = exsi_group_get(ctx, group);
    if (!g) return -EBADF;
    exsi_group_lock(g);
    int rc = g->ending ? -EBADF : exsi_sock_new(g, family, type, opt, &s);
    if (rc == 0) *sock = s->handle;
    exsi_group_unlock(g);
    exsi_group_put(g);
    return rc;
}
