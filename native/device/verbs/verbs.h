// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside of the verbs device: rdma-core behind the table of device/device.h.
 *
 * libibverbs and librdmacm are opened at run time, never linked: every symbol of theirs is called
 * through `struct verbs_lib` (the inline functions of their headers that only follow pointers,
 * ibv_post_send and the like, are fine).
 *
 *   device    one per context; owns the libraries' table and the adapters
 *   adapter   one ibv_context (librdmacm's own: id->verbs), with its shared protection domain
 *   part      a progress group's share: completion channels and queues per adapter, the rdma_cm
 *             event channel, its queue pairs and ids
 *   domain    a protection domain: the adapter's, or one of a single queue pair (strict keys on an
 *             adapter without memory windows)
 *
 * Locks: everything of a part is under its group's lock; vdev->lock is a leaf for what parts share
 * (the list of adapters, of parts, private registrations, inboxes of asynchronous events).  Nothing that may block but
 * memory registration is called under it, and never that.
 *
 * Files: lib.c libraries and reasons; device.c device, adapters, the table; mr.c regions; key.c
 * windows; part.c part, queues of completions, their dispatch; async.c events of the adapter; qp.c queue
 * pairs; raw.c raw ones; cm.c connection management. */
#ifndef EXSI_VERBS_H
#define EXSI_VERBS_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "base/list.h"
#include "device/device.h"

/* --- the libraries (lib.c) -------------------------------------------------------------------- */

/* X(name): called as lib->name(...).  A name that the headers also define as a macro is called as
 * (lib->name)(...). */
#define VERBS_IBV_SYMBOLS(X)                                                                                           \
    X(ibv_get_device_list)                                                                                             \
    X(ibv_free_device_list)                                                                                            \
    X(ibv_get_device_name)                                                                                             \
    X(ibv_fork_init)                                                                                                   \
    X(ibv_query_device)                                                                                                \
    X(ibv_query_gid)                                                                                                   \
    X(_ibv_query_gid_table)                                                                                            \
    X(ibv_alloc_pd)                                                                                                    \
    X(ibv_dealloc_pd)                                                                                                  \
    X(ibv_reg_mr)                                                                                                      \
    X(ibv_dereg_mr)                                                                                                    \
    X(ibv_create_comp_channel)                                                                                         \
    X(ibv_destroy_comp_channel)                                                                                        \
    X(ibv_create_cq)                                                                                                   \
    X(ibv_destroy_cq)                                                                                                  \
    X(ibv_get_cq_event)                                                                                                \
    X(ibv_ack_cq_events)                                                                                               \
    X(ibv_create_qp)                                                                                                   \
    X(ibv_destroy_qp)                                                                                                  \
    X(ibv_modify_qp)                                                                                                   \
    X(ibv_query_qp)                                                                                                    \
    X(ibv_get_async_event)                                                                                             \
    X(ibv_ack_async_event)                                                                                             \
    X(ibv_event_type_str)                                                                                              \
    X(ibv_wc_status_str)

#define VERBS_RDMA_SYMBOLS(X)                                                                                          \
    X(rdma_get_devices)                                                                                                \
    X(rdma_free_devices)                                                                                               \
    X(rdma_create_event_channel)                                                                                       \
    X(rdma_destroy_event_channel)                                                                                      \
    X(rdma_create_id)                                                                                                  \
    X(rdma_destroy_id)                                                                                                 \
    X(rdma_bind_addr)                                                                                                  \
    X(rdma_listen)                                                                                                     \
    X(rdma_resolve_addr)                                                                                               \
    X(rdma_resolve_route)                                                                                              \
    X(rdma_create_qp)                                                                                                  \
    X(rdma_destroy_qp)                                                                                                 \
    X(rdma_connect)                                                                                                    \
    X(rdma_accept)                                                                                                     \
    X(rdma_reject)                                                                                                     \
    X(rdma_disconnect)                                                                                                 \
    X(rdma_notify)                                                                                                     \
    X(rdma_set_option)                                                                                                 \
    X(rdma_get_cm_event)                                                                                               \
    X(rdma_ack_cm_event)                                                                                               \
    X(rdma_event_str)                                                                                                  \
    X(rdma_get_src_port)

