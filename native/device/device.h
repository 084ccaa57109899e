// SPDX-License-Identifier: MIT OR Apache-2.0
/* THE device table: verbs' vocabulary and verbs' semantics, cut down to what the engines use.
 *
 * What every device promises (docs/explanation/devices.md):
 *   - On one queue pair, completions appear at the receiver in the order in which the sender
 *     posted, and the data of a WRITE is visible before the completion of a later SEND.
 *   - A WRITE lands only inside a range whose key is valid at that moment, on that queue pair.
 *   - After a queue pair is in the error state and its completions were polled, nothing lands.
 *   - A posted buffer belongs to the device until its completion was polled.
 *   - Nothing here blocks, and no function calls back into its caller: what happens is told by
 *     poll_cq and poll_cm.
 *
 * Objects: a device (one per context) gives memory regions; a *part* is the device's share of one
 * progress group and gives everything that makes progress (queue pairs, connection ids, the one
 * completion queue).  All calls on a part, and on what it gave, are made under the group's lock;
 * calls on the device itself may come from any thread.
 *
 * Every entry of the table is set; what a device cannot do is a function that refuses with
 * -EOPNOTSUPP, and a capability says so before. */
#ifndef EXSI_DEVICE_H
#define EXSI_DEVICE_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/base.h"
#include "base/log.h"
#include "base/poller.h"
#include "base/stats.h"

