// SPDX-License-Identifier: MIT OR Apache-2.0
/* A progress group as a thing: its birth, its lock, its device parts, its end. */
#include "core/group.h"

#include <stdlib.h>

#include "core/op.h"

int exsi_group_open(struct exsi_ctx *ctx, bool threaded, struct exsi_group **out)
{
    struct exsi_group *g = calloc(1, sizeof *g);
    if (!g) return -ENOMEM;
    g->ctx = ctx;
    g->threaded = threaded;
    exsi_list_init(&g->endpoints);
    exsi_list_init(&g->dirty);
    exsi_list_init(&g->dead);
    exsi_list_init(&g->errands);
    exsi_list_init(&g->sockets);
    exsi_list_init(&g->changed);
    exsi_list_init(&g->links);
    exsi_slab_init(&g->ops, EXSI_HANDLE_OP, sizeof(struct exsi_op));
    int rc = exsi_poller_init(&g->poller);
    if (rc < 0) goto fail_poller;
    pthread_mutex_init(&g->lock, NULL);
    /* Last: from here on others can find it. */
    rc = exsi_table_add(&ctx->groups, g, &g->handle);
    if (rc < 0) goto fail_table;
    *out = g;
    return 0;

fail_table:
    pthread_mutex_destroy(&g->lock);
    exsi_poller_fini(&g->poller);
fail_poller:
    free(g);
    return rc;
}

int exsi_group_close(struct exsi_group *g)
{
    struct exsi_ctx *ctx = g->ctx;
    struct exsi_stats rest = {0};
    exsi_group_lock(g);
    bool was_closed = g->closed;
    g->closed = true;
    exsi_group_unlock(g);
    if (was_closed) return -EBADF;
    int rc = exsi_table_close(&ctx->groups, g->handle);
    assert(rc == 0); /* closed says so */

    exsi_group_lock(g);
    assert(exsi_list_empty(&g->endpoints) && exsi_list_empty(&g->dead) && g->ops.used == 0);
    for (int i = 0; i < EXSI_MAX_DEVICES; i++) {
        if (g->parts[i]) g->parts[i]->dev->ops->part_close(g->parts[i]);
        g->parts[i] = NULL;
    }
    exsi_stats_add(&rest, &g->stats);
    exsi_count(&rest, syscalls, g->poller.syscalls);
    /* Takes the descriptor out of every queue's epoll set as well. */
    exsi_poller_fini(&g->poller);
    exsi_slab_fini(&g->ops);
    exsi_group_unlock(g);

    pthread_mutex_lock(&ctx->lock);
    exsi_stats_add(&ctx->closed_stats, &rest);
    pthread_mutex_unlock(&ctx->lock);
    exsi_group_put(g);
    return rc;
}

struct exsi_group *exsi_group_get(struct exsi_ctx *ctx, uint64_t handle)
{
    return exsi_table_get(&ctx->groups, handle);
}

void exsi_group_hold(struct exsi_group *g)
{
    exsi_table_hold(&g->ctx->groups, g->handle);
}

void exsi_group_put(struct exsi_group *g)
{
    if (!exsi_table_put(&g->ctx->groups, g->handle)) return;
    pthread_mutex_destroy(&g->lock);
    free(g);
}

void exsi_group_lock(struct exsi_group *g)
{
    if (pthread_mutex_trylock(&g->lock) == 0) return;
    atomic_fetch_add_explicit(&g->lock_waiters, 1, memory_order_relaxed);
    pthread_mutex_lock(&g->lock);
    atomic_fetch_sub_explicit(&g->lock_waiters, 1, memory_order_relaxed);
}

void exsi_group_unlock(struct exsi_group *g)
{
    for (;;) {
        struct exsi_list todo;
        exsi_list_init(&todo);
        exsi_list_for_safe (e, &g->errands, struct exsi_errand, node) {
            exsi_list_unlink(&e->node);
            exsi_list_append(&todo, &e->node);
        }
        pthread_mutex_unlock(&g->lock);
        if (exsi_list_empty(&todo)) return;
        exsi_list_for_safe (e, &todo, struct exsi_errand, node) {
            exsi_list_unlink(&e->node);
            e->run(e, g);
        }
        exsi_group_lock(g); /* they may have left others */
    }
}

void exsi_group_errand(struct exsi_group *g, struct exsi_errand *e)
{
    exsi_list_init(&e->node);
    exsi_list_append(&g->errands, &e->node);
}

int exsi_group_part(struct exsi_group *g, struct exsi_device *dev, struct exsi_part **out)
{
    int i = exsi_ctx_device_index(g->ctx, dev);
    EXSI_TRY(i);
    if (!g->parts[i]) {
        EXSI_TRY(dev->ops->part_open(dev, &g->poller, &g->parts[i]));
        /* A part that comes while somebody sleeps must know it as the others do. */
        if (g->doorbell) dev->ops->part_doorbell(g->parts[i], true);
    }
    *out = g->parts[i];
    return 0;
}