struct verbs_lib {
#define VERBS_MEMBER(name) __typeof__(&name) name;
    VERBS_IBV_SYMBOLS(VERBS_MEMBER)
    VERBS_RDMA_SYMBOLS(VERBS_MEMBER)
#undef VERBS_MEMBER
};

/* Open both libraries: 0, or -ENOENT with reason (EXSI_REASON_MAX).  They are never unloaded. */
EXSI_MUST_CHECK int verbs_lib_open(struct verbs_lib *lib, char *reason);
/* Why no adapter can be used on this machine, looked for from the kernel upwards: 0 or -errno with reason. */
EXSI_MUST_CHECK int verbs_lib_probe(const struct verbs_lib *lib, char *reason);

/* --- adapters and the device (device.c) --------------------------------------------------------- */

#define VERBS_MAX_ADAPTERS 8
#define VERBS_INLINE       64 /* bytes of a SEND copied when posted; siw grants 80 at most */
#define VERBS_RETRY        6  /* 7 is for ever on rxe */

struct verbs_device;
struct verbs_adapter;

struct verbs_domain {
    struct ibv_pd *pd;
    struct verbs_adapter *adapter;
    int slot;                 /* index in verbs_mr.shared, or -1: private to a queue pair */
    struct exsi_list regions; /* private: verbs_private.domain_node; under vdev->lock */
};

struct verbs_adapter {
    struct verbs_device *vdev;
    struct ibv_context *ctx;
    struct verbs_domain domain;
    struct ibv_device_attr attr;
    struct ibv_cq *spacer; /* siw only: device.c */
    uint64_t max_msg;
    char name[32];
    int index;
    bool iwarp;             /* no immediate data, no RNR; every WRITE is signalled */
    bool windows;           /* type 2B: one key per advertisement, tied to a queue pair */
    atomic_bool used;       /* a connection was made on it: regions register here from the start */
    atomic_bool gone;       /* removed or fatal: nothing new is made on it */
    atomic_uint ports_down; /* bit n: port n (bit 31: any above) went down and did not come back */
};

struct verbs_device {
    struct exsi_device dev;
    struct verbs_lib lib;
    struct exsi_log *log;
    pthread_mutex_t lock;
    struct exsi_list parts; /* verbs_part.device_node; under lock */
    /* What an adapter's event may name; others of this process use the same ibv_context.  Under lock. */
    struct exsi_list qps; /* verbs_qp.device_node */
    struct exsi_list cqs; /* verbs_cq.device_node */
    /* cm_dial.c: closed parts whose last ids the kernel does not give back yet.  Under lock. */
    uint32_t lingering;
    pthread_cond_t left;
    /* Grows only; entry before count (release), count before entry (acquire). */
    struct verbs_adapter *adapters[VERBS_MAX_ADAPTERS];
    atomic_int n_adapters;
};

static inline struct verbs_device *verbs_device_of(struct exsi_device *dev)
{
    return exsi_container_of(dev, struct verbs_device, dev);
}

/* A port as the kernel describes it: 0 or -errno. */
EXSI_MUST_CHECK int verbs_query_port(struct ibv_context *ctx, uint8_t port, struct ibv_port_attr *out);
/* The adapter behind id->verbs, added if it is new (plugged in since); marks it used.
 * -ENODEV when gone, -ENOSPC for one too many. */
EXSI_MUST_CHECK int verbs_adapter_of(struct verbs_device *vdev, struct ibv_context *ctx, struct verbs_adapter **out);

/* --- regions (mr.c) --------------------------------------------------------------------------------- */

/* A region is registered by reg_mr in the domains of all adapters in use then, and in any other domain at its first
 * use there.  ONE_PEER memory and memory without REMOTE_WRITE that is small is registered at first use only. */
struct verbs_mr {
    struct exsi_dmr dmr;
    struct verbs_device *vdev;
    _Atomic(struct ibv_mr *) shared[VERBS_MAX_ADAPTERS];
    struct exsi_list privates; /* verbs_private.mr_node; under vdev->lock */
};

