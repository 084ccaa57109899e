// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sends and receives on their way into the engine: which memory, whether the socket may, how many.
 *
 * Memory comes in four ways: a registered region (used where it lies), a small send that is not
 * registered (copied into a block of the device's pool), anything else that is not registered (a
 * region made for this one call), and the pieces of a scattered receive in message mode (the device fills
 * one region made for the call, which is spread over the pieces when the operation ends).
 *
 * Invariant: a piece with a region holds one use of it, from exsi_xfer_prepare until the operation ends. */
#include "sock/sock.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/copy.h"

/* --- memory ------------------------------------------------------------------------------------------- */

static int make_region(struct exsi_socket *s, const struct exsi_xfer *x, struct exsi_iov *v, struct exsi_mr **out)
{
    struct exsi_ctx *ctx = s->group->ctx;
    uint64_t handle;
    uint32_t access = x->receive ? EXSI_MR_WRITE : EXSI_MR_READ;
    uint32_t flags = access | EXSI_MR_TEMPORARY;
    if (!x->look) flags |= x->fragile ? EXSI_MR_FRAGILE : EXSI_MR_SAFE;
    EXSI_TRY(exsi_mr_open(ctx, v->base, v->len, flags, &handle));
    int rc = exsi_mr_get(ctx, handle, v->base, v->len, access, out);
    int closed = exsi_mr_close_later(ctx, handle); /* ends with its one use */
    if (rc == 0) rc = closed;
    return rc;
}

static int find_memory(struct exsi_socket *s, const struct exsi_xfer *x, struct exsi_iov *v, uint64_t mr)
{
    struct exsi_ctx *ctx = s->group->ctx;
    if (v->len == 0) return 0;
    if (mr)
        EXSI_TRY(exsi_mr_get(ctx, mr, v->base, v->len, x->receive ? EXSI_MR_WRITE : EXSI_MR_READ, &v->mr));
    else if (!x->copy)
        EXSI_TRY(make_region(s, x, v, &v->mr));
    if (v->mr && x->dev) EXSI_TRY(exsi_mr_on(ctx, v->mr, x->dev, &v->dmr));
    return 0;
}

/* The bytes of a small send, in memory of the pool. */
static int copy_send(struct exsi_socket *s, struct exsi_xfer *x)
{
    if (x->len == 0 || !x->dev) return 0;
    EXSI_TRY(exsi_pool_take(s->group->ctx, x->dev, x->len, &x->staging));
    uint8_t *to = x->staging.addr;
    for (int i = 0; i < x->n; i++) {
        if (x->iov[i].len) EXSI_TRY(exsi_copy(to, x->iov[i].base, x->iov[i].len, x->fragile));
        to += x->iov[i].len;
    }
    return 0;
}

/* Memory that a message goes to first.  Not of the pool: the peer gets a key to it. */
static int make_bounce(struct exsi_socket *s, struct exsi_xfer *x)
{
    struct exsi_ctx *ctx = s->group->ctx;
    struct exsi_iov *v = &x->bounced;
    uint64_t handle;
    if (x->len == 0 || !x->dev) return 0;
    void *memory = malloc(x->len);
    if (!memory) return -ENOMEM;
    int rc =
        exsi_mr_open(ctx, memory, x->len, EXSI_MR_WRITE | EXSI_MR_SAFE | EXSI_MR_TEMPORARY | EXSI_MR_HEAP, &handle);
    if (rc < 0) {
        free(memory);
        return rc;
    }
    *v = (struct exsi_iov){.base = memory, .len = x->len};
    rc = exsi_mr_get(ctx, handle, memory, x->len, EXSI_MR_WRITE, &v->mr);
    int closed = exsi_mr_close_later(ctx, handle); /* ends with its one use */
    if (rc == 0) rc = closed;
    if (rc == 0) rc = exsi_mr_on(ctx, v->mr, x->dev, &v->dmr);
    return rc;
}

/* ES-API 1.7 */
static int look_through(struct exsi_xfer *x, const exsi_piece *vec, int n)
{
    bool registered = false;
    for (int i = 0; i < n; i++) {
        if (vec[i].len > (uint64_t)INT64_MAX - x->len) return -EINVAL;
        if (vec[i].len > 0 && !vec[i].base && !vec[i].mr) return -EFAULT;
        x->len += vec[i].len;
        registered |= vec[i].mr != 0;
    }
    x->copy = !registered && (x->bounce || (!x->receive && x->len <= EXSI_COPY_MAX));
    return 0;
}

