// SPDX-License-Identifier: MIT OR Apache-2.0
/* The device's share of a progress group: completion channels and queues at each adapter in use, the slots of the
 * queue pairs, and polling.  Nothing moves by itself here, so progress has nothing to do but to poll.
 *
 * Waking: while the group sleeps every completion queue is armed.  The channel's handler arms a queue that fired before
 * it is polled (progress polls after the descriptors), so nothing falls in between.
 * Invariant: cq->reserved >= what can still complete there, and cq->reserved <= cq->cap. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "device/verbs/verbs.h"

#define CQ_FIRST 1024u
#define CQ_MOST  32767u /* rxe's */
#define POLL     16

/* --- slots --------------------------------------------------------------------------------------------- */

static int slots_grow(struct verbs_part *part)
{
    uint32_t n = part->n_slots ? part->n_slots * 2 : 16;
    if (n > VERBS_SLOT_MAX) return -ENOMEM;
    struct verbs_qp **slots = realloc(part->slots, n * sizeof *slots);
    if (!slots) return -ENOMEM;
    part->slots = slots;
    uint16_t *generations = realloc(part->generations, n * sizeof *generations);
    if (!generations) return -ENOMEM;
    part->generations = generations;
    for (uint32_t i = part->n_slots; i < n; i++) {
        slots[i] = NULL;
        generations[i] = 0;
    }
    part->free_slot_hint = part->n_slots;
    part->n_slots = n;
    return 0;
}

int verbs_slot_take(struct verbs_part *part, struct verbs_qp *qp)
{
    uint32_t at = part->free_slot_hint;
    for (uint32_t i = 0; i < part->n_slots && part->slots[at % part->n_slots]; i++) at++;
    if (part->n_slots) at %= part->n_slots;
    if (!part->n_slots || part->slots[at]) {
        EXSI_TRY(slots_grow(part));
        at = part->free_slot_hint;
    }
    part->slots[at] = qp;
    part->free_slot_hint = at + 1;
    qp->wr_base = (uint64_t)(part->generations[at] & VERBS_GENERATION) << 48 | (uint64_t)at << 28;
    exsi_list_init(&qp->part_node);
    exsi_list_append(&part->qps, &qp->part_node);
    return 0;
}

void verbs_slot_drop(struct verbs_qp *qp)
{
    struct verbs_part *part = qp->part;
    uint32_t at = (uint32_t)(qp->wr_base >> 28) & (VERBS_SLOT_MAX - 1);
    if (exsi_list_empty(&qp->part_node)) return; /* it never had one */
    assert(part->slots[at] == qp);
    part->slots[at] = NULL;
    part->generations[at]++;
    part->free_slot_hint = at;
    exsi_list_unlink(&qp->part_node);
}

static struct verbs_qp *slot_find(const struct verbs_part *part, uint64_t wr_id)
{
    uint32_t at = (uint32_t)(wr_id >> 28) & (VERBS_SLOT_MAX - 1);
    if (at >= part->n_slots || !part->slots[at]) return NULL;
    return ((wr_id >> 48) & VERBS_GENERATION) == (part->generations[at] & VERBS_GENERATION) ? part->slots[at] : NULL;
}

/* --- completion queues ------------------------------------------------------------------------------------ */

static void cq_arm(struct verbs_cq *cq)
{
    if (cq->armed || ibv_req_notify_cq(cq->cq, 0) != 0) return;
    cq->armed = true;
}

static int cq_new(struct verbs_seat *seat, uint32_t n, struct verbs_cq **out)
{
    struct verbs_part *part = seat->part;
    uint32_t most = exsi_min_u32(CQ_MOST, (uint32_t)seat->adapter->attr.max_cqe), want = CQ_FIRST;
    exsi_list_for (other, &seat->cqs, struct verbs_cq, node) want = exsi_min_u32(other->cap, most / 2) * 2;
    want = exsi_min_u32(want < n ? n : want, most);
    if (want < n) return -ENOBUFS;
    struct verbs_cq *cq = calloc(1, sizeof *cq);
    if (!cq) return -ENOMEM;
    errno = 0;
    cq->cq = part->lib->ibv_create_cq(seat->adapter->ctx, (int)want, cq, seat->channel, 0);
    if (!cq->cq) {
        free(cq);
        return errno ? -errno : -ENOMEM;
    }
    cq->seat = seat;
    cq->cap = want;
    exsi_list_init(&cq->node);
    exsi_list_append(&seat->cqs, &cq->node);
    exsi_list_init(&cq->device_node);
    pthread_mutex_lock(&part->vdev->lock);
    exsi_list_append(&part->vdev->cqs, &cq->device_node);
    pthread_mutex_unlock(&part->vdev->lock);
    if (part->asleep) cq_arm(cq);
    *out = cq;
    return 0;
}

