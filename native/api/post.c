// SPDX-License-Identifier: MIT OR Apache-2.0
/* The calls on a socket.  Each has the same frame: find (not forked, handles found and held by a
 * reference), lock the group, call downwards, leave (settle what it set off, unlock, drop the references).
 *
 * An operation that ended before the group was unlocked is handed back by the call itself if the caller
 * gave room for it (out); then its event takes no place in the queue. */
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "sock/link.h"

struct call {
    struct exsi_ctx *ctx;
    struct exsi_socket *s;
    struct exsi_group *g;
    struct exsi_eq *eq;
    exsi_posted *out;
    uint64_t op;
};

static int call_find(struct call *c, exsi_ctx *ctx, uint64_t sock, uint64_t eq, exsi_posted *out)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    *c = (struct call){.ctx = ctx, .out = out, .s = exsi_sock_get(ctx, sock)};
    if (!c->s) return -EBADF;
    c->g = c->s->group;
    if (!eq) return 0;
    c->eq = exsi_eq_get(ctx, eq);
    if (!c->eq) {
        exsi_sock_put(c->s);
        return -EBADF;
    }
    return 0;
}

static void call_lock(struct call *c)
{
    if (c->eq && c->out) exsi_eq_quiet_begin(c->eq);
    exsi_group_lock(c->g);
    c->g->caller_op = NULL;
    c->g->caller_done = false;
}

static void call_unlock(struct call *c)
{
    exsi_group_unlock(c->g);
    if (c->out) c->out->pending = c->eq ? exsi_eq_quiet_end(c->eq) : 0;
}

static void call_drop(struct call *c)
{
    if (c->eq) exsi_eq_put(c->eq);
    exsi_sock_put(c->s);
}

/* From found to locked; on error everything is given back. */
static int call_go_on(struct call *c)
{
    call_lock(c);
    if (c->s->state != EXSI_SOCK_CLOSED) return 0;
    call_unlock(c);
    call_drop(c);
    return -EBADF;
}

static int call_enter(struct call *c, exsi_ctx *ctx, uint64_t sock, uint64_t eq, exsi_posted *out)
{
    EXSI_TRY(call_find(c, ctx, sock, eq, out));
    return call_go_on(c);
}

/* rc 0 becomes 1 if the operation of this call has ended. */
static int call_settle(struct call *c, int rc)
{
    if (rc < 0) return rc;
    exsi_settle(c->g);
    if (rc == 0 && c->out && c->g->caller_done) {
        c->out->event = c->g->caller_event;
        rc = 1;
    }
    c->g->caller_op = NULL;
    c->g->caller_done = false;
    if (c->out) c->out->op = rc == 0 ? c->op : 0;
    return rc;
}

static int call_leave(struct call *c, int rc)
{
    rc = call_settle(c, rc);
    call_unlock(c);
    call_drop(c);
    return rc;
}

/* An operation of the socket that no engine sees. */
static int call_op(struct call *c, enum exsi_op_kind kind, uint64_t cookie, struct exsi_op **op)
{
    if (!c->eq) return -EBADF;
    EXSI_TRY(exsi_op_new(c->g, c->eq, kind, cookie, op));
    (*op)->attach = &c->s->attach;
    c->op = (*op)->handle;
    if (c->out) c->g->caller_op = *op;
    return 0;
}

static int take_address(const void *addr, uint32_t len, union exsi_addr *out)
{
    *out = (union exsi_addr){0};
    if (!addr || len < sizeof(sa_family_t)) return -EINVAL;
    memcpy(out, addr, len < sizeof *out ? len : sizeof *out);
    if (out->sa.sa_family != AF_INET && out->sa.sa_family != AF_INET6) return -EAFNOSUPPORT;
    return len < exsi_addr_len(out) ? -EINVAL : 0;
}

/* --- names and questions ------------------------------------------------------------------------ */

int exsi_bind(exsi_ctx *ctx, uint64_t sock, const void *addr, uint32_t len)
{
    struct call c;
    union exsi_addr at;
    EXSI_TRY(take_address(addr, len, &at));
    EXSI_TRY(call_enter(&c, ctx, sock, 0, NULL));
    return call_leave(&c, exsi_conn_bind(c.s, &at));
}