static inline struct verbs_mr *verbs_mr_of(struct exsi_dmr *dmr)
{
    return exsi_container_of(dmr, struct verbs_mr, dmr);
}

int verbs_mr_reg(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out);
void verbs_mr_dereg(struct exsi_device *dev, struct exsi_dmr *dmr);
/* Slow path of verbs_mr_in: look for it, else register now. */
EXSI_MUST_CHECK int verbs_mr_join(struct verbs_mr *mr, struct verbs_domain *domain, struct ibv_mr **out);
/* The region's registration in a domain: 0 or -errno (-ENOMEM: memlock, logged). */
EXSI_MUST_CHECK static inline int verbs_mr_in(struct exsi_dmr *dmr, struct verbs_domain *domain, struct ibv_mr **out)
{
    struct verbs_mr *mr = verbs_mr_of(dmr);
    if (domain->slot >= 0) {
        /* Acquire: pairs with the release in verbs_mr_join. */
        *out = atomic_load_explicit(&mr->shared[domain->slot], memory_order_acquire);
        if (*out) return 0;
    }
    return verbs_mr_join(mr, domain, out);
}

/* A domain for one queue pair, and its end (after ibv_destroy_qp and the windows). */
EXSI_MUST_CHECK int verbs_domain_open(struct verbs_domain *domain, struct verbs_adapter *adapter);
void verbs_domain_close(struct verbs_domain *domain);

/* Is a key a window of its own?  Not in a domain that is one queue pair's: there the region's key is as strict. */
static inline bool verbs_has_windows(const struct verbs_adapter *adapter, const struct verbs_domain *domain)
{
    return adapter->windows && domain->slot >= 0;
}

/* --- keys: memory windows (key.c) ------------------------------------------------------------------- */

enum verbs_key_state { VERBS_KEY_FREE, VERBS_KEY_BOUND, VERBS_KEY_ENDING };

struct verbs_key {
    struct ibv_mw *mw;
    uint32_t rkey; /* of the last bind: the next one counts on from it */
    enum verbs_key_state state;
    uint32_t next_free; /* index + 1 */
    uint64_t wr_id;     /* ending: what its EXSI_WC_INVALIDATE carries */
};

/* Embedded in the queue pair.  Windows are allocated when first needed and kept. */
struct verbs_keys {
    struct verbs_key *keys;
    uint32_t n, cap, free_key;
};

struct verbs_qp;

/* cap: keys that may live at once; the hardware send queue has VERBS_KEY_WRS requests for each beyond send_wr:
 * its bind, unsignalled, and its invalidate, signalled.  A window is bound anew only after its
 * invalidate was polled, so they always have room. */
#define VERBS_KEY_WRS 2
EXSI_MUST_CHECK int verbs_keys_init(struct verbs_keys *keys, uint32_t cap);
/* In the error state, in which a window cannot be ended any other way; before ibv_destroy_qp and any dereg. */
void verbs_keys_fini(struct verbs_qp *qp);
int verbs_key_bind(struct exsi_qp *qp, struct exsi_dmr *mr, void *addr, size_t len, uint32_t *rkey);
int verbs_key_invalidate(struct exsi_qp *qp, uint32_t rkey, uint64_t wr_id);
/* The invalidate of key INDEX was polled: frees the window, gives the wr_id to tell. */
uint64_t verbs_key_ended(struct verbs_qp *qp, uint32_t index);

/* --- part and completions (part.c) -------------------------------------------------------------------- */

/* A completion queue; several queue pairs share it.  Room is reserved for everything that can complete. */
struct verbs_cq {
    struct ibv_cq *cq;
    struct verbs_seat *seat;
    struct exsi_list node;        /* seat->cqs */
    struct exsi_list device_node; /* vdev->cqs */
    uint32_t cap, reserved;
    uint32_t returned; /* of destroyed queue pairs: free once the queue was seen empty, for entries may linger */
    bool armed;
    bool broken; /* overrun or failed, under vdev->lock: its queue pairs end */
};