/* An IPv4 or IPv6 socket address. */
union exsi_addr {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

static inline socklen_t exsi_addr_len(const union exsi_addr *a)
{
    return a->sa.sa_family == AF_INET6 ? (socklen_t)sizeof a->in6 : (socklen_t)sizeof a->in;
}

/* --- capabilities ------------------------------------------------------------------------- */

struct exsi_caps {
    uint32_t max_inline;          /* bytes of a SEND that are copied when it is posted */
    uint32_t max_sge;             /* pieces of one SEND or WRITE */
    uint32_t max_qp_wr;           /* most work requests per direction of a queue pair */
    uint32_t max_request_private; /* private data of a connection request, bytes */
    uint32_t max_reply_private;   /* and of its answer */
    uint64_t max_msg;             /* largest single transfer */
    bool has_immediate;           /* WRITE with immediate data (on both ends, for a connection) */
    bool has_key_per_range;       /* on every connection: see exsi_qp_info */
    bool has_read;                /* RDMA READ */
    bool has_raw_qp;              /* queue pairs without connection management */
    bool pins_memory;             /* registration pins pages: slow, and charged to memlock */
};

/* --- memory ------------------------------------------------------------------------------- */

enum exsi_access {
    EXSI_ACCESS_LOCAL_WRITE = 1,  /* the device may write it (receives); read is always allowed */
    EXSI_ACCESS_REMOTE_WRITE = 2, /* its key or a key bound to a part of it may serve a peer's WRITE */
    EXSI_ACCESS_ONE_PEER = 4,     /* it belongs to a single connection until its queue pair is
                                     destroyed: that peer may hold it mapped and fill it itself */
};

/* A range to register.  The device borrows it until dereg_mr. */
struct exsi_mem {
    void *addr;
    size_t len;
    uint32_t access;       /* enum exsi_access */
    int memfd;             /* sealed memory file behind the range, or -1; borrowed */
    uint64_t memfd_offset; /* of addr in it */
    bool fragile;          /* file-backed by others: touch by system calls only */
};

/* Devices embed this as first member. */
struct exsi_dmr {
    struct exsi_mem mem;
};

/* --- work requests and completions -------------------------------------------------------- */

enum exsi_wr_op { EXSI_WR_SEND, EXSI_WR_WRITE, EXSI_WR_WRITE_IMM, EXSI_WR_READ };

enum exsi_wr_flag {
    EXSI_WR_SIGNALED = 1,  /* a completion is wanted also on success */
    EXSI_WR_SOLICITED = 2, /* SEND: wake a peer that only asked for solicited ones */
    EXSI_WR_INLINE = 4,    /* the bytes (at most max_inline) are copied now; mr may be NULL */
};

struct exsi_sge {
    void *addr;
    uint32_t len;
    struct exsi_dmr *mr; /* registered memory that holds the range */
};

#define EXSI_MAX_SGE 4

struct exsi_send_wr {
    uint64_t wr_id;
    enum exsi_wr_op op;
    uint32_t flags;
    uint32_t num_sge;
    uint32_t rkey, imm;
    uint64_t raddr;
    struct exsi_sge sge[EXSI_MAX_SGE];
};

struct exsi_recv_wr {
    uint64_t wr_id;
    struct exsi_sge sge;
    /* For a longer message: len bytes of it in all.  Its first sge.len lie in sge, byte k behind them at
     * spill.addr + k; the first sge.len bytes of spill are the device's to use.  Receives may share it.
     * len 0: none.  Raw queue pairs only. */
    struct exsi_sge spill;
};

enum exsi_wc_op { EXSI_WC_SEND, EXSI_WC_WRITE, EXSI_WC_READ, EXSI_WC_RECV, EXSI_WC_RECV_IMM, EXSI_WC_INVALIDATE };

struct exsi_qp;

struct exsi_wc {
    uint64_t wr_id;
    struct exsi_qp *qp;
    enum exsi_wc_op op;
    int error;         /* 0, or the errno of ES-API 1.11: ECANCELED means flushed */
    uint32_t byte_len; /* RECV */
    uint32_t imm;      /* RECV_IMM */
    uint32_t vendor;   /* the device's own status, for logs */
};

/* --- queue pairs -------------------------------------------------------------------------- */

struct exsi_qp_attr {
    uint32_t send_wr, recv_wr; /* depths */
    uint32_t max_recv_len;     /* longest SEND that will be received */
    uint32_t max_keys;         /* keys of key_bind that live at once; 0: no more than send_wr */
    bool strict_keys;          /* no other peer may reach what this one can: see key_per_range */
    const uint8_t *gid;        /* raw: the one that it must have, 16 bytes; NULL: any */
    void *user;                /* the endpoint: comes back as qp->user */
    struct exsi_stats *stats;  /* borrowed until destroy */
    uint64_t log_id;           /* socket handle for log records */
};

/* Devices embed this as first member. */
struct exsi_qp {
    void *user;
};

struct exsi_qp_info {
    char path[16];    /* "tcp", "shm-vm", "shm-ring"; "" on verbs */
    uint64_t max_msg; /* largest single transfer on this connection */
    union exsi_addr local, peer;
    bool immediate;     /* the device can carry immediate data here */
    bool key_per_range; /* key_bind gives a key of exactly that range, on this queue pair only; if not, a key of the
                           whole region, good on every queue pair that is not strict_keys */
};

/* Where a raw queue pair is, and what its peer must be told. */
struct exsi_raw_address {
    uint8_t gid[16];
    uint8_t mac[6];
    uint8_t gid_index;
    uint8_t mtu_code;  /* IBTA: 1 = 256 ... 5 = 4096 */
    uint32_t qpn, psn; /* 24 bits each */
};

/* --- connection management ----------------------------------------------------------------- */

struct exsi_cm_id;

enum exsi_cm_kind {
    EXSI_CM_RESOLVED,     /* id: the peer's address has a route; make the queue pair, then cm_connect */
    EXSI_CM_REQUEST,      /* listener, id: somebody wants in; qp_create on id, then accept, or reject */
    EXSI_CM_ESTABLISHED,  /* id, private data of the reply on the active side */
    EXSI_CM_FAILED,       /* id: error says why; reason is text for the user.  A refusal by the peer's
                             program is ECONNREFUSED with its private data */
    EXSI_CM_DISCONNECTED, /* qp: the connection is over.  error 0: the peer ended it in order;
                             else the first error, and reason in words where there are some.  Comes
                             after every completion of the queue pair */
};

#define EXSI_PRIVATE_MAX 256
#define EXSI_REASON_MAX  160

struct exsi_cm_event {
    enum exsi_cm_kind kind;
    struct exsi_cm_id *id, *listener;
    struct exsi_qp *qp;
    int error;
    uint32_t private_len;
    uint8_t private_data[EXSI_PRIVATE_MAX];
    char reason[EXSI_REASON_MAX];
    union exsi_addr peer;
};

/* Devices embed this as first member. */
struct exsi_cm_id {
    void *user;
};

/* Which way soft takes: enum, since it is asked on every connect. */
enum exsi_path { EXSI_PATH_AUTO, EXSI_PATH_TCP, EXSI_PATH_SHM, EXSI_PATH_SHM_VM, EXSI_PATH_SHM_RING };

struct exsi_cm_options {
    enum exsi_path path;
    uint32_t shm_ring_bytes;                 /* size hint for what a connection may keep in shared memory */
    uint32_t connect_timeout_ms;             /* bound on resolve + connect, and on an accept */
    uint32_t keepalive_ms;                   /* 0: off */
    uint32_t close_timeout_ms;               /* bound on the drain after disconnect */
    bool crc;                                /* ask for CRC on the wire */
    bool reuse_address, reuse_port, v6_only; /* listeners */
};

/* --- the table ------------------------------------------------------------------------------ */

struct exsi_device;
struct exsi_part;

struct exsi_device_ops {
    const char *name;

    /* Look for the device and open it; on failure reason (EXSI_REASON_MAX) says why in words. */
    int (*open)(struct exsi_log *log, struct exsi_device **out, char *reason);
    void (*close)(struct exsi_device *dev);
    void (*query)(struct exsi_device *dev, struct exsi_caps *out);

    /* May block while pages are pinned; called without any lock. */
    int (*reg_mr)(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out);
    void (*dereg_mr)(struct exsi_device *dev, struct exsi_dmr *mr);

