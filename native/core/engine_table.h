// SPDX-License-Identifier: MIT OR Apache-2.0
/* The engine table: a protocol over one endpoint.  Two halves: what happens to the endpoint, and what
 * a socket asks for.  An engine is written once, for every device; it never asks which one it runs on
 * (ES-API 2.5).
 * Everything is called under the group's lock, never re-entered, and never blocks.
 * The table stands in core because the endpoint calls it; the engines behind it are in engine/. */
#ifndef EXSI_ENGINE_TABLE_H
#define EXSI_ENGINE_TABLE_H

#include "core/endpoint.h"
#include "wire/exs_wire.h"

struct exsi_engine_config {
    uint32_t ring_bytes;       /* stream: intermediate ring */
    uint32_t max_adverts;      /* advertisements of the peer that we remember */
    uint32_t recv_slots;       /* receives posted for the peer: its credits */
    uint64_t max_transfer;     /* largest single WRITE */
    uint32_t direct_threshold; /* bytes; see ES-API 2.3.9 */
    uint32_t direct_hold_us;
    bool strict_keys;
};

struct exsi_engine_ops {
    const char *name;

    /* --- endpoint half --- */
    /* What the endpoint must be made with; out is zeroed. */
    void (*ep_attr)(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out);
    /* Engine state of an endpoint; after the queue pair exists (keys can be bound). */
    int (*ep_open)(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg);
    void (*ep_close)(struct exsi_endpoint *ep);
    /* Our block of the private data, and the peer's: -EPROTO with reason. */
    void (*hello)(struct exsi_endpoint *ep, struct exsi_hello *out);
    int (*peer_hello)(struct exsi_endpoint *ep, const struct exsi_hello *in, char *reason);
    /* Data may flow.  The active side speaks first. */
    void (*on_up)(struct exsi_endpoint *ep);
    /* What was posted is about to start: the moment to send, once, for all that has happened (exsi_ep_touch). */
    void (*before_flush)(struct exsi_endpoint *ep);
    /* A SEND arrived (word == NULL) or a WRITE with immediate data (data empty).  data is a private copy. */
    void (*on_recv)(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word);
    void (*on_write_done)(struct exsi_endpoint *ep, uint64_t wr_id, int error);
    void (*on_invalidated)(struct exsi_endpoint *ep, uint64_t wr_id);
    /* Send queue room came back: try again. */
    void (*on_room)(struct exsi_endpoint *ep);
    /* The end: finish every operation with ep->error (a clean end: 0 reads as end of stream). Once. */
    void (*on_error)(struct exsi_endpoint *ep);

    /* --- socket half --- */
    int (*attach)(struct exsi_attach *at);  /* makes at->flow */
    void (*detach)(struct exsi_attach *at); /* every operation has ended; frees at->flow */
    /* Take the op: 0 accepted (it may have been finished already), or -errno refused, op untouched. */
    int (*send)(struct exsi_attach *at, struct exsi_op *op);
    int (*recv)(struct exsi_attach *at, struct exsi_op *op);
    /* DONTWAIT receive: copy what the ring holds; bytes, 0 at end of stream, -EAGAIN. */
    int64_t (*take)(struct exsi_attach *at, void *buf, size_t len, bool fragile);
    /* Ask for the end of a send or recv.  It may finish within the call, or later (revoke). */
    void (*cancel)(struct exsi_attach *at, struct exsi_op *op);
    /* FIN behind everything accepted; idempotent. */
    void (*shutdown_send)(struct exsi_attach *at);
    /* End pending receives with 0, discard and acknowledge what arrives later. */
    void (*shutdown_recv)(struct exsi_attach *at);
    /* End the connection of this socket at once: its operations end with error (positive), and EXSI_CHANGE_DEAD
     * follows.  Others on the endpoint go on. */
    void (*abort)(struct exsi_attach *at, int error, const char *why);
    /* Both sides are through with each other: EXSI_CHANGE_DEAD follows, in order. */
    void (*disconnect)(struct exsi_attach *at);
    /* enum exsi_change bits that hold now. */
    uint32_t (*ready)(const struct exsi_attach *at);
};

#endif