int exsi_listen(exsi_ctx *ctx, uint64_t sock, int backlog)
{
    struct call c;
    struct exsi_devices devices;
    EXSI_TRY(call_find(&c, ctx, sock, 0, NULL));
    exsi_choice_open(c.s, NULL, &devices);
    EXSI_TRY(call_go_on(&c));
    return call_leave(&c, exsi_conn_listen(c.s, backlog, &devices));
}

static int name_of(exsi_ctx *ctx, uint64_t sock, bool peer, void *addr, uint32_t *len)
{
    struct call c;
    union exsi_addr at;
    EXSI_TRY(call_enter(&c, ctx, sock, 0, NULL));
    int rc = call_leave(&c, exsi_sock_name(c.s, peer, &at));
    if (rc < 0) return rc;
    uint32_t full = exsi_addr_len(&at);
    memcpy(addr, &at, exsi_min_u32(*len, full));
    *len = full;
    return 0;
}

int exsi_sockname(exsi_ctx *ctx, uint64_t sock, void *addr, uint32_t *len)
{
    return name_of(ctx, sock, false, addr, len);
}

int exsi_peername(exsi_ctx *ctx, uint64_t sock, void *addr, uint32_t *len)
{
    return name_of(ctx, sock, true, addr, len);
}

int exsi_socket_query(exsi_ctx *ctx, uint64_t sock, exsi_socket_info *out)
{
    struct call c;
    EXSI_TRY(call_enter(&c, ctx, sock, 0, NULL));
    exsi_sock_query(c.s, out);
    return call_leave(&c, 0);
}

/* --- statistics ------------------------------------------------------------------------------------ */

#define STATS_NAME(name) #name,
static const char *const stats_names[] = {EXSI_STATS_FIELDS(STATS_NAME) NULL};
#define STATS_COUNT ((int)(sizeof stats_names / sizeof stats_names[0]) - 1)

const char *exsi_statistics_name(int i)
{
    return i >= 0 && i < STATS_COUNT ? stats_names[i] : NULL;
}

/* ctx->lock held: what is found there stays. */
static void sum_process(struct exsi_ctx *ctx, struct exsi_stats *sum)
{
    exsi_stats_add(sum, &ctx->closed_stats);
    exsi_stats_add(sum, &ctx->stats);
    for (uint32_t i = 0; i < ctx->sockets.cap; i++) {
        struct exsi_socket *s = exsi_table_get_at(&ctx->sockets, i, NULL);
        if (!s) continue;
        exsi_stats_add(sum, &s->stats);
        exsi_sock_put(s);
    }
    for (uint32_t i = 0; i < ctx->endpoints.cap; i++) {
        struct exsi_link *l = exsi_table_get_at(&ctx->endpoints, i, NULL);
        if (!l) continue;
        exsi_stats_add(sum, &l->stats);
        exsi_link_put(l);
    }
    for (uint32_t i = 0; i < ctx->groups.cap; i++) {
        struct exsi_group *g = exsi_table_get_at(&ctx->groups, i, NULL);
        if (!g) continue;
        exsi_stats_add(sum, &g->stats);
        exsi_group_put(g);
    }
}

int exsi_statistics(exsi_ctx *ctx, uint64_t sock, uint64_t *out, int max)
{
    struct exsi_stats sum = {0};
    EXSI_TRY(exsi_ctx_check(ctx));
    if (sock) {
        struct exsi_socket *s = exsi_sock_get(ctx, sock);
        if (!s) return -EBADF;
        exsi_stats_add(&sum, &s->stats);
        exsi_sock_put(s);
    } else {
        pthread_mutex_lock(&ctx->lock);
        sum_process(ctx, &sum);
        pthread_mutex_unlock(&ctx->lock);
    }
    int n = 0;
#define STATS_TAKE(name)                                                                                               \
    if (n < max) out[n++] = atomic_load_explicit(&sum.name, memory_order_relaxed);
    EXSI_STATS_FIELDS(STATS_TAKE)
#undef STATS_TAKE
    return n;
}

/* --- connecting ------------------------------------------------------------------------------------ */

