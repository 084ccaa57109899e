// SPDX-License-Identifier: MIT OR Apache-2.0
/* What librdmacm says, one part's event channel.
 *
 * Every event is copied and acknowledged at once, before anything is done about it: an id can only be destroyed
 * when all its events were, and what follows from one may destroy it.
 * Invariant: an event whose id is gone is never seen, since rdma_destroy_id takes them back. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "device/verbs/cm.h"

enum {
    EVENTS_PER_CALL = 64,
    MAX_REQUESTS = 256,    /* strangers that wait to be announced, per part */
    REJECT_CONSUMER = 28,  /* IBTA 12.6.7.2: the peer's program refuses */
    REJECT_SERVICE_ID = 8, /* nobody listens */
    REJECT_STALE = 10,     /* the peer still has a connection of this queue pair's name */
};

/* What is kept of an event. */
struct news {
    enum rdma_cm_event_type type;
    int status;
    uint8_t reads_in, reads_out;
    struct verbs_private private_data;
};

static int positive(int status)
{
    return status < 0 ? -status : status ? status : EIO;
}

void verbs_id_unreachable(struct verbs_id *id, int error)
{
    switch (error) {
    case ENODEV: verbs_id_fail(id, ENETUNREACH, NULL, "no RDMA device has a way to that address"); return;
    case ECONNREFUSED: verbs_id_fail(id, ECONNREFUSED, NULL, "nobody listens there"); return;
    default: verbs_id_fail(id, error, NULL, "%s", strerror(error)); return;
    }
}

/* --- the active side ------------------------------------------------------------------------------------------- */

static void address_resolved(struct verbs_id *id)
{
    int rc = verbs_adapter_of(id->part->vdev, id->cm->verbs, &id->adapter);
    if (rc < 0) {
        verbs_id_unreachable(id, -rc);
        return;
    }
    id->state = VERBS_ID_ROUTE;
    int bound_ms = (int)exsi_min_u64(2u * (uint64_t)id->opt.connect_timeout_ms + 1000, INT32_MAX);
    if (id->part->lib->rdma_resolve_route(id->cm, bound_ms) < 0) verbs_id_unreachable(id, errno);
}

static void route_resolved(struct verbs_id *id)
{
    id->state = VERBS_ID_RESOLVED;
    verbs_id_event(id, EXSI_CM_RESOLVED, NULL);
}

static void refused(struct verbs_id *id, const struct news *n)
{
    if (n->status == REJECT_SERVICE_ID || (n->status < 0 && !n->private_data.len))
        verbs_id_unreachable(id, n->status < 0 ? -n->status : ECONNREFUSED);
    else if (n->status == REJECT_CONSUMER || n->status <= 0)
        verbs_id_fail(id, ECONNREFUSED, &n->private_data, "the peer refused the connection");
    else if (n->status == REJECT_STALE)
        verbs_id_fail(id, ECONNREFUSED, NULL, "the peer takes the connection for an old one: try again");
    else
        verbs_id_fail(id, ECONNREFUSED, NULL, "the peer refused the connection, reason %d", n->status);
}

/* --- the passive side ----------------------------------------------------------------------------------------------
 */

static int count_strangers(const struct verbs_part *part)
{
    int n = 0;
    exsi_list_for (id, &part->events, struct verbs_id, event_node) n += id->parent != NULL;
    return n;
}

static void requested(struct verbs_part *part, struct verbs_id *listener, struct rdma_cm_id *cm, const struct news *n)
{
    struct verbs_id *id = NULL;
    if (count_strangers(part) < MAX_REQUESTS) id = verbs_id_new(part, &listener->opt, listener->id.user);
    if (!id) {
        exsi_log(part->log, EXSI_LOG_WARNING, 0, "a connection request was dropped: too many");
        (void)part->lib->rdma_reject(cm, NULL, 0);
        (void)part->lib->rdma_destroy_id(cm);
        return;
    }
    id->cm = cm;
    cm->context = id;
    id->state = VERBS_ID_REQUESTED;
    id->parent = listener;
    id->reads_in = n->reads_in;
    id->reads_out = n->reads_out;
    int rc = verbs_adapter_of(part->vdev, cm->verbs, &id->adapter);
    if (rc < 0)
        verbs_id_fail(id, -rc, NULL, "a connection request came over an adapter that cannot be used");
    else
        verbs_id_event(id, EXSI_CM_REQUEST, &n->private_data);
}

/* --- both
 * ---------------------------------------------------------------------------------------------------------------- */

static void established(struct verbs_id *id, const struct news *n)
{
    verbs_dial_over(id);
    if (id->state != VERBS_ID_CALLING && id->state != VERBS_ID_ANSWERING) return; /* too late, or given up here */
    exsi_timer_stop(id->part->poller, &id->timer);
    id->state = VERBS_ID_UP;
    verbs_qp_up(id->qp);
    verbs_id_event(id, EXSI_CM_ESTABLISHED, &n->private_data);
}

