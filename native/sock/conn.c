// SPDX-License-Identifier: MIT OR Apache-2.0
/* From a name to a connected endpoint: bind, listen, connect, accept, and the events of connection
 * management (ES-API 2.2).
 *
 *   active   resolve -> RESOLVED: memory (setup.c), endpoint, hello, connect -> ESTABLISHED: the peer's hello, up
 *   passive  REQUEST: check, child socket, memory, endpoint, hello, accept -> ESTABLISHED: up, to be accepted
 *
 * Invariant: a connection id belongs to socket->cm until its endpoint has it, and to the endpoint from
 * then on; whoever owns it destroys it, once. */
#include "sock/link.h"

#include <stdio.h>
#include <string.h>

#include "wire/exs_reject.h"

#define RECV_SLOTS   64
#define TRANSFER_MAX (1u << 28)

static const struct exsi_device_ops *ops_of(const struct exsi_socket *s)
{
    return atomic_load_explicit(&s->dev, memory_order_relaxed)->ops;
}

/* --- device and endpoint ---------------------------------------------------------------------------- */

struct exsi_cm_options exsi_conn_options(const struct exsi_socket *s)
{
    return (struct exsi_cm_options){
        .path = (enum exsi_path)s->opt.path,
        .shm_ring_bytes = s->opt.ring_bytes,
        .connect_timeout_ms = s->opt.connect_timeout_ms,
        .keepalive_ms = s->opt.keepalive_ms,
        .close_timeout_ms = s->opt.close_timeout_ms,
        .crc = s->opt.crc,
        .reuse_address = s->opt.reuse_address,
        .reuse_port = s->opt.reuse_port,
        .v6_only = s->opt.v6_only,
    };
}

static struct exsi_engine_config engine_config(const struct exsi_socket *s, const struct exsi_device *dev)
{
    return (struct exsi_engine_config){
        .ring_bytes = s->opt.ring_bytes,
        .max_adverts = s->opt.max_adverts,
        .recv_slots = RECV_SLOTS,
        .max_transfer = exsi_min_u64(dev->caps.max_msg, TRANSFER_MAX),
        .direct_threshold = s->opt.direct_threshold,
        .direct_hold_us = s->opt.direct_hold_us,
        .strict_keys = s->opt.strict_keys,
    };
}

/* The id stays the socket's until its memory is there. */
static int want_endpoint(struct exsi_socket *s, struct exsi_cm_id *id, const struct exsi_hello *hello)
{
    struct exsi_engine_config cfg = engine_config(s, atomic_load_explicit(&s->dev, memory_order_relaxed));
    struct exsi_ep_attr attr = {0};
    s->engine->ep_attr(&cfg, &attr);
    s->cm = id;
    return exsi_setup_start(s, &attr, hello);
}

/* Takes the id and the memory, also when it fails. */
static int make_endpoint(struct exsi_socket *s, bool active, const struct exsi_ep_attr *attr,
                         struct exsi_ep_memory *memory)
{
    struct exsi_device *dev = atomic_load_explicit(&s->dev, memory_order_relaxed);
    struct exsi_engine_config cfg = engine_config(s, dev);
    struct exsi_cm_id *id = s->cm;
    struct exsi_endpoint *ep = NULL;
    s->cm = NULL;
    int rc = exsi_ep_new(s->group, dev, s->engine, attr, memory, &s->stats, &ep);
    if (rc < 0) {
        dev->ops->cm_destroy(id);
        return rc;
    }
    ep->owner = s;
    ep->active = active;
    ep->log_id = s->handle;
    s->ep = ep;
    rc = exsi_ep_make_qp(ep, id);
    if (rc < 0) dev->ops->cm_destroy(id);
    if (rc == 0) rc = exsi_ep_open_engine(ep, &cfg);
    if (rc == 0) rc = exsi_ep_attach(ep, &s->attach);
    if (rc < 0) {
        if (!s->reason[0]) memcpy(s->reason, ep->reason, sizeof s->reason);
        exsi_conn_teardown(s);
    }
    return rc;
}

void exsi_conn_teardown(struct exsi_socket *s)
{
    s->setup = NULL;
    if (s->link) {
        exsi_link_leave(s);
        return;
    }
    if (s->cm) {
        ops_of(s)->cm_destroy(s->cm);
        s->cm = NULL;
    }
    if (!s->ep) return;
    exsi_ep_detach(&s->attach);
    exsi_ep_free(s->ep);
    s->ep = NULL;
}

static void learn_names(struct exsi_socket *s)
{
    struct exsi_qp_info info = {0};
    ops_of(s)->qp_query(s->ep->qp, &info);
    memcpy(s->path, info.path, sizeof s->path);
    s->local = info.local;
    s->peer = info.peer;
}