int exsi_connect(exsi_ctx *ctx, uint64_t sock, const void *addr, uint32_t len, uint64_t cookie, uint64_t eq,
                 exsi_posted *out)
{
    struct call c;
    struct exsi_op *op;
    union exsi_addr to;
    struct exsi_devices devices;
    EXSI_TRY(take_address(addr, len, &to));
    EXSI_TRY(call_find(&c, ctx, sock, eq, out));
    exsi_choice_open(c.s, &to, &devices);
    EXSI_TRY(call_go_on(&c));
    int rc = call_op(&c, EXSI_OP_CONNECT, cookie, &op);
    if (rc == 0) {
        rc = exsi_conn_connect(c.s, &to, &devices, op);
        if (rc < 0) exsi_op_drop(op);
    }
    return call_leave(&c, rc);
}

int exsi_accept(exsi_ctx *ctx, uint64_t sock, uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    struct call c;
    struct exsi_op *op;
    EXSI_TRY(call_enter(&c, ctx, sock, eq, out));
    int rc = call_op(&c, EXSI_OP_ACCEPT, cookie, &op);
    if (rc == 0) {
        rc = exsi_conn_accept(c.s, op);
        if (rc < 0) exsi_op_drop(op);
    }
    return call_leave(&c, rc);
}

/* --- sends and receives ------------------------------------------------------------------------------ */

static int transfer(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, bool receive,
                    uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    struct call c;
    struct exsi_xfer x;
    EXSI_TRY(call_find(&c, ctx, sock, eq, out));
    /* Memory is found, and if need be pinned, without the lock. */
    int rc = eq ? exsi_xfer_prepare(c.s, vec, n, flags, receive, &x) : -EBADF;
    if (rc == 0) {
        call_lock(&c);
        rc = exsi_xfer_post(c.s, &x, c.eq, cookie, out != NULL, &c.op);
        rc = call_settle(&c, rc);
        call_unlock(&c);
        exsi_xfer_drop(c.s, &x);
    }
    call_drop(&c);
    return rc;
}

static int take_now(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                    exsi_posted *out)
{
    struct call c;
    uint32_t known = EXSI_OPF_WAITALL | EXSI_OPF_DONTWAIT | EXSI_FLAG_FRAGILE | EXSI_FLAG_LOOK;
    if (!out || (flags & ~known)) return -EINVAL;
    EXSI_TRY(call_enter(&c, ctx, sock, 0, out));
    int64_t got = exsi_xfer_take(c.s, vec, n, flags & (EXSI_FLAG_FRAGILE | EXSI_FLAG_LOOK));
    if (got < 0) return call_leave(&c, (int)got);
    exsi_event ev = {.cookie = cookie, .value = (uint64_t)got, .kind = EXSI_OP_RECV};
    if (got == 0) ev.flags = EXSI_EV_EOF;
    int rc = call_leave(&c, 1);
    out->event = ev;
    return rc;
}

int exsi_send(exsi_ctx *ctx, uint64_t sock, const void *buf, size_t len, uint32_t flags, uint64_t mr, uint64_t cookie,
              uint64_t eq, exsi_posted *out)
{
    exsi_piece piece = {.base = (void *)(uintptr_t)buf, .len = len, .mr = mr};
    return transfer(ctx, sock, &piece, 1, flags, false, cookie, eq, out);
}

int exsi_recv(exsi_ctx *ctx, uint64_t sock, void *buf, size_t len, uint32_t flags, uint64_t mr, uint64_t cookie,
              uint64_t eq, exsi_posted *out)
{
    exsi_piece piece = {.base = buf, .len = len, .mr = mr};
    return exsi_recvmsg(ctx, sock, &piece, 1, flags, cookie, eq, out);
}

int exsi_sendmsg(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                 uint64_t eq, exsi_posted *out)
{
    return transfer(ctx, sock, vec, n, flags, false, cookie, eq, out);
}

int exsi_recvmsg(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                 uint64_t eq, exsi_posted *out)
{
    if (flags & EXSI_OPF_DONTWAIT) return take_now(ctx, sock, vec, n, flags, cookie, out);
    return transfer(ctx, sock, vec, n, flags, true, cookie, eq, out);
}

/* --- batches ------------------------------------------------------------------------------------------ */

