// SPDX-License-Identifier: MIT OR Apache-2.0
/* The socket itself: making and finding it, looking at it after something happened, its end.
 * Invariant: a socket is in group->sockets and in the handle table from exsi_sock_new until
 * exsi_sock_retire; it is retired once it is closed and nothing of its connection is in flight. */
#include "sock/sock.h"

#include "sock/link.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- groups ----------------------------------------------------------------------------------- */

static bool has_lingering(struct exsi_group *g)
{
    exsi_list_for (s, &g->sockets, struct exsi_socket, group_node)
        if (s->state == EXSI_SOCK_CLOSED && s->ep && !s->dead && !s->aborted) return true;
    return false;
}

/* What was closed in order gets a short while to reach its peer: a program that closes and exits must
 * not destroy what is under way.  Bounded, since the peer may be asleep. */
static void linger(struct exsi_group *g, uint64_t bound_ns)
{
    uint64_t deadline = exsi_now_ns() + bound_ns;
    for (;;) {
        bool busy = exsi_progress(g, true);
        if (!has_lingering(g) || exsi_now_ns() >= deadline) return;
        if (busy) continue;
        g->sleepers++;
        exsi_doorbell(g);
        if (!exsi_progress(g, true)) {
            struct pollfd fd = {.fd = exsi_poller_fd(&g->poller), .events = POLLIN};
            exsi_group_unlock(g);
            (void)poll(&fd, 1, 10);
            exsi_group_lock(g);
        }
        g->sleepers--;
        exsi_doorbell(g);
    }
}

static void end_all(struct exsi_group *g)
{
    exsi_list_for_safe (s, &g->sockets, struct exsi_socket, group_node) {
        /* Children end with their listener. */
        if (!s->parent) exsi_close_start(s, true, NULL);
    }
    exsi_settle(g);
}

#define LINGER_NS 250000000u

void exsi_sock_group_end(struct exsi_group *g)
{
    exsi_group_lock(g);
    exsi_list_for_safe (s, &g->sockets, struct exsi_socket, group_node) {
        if (!s->parent && s->state != EXSI_SOCK_CLOSING && s->state != EXSI_SOCK_CLOSED)
            exsi_close_start(s, true, NULL);
    }
    exsi_settle(g);
    if (has_lingering(g)) linger(g, LINGER_NS);
    for (int i = 0; i < 8 && !exsi_list_empty(&g->sockets); i++) {
        end_all(g);
        (void)exsi_progress(g, true);
    }
    /* A device that never says DISCONNECTED cannot keep us: its queue pairs are destroyed all the same. */
    exsi_list_for_safe (s, &g->sockets, struct exsi_socket, group_node) {
        if (s->ep && !s->dead) exsi_ep_disconnected(s->ep, ECONNABORTED);
    }
    exsi_settle(g);
    assert(exsi_list_empty(&g->sockets));
    exsi_link_group_end(g);
    exsi_group_reap(g);
    exsi_group_unlock(g);
}

/* --- making and finding ------------------------------------------------------------------------- */

int exsi_sock_new(struct exsi_group *g, int family, int type, const exsi_options *opt, struct exsi_socket **out)
{
    struct exsi_socket *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    s->group = g;
    s->family = family;
    s->type = type;
    s->opt = *opt;
    s->engine = type == SOCK_STREAM ? &exsi_engine_stream : &exsi_engine_seqpacket;
    s->state = EXSI_SOCK_NEW;
    atomic_init(&s->dev, NULL);
    exsi_list_init(&s->attach.node);
    s->attach.stats = &s->stats;
    s->attach.changed = exsi_sock_changed;
    s->attach.finished = exsi_xfer_finished;
    exsi_list_init(&s->changed_node);
    exsi_list_init(&s->pending);
    exsi_list_init(&s->pending_node);
    exsi_list_init(&s->accepts);
    exsi_list_init(&s->polls);
    exsi_list_init(&s->shutdowns);
    exsi_list_init(&s->closes);
    int rc = exsi_table_add(&g->ctx->sockets, s, &s->handle);
    if (rc < 0) {
        free(s);
        return rc;
    }
    s->attach.socket = s->handle;
    exsi_group_hold(g);
    exsi_list_append(&g->sockets, &s->group_node);
    *out = s;
    return 0;
}

struct exsi_socket *exsi_sock_get(struct exsi_ctx *ctx, uint64_t handle)
{
    return exsi_table_get(&ctx->sockets, handle);
}

void exsi_sock_put(struct exsi_socket *s)
{
    if (!exsi_table_put(&s->group->ctx->sockets, s->handle)) return;
    exsi_group_put(s->group);
    free(s);
}

