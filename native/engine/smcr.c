// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SMC-R engine's table, and the link itself: its rings, whose message it is that came, what the program is told,
 * and TEST_LINK, which is answered and timed here because no program that computes may lose its connections for that.
 *
 * Invariant: a token is in link->tokens exactly while its flow is in link->flows and bound. */
#include "engine/smcr.h"

#include <stdlib.h>
#include <string.h>

#include "engine/smcr_flow.h"

/* Receives that are posted; a peer may have 16 CDC messages of each connection on the way. */
#define RECV_SLOTS 128
#define SEND_WR    256
/* LLC messages that wait for the program, and for room. */
#define MAX_LLC 64
#define MS      1000000u

enum { LLC_TEST_LINK = 0x07, LLC_TYPE_MASK = 0x0f, LLC_V1 = 0x00, LLC_V2 = 0x20, LLC_RESPONSE = 0x80 };

struct llc_wire {
    uint8_t type, length, length_high, flags;
    uint8_t body[40];
};
_Static_assert(sizeof(struct llc_wire) == EXSI_SMC_MESSAGE_LEN, "layout");
_Static_assert(offsetof(struct llc_wire, flags) == 3, "layout");

/* A message of the program on its way to the send queue. */
struct llc_out {
    struct exsi_list node; /* link->llc */
    struct exsi_block block;
    uint32_t len;
    uint8_t bytes[EXSI_SMC_MESSAGE_LEN];
};

/* --- rings --------------------------------------------------------------------------------------------------- */

int exsi_smcr_rmb_new(struct exsi_smcr *l, struct exsi_mr *mr, struct exsi_dmr *dmr, uint8_t *base, uint32_t size,
                      struct exsi_smcr_rmb **out)
{
    assert(exsi_smc_size_is_valid(size));
    struct exsi_smcr_rmb *rmb = calloc(1, sizeof *rmb);
    int rc = rmb ? exsi_ep_key_bind(l->ep, dmr, base, size, &rmb->rkey) : -ENOMEM;
    if (rc < 0) {
        free(rmb);
        exsi_mr_put_in(l->ep->group, mr);
        return rc;
    }
    rmb->number = ++l->last_rmb;
    rmb->mr = mr;
    rmb->base = base;
    rmb->size = size;
    exsi_list_init(&rmb->node);
    exsi_list_append(&l->rmbs, &rmb->node);
    *out = rmb;
    return 0;
}

struct exsi_smcr_rmb *exsi_smcr_rmb_find(struct exsi_smcr *l, uint64_t number)
{
    exsi_list_for (rmb, &l->rmbs, struct exsi_smcr_rmb, node)
        if (rmb->number == number && !rmb->ending) return rmb;
    return NULL;
}

static void free_rmb(struct exsi_smcr *l, struct exsi_smcr_rmb *rmb)
{
    exsi_list_unlink(&rmb->node);
    exsi_mr_put_in(l->ep->group, rmb->mr);
    free(rmb);
}

int exsi_smcr_rmb_close(struct exsi_smcr *l, struct exsi_smcr_rmb *rmb)
{
    if (rmb->in_use) return -EBUSY;
    int rc = exsi_ep_key_invalidate(l->ep, rmb->rkey, rmb->number);
    EXSI_TRY(rc);
    rmb->ending = true;
    if (rc == 0) free_rmb(l, rmb);
    return 0;
}

static void on_invalidated(struct exsi_endpoint *ep, uint64_t wr_id)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    exsi_list_for_safe (rmb, &l->rmbs, struct exsi_smcr_rmb, node)
        if (rmb->ending && rmb->number == wr_id) free_rmb(l, rmb);
}

/* --- notices ---------------------------------------------------------------------------------------------------- */

bool smcr_notice(struct exsi_smcr *l, enum exsi_smcr_notice_kind kind, const void *bytes, uint32_t len,
                 struct exsi_smcr_notice **out)
{
    struct exsi_smcr_notice *n = calloc(1, sizeof *n + len);
    if (!n) return false;
    n->kind = kind;
    n->len = len;
    if (len) memcpy(n->bytes, bytes, len);
    exsi_list_init(&n->node);
    exsi_list_append(&l->notices, &n->node);
    *out = n;
    return true;
}