static void hello_bytes(struct exsi_socket *s, uint8_t out[EXSI_HELLO_LEN])
{
    struct exsi_hello hello = {.version = EXSI_PROTOCOL_VERSION, .min_version = EXSI_PROTOCOL_VERSION};
    s->engine->hello(s->ep, &hello);
    if (exsi_choice_offered(s)) hello.flags |= EXSI_HELLO_VERBS;
    hello.cookie = s->conn_cookie;
    exsi_hello_encode(&hello, out);
}

static void come_up(struct exsi_socket *s)
{
    s->state = EXSI_SOCK_CONNECTED;
    learn_names(s);
    exsi_ep_up(s->ep);
    exsi_sock_changed(&s->attach, 0);
}

/* --- listening -------------------------------------------------------------------------------------- */

int exsi_conn_bind(struct exsi_socket *s, const union exsi_addr *addr)
{
    if (s->state != EXSI_SOCK_NEW || s->bound) return -EINVAL;
    if (addr->sa.sa_family != s->family) return -EAFNOSUPPORT;
    s->local = *addr;
    s->bound = true;
    return 0;
}

int exsi_conn_listen(struct exsi_socket *s, int backlog, const struct exsi_devices *devices)
{
    s->backlog = backlog < 1 ? 1 : backlog;
    if (s->state == EXSI_SOCK_LISTENING) return 0;
    if (s->state != EXSI_SOCK_NEW) return s->state == EXSI_SOCK_CONNECTED ? -EISCONN : -EINVAL;
    struct exsi_part *part;
    EXSI_TRY(exsi_choice_first(s, devices, &part));
    union exsi_addr at = s->local, bound = {0};
    at.sa.sa_family = (sa_family_t)s->family;
    struct exsi_cm_options opt = exsi_conn_options(s);
    EXSI_TRY(ops_of(s)->cm_listen(part, &at, s->backlog, &opt, s, &s->listener, &bound));
    s->local = bound;
    s->bound = true;
    s->state = EXSI_SOCK_LISTENING;
    exsi_choice_listen(s, devices->better);
    return 0;
}

/* ES-API 1.8 */
static void hand_out(struct exsi_socket *listener)
{
    struct exsi_op *op = exsi_list_first(&listener->accepts, struct exsi_op, node);
    while (op) {
        struct exsi_socket *child = NULL;
        exsi_list_for (c, &listener->pending, struct exsi_socket, pending_node) {
            if (!c->established) continue;
            child = c;
            break;
        }
        if (!child) return;
        exsi_list_unlink(&child->pending_node);
        listener->n_pending--;
        child->parent = NULL;
        exsi_op_finish(op, 0, child->handle);
        op = exsi_list_first(&listener->accepts, struct exsi_op, node);
    }
}

int exsi_conn_accept(struct exsi_socket *s, struct exsi_op *op)
{
    if (s->state != EXSI_SOCK_LISTENING) return -EINVAL;
    exsi_list_append(&s->accepts, &op->node);
    hand_out(s);
    return 0;
}

/* A child that nobody will ever accept. */
static void orphan(struct exsi_socket *child)
{
    exsi_list_unlink(&child->pending_node);
    child->parent->n_pending--;
    child->parent = NULL;
    exsi_close_start(child, true, NULL);
}

void exsi_conn_unlisten(struct exsi_socket *s, int error)
{
    exsi_list_for_safe (op, &s->accepts, struct exsi_op, node) exsi_op_finish(op, error, 0);
    exsi_list_for_safe (child, &s->pending, struct exsi_socket, pending_node) orphan(child);
    if (s->listener) ops_of(s)->cm_destroy(s->listener);
    s->listener = NULL;
    exsi_choice_unlisten(s);
}

/* --- connecting ------------------------------------------------------------------------------------- */

int exsi_conn_connect(struct exsi_socket *s, const union exsi_addr *peer, const struct exsi_devices *devices,
                      struct exsi_op *op)
{
    if (s->state == EXSI_SOCK_CONNECTED) return -EISCONN;
    if (s->state == EXSI_SOCK_CONNECTING) return -EALREADY;
    if (s->state != EXSI_SOCK_NEW) return -EINVAL;
    if (peer->sa.sa_family != s->family) return -EAFNOSUPPORT;
    exsi_random(&s->conn_cookie, sizeof s->conn_cookie);
    EXSI_TRY(exsi_choice_dial(s, peer, devices));
    s->state = EXSI_SOCK_CONNECTING;
    s->connect_op = op;
    return 0;
}

void exsi_conn_fail(struct exsi_socket *s, int error)
{
    struct exsi_op *op = s->connect_op;
    exsi_conn_teardown(s);
    s->connect_op = NULL;
    s->state = EXSI_SOCK_DEAD;
    s->dead = true;
    s->attach.error = error;
    exsi_sock_changed(&s->attach, EXSI_CHANGE_DEAD);
    if (op) exsi_op_finish(op, error, 0);
}

