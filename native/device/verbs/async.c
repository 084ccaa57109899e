// SPDX-License-Identifier: MIT OR Apache-2.0
/* What an adapter tells beside the data: a queue pair or queue that failed, a port that goes or comes, an address that
 * is gone, the device itself gone.  Every part watches the descriptor of every adapter that it uses; whoever reads an
 * event notes it for all parts concerned and wakes them, and each part does its own share under its group's lock.
 *
 * A link that flaps must not end connections that the transport would carry over it: a port has PORT_GRACE to come
 * back. Invariant: an event is acknowledged after it was noted, so that the queue pair it names is there until then. */
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "device/verbs/verbs.h"

#define PORT_GRACE_NS 2000000000u

static void wake(struct verbs_part *part)
{
    uint64_t one = 1;
    /* Full means that it is awake. */
    ssize_t n = write(part->wake_fd, &one, sizeof one);
    (void)n;
}

/* --- reading: under vdev->lock ---------------------------------------------------------------------------- */

static void tell_all(struct verbs_adapter *a, uint32_t news)
{
    exsi_list_for (part, &a->vdev->parts, struct verbs_part, device_node) {
        part->news[a->index] |= news;
        wake(part);
    }
}

static void qp_event(struct verbs_device *vdev, const struct ibv_async_event *ev)
{
    exsi_list_for (qp, &vdev->qps, struct verbs_qp, device_node) {
        if (qp->ibqp != ev->element.qp || qp->stricken) continue;
        /* QP_FATAL is the device's failure, or on iWARP that TCP lost the connection under a request; the
         * others say that the peer broke the rules. */
        qp->stricken = ev->event_type != IBV_EVENT_QP_FATAL ? EPROTO : qp->adapter->iwarp ? ECONNRESET : EIO;
        exsi_list_append(&qp->part->stricken, &qp->stricken_node);
        wake(qp->part);
        return;
    }
}

static void cq_event(struct verbs_adapter *a, const struct ibv_async_event *ev)
{
    exsi_list_for (cq, &a->vdev->cqs, struct verbs_cq, device_node) {
        if (cq->cq != ev->element.cq) continue;
        cq->broken = true;
        tell_all(a, VERBS_NEWS_CQ);
    }
}

static uint32_t port_bit(int port)
{
    return 1u << (port < 31 ? port : 31);
}

static void port_event(struct verbs_adapter *a, const struct ibv_async_event *ev)
{
    uint32_t bit = port_bit(ev->element.port_num);
    if (ev->event_type == IBV_EVENT_PORT_ERR)
        atomic_fetch_or_explicit(&a->ports_down, bit, memory_order_relaxed);
    else
        atomic_fetch_and_explicit(&a->ports_down, ~bit, memory_order_relaxed);
    tell_all(a, VERBS_NEWS_PORTS);
}

static void note(struct verbs_adapter *a, const struct ibv_async_event *ev)
{
    const char *text = a->vdev->lib.ibv_event_type_str(ev->event_type);
    struct exsi_log *log = a->vdev->log;
    switch (ev->event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
        exsi_log(log, EXSI_LOG_INFO, 0, "verbs: %s: %s, queue pair 0x%x", a->name, text, ev->element.qp->qp_num);
        qp_event(a->vdev, ev);
        break;
    case IBV_EVENT_CQ_ERR:
        exsi_log(log, EXSI_LOG_ERROR, 0, "verbs: %s: %s", a->name, text);
        cq_event(a, ev);
        break;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
        exsi_log(log, EXSI_LOG_WARNING, 0, "verbs: %s: %s, port %d", a->name, text, ev->element.port_num);
        port_event(a, ev);
        break;
    case IBV_EVENT_GID_CHANGE:
        exsi_log(log, EXSI_LOG_INFO, 0, "verbs: %s: %s, port %d", a->name, text, ev->element.port_num);
        tell_all(a, VERBS_NEWS_GID);
        break;
    case IBV_EVENT_DEVICE_FATAL:
        exsi_log(log, EXSI_LOG_ERROR, 0, "verbs: %s: %s", a->name, text);
        atomic_store_explicit(&a->gone, true, memory_order_relaxed);
        tell_all(a, VERBS_NEWS_GONE);
        break;
    default: exsi_log(log, EXSI_LOG_DEBUG, 0, "verbs: %s: %s", a->name, text);
    }
}

static void adapter_ready(struct exsi_watch *w, uint32_t events)
{
    struct verbs_seat *seat = exsi_container_of(w, struct verbs_seat, async_watch);
    struct verbs_adapter *a = seat->adapter;
    struct ibv_async_event ev;
    (void)events;
    errno = 0;
    while (a->vdev->lib.ibv_get_async_event(a->ctx, &ev) == 0) {
        pthread_mutex_lock(&a->vdev->lock);
        note(a, &ev);
        pthread_mutex_unlock(&a->vdev->lock);
        a->vdev->lib.ibv_ack_async_event(&ev);
        errno = 0;
    }
    /* Of a device that is gone the descriptor stays readable for ever. */
    if (errno != EAGAIN && errno != EINTR) exsi_poller_del(seat->part->poller, w);
}

/* --- doing: under the group's lock ------------------------------------------------------------------------ */