/* The set-up failed: whatever the state was. */
static void not_established(struct verbs_id *id, const struct news *n)
{
    verbs_dial_over(id);
    if (id->state == VERBS_ID_DEAD) return;
    if (id->state == VERBS_ID_UP)
        verbs_qp_fail(id->qp, positive(n->status), "the connection could not be set up: %s",
                      strerror(positive(n->status)));
    else if (n->type == RDMA_CM_EVENT_REJECTED)
        refused(id, n);
    else
        verbs_id_unreachable(id, positive(n->status));
}

static void disconnected(struct verbs_id *id, const struct news *n)
{
    if (id->state == VERBS_ID_UP && id->qp) {
        verbs_qp_down(id->qp, 0);
        return;
    }
    /* Between our answer and its word. */
    if (id->state == VERBS_ID_ANSWERING || id->state == VERBS_ID_CALLING) {
        struct news gone = *n;
        gone.status = -ECONNRESET;
        not_established(id, &gone);
    }
}

static void removed(struct verbs_id *id)
{
    if (id->state == VERBS_ID_UP && id->qp)
        verbs_qp_fail(id->qp, ENODEV, "the RDMA device was removed");
    else if (id->state != VERBS_ID_DEAD && id->state != VERBS_ID_LISTENING)
        verbs_id_fail(id, ENODEV, NULL, "the RDMA device was removed");
}

static void dispatch(struct verbs_id *id, const struct news *n)
{
    switch (n->type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        if (id->state == VERBS_ID_ADDRESS) address_resolved(id);
        return;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        if (id->state == VERBS_ID_ROUTE) route_resolved(id);
        return;
    case RDMA_CM_EVENT_ESTABLISHED: established(id, n); return;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_REJECTED: not_established(id, n); return;
    case RDMA_CM_EVENT_DISCONNECTED: disconnected(id, n); return;
    case RDMA_CM_EVENT_DEVICE_REMOVAL: removed(id); return;
    default: return; /* TIMEWAIT_EXIT: nothing of ours waits for it; ADDR_CHANGE: async.c sees its cause */
    }
}

/* One event: false when there is none. */
static bool take_one(struct verbs_part *part)
{
    const struct verbs_lib *lib = part->lib;
    struct rdma_cm_event *ev;
    if (lib->rdma_get_cm_event(part->cm_channel, &ev) < 0) return false;
    const struct rdma_conn_param *param = &ev->param.conn;
    struct news n = {.type = ev->event,
                     .status = ev->status,
                     .reads_in = param->responder_resources > 0,
                     .reads_out = param->initiator_depth > 0};
    /* Before the acknowledgement: then a thread that destroys it may go on. */
    struct rdma_cm_id *cm = ev->id;
    struct verbs_id *id = ev->listen_id ? ev->listen_id->context : cm->context;
    if (param->private_data) {
        n.private_data.len = param->private_data_len;
        memcpy(n.private_data.data, param->private_data, param->private_data_len);
    }
    exsi_log(part->log, EXSI_LOG_DEBUG, 0, "rdma_cm: %s, status %d", lib->rdma_event_str(ev->event), ev->status);
    (void)lib->rdma_ack_cm_event(ev);
    if (n.type == RDMA_CM_EVENT_CONNECT_REQUEST)
        requested(part, id, cm, &n);
    else if (!id->buried)
        dispatch(id, &n);
    return true;
}

static void on_channel(struct exsi_watch *w, uint32_t events)
{
    struct verbs_part *part = exsi_container_of(w, struct verbs_part, cm_watch);
    (void)events;
    for (int i = 0; i < EVENTS_PER_CALL && take_one(part); i++) {
    }
}

/* --- the part's half
 * --------------------------------------------------------------------------------------------------------- */

int verbs_cm_part_open(struct verbs_part *part)
{
    exsi_list_init(&part->ids);
    exsi_list_init(&part->events);
    exsi_list_init(&part->downs);
    part->cm_watch = (struct exsi_watch){.fd = -1, .fn = on_channel};
    errno = 0;
    part->cm_channel = part->lib->rdma_create_event_channel();
    if (!part->cm_channel) return errno ? -errno : -ENODEV;
    int fd = part->cm_channel->fd, flags = fcntl(fd, F_GETFL);
    int rc = flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
    if (rc == 0) rc = exsi_poller_add(part->poller, &part->cm_watch, fd, EPOLLIN);
    if (rc < 0) {
        part->lib->rdma_destroy_event_channel(part->cm_channel);
        part->cm_channel = NULL;
    }
    return rc;
}

static struct verbs_id *not_buried(const struct verbs_part *part)
{
    exsi_list_for (id, &part->ids, struct verbs_id, node)
        if (!id->buried) return id;
    return NULL;
}

void verbs_cm_part_close(struct verbs_part *part)
{
    struct verbs_id *id;
    while ((id = not_buried(part))) verbs_cm_destroy(&id->id);
    exsi_poller_del(part->poller, &part->cm_watch);
}

void verbs_cm_part_free(struct verbs_part *part)
{
    part->lib->rdma_destroy_event_channel(part->cm_channel);
}
