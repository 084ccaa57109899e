// SPDX-License-Identifier: MIT OR Apache-2.0
/* The simulated device (sim.h).
 * A posted request waits in its queue pair's send queue until a step lets it arrive; its completion then
 * waits in a queue of its own until a step lets it be polled.  Both keep the order of posting; nothing
 * else is ordered. */
#include <stdlib.h>
#include <string.h>

#include "sim_impl.h"

const char *sim_violation(const struct sim *sim)
{
    return sim->violation[0] ? sim->violation : NULL;
}

static int sim_no_open(struct exsi_log *log, struct exsi_device **out, char *reason)
{
    (void)log, (void)out, (void)reason;
    return -EOPNOTSUPP;
}
static void sim_close(struct exsi_device *dev)
{
    free(sim_of(dev));
}
static void sim_query(struct exsi_device *dev, struct exsi_caps *out)
{
    *out = dev->caps;
}

static int sim_part_open(struct exsi_device *dev, struct exsi_poller *poller, struct exsi_part **out)
{
    (void)poller;
    sim_of(dev)->part.part.dev = dev;
    *out = &sim_of(dev)->part.part;
    return 0;
}
static void sim_part_close(struct exsi_part *part)
{
    (void)part;
}
static int sim_part_progress(struct exsi_part *part)
{
    return (void)part, 0;
}
static void sim_part_doorbell(struct exsi_part *part, bool asleep)
{
    (void)part, (void)asleep;
}

/* --- queue pairs ------------------------------------------------------------------------------------- */

static int sim_qp_create(struct exsi_part *part, struct exsi_cm_id *id, const struct exsi_qp_attr *attr,
                         struct exsi_qp **out)
{
    struct sim *s = sim_of(part->dev);
    assert(!id && attr->send_wr <= SQ_MAX && attr->recv_wr <= RQ_MAX);
    for (int i = 0; i < QPS; i++) {
        if (s->qps[i]) continue;
        struct sim_qp *qp = calloc(1, sizeof *qp);
        if (!qp) return -ENOMEM;
        qp->qp.user = attr->user;
        qp->sim = s;
        qp->depth = attr->send_wr;
        qp->max_recv_len = attr->max_recv_len;
        s->qps[i] = qp;
        *out = &qp->qp;
        return 0;
    }
    return -ENOMEM;
}

static void forget_completions(struct sim *s, const struct sim_qp *qp)
{
    struct fifo old = s->cqf;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < old.len; i++) {
        const struct exsi_wc *wc = &s->cq[(old.head + i) % CQ_MAX];
        if (wc->qp == &qp->qp) continue;
        s->cq[(old.head + kept++) % CQ_MAX] = *wc;
    }
    s->cqf.len = kept;
}

static void sim_qp_destroy(struct exsi_qp *q)
{
    struct sim_qp *qp = qp_of(q);
    struct sim *s = qp->sim;
    for (uint32_t i = 0; i < KEYS; i++)
        if (s->keys[i].live && s->keys[i].qp == qp) s->keys[i].live = false;
    forget_completions(s, qp);
    if (qp->peer) {
        qp->peer->peer = NULL;
        if (!qp->ended && !qp->peer->aborted) {
            qp->peer->aborted = true;
            qp->peer->error = ECONNRESET;
        }
    }
    for (int i = 0; i < QPS; i++)
        if (s->qps[i] == qp) s->qps[i] = NULL;
    free(qp);
}

static void send_completion(struct sim_qp *qp, const struct exsi_send_wr *wr, int error)
{
    qp->unsignalled++;
    if (!error && !(wr->flags & EXSI_WR_SIGNALED)) return;
    uint32_t at = fifo_put(&qp->sdonef, SQ_MAX);
    qp->retires[at] = qp->unsignalled;
    qp->unsignalled = 0;
    enum exsi_wc_op op = wr->op == EXSI_WR_SEND ? EXSI_WC_SEND : EXSI_WC_WRITE;
    qp->sdone[at] = (struct exsi_wc){.wr_id = wr->wr_id, .qp = &qp->qp, .op = op, .error = error};
}

static void flush_queues(struct sim_qp *qp)
{
    while (qp->sqf.len) send_completion(qp, &qp->sq[fifo_take(&qp->sqf, SQ_MAX)], ECANCELED);
    while (qp->rqf.len) {
        uint64_t id = qp->rq[fifo_take(&qp->rqf, RQ_MAX)].wr_id;
        uint32_t at = fifo_put(&qp->rdonef, RQ_MAX + SQ_MAX);
        qp->rdone[at] = (struct exsi_wc){.wr_id = id, .qp = &qp->qp, .op = EXSI_WC_RECV, .error = ECANCELED};
    }
    qp->flushed = 0;
}