/* The connect failed on this device. */
static void attempt_failed(struct exsi_socket *s, int error)
{
    if (!exsi_choice_retry(s)) exsi_conn_fail(s, error);
}

static void on_resolved(struct exsi_socket *s, const struct exsi_cm_event *ev)
{
    int rc = want_endpoint(s, ev->id, NULL);
    if (rc < 0) attempt_failed(s, -rc);
}

static int dial(struct exsi_socket *s, const struct exsi_ep_attr *attr, struct exsi_ep_memory *memory)
{
    struct exsi_cm_id *id = s->cm;
    uint8_t hello[EXSI_HELLO_LEN];
    EXSI_TRY(make_endpoint(s, true, attr, memory));
    hello_bytes(s, hello);
    return ops_of(s)->cm_connect(id, hello, sizeof hello);
}

/* The checks that both sides make; the engine makes those of its own fields.  ES-API 2.2 */
static int check_hello(struct exsi_socket *s, const struct exsi_cm_event *ev, struct exsi_hello *hello,
                       enum exsi_reject_code *code)
{
    const char *why = "";
    uint16_t ours = s->type == SOCK_STREAM ? EXSI_HELLO_STREAM : EXSI_HELLO_SEQPACKET;
    *code = EXSI_REJECT_PROTOCOL;
    if (exsi_hello_decode(ev->private_data, ev->private_len, hello, &why) < 0) {
        exsi_sock_reason(s, "%s", why);
        return -EPROTO;
    }
    if (!(hello->flags & ours)) {
        *code = EXSI_REJECT_TYPE;
        exsi_sock_reason(s, "the peer's socket is of another type (STREAM or SEQPACKET)");
        return -EPROTO;
    }
    return 0;
}

static int take_hello(struct exsi_socket *s, const struct exsi_hello *hello)
{
    struct exsi_qp_info info = {0};
    ops_of(s)->qp_query(s->ep->qp, &info);
    s->ep->immediate = info.immediate && (hello->flags & EXSI_HELLO_IMMEDIATE);
    return s->engine->peer_hello(s->ep, hello, s->reason);
}

static void on_connected(struct exsi_socket *s, const struct exsi_cm_event *ev)
{
    struct exsi_hello hello;
    enum exsi_reject_code code;
    int rc = check_hello(s, ev, &hello, &code);
    if (rc == 0) rc = take_hello(s, &hello);
    if (rc < 0) {
        exsi_conn_fail(s, -rc);
        return;
    }
    struct exsi_op *op = s->connect_op;
    s->connect_op = NULL;
    exsi_choice_settled(s);
    come_up(s);
    if (op) exsi_op_finish(op, 0, 0);
}

static void on_failed(struct exsi_socket *s, const struct exsi_cm_event *ev)
{
    struct exsi_reject why;
    int error = ev->error ? ev->error : ECONNREFUSED;
    snprintf(s->reason, sizeof s->reason, "%.*s", EXSI_REASON_MAX - 1, ev->reason);
    if (error == ECONNREFUSED && exsi_reject_decode(ev->private_data, ev->private_len, &why) == 0) {
        if (why.code == EXSI_REJECT_VERBS && exsi_choice_move(s)) return;
        error = exsi_reject_errno(why.code);
        exsi_sock_reason(s, "the peer refused: %s", why.text);
    }
    attempt_failed(s, error);
}

/* --- being connected to -------------------------------------------------------------------------------- */

static void refuse(struct exsi_socket *listener, const struct exsi_cm_event *ev, enum exsi_reject_code code,
                   const char *text)
{
    uint8_t block[EXSI_REJECT_LEN];
    exsi_reject_encode(code, text, block);
    if (code != EXSI_REJECT_VERBS)
        exsi_log(&listener->group->ctx->log, EXSI_LOG_INFO, listener->handle, "connection refused: %s", text);
    exsi_choice_of(listener, ev)->ops->cm_reject(ev->id, block, sizeof block);
}

static int accept_child(struct exsi_socket *child, const struct exsi_ep_attr *attr, struct exsi_ep_memory *memory,
                        const struct exsi_hello *hello)
{
    struct exsi_cm_id *id = child->cm;
    uint8_t reply[EXSI_HELLO_LEN];
    EXSI_TRY(make_endpoint(child, false, attr, memory));
    EXSI_TRY(take_hello(child, hello));
    hello_bytes(child, reply);
    return ops_of(child)->cm_accept(id, reply, sizeof reply);
}

static void child_failed(struct exsi_socket *child, int rc)
{
    exsi_log(&child->group->ctx->log, EXSI_LOG_WARNING, child->parent->handle, "accept failed: %s %s", strerror(-rc),
             child->reason);
    orphan(child);
}