/* Piece i of a batch; false behind the last. */
struct batch {
    const exsi_piece *vec; /* or NULL: one range, cut */
    exsi_piece whole;
    size_t piece;
    int n;
};

static exsi_piece piece_at(const struct batch *b, int i)
{
    if (b->vec) return b->vec[i];
    size_t off = (size_t)i * b->piece;
    size_t left = b->whole.len - off;
    return (exsi_piece){
        .base = (char *)b->whole.base + off, .len = left < b->piece ? left : b->piece, .mr = b->whole.mr};
}

/* So many pieces find their memory before the lock is taken, and go under one lock. */
#define BATCH 64

/* Pieces first to first + n of a batch; how many were accepted, *rc says why not all. */
static int post_some(struct call *c, const struct batch *b, int first, int n, uint32_t flags, bool receive,
                     uint64_t cookie, int *rc)
{
    struct exsi_xfer x[BATCH];
    int prepared = 0, posted = 0;
    *rc = 0;
    for (; prepared < n && *rc == 0; prepared += *rc == 0) {
        exsi_piece piece = piece_at(b, first + prepared);
        *rc = exsi_xfer_prepare(c->s, &piece, 1, flags, receive, &x[prepared]);
    }
    call_lock(c);
    int refused = 0;
    for (; posted < prepared && refused == 0; posted += refused == 0)
        refused = exsi_xfer_post(c->s, &x[posted], c->eq, cookie + (uint64_t)(first + posted), false, &c->op);
    if (refused < 0) *rc = refused;
    if (*rc < 0 || first + n == b->n) (void)call_settle(c, 1);
    call_unlock(c);
    for (int i = 0; i < prepared; i++) exsi_xfer_drop(c->s, &x[i]);
    return posted;
}

static int transfer_batch(exsi_ctx *ctx, uint64_t sock, const struct batch *b, uint32_t flags, bool receive,
                          uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    struct call c;
    if (b->n < 1 || (flags & EXSI_OPF_DONTWAIT)) return -EINVAL;
    if (!eq) return -EBADF;
    EXSI_TRY(call_find(&c, ctx, sock, eq, out));
    int rc = 0, i = 0;
    while (i < b->n && rc == 0)
        i += post_some(&c, b, i, b->n - i < BATCH ? b->n - i : BATCH, flags, receive, cookie, &rc);
    call_drop(&c);
    return i > 0 ? i : rc;
}

int exsi_send_many(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                   uint64_t eq, exsi_posted *out)
{
    return transfer_batch(ctx, sock, &(struct batch){.vec = vec, .n = n}, flags, false, cookie, eq, out);
}

int exsi_recv_many(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                   uint64_t eq, exsi_posted *out)
{
    return transfer_batch(ctx, sock, &(struct batch){.vec = vec, .n = n}, flags, true, cookie, eq, out);
}

int exsi_send_split(exsi_ctx *ctx, uint64_t sock, void *base, size_t len, size_t piece, uint32_t flags, uint64_t mr,
                    uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    if (piece == 0 || len == 0 || (len - 1) / piece >= INT32_MAX) return -EINVAL;
    struct batch b = {.whole = {base, len, mr}, .piece = piece, .n = (int)((len - 1) / piece) + 1};
    return transfer_batch(ctx, sock, &b, flags, false, cookie, eq, out);
}

/* --- readiness, ends, cancel ------------------------------------------------------------------------------ */

static int check_polled(const struct call *c, struct exsi_socket *const *socks, const uint32_t *flags, int n)
{
    const uint32_t known = EXSI_OPF_POLL_IN | EXSI_OPF_POLL_OUT;
    for (int i = 0; i < n; i++) {
        if (!(flags[i] & known) || (flags[i] & ~known)) return -EINVAL;
        if (!socks[i] || socks[i]->state == EXSI_SOCK_CLOSED || socks[i]->state == EXSI_SOCK_CLOSING) return -EBADF;
        if (socks[i]->group != c->g) return -EINVAL;
        if (socks[i]->state == EXSI_SOCK_NEW) return -ENOTCONN;
    }
    return 0;
}

