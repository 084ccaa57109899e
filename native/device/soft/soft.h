// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside the soft device: one set of queue pair semantics (qp.c) over two ways of moving bytes
 * (path_tcp.c, path_shm.c).
 *
 * A path knows no queue pairs: it is told to send messages in order, and it hands what arrives to a
 * sink.  The sink (qp.c) alone knows keys, posted receives and completions.  Payload is moved by the
 * path, once, straight between the two buffers that the sink names. */
#ifndef EXSI_SOFT_H
#define EXSI_SOFT_H

#include <stdatomic.h>
#include <stdlib.h>

#include "base/list.h"
#include "device/device.h"

struct soft_path;
struct soft_part;
struct soft_qp;
struct soft_shm;
struct soft_shm_part;

/* A region in a memory file, as connections in shared memory know it.  Counted, because it outlives the
 * registration until every connection whose peer has the file mapped has told that peer to forget it. */
struct soft_region {
    uint64_t id; /* process-wide, never 0 */
    atomic_uint refs;
    atomic_bool gone; /* the registration ended */
};

/* Registered memory.  In soft, registration pins nothing. */
struct soft_mr {
    struct exsi_dmr dmr;
    atomic_uint users;          /* keys and posted requests that name it, for debug checks */
    struct soft_region *region; /* memfd-backed and for peers to read; else NULL */
};

/* One message on its way out, in the send queue of a queue pair.  The path moves it forward and says
 * when its last byte no longer needs the source (done). */
struct soft_tx {
    struct exsi_send_wr wr;
    uint8_t inline_data[64]; /* EXSI_WR_INLINE: wr.sge[0] points here */
    uint32_t len;            /* sum of the pieces */
    uint32_t sent;           /* path's: payload bytes handed on so far */
    uint32_t path_word;      /* path's own */
    uint64_t path_mark;      /* path's own (shm: descriptor number whose consumption ends it) */
    bool done;               /* the source is free: may complete, in order */
};

static inline void soft_region_put(struct soft_region *r)
{
    if (r && atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) == 1) free(r);
}

/* What a path tells its queue pair.  All are called under the group's lock, and none re-enters the
 * path.  Errors (negative errno) make the path terminate the connection. */
struct soft_sink_ops {
    /* A tagged message piece: where [offset, offset+len) of the range behind rkey is.  Checks key,
     * bounds and access before a byte lands.  fragile: write it through system calls.  -ENOENT: no such
     * key; -ERANGE: outside of its range; -EACCES: not for writing; -ECANCELED: the queue pair is down. */
    int (*tagged)(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst, bool *fragile);
    /* The piece has been placed; the sink counts bytes_device.  last: it ended a WRITE. */
    void (*tagged_done)(struct soft_qp *qp, uint32_t len, bool last);
    /* An untagged piece of message number msn (counted from 1) at offset mo: a buffer in the posted
     * receive.  -ENOBUFS: no receive posted; -EMSGSIZE: longer than the receive; -EPROTO: message
     * out of order; -ERANGE: its piece is. */
    int (*untagged)(struct soft_qp *qp, uint32_t msn, uint32_t mo, uint32_t len, void **dst);
    /* It has been placed; last: the SEND is complete. */
    void (*untagged_done)(struct soft_qp *qp, uint32_t mo, uint32_t len, bool last, bool solicited);
    /* May a SEND be taken now?  If not, the path keeps it and receives nothing more until its _resume. */
    bool (*may_receive)(struct soft_qp *qp);
    /* One or more messages are done: completes them in order from the head (the sink counts their bytes),
     * after which soft_qp_tx(0) is the oldest that is not done. */
    void (*tx_done)(struct soft_qp *qp);
    /* The other side shut down sending, in order and at a message boundary. */
    void (*peer_closed)(struct soft_qp *qp);
    /* The connection is dead; error as in ES-API 1.11 (ECONNRESET, ETIMEDOUT, EPROTO ...), reason for the log. */
    void (*broken)(struct soft_qp *qp, int error, const char *reason);
};

extern const struct soft_sink_ops soft_qp_sink;

