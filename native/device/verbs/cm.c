// SPDX-License-Identifier: MIT OR Apache-2.0
/* Connection ids on librdmacm: their states, what the upper layer asks of them, what it is told.  What librdmacm
 * says is cm_event.c's.
 *
 * Invariants: at most one event of an id is pending; an id that the upper layer has not been told of is freed by
 * whoever ends it, every other one by cm_destroy; every wait for a peer has a timer of ours, since rdma_cm alone gives
 * up after a minute, or never. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/verbs/cm.h"

enum {
    DEFAULT_CONNECT_MS = 10000,
    RNR_RETRY = 6,    /* with credits a receiver that is not ready is a faulty one; 7 is for ever */
    READS = 1,        /* at once, each way: keep-alive on iWARP */
    ACK_TIMEOUT = 17, /* 4.096 us * 2^17: about half a second until a packet is sent again */
};

static uint64_t connect_ns(const struct verbs_id *id)
{
    uint32_t ms = id->opt.connect_timeout_ms;
    return (uint64_t)(ms ? ms : DEFAULT_CONNECT_MS) * 1000000u;
}

static void addr_from(const struct sockaddr *sa, union exsi_addr *out)
{
    *out = (union exsi_addr){0};
    if (sa->sa_family == AF_INET6)
        memcpy(&out->in6, sa, sizeof out->in6);
    else if (sa->sa_family == AF_INET)
        memcpy(&out->in, sa, sizeof out->in);
}

void verbs_id_names(const struct verbs_id *id, union exsi_addr *local, union exsi_addr *peer)
{
    const struct rdma_addr *addr = &id->cm->route.addr;
    addr_from(&addr->src_addr, local);
    addr_from(&addr->dst_addr, peer);
}

/* --- events and the end of a set-up ------------------------------------------------------------------------- */

void verbs_id_event(struct verbs_id *id, enum exsi_cm_kind kind, const struct verbs_private *private_data)
{
    id->event = (struct exsi_cm_event){.kind = kind, .id = &id->id, .qp = id->qp ? &id->qp->qp : NULL};
    if (id->parent) id->event.listener = &id->parent->id;
    if (id->cm) addr_from(&id->cm->route.addr.dst_addr, &id->event.peer);
    if (private_data) {
        id->event.private_len = private_data->len;
        memcpy(id->event.private_data, private_data->data, private_data->len);
    }
    exsi_list_unlink(&id->event_node);
    exsi_list_append(&id->part->events, &id->event_node);
}