static void cq_free(struct verbs_cq *cq)
{
    struct verbs_part *part = cq->seat->part;
    pthread_mutex_lock(&part->vdev->lock);
    exsi_list_unlink(&cq->device_node);
    pthread_mutex_unlock(&part->vdev->lock);
    exsi_list_unlink(&cq->node);
    int rc = part->lib->ibv_destroy_cq(cq->cq);
    if (rc) exsi_log(part->log, EXSI_LOG_ERROR, 0, "verbs: a completion queue stays: %s", strerror(rc));
    free(cq);
}

int verbs_cq_get(struct verbs_seat *seat, uint32_t n, struct verbs_cq **out)
{
    struct verbs_cq *cq = NULL;
    exsi_list_for (at, &seat->cqs, struct verbs_cq, node) {
        if (at->broken || at->cap - at->reserved < n) continue;
        cq = at;
        break;
    }
    if (!cq) EXSI_TRY(cq_new(seat, n, &cq));
    cq->reserved += n;
    *out = cq;
    return 0;
}

void verbs_cq_put(struct verbs_cq *cq, uint32_t n)
{
    assert(cq->reserved >= cq->returned + n);
    cq->returned += n;
}

static void channel_ready(struct exsi_watch *w, uint32_t events)
{
    struct verbs_seat *seat = exsi_container_of(w, struct verbs_seat, watch);
    const struct verbs_lib *lib = seat->part->lib;
    struct ibv_cq *ibcq;
    void *context;
    (void)events;
    while (lib->ibv_get_cq_event(seat->channel, &ibcq, &context) == 0) {
        struct verbs_cq *cq = context;
        /* At once: destroying the queue would wait for it. */
        lib->ibv_ack_cq_events(ibcq, 1);
        cq->armed = false;
        if (seat->part->asleep) cq_arm(cq);
    }
}

/* --- seats -------------------------------------------------------------------------------------------------- */

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

int verbs_seat_open(struct verbs_part *part, struct verbs_adapter *adapter, struct verbs_seat **out)
{
    struct verbs_seat *seat = &part->seats[adapter->index];
    *out = seat;
    if (seat->channel) return 0;
    seat->part = part;
    seat->adapter = adapter;
    exsi_list_init(&seat->cqs);
    errno = 0;
    seat->channel = part->lib->ibv_create_comp_channel(adapter->ctx);
    if (!seat->channel) return errno ? -errno : -ENOMEM;
    seat->watch.fn = channel_ready;
    int rc = set_nonblocking(seat->channel->fd);
    if (rc == 0) rc = exsi_poller_add(part->poller, &seat->watch, seat->channel->fd, EPOLLIN);
    if (rc < 0) goto fail_channel;
    rc = set_nonblocking(adapter->ctx->async_fd);
    if (rc == 0) rc = verbs_async_seat_open(seat);
    if (rc < 0) goto fail_watch;
    return 0;

fail_watch:
    exsi_poller_del(part->poller, &seat->watch);
fail_channel:
    part->lib->ibv_destroy_comp_channel(seat->channel);
    seat->channel = NULL;
    return rc;
}

/* Deaf from now on; what is left goes with the last queue pair. */
static void seat_close(struct verbs_seat *seat)
{
    if (!seat->channel) return;
    verbs_async_seat_close(seat);
    exsi_poller_del(seat->part->poller, &seat->watch);
}

static void seat_free(struct verbs_seat *seat)
{
    if (!seat->channel) return;
    exsi_list_for_safe (cq, &seat->cqs, struct verbs_cq, node) cq_free(cq);
    seat->part->lib->ibv_destroy_comp_channel(seat->channel);
}

/* --- the part ------------------------------------------------------------------------------------------------- */