struct exsi_smcr_notice *exsi_smcr_take(struct exsi_smcr *l)
{
    struct exsi_smcr_notice *n = exsi_list_first(&l->notices, struct exsi_smcr_notice, node);
    if (!n) return NULL;
    exsi_list_unlink(&n->node);
    if (n->kind == EXSI_SMCR_LLC) l->n_llc--;
    return n;
}

static void tell(struct exsi_smcr *l)
{
    if (l->noticed) l->noticed(l->owner);
}

static void notice_llc(struct exsi_smcr *l, const void *data, uint32_t len)
{
    struct exsi_smcr_notice *n;
    l->llc_in++;
    if (l->n_llc < MAX_LLC && smcr_notice(l, EXSI_SMCR_LLC, data, len, &n)) {
        l->n_llc++;
        tell(l);
        return;
    }
    if (!l->told_drop)
        exsi_log(&l->ep->group->ctx->log, EXSI_LOG_WARNING, l->ep->log_id,
                 "LLC messages are dropped: %u wait to be taken", l->n_llc);
    l->told_drop = true;
}

void smcr_release(struct smcr_flow *f)
{
    struct exsi_smcr *l = f->link;
    struct exsi_smcr_notice *n;
    assert(!f->at && !f->in_flight);
    if (f->token) {
        struct smcr_flow **at = &l->tokens[f->token & 0xff];
        while (*at != f) at = &(*at)->chain;
        *at = f->chain;
        f->rmb->in_use = false;
        if (smcr_notice(l, EXSI_SMCR_CONNECTION_DONE, NULL, 0, &n)) {
            n->token = f->token;
            n->socket = f->socket;
            n->error = f->error;
            n->clean = f->heard & SMCR_FINAL;
            tell(l);
        }
    }
    exsi_list_unlink(&f->node);
    exsi_list_unlink(&f->ready_node);
    smcr_stage_fini(f);
    l->n_flows--;
    free(f);
}

/* --- LLC --------------------------------------------------------------------------------------------------------- */

int exsi_smcr_llc_send(struct exsi_smcr *l, const void *data, uint32_t len, struct exsi_block *block)
{
    bool down = l->dead || l->ep->state >= EXSI_EP_FAILING;
    struct llc_out *m = !down && l->n_llc_out < MAX_LLC ? calloc(1, sizeof *m) : NULL;
    if (!m) {
        exsi_pool_give(block);
        return down ? -ECONNABORTED : l->n_llc_out < MAX_LLC ? -ENOMEM : -EAGAIN;
    }
    m->len = len;
    m->block = *block;
    *block = (struct exsi_block){0};
    if (!m->block.addr) memcpy(m->bytes, data, len);
    exsi_list_init(&m->node);
    exsi_list_append(&l->llc, &m->node);
    l->n_llc_out++;
    exsi_ep_touch(l->ep);
    return 0;
}

static void drop_llc(struct exsi_smcr *l, struct llc_out *m)
{
    exsi_list_unlink(&m->node);
    exsi_pool_give(&m->block);
    l->n_llc_out--;
    free(m);
}

static bool send_own(struct exsi_smcr *l, const void *message)
{
    return exsi_ep_room(l->ep, 1) && exsi_ep_send(l->ep, message, EXSI_SMC_MESSAGE_LEN, true) == 0;
}

static bool send_tests(struct exsi_smcr *l)
{
    if (l->echo_due) {
        if (!send_own(l, l->echo)) return false;
        l->echo_due = false;
    }
    if (l->test_due) {
        struct llc_wire w = {.type = LLC_TEST_LINK | (l->version == 2 ? LLC_V2 : LLC_V1), .length = sizeof w};
        if (!send_own(l, &w)) return false;
        l->test_due = false;
        l->tests_out++;
    }
    return true;
}