static void break_qp(struct sim_qp *qp, int error)
{
    if (qp->aborted) return;
    qp->aborted = true;
    qp->error = error;
    flush_queues(qp);
}

static void sim_qp_abort(struct exsi_qp *q)
{
    struct sim_qp *qp = qp_of(q);
    break_qp(qp, ECONNABORTED);
    if (qp->peer) break_qp(qp->peer, ECONNRESET);
}

void sim_disconnect(struct exsi_qp *q)
{
    struct sim_qp *qp = qp_of(q);
    qp->ended = true;
    if (qp->peer) qp->peer->ended = true;
}

static void sim_qp_query(struct exsi_qp *qp, struct exsi_qp_info *out)
{
    memset(out, 0, sizeof *out);
    snprintf(out->path, sizeof out->path, "sim");
    out->max_msg = qp_of(qp)->sim->opt.max_msg;
    out->immediate = qp_of(qp)->sim->opt.immediate;
    out->key_per_range = !qp_of(qp)->sim->opt.region_keys;
}

static int sim_post_recv(struct exsi_qp *q, const struct exsi_recv_wr *wr, int n)
{
    struct sim_qp *qp = qp_of(q);
    for (int i = 0; i < n; i++) {
        if (qp->aborted) {
            uint32_t at = fifo_put(&qp->rdonef, RQ_MAX + SQ_MAX);
            qp->rdone[at] = (struct exsi_wc){.wr_id = wr[i].wr_id, .qp = q, .op = EXSI_WC_RECV, .error = ECANCELED};
            continue;
        }
        if (qp->rqf.len == RQ_MAX) return -ENOMEM;
        qp->rq[fifo_put(&qp->rqf, RQ_MAX)] = wr[i];
    }
    return 0;
}

static void check_source(struct sim *s, const struct exsi_send_wr *wr)
{
    for (uint32_t i = 0; i < wr->num_sge; i++) {
        const struct exsi_sge *g = &wr->sge[i];
        if (wr->flags & EXSI_WR_INLINE) continue;
        uint64_t off = (uint64_t)((uint8_t *)g->addr - (uint8_t *)g->mr->mem.addr);
        if (!exsi_range_inside(off, g->len, g->mr->mem.len)) violate(s, "a source outside its region");
    }
}

static int sim_post_send(struct exsi_qp *q, const struct exsi_send_wr *wr, int n)
{
    struct sim_qp *qp = qp_of(q);
    if (qp->in_sq + (uint32_t)n > qp->depth) {
        violate(qp->sim, "the send queue was overrun");
        return -ENOMEM;
    }
    if (qp->ended) violate(qp->sim, "a post behind the end in order");
    for (int i = 0; i < n; i++) {
        if (wr[i].op == EXSI_WR_WRITE_IMM && !qp->sim->opt.immediate) return -EINVAL;
        qp->in_sq++;
        if (qp->aborted) {
            send_completion(qp, &wr[i], ECANCELED);
            continue;
        }
        check_source(qp->sim, &wr[i]);
        uint32_t at = fifo_put(&qp->sqf, SQ_MAX);
        qp->sq[at] = wr[i];
        if (wr[i].flags & EXSI_WR_INLINE) {
            assert(wr[i].num_sge == 1 && wr[i].sge[0].len <= sizeof qp->sq_inline[at]);
            memcpy(qp->sq_inline[at], wr[i].sge[0].addr, wr[i].sge[0].len);
            qp->sq[at].sge[0].addr = qp->sq_inline[at];
        }
    }
    return 0;
}

static void sim_qp_flush(struct exsi_qp *q)
{
    qp_of(q)->flushed = qp_of(q)->sqf.len;
}

uint32_t sim_in_flight(const struct exsi_qp *q)
{
    return qp_of(q)->sqf.len;
}

/* --- completions and events ---------------------------------------------------------------------------- */

static int sim_poll_cq(struct exsi_part *part, struct exsi_wc *wc, int max)
{
    struct sim *s = sim_of(part->dev);
    int n = 0;
    while (n < max && s->cqf.len) wc[n++] = s->cq[fifo_take(&s->cqf, CQ_MAX)];
    return n;
}

static bool all_polled(const struct sim_qp *qp)
{
    if (qp->sdonef.len || qp->rdonef.len || qp->idonef.len) return false;
    for (uint32_t i = 0; i < qp->sim->cqf.len; i++)
        if (qp->sim->cq[(qp->sim->cqf.head + i) % CQ_MAX].qp == &qp->qp) return false;
    return true;
}

