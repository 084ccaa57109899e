// SPDX-License-Identifier: MIT OR Apache-2.0
/* Connection ids: their states, their events, their bounds in time.  The exchange of frames in between
 * is cm_mpa.c's.
 *
 * Invariants: an id owns its socket until a path on tcp takes it; at most one event of an id is
 * pending; an id the upper layer has not been told of is freed by whoever ends it, every other one by
 * cm_destroy.  So after soft_id_fail nobody may touch the id. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "device/soft/cm.h"

enum {
    DEFAULT_CONNECT_MS = 10000,
    DEFAULT_CLOSE_MS = 5000,
    ACCEPTS_PER_CALL = 64,
    MAX_GREETING = 256, /* strangers in set-up per listener, beside its backlog */
    PAUSE_MS = 100,     /* a listener without descriptors tries again after */
    LAST_LOOKS = 4096,
};

static uint64_t ms(uint32_t value, uint32_t otherwise)
{
    return (uint64_t)(value ? value : otherwise) * 1000000u;
}

/* --- events ------------------------------------------------------------------------------------ */

void soft_id_event(struct soft_id *id, enum exsi_cm_kind kind, const void *private_data, uint32_t len)
{
    if (len > EXSI_PRIVATE_MAX) len = EXSI_PRIVATE_MAX;
    id->event =
        (struct exsi_cm_event){.kind = kind, .id = &id->id, .qp = id->qp ? &id->qp->qp : NULL, .peer = id->peer};
    if (id->listener) id->event.listener = &id->listener->id;
    id->event.private_len = len;
    if (len) memcpy(id->event.private_data, private_data, len);
    exsi_list_unlink(&id->pending.node);
    exsi_list_append(&id->part->events, &id->pending.node);
}

static void close_socket(struct soft_id *id)
{
    exsi_poller_del(id->part->poller, &id->watch);
    exsi_timer_stop(id->part->poller, &id->timer);
    if (id->shm) soft_shm_drop(id->shm);
    id->shm = NULL;
    if (id->fd >= 0) close(id->fd);
    id->fd = -1;
}

void soft_id_leave_listener(struct soft_id *id)
{
    struct soft_id *listener = id->listener;
    if (!listener) return;
    id->listener = NULL;
    listener->greeting--;
    if (!exsi_timer_running(&listener->timer)) exsi_poller_mod(id->part->poller, &listener->watch, EPOLLIN);
}

void soft_id_free(struct soft_id *id)
{
    close_socket(id);
    soft_id_leave_listener(id);
    exsi_list_unlink(&id->node);
    exsi_list_unlink(&id->pending.node);
    if (id->qp) id->qp->id = NULL;
    free(id);
}

