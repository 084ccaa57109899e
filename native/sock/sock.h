// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sockets: states, options, and the way from a name to a connected endpoint and back.
 *   socket.c    struct exsi_socket itself: making, finding, looking at it, its end
 *   conn.c      connect, listen, accept, and what connection management says
 *   choice.c    which device carries a connection
 *   setup.c     the memory of a new connection, made without the lock
 *   close.c     shutdown, close, abort, cancel, and the bound on all of them
 *   link.c      links, on which many sockets share a queue pair (SMC-R)
 *   xfer.c      sends and receives: memory, state checks, the way into the engine
 *   poll.c      readiness
 *   progress.c  the one function that moves a group
 *   wait.c      taking events from a queue, and sleeping on it
 *   thread.c    the native thread that calls it for a threaded group
 *
 * Everything here runs under the group's lock unless it says otherwise.  ctx->lock is a leaf: it may be
 * taken under a group's lock, and no other lock is taken under it.
 *
 * Life of a socket: references keep the memory (the core holds one until the socket is closed and its
 * endpoint freed, each API call one while it runs); the state says what may be done.  A closed socket's
 * endpoint may linger until its peer has acknowledged the end; the handle is dead all the same.
 *
 * Engines and devices only note what changed (exsi_sock_changed); what follows from it is done in
 * exsi_sock_look, when no engine is on the stack. */
#ifndef EXSI_SOCK_H
#define EXSI_SOCK_H

#include "core/endpoint.h"
#include "engine/engine.h"
#include "sock/types.h"

struct exsi_link;

struct exsi_socket {
    struct exsi_attach attach;     /* first: changed() finds the socket from it */
    struct exsi_group *group;      /* shares: one reference */
    struct exsi_list group_node;   /* group->sockets */
    struct exsi_list changed_node; /* group->changed */
    uint64_t handle;
    int family, type;
    enum exsi_socket_state state;
    exsi_options opt;
    struct exsi_stats stats;
    struct exsi_endpoint *ep;
    struct exsi_link *link;            /* whose ep is; NULL: ep is the socket's own */
    _Atomic(struct exsi_device *) dev; /* set once, when the device is chosen */
    const struct exsi_engine_ops *engine;
    union exsi_addr local, peer;
    char path[16];
    char reason[EXSI_REASON_MAX];
    uint64_t conn_cookie;
    /* choice.c: "auto" */
    struct exsi_device *better; /* what this connect may move to */
    bool moving;                /* and is dialling now */
    union exsi_addr target;     /* what was dialled */
    struct exsi_cm_id *cm;      /* before the endpoint owns it */
    struct exsi_setup *setup;   /* its memory is being made; NULL: not, or nobody waits for it any more */
    bool bound, send_shut, recv_shut;
    bool shut_asked; /* send_shut by shutdown or close, not only by a send's own flag */
    bool dead;       /* the connection is over: nothing of it is in flight */
    bool aborted, discarding, disconnecting;
    bool overdue; /* close_timeout ran out before the device had everything */
    /* listener */
    struct exsi_cm_id *listener;
    struct exsi_cm_id *also; /* choice.c: on also_dev, same address */
    struct exsi_device *also_dev;
    int backlog;
    struct exsi_list pending; /* sockets connected or in set-up, not accepted yet */
    struct exsi_list pending_node;
    uint32_t n_pending;
    bool established;
    struct exsi_socket *parent; /* while pending */
    /* operations that no engine has */
    struct exsi_list accepts, polls, shutdowns, closes;
    struct exsi_op *connect_op;
    uint32_t sends, recvs;   /* in flight, against opt.max_ops */
    struct exsi_timer timer; /* bound on a close and on cancelled operations */
};

/* What a connect or listen may use, found before it begins (choice.c). */
struct exsi_devices {
    struct exsi_device *first;  /* rc < 0: none, for the reason given */
    struct exsi_device *better; /* if "auto" may move there */
    int rc;
    char reason[EXSI_REASON_MAX];
};

/* --- socket.c ------------------------------------------------------------------------------- */
/* End everything in a group: abort what is open, free what lingers.  Without its lock; may wait a
 * quarter of a second for what was closed in order.  Afterwards the group may be closed. */
void exsi_sock_group_end(struct exsi_group *g);
/* A socket with its handle, in state NEW.  -ENOMEM. */
EXSI_MUST_CHECK int exsi_sock_new(struct exsi_group *g, int family, int type, const exsi_options *opt,
                                  struct exsi_socket **out);
