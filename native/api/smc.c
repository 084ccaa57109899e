// SPDX-License-Identifier: MIT OR Apache-2.0
/* The calls on links (SMC-R).  The frame is that of the calls on sockets (post.c): find, lock the group, call
 * downwards, settle what that set off, unlock. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/check.h"
#include "sock/link.h"

_Static_assert((int)EXSI_SMC_LLC == (int)EXSI_SMCR_LLC, "one number");
_Static_assert((int)EXSI_SMC_CONNECTION_DONE == (int)EXSI_SMCR_CONNECTION_DONE, "one number");
_Static_assert((int)EXSI_SMC_LINK_DOWN == (int)EXSI_SMCR_LINK_DOWN, "one number");

#define ERRNO_MAX 4095

struct link_call {
    struct exsi_ctx *ctx;
    struct exsi_link *l;
    struct exsi_group *g;
};

static int link_find(struct link_call *c, exsi_ctx *ctx, uint64_t link)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    *c = (struct link_call){.ctx = ctx, .l = exsi_link_get(ctx, link)};
    if (!c->l) return -EBADF;
    c->g = c->l->group;
    return 0;
}

static int link_enter(struct link_call *c, exsi_ctx *ctx, uint64_t link)
{
    EXSI_TRY(link_find(c, ctx, link));
    exsi_group_lock(c->g);
    if (!c->l->closed) return 0;
    exsi_group_unlock(c->g);
    exsi_link_put(c->l);
    return -EBADF;
}

static int link_leave(struct link_call *c, int rc)
{
    struct exsi_group *g = c->g;
    exsi_settle(g);
    /* The link may be the last that holds the group. */
    exsi_group_hold(g);
    exsi_group_unlock(g);
    exsi_link_put(c->l);
    exsi_group_put(g);
    return rc;
}

/* --- links -------------------------------------------------------------------------------------------------- */

int exsi_smc_link_new(exsi_ctx *ctx, uint64_t group, const char *device, const uint8_t *gid, uint64_t *link)
{
    struct exsi_link *l;
    EXSI_TRY(exsi_ctx_check(ctx));
    struct exsi_group *g = exsi_group_get(ctx, group);
    if (!g) return -EBADF;
    int rc = exsi_link_new(g, device, gid, &l);
    if (rc == 0) *link = l->handle;
    exsi_group_put(g);
    return rc;
}

int exsi_smc_link_address(exsi_ctx *ctx, uint64_t link, exsi_smc_address *own)
{
    struct link_call c;
    struct exsi_raw_address raw;
    EXSI_TRY(link_enter(&c, ctx, link));
    int rc = c.l->ep->qp ? c.l->ep->ops->raw_query(c.l->ep->qp, &raw) : -ECONNABORTED;
    if (rc == 0) {
        *own = (exsi_smc_address){.gid_index = raw.gid_index, .mtu_code = raw.mtu_code, .qpn = raw.qpn, .psn = raw.psn};
        memcpy(own->gid, raw.gid, sizeof own->gid);
        memcpy(own->mac, raw.mac, sizeof own->mac);
    }
    return link_leave(&c, rc);
}

int exsi_smc_link_to_rtr(exsi_ctx *ctx, uint64_t link, const exsi_smc_address *peer)
{
    struct link_call c;
    struct exsi_raw_address raw = {.mtu_code = peer->mtu_code, .qpn = peer->qpn, .psn = peer->psn};
    memcpy(raw.gid, peer->gid, sizeof raw.gid);
    memcpy(raw.mac, peer->mac, sizeof raw.mac);
    EXSI_TRY(link_enter(&c, ctx, link));
    return link_leave(&c, exsi_link_to_rtr(c.l, &raw));
}

int exsi_smc_link_to_rts(exsi_ctx *ctx, uint64_t link)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    return link_leave(&c, exsi_link_to_rts(c.l));
}

int exsi_smc_link_active(exsi_ctx *ctx, uint64_t link, uint8_t version, uint32_t test_interval_ms,
                         uint32_t test_timeout_ms)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    int rc = exsi_smcr_active(exsi_smcr_of(c.l->ep), version, test_interval_ms, test_timeout_ms);
    return link_leave(&c, rc);
}

int exsi_smc_llc_send(exsi_ctx *ctx, uint64_t link, const void *msg, uint32_t len)
{
    struct link_call c;
    struct exsi_block block = {0};
    if (len < EXSI_SMC_MESSAGE_LEN || len > EXSI_SMCR_LLC_MAX) return -EMSGSIZE;
    EXSI_TRY(link_find(&c, ctx, link));
    if (len > EXSI_SMC_MESSAGE_LEN) {
        /* Memory is found without the lock. */
        int rc = exsi_pool_take(ctx, c.l->dev, len, &block);
        if (rc < 0) {
            exsi_link_put(c.l);
            return rc;
        }
        memcpy(block.addr, msg, len);
    }
    exsi_group_lock(c.g);
    int rc = c.l->closed ? -EBADF : exsi_smcr_llc_send(exsi_smcr_of(c.l->ep), msg, len, &block);
    exsi_pool_give(&block);
    return link_leave(&c, rc);
}

