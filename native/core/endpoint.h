// SPDX-License-Identifier: MIT OR Apache-2.0
/* An endpoint is one queue pair with what belongs to it: its posted receives, its send queue budget,
 * its state, its engine.  Sockets attach to it (STREAM and SEQPACKET: exactly one; SMC-R: up to 255),
 * and it may outlive them.  It knows no protocol: what a message means is the engine's.
 *
 * Every received message is copied out of its slot and the slot is posted again *before* the engine
 * sees it, so an engine may return the credit at once and a peer cannot change what was checked.
 *
 * Life: _new, then _make_qp when a device and an id are there, ESTABLISHED, then either side ends it;
 * engine->on_error is called exactly once, when the device said DISCONNECTED or set-up failed, and
 * after it nothing of the endpoint is in flight.  exsi_ep_free then. */
#ifndef EXSI_ENDPOINT_H
#define EXSI_ENDPOINT_H

#include "core/group.h"
#include "core/op.h"

struct exsi_engine_ops;
struct exsi_engine_config;
struct exsi_endpoint;

/* What a change means for the socket above; bits. */
enum exsi_change {
    EXSI_CHANGE_READABLE = 1,  /* a receive would not wait now */
    EXSI_CHANGE_WRITABLE = 2,  /* a one-byte send would not wait now */
    EXSI_CHANGE_PEER_FIN = 4,  /* the peer will send no more, all before it was delivered to the ring */
    EXSI_CHANGE_FIN_ACKED = 8, /* our FIN and all before it was processed */
    EXSI_CHANGE_FIN_SENT = 16, /* our FIN was given to the device */
    EXSI_CHANGE_DEAD = 32,     /* attach->error is set, every operation has ended */
};

/* A socket's place at an endpoint; embedded in the socket. */
struct exsi_attach {
    struct exsi_list node;    /* endpoint->attached */
    struct exsi_endpoint *ep; /* NULL: not attached */
    void *flow;               /* the engine's per-socket state */
    uint64_t socket;          /* handle, for events and logs */
    struct exsi_stats *stats;
    int error;          /* first error, positive errno; 0: healthy */
    const char *reason; /* of it, where that is not the endpoint's; the engine's, while attached */
    /* Upward, set by the socket; called under the group's lock from inside the engine: only note. */
    void (*changed)(struct exsi_attach *at, uint32_t what);
    /* An operation ends (its counts and queues are the socket's): before it is freed; may be NULL. */
    void (*finished)(struct exsi_attach *at, struct exsi_op *op);
};

enum exsi_ep_state { EXSI_EP_NEW, EXSI_EP_READY, EXSI_EP_UP, EXSI_EP_FAILING, EXSI_EP_DEAD };

struct exsi_ep_attr {
    uint32_t recv_slots, recv_slot_len;
    uint32_t send_wr;
    uint32_t max_keys; /* live at once; more wait for those that end */
    bool strict_keys;
    uint32_t ring_len; /* memory that the peer may fill: bytes, 0: none */
    /* Raw: longest message, where that is more than recv_slot_len; what is longer than a slot lies in one buffer that
     * all receives share.  0: a slot holds all. */
    uint32_t spill_len;
    const uint8_t *gid; /* raw: the GID to have, or NULL; borrowed until _make_qp */
};

/* What an endpoint needs of registered memory.  The ring is a region that is closing already: its one use is
 * held here, and it goes with it. */
struct exsi_ep_memory {
    struct exsi_block slots, spill;
    uint8_t *ring; /* NULL: none */
    struct exsi_mr *ring_mr;
    struct exsi_dmr *ring_dmr;
};

struct exsi_endpoint {
    struct exsi_group *group;
    struct exsi_device *dev;
    struct exsi_part *part;
    const struct exsi_device_ops *ops;
    const struct exsi_engine_ops *engine;
    void *engine_state;
    struct exsi_qp *qp;
    struct exsi_cm_id *cm;
    struct exsi_list group_node, dirty_node;
    struct exsi_list attached;
    struct exsi_stats *stats; /* of the one socket, or the endpoint's own */
    uint64_t handle, log_id;
    enum exsi_ep_state state;
    int error;                    /* first error, positive; what every operation ends with */
    char reason[EXSI_REASON_MAX]; /* of it, in words; may be empty */
    bool active;                  /* we dialled: we speak first */
    bool immediate;               /* both sides have immediate data */
    bool key_per_range;           /* as exsi_qp_info; known once the queue pair is made */
    bool opened;                  /* engine->ep_open succeeded: _free calls ep_close */
    bool room_wanted;             /* exsi_ep_room said no: on_room is owed */
    bool shut;                    /* exsi_ep_disconnect was called */
    struct exsi_ep_attr attr;
    struct exsi_ep_memory memory;
    /* Send budget: posted and not retired; unsignalled ones retire with the next signalled one. */
    uint32_t sq_used, sq_unsignalled;
    uint16_t *sq_fifo; /* requests that each signalled completion retires */
    uint32_t sq_fifo_head, sq_fifo_len;
    struct exsi_list blocks; /* of exsi_ep_send_block, in posting order */
    void *owner;             /* sock/conn.c's */
};