int exsi_poll_many(exsi_ctx *ctx, const uint64_t *socks, const uint32_t *flags, int n, uint64_t cookie, uint64_t eq,
                   exsi_posted *out)
{
    struct call c;
    struct exsi_op *op;
    if (n < 1) return -EINVAL;
    EXSI_TRY(call_enter(&c, ctx, socks[0], eq, out));
    struct exsi_socket **all = calloc((size_t)n, sizeof(struct exsi_socket *));
    int rc = all ? 0 : -ENOMEM;
    for (int i = 0; all && i < n; i++) all[i] = exsi_sock_get(ctx, socks[i]);
    if (rc == 0) rc = check_polled(&c, all, flags, n);
    if (rc == 0) rc = call_op(&c, EXSI_OP_POLL, cookie, &op);
    if (rc == 0) {
        rc = exsi_poll_start(all, flags, (uint32_t)n, op);
        if (rc < 0) exsi_op_drop(op);
    }
    rc = call_settle(&c, rc);
    call_unlock(&c);
    for (int i = 0; all && i < n; i++)
        if (all[i]) exsi_sock_put(all[i]);
    free(all);
    call_drop(&c);
    return rc;
}

int exsi_poll(exsi_ctx *ctx, uint64_t sock, uint32_t flags, uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    return exsi_poll_many(ctx, &sock, &flags, 1, cookie, eq, out);
}

int exsi_shutdown(exsi_ctx *ctx, uint64_t sock, int how, uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    struct call c;
    struct exsi_op *op;
    if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR) return -EINVAL;
    EXSI_TRY(call_enter(&c, ctx, sock, eq, out));
    int rc = call_op(&c, EXSI_OP_SHUTDOWN, cookie, &op);
    if (rc == 0) {
        rc = exsi_close_shutdown(c.s, how, op);
        if (rc < 0) exsi_op_drop(op);
    }
    return call_leave(&c, rc);
}

int exsi_socket_close(exsi_ctx *ctx, uint64_t sock, int abort, uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    struct call c;
    struct exsi_op *op = NULL;
    EXSI_TRY(call_enter(&c, ctx, sock, eq, out));
    int rc = 0;
    if (c.s->state == EXSI_SOCK_CLOSING && !abort) rc = -EALREADY;
    if (rc == 0 && c.s->link && exsi_smcr_is_lent(&c.s->attach)) rc = -EBUSY;
    if (rc == 0 && eq) rc = call_op(&c, EXSI_OP_CLOSE, cookie, &op);
    if (rc == 0) exsi_close_start(c.s, abort != 0, op);
    return call_leave(&c, rc);
}

int exsi_cancel(exsi_ctx *ctx, uint64_t sock, uint64_t handle, exsi_posted *out)
{
    struct call c;
    EXSI_TRY(call_find(&c, ctx, sock, 0, out));
    call_lock(&c);
    struct exsi_op *op = exsi_op_find(c.g, handle);
    int rc = op && op->attach == &c.s->attach ? 0 : -EBADF;
    if (rc == 0) {
        c.op = handle;
        if (out) c.g->caller_op = op;
        exsi_close_cancel(c.s, op);
    }
    return call_leave(&c, rc);
}

static int cancel_everywhere(exsi_ctx *ctx, uint64_t cookie)
{
    int n = 0;
    for (uint32_t i = 0; i < ctx->groups.cap; i++) {
        struct exsi_group *g = exsi_table_get_at(&ctx->groups, i, NULL);
        if (!g) continue;
        exsi_group_lock(g);
        if (!g->closed) {
            n += exsi_close_cancel_match(g, NULL, true, cookie);
            exsi_settle(g);
        }
        exsi_group_unlock(g);
        exsi_group_put(g);
    }
    return n;
}

int exsi_cancel_match(exsi_ctx *ctx, uint64_t sock, int match_cookie, uint64_t cookie)
{
    struct call c;
    EXSI_TRY(exsi_ctx_check(ctx));
    if (!sock) return match_cookie ? cancel_everywhere(ctx, cookie) : -EINVAL;
    EXSI_TRY(call_find(&c, ctx, sock, 0, NULL));
    call_lock(&c);
    int n = exsi_close_cancel_match(c.g, c.s, match_cookie != 0, cookie);
    exsi_settle(c.g);
    call_unlock(&c);
    call_drop(&c);
    return n;
}