/* --- what a link has to say ------------------------------------------------------------------------------------ */

static int start_wait(struct link_call *c, struct exsi_eq *eq, uint64_t cookie, exsi_posted *out)
{
    struct exsi_op *op;
    EXSI_TRY(exsi_op_new(c->g, eq, EXSI_OP_NOTICE, cookie, &op));
    uint64_t handle = op->handle;
    c->g->caller_op = out ? op : NULL;
    int rc = exsi_link_wait(c->l, op);
    if (rc < 0) exsi_op_drop(op);
    if (rc == 0 && out && c->g->caller_done) {
        out->event = c->g->caller_event;
        rc = 1;
    }
    if (out) out->op = rc == 0 ? handle : 0;
    return rc;
}

int exsi_smc_link_wait(exsi_ctx *ctx, uint64_t link, uint64_t cookie, uint64_t eq, exsi_posted *out)
{
    struct link_call c;
    EXSI_TRY(exsi_ctx_check(ctx));
    struct exsi_eq *q = exsi_eq_get(ctx, eq);
    if (!q) return -EBADF;
    int rc = link_enter(&c, ctx, link);
    if (rc < 0) {
        exsi_eq_put(q);
        return rc;
    }
    c.g->caller_op = NULL;
    c.g->caller_done = false;
    rc = start_wait(&c, q, cookie, out);
    c.g->caller_op = NULL;
    c.g->caller_done = false;
    rc = link_leave(&c, rc);
    if (out) out->pending = 0; /* pushes signal: the caller learns of them as always */
    exsi_eq_put(q);
    return rc;
}

int exsi_smc_link_cancel(exsi_ctx *ctx, uint64_t link)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    exsi_link_cancel(c.l);
    return link_leave(&c, 0);
}

static void fill_notice(const struct exsi_link *l, const struct exsi_smcr_notice *n, exsi_smc_notice *out)
{
    out->kind = (uint32_t)n->kind;
    out->len = n->len;
    out->token = n->token;
    out->error = n->error;
    out->socket = n->socket;
    out->clean = n->clean;
    out->reason[0] = '\0';
    if (n->kind == EXSI_SMCR_LINK_DOWN) snprintf(out->reason, sizeof out->reason, "%s", l->ep->reason);
    memcpy(out->bytes, n->bytes, n->len);
}

int exsi_smc_link_take(exsi_ctx *ctx, uint64_t link, exsi_smc_notice *out)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    struct exsi_smcr_notice *n = exsi_smcr_take(exsi_smcr_of(c.l->ep));
    if (n) fill_notice(c.l, n, out);
    int rc = link_leave(&c, n ? 1 : 0);
    free(n);
    return rc;
}

int exsi_smc_link_query(exsi_ctx *ctx, uint64_t link, exsi_smc_link_info *out)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    const struct exsi_endpoint *ep = c.l->ep;
    const struct exsi_smcr *s = exsi_smcr_of(ep);
    *out = (exsi_smc_link_info){
        .up = ep->state == EXSI_EP_UP,
        .down = ep->state >= EXSI_EP_FAILING,
        .error = ep->error,
        .connections = s->n_flows,
        .cdc_received = s->cdc_in,
        .cdc_sent = s->cdc_out,
        .cdc_unknown = s->strays,
        .llc_received = s->llc_in,
        .llc_sent = s->llc_out,
        .tests_answered = s->tests_in,
        .tests_sent = s->tests_out,
        .idle_ms = (exsi_now_ns() - s->heard_ns) / 1000000u,
    };
    out->ring_bytes = exsi_smcr_rings(s, &out->rings);
    snprintf(out->device, sizeof out->device, "%s", ep->ops->name);
    memcpy(out->reason, ep->reason, sizeof out->reason);
    return link_leave(&c, 0);
}

int exsi_smc_link_close(exsi_ctx *ctx, uint64_t link)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    return link_leave(&c, exsi_link_close(c.l));
}

/* --- rings ------------------------------------------------------------------------------------------------------- */

int exsi_smc_rmb_new(exsi_ctx *ctx, uint64_t link, uint32_t size_code, uint64_t *rmb, uint32_t *rkey, uint64_t *vaddr)
{
    struct link_call c;
    struct exsi_smcr_rmb *made;
    if (size_code >= EXSI_SMC_SIZE_CODES) return -EINVAL;
    EXSI_TRY(link_find(&c, ctx, link));
    int rc = exsi_link_rmb_new(c.l, EXSI_SMC_RMBE_MIN << size_code, &made, vaddr, rkey, rmb);
    exsi_link_put(c.l);
    return rc;
}

