// SPDX-License-Identifier: MIT OR Apache-2.0
#include "pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define need(cond)                                                                                                     \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            printf("Bail out! %s:%d: %s\n", __FILE__, __LINE__, #cond);                                                \
            exit(99);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* The simulated device is put into the context by hand; none is found. */
const struct exsi_device_entry *exsi_device_registry(int *n)
{
    *n = 0;
    return NULL;
}

void pair_config(struct exsi_engine_config *cfg)
{
    *cfg = (struct exsi_engine_config){
        .ring_bytes = 1 << 16, .max_adverts = 32, .recv_slots = 64, .max_transfer = 1 << 28};
}

void pair_open(struct pair *p)
{
    struct sim_options opt = {0};
    memset(p, 0, sizeof *p);
    need(exsi_ctx_open(&p->ctx) == 0);
    p->ctx->log.threshold = EXSI_LOG_ERROR + 1;
    need(exsi_group_open(p->ctx, false, &p->group) == 0);
    p->sim = sim_open(p->ctx, &opt, 1);
    for (int i = 0; i < 2; i++) {
        struct side *s = &p->side[i];
        need(exsi_eq_open(p->ctx, NULL, 1024, &s->eq) == 0);
        s->memory = malloc(PAIR_MEMORY);
        need(s->memory);
        memset(s->memory, 0, PAIR_MEMORY);
    }
}

static void register_memory(struct pair *p, struct side *s)
{
    struct exsi_device *dev = sim_device(p->sim);
    struct exsi_mem mem = {.addr = s->memory,
                           .len = PAIR_MEMORY,
                           .access = EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE,
                           .memfd = -1};
    need(dev->ops->reg_mr(dev, &mem, &s->dmr) == 0);
}

void pair_close(struct pair *p)
{
    for (int i = 0; i < 2; i++) {
        free(p->side[i].memory);
        need(exsi_eq_close(p->side[i].eq) == 0);
    }
    need(exsi_group_close(p->group) == 0);
    exsi_ctx_free(p->ctx);
}

static void changed(struct exsi_attach *at, uint32_t what)
{
    struct side *s = exsi_container_of(at, struct side, at);
    s->changed |= what;
    if (what & EXSI_CHANGE_DEAD) s->dead_reports++;
}

void pair_make_side(struct pair *p, int i, const struct exsi_engine_ops *engine, const struct exsi_engine_config *cfg)
{
    struct side *s = &p->side[i];
    struct exsi_ep_attr attr = {0};
    struct exsi_ep_memory memory;
    register_memory(p, s);
    s->changed = s->dead_reports = 0;
    memset(&s->stats, 0, sizeof s->stats);
    engine->ep_attr(cfg, &attr);
    need(exsi_ep_memory_new(p->ctx, sim_device(p->sim), &attr, &memory) == 0);
    need(exsi_ep_new(p->group, sim_device(p->sim), engine, &attr, &memory, &s->stats, &s->ep) == 0);
    s->ep->active = i == 0;
    need(exsi_ep_make_qp(s->ep, NULL) == 0);
    need(exsi_ep_open_engine(s->ep, cfg) == 0);
    s->at = (struct exsi_attach){.stats = &s->stats, .changed = changed};
    exsi_list_init(&s->at.node);
    need(exsi_ep_attach(s->ep, &s->at) == 0);
}

/* Through the wire form, as on a real connection. */
static void tell(struct exsi_endpoint *from, struct exsi_endpoint *to)
{
    struct exsi_hello h, got;
    uint8_t wire[EXSI_HELLO_LEN];
    const char *why = "";
    char reason[EXSI_REASON_MAX];
    from->engine->hello(from, &h);
    exsi_hello_encode(&h, wire);
    need(exsi_hello_decode(wire, sizeof wire, &got, &why) == 0);
    need(to->engine->peer_hello(to, &got, reason) == 0);
}

void pair_connect(struct pair *p, const struct exsi_engine_ops *engine, const struct exsi_engine_config cfg[2],
                  const struct sim_options *opt, uint64_t seed)
{
    sim_set(p->sim, opt, seed);
    for (int i = 0; i < 2; i++) pair_make_side(p, i, engine, &cfg[i]);
    tell(p->side[0].ep, p->side[1].ep);
    tell(p->side[1].ep, p->side[0].ep);
    sim_link(p->side[0].ep->qp, p->side[1].ep->qp);
    exsi_ep_up(p->side[1].ep);
    exsi_ep_up(p->side[0].ep);
}

void pair_drop_side(struct pair *p, struct side *s)
{
    exsi_ep_detach(&s->at);
    exsi_ep_free(s->ep);
    s->ep = NULL;
    sim_device(p->sim)->ops->dereg_mr(sim_device(p->sim), s->dmr);
}