/* A part's place at one adapter. */
struct verbs_seat {
    struct verbs_part *part;
    struct verbs_adapter *adapter;
    struct ibv_comp_channel *channel; /* NULL: not open */
    struct exsi_watch watch;          /* of the channel */
    struct exsi_watch async_watch;    /* of the adapter's asynchronous events */
    struct exsi_list cqs;
    /* async.c: the port went down; when this fires its connections end. */
    struct exsi_timer down_timer;
};

/* What an adapter told; set by whichever part read it, under vdev->lock, and done by each part for its own. */
enum verbs_news { VERBS_NEWS_PORTS = 1, VERBS_NEWS_GID = 2, VERBS_NEWS_GONE = 4, VERBS_NEWS_CQ = 8 };

struct verbs_part {
    struct exsi_part part;
    struct verbs_device *vdev;
    const struct verbs_lib *lib;
    struct exsi_log *log;
    struct exsi_poller *poller;
    struct exsi_list device_node; /* vdev->parts */
    bool asleep;
    struct verbs_seat seats[VERBS_MAX_ADAPTERS];

    /* Queue pairs by slot; a work request's wr_id names slot and generation, since completions of a destroyed
     * queue pair may stay behind in the queue. */
    struct verbs_qp **slots;
    uint16_t *generations;
    uint32_t n_slots, free_slot_hint;
    struct exsi_list qps; /* verbs_qp.part_node */

    /* async.c: news for this part, and what wakes it. */
    int wake_fd;
    struct exsi_watch wake;
    uint32_t news[VERBS_MAX_ADAPTERS]; /* under vdev->lock */
    struct exsi_list stricken;         /* verbs_qp.stricken_node; under vdev->lock */

    /* cm.c */
    struct rdma_event_channel *cm_channel;
    struct exsi_watch cm_watch;
    struct exsi_list ids;    /* verbs_id.node */
    struct exsi_list events; /* verbs_id.event_node: what poll_cm will give */
    struct exsi_list downs;  /* verbs_qp.down_node: in the error state, DISCONNECTED not polled */
};

static inline struct verbs_part *verbs_part_of(struct exsi_part *part)
{
    return exsi_container_of(part, struct verbs_part, part);
}

/* The part's seat at an adapter, opened at first use. */
EXSI_MUST_CHECK int verbs_seat_open(struct verbs_part *part, struct verbs_adapter *adapter, struct verbs_seat **out);
/* Room for n completions in some queue of the seat (a new one if need be), and its end, after ibv_destroy_qp. */
EXSI_MUST_CHECK int verbs_cq_get(struct verbs_seat *seat, uint32_t n, struct verbs_cq **out);
void verbs_cq_put(struct verbs_cq *cq, uint32_t n);

/* wr_id of a work request: recv (63) | generation (48..62) | slot (28..47) | index (0..27). */
#define VERBS_WR_RECV       ((uint64_t)1 << 63)
#define VERBS_WR_INDEX_MASK ((1u << 28) - 1)
/* Indices of what has no place in qp->sent: on iWARP, what keep-alive posts. */
#define VERBS_WR_MARK    VERBS_WR_INDEX_MASK
#define VERBS_WR_NUDGE   (VERBS_WR_INDEX_MASK - 1)
#define VERBS_SLOT_MAX   (1u << 20)
#define VERBS_GENERATION 0x7fffu

/* Give the queue pair a slot, which sets qp->wr_base (its generation and slot in place), and link it into part->qps;
 * take it back. */
EXSI_MUST_CHECK int verbs_slot_take(struct verbs_part *part, struct verbs_qp *qp);
void verbs_slot_drop(struct verbs_qp *qp);

/* Table entries. */
int verbs_part_open(struct exsi_device *dev, struct exsi_poller *poller, struct exsi_part **out);
void verbs_part_close(struct exsi_part *part);
/* The rest of a closed part, once none of its ids is left; without its group, which may be gone. */
void verbs_part_free(struct verbs_part *part);
int verbs_part_progress(struct exsi_part *part);
void verbs_part_doorbell(struct exsi_part *part, bool asleep);
int verbs_poll_cq(struct exsi_part *part, struct exsi_wc *wc, int max);