/* The two ways.  A path owns its descriptors and shared memory; it is made by cm.c when a connection
 * is agreed, and belongs to one queue pair. */
struct soft_path_ops {
    const char *family; /* "tcp", "shm" */
    /* The name for sock.path; stable after set-up. */
    const char *(*name)(const struct soft_path *p);
    /* The upper layer knows that the connection is up: from now on bytes may be received (shm: the path
     * puts itself into part->shm_paths).  -errno: the connection fails. */
    int (*start)(struct soft_path *p);
    /* Push the queue pair's send queue (soft_qp_tx_head and following) as far as it goes now.
     * Never blocks; arranges to be called again (its own watch or progress) when more can go. */
    void (*kick)(struct soft_path *p);
    /* shm only: look at the rings; how much was done.  tcp: 0. */
    int (*progress)(struct soft_path *p);
    /* A receive was posted after may_receive had said no.  Only raw queue pairs, which are tcp. */
    void (*resume)(struct soft_path *p);
    /* Sending is over: once the send queue is out, tell the peer in order. */
    void (*shut)(struct soft_path *p);
    /* A violation found by the sink or the path: tell the peer (Terminate) as far as it goes, then
     * stop receiving.  layer and code: RFC 5040 §4.8. */
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
    uint64_t max_msg;      /* largest single WRITE it takes */
    bool raw;              /* of a raw queue pair: a SEND may come before its receive, and waits */
    struct exsi_list node; /* in part->shm_paths (path_shm only; inserted by start, unlinked by abort or free) */
};

/* The send queue as a path sees it: oldest not done first. i = 0 is the head. NULL past the end. */
struct soft_tx *soft_qp_tx(struct soft_qp *qp, uint32_t i);

/* RFC 5040 §4.8, RFC 5041 §7.1: what to say in a Terminate for an error of the sink. */
struct soft_terminate {
    uint8_t layer, etype, code;
};
struct soft_terminate soft_terminate_for(int error, bool tagged);

/* --- scripted faults (fault.c): zeroed means none; tests set them in the part ------------------- */

struct soft_fault {
    uint32_t max_send, max_recv;     /* most bytes of one sendmsg / recvmsg, 0: no cap */
    uint64_t corrupt_crc_at;         /* spoil the CRC of this FPDU sent by the part (counted from 1), 0: none */
    uint64_t kill_after;             /* reset the connection after so many bytes sent by the part, 0: never */
    uint64_t delay_ns;               /* a path that has something to send waits so long before each call */
    bool no_shm;                     /* answer and offer nothing but tcp */
    uint64_t sent_fpdus, sent_bytes; /* what the script counts */
};

/* --- the device's share of a progress group ---------------------------------------------------- */

extern const struct exsi_device_ops exsi_soft_ops;

struct soft_device {
    struct exsi_device dev;
    struct exsi_log *log;              /* borrowed from the context */
    atomic_uint_fast64_t next_region;  /* soft_region.id */
    atomic_uint_fast64_t regions_gone; /* how many have ended: paths look for them when it changes */
};

/* Completions waiting to be polled: a ring that has room for every request that is posted, so that
 * completing never allocates. */
struct soft_cq {
    struct exsi_wc *ring;
    uint32_t cap, head, len; /* cap is a power of two */
    uint32_t posted;         /* requests outstanding or complete and not polled */
};

/* Everything here is touched under the group's lock only. */
struct soft_part {
    struct exsi_part part;
    struct soft_device *sdev;
    struct exsi_poller *poller; /* borrowed from the group */
    struct exsi_log *log;
    struct exsi_list qps;       /* soft_qp.node */
    struct exsi_list ids;       /* soft_id.node: listeners, set-ups and connections */
    struct exsi_list lingering; /* sockets that drain to their end without an owner */
    struct exsi_list events;    /* connection events to be polled */
    struct exsi_list work;      /* soft_qp.work_node */
    struct soft_cq cq;
    struct exsi_list shm_paths;       /* soft_path.node */
    struct soft_shm_part *shm;        /* rendezvous.c's: group page, eventfd; NULL until needed */
    bool asleep;                      /* what part_doorbell said last */
    uint32_t random[32], random_left; /* for keys */
    struct soft_raw *raw;             /* raw.c's: GID and listener; NULL until the first raw queue pair */
    struct soft_fault fault;
};