void pair_disconnect(struct pair *p)
{
    for (int i = 0; i < 2; i++) exsi_ep_disconnect(p->side[i].ep);
    sim_disconnect(p->side[0].ep->qp);
}

void pair_drop(struct pair *p)
{
    for (int i = 0; i < 2; i++) pair_drop_side(p, &p->side[i]);
    exsi_group_reap(p->group);
}

void pair_deliver(struct pair *p)
{
    struct exsi_wc wc[16];
    struct exsi_cm_event ev;
    struct exsi_part *part = p->side[0].ep->part;
    const struct exsi_device_ops *ops = p->side[0].ep->ops;
    int n;
    exsi_group_flush(p->group);
    while ((n = ops->poll_cq(part, wc, 16)) > 0) {
        for (int i = 0; i < n; i++) exsi_ep_completion(wc[i].qp->user, &wc[i]);
        exsi_group_flush(p->group);
    }
    while (ops->poll_cm(part, &ev) == 1) exsi_ep_disconnected(ev.qp->user, ev.error);
}

bool pair_step(struct pair *p)
{
    pair_deliver(p);
    bool did = sim_step(p->sim);
    pair_deliver(p);
    return did;
}

void pair_run(struct pair *p)
{
    while (pair_step(p)) continue;
}

int pair_post(struct pair *p, int side, enum exsi_op_kind kind, uint8_t *base, size_t len, size_t split, uint32_t flags,
              uint64_t cookie, uint64_t *handle)
{
    struct side *s = &p->side[side];
    struct exsi_op *op;
    int rc = exsi_op_new(p->group, s->eq, kind, cookie, &op);
    if (rc < 0) return rc;
    op->attach = &s->at;
    op->flags = flags;
    op->len = len;
    need(exsi_op_pieces(op, split ? 2 : 1) == 0);
    op->iov[0] = (struct exsi_iov){.base = base, .len = split ? split : len, .dmr = s->dmr};
    if (split) op->iov[1] = (struct exsi_iov){.base = base + split, .len = len - split, .dmr = s->dmr};
    *handle = op->handle;
    const struct exsi_engine_ops *e = s->ep->engine;
    rc = kind == EXSI_OP_SEND ? e->send(&s->at, op) : e->recv(&s->at, op);
    if (rc < 0) exsi_op_drop(op);
    exsi_group_flush(p->group);
    return rc;
}

bool pair_event(struct pair *p, int side, struct exsi_event *ev)
{
    return exsi_eq_take(p->side[side].eq, ev, 1) == 1;
}

int pair_expect(struct pair *p, int side, uint64_t cookie, int error, uint64_t value)
{
    struct exsi_event ev;
    if (!pair_event(p, side, &ev)) {
        printf("# no event, but %llu was expected\n", (unsigned long long)cookie);
        return -1;
    }
    if (ev.cookie == cookie && ev.error == error && ev.value == value) return ev.flags;
    printf("# event of %llu: error %d, value %llu, extra %llu\n", (unsigned long long)ev.cookie, ev.error,
           (unsigned long long)ev.value, (unsigned long long)ev.extra);
    return -1;
}

bool pair_silent(struct pair *p, int side)
{
    return exsi_eq_len(p->side[side].eq) == 0;
}

void pair_say(struct pair *p, int side, const struct exsi_control *c)
{
    uint8_t wire[EXSI_CONTROL_LEN];
    struct exsi_endpoint *ep = p->side[side].ep;
    exsi_control_encode(c, wire);
    if (ep->state < EXSI_EP_FAILING) ep->engine->on_recv(ep, wire, sizeof wire, NULL);
    exsi_group_flush(p->group);
}

void pair_say_word(struct pair *p, int side, uint32_t word)
{
    exsi_be32 w = exsi_put32(word);
    struct exsi_endpoint *ep = p->side[side].ep;
    if (ep->state < EXSI_EP_FAILING) ep->engine->on_recv(ep, &w, sizeof w, NULL);
    exsi_group_flush(p->group);
}

int pair_logged(struct pair *p, const char *text)
{
    struct exsi_log_record rec[8];
    int n, hits = 0;
    while ((n = exsi_log_take(&p->ctx->log, rec, 8)) > 0)
        for (int i = 0; i < n; i++) {
            hits += strstr(rec[i].text, text) != NULL;
            if (!strstr(rec[i].text, text)) printf("# log: %s\n", rec[i].text);
        }
    return hits;
}

void pair_cancel(struct pair *p, int side, uint64_t handle)
{
    struct exsi_op *op = exsi_op_find(p->group, handle);
    if (op) p->side[side].ep->engine->cancel(&p->side[side].at, op);
    exsi_group_flush(p->group);
}

uint32_t pair_ready(struct pair *p, int side)
{
    return p->side[side].ep->engine->ready(&p->side[side].at);
}