static void strike(struct verbs_part *part)
{
    for (;;) {
        pthread_mutex_lock(&part->vdev->lock);
        struct verbs_qp *qp = exsi_list_first(&part->stricken, struct verbs_qp, stricken_node);
        if (qp) exsi_list_unlink(&qp->stricken_node);
        pthread_mutex_unlock(&part->vdev->lock);
        if (!qp) return;
        verbs_qp_fail(qp, qp->stricken, "%s reports that the queue pair failed%s", qp->adapter->name,
                      qp->stricken == EPROTO ? ": the peer asked for what it may not" : "");
    }
}

static bool port_is_down(const struct verbs_qp *qp)
{
    return atomic_load_explicit(&qp->adapter->ports_down, memory_order_relaxed) & port_bit(qp->port);
}

static void grace_over(struct exsi_timer *t)
{
    struct verbs_seat *seat = exsi_container_of(t, struct verbs_seat, down_timer);
    exsi_list_for (qp, &seat->part->qps, struct verbs_qp, part_node)
        if (qp->adapter == seat->adapter && port_is_down(qp))
            verbs_qp_fail(qp, ENETDOWN, "port %u of %s is down", qp->port, seat->adapter->name);
}

static void ports_changed(struct verbs_seat *seat)
{
    struct verbs_part *part = seat->part;
    if (!atomic_load_explicit(&seat->adapter->ports_down, memory_order_relaxed)) {
        exsi_timer_stop(part->poller, &seat->down_timer);
    } else if (!exsi_timer_running(&seat->down_timer)) {
        seat->down_timer.fn = grace_over;
        /* No memory for a timer: then without grace. */
        if (exsi_timer_start(part->poller, &seat->down_timer, PORT_GRACE_NS) < 0) grace_over(&seat->down_timer);
    }
}

static bool lost_its_gid(const struct verbs_qp *qp)
{
    union ibv_gid now;
    if (!qp->gid_known) return false;
    int rc = qp->part->lib->ibv_query_gid(qp->adapter->ctx, qp->port, qp->gid_index, &now);
    return rc != 0 || memcmp(&now, &qp->gid, sizeof now) != 0;
}

static void do_news(struct verbs_seat *seat, uint32_t news)
{
    struct verbs_part *part = seat->part;
    const char *name = seat->adapter->name;
    if (news & VERBS_NEWS_PORTS) ports_changed(seat);
    exsi_list_for (qp, &part->qps, struct verbs_qp, part_node) {
        if (qp->adapter != seat->adapter) continue;
        if (news & VERBS_NEWS_GONE) verbs_qp_fail(qp, ENODEV, "%s was removed or failed", name);
        if (news & VERBS_NEWS_CQ && qp->cq->broken) verbs_qp_fail(qp, EIO, "a completion queue of %s failed", name);
        if (news & VERBS_NEWS_GID && lost_its_gid(qp))
            verbs_qp_fail(qp, EADDRNOTAVAIL, "the address of this end is gone from %s", name);
    }
}

static void woken(struct exsi_watch *w, uint32_t events)
{
    struct verbs_part *part = exsi_container_of(w, struct verbs_part, wake);
    uint32_t news[VERBS_MAX_ADAPTERS];
    uint64_t count;
    (void)events;
    ssize_t n = read(part->wake_fd, &count, sizeof count);
    (void)n;
    pthread_mutex_lock(&part->vdev->lock);
    memcpy(news, part->news, sizeof news);
    memset(part->news, 0, sizeof part->news);
    pthread_mutex_unlock(&part->vdev->lock);
    for (int i = 0; i < VERBS_MAX_ADAPTERS; i++)
        if (news[i] && part->seats[i].channel) do_news(&part->seats[i], news[i]);
    strike(part);
}

/* --- coming and going -------------------------------------------------------------------------------------- */

int verbs_async_part_open(struct verbs_part *part)
{
    part->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (part->wake_fd < 0) return -errno;
    part->wake.fn = woken;
    int rc = exsi_poller_add(part->poller, &part->wake, part->wake_fd, EPOLLIN);
    if (rc < 0) close(part->wake_fd);
    return rc;
}

void verbs_async_part_close(struct verbs_part *part)
{
    exsi_poller_del(part->poller, &part->wake);
    close(part->wake_fd);
}

int verbs_async_seat_open(struct verbs_seat *seat)
{
    seat->async_watch.fn = adapter_ready;
    return exsi_poller_add(seat->part->poller, &seat->async_watch, seat->adapter->ctx->async_fd, EPOLLIN);
}

void verbs_async_seat_close(struct verbs_seat *seat)
{
    exsi_timer_stop(seat->part->poller, &seat->down_timer);
    exsi_poller_del(seat->part->poller, &seat->async_watch);
}

void verbs_async_watch(struct verbs_qp *qp)
{
    exsi_list_init(&qp->device_node);
    exsi_list_init(&qp->stricken_node);
    pthread_mutex_lock(&qp->part->vdev->lock);
    exsi_list_append(&qp->part->vdev->qps, &qp->device_node);
    pthread_mutex_unlock(&qp->part->vdev->lock);
}

void verbs_async_forget(struct verbs_qp *qp)
{
    pthread_mutex_lock(&qp->part->vdev->lock);
    exsi_list_unlink(&qp->device_node);
    exsi_list_unlink(&qp->stricken_node);
    pthread_mutex_unlock(&qp->part->vdev->lock);
}