int exsi_smc_rmb_close(exsi_ctx *ctx, uint64_t link, uint64_t rmb)
{
    struct link_call c;
    EXSI_TRY(link_enter(&c, ctx, link));
    struct exsi_smcr *l = exsi_smcr_of(c.l->ep);
    struct exsi_smcr_rmb *ring = exsi_smcr_rmb_find(l, rmb);
    return link_leave(&c, ring ? exsi_smcr_rmb_close(l, ring) : -EBADF);
}

/* --- connections ---------------------------------------------------------------------------------------------------
 */

int exsi_smc_connection_new(exsi_ctx *ctx, uint64_t link, uint64_t rmb, uint32_t own_token, const exsi_options *opt,
                            uint64_t *sock)
{
    struct link_call c;
    struct exsi_socket *s;
    exsi_options defaults;
    exsi_options_default(&defaults);
    if (!opt) opt = &defaults;
    EXSI_TRY(exsi_options_check(opt));
    EXSI_TRY(link_enter(&c, ctx, link));
    int rc = c.g->ending ? -EBADF : exsi_link_socket(c.l, rmb, own_token, opt, &s);
    if (rc == 0) *sock = s->handle;
    return link_leave(&c, rc);
}

/* Not forked, the socket with a reference, its group locked, not closed. */
static int sock_enter(exsi_ctx *ctx, uint64_t sock, struct exsi_socket **s)
{
    EXSI_TRY(exsi_ctx_check(ctx));
    *s = exsi_sock_get(ctx, sock);
    if (!*s) return -EBADF;
    exsi_group_lock((*s)->group);
    if ((*s)->state != EXSI_SOCK_CLOSED && (*s)->state != EXSI_SOCK_CLOSING) return 0;
    exsi_group_unlock((*s)->group);
    exsi_sock_put(*s);
    return -EBADF;
}

static int sock_leave(struct exsi_socket *s, int rc)
{
    exsi_settle(s->group);
    exsi_group_unlock(s->group);
    exsi_sock_put(s);
    return rc;
}

int exsi_smc_connection_open(exsi_ctx *ctx, uint64_t sock, uint32_t peer_rkey, uint64_t peer_vaddr, uint64_t peer_size,
                             uint32_t peer_token)
{
    struct exsi_socket *s;
    if (!exsi_smc_size_is_valid(peer_size)) return -EINVAL;
    struct exsi_smcr_peer peer = {
        .addr = peer_vaddr, .rkey = peer_rkey, .size = (uint32_t)peer_size, .token = peer_token};
    EXSI_TRY(sock_enter(ctx, sock, &s));
    return sock_leave(s, exsi_link_open(s, &peer));
}

int exsi_smc_connection_abort(exsi_ctx *ctx, uint64_t sock, int error)
{
    struct exsi_socket *s;
    if (error <= 0 || error > ERRNO_MAX) return -EINVAL;
    EXSI_TRY(sock_enter(ctx, sock, &s));
    int rc = s->link ? 0 : -EOPNOTSUPP;
    if (rc == 0) s->engine->abort(&s->attach, error, "given up by the program");
    return sock_leave(s, rc);
}

static exsi_smc_cursor_info cursor(struct exsi_smc_cursor c)
{
    return (exsi_smc_cursor_info){.wrap = c.wrap, .count = c.count};
}

int exsi_smc_connection_query(exsi_ctx *ctx, uint64_t link, uint32_t own_token, exsi_smc_connection_info *out)
{
    struct link_call c;
    struct exsi_smcr_state s;
    EXSI_TRY(link_enter(&c, ctx, link));
    int rc = link_leave(&c, exsi_smcr_look(exsi_smcr_of(c.l->ep), own_token, &s));
    EXSI_TRY(rc);
    *out = (exsi_smc_connection_info){
        .socket = s.socket,
        .token = s.token,
        .peer_token = s.peer.token,
        .size = s.size,
        .peer_size = s.peer.size,
        .produced = cursor(s.put),
        .peer_consumed = cursor(s.freed),
        .peer_produced = cursor(s.came),
        .consumed = cursor(s.taken),
        .told = cursor(s.told),
        .sent = s.sent,
        .received = s.received,
        .unsent = s.unsent,
        .unread = s.unread,
        .producer_flags = s.producer_flags,
        .peer_producer_flags = s.peer_producer_flags,
        .connection_flags = s.connection_flags,
        .peer_connection_flags = s.peer_connection_flags,
        .error = s.error,
    };
    return 0;
}

int exsi_recv_view(exsi_ctx *ctx, uint64_t sock, void **addr, uint64_t *len)
{
    struct exsi_socket *s;
    EXSI_TRY(sock_enter(ctx, sock, &s));
    return sock_leave(s, exsi_link_view(s, addr, len));
}

int exsi_recv_release(exsi_ctx *ctx, uint64_t sock, uint64_t n)
{
    struct exsi_socket *s;
    EXSI_TRY(sock_enter(ctx, sock, &s));
    return sock_leave(s, exsi_link_release(s, n));
}
