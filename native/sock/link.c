// SPDX-License-Identifier: MIT OR Apache-2.0
/* Links: making and ending them, their rings, their sockets, and the program's wait for what they have to say.
 *
 * Invariant: a link is in group->links and has its endpoint from exsi_link_new until it is closed, its queue pair is
 * gone and no socket is attached; what is done at its end is done once, in step. */
#include "sock/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What was posted gets so long to leave once the link is closed. */
#define GRACE_NS 200000000u
#define PAGE     4096u

static void step(struct exsi_link *l);

/* --- making --------------------------------------------------------------------------------------------------- */

static void noticed(void *owner)
{
    struct exsi_link *l = owner;
    struct exsi_op *op = l->wait;
    l->wait = NULL;
    if (op) exsi_op_finish(op, 0, 1);
}

static void grace_over(struct exsi_timer *t)
{
    struct exsi_link *l = exsi_container_of(t, struct exsi_link, grace);
    exsi_ep_disconnected(l->ep, ECONNABORTED);
    step(l);
}

/* Lock held.  Takes the memory, also when it fails. */
static int make_endpoint(struct exsi_link *l, struct exsi_device *dev, const struct exsi_ep_attr *attr,
                         struct exsi_ep_memory *memory)
{
    struct exsi_engine_config cfg = {0};
    if (l->group->ending) {
        exsi_ep_memory_drop(l->group, memory);
        return -EBADF;
    }
    EXSI_TRY(exsi_ep_new(l->group, dev, &exsi_engine_smcr, attr, memory, &l->stats, &l->ep));
    l->ep->log_id = l->handle;
    int rc = exsi_ep_make_qp(l->ep, NULL);
    if (rc == 0) rc = exsi_ep_open_engine(l->ep, &cfg);
    if (rc < 0) {
        exsi_ep_free(l->ep);
        exsi_group_reap(l->group);
        l->ep = NULL;
        return rc;
    }
    exsi_smcr_of(l->ep)->noticed = noticed;
    exsi_smcr_of(l->ep)->owner = l;
    exsi_list_append(&l->group->links, &l->group_node);
    return 0;
}

static int try_device(struct exsi_link *l, const char *name, const uint8_t *gid)
{
    struct exsi_device *dev;
    struct exsi_ep_memory memory;
    struct exsi_ep_attr attr = {0};
    char reason[EXSI_REASON_MAX];
    EXSI_TRY(exsi_ctx_device(l->group->ctx, name, &dev, reason));
    if (!dev->caps.has_raw_qp) return -EOPNOTSUPP;
    l->dev = dev;
    exsi_engine_smcr.ep_attr(NULL, &attr);
    attr.gid = gid;
    EXSI_TRY(exsi_ep_memory_new(l->group->ctx, dev, &attr, &memory));
    exsi_group_lock(l->group);
    int rc = make_endpoint(l, dev, &attr, &memory);
    exsi_group_unlock(l->group);
    return rc;
}

static int make_link(struct exsi_link *l, const char *device, const uint8_t *gid)
{
    if (device && device[0]) return try_device(l, device, gid);
    int best = try_device(l, "verbs", gid);
    if (best == 0 || best == -EBADF) return best;
    int rc = try_device(l, "soft", gid);
    return rc == -EADDRNOTAVAIL ? -EADDRNOTAVAIL : rc;
}

int exsi_link_new(struct exsi_group *g, const char *device, const uint8_t *gid, struct exsi_link **out)
{
    struct exsi_link *l = calloc(1, sizeof *l);
    if (!l) return -ENOMEM;
    l->group = g;
    l->grace.fn = grace_over;
    exsi_list_init(&l->group_node);
    int rc = exsi_table_add(&g->ctx->endpoints, l, &l->handle);
    if (rc < 0) {
        free(l);
        return rc;
    }
    exsi_group_hold(g);
    rc = make_link(l, device, gid);
    if (rc < 0) {
        int closed = exsi_table_close(&g->ctx->endpoints, l->handle);
        assert(closed == 0); /* nobody knows the handle */
        (void)closed;
        exsi_link_put(l);
        return rc;
    }
    *out = l;
    return 0;
}

struct exsi_link *exsi_link_get(struct exsi_ctx *ctx, uint64_t handle)
{
    return exsi_table_get(&ctx->endpoints, handle);
}