void soft_id_fail(struct soft_id *id, int error, const char *fmt, ...)
{
    char reason[EXSI_REASON_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(reason, sizeof reason, fmt, ap);
    va_end(ap);
    exsi_log(id->part->log, EXSI_LOG_INFO, 0, "connection set-up failed: %s", reason);
    close_socket(id);
    id->state = SOFT_ID_DEAD;
    if (id->raw) {
        soft_raw_failed(id, error);
        return;
    }
    if (!id->active && !id->announced) {
        soft_id_free(id);
        return;
    }
    soft_id_event(id, EXSI_CM_FAILED, id->upper, id->upper_len);
    id->event.error = error;
    memcpy(id->event.reason, reason, sizeof reason);
}

/* --- life -------------------------------------------------------------------------------------- */

static void id_watch(struct exsi_watch *w, uint32_t events);
static void id_timer(struct exsi_timer *t);

struct soft_id *soft_id_new(struct soft_part *part, const struct exsi_cm_options *opt, void *user)
{
    struct soft_id *id = calloc(1, sizeof *id);
    if (!id) return NULL;
    id->id.user = user;
    id->part = part;
    id->opt = *opt;
    id->fd = id->watch.fd = -1;
    id->watch.fn = id_watch;
    id->timer.fn = id_timer;
    id->pending.id = id;
    exsi_list_init(&id->pending.node);
    exsi_list_append(&part->ids, &id->node);
    return id;
}

int soft_id_adopt(struct exsi_cm_id *eid, struct soft_qp *qp)
{
    struct soft_id *id = soft_id_of(eid);
    if (id->qp || (id->state != SOFT_ID_RESOLVED && id->state != SOFT_ID_REQUESTED)) return -EINVAL;
    id->qp = qp;
    qp->id = id;
    return 0;
}

void soft_id_orphan(struct soft_id *id)
{
    id->qp = NULL;
    /* Before either side has committed itself the id may still be refused or given another queue pair. */
    if (id->state == SOFT_ID_RESOLVED || id->state == SOFT_ID_REQUESTED || id->state == SOFT_ID_DEAD) return;
    close_socket(id);
    exsi_list_unlink(&id->pending.node);
    id->state = SOFT_ID_DEAD;
}

void soft_cm_destroy(struct exsi_cm_id *eid)
{
    struct soft_id *id = soft_id_of(eid);
    if (id->state == SOFT_ID_LISTENING) {
        exsi_list_for_safe (other, &id->part->ids, struct soft_id, node) {
            if (other->listener == id) soft_id_free(other);
        }
    }
    soft_id_free(id);
}

/* --- agreement --------------------------------------------------------------------------------- */

void soft_id_agreed(struct soft_id *id, struct soft_path *path)
{
    struct soft_qp *qp = id->qp;
    exsi_timer_stop(id->part->poller, &id->timer);
    if (qp->state != SOFT_QP_INIT) { /* aborted while it was being connected */
        if (path) path->ops->free(path);
        soft_id_fail(id, ECONNABORTED, "the connection was given up here");
        return;
    }
    if (!path) {
        struct soft_tcp_config cfg = {.fd = id->fd,
                                      .crc = id->crc,
                                      .peer_soft = id->peer_soft,
                                      .responder = !id->active,
                                      .linger_ms = id->opt.close_timeout_ms,
                                      .keepalive_ms = id->opt.keepalive_ms};
        int rc = soft_tcp_new(id->part, &cfg, &path);
        if (rc < 0) {
            soft_id_fail(id, -rc, "no memory for the connection");
            return;
        }
        exsi_poller_del(id->part->poller, &id->watch);
        id->fd = -1;
    } else {
        exsi_poller_mod(id->part->poller, &id->watch, EPOLLIN | EPOLLRDHUP);
    }
    qp->local = id->local;
    qp->peer = id->peer;
    qp->close_timeout_ms = id->opt.close_timeout_ms ? id->opt.close_timeout_ms : DEFAULT_CLOSE_MS;
    soft_qp_attach(qp, path);
    if (id->raw) {
        soft_raw_agreed(id);
        return;
    }
    id->state = SOFT_ID_AGREED;
    soft_id_event(id, EXSI_CM_ESTABLISHED, id->upper, id->upper_len);
}

/* The silent TCP socket beside a connection in shared memory has ended: the peer's process is gone, or
 * it ended in order and we have not looked at the rings since. */
static void lost(struct soft_id *id)
{
    struct soft_qp *qp = id->qp;
    int error = soft_sock_error(id->fd); /* ETIMEDOUT: keep-alive found nobody */
    exsi_poller_del(id->part->poller, &id->watch);
    id->lost = true;
    if (id->state != SOFT_ID_UP || !qp || !qp->path) return;
    for (int i = 0; i < LAST_LOOKS && qp->state == SOFT_QP_UP && qp->path->ops->progress(qp->path) > 0; i++) {
    }
    soft_qp_settle(id->part);
    /* What came and has no receive yet still counts; the path knows that the end is behind it. */
    if (qp->state == SOFT_QP_DOWN || qp->starved) return;
    qp->path->ops->abort(qp->path);
    soft_qp_down(qp, error ? error : ECONNRESET,
                 error ? "the peer's host does not answer" : "the peer's process is gone");
}

int soft_cm_poll(struct exsi_part *epart, struct exsi_cm_event *ev)
{
    struct soft_part *part = soft_part_of(epart);
    soft_qp_settle(part);
    exsi_list_for (e, &part->events, struct soft_event, node) {
        if (e->qp && e->qp->cq_pending) continue; /* its completions come first */
        exsi_list_unlink(&e->node);
        if (e->qp) {
            e->qp->down_polled = true;
            *ev = (struct exsi_cm_event){.kind = EXSI_CM_DISCONNECTED, .qp = &e->qp->qp, .error = e->qp->error};
            memcpy(ev->reason, e->qp->reason, sizeof ev->reason);
            if (e->qp->id) ev->id = &e->qp->id->id;
            return 1;
        }
        struct soft_id *id = e->id;
        *ev = id->event;
        if (ev->kind == EXSI_CM_REQUEST) {
            id->announced = true;
            soft_id_leave_listener(id);
        }
        if (ev->kind == EXSI_CM_ESTABLISHED) {
            id->state = SOFT_ID_UP;
            soft_qp_start(id->qp);
            if (id->lost) lost(id);
        }
        return 1;
    }
    return 0;
}

/* --- sockets and timers ------------------------------------------------------------------------ */

static void accept_one(struct soft_id *listener, int fd, const union exsi_addr *peer)
{
    struct soft_part *part = listener->part;
    struct soft_id *id = soft_id_new(part, &listener->opt, listener->id.user);
    socklen_t len = sizeof id->local;
    if (!id) {
        close(fd);
        return;
    }
    id->raw = listener->raw;
    id->listener = listener;
    listener->greeting++;
    id->fd = fd;
    id->peer = *peer;
    id->state = SOFT_ID_GREETING;
    id->in_want = MPA_HEADER_LEN;
    (void)getsockname(fd, &id->local.sa, &len);
    soft_sock_tune(fd, &id->opt);
    if (exsi_poller_add(part->poller, &id->watch, fd, EPOLLIN) < 0 ||
        exsi_timer_start(part->poller, &id->timer, ms(id->opt.connect_timeout_ms, DEFAULT_CONNECT_MS)) < 0)
        soft_id_free(id);
}

static void accept_some(struct soft_id *listener)
{
    struct exsi_poller *poller = listener->part->poller;
    for (int i = 0; i < ACCEPTS_PER_CALL; i++) {
        union exsi_addr peer = {0};
        socklen_t len = sizeof peer;
        if (listener->greeting >= listener->max_greeting) {
            exsi_poller_mod(poller, &listener->watch, 0); /* soft_id_leave_listener opens it again */
            return;
        }
        int fd = accept4(listener->fd, &peer.sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            accept_one(listener, fd, &peer);
            continue;
        }
        if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM) return;
        /* The connection stays in the queue and the listener readable: without a pause it would spin. */
        exsi_log(listener->part->log, EXSI_LOG_WARNING, 0, "cannot accept: %s; trying again", strerror(errno));
        if (exsi_timer_start(poller, &listener->timer, ms(PAUSE_MS, 0)) == 0)
            exsi_poller_mod(poller, &listener->watch, 0);
        return;
    }
}

