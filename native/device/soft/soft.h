// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside the soft device: one set of queue pair semantics (qp.c) over two ways of moving bytes
 * (path_tcp.c, path_shm.c).
 *
 * A path knows no queue pairs: it is told to send messages in order, and it hands what arrives to a
 * sink.  The sink (qp.c) alone knows keys, posted receives and completions.  Payload is moved by the
 * path, once, straight between the two buffers that the sink names. */
#ifndef EXSI_SOFT_H
#define EXSI_SOFT_H

#include "base/list.h"
#include "device/device.h"

struct soft_path;
struct soft_part;
struct soft_qp;

/* Registered memory.  In soft, registration pins nothing. */
struct soft_mr {
    struct exsi_dmr dmr;
    atomic_uint users;     /* keys and posted requests that name it, for debug checks */
    uint64_t region_id;    /* process-wide name of a memfd-backed region, 0: none; told to shm peers */
};

/* One message on its way out, in the send queue of a queue pair.  The path moves it forward and says
 * when its last byte no longer needs the source (done). */
struct soft_tx {
    struct exsi_send_wr wr;
    uint8_t inline_data[64];   /* EXSI_WR_INLINE: wr.sge[0] points here */
    uint32_t len;              /* sum of the pieces */
    uint32_t sent;             /* path's: payload bytes handed on so far */
    uint32_t path_word;        /* path's own */
    uint64_t path_mark;        /* path's own (shm: descriptor number whose consumption ends it) */
    bool done;                 /* the source is free: may complete, in order */
};

/* What a path tells its queue pair.  All are called under the group's lock, and none re-enters the
 * path.  Errors (negative errno) make the path terminate the connection. */
struct soft_sink_ops {
    /* A tagged message piece: where [offset, offset+len) of the range behind rkey is.  Checks key,
     * bounds and access before a byte lands.  fragile: write it through system calls. */
    int (*tagged)(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst, bool *fragile);
    /* The piece has been placed (moved: bytes by the device). last: it ended a WRITE. */
    void (*tagged_done)(struct soft_qp *qp, uint32_t len, bool last);
    /* An untagged piece of message number msn (counted from 1) at offset mo: a buffer in the posted
     * receive.  -ENOBUFS: no receive posted; -EMSGSIZE: longer than the receive; -EPROTO: wrong order. */
    int (*untagged)(struct soft_qp *qp, uint32_t msn, uint32_t mo, uint32_t len, void **dst);
    /* It has been placed; last: the SEND is complete. */
    void (*untagged_done)(struct soft_qp *qp, uint32_t mo, uint32_t len, bool last, bool solicited);
    /* The head of the send queue made progress: complete what is done, offer more. */
    void (*tx_done)(struct soft_qp *qp);
    /* The other side shut down sending, in order and at a message boundary. */
    void (*peer_closed)(struct soft_qp *qp);
    /* The connection is dead; error as in es-api 1.11 (ECONNRESET, ETIMEDOUT, EPROTO ...), reason for the log. */
    void (*broken)(struct soft_qp *qp, int error, const char *reason);
};

extern const struct soft_sink_ops soft_qp_sink;

/* The two ways.  A path owns its descriptors and shared memory; it is made by cm.c when a connection
 * is agreed, and belongs to one queue pair. */
struct soft_path_ops {
    const char *family;   /* "tcp", "shm" */
    /* The name for sock.path; stable after set-up. */
    const char *(*name)(const struct soft_path *p);
    /* Push the queue pair's send queue (soft_qp_tx_head and following) as far as it goes now.
     * Never blocks; arranges to be called again (its own watch or progress) when more can go. */
    void (*kick)(struct soft_path *p);
    /* shm only: look at the rings; how much was done.  tcp: 0. */
    int (*progress)(struct soft_path *p);
    /* Sending is over: once the send queue is out, tell the peer in order. */
    void (*shut)(struct soft_path *p);
    /* A violation found by the sink or the path: tell the peer (Terminate) as far as it goes, then
     * stop receiving.  layer and code: RFC 5040 section 4.8. */
    void (*terminate)(struct soft_path *p, int layer, int etype, int code);
    /* Withdraw every source at once: after return the peer takes nothing more that counts, and nothing
     * more lands here. */
    void (*abort)(struct soft_path *p);
    void (*free)(struct soft_path *p);
    /* Memory that this one peer may fill itself (EXSI_ACCESS_ONE_PEER) got a key.  tcp ignores it. */
    void (*lend)(struct soft_path *p, uint32_t rkey, const struct soft_mr *mr, uint64_t raddr, size_t len);
};

struct soft_path {
    const struct soft_path_ops *ops;
    struct soft_part *part;
    struct soft_qp *qp;
    const struct soft_sink_ops *sink;
    struct exsi_stats *stats;
    uint64_t max_msg;         /* largest single WRITE it takes */
    struct exsi_list node;    /* in part->shm_paths (path_shm only) */
};

/* The send queue as a path sees it: oldest not done first. i = 0 is the head. NULL past the end. */
struct soft_tx *soft_qp_tx(struct soft_qp *qp, uint32_t i);

#endif