int exsi_xfer_prepare(struct exsi_socket *s, const exsi_piece *vec, int n, uint32_t flags, bool receive,
                      struct exsi_xfer *x)
{
    uint32_t known =
        receive ? EXSI_OPF_WAITALL | EXSI_OPF_DONTWAIT : EXSI_OPF_SHUT_WR | EXSI_OPF_STRICT_SIZE | EXSI_OPF_URGENT;
    *x = (struct exsi_xfer){.receive = receive, .iov = x->small};
    x->look = flags & EXSI_FLAG_LOOK;
    /* A copy through the kernel costs less than finding out. */
    x->fragile = x->look || (flags & EXSI_FLAG_FRAGILE);
    x->flags = flags & ~(uint32_t)(EXSI_FLAG_FRAGILE | EXSI_FLAG_LOOK);
    if ((x->flags & ~known) || n < 1 || n > IOV_MAX) return -EINVAL;
    if (!receive && s->opt.strict_size) x->flags |= EXSI_OPF_STRICT_SIZE;
    x->bounce = receive && n > 1 && s->type == SOCK_SEQPACKET;
    /* Acquire pairs with conn.c: a socket that was connected has its device for good. */
    x->dev = atomic_load_explicit(&s->dev, memory_order_acquire);
    EXSI_TRY(look_through(x, vec, n));
    if (n > EXSI_XFER_INLINE) {
        x->iov = calloc((size_t)n, sizeof *x->iov);
        if (!x->iov) return -ENOMEM;
    }
    for (int i = 0; i < n; i++) {
        x->iov[x->n++] = (struct exsi_iov){.base = vec[i].base, .len = vec[i].len};
        int rc = find_memory(s, x, &x->iov[i], vec[i].mr);
        if (rc < 0) {
            exsi_xfer_drop(s, x);
            return rc;
        }
        if (!x->copy && !vec[i].mr && vec[i].len) x->registrations++;
    }
    int rc = x->bounce ? make_bounce(s, x) : x->copy ? copy_send(s, x) : 0;
    if (rc < 0) exsi_xfer_drop(s, x);
    return rc;
}

void exsi_xfer_drop(struct exsi_socket *s, struct exsi_xfer *x)
{
    for (int i = 0; i < x->n; i++)
        if (x->iov[i].mr) exsi_mr_put(s->group->ctx, x->iov[i].mr);
    if (x->bounced.mr) exsi_mr_put(s->group->ctx, x->bounced.mr);
    x->bounced.mr = NULL;
    exsi_pool_give(&x->staging);
    if (x->iov != x->small) free(x->iov);
    x->iov = x->small;
    x->n = 0;
}

/* --- from pieces to an operation -------------------------------------------------------------------------- */

static int stage_send(struct exsi_socket *s, struct exsi_xfer *x, struct exsi_op *op)
{
    if (x->len == 0) return 0;
    exsi_op_stage(op, &x->staging, x->len);
    x->staging = (struct exsi_block){0};
    exsi_count(&s->stats, bytes_copied, x->len);
    return 0;
}

static int stage_receive(struct exsi_socket *s, struct exsi_xfer *x, struct exsi_op *op)
{
    (void)s;
    struct exsi_iov *pieces = malloc((size_t)x->n * sizeof *pieces);
    if (!pieces) return -ENOMEM;
    if (x->len) {
        op->iov1 = x->bounced;
        op->n_iov = 1;
        op->len = x->len;
        x->bounced.mr = NULL;
    }
    memcpy(pieces, x->iov, (size_t)x->n * sizeof *pieces);
    op->scatter = pieces;
    op->n_scatter = (uint32_t)x->n;
    op->scatter_fragile = x->fragile;
    x->n = 0; /* their uses are the operation's now */
    return 0;
}

static int give_pieces(struct exsi_socket *s, struct exsi_xfer *x, struct exsi_op *op)
{
    (void)s;
    EXSI_TRY(exsi_op_pieces(op, (uint32_t)x->n));
    memcpy(op->iov, x->iov, (size_t)x->n * sizeof *op->iov);
    op->len = x->len;
    x->n = 0;
    return 0;
}

/* The pieces of a scattered receive get what arrived, and go. */
static void end_scatter(struct exsi_socket *s, struct exsi_op *op)
{
    const uint8_t *from = op->iov1.base;
    uint64_t left = op->done;
    for (uint32_t i = 0; i < op->n_scatter; i++) {
        const struct exsi_iov *v = &op->scatter[i];
        size_t n = (size_t)exsi_min_u64(left, v->len);
        bool fragile = v->mr ? v->mr->mem.fragile : op->scatter_fragile;
        if (n > 0 && exsi_copy(v->base, from, n, fragile) < 0) op->error = EFAULT;
        from += n;
        left -= n;
        if (v->mr) exsi_mr_put_in(s->group, v->mr);
    }
    exsi_count(&s->stats, bytes_copied, op->done);
    free(op->scatter);
    op->scatter = NULL;
}