static void tcp_connected(struct soft_id *id)
{
    socklen_t len = sizeof id->local;
    int error = soft_sock_error(id->fd);
    if (error) {
        soft_id_fail(id, error, "%s", strerror(error));
        return;
    }
    (void)getsockname(id->fd, &id->local.sa, &len);
    if (memcmp(&id->local, &id->peer, exsi_addr_len(&id->peer)) == 0) {
        /* TCP connected to itself: nobody listens on a port of the ephemeral range. */
        soft_id_fail(id, ECONNREFUSED, "nobody listens there");
        return;
    }
    exsi_poller_del(id->part->poller, &id->watch);
    id->state = SOFT_ID_RESOLVED;
    if (id->raw)
        soft_raw_resolved(id);
    else
        soft_id_event(id, EXSI_CM_RESOLVED, NULL, 0);
}

static void id_watch(struct exsi_watch *w, uint32_t events)
{
    struct soft_id *id = exsi_container_of(w, struct soft_id, watch);
    switch (id->state) {
    case SOFT_ID_LISTENING: accept_some(id); return;
    case SOFT_ID_CONNECTING: tcp_connected(id); return;
    case SOFT_ID_AGREED:
    case SOFT_ID_UP: lost(id); return;
    case SOFT_ID_CALLING:
    case SOFT_ID_GREETING:
    case SOFT_ID_REQUESTED:
    case SOFT_ID_ANSWERING:
    case SOFT_ID_SHARING: soft_mpa_event(id, events); return;
    case SOFT_ID_RESOLVED:
    case SOFT_ID_DEAD: return; /* not watched */
    }
}