/* The peer has one buffer for the rest of long messages: one at a time. */
static bool must_wait(struct exsi_smcr *l, const struct llc_out *m)
{
    if (!m->block.addr || exsi_list_empty(&l->ep->blocks)) return false;
    (void)exsi_ep_room(l->ep, UINT32_MAX); /* so that its completion is told */
    return true;
}

bool smcr_pump_llc(struct exsi_smcr *l)
{
    struct llc_out *m;
    if (!send_tests(l)) return false;
    while ((m = exsi_list_first(&l->llc, struct llc_out, node)) && !must_wait(l, m)) {
        if (!exsi_ep_room(l->ep, 1)) return false;
        int rc = m->block.addr ? exsi_ep_send_block(l->ep, &m->block, m->len, true)
                               : exsi_ep_send(l->ep, m->bytes, m->len, true);
        if (rc < 0) return false;
        l->llc_out++;
        drop_llc(l, m);
    }
    return true;
}

/* --- TEST_LINK ------------------------------------------------------------------------------------------------------
 */

static void start_test_timer(struct exsi_smcr *l, uint64_t after_ns)
{
    if (exsi_timer_start(&l->ep->group->poller, &l->test_timer, after_ns) < 0)
        exsi_ep_fail(l->ep, ENOMEM, "no memory for a timer");
}

static void test_over(struct exsi_timer *t)
{
    struct exsi_smcr *l = exsi_container_of(t, struct exsi_smcr, test_timer);
    uint64_t now = exsi_now_ns(), silent = now - l->heard_ns;
    if (l->asked && l->heard_ns > l->asked_ns) l->asked = false;
    if (l->asked) {
        exsi_ep_fail(l->ep, ETIMEDOUT, "the peer did not answer TEST_LINK within %u ms",
                     (uint32_t)(l->timeout_ns / MS));
        return;
    }
    if (silent < l->interval_ns) {
        start_test_timer(l, l->interval_ns - silent);
        return;
    }
    l->asked = l->test_due = true;
    l->asked_ns = now;
    exsi_ep_touch(l->ep);
    start_test_timer(l, l->timeout_ns);
}

int exsi_smcr_active(struct exsi_smcr *l, uint8_t version, uint32_t interval_ms, uint32_t timeout_ms)
{
    if (version < 1 || version > 2 || (interval_ms && !timeout_ms)) return -EINVAL;
    if (l->dead) return -ECONNABORTED;
    l->active = true;
    l->version = version;
    l->asked = false;
    l->interval_ns = (uint64_t)interval_ms * MS;
    l->timeout_ns = (uint64_t)timeout_ms * MS;
    l->heard_ns = exsi_now_ns();
    exsi_timer_stop(&l->ep->group->poller, &l->test_timer);
    return interval_ms ? exsi_timer_start(&l->ep->group->poller, &l->test_timer, l->interval_ns) : 0;
}

static void on_test_link(struct exsi_smcr *l, const void *data)
{
    struct llc_wire w;
    memcpy(&w, data, sizeof w);
    if (w.flags & LLC_RESPONSE) {
        if (l->asked) start_test_timer(l, l->interval_ns);
        l->asked = false;
        return;
    }
    w.flags |= LLC_RESPONSE;
    memcpy(l->echo, &w, sizeof l->echo);
    l->echo_due = true;
    l->tests_in++;
    exsi_ep_touch(l->ep);
}

/* --- what arrives ----------------------------------------------------------------------------------------------------
 */

struct smcr_flow *smcr_find(const struct exsi_smcr *l, uint32_t token)
{
    struct smcr_flow *f = l->tokens[token & 0xff];
    while (f && f->token != token) f = f->chain;
    return f;
}