int verbs_part_open(struct exsi_device *dev, struct exsi_poller *poller, struct exsi_part **out)
{
    struct verbs_device *vdev = verbs_device_of(dev);
    struct verbs_part *part = calloc(1, sizeof *part);
    if (!part) return -ENOMEM;
    part->part.dev = dev;
    part->vdev = vdev;
    part->lib = &vdev->lib;
    part->log = vdev->log;
    part->poller = poller;
    exsi_list_init(&part->qps);
    exsi_list_init(&part->ids);
    exsi_list_init(&part->events);
    exsi_list_init(&part->downs);
    exsi_list_init(&part->stricken);
    exsi_list_init(&part->device_node);
    int rc = verbs_async_part_open(part);
    if (rc < 0) goto fail_async;
    rc = verbs_cm_part_open(part);
    if (rc < 0) goto fail_cm;
    pthread_mutex_lock(&vdev->lock);
    exsi_list_append(&vdev->parts, &part->device_node);
    pthread_mutex_unlock(&vdev->lock);
    *out = &part->part;
    return 0;

fail_cm:
    verbs_async_part_close(part);
fail_async:
    free(part);
    return rc;
}

void verbs_part_close(struct exsi_part *epart)
{
    struct verbs_part *part = verbs_part_of(epart);
    pthread_mutex_lock(&part->vdev->lock);
    exsi_list_unlink(&part->device_node);
    pthread_mutex_unlock(&part->vdev->lock);
    while (!exsi_list_empty(&part->qps)) verbs_qp_destroy(&exsi_list_first(&part->qps, struct verbs_qp, part_node)->qp);
    verbs_cm_part_close(part);
    for (int i = 0; i < VERBS_MAX_ADAPTERS; i++) seat_close(&part->seats[i]);
    verbs_async_part_close(part);
    verbs_dial_linger(part);
}

void verbs_part_free(struct verbs_part *part)
{
    verbs_cm_part_free(part);
    for (int i = 0; i < VERBS_MAX_ADAPTERS; i++) seat_free(&part->seats[i]);
    free(part->slots);
    free(part->generations);
    free(part);
}

int verbs_part_progress(struct exsi_part *part)
{
    (void)part;
    return 0;
}

void verbs_part_doorbell(struct exsi_part *epart, bool asleep)
{
    struct verbs_part *part = verbs_part_of(epart);
    part->asleep = asleep;
    if (!asleep) return;
    for (int i = 0; i < VERBS_MAX_ADAPTERS; i++) {
        if (!part->seats[i].channel) continue;
        exsi_list_for (cq, &part->seats[i].cqs, struct verbs_cq, node) cq_arm(cq);
    }
}

/* --- polling ---------------------------------------------------------------------------------------------------- */

int verbs_status_errno(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_SUCCESS: return 0;
    case IBV_WC_WR_FLUSH_ERR: return ECANCELED;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR: return ETIMEDOUT;
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_LOC_LEN_ERR: return EPROTO;
    case IBV_WC_LOC_PROT_ERR: return EFAULT;
    default: return EIO;
    }
}

static int poll_one(struct verbs_cq *cq, struct exsi_wc *wc, int max)
{
    struct verbs_part *part = cq->seat->part;
    struct ibv_wc in[POLL];
    int n = 0;
    while (n < max) {
        int want = max - n < POLL ? max - n : POLL;
        int got = ibv_poll_cq(cq->cq, want, in);
        for (int i = 0; i < got; i++) {
            struct verbs_qp *qp = slot_find(part, in[i].wr_id);
            if (qp && verbs_qp_complete(qp, &in[i], &wc[n])) n++;
        }
        if (got == want) continue;
        /* Seen empty: what queue pairs of the past left behind is out. */
        cq->reserved -= cq->returned;
        cq->returned = 0;
        break;
    }
    return n;
}

int verbs_poll_cq(struct exsi_part *epart, struct exsi_wc *wc, int max)
{
    struct verbs_part *part = verbs_part_of(epart);
    int n = 0;
    for (int i = 0; i < VERBS_MAX_ADAPTERS; i++) {
        if (!part->seats[i].channel) continue;
        exsi_list_for (cq, &part->seats[i].cqs, struct verbs_cq, node) n += poll_one(cq, wc + n, max - n);
    }
    if (n < max) n += verbs_qp_poll_down(part, wc + n, max - n);
    return n;
}