/* ES-API 1.11: what a status means for the socket; 0 for success, ECANCELED for a flush. */
int verbs_status_errno(enum ibv_wc_status status);

/* --- asynchronous events (async.c) ---------------------------------------------------------------------- */

EXSI_MUST_CHECK int verbs_async_part_open(struct verbs_part *part);
void verbs_async_part_close(struct verbs_part *part);
EXSI_MUST_CHECK int verbs_async_seat_open(struct verbs_seat *seat);
void verbs_async_seat_close(struct verbs_seat *seat);
/* After ibv_create_qp (qp->ibqp set): its events are heard from now on. */
void verbs_async_watch(struct verbs_qp *qp);
/* After ibv_destroy_qp, when none can come any more, and before the memory goes. */
void verbs_async_forget(struct verbs_qp *qp);

/* --- queue pairs (qp.c, raw.c) ---------------------------------------------------------------------------- */

/* What a posted send was, by its place in qp->sent (indices count on, modulo its length): errors tell only the wr_id.
 */
enum verbs_sent_kind {
    VERBS_SENT_SEND,
    VERBS_SENT_WRITE,
    VERBS_SENT_READ,
    VERBS_SENT_BIND,
    VERBS_SENT_INVALIDATE,
    VERBS_SENT_MARK, /* nothing at all: a zero-length WRITE, to hear that the far device answers */
};

/* Requests beyond the caller's and the keys': the marks of keep-alive and of the end. */
#define VERBS_OWN_WRS 2

/* Posted and not yet handed to the hardware: what belongs together goes in one call, which is a system call where the
 * kernel is the device. */
#define VERBS_WAITING 32
struct verbs_waiting {
    struct ibv_send_wr wr;
    struct ibv_sge sge[EXSI_MAX_SGE];
    uint8_t copy[VERBS_INLINE]; /* of bytes that the caller may change at once */
};

struct verbs_sent {
    uint64_t wr_id; /* the caller's; for BIND and INVALIDATE the index of the key */
    uint32_t len;   /* bytes, for the counters */
    uint8_t kind;
    bool signalled; /* it has a completion of its own also on success */
    bool own;       /* the device's own: never told */
};

struct verbs_id;

struct verbs_qp {
    struct exsi_qp qp;
    struct verbs_part *part;
    struct verbs_adapter *adapter;
    struct verbs_seat *seat;
    struct verbs_domain *domain; /* the adapter's, or own_domain */
    struct verbs_domain own_domain;
    struct ibv_qp *ibqp;
    struct verbs_cq *cq;
    uint32_t cq_room;    /* reserved there */
    struct verbs_id *id; /* NULL: raw */
    struct exsi_list part_node;
    uint64_t wr_base;
    struct exsi_qp_attr attr;
    struct verbs_keys keys;

    /* Both used round and round, oldest first; what stands in them has not completed. */
    struct verbs_sent *sent;
    uint32_t sent_cap, sent_head, sent_len;
    uint32_t sent_user;            /* of those, the caller's: at most attr.send_wr */
    uint32_t sent_quiet;           /* unsignalled ones behind the last signalled one */
    struct verbs_waiting *waiting; /* VERBS_WAITING entries; the last waiting_len of sent */
    uint32_t waiting_len;
    uint64_t *received; /* recv_wr entries: the callers' wr_ids */
    uint32_t recv_head, recv_len;

    int error;   /* first error, positive: what DISCONNECTED will say */
    int suspect; /* what it will be if nobody says more */
    char reason[EXSI_REASON_MAX];
    bool up;                    /* RTS: keys may be bound */
    bool down;                  /* error state: nothing is posted any more; what was is given back */
    bool buried;                /* nothing lands any more: what was posted comes back */
    bool told;                  /* DISCONNECTED was polled */
    bool shut;                  /* cm_disconnect: nothing more is posted */
    bool left;                  /* the peer was told */
    bool mark_out, nudge_out;   /* keep-alive: they are on their way */
    bool heard;                 /* keep-alive: a sign of life came since it was looked at */
    uint32_t silent;            /* keep-alive: looks in a row that found nothing */
    struct exsi_list down_node; /* part->downs */
    struct exsi_timer close_timer, cause_timer, alive_timer;
    uint32_t psn; /* raw: where our sends begin */

