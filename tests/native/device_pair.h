// SPDX-License-Identifier: MIT OR Apache-2.0
/* Two parts of a device in one process, each with a poller of its own, driven through the device table alone.
 * Nothing here waits without a bound.
 *
 * Who includes this has said: PAIR_OPS, the device's table; PAIR_OWN, members of struct side that are the device's;
 * PAIR_SIDE_OPEN(s), to fill them; PAIR_SIDE_END(s), to make them forget a connection. */
#ifndef DEVICE_PAIR_H
#define DEVICE_PAIR_H

#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/device.h"
#include "tap.h"

#define PAIR_MAX_WC   8192
#define PAIR_BOUND_NS 20000000000u

struct side {
    struct exsi_poller poller;
    struct exsi_part *part;
    PAIR_OWN
    struct exsi_cm_id *listener, *id;
    struct exsi_qp *qp;
    struct exsi_stats stats;
    struct exsi_wc wc[PAIR_MAX_WC]; /* completions so far */
    int n_wc, n_recv, n_send, n_flushed;
    bool resolved, requested, up, failed, down;
    int error; /* of failed or down */
    char reason[EXSI_REASON_MAX];
    uint8_t private_data[EXSI_PRIVATE_MAX];
    uint32_t private_len;
    union exsi_addr addr;
};

struct pair {
    struct exsi_log log;
    struct exsi_device *dev;
    struct side a, b; /* a dials, b listens */
};

__attribute__((unused)) static const struct exsi_device_ops *const ops = PAIR_OPS;

static void side_open(struct pair *p, struct side *s)
{
    memset(s, 0, sizeof *s);
    must(exsi_poller_init(&s->poller) == 0);
    must(ops->part_open(p->dev, &s->poller, &s->part) == 0);
    PAIR_SIDE_OPEN(s);
}

/* Forget what one connection left, keep part and listener. */
__attribute__((unused)) static void side_end(struct side *s)
{
    if (s->qp) ops->qp_destroy(s->qp);
    if (s->id) ops->cm_destroy(s->id);
    s->qp = NULL;
    s->id = NULL;
    s->n_wc = s->n_recv = s->n_send = s->n_flushed = 0;
    s->resolved = s->requested = s->up = s->failed = s->down = false;
    s->error = 0;
    s->reason[0] = 0;
    s->private_len = 0;
    PAIR_SIDE_END(s);
}

static void side_close(struct side *s)
{
    side_end(s);
    if (s->listener) ops->cm_destroy(s->listener);
    s->listener = NULL;
    ops->part_close(s->part);
    exsi_poller_fini(&s->poller);
}

__attribute__((unused)) static void pair_open(struct pair *p)
{
    char reason[EXSI_REASON_MAX];
    exsi_log_init(&p->log);
    must(ops->open(&p->log, &p->dev, reason) == 0);
    side_open(p, &p->a);
    side_open(p, &p->b);
}

__attribute__((unused)) static void pair_close(struct pair *p)
{
    side_close(&p->a);
    side_close(&p->b);
    ops->close(p->dev);
    exsi_log_fini(&p->log);
}

static void side_event(struct side *s, const struct exsi_cm_event *ev)
{
    switch (ev->kind) {
    case EXSI_CM_RESOLVED: s->resolved = true; break;
    case EXSI_CM_REQUEST:
        s->requested = true;
        s->id = ev->id;
        break;
    case EXSI_CM_ESTABLISHED: s->up = true; break;
    case EXSI_CM_FAILED:
        s->failed = true;
        s->error = ev->error;
        memcpy(s->reason, ev->reason, sizeof s->reason);
        break;
    case EXSI_CM_DISCONNECTED:
        s->down = true;
        s->error = ev->error;
        memcpy(s->reason, ev->reason, sizeof s->reason);
        break;
    }
    if (ev->private_len) {
        s->private_len = ev->private_len;
        memcpy(s->private_data, ev->private_data, ev->private_len);
    }
}

/* One pass; how much happened. */
static int side_run(struct side *s)
{
    struct exsi_cm_event ev;
    int did = exsi_poller_run(&s->poller) + ops->part_progress(s->part), n;
    while ((n = ops->poll_cq(s->part, s->wc + s->n_wc, PAIR_MAX_WC - s->n_wc)) > 0) {
        for (int i = 0; i < n; i++) {
            const struct exsi_wc *wc = &s->wc[s->n_wc++];
            if (wc->error)
                s->n_flushed++;
            else if (wc->op == EXSI_WC_RECV || wc->op == EXSI_WC_RECV_IMM)
                s->n_recv++;
            else
                s->n_send++;
        }
        must(s->n_wc < PAIR_MAX_WC);
        did += n;
    }
    while (ops->poll_cm(s->part, &ev) > 0) {
        side_event(s, &ev);
        did++;
    }
    return did;
}