/* Registered for dev, as attr says.  May block: without any lock. */
EXSI_MUST_CHECK int exsi_ep_memory_new(struct exsi_ctx *ctx, struct exsi_device *dev, const struct exsi_ep_attr *attr,
                                       struct exsi_ep_memory *out);
/* Give it back; under the group's lock, which does not wait for it. */
void exsi_ep_memory_drop(struct exsi_group *g, struct exsi_ep_memory *m);

/* Takes the memory, also when it fails. */
EXSI_MUST_CHECK int exsi_ep_new(struct exsi_group *g, struct exsi_device *dev, const struct exsi_engine_ops *engine,
                                const struct exsi_ep_attr *attr, struct exsi_ep_memory *memory,
                                struct exsi_stats *stats, struct exsi_endpoint **out);
/* Create the queue pair on id (NULL: raw) and post every receive.  On success the endpoint owns id. */
EXSI_MUST_CHECK int exsi_ep_make_qp(struct exsi_endpoint *ep, struct exsi_cm_id *id);
/* engine->ep_open, once the queue pair is there; remembered, so that _free closes it. */
EXSI_MUST_CHECK int exsi_ep_open_engine(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg);
/* ESTABLISHED: state UP and engine->on_up.  (Receives may have come before it on the passive side.) */
void exsi_ep_up(struct exsi_endpoint *ep);
/* Destroys queue pair and id, then closes the engine's half.  No operation is left; the memory is freed
 * by exsi_group_reap, after the current pass. */
void exsi_ep_free(struct exsi_endpoint *ep);
/* Free the endpoints that ended in this pass: last step of progress, and of closing a group. */
void exsi_group_reap(struct exsi_group *g);

/* Link and unlink; engine->attach and ->detach are called from here. */
EXSI_MUST_CHECK int exsi_ep_attach(struct exsi_endpoint *ep, struct exsi_attach *at);
void exsi_ep_detach(struct exsi_attach *at);

/* Room for n work requests (a WRITE with its notice counts as 2 without immediate data)?  If not,
 * engine->on_room will be called when some came back. */
bool exsi_ep_room(struct exsi_endpoint *ep, uint32_t n);
uint32_t exsi_ep_write_cost(const struct exsi_endpoint *ep);
/* SEND of len bytes, copied.  Needs room for 1.  Fails only if the endpoint is dead, or with -EMSGSIZE
 * above what the device copies. */
EXSI_MUST_CHECK int exsi_ep_send(struct exsi_endpoint *ep, const void *data, uint32_t len, bool solicited);
/* SEND of the first len bytes of a block, which is the endpoint's from now on, also when it fails.  Needs room for 1.
 */
EXSI_MUST_CHECK int exsi_ep_send_block(struct exsi_endpoint *ep, struct exsi_block *block, uint32_t len,
                                       bool solicited);
/* WRITE of one piece and, in order behind it, the notice WORD: as immediate data, or as a 4-byte SEND.
 * len 0: only the notice, and no on_write_done.  Else engine->on_write_done(wr_id) when the source is
 * free; these come in posting order.  Needs room for write_cost. */
EXSI_MUST_CHECK int exsi_ep_write(struct exsi_endpoint *ep, uint64_t wr_id, const void *src, uint32_t len,
                                  struct exsi_dmr *mr, uint64_t raddr, uint32_t rkey, uint32_t word);
/* WRITE without a notice (SMC-R: CDC follows as a SEND of its own). */
EXSI_MUST_CHECK int exsi_ep_write_silent(struct exsi_endpoint *ep, uint64_t wr_id, const void *src, uint32_t len,
                                         struct exsi_dmr *mr, uint64_t raddr, uint32_t rkey);
EXSI_MUST_CHECK int exsi_ep_key_bind(struct exsi_endpoint *ep, struct exsi_dmr *mr, void *addr, size_t len,
                                     uint32_t *rkey);
/* 0: dead now; 1: engine->on_invalidated(wr_id) will say so. */
EXSI_MUST_CHECK int exsi_ep_key_invalidate(struct exsi_endpoint *ep, uint32_t rkey, uint64_t wr_id);
/* engine->before_flush is to run when the group is flushed, though nothing was posted. */
void exsi_ep_touch(struct exsi_endpoint *ep);
/* The end in order: nothing is posted any more, what was posted goes out, DISCONNECTED follows. */
void exsi_ep_disconnect(struct exsi_endpoint *ep);
/* Connection is over because of ERROR (positive); reason goes to the log.  Flushes; on_error follows. */
void exsi_ep_fail(struct exsi_endpoint *ep, int error, const char *fmt, ...) EXSI_PRINTF(3, 4);

/* From progress: one completion of its queue pair. */
void exsi_ep_completion(struct exsi_endpoint *ep, const struct exsi_wc *wc);
/* From progress: DISCONNECTED.  Calls engine->on_error once. */
void exsi_ep_disconnected(struct exsi_endpoint *ep, int error);
/* Start what all dirty endpoints of the group posted. */
void exsi_group_flush(struct exsi_group *g);

#endif