static void on_recv(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    const uint8_t *type = data;
    struct exsi_smc_cdc c;
    l->heard_ns = exsi_now_ns();
    if (word || len == 0) return; /* nothing of SMC-R: whoever it was meant for is not here */
    bool whole = len >= EXSI_SMC_MESSAGE_LEN;
    if (type[0] == EXSI_SMC_CDC_TYPE) {
        struct smcr_flow *f = exsi_smc_cdc_decode(data, len, &c) == 0 ? smcr_find(l, c.token) : NULL;
        l->cdc_in++;
        if (f)
            smcr_cdc(f, &c);
        else
            l->strays++;
    } else if (whole && (type[0] == (LLC_TEST_LINK | LLC_V1) || type[0] == (LLC_TEST_LINK | LLC_V2))) {
        on_test_link(l, data);
    } else {
        notice_llc(l, data, len);
    }
}

static void on_room(struct exsi_endpoint *ep)
{
    exsi_timer_stop(&ep->group->poller, &exsi_smcr_of(ep)->stuck_timer);
    exsi_ep_touch(ep);
}

static void stuck(struct exsi_timer *t)
{
    struct exsi_smcr *l = exsi_container_of(t, struct exsi_smcr, stuck_timer);
    exsi_ep_fail(l->ep, ETIMEDOUT, "no send completed for 10 s");
}

static void on_up(struct exsi_endpoint *ep)
{
    exsi_list_for (f, &exsi_smcr_of(ep)->flows, struct smcr_flow, node) smcr_want(f);
    exsi_ep_touch(ep);
}

static void stop_timers(struct exsi_smcr *l)
{
    struct exsi_poller *p = &l->ep->group->poller;
    exsi_timer_stop(p, &l->test_timer);
    exsi_timer_stop(p, &l->stuck_timer);
    exsi_timer_stop(p, &l->leave_timer);
}

static void on_error(struct exsi_endpoint *ep)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    struct exsi_smcr_notice *n;
    l->dead = true;
    l->write_len = 0;
    stop_timers(l);
    exsi_list_for_safe (m, &l->llc, struct llc_out, node) drop_llc(l, m);
    exsi_list_for_safe (f, &l->flows, struct smcr_flow, node) smcr_link_lost(f);
    if (l->closing || !smcr_notice(l, EXSI_SMCR_LINK_DOWN, NULL, 0, &n)) return;
    n->error = ep->error ? ep->error : ECONNRESET;
    tell(l);
}

/* --- the endpoint half
 * -------------------------------------------------------------------------------------------------- */

static void ep_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out)
{
    (void)cfg;
    *out = (struct exsi_ep_attr){
        .recv_slots = RECV_SLOTS,
        .recv_slot_len = EXSI_SMC_MESSAGE_LEN,
        .spill_len = EXSI_SMCR_LLC_MAX,
        .send_wr = SEND_WR,
        .strict_keys = true,
    };
}

static int ep_open(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg)
{
    (void)cfg;
    struct exsi_smcr *l = calloc(1, sizeof *l);
    if (!l) return -ENOMEM;
    l->writes = malloc(ep->attr.send_wr * sizeof *l->writes);
    if (!l->writes) {
        free(l);
        return -ENOMEM;
    }
    l->ep = ep;
    exsi_list_init(&l->flows);
    exsi_list_init(&l->ready);
    exsi_list_init(&l->rmbs);
    exsi_list_init(&l->notices);
    exsi_list_init(&l->llc);
    l->test_timer.fn = test_over;
    l->stuck_timer.fn = stuck;
    l->leave_timer.fn = smcr_leave_over;
    l->heard_ns = exsi_now_ns();
    ep->engine_state = l;
    return 0;
}

static void ep_close(struct exsi_endpoint *ep)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    struct exsi_smcr_notice *n;
    l->dead = true;
    stop_timers(l);
    exsi_list_for_safe (f, &l->flows, struct smcr_flow, node) {
        f->in_flight = 0;
        smcr_release(f);
    }
    exsi_list_for_safe (m, &l->llc, struct llc_out, node) drop_llc(l, m);
    exsi_list_for_safe (rmb, &l->rmbs, struct exsi_smcr_rmb, node) free_rmb(l, rmb);
    while ((n = exsi_smcr_take(l))) free(n);
    free(l->writes);
    free(l);
    ep->engine_state = NULL;
}

