// SPDX-License-Identifier: MIT OR Apache-2.0
/* A libibverbs that only remembers, and a verbs device with one part over it. */
#ifndef FAKE_VERBS_H
#define FAKE_VERBS_H

#include <fcntl.h>
#include <semaphore.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "device/verbs/verbs.h"
#include "tap.h"

/* --- a library that only remembers ------------------------------------------------------------------------ */

static struct {
    int mrs, mws, cqs, pds;    /* alive */
    int last_access, fail_reg; /* of ibv_reg_mr */
    uint32_t next_key;
    struct ibv_send_wr posted[64];
    int n_posted, post_calls;
    struct ibv_wc done[64];
    int n_done;
    int notified;
    struct ibv_cq *fired; /* what ibv_get_cq_event will give once */
    struct ibv_async_event events[8];
    int n_events, acked;
    union ibv_gid gid;
    struct ibv_qp_attr attr; /* of the last ibv_modify_qp */
    int attr_mask;
    int channels;        /* rdma_cm's, alive */
    atomic_int qps, ids; /* the same; threads end them */
    sem_t kernel;        /* rdma_destroy_id waits for it */
} fake;

static struct ibv_mr *fake_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
    if (fake.fail_reg) {
        errno = fake.fail_reg;
        return NULL;
    }
    struct ibv_mr *mr = calloc(1, sizeof *mr);
    must(mr);
    *mr = (struct ibv_mr){.pd = pd, .addr = addr, .length = len, .lkey = ++fake.next_key, .rkey = fake.next_key << 8};
    fake.last_access = access;
    fake.mrs++;
    return mr;
}

static int fake_dereg_mr(struct ibv_mr *mr)
{
    fake.mrs--;
    free(mr);
    return 0;
}

static struct ibv_mw *fake_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type)
{
    struct ibv_mw *mw = calloc(1, sizeof *mw);
    must(mw);
    *mw = (struct ibv_mw){.context = pd->context, .pd = pd, .type = type, .rkey = ++fake.next_key << 8 | 0xfe};
    fake.mws++;
    return mw;
}

static int fake_dealloc_mw(struct ibv_mw *mw)
{
    fake.mws--;
    free(mw);
    return 0;
}

static struct ibv_pd *fake_alloc_pd(struct ibv_context *ctx)
{
    struct ibv_pd *pd = calloc(1, sizeof *pd);
    must(pd);
    pd->context = ctx;
    fake.pds++;
    return pd;
}

static int fake_dealloc_pd(struct ibv_pd *pd)
{
    fake.pds--;
    free(pd);
    return 0;
}

static struct ibv_comp_channel *fake_create_channel(struct ibv_context *ctx)
{
    struct ibv_comp_channel *channel = calloc(1, sizeof *channel);
    int fds[2];
    must(channel && pipe(fds) == 0);
    channel->context = ctx;
    channel->fd = fds[0];
    channel->refcnt = fds[1]; /* where a test writes to make it readable */
    return channel;
}

static int fake_destroy_channel(struct ibv_comp_channel *channel)
{
    close(channel->fd);
    close(channel->refcnt);
    free(channel);
    return 0;
}

static struct ibv_cq *fake_create_cq(struct ibv_context *ctx, int cqe, void *context, struct ibv_comp_channel *channel,
                                     int vector)
{
    struct ibv_cq *cq = calloc(1, sizeof *cq);
    must(cq && vector == 0);
    cq->context = ctx;
    cq->cqe = cqe;
    cq->cq_context = context;
    cq->channel = channel;
    fake.cqs++;
    return cq;
}

static int fake_destroy_cq(struct ibv_cq *cq)
{
    fake.cqs--;
    free(cq);
    return 0;
}

static int fake_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **context)
{
    char byte;
    if (read(channel->fd, &byte, 1) != 1) return -1;
    *cq = fake.fired;
    *context = fake.fired->cq_context;
    return 0;
}

static void fake_ack_cq_events(struct ibv_cq *cq, unsigned int n)
{
    (void)cq;
    fake.acked += (int)n;
}

static int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    (void)qp;
    (void)bad;
    fake.post_calls++;
    for (; wr; wr = wr->next) {
        must(fake.n_posted < 64);
        fake.posted[fake.n_posted++] = *wr;
    }
    return 0;
}

static int fake_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
    (void)cq;
    int got = fake.n_done < n ? fake.n_done : n;
    memcpy(wc, fake.done, (size_t)got * sizeof *wc);
    fake.n_done -= got;
    memmove(fake.done, fake.done + got, (size_t)fake.n_done * sizeof *wc);
    return got;
}

static int fake_notify(struct ibv_cq *cq, int solicited)
{
    (void)cq;
    must(!solicited);
    fake.notified++;
    return 0;
}