void exsi_link_put(struct exsi_link *l)
{
    if (!exsi_table_put(&l->group->ctx->endpoints, l->handle)) return;
    exsi_group_put(l->group);
    free(l);
}

/* --- states ------------------------------------------------------------------------------------------------------ */

static int check(const struct exsi_link *l)
{
    if (l->closed) return -EBADF;
    return l->ep->state >= EXSI_EP_FAILING ? -ECONNABORTED : 0;
}

int exsi_link_to_rtr(struct exsi_link *l, const struct exsi_raw_address *peer)
{
    EXSI_TRY(check(l));
    return l->ep->ops->raw_to_rtr(l->ep->qp, peer);
}

int exsi_link_to_rts(struct exsi_link *l)
{
    EXSI_TRY(check(l));
    EXSI_TRY(l->ep->ops->raw_to_rts(l->ep->qp));
    exsi_ep_up(l->ep);
    return 0;
}

int exsi_link_wait(struct exsi_link *l, struct exsi_op *op)
{
    if (l->closed) return -EBADF;
    if (l->wait) return -EBUSY;
    l->wait = op;
    if (!exsi_list_empty(&exsi_smcr_of(l->ep)->notices)) noticed(l);
    return 0;
}

void exsi_link_cancel(struct exsi_link *l)
{
    struct exsi_op *op = l->wait;
    l->wait = NULL;
    if (op) exsi_op_finish(op, ECANCELED, 0);
}

/* --- the end --------------------------------------------------------------------------------------------------------
 */

/* Whatever of its end can be done now. */
static void step(struct exsi_link *l)
{
    struct exsi_ctx *ctx = l->group->ctx;
    if (!l->closed || l->ep->state != EXSI_EP_DEAD || !exsi_list_empty(&l->ep->attached)) return;
    exsi_timer_stop(&l->group->poller, &l->grace);
    exsi_list_unlink(&l->group_node);
    exsi_ep_free(l->ep);
    pthread_mutex_lock(&ctx->lock);
    exsi_stats_add(&ctx->closed_stats, &l->stats);
    pthread_mutex_unlock(&ctx->lock);
    exsi_link_put(l);
}

/* No more finders; the reference that the table had is step's. */
static int give_up(struct exsi_link *l)
{
    if (l->closed) return -EBADF;
    l->closed = true;
    int rc = exsi_table_close(&l->group->ctx->endpoints, l->handle);
    assert(rc == 0);
    exsi_link_cancel(l);
    exsi_smcr_give_up(exsi_smcr_of(l->ep));
    return rc;
}

int exsi_link_close(struct exsi_link *l)
{
    EXSI_TRY(give_up(l));
    bool quiet = l->ep->state != EXSI_EP_UP || exsi_timer_start(&l->group->poller, &l->grace, GRACE_NS) < 0;
    if (quiet) exsi_ep_disconnected(l->ep, ECONNABORTED);
    step(l);
    return 0;
}

void exsi_link_group_end(struct exsi_group *g)
{
    exsi_list_for_safe (l, &g->links, struct exsi_link, group_node) {
        if (!l->closed) (void)give_up(l);
        exsi_ep_disconnected(l->ep, ECONNABORTED);
        step(l);
    }
    assert(exsi_list_empty(&g->links));
}

/* --- rings
 * ------------------------------------------------------------------------------------------------------------ */

enum { RING_ACCESS = EXSI_MR_READ | EXSI_MR_WRITE | EXSI_MR_ONE_PEER };

static int open_heap(struct exsi_ctx *ctx, size_t size, uint64_t *handle, void **memory)
{
    *memory = aligned_alloc(PAGE, size);
    if (!*memory) return -ENOMEM;
    memset(*memory, 0, size); /* present, and of nobody else */
    int rc = exsi_mr_open(ctx, *memory, size, RING_ACCESS | EXSI_MR_SAFE | EXSI_MR_HEAP, handle);
    if (rc < 0) free(*memory);
    return rc;
}