void exsi_smcr_give_up(struct exsi_smcr *l)
{
    l->closing = true;
    exsi_list_for_safe (f, &l->flows, struct smcr_flow, node) smcr_end(f, ECONNABORTED, "the link was closed");
}

/* What other engines say in private data is CLC's here. */
static void hello(struct exsi_endpoint *ep, struct exsi_hello *out)
{
    (void)ep;
    *out = (struct exsi_hello){0};
}

static int peer_hello(struct exsi_endpoint *ep, const struct exsi_hello *in, char *reason)
{
    (void)ep, (void)in, (void)reason;
    return -EOPNOTSUPP;
}

/* --- the socket half
 * ------------------------------------------------------------------------------------------------------ */

static int attach(struct exsi_attach *at)
{
    struct exsi_smcr *l = exsi_smcr_of(at->ep);
    if (l->dead || l->closing) return -ECONNABORTED;
    if (l->n_flows == EXSI_SMCR_CONNECTIONS) return -EUSERS;
    struct smcr_flow *f = calloc(1, sizeof *f);
    if (!f) return -ENOMEM;
    f->link = l;
    f->at = at;
    f->socket = at->socket;
    exsi_list_init(&f->ready_node);
    exsi_list_init(&f->node);
    exsi_list_init(&f->sends);
    exsi_list_init(&f->recvs);
    exsi_list_append(&l->flows, &f->node);
    l->n_flows++;
    at->flow = f;
    return 0;
}

int exsi_smcr_bind(struct exsi_attach *at, struct exsi_smcr_rmb *rmb, uint32_t token)
{
    struct smcr_flow *f = smcr_flow_of(at);
    struct exsi_smcr *l = f->link;
    if (!token || f->token) return -EINVAL;
    if (rmb->in_use) return -EBUSY;
    if (smcr_find(l, token)) return -EEXIST;
    rmb->in_use = true;
    f->rmb = rmb;
    f->token = token;
    f->chain = l->tokens[token & 0xff];
    l->tokens[token & 0xff] = f;
    return 0;
}

int exsi_smcr_open(struct exsi_attach *at, const struct exsi_smcr_peer *peer)
{
    struct smcr_flow *f = smcr_flow_of(at);
    if (!peer->token || !exsi_smc_size_is_valid(peer->size) || peer->addr + peer->size < peer->addr) return -EINVAL;
    if (f->open || !f->token) return -EISCONN;
    if (f->over) return f->error ? -f->error : -ECONNABORTED;
    f->open = true;
    f->peer_addr = peer->addr;
    f->peer_rkey = peer->rkey;
    f->peer_size = peer->size;
    f->peer_token = peer->token;
    smcr_want(f);
    smcr_report(f);
    return 0;
}

static void cancel(struct exsi_attach *at, struct exsi_op *op)
{
    if (op->kind == EXSI_OP_SEND)
        smcr_cancel_send(smcr_flow_of(at), op);
    else
        smcr_cancel_recv(smcr_flow_of(at), op);
}

static uint32_t ready(const struct exsi_attach *at)
{
    return smcr_ready(smcr_flow_of(at));
}

const struct exsi_engine_ops exsi_engine_smcr = {
    .name = "smcr",
    .ep_attr = ep_attr,
    .ep_open = ep_open,
    .ep_close = ep_close,
    .hello = hello,
    .peer_hello = peer_hello,
    .on_up = on_up,
    .before_flush = smcr_pump,
    .on_recv = on_recv,
    .on_write_done = smcr_write_done,
    .on_invalidated = on_invalidated,
    .on_room = on_room,
    .on_error = on_error,
    .attach = attach,
    .detach = smcr_detach,
    .send = smcr_send,
    .recv = smcr_recv,
    .take = smcr_take,
    .cancel = cancel,
    .shutdown_send = smcr_shutdown_send,
    .shutdown_recv = smcr_shutdown_recv,
    .abort = smcr_abort,
    .disconnect = smcr_disconnect,
    .ready = ready,
};