static int sim_poll_cm(struct exsi_part *part, struct exsi_cm_event *ev)
{
    struct sim *s = sim_of(part->dev);
    for (int i = 0; i < QPS; i++) {
        struct sim_qp *qp = s->qps[i];
        if (!qp || qp->told || !all_polled(qp)) continue;
        bool quiet = !qp->sqf.len && (!qp->peer || !qp->peer->sqf.len);
        if (!qp->aborted && !(qp->ended && quiet)) continue;
        qp->told = true;
        memset(ev, 0, sizeof *ev);
        ev->kind = EXSI_CM_DISCONNECTED;
        ev->qp = &qp->qp;
        ev->error = qp->error;
        return 1;
    }
    return 0;
}

/* --- what can happen ------------------------------------------------------------------------------------ */

static void put_cq(struct sim *s, const struct exsi_wc *wc)
{
    s->cq[fifo_put(&s->cqf, CQ_MAX)] = *wc;
}

static bool place(struct sim_qp *to, const struct exsi_send_wr *wr)
{
    struct sim *s = to->sim;
    struct sim_key *k = sim_key_find(s, wr->rkey);
    uint32_t len = wr->sge[0].len;
    if (!k || (k->qp && k->qp != to)) {
        violate(s, "a write behind a key that is not live");
        return false;
    }
    if (!exsi_range_inside(wr->raddr - (uint64_t)(uintptr_t)k->addr, len, k->len)) {
        violate(s, "a write outside its key's range");
        return false;
    }
    memcpy((void *)(uintptr_t)wr->raddr, wr->sge[0].addr, len);
    return true;
}

static bool take_receive(struct sim_qp *to, const struct exsi_send_wr *wr)
{
    if (!to->rqf.len) {
        violate(to->sim, "a message found no posted receive");
        return false;
    }
    struct exsi_recv_wr *r = &to->rq[fifo_take(&to->rqf, RQ_MAX)];
    struct exsi_wc wc = {.wr_id = r->wr_id, .qp = &to->qp, .op = EXSI_WC_RECV_IMM, .imm = wr->imm};
    if (wr->op == EXSI_WR_SEND) {
        wc.op = EXSI_WC_RECV;
        wc.byte_len = wr->num_sge ? wr->sge[0].len : 0;
        if (wc.byte_len > r->sge.len) {
            violate(to->sim, "a message longer than its receive");
            return false;
        }
        memcpy(r->sge.addr, wr->sge[0].addr, wc.byte_len);
    }
    to->rdone[fifo_put(&to->rdonef, RQ_MAX + SQ_MAX)] = wc;
    return true;
}

static void arrive(struct sim_qp *qp)
{
    struct exsi_send_wr *wr = &qp->sq[fifo_take(&qp->sqf, SQ_MAX)];
    qp->flushed--;
    bool sound = true;
    if (!qp->peer) { /* ended in order, and the other side is gone already */
        send_completion(qp, wr, 0);
        return;
    }
    if (wr->op != EXSI_WR_SEND && wr->num_sge) sound = place(qp->peer, wr);
    if (sound && wr->op != EXSI_WR_WRITE) sound = take_receive(qp->peer, wr);
    send_completion(qp, wr, sound ? 0 : EPROTO);
    if (sound) return;
    break_qp(qp, EPROTO);
    break_qp(qp->peer, EPROTO);
}

static void release_send(struct sim_qp *qp)
{
    uint32_t at = fifo_take(&qp->sdonef, SQ_MAX);
    qp->in_sq -= qp->retires[at];
    put_cq(qp->sim, &qp->sdone[at]);
}

static void release_key(struct sim_qp *qp)
{
    struct exsi_wc wc = qp->idone[fifo_take(&qp->idonef, KEYS)];
    sim_key_end(qp, sim_key_find(qp->sim, wc.imm));
    if (qp->aborted) wc.error = ECANCELED;
    put_cq(qp->sim, &wc);
}

/* With nothing posted for it, it is tried again later. */
static bool must_wait(const struct sim_qp *qp)
{
    if (!qp->sim->opt.waits || !qp->peer || qp->peer->rqf.len) return false;
    return qp->sq[qp->sqf.head].op == EXSI_WR_SEND;
}

static bool step(struct sim *s, bool arrivals)
{
    struct {
        struct sim_qp *qp;
        int what;
    } can[QPS * 4];
    uint32_t n = 0;
    for (int i = 0; i < QPS; i++) {
        struct sim_qp *qp = s->qps[i];
        if (!qp) continue;
        if (arrivals && qp->flushed && (qp->peer || qp->ended) && !qp->aborted && !must_wait(qp))
            can[n].qp = qp, can[n++].what = 0;
        if (qp->sdonef.len) can[n].qp = qp, can[n++].what = 1;
        if (qp->rdonef.len) can[n].qp = qp, can[n++].what = 2;
        if (qp->idonef.len) can[n].qp = qp, can[n++].what = 3;
    }
    if (!n) return false;
    uint32_t at = sim_below(&s->rng, n);
    struct sim_qp *qp = can[at].qp;
    switch (can[at].what) {
    case 0: arrive(qp); break;
    case 1: release_send(qp); break;
    case 2: put_cq(s, &qp->rdone[fifo_take(&qp->rdonef, RQ_MAX + SQ_MAX)]); break;
    default: release_key(qp);
    }
    return true;
}