void exsi_xfer_finished(struct exsi_attach *at, struct exsi_op *op)
{
    struct exsi_socket *s = exsi_container_of(at, struct exsi_socket, attach);
    if (op->kind == EXSI_OP_SEND) s->sends--;
    if (op->kind == EXSI_OP_RECV) s->recvs--;
    if (op->scatter) end_scatter(s, op);
    /* Withdrawn, and its end mark with it. */
    if (op->kind == EXSI_OP_SEND && (op->flags & EXSI_OPF_SHUT_WR) && op->error == ECANCELED && !s->shut_asked)
        s->send_shut = false;
    /* A shutdown or close may have waited for this one. */
    if (s->state != EXSI_SOCK_CONNECTED || !exsi_list_empty(&s->shutdowns)) exsi_sock_changed(at, 0);
}

/* --- posts -------------------------------------------------------------------------------------------------- */

static int may_transfer(const struct exsi_socket *s, bool receive)
{
    switch (s->state) {
    case EXSI_SOCK_NEW:
    case EXSI_SOCK_LISTENING:
    case EXSI_SOCK_CONNECTING: return -ENOTCONN;
    case EXSI_SOCK_CLOSING:
    case EXSI_SOCK_CLOSED: return -EBADF;
    case EXSI_SOCK_CONNECTED:
    case EXSI_SOCK_DEAD: break;
    }
    if (!receive && s->send_shut) return -EPIPE;
    if (!s->dead) return 0;
    if (!s->attach.flow) return s->attach.error ? -s->attach.error : -ENOTCONN;
    /* What the peer sent before it ended in order can still be read. */
    if (receive && (!s->attach.error || (s->engine->ready(&s->attach) & EXSI_CHANGE_PEER_FIN))) return 0;
    return s->attach.error ? -s->attach.error : -EPIPE;
}

int exsi_xfer_may_receive(const struct exsi_socket *s)
{
    return may_transfer(s, true);
}

int exsi_xfer_post(struct exsi_socket *s, struct exsi_xfer *x, struct exsi_eq *eq, uint64_t cookie, bool by_caller,
                   uint64_t *handle)
{
    struct exsi_group *g = s->group;
    struct exsi_op *op;
    uint32_t *in_flight = x->receive ? &s->recvs : &s->sends;
    EXSI_TRY(may_transfer(s, x->receive));
    /* The call began before the connection was there, and without its device nothing could be registered. */
    if (x->dev != s->ep->dev) return -ENOTCONN;
    if (*in_flight >= s->opt.max_ops) return -EAGAIN;
    EXSI_TRY(exsi_op_new(g, eq, x->receive ? EXSI_OP_RECV : EXSI_OP_SEND, cookie, &op));
    *handle = op->handle;
    op->attach = &s->attach;
    op->flags = x->flags;
    uint32_t registrations = x->registrations;
    int rc = x->bounce ? stage_receive(s, x, op) : x->copy ? stage_send(s, x, op) : give_pieces(s, x, op);
    if (rc == 0) {
        /* It may be over, and gone, before the engine returns. */
        ++*in_flight;
        g->caller_op = by_caller ? op : NULL;
        bool shut = op->flags & EXSI_OPF_SHUT_WR;
        rc = x->receive ? s->engine->recv(&s->attach, op) : s->engine->send(&s->attach, op);
        if (rc == 0) {
            if (shut) s->send_shut = true;
            if (registrations) exsi_count(&s->stats, registrations, registrations);
            return 0;
        }
        --*in_flight;
    }
    op->done = 0;
    if (op->scatter) end_scatter(s, op);
    exsi_op_drop(op);
    return rc;
}

int64_t exsi_xfer_take(struct exsi_socket *s, const exsi_piece *vec, int n, bool fragile)
{
    int64_t total = 0;
    EXSI_TRY(may_transfer(s, true));
    if (s->recvs > 0) return -EAGAIN; /* they come first */
    for (int i = 0; i < n; i++) {
        if (vec[i].len == 0) continue;
        int64_t got = s->engine->take(&s->attach, vec[i].base, vec[i].len, fragile);
        if (got < 0) return total ? total : got;
        total += got;
        if ((uint64_t)got < vec[i].len) break;
    }
    return total;
}