static int fake_get_async_event(struct ibv_context *ctx, struct ibv_async_event *ev)
{
    char byte;
    if (!fake.n_events || read(ctx->async_fd, &byte, 1) != 1) {
        errno = EAGAIN;
        return -1;
    }
    *ev = fake.events[0];
    memmove(fake.events, fake.events + 1, (size_t)--fake.n_events * sizeof *ev);
    return 0;
}

static void fake_ack_async_event(struct ibv_async_event *ev)
{
    (void)ev;
    fake.acked++;
}

static const char *fake_event_str(enum ibv_event_type type)
{
    (void)type;
    return "an event";
}

static int fake_query_gid(struct ibv_context *ctx, uint8_t port, int index, union ibv_gid *gid)
{
    (void)ctx;
    must(port == 1 && index == 3);
    *gid = fake.gid;
    return 0;
}

static int fake_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    fake.attr = *attr;
    fake.attr_mask = mask;
    qp->state = attr->qp_state;
    return 0;
}

/* The one that the test brings. */
static struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *init)
{
    (void)pd;
    return init->qp_context;
}

static ssize_t fake_query_gid_table(struct ibv_context *ctx, struct ibv_gid_entry *entries, size_t max, uint32_t flags,
                                    size_t size)
{
    (void)ctx, (void)flags;
    must(max > 0 && size == sizeof *entries);
    entries[0] = (struct ibv_gid_entry){.gid = fake.gid, .port_num = 1, .gid_type = IBV_GID_TYPE_ROCE_V2};
    return 1;
}

static int fake_destroy_qp(struct ibv_qp *qp)
{
    (void)qp;
    fake.qps--;
    return 0;
}

static struct rdma_event_channel *fake_create_event_channel(void)
{
    struct rdma_event_channel *channel = calloc(1, sizeof *channel);
    must(channel);
    channel->fd = eventfd(0, EFD_NONBLOCK);
    fake.channels++;
    return channel;
}

static void fake_destroy_event_channel(struct rdma_event_channel *channel)
{
    close(channel->fd);
    free(channel);
    fake.channels--;
}

static int fake_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
                          enum rdma_port_space space)
{
    *id = calloc(1, sizeof **id);
    must(*id);
    (*id)->channel = channel;
    (*id)->context = context;
    (*id)->ps = space;
    atomic_fetch_add(&fake.ids, 1);
    return 0;
}

static int fake_resolve_addr(struct rdma_cm_id *id, struct sockaddr *from, struct sockaddr *to, int timeout_ms)
{
    (void)id, (void)from, (void)to, (void)timeout_ms;
    return 0;
}

static int fake_destroy_id(struct rdma_cm_id *id)
{
    sem_wait(&fake.kernel);
    free(id);
    atomic_fetch_sub(&fake.ids, 1);
    return 0;
}

/* --- a device with one part ---------------------------------------------------------------------------------- */

struct fixture {
    struct verbs_device vdev;
    struct verbs_adapter adapters[2];
    struct ibv_context contexts[2];
    struct ibv_pd pds[2];
    struct exsi_log log;
    struct exsi_poller poller;
    struct verbs_part part;
    int async_write; /* makes the first adapter's events readable */
};

static void fill_lib(struct verbs_lib *lib)
{
    lib->ibv_reg_mr = fake_reg_mr;
    lib->ibv_dereg_mr = fake_dereg_mr;
    lib->ibv_alloc_pd = fake_alloc_pd;
    lib->ibv_dealloc_pd = fake_dealloc_pd;
    lib->ibv_create_comp_channel = fake_create_channel;
    lib->ibv_destroy_comp_channel = fake_destroy_channel;
    lib->ibv_create_cq = fake_create_cq;
    lib->ibv_destroy_cq = fake_destroy_cq;
    lib->ibv_get_cq_event = fake_get_cq_event;
    lib->ibv_ack_cq_events = fake_ack_cq_events;
    lib->ibv_get_async_event = fake_get_async_event;
    lib->ibv_ack_async_event = fake_ack_async_event;
    lib->ibv_event_type_str = fake_event_str;
    lib->ibv_query_gid = fake_query_gid;
    lib->ibv_modify_qp = fake_modify_qp;
    lib->ibv_create_qp = fake_create_qp;
    lib->_ibv_query_gid_table = fake_query_gid_table;
    lib->ibv_destroy_qp = fake_destroy_qp;
    lib->rdma_create_event_channel = fake_create_event_channel;
    lib->rdma_destroy_event_channel = fake_destroy_event_channel;
    lib->rdma_create_id = fake_create_id;
    lib->rdma_resolve_addr = fake_resolve_addr;
    lib->rdma_destroy_id = fake_destroy_id;
}