bool sim_step(struct sim *s)
{
    return step(s, true);
}
bool sim_step_local(struct sim *s)
{
    return step(s, false);
}
uint32_t sim_keys(const struct exsi_qp *q)
{
    return qp_of(q)->keys;
}

void sim_link(struct exsi_qp *a, struct exsi_qp *b)
{
    qp_of(a)->peer = qp_of(b);
    qp_of(b)->peer = qp_of(a);
}

/* --- what it has not ------------------------------------------------------------------------------------- */

static int no_raw(struct exsi_qp *qp, struct exsi_raw_address *out)
{
    return (void)qp, (void)out, -EOPNOTSUPP;
}
static int no_rtr(struct exsi_qp *qp, const struct exsi_raw_address *a)
{
    return (void)qp, (void)a, -EOPNOTSUPP;
}
static int no_rts(struct exsi_qp *qp)
{
    return (void)qp, -EOPNOTSUPP;
}
static int no_listen(struct exsi_part *p, const union exsi_addr *a, int b, const struct exsi_cm_options *o, void *u,
                     struct exsi_cm_id **id, union exsi_addr *bound)
{
    return (void)p, (void)a, (void)b, (void)o, (void)u, (void)id, (void)bound, -EOPNOTSUPP;
}
static int no_resolve(struct exsi_part *p, const union exsi_addr *s, const union exsi_addr *a,
                      const struct exsi_cm_options *o, void *u, struct exsi_cm_id **id)
{
    return (void)p, (void)s, (void)a, (void)o, (void)u, (void)id, -EOPNOTSUPP;
}
static int no_cm(struct exsi_cm_id *id, const void *d, uint32_t n)
{
    return (void)id, (void)d, (void)n, -EOPNOTSUPP;
}
static void no_reject(struct exsi_cm_id *id, const void *d, uint32_t n)
{
    (void)id, (void)d, (void)n;
}
static void no_id(struct exsi_cm_id *id)
{
    (void)id;
}

static const struct exsi_device_ops sim_ops = {
    .name = "sim",
    .open = sim_no_open,
    .close = sim_close,
    .query = sim_query,
    .reg_mr = sim_reg_mr,
    .dereg_mr = sim_dereg_mr,
    .part_open = sim_part_open,
    .part_close = sim_part_close,
    .part_progress = sim_part_progress,
    .part_doorbell = sim_part_doorbell,
    .poll_cq = sim_poll_cq,
    .poll_cm = sim_poll_cm,
    .qp_create = sim_qp_create,
    .qp_destroy = sim_qp_destroy,
    .qp_abort = sim_qp_abort,
    .qp_query = sim_qp_query,
    .post_recv = sim_post_recv,
    .post_send = sim_post_send,
    .qp_flush = sim_qp_flush,
    .key_bind = sim_key_bind,
    .key_invalidate = sim_key_invalidate,
    .raw_query = no_raw,
    .raw_to_rtr = no_rtr,
    .raw_to_rts = no_rts,
    .cm_listen = no_listen,
    .cm_resolve = no_resolve,
    .cm_connect = no_cm,
    .cm_accept = no_cm,
    .cm_reject = no_reject,
    .cm_disconnect = no_id,
    .cm_destroy = no_id,
};

void sim_set(struct sim *s, const struct sim_options *opt, uint64_t seed)
{
    s->opt = *opt;
    s->rng = seed;
    s->violation[0] = '\0';
    s->dev.caps = (struct exsi_caps){
        .max_inline = 64,
        .max_sge = EXSI_MAX_SGE,
        .max_qp_wr = SQ_MAX,
        .max_request_private = 128,
        .max_reply_private = 128,
        .max_msg = opt->max_msg,
        .has_immediate = opt->immediate,
        .has_key_per_range = !opt->region_keys,
        .has_raw_qp = true,
    };
}

struct sim *sim_open(struct exsi_ctx *ctx, const struct sim_options *opt, uint64_t seed)
{
    struct sim *s = calloc(1, sizeof *s);
    if (!s || ctx->n_devices == EXSI_MAX_DEVICES) abort();
    s->dev.ops = &sim_ops;
    s->entry = (struct exsi_device_entry){.name = "sim", .summary = "simulated link", .ops = &sim_ops};
    sim_set(s, opt, seed);
    struct exsi_open_device *slot = &ctx->devices[ctx->n_devices++];
    slot->entry = &s->entry;
    slot->dev = &s->dev;
    slot->tried = true;
    return s;
}

struct exsi_device *sim_device(struct sim *s)
{
    return &s->dev;
}