    /* The device's share of a progress group; its descriptors and timers go into poller. */
    int (*part_open)(struct exsi_device *dev, struct exsi_poller *poller, struct exsi_part **out);
    void (*part_close)(struct exsi_part *part);
    /* Move bytes for everything that no descriptor announces (shared memory); how much was done. */
    int (*part_progress)(struct exsi_part *part);
    /* asleep: peers must ring from now on; the caller runs part_progress once more before it sleeps. */
    void (*part_doorbell)(struct exsi_part *part, bool asleep);
    /* Up to max completions of all queue pairs of the part, in order per queue pair. */
    int (*poll_cq)(struct exsi_part *part, struct exsi_wc *wc, int max);
    /* Next connection event: 1, or 0 when there is none.  Poll the completions first. */
    int (*poll_cm)(struct exsi_part *part, struct exsi_cm_event *ev);

    /* id: from a resolved connect or a request; NULL for a raw queue pair. */
    int (*qp_create)(struct exsi_part *part, struct exsi_cm_id *id, const struct exsi_qp_attr *attr,
                     struct exsi_qp **out);
    /* Ends the connection at once; nothing lands afterwards; completions not polled are dropped. */
    void (*qp_destroy)(struct exsi_qp *qp);
    /* To the error state: every posted request completes with ECANCELED. */
    void (*qp_abort)(struct exsi_qp *qp);
    void (*qp_query)(struct exsi_qp *qp, struct exsi_qp_info *out);
    int (*post_recv)(struct exsi_qp *qp, const struct exsi_recv_wr *wr, int n);
    /* All n or none: -ENOMEM when the send queue is full, -EINVAL for what the device cannot do. */
    int (*post_send)(struct exsi_qp *qp, const struct exsi_send_wr *wr, int n);
    /* Start what was posted; posting alone may leave it lying.  Called once after a batch. */
    void (*qp_flush)(struct exsi_qp *qp);
    /* A key for [addr, addr + len) on this queue pair.  Valid for the peer once a SEND that was posted later has
     * reached it.  -ENOTCONN: not before ESTABLISHED.  This and key_invalidate may wait for qp_flush, as posts do. */
    int (*key_bind)(struct exsi_qp *qp, struct exsi_dmr *mr, void *addr, size_t len, uint32_t *rkey);
    /* End a key.  0: ended, nothing lands any more; 1: it has when EXSI_WC_INVALIDATE with wr_id comes. */
    int (*key_invalidate)(struct exsi_qp *qp, uint32_t rkey, uint64_t wr_id);

    /* Raw queue pairs: create, read own address, post receives, to RTR, to RTS.  -EADDRNOTAVAIL from qp_create: no
     * such GID here.  With strict_keys a key is of the whole region, good on this queue pair only, and can be had at
     * once: the peer must know it before the queue pair is connected.  A message that finds no receive waits for one;
     * nothing but the upper layer bounds that. */
    int (*raw_query)(struct exsi_qp *qp, struct exsi_raw_address *out);
    int (*raw_to_rtr)(struct exsi_qp *qp, const struct exsi_raw_address *peer);
    int (*raw_to_rts)(struct exsi_qp *qp);

    /* Connection ids.  A listener's user pointer is inherited by the ids of its requests. */
    int (*cm_listen)(struct exsi_part *part, const union exsi_addr *addr, int backlog,
                     const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out, union exsi_addr *bound);
    /* source may be NULL.  RESOLVED or FAILED follows. */
    int (*cm_resolve)(struct exsi_part *part, const union exsi_addr *source, const union exsi_addr *peer,
                      const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out);
    /* ESTABLISHED or FAILED follows.  The queue pair was made on this id. */
    int (*cm_connect)(struct exsi_cm_id *id, const void *private_data, uint32_t len);
    int (*cm_accept)(struct exsi_cm_id *id, const void *private_data, uint32_t len);
    /* Refuse a request, with private data for the other side; ends the id. */
    void (*cm_reject)(struct exsi_cm_id *id, const void *private_data, uint32_t len);
    /* No more sends: tell the peer in order once everything posted is out.  The connection lives until
     * DISCONNECTED, which comes when the peer did the same or close_timeout_ms is over. */
    void (*cm_disconnect)(struct exsi_cm_id *id);
    /* Ends the id (its queue pair was destroyed before); no event of it comes afterwards. */
    void (*cm_destroy)(struct exsi_cm_id *id);
};

/* Devices embed these as first members. */
struct exsi_device {
    const struct exsi_device_ops *ops;
    struct exsi_caps caps;
};
struct exsi_part {
    struct exsi_device *dev;
};

/* --- registry: the one file that knows which devices there are ------------------------------- */

struct exsi_device_entry {
    const char *name;
    const char *summary;               /* one line for exs devices */
    const struct exsi_device_ops *ops; /* NULL: not in this build */
    const char *absent;                /* then: why */
};

/* All known devices, best first; *n is their number. */
const struct exsi_device_entry *exsi_device_registry(int *n);

#endif