static void id_timer(struct exsi_timer *t)
{
    struct soft_id *id = exsi_container_of(t, struct soft_id, timer);
    if (id->state == SOFT_ID_LISTENING) {
        if (id->greeting < id->max_greeting) exsi_poller_mod(id->part->poller, &id->watch, EPOLLIN);
        return;
    }
    if (id->state == SOFT_ID_SHARING && id->active && soft_mpa_give_up_shm(id)) return;
    soft_id_fail(id, ETIMEDOUT, "no answer in time");
}

/* --- the table --------------------------------------------------------------------------------- */

int soft_cm_listen(struct exsi_part *epart, const union exsi_addr *addr, int backlog, const struct exsi_cm_options *opt,
                   void *user, struct exsi_cm_id **out, union exsi_addr *bound)
{
    struct soft_part *part = soft_part_of(epart);
    struct soft_id *id = soft_id_new(part, opt, user);
    if (!id) return -ENOMEM;
    id->state = SOFT_ID_LISTENING;
    id->max_greeting = MAX_GREETING + (backlog > 0 ? (uint32_t)backlog : 0);
    int rc = id->fd = soft_sock_listen(addr, backlog, opt, bound);
    if (rc >= 0) rc = exsi_poller_add(part->poller, &id->watch, id->fd, EPOLLIN);
    if (rc < 0) {
        soft_id_free(id);
        return rc;
    }
    id->local = *bound;
    *out = &id->id;
    return 0;
}

int soft_cm_resolve(struct exsi_part *epart, const union exsi_addr *source, const union exsi_addr *peer,
                    const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out)
{
    struct soft_part *part = soft_part_of(epart);
    struct soft_id *id = soft_id_new(part, opt, user);
    if (!id) return -ENOMEM;
    id->active = true;
    id->peer = *peer;
    id->state = SOFT_ID_CONNECTING;
    *out = &id->id;
    int rc = id->fd = soft_sock_connect(source, peer, opt);
    if (rc >= 0) rc = exsi_poller_add(part->poller, &id->watch, id->fd, EPOLLOUT);
    if (rc >= 0) rc = exsi_timer_start(part->poller, &id->timer, ms(opt->connect_timeout_ms, DEFAULT_CONNECT_MS));
    if (rc < 0) soft_id_fail(id, -rc, "%s", strerror(-rc));
    return 0;
}

int soft_cm_connect(struct exsi_cm_id *eid, const void *private_data, uint32_t len)
{
    struct soft_id *id = soft_id_of(eid);
    if (id->state == SOFT_ID_DEAD) return 0; /* FAILED is on its way */
    if (id->state != SOFT_ID_RESOLVED || !id->qp || len > MPA_UPPER_MAX) return -EINVAL;
    soft_mpa_call(id, private_data, len);
    return 0;
}

int soft_cm_accept(struct exsi_cm_id *eid, const void *private_data, uint32_t len)
{
    struct soft_id *id = soft_id_of(eid);
    if (id->state == SOFT_ID_DEAD) return 0;
    if (id->state != SOFT_ID_REQUESTED || !id->qp || len > MPA_UPPER_MAX) return -EINVAL;
    int rc = exsi_timer_start(id->part->poller, &id->timer, ms(id->opt.connect_timeout_ms, DEFAULT_CONNECT_MS));
    if (rc < 0) return rc;
    soft_mpa_answer(id, private_data, len);
    return 0;
}

void soft_cm_reject(struct exsi_cm_id *eid, const void *private_data, uint32_t len)
{
    struct soft_id *id = soft_id_of(eid);
    if (id->state == SOFT_ID_REQUESTED) soft_mpa_reject(id, private_data, exsi_min_u32(len, MPA_UPPER_MAX), 0);
    soft_id_free(id);
}

void soft_cm_disconnect(struct exsi_cm_id *eid)
{
    struct soft_id *id = soft_id_of(eid);
    if (id->qp) soft_qp_shut(id->qp);
}