void exsi_sock_retire(struct exsi_socket *s)
{
    struct exsi_ctx *ctx = s->group->ctx;
    assert(s->state == EXSI_SOCK_CLOSED && s->sends == 0 && s->recvs == 0 && !s->parent);
    exsi_conn_teardown(s);
    exsi_timer_stop(&s->group->poller, &s->timer);
    exsi_list_unlink(&s->changed_node);
    exsi_list_unlink(&s->group_node);
    /* Together, so that a sum over all sockets finds it in one place. */
    pthread_mutex_lock(&ctx->lock);
    int rc = exsi_table_close(&ctx->sockets, s->handle);
    exsi_stats_add(&ctx->closed_stats, &s->stats);
    pthread_mutex_unlock(&ctx->lock);
    assert(rc == 0); /* a socket is retired once */
    (void)rc;
    exsi_sock_put(s);
}

/* --- what holds, and what follows ----------------------------------------------------------------- */

void exsi_sock_changed(struct exsi_attach *at, uint32_t what)
{
    struct exsi_socket *s = exsi_container_of(at, struct exsi_socket, attach);
    (void)what; /* the state is asked for when we look, so nothing can be missed or seen twice */
    if (exsi_list_empty(&s->changed_node)) exsi_list_append(&s->group->changed, &s->changed_node);
}

static bool has_established(const struct exsi_socket *s)
{
    exsi_list_for (child, &s->pending, struct exsi_socket, pending_node)
        if (child->established) return true;
    return false;
}

uint32_t exsi_sock_ready(const struct exsi_socket *s)
{
    if (s->state == EXSI_SOCK_LISTENING) return has_established(s) ? EXSI_CHANGE_READABLE : 0;
    uint32_t bits = s->ep && s->ep->state >= EXSI_EP_UP && s->attach.flow ? s->engine->ready(&s->attach) : 0;
    if (s->state == EXSI_SOCK_DEAD || s->dead) bits |= EXSI_CHANGE_READABLE | EXSI_CHANGE_WRITABLE | EXSI_CHANGE_DEAD;
    return bits;
}

/* Nothing will come of its connection any more; on a link that of another may well go on. */
static bool is_over(const struct exsi_socket *s)
{
    if (!s->ep || s->dead) return false;
    if (!s->link) return s->ep->state == EXSI_EP_DEAD;
    return s->attach.flow && (s->engine->ready(&s->attach) & EXSI_CHANGE_DEAD);
}

static void look_at(struct exsi_socket *s)
{
    if (is_over(s)) exsi_conn_dead(s);
    uint32_t ready = exsi_sock_ready(s);
    if (ready && !exsi_list_empty(&s->polls)) exsi_poll_look(s, ready);
    exsi_close_step(s, ready); /* last: it may retire the socket */
}

bool exsi_sock_look(struct exsi_group *g)
{
    bool did = false;
    struct exsi_socket *s;
    while ((s = exsi_list_first(&g->changed, struct exsi_socket, changed_node))) {
        exsi_list_unlink(&s->changed_node);
        look_at(s);
        did = true;
    }
    return did;
}

/* --- questions -------------------------------------------------------------------------------------- */

void exsi_sock_reason(struct exsi_socket *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->reason, sizeof s->reason, fmt, ap);
    va_end(ap);
}

void exsi_sock_query(struct exsi_socket *s, exsi_socket_info *info)
{
    struct exsi_device *dev = atomic_load_explicit(&s->dev, memory_order_relaxed);
    uint32_t ready = exsi_sock_ready(s);
    *info = (exsi_socket_info){
        .state = (int32_t)s->state,
        .error = s->attach.error,
        .family = s->family,
        .type = s->type,
        .readable = !!(ready & EXSI_CHANGE_READABLE),
        .writable = !!(ready & EXSI_CHANGE_WRITABLE),
        .peer_fin = !!(ready & EXSI_CHANGE_PEER_FIN),
        .send_shut = s->send_shut,
        .ops_in_flight = s->sends + s->recvs,
    };
    if (dev) snprintf(info->device, sizeof info->device, "%s", dev->ops->name);
    memcpy(info->path, s->path, sizeof info->path);
    memcpy(info->reason, s->reason, sizeof info->reason);
}

int exsi_sock_name(struct exsi_socket *s, bool peer, union exsi_addr *out)
{
    if (peer && s->peer.sa.sa_family == AF_UNSPEC) return -ENOTCONN;
    *out = peer ? s->peer : s->local;
    /* Not bound yet: the wildcard address, as with TCP. */
    if (!peer && out->sa.sa_family == AF_UNSPEC) out->sa.sa_family = (sa_family_t)s->family;
    return 0;
}