/* The socket behind a handle, with one reference more; NULL.  Without the group's lock. */
struct exsi_socket *exsi_sock_get(struct exsi_ctx *ctx, uint64_t handle);
void exsi_sock_put(struct exsi_socket *s);
/* attach.changed, and the socket's own way of asking for a look. */
void exsi_sock_changed(struct exsi_attach *at, uint32_t what);
/* Do what follows from what changed; true if something was done. */
bool exsi_sock_look(struct exsi_group *g);
/* enum exsi_change bits that hold now. */
uint32_t exsi_sock_ready(const struct exsi_socket *s);
void exsi_sock_query(struct exsi_socket *s, exsi_socket_info *info);
/* The socket is closed and its endpoint over: free the endpoint, the handle and the core's reference. */
void exsi_sock_retire(struct exsi_socket *s);
/* What the peer's or our own name is; -ENOTCONN. */
EXSI_MUST_CHECK int exsi_sock_name(struct exsi_socket *s, bool peer, union exsi_addr *out);
void exsi_sock_reason(struct exsi_socket *s, const char *fmt, ...) EXSI_PRINTF(2, 3);

/* --- conn.c --------------------------------------------------------------------------------- */
EXSI_MUST_CHECK int exsi_conn_bind(struct exsi_socket *s, const union exsi_addr *addr);
EXSI_MUST_CHECK int exsi_conn_listen(struct exsi_socket *s, int backlog, const struct exsi_devices *devices);
/* Take the op: 0 and its event will come, or refused. */
EXSI_MUST_CHECK int exsi_conn_connect(struct exsi_socket *s, const union exsi_addr *peer,
                                      const struct exsi_devices *devices, struct exsi_op *op);
EXSI_MUST_CHECK int exsi_conn_accept(struct exsi_socket *s, struct exsi_op *op);
void exsi_conn_event(struct exsi_group *g, const struct exsi_cm_event *ev);
/* A receive completed on an endpoint whose ESTABLISHED is still on its way: it is established. */
void exsi_conn_early(struct exsi_endpoint *ep);
/* The connect that is under way ends with error (positive). */
void exsi_conn_fail(struct exsi_socket *s, int error);
/* Destroy the endpoint, or the id, of a socket: no operation of an engine is left. */
void exsi_conn_teardown(struct exsi_socket *s);
/* The listener ends: its pending connections are aborted, its accepts finish with error. */
void exsi_conn_unlisten(struct exsi_socket *s, int error);
/* The connection is over with error (positive; 0: in order): what the socket must finish. */
void exsi_conn_dead(struct exsi_socket *s);

/* The memory is there, or rc says why not: make the endpoint, and connect or (hello: the peer's) accept. */
void exsi_conn_go_on(struct exsi_socket *s, int rc, const struct exsi_ep_attr *attr, struct exsi_ep_memory *memory,
                     const struct exsi_hello *hello);

struct exsi_cm_options exsi_conn_options(const struct exsi_socket *s);

/* --- choice.c ------------------------------------------------------------------------------- */
/* Open what a connect to peer, or a listen (NULL), may need: without the group's lock, for it may block. */
void exsi_choice_open(struct exsi_socket *s, const union exsi_addr *peer, struct exsi_devices *out);
/* The device that was asked for, or the one on which everybody meets; and the group's part of it. */
EXSI_MUST_CHECK int exsi_choice_first(struct exsi_socket *s, const struct exsi_devices *devices,
                                      struct exsi_part **part);
/* Begin to connect: RESOLVED or FAILED follows. */
EXSI_MUST_CHECK int exsi_choice_dial(struct exsi_socket *s, const union exsi_addr *peer,
                                     const struct exsi_devices *devices);
/* Does our hello offer the better device? */
bool exsi_choice_offered(const struct exsi_socket *s);
/* The listener said "dial verbs": true if we do (or dial soft again); the former id or endpoint is gone. */
bool exsi_choice_move(struct exsi_socket *s);
/* The connect failed: true if it begins anew on the device where everybody meets. */
bool exsi_choice_retry(struct exsi_socket *s);
/* Connected: it stays where it is. */
void exsi_choice_settled(struct exsi_socket *s);
/* Listen on the better device (NULL: none) too, if that can be had; and no more. */
void exsi_choice_listen(struct exsi_socket *s, struct exsi_device *better);
void exsi_choice_unlisten(struct exsi_socket *s);
/* The device that a request came in on. */
struct exsi_device *exsi_choice_of(const struct exsi_socket *listener, const struct exsi_cm_event *ev);

/* --- setup.c -------------------------------------------------------------------------------- */
/* Make the memory that attr asks for once the lock is left, then exsi_conn_go_on.  -ENOMEM: it will not come. */
EXSI_MUST_CHECK int exsi_setup_start(struct exsi_socket *s, const struct exsi_ep_attr *attr,
                                     const struct exsi_hello *hello);

