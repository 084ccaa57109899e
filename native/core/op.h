// SPDX-License-Identifier: MIT OR Apache-2.0
/* One started operation.  It is made by a post, finished exactly once by exsi_op_finish, and gone
 * after that: finishing releases its memory, its slot and its staging, and delivers its one event,
 * to the queue or to the API call that is still running.  Under the group's lock. */
#ifndef EXSI_OP_H
#define EXSI_OP_H

#include "core/eq.h"
#include "core/mr.h"
#include "core/pool.h"

enum exsi_op_kind {
    EXSI_OP_SEND = 1,
    EXSI_OP_RECV = 2,
    EXSI_OP_CONNECT = 3,
    EXSI_OP_ACCEPT = 4,
    EXSI_OP_SHUTDOWN = 5,
    EXSI_OP_CLOSE = 6,
    EXSI_OP_POLL = 7,
    EXSI_OP_NOTICE = 8, /* a link has something to take */
};

enum exsi_op_flag {
    EXSI_OPF_WAITALL = 1,     /* recv: only when full */
    EXSI_OPF_DONTWAIT = 2,    /* recv: take what is there now or refuse with -EAGAIN; no event */
    EXSI_OPF_SHUT_WR = 4,     /* send: FIN behind it */
    EXSI_OPF_STRICT_SIZE = 8, /* seqpacket send: EMSGSIZE instead of truncating */
    EXSI_OPF_POLL_IN = 16,
    EXSI_OPF_POLL_OUT = 32,
    EXSI_OPF_URGENT = 64, /* SMC-R send: the last byte is urgent */
};

struct exsi_iov {
    uint8_t *base;
    size_t len;
    struct exsi_mr *mr;   /* holds one use; NULL: the op's staging memory */
    struct exsi_dmr *dmr; /* on the endpoint's device */
};

struct exsi_attach;
struct exsi_poll_set;

struct exsi_op {
    struct exsi_list node; /* in the engine's or the socket's queue */
    struct exsi_group *group;
    struct exsi_attach *attach;
    struct exsi_eq *eq; /* one slot reserved */
    uint64_t handle, cookie;
    uint8_t kind;
    bool cancelling; /* cancel was asked for; ends with ECANCELED or what it had done */
    uint32_t flags;
    uint32_t n_iov;
    struct exsi_iov *iov; /* iov1, or allocated */
    struct exsi_iov iov1;
    struct exsi_block staging; /* copy of a small unregistered send */
    struct exsi_iov *scatter;  /* sock/'s: the caller's pieces of a receive that bounces */
    uint32_t n_scatter;
    bool scatter_fragile;
    struct exsi_poll_set *poll_set; /* sock/'s: what a POLL looks at */
    uint64_t cancel_ns;             /* sock/'s: when the end was asked for, 0: not */
    uint64_t len;                   /* sum of iov */
    int error;                      /* set by _finish; attach.finished may still change it */
    uint64_t done;                  /* send: bytes whose source is free again; recv: bytes placed */
    uint16_t event_flags;
    uint64_t extra;
    union { /* the engine's own */
        struct {
            uint64_t posted;    /* bytes given to the device */
            uint32_t in_flight; /* WRITEs not completed */
            bool begun;         /* seqpacket: an advertisement is taken */
            bool cut;           /* stream: what was not posted is dropped */
            bool direct;        /* SMC-R: not to be copied */
        } send;
        struct {
            uint64_t adv_ind;
            uint32_t adv_id;  /* live advertisement, 0: none */
            uint32_t adv_len; /* bytes that it still covers, from done on */
            uint32_t rkey;
            int32_t error;    /* ended: the result that waits */
            uint8_t revoke;   /* engine/flow.h */
            bool key_pending; /* an invalidation is on its way: no event before it */
            bool ended;       /* has its result */
        } recv;
    } e;
};

/* A zeroed op with one queue slot reserved: -EAGAIN, -ENOMEM. */
EXSI_MUST_CHECK int exsi_op_new(struct exsi_group *g, struct exsi_eq *eq, enum exsi_op_kind kind, uint64_t cookie,
                                struct exsi_op **out);
/* The first len bytes of the block are the op's only piece; it goes back to its pool with the op. */
void exsi_op_stage(struct exsi_op *op, const struct exsi_block *block, size_t len);
/* Room for n pieces in op->iov (zeroed; the caller fills them and op->len): -ENOMEM. */
EXSI_MUST_CHECK int exsi_op_pieces(struct exsi_op *op, uint32_t n);
/* Undo _new for a post that is refused: no event. */
void exsi_op_drop(struct exsi_op *op);
/* The end: error 0 or a positive errno; value as in exsi_event.  op is gone after the call. */
void exsi_op_finish(struct exsi_op *op, int error, uint64_t value);
/* The contiguous bytes at offset off of the operation: pointer, its registration; returns their length
 * (0 at the end). */
size_t exsi_op_span(const struct exsi_op *op, uint64_t off, uint8_t **ptr, struct exsi_dmr **dmr, bool *fragile);
/* The live op behind a handle, or NULL. */
struct exsi_op *exsi_op_find(struct exsi_group *g, uint64_t handle);

#endif