    /* async.c */
    struct exsi_list device_node;   /* vdev->qps */
    struct exsi_list stricken_node; /* part->stricken */
    int stricken;                   /* errno that its asynchronous event stands for; under vdev->lock */
    uint8_t port;                   /* set by qp_create (id->port_num), before verbs_async_watch */
    bool gid_known;                 /* our GID and its index are filled in (IB transport, once RTS) */
    uint8_t gid_index;
    union ibv_gid gid;
};

static inline struct verbs_qp *verbs_qp_of(struct exsi_qp *qp)
{
    return exsi_container_of(qp, struct verbs_qp, qp);
}

/* From poll_cq: one completion of this queue pair; false: it was the device's own business. */
bool verbs_qp_complete(struct verbs_qp *qp, const struct ibv_wc *in, struct exsi_wc *out);
/* Something else than a work request says that the connection is over: remember the error if it is the first,
 * go to the error state, DISCONNECTED follows. */
void verbs_qp_fail(struct verbs_qp *qp, int error, const char *fmt, ...) EXSI_PRINTF(3, 4);
/* The connection is there: RTS. */
void verbs_qp_up(struct verbs_qp *qp);
/* To the error state for the reason given, or for none (0: the peer ended it in order); the first one counts. */
void verbs_qp_down(struct verbs_qp *qp, int error);
/* From poll_cq, once the hardware's queues are empty: what queue pairs in the error state give back. */
int verbs_qp_poll_down(struct verbs_part *part, struct exsi_wc *wc, int max);
/* Nothing more is posted, and the peer is told once everything is out. */
void verbs_qp_shut(struct verbs_qp *qp);
/* Look whether it is. */
void verbs_qp_drained(struct verbs_qp *qp);
/* The queue pair is broken and the reason is on its way; if not, it was suspect (errno), or unknown (0). */
void verbs_qp_lost(struct verbs_qp *qp, int suspect);
/* Ends the hardware's half; idempotent. */
void verbs_qp_bury(struct verbs_qp *qp);
/* Gives back everything else, once that is done. */
void verbs_qp_free(struct verbs_qp *qp);
/* A request that says nothing but that the far device answers. */
EXSI_MUST_CHECK int verbs_qp_post_mark(struct verbs_qp *qp);
/* iWARP: one that only makes TCP send something. */
EXSI_MUST_CHECK int verbs_qp_post_nudge(struct verbs_qp *qp);
/* alive.c: from now on look after the peer's host, every keepalive_ms. */
void verbs_alive_start(struct verbs_qp *qp);
/* A raw queue pair's adapter and hardware. */
EXSI_MUST_CHECK int verbs_raw_adapter(struct verbs_part *part, const uint8_t *gid, struct verbs_adapter **out);
EXSI_MUST_CHECK int verbs_raw_open(struct verbs_qp *qp, struct ibv_qp_init_attr *init);
/* Post one request of the device's own (bind, invalidate) on the send queue: its place in qp->sent is filled in.  It
 * goes out with the next flush. */
EXSI_MUST_CHECK int verbs_qp_post_own(struct verbs_qp *qp, const struct ibv_send_wr *wr, enum verbs_sent_kind kind,
                                      uint64_t key, bool signalled);

int verbs_qp_create(struct exsi_part *part, struct exsi_cm_id *id, const struct exsi_qp_attr *attr,
                    struct exsi_qp **out);
void verbs_qp_destroy(struct exsi_qp *qp);
void verbs_qp_abort(struct exsi_qp *qp);
void verbs_qp_query(struct exsi_qp *qp, struct exsi_qp_info *out);
int verbs_qp_post_recv(struct exsi_qp *qp, const struct exsi_recv_wr *wr, int n);
int verbs_qp_post_send(struct exsi_qp *qp, const struct exsi_send_wr *wr, int n);
void verbs_qp_flush(struct exsi_qp *qp);
int verbs_raw_query(struct exsi_qp *qp, struct exsi_raw_address *out);
int verbs_raw_to_rtr(struct exsi_qp *qp, const struct exsi_raw_address *peer);
int verbs_raw_to_rts(struct exsi_qp *qp);