/* --- the seam between set-up (cm.c) and shared memory (rendezvous.c, path_shm.c) ---------------- *
 *
 * Order of a set-up, A active, P passive:
 *   A soft_shm_offer   before the MPA request; fills the block that goes with it
 *   P soft_shm_answer  in cm_accept, when the request's block has SOFT_BLOCK_SHM; fills the reply's block
 *   P soft_shm_wait    the reply is out: wait for A's word
 *   A soft_shm_confirm the reply has SOFT_BLOCK_SHM
 * Both sides end with done() exactly once, unless soft_shm_drop comes first.  done() gives a path, or
 * NULL and why not; then the connection stays on tcp (or fails, if its path was forced; that is
 * cm.c's decision, as is every bound in time: cm.c calls soft_shm_drop when its timer fires).
 * When A never offered, or P did not answer, nothing else is called and the connection is tcp.
 * The two must never disagree: P takes "tcp" only when A said no or closed its UNIX socket before
 * saying yes. */

#define SOFT_TOKEN_LEN 16
#define SOFT_NAME_MAX  32

enum soft_block_flag {
    SOFT_BLOCK_SHM = 1, /* request: name, token and probe are set; reply: HELLO was sent to that name */
    SOFT_BLOCK_RAW = 2, /* request: between raw queue pairs; raw_* are set */
};

/* soft's own block behind the private data of the upper layer, decoded (mpa.c, docs/wire/soft.md).
 * A peer that sends one is soft: it takes FPDUs of any length. */
struct soft_block {
    uint16_t flags;
    uint16_t why;                  /* reply without SOFT_BLOCK_SHM: enum soft_shm_why of rendezvous.c, 0: not said */
    uint8_t token[SOFT_TOKEN_LEN]; /* A's */
    uint64_t probe_addr;           /* address of the token in A's memory */
    uint32_t pid_hint;             /* A's process id in its own namespace, for logs only */
    uint8_t name_len;              /* abstract UNIX name without its leading NUL byte */
    uint8_t name[SOFT_NAME_MAX];
    uint32_t raw_src_qpn, raw_dst_qpn, raw_src_psn, raw_dst_psn;
};

/* What rendezvous.c needs to know of the connection; all pointers borrowed until done or drop. */
struct soft_shm_ask {
    struct soft_part *part;
    enum exsi_path path; /* AUTO, SHM, SHM_VM or SHM_RING; never TCP */
    uint32_t ring_bytes; /* exsi_cm_options.shm_ring_bytes */
    /* May be called from inside _confirm and _wait, never from _offer, _answer or _drop.  takes path: its
     * qp, sink and stats are set by the receiver.  The soft_shm is gone when done is called. */
    void (*done)(void *arg, struct soft_path *path, const char *reason);
    void *arg;
};

/* NULL with reason (EXSI_REASON_MAX) when shared memory cannot be offered here. */
struct soft_shm *soft_shm_offer(const struct soft_shm_ask *ask, struct soft_block *block, char *reason);
/* NULL with reason (and reply->why) when it is not taken; never blocks. */
struct soft_shm *soft_shm_answer(const struct soft_shm_ask *ask, const struct soft_block *request,
                                 struct soft_block *reply, char *reason);
void soft_shm_confirm(struct soft_shm *shm, const struct soft_block *reply);
void soft_shm_wait(struct soft_shm *shm);
/* Give up before done: closes everything, calls nothing. */
void soft_shm_drop(struct soft_shm *shm);
/* soft_block.why of a side that was told to stay on tcp; the other reasons are the rendezvous' own. */
enum { SOFT_WHY_OFF = 1 };
/* Text for soft_block.why of a reply. */
const char *soft_shm_why_text(uint16_t why);

/* The part's side of shared memory: rings of all shm_paths, the page that says who sleeps. */
int soft_shm_part_progress(struct soft_part *part);
void soft_shm_part_doorbell(struct soft_part *part, bool asleep);
void soft_shm_part_close(struct soft_part *part);

#endif