static void pair_pass(struct pair *p)
{
    if (side_run(&p->a) + side_run(&p->b)) return;
    struct pollfd fds[2] = {{.fd = exsi_poller_fd(&p->a.poller), .events = POLLIN},
                            {.fd = exsi_poller_fd(&p->b.poller), .events = POLLIN}};
    poll(fds, 2, 5);
}

/* Run both sides until COND holds; false when the bound in time is over. */
#define pair_until(p, cond)                                                                                            \
    __extension__({                                                                                                    \
        uint64_t until_ = exsi_now_ns() + PAIR_BOUND_NS;                                                               \
        bool held_;                                                                                                    \
        while (!(held_ = (cond)) && exsi_now_ns() < until_) pair_pass(p);                                              \
        held_;                                                                                                         \
    })

/* Run for a while, to see that nothing happens. */
__attribute__((unused)) static void pair_for_ms(struct pair *p, uint32_t time_ms)
{
    uint64_t until = exsi_now_ns() + time_ms * 1000000ull;
    while (exsi_now_ns() < until) pair_pass(p);
}

__attribute__((unused)) static void pair_listen(struct pair *p, const char *host, const struct exsi_cm_options *opt)
{
    union exsi_addr addr = {0}, bound = {0};
    if (inet_pton(AF_INET, host, &addr.in.sin_addr) == 1) {
        addr.sa.sa_family = AF_INET;
    } else {
        must(inet_pton(AF_INET6, host, &addr.in6.sin6_addr) == 1);
        addr.sa.sa_family = AF_INET6;
    }
    must(ops->cm_listen(p->b.part, &addr, 16, opt, NULL, &p->b.listener, &bound) == 0);
    p->b.addr = bound;
}

static void pair_qp(struct side *s, struct exsi_cm_id *id, uint32_t depth)
{
    struct exsi_qp_attr attr = {
        .send_wr = depth, .recv_wr = depth, .max_recv_len = 1u << 20, .user = s, .stats = &s->stats};
    must(ops->qp_create(s->part, id, &attr, &s->qp) == 0);
}

/* A connection between a and b; both know of it. */
__attribute__((unused)) static void pair_connect(struct pair *p, const struct exsi_cm_options *opt, uint32_t depth)
{
    must(ops->cm_resolve(p->a.part, NULL, &p->b.addr, opt, NULL, &p->a.id) == 0);
    must(pair_until(p, p->a.resolved));
    pair_qp(&p->a, p->a.id, depth);
    must(ops->cm_connect(p->a.id, "hello", 5) == 0);
    must(pair_until(p, p->b.requested));
    pair_qp(&p->b, p->b.id, depth);
    must(ops->cm_accept(p->b.id, "welcome", 7) == 0);
    must(pair_until(p, p->a.up && p->b.up));
}

/* --- memory and requests ------------------------------------------------------------------------- */

struct mem {
    uint8_t *at;
    size_t len;
    struct exsi_dmr *mr;
};

static struct mem mem_new(struct pair *p, size_t len, uint32_t access)
{
    struct mem m = {.at = calloc(1, len), .len = len};
    must(m.at);
    struct exsi_mem range = {.addr = m.at, .len = len, .access = access, .memfd = -1};
    must(ops->reg_mr(p->dev, &range, &m.mr) == 0);
    return m;
}

static void mem_free(struct pair *p, struct mem *m)
{
    ops->dereg_mr(p->dev, m->mr);
    free(m->at);
}

__attribute__((unused)) static void mem_fill(struct mem *m, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < m->len; i++) {
        x = x * 1664525u + 1013904223u;
        m->at[i] = (uint8_t)(x >> 24);
    }
}

static struct exsi_send_wr wr_send(const struct mem *m, size_t off, uint32_t len, uint64_t wr_id)
{
    struct exsi_send_wr wr = {.wr_id = wr_id, .op = EXSI_WR_SEND, .flags = EXSI_WR_SIGNALED, .num_sge = 1};
    wr.sge[0] = (struct exsi_sge){m->at + off, len, m->mr};
    return wr;
}

static struct exsi_send_wr wr_write(const struct mem *m, size_t off, uint32_t len, const void *to, uint32_t rkey,
                                    uint64_t wr_id)
{
    struct exsi_send_wr wr = wr_send(m, off, len, wr_id);
    wr.op = EXSI_WR_WRITE;
    wr.raddr = (uint64_t)(uintptr_t)to;
    wr.rkey = rkey;
    return wr;
}

static int post(struct side *s, const struct exsi_send_wr *wr, int n)
{
    int rc = ops->post_send(s->qp, wr, n);
    if (rc == 0) ops->qp_flush(s->qp);
    return rc;
}

static void post_recv(struct side *s, const struct mem *m, size_t off, uint32_t len, uint64_t wr_id)
{
    struct exsi_recv_wr wr = {.wr_id = wr_id, .sge = {m->at + off, len, m->mr}};
    must(ops->post_recv(s->qp, &wr, 1) == 0);
}

#endif