static void fill_adapter(struct fixture *f, int i, bool windows)
{
    struct verbs_adapter *a = &f->adapters[i];
    f->contexts[i].ops.alloc_mw = fake_alloc_mw;
    f->contexts[i].ops.dealloc_mw = fake_dealloc_mw;
    f->contexts[i].ops.post_send = fake_post_send;
    f->contexts[i].ops.poll_cq = fake_poll_cq;
    f->contexts[i].ops.req_notify_cq = fake_notify;
    f->pds[i].context = &f->contexts[i];
    *a = (struct verbs_adapter){
        .vdev = &f->vdev,
        .ctx = &f->contexts[i],
        .domain = {.pd = &f->pds[i], .adapter = a, .slot = i},
        .attr = {.max_cqe = 4096, .max_qp_wr = 1024},
        .name = "fake",
        .index = i,
        .windows = windows,
    };
    exsi_list_init(&a->domain.regions);
    f->vdev.adapters[i] = a;
    atomic_store(&f->vdev.n_adapters, i + 1);
}

static struct fixture *set_up(bool windows)
{
    struct fixture *f = calloc(1, sizeof *f);
    int fds[2];
    must(f && pipe2(fds, O_NONBLOCK) == 0);
    memset(&fake, 0, sizeof fake);
    fill_lib(&f->vdev.lib);
    exsi_log_init(&f->log);
    f->vdev.log = &f->log;
    pthread_mutex_init(&f->vdev.lock, NULL);
    pthread_cond_init(&f->vdev.left, NULL);
    must(sem_init(&fake.kernel, 0, 0) == 0);
    exsi_list_init(&f->vdev.parts);
    exsi_list_init(&f->vdev.qps);
    exsi_list_init(&f->vdev.cqs);
    fill_adapter(f, 0, windows);
    f->contexts[0].async_fd = fds[0];
    f->async_write = fds[1];
    must(exsi_poller_init(&f->poller) == 0);

    struct verbs_part *part = &f->part;
    part->vdev = &f->vdev;
    part->lib = &f->vdev.lib;
    part->log = &f->log;
    part->poller = &f->poller;
    exsi_list_init(&part->qps);
    exsi_list_init(&part->downs);
    exsi_list_init(&part->stricken);
    exsi_list_init(&part->device_node);
    exsi_list_append(&f->vdev.parts, &part->device_node);
    must(verbs_async_part_open(part) == 0);
    return f;
}

/* The part's descriptors were opened by hand; its adapters belong to the fixture. */
static void tear_down(struct fixture *f)
{
    struct verbs_seat *seat = &f->part.seats[0];
    if (seat->channel) {
        verbs_async_seat_close(seat);
        exsi_poller_del(&f->poller, &seat->watch);
        exsi_list_for_safe (cq, &seat->cqs, struct verbs_cq, node) {
            fake_destroy_cq(cq->cq);
            free(cq);
        }
        fake_destroy_channel(seat->channel);
    }
    verbs_async_part_close(&f->part);
    exsi_poller_fini(&f->poller);
    close(f->async_write);
    close(f->contexts[0].async_fd);
    free(f->part.slots);
    free(f->part.generations);
    sem_destroy(&fake.kernel);
    pthread_cond_destroy(&f->vdev.left);
    pthread_mutex_destroy(&f->vdev.lock);
    exsi_log_fini(&f->log);
    free(f);
}

struct fake_qp {
    struct verbs_qp qp;
    struct ibv_qp ib;
    struct verbs_sent sent[64];
    struct verbs_waiting waiting[VERBS_WAITING];
};

static void qp_init(struct fixture *f, struct fake_qp *q, uint32_t keys)
{
    memset(q, 0, sizeof *q);
    q->ib.context = &f->contexts[0];
    q->qp.part = &f->part;
    q->qp.adapter = &f->adapters[0];
    q->qp.domain = &f->adapters[0].domain;
    q->qp.ibqp = &q->ib;
    q->qp.sent = q->sent;
    q->qp.sent_cap = 64;
    q->qp.waiting = q->waiting;
    q->qp.attr.send_wr = 48;
    q->qp.port = 1;
    q->qp.up = true;
    exsi_list_init(&q->qp.part_node);
    exsi_list_init(&q->qp.down_node);
    exsi_list_init(&q->qp.stricken_node);
    fake.qps++;
    must(verbs_keys_init(&q->qp.keys, keys) == 0);
    must(verbs_slot_take(&f->part, &q->qp) == 0);
    verbs_async_watch(&q->qp);
}

static void qp_fini(struct fake_qp *q)
{
    verbs_async_forget(&q->qp);
    verbs_slot_drop(&q->qp);
    verbs_keys_fini(&q->qp);
}

static struct exsi_mem memory(void *addr, size_t len, uint32_t access)
{
    return (struct exsi_mem){.addr = addr, .len = len, .access = access, .memfd = -1};
}

#endif