/* --- connection management (cm.c) --------------------------------------------------------------------------- */

enum verbs_id_state {
    VERBS_ID_LISTENING,
    VERBS_ID_ADDRESS,   /* active: resolving */
    VERBS_ID_ROUTE,     /* active: resolving */
    VERBS_ID_RESOLVED,  /* active: the upper layer makes a queue pair */
    VERBS_ID_CALLING,   /* active: request going out, reply awaited */
    VERBS_ID_REQUESTED, /* passive: the upper layer decides */
    VERBS_ID_ANSWERING, /* passive: reply going out */
    VERBS_ID_UP,
    VERBS_ID_DEAD, /* FAILED was queued, or the queue pair went; waits for cm_destroy */
};

struct verbs_dial;

struct verbs_id {
    struct exsi_cm_id id;
    struct verbs_part *part;
    struct rdma_cm_id *cm;
    struct verbs_adapter *adapter; /* from RESOLVED or REQUEST on */
    struct verbs_qp *qp;
    struct exsi_list node; /* part->ids */
    struct exsi_cm_options opt;
    struct exsi_timer timer; /* bounds the set-up */
    enum verbs_id_state state;
    struct exsi_list event_node; /* part->events */
    struct exsi_cm_event event;
    bool announced;              /* passive: REQUEST was polled, so the upper layer knows of it */
    bool failed;                 /* FAILED was queued */
    bool blocks;                 /* the kernel is dialling: destroying the id or its queue pair would wait for that */
    bool buried;                 /* destroyed by the upper layer; a thread does the rest */
    uint8_t reads_in, reads_out; /* passive: what the request asks for */
    struct verbs_id *parent;     /* its listener, until it is announced */
    struct verbs_dial *dial;     /* cm_dial.c: a thread is at work */
    struct verbs_qp *grave;      /* destroyed by the upper layer while the id blocks */
};

static inline struct verbs_id *verbs_id_of(struct exsi_cm_id *id)
{
    return exsi_container_of(id, struct verbs_id, id);
}

/* Its queue pair goes away; true: it took it over, for later. */
bool verbs_id_orphan(struct verbs_id *id);
/* Its queue pair heard from the peer, which may be faster than the word that the connection is there. */
void verbs_id_heard(struct verbs_id *id);
void verbs_id_names(const struct verbs_id *id, union exsi_addr *local, union exsi_addr *peer);

/* The part's event channel; called by part_open, by part_close (which has destroyed the queue pairs before; ids that
 * the kernel keeps stay in part->ids), and by part_free. */
EXSI_MUST_CHECK int verbs_cm_part_open(struct verbs_part *part);
void verbs_cm_part_close(struct verbs_part *part);
void verbs_cm_part_free(struct verbs_part *part);
/* part_free, as soon as the kernel gives those ids back: now if there are none, else in a thread. */
void verbs_dial_linger(struct verbs_part *part);
int verbs_cm_poll(struct exsi_part *part, struct exsi_cm_event *ev);
int verbs_cm_listen(struct exsi_part *part, const union exsi_addr *addr, int backlog, const struct exsi_cm_options *opt,
                    void *user, struct exsi_cm_id **out, union exsi_addr *bound);
int verbs_cm_resolve(struct exsi_part *part, const union exsi_addr *source, const union exsi_addr *peer,
                     const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out);
int verbs_cm_connect(struct exsi_cm_id *id, const void *private_data, uint32_t len);
int verbs_cm_accept(struct exsi_cm_id *id, const void *private_data, uint32_t len);
void verbs_cm_reject(struct exsi_cm_id *id, const void *private_data, uint32_t len);
void verbs_cm_disconnect(struct exsi_cm_id *id);
void verbs_cm_destroy(struct exsi_cm_id *id);

#endif