/* --- close.c -------------------------------------------------------------------------------- */
EXSI_MUST_CHECK int exsi_close_shutdown(struct exsi_socket *s, int how, struct exsi_op *op);
/* op may be NULL: no event. */
void exsi_close_start(struct exsi_socket *s, bool abort, struct exsi_op *op);
/* Whatever of a shutdown or close can be finished now. */
void exsi_close_step(struct exsi_socket *s, uint32_t ready);
/* End the connection at once; operations end with error (positive). */
void exsi_close_abort(struct exsi_socket *s, int error, const char *why);
/* Ask for the end of one operation of the socket. */
void exsi_close_cancel(struct exsi_socket *s, struct exsi_op *op);
/* All operations of the socket, or of the group if s is NULL, with that cookie if match; how many. */
int exsi_close_cancel_match(struct exsi_group *g, struct exsi_socket *s, bool match, uint64_t cookie);

/* --- xfer.c --------------------------------------------------------------------------------- */
/* A send or receive before it is an operation: what was asked, and the memory found for it.  Prepared and
 * dropped without any lock (registration may pin pages). */
#define EXSI_XFER_INLINE 4
struct exsi_xfer {
    bool receive;
    uint32_t flags;     /* enum exsi_op_flag */
    bool fragile, look; /* memory that is not registered: api.h */
    int n;
    uint64_t len;
    bool copy;                 /* small and not registered: staged */
    bool bounce;               /* scattered receive of a message: staged */
    struct exsi_device *dev;   /* that the memory was registered on; NULL: the socket had none */
    struct exsi_block staging; /* copy: the bytes */
    struct exsi_iov bounced;   /* bounce: where the message goes first */
    uint32_t registrations;    /* regions made for this call */
    struct exsi_iov *iov;      /* small, or allocated */
    struct exsi_iov small[EXSI_XFER_INLINE];
};
EXSI_MUST_CHECK int exsi_xfer_prepare(struct exsi_socket *s, const exsi_piece *vec, int n, uint32_t flags, bool receive,
                                      struct exsi_xfer *x);
/* Give back what no operation has taken. */
void exsi_xfer_drop(struct exsi_socket *s, struct exsi_xfer *x);
/* Make the operation and hand it to the engine.  by_caller: if it ends now, the API call reports it. */
EXSI_MUST_CHECK int exsi_xfer_post(struct exsi_socket *s, struct exsi_xfer *x, struct exsi_eq *eq, uint64_t cookie,
                                   bool by_caller, uint64_t *handle);
/* 0, or why nothing can be received. */
EXSI_MUST_CHECK int exsi_xfer_may_receive(const struct exsi_socket *s);
/* DONTWAIT: bytes taken now, or -EAGAIN. */
int64_t exsi_xfer_take(struct exsi_socket *s, const exsi_piece *vec, int n, bool fragile);
/* attach.finished. */
void exsi_xfer_finished(struct exsi_attach *at, struct exsi_op *op);

/* --- poll.c --------------------------------------------------------------------------------- */
/* One readiness operation over n sockets of the group; flags: EXSI_OPF_POLL_IN and _OUT of each. */
EXSI_MUST_CHECK int exsi_poll_start(struct exsi_socket *const *socks, const uint32_t *flags, uint32_t n,
                                    struct exsi_op *op);
void exsi_poll_end(struct exsi_op *op, int error, uint32_t bits);
/* The socket has become ready: end what waited for that. */
void exsi_poll_look(struct exsi_socket *s, uint32_t ready);
void exsi_poll_end_all(struct exsi_socket *s, int error);

/* --- progress.c ----------------------------------------------------------------------------- */
/* One bounded run of everything: descriptors and timers (if fds), shared memory, completions, connection
 * events, posts.  True if something was done. */
bool exsi_progress(struct exsi_group *g, bool fds);
/* What a post set off: flush and take completions until quiet, no descriptors. */
void exsi_settle(struct exsi_group *g);
/* Tell the devices whether anybody sleeps on the group. */
void exsi_doorbell(struct exsi_group *g);

/* For whoever takes the lock in a loop: a mutex is not fair, so those who announced themselves go first. */
void exsi_group_let_in(struct exsi_group *g);

/* --- wait.c --------------------------------------------------------------------------------- */
/* As exsi_eq_drain, exsi_eq_poll and exsi_eq_wait of api.h.  Without any lock. */
int exsi_wait_drain(struct exsi_eq *eq, exsi_event *out, int max, uint32_t spin_us);
int exsi_wait_poll(struct exsi_eq *eq, exsi_event *out, int max);
int exsi_wait_events(struct exsi_eq *eq, exsi_event *out, int max, int least, int64_t timeout_us, int mode,
                     uint32_t spin_us);
/* Nobody sleeps on the queue any more: before it is closed. */
void exsi_wait_disarm(struct exsi_eq *eq);

/* --- thread.c ------------------------------------------------------------------------------- */
EXSI_MUST_CHECK int exsi_thread_start(struct exsi_group *g);
/* Join it; without the group's lock.  Nothing if there is none. */
void exsi_thread_stop(struct exsi_group *g);

#endif