/* Memory of its own, registered on the device; *mr holds its one use.  Without the lock. */
static int make_ring(struct exsi_link *l, size_t size, uint8_t **base, struct exsi_mr **mr, struct exsi_dmr **dmr)
{
    struct exsi_ctx *ctx = l->group->ctx;
    uint64_t handle;
    void *memory;
    /* A memory file on one host, where the peer may fill it itself; to an adapter it would be one more descriptor. */
    int rc = l->dev->caps.pins_memory ? open_heap(ctx, size, &handle, &memory)
                                      : exsi_mr_allocate(ctx, size, RING_ACCESS | EXSI_MR_MAPPED, &handle, &memory);
    if (rc < 0) return rc;
    rc = exsi_mr_get(ctx, handle, memory, size, EXSI_MR_WRITE, mr);
    int closed = exsi_mr_close_later(ctx, handle); /* ends with its one use */
    if (rc == 0) rc = closed;
    if (rc < 0) return rc;
    rc = exsi_mr_on(ctx, *mr, l->dev, dmr);
    if (rc < 0) exsi_mr_put(ctx, *mr);
    *base = memory;
    return rc;
}

int exsi_link_rmb_new(struct exsi_link *l, uint32_t size, struct exsi_smcr_rmb **out, uint64_t *vaddr, uint32_t *rkey,
                      uint64_t *number)
{
    struct exsi_mr *mr;
    struct exsi_dmr *dmr;
    uint8_t *base;
    if (!exsi_smc_size_is_valid(size)) return -EINVAL;
    EXSI_TRY(make_ring(l, size, &base, &mr, &dmr));
    exsi_group_lock(l->group);
    int rc = check(l);
    if (rc < 0)
        exsi_mr_put_in(l->group, mr);
    else
        rc = exsi_smcr_rmb_new(exsi_smcr_of(l->ep), mr, dmr, base, size, out);
    if (rc == 0) {
        *vaddr = (uint64_t)(uintptr_t)base;
        *rkey = (*out)->rkey;
        *number = (*out)->number;
    }
    exsi_group_unlock(l->group);
    return rc;
}

/* --- sockets
 * ------------------------------------------------------------------------------------------------------------ */

int exsi_link_socket(struct exsi_link *l, uint64_t rmb, uint32_t token, const exsi_options *opt,
                     struct exsi_socket **out)
{
    struct exsi_socket *s;
    EXSI_TRY(check(l));
    struct exsi_smcr_rmb *ring = exsi_smcr_rmb_find(exsi_smcr_of(l->ep), rmb);
    if (!ring) return -EBADF;
    EXSI_TRY(exsi_sock_new(l->group, AF_INET, SOCK_STREAM, opt, &s));
    s->engine = &exsi_engine_smcr;
    s->link = l;
    s->ep = l->ep;
    /* Release: posts read it without the group's lock (xfer.c). */
    atomic_store_explicit(&s->dev, l->ep->dev, memory_order_release);
    int rc = exsi_ep_attach(l->ep, &s->attach);
    if (rc == 0) rc = exsi_smcr_bind(&s->attach, ring, token);
    if (rc < 0) {
        s->state = EXSI_SOCK_CLOSED;
        exsi_sock_retire(s);
        return rc;
    }
    s->state = EXSI_SOCK_CONNECTING;
    *out = s;
    return 0;
}

int exsi_link_open(struct exsi_socket *s, const struct exsi_smcr_peer *peer)
{
    if (!s->link) return s->state == EXSI_SOCK_DEAD && s->attach.error ? -s->attach.error : -ENOTCONN;
    if (s->state != EXSI_SOCK_CONNECTING) return s->state == EXSI_SOCK_CONNECTED ? -EISCONN : -EBADF;
    struct exsi_qp_info info = {0};
    EXSI_TRY(exsi_smcr_open(&s->attach, peer));
    /* Not sooner: the first connection of a link is there before the link has a path. */
    s->ep->ops->qp_query(s->ep->qp, &info);
    memcpy(s->path, info.path, sizeof s->path);
    s->state = EXSI_SOCK_CONNECTED;
    exsi_sock_changed(&s->attach, 0);
    return 0;
}

void exsi_link_leave(struct exsi_socket *s)
{
    struct exsi_link *l = s->link;
    exsi_ep_detach(&s->attach);
    s->ep = NULL;
    s->link = NULL;
    step(l);
}

int exsi_link_view(struct exsi_socket *s, void **addr, uint64_t *len)
{
    if (!s->link) return -EOPNOTSUPP;
    EXSI_TRY(exsi_xfer_may_receive(s));
    return exsi_smcr_lend(&s->attach, addr, len);
}

int exsi_link_release(struct exsi_socket *s, uint64_t n)
{
    return s->link ? exsi_smcr_lend_over(&s->attach, n) : -EOPNOTSUPP;
}