void verbs_id_fail(struct verbs_id *id, int error, const struct verbs_private *private_data, const char *fmt, ...)
{
    char reason[EXSI_REASON_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(reason, sizeof reason, fmt, ap);
    va_end(ap);
    exsi_log(id->part->log, EXSI_LOG_INFO, 0, "connection set-up failed: %s", reason);
    exsi_timer_stop(id->part->poller, &id->timer);
    if (id->state == VERBS_ID_REQUESTED && !id->announced) {
        verbs_id_free(id);
        return;
    }
    id->state = VERBS_ID_DEAD;
    id->failed = true;
    verbs_id_event(id, EXSI_CM_FAILED, private_data);
    id->event.error = error;
    memcpy(id->event.reason, reason, sizeof reason);
}

static void on_timer(struct exsi_timer *t)
{
    struct verbs_id *id = exsi_container_of(t, struct verbs_id, timer);
    verbs_id_fail(id, ETIMEDOUT, NULL, "no answer in time");
}

/* --- life ------------------------------------------------------------------------------------------------------- */

struct verbs_id *verbs_id_new(struct verbs_part *part, const struct exsi_cm_options *opt, void *user)
{
    struct verbs_id *id = calloc(1, sizeof *id);
    if (!id) return NULL;
    id->id.user = user;
    id->part = part;
    id->opt = *opt;
    id->timer.fn = on_timer;
    exsi_list_init(&id->event_node);
    exsi_list_append(&part->ids, &id->node);
    return id;
}

void verbs_id_free(struct verbs_id *id)
{
    exsi_timer_stop(id->part->poller, &id->timer);
    exsi_list_unlink(&id->event_node);
    if (id->cm) (void)id->part->lib->rdma_destroy_id(id->cm);
    exsi_list_unlink(&id->node);
    free(id);
}

static int id_open(struct verbs_id *id)
{
    const struct verbs_lib *lib = id->part->lib;
    return lib->rdma_create_id(id->part->cm_channel, &id->cm, id, RDMA_PS_TCP) < 0 ? -errno : 0;
}

static void set_flag(struct verbs_id *id, int option, bool value)
{
    int on = value;
    if (id->part->lib->rdma_set_option(id->cm, RDMA_OPTION_ID, option, &on, sizeof on) < 0 && value)
        exsi_log(id->part->log, EXSI_LOG_DEBUG, 0, "rdma_cm refuses option %d: %s", option, strerror(errno));
}

/* Both ends have their own; old kernels and iWARP know none. */
static void set_ack_timeout(struct verbs_id *id)
{
    uint8_t value = ACK_TIMEOUT;
    if (id->adapter->iwarp) return;
    (void)id->part->lib->rdma_set_option(id->cm, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &value, sizeof value);
}

bool verbs_id_orphan(struct verbs_id *id)
{
    id->grave = id->blocks ? id->qp : NULL;
    id->qp = NULL;
    return id->grave;
}

void verbs_id_heard(struct verbs_id *id)
{
    if (id->state != VERBS_ID_ANSWERING) return;
    /* The kernel has not heard yet that the connection is there, and would go on asking. */
    (void)id->part->lib->rdma_notify(id->cm, IBV_EVENT_COMM_EST);
    exsi_timer_stop(id->part->poller, &id->timer);
    id->state = VERBS_ID_UP;
}

/* --- the table: listeners -------------------------------------------------------------------------------------------
 */

static int listen_on(struct verbs_id *id, const union exsi_addr *addr, int backlog)
{
    const struct verbs_lib *lib = id->part->lib;
    union exsi_addr at = *addr;
    EXSI_TRY(id_open(id));
    if (id->opt.reuse_address || id->opt.reuse_port) set_flag(id, RDMA_OPTION_ID_REUSEADDR, true);
    if (addr->sa.sa_family == AF_INET6) set_flag(id, RDMA_OPTION_ID_AFONLY, id->opt.v6_only);
    if (lib->rdma_bind_addr(id->cm, &at.sa) < 0) return errno == ENODEV ? -EADDRNOTAVAIL : -errno;
    return lib->rdma_listen(id->cm, backlog > 0 ? backlog : 1) < 0 ? -errno : 0;
}

int verbs_cm_listen(struct exsi_part *epart, const union exsi_addr *addr, int backlog,
                    const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out, union exsi_addr *bound)
{
    if (opt->path != EXSI_PATH_AUTO) return -EOPNOTSUPP;
    struct verbs_id *id = verbs_id_new(verbs_part_of(epart), opt, user);
    if (!id) return -ENOMEM;
    id->state = VERBS_ID_LISTENING;
    int rc = listen_on(id, addr, backlog);
    if (rc < 0) {
        verbs_id_free(id);
        return rc;
    }
    *bound = *addr;
    uint16_t port = id->part->lib->rdma_get_src_port(id->cm);
    if (addr->sa.sa_family == AF_INET6)
        bound->in6.sin6_port = port;
    else
        bound->in.sin_port = port;
    *out = &id->id;
    return 0;
}

/* --- the table: the active side
 * ---------------------------------------------------------------------------------------- */

int verbs_cm_resolve(struct exsi_part *epart, const union exsi_addr *source, const union exsi_addr *peer,
                     const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out)
{
    struct verbs_id *id = verbs_id_new(verbs_part_of(epart), opt, user);
    if (!id) return -ENOMEM;
    union exsi_addr from = source ? *source : (union exsi_addr){0}, to = *peer;
    id->state = VERBS_ID_ADDRESS;
    int rc = id_open(id);
    if (rc == 0) rc = exsi_timer_start(id->part->poller, &id->timer, connect_ns(id));
    if (rc < 0) {
        verbs_id_free(id);
        return rc;
    }
    *out = &id->id;
    if (opt->path != EXSI_PATH_AUTO) {
        verbs_id_fail(id, EOPNOTSUPP, NULL, "a path was asked for, and only the soft device has paths");
        return 0;
    }
    /* Its own bound is longer, so that there is one clock. */
    int bound_ms = (int)exsi_min_u64(2 * connect_ns(id) / 1000000u, INT32_MAX);
    if (id->part->lib->rdma_resolve_addr(id->cm, source ? &from.sa : NULL, &to.sa, bound_ms) < 0)
        verbs_id_unreachable(id, errno);
    return 0;
}

int verbs_cm_connect(struct exsi_cm_id *eid, const void *private_data, uint32_t len)
{
    struct verbs_id *id = verbs_id_of(eid);
    if (id->state == VERBS_ID_DEAD || id->failed) return 0; /* FAILED is on its way, or the queue pair's end */
    if (id->state != VERBS_ID_RESOLVED || !id->qp || len > UINT8_MAX) return -EINVAL;
    struct rdma_conn_param param = {
        .private_data = private_data,
        .private_data_len = (uint8_t)len,
        .responder_resources = READS,
        .initiator_depth = READS,
        .retry_count = VERBS_RETRY,
        .rnr_retry_count = RNR_RETRY,
    };
    set_ack_timeout(id);
    id->state = VERBS_ID_CALLING;
    if (id->adapter->iwarp) return verbs_dial_start(id, &param);
    if (id->part->lib->rdma_connect(id->cm, &param) < 0) verbs_id_unreachable(id, errno);
    return 0;
}

/* --- the table: the passive side
 * ------------------------------------------------------------------------------------------ */

int verbs_cm_accept(struct exsi_cm_id *eid, const void *private_data, uint32_t len)
{
    struct verbs_id *id = verbs_id_of(eid);
    if (id->state == VERBS_ID_DEAD || id->failed) return 0;
    if (id->state != VERBS_ID_REQUESTED || !id->qp || len > UINT8_MAX) return -EINVAL;
    struct rdma_conn_param param = {
        .private_data = private_data,
        .private_data_len = (uint8_t)len,
        .responder_resources = id->reads_in,
        .initiator_depth = id->reads_out,
        .rnr_retry_count = RNR_RETRY,
    };
    EXSI_TRY(exsi_timer_start(id->part->poller, &id->timer, connect_ns(id)));
    set_ack_timeout(id);
    id->state = VERBS_ID_ANSWERING;
    if (id->part->lib->rdma_accept(id->cm, &param) < 0)
        verbs_id_fail(id, errno, NULL, "the request could not be accepted: %s", strerror(errno));
    else
        verbs_qp_up(id->qp);
    return 0;
}

void verbs_cm_reject(struct exsi_cm_id *eid, const void *private_data, uint32_t len)
{
    struct verbs_id *id = verbs_id_of(eid);
    uint8_t most = (uint8_t)exsi_min_u32(len, VERBS_REJECT_MAX);
    if (id->state == VERBS_ID_REQUESTED && id->part->lib->rdma_reject(id->cm, private_data, most) < 0)
        exsi_log(id->part->log, EXSI_LOG_DEBUG, 0, "a refusal could not be sent: %s", strerror(errno));
    verbs_cm_destroy(eid);
}

/* --- the table: the end
 * --------------------------------------------------------------------------------------------------------- */

void verbs_cm_disconnect(struct exsi_cm_id *eid)
{
    struct verbs_id *id = verbs_id_of(eid);
    if (!id->qp) return;
    if (id->state == VERBS_ID_UP)
        verbs_qp_shut(id->qp);
    else
        verbs_qp_down(id->qp, ECONNABORTED);
}

void verbs_cm_destroy(struct exsi_cm_id *eid)
{
    struct verbs_id *id = verbs_id_of(eid);
    if (id->state == VERBS_ID_LISTENING) {
        exsi_list_for_safe (other, &id->part->ids, struct verbs_id, node) {
            if (other->parent == id) verbs_id_free(other);
        }
    }
    exsi_timer_stop(id->part->poller, &id->timer);
    exsi_list_unlink(&id->event_node);
    if (id->blocks)
        verbs_dial_bury(id);
    else
        verbs_id_end(id);
}

/* Nothing blocks now. */
void verbs_id_end(struct verbs_id *id)
{
    if (id->grave) {
        verbs_qp_bury(id->grave);
        verbs_qp_free(id->grave);
    }
    verbs_id_free(id);
}

/* --- what poll_cm gives
 * ------------------------------------------------------------------------------------------------------------ */

static bool poll_down(struct verbs_part *part, struct exsi_cm_event *ev)
{
    exsi_list_for (qp, &part->downs, struct verbs_qp, down_node) {
        if (qp->sent_len || qp->recv_len || !qp->buried) continue; /* its completions come first */
        exsi_list_unlink(&qp->down_node);
        qp->told = true;
        *ev = (struct exsi_cm_event){.kind = EXSI_CM_DISCONNECTED, .qp = &qp->qp, .error = qp->error};
        if (qp->id) ev->id = &qp->id->id;
        memcpy(ev->reason, qp->reason, sizeof ev->reason);
        return true;
    }
    return false;
}

int verbs_cm_poll(struct exsi_part *epart, struct exsi_cm_event *ev)
{
    struct verbs_part *part = verbs_part_of(epart);
    if (poll_down(part, ev)) return 1;
    struct verbs_id *id = exsi_list_first(&part->events, struct verbs_id, event_node);
    if (!id) return 0;
    exsi_list_unlink(&id->event_node);
    *ev = id->event;
    if (ev->kind == EXSI_CM_REQUEST) {
        id->announced = true;
        id->parent = NULL;
    }
    return 1;
}