void exsi_conn_go_on(struct exsi_socket *s, int rc, const struct exsi_ep_attr *attr, struct exsi_ep_memory *memory,
                     const struct exsi_hello *hello)
{
    if (rc == 0) rc = hello ? accept_child(s, attr, memory, hello) : dial(s, attr, memory);
    if (rc == 0) return;
    if (hello)
        child_failed(s, rc);
    else
        attempt_failed(s, -rc);
}

static void on_request(struct exsi_socket *listener, const struct exsi_cm_event *ev)
{
    struct exsi_hello hello;
    enum exsi_reject_code code;
    struct exsi_socket *child;
    if (listener->state != EXSI_SOCK_LISTENING || listener->n_pending >= (uint32_t)listener->backlog) {
        refuse(listener, ev, EXSI_REJECT_BUSY, "too many connections wait to be accepted");
        return;
    }
    if (check_hello(listener, ev, &hello, &code) < 0) {
        refuse(listener, ev, code, listener->reason);
        listener->reason[0] = '\0';
        return;
    }
    if (hello.flags & EXSI_HELLO_VERBS && listener->also && ev->listener == listener->listener) {
        refuse(listener, ev, EXSI_REJECT_VERBS, "dial verbs");
        return;
    }
    if (exsi_sock_new(listener->group, listener->family, listener->type, &listener->opt, &child) < 0) {
        refuse(listener, ev, EXSI_REJECT_BUSY, "out of memory");
        return;
    }
    atomic_store_explicit(&child->dev, exsi_choice_of(listener, ev), memory_order_relaxed);
    child->state = EXSI_SOCK_CONNECTING;
    child->parent = listener;
    listener->n_pending++;
    exsi_list_append(&listener->pending, &child->pending_node);
    child->conn_cookie = hello.cookie;
    ev->id->user = child;
    int rc = want_endpoint(child, ev->id, &hello);
    if (rc < 0) child_failed(child, rc);
}

static void child_up(struct exsi_socket *child)
{
    struct exsi_socket *listener = child->parent;
    child->established = true;
    come_up(child);
    /* Accepted in the order in which they came up. */
    exsi_list_unlink(&child->pending_node);
    exsi_list_append(&listener->pending, &child->pending_node);
    hand_out(listener);
    exsi_sock_changed(&listener->attach, EXSI_CHANGE_READABLE);
}

void exsi_conn_early(struct exsi_endpoint *ep)
{
    struct exsi_socket *s = ep->owner;
    if (s && s->parent && !s->established && s->state == EXSI_SOCK_CONNECTING) child_up(s);
}

/* --- events ------------------------------------------------------------------------------------------- */

void exsi_conn_dead(struct exsi_socket *s)
{
    if (s->state == EXSI_SOCK_CONNECTING && exsi_choice_retry(s)) return;
    s->dead = true;
    if (!s->attach.error) s->attach.error = s->ep->error;
    const char *why = s->attach.reason ? s->attach.reason : s->ep->reason;
    if (s->attach.error && !s->reason[0]) exsi_sock_reason(s, "%s", why);
    if (s->state == EXSI_SOCK_CONNECTING) {
        if (s->parent)
            orphan(s);
        else
            exsi_conn_fail(s, s->attach.error ? s->attach.error : ECONNRESET);
        return;
    }
    if (s->state == EXSI_SOCK_CONNECTED) s->state = EXSI_SOCK_DEAD;
}

static void on_established(struct exsi_socket *s, const struct exsi_cm_event *ev)
{
    if (s->state != EXSI_SOCK_CONNECTING) return; /* its first message was faster */
    if (s->parent)
        child_up(s);
    else
        on_connected(s, ev);
}

void exsi_conn_event(struct exsi_group *g, const struct exsi_cm_event *ev)
{
    (void)g;
    switch (ev->kind) {
    case EXSI_CM_RESOLVED: on_resolved(ev->id->user, ev); return;
    case EXSI_CM_REQUEST: on_request(ev->listener->user, ev); return;
    case EXSI_CM_ESTABLISHED: on_established(ev->id->user, ev); return;
    case EXSI_CM_FAILED: {
        struct exsi_socket *s = ev->id->user;
        if (s->state != EXSI_SOCK_CONNECTING) return;
        if (s->parent)
            orphan(s);
        else
            on_failed(s, ev);
        return;
    }
    case EXSI_CM_DISCONNECTED: {
        struct exsi_endpoint *ep = ev->qp->user;
        if (!ep->error) snprintf(ep->reason, sizeof ep->reason, "%.*s", EXSI_REASON_MAX - 1, ev->reason);
        exsi_ep_disconnected(ep, ev->error);
        return;
    }
    }
}
