// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the files of the soft device share beyond soft.h: the queue pair, the completion ring, keys. */
#ifndef EXSI_SOFT_QP_H
#define EXSI_SOFT_QP_H

#include "device/soft/soft.h"

struct soft_id;

enum {
    SOFT_MAX_INLINE = 64,
    SOFT_MAX_WR = 4096,
    SOFT_TX_CHUNK = 16, /* send queue entries allocated together */
    SOFT_KEY_BITS = 12, /* of an rkey: index; the others are random */
};

/* What poll_cm will tell; exactly one of the two is set. */
struct soft_event {
    struct exsi_list node; /* part->events */
    struct soft_id *id;
    struct soft_qp *qp;
};

/* A key: the right of this queue pair's peer to write [addr, addr + len). */
struct soft_key {
    struct soft_mr *mr; /* NULL: free */
    uint64_t addr, len;
    uint32_t rkey, next_free;
};

/* Down is the one end: every request has completed, DISCONNECTED is queued, nothing lands any more. */
enum soft_qp_state { SOFT_QP_INIT, SOFT_QP_UP, SOFT_QP_DOWN };

struct soft_qp {
    struct exsi_qp qp;
    struct soft_part *part;
    struct soft_id *id;     /* its connection; NULL: raw, or gone */
    struct soft_path *path; /* owns; NULL before the connection is up */
    struct exsi_stats *stats;
    struct exsi_list node;      /* part->qps */
    struct exsi_list work_node; /* part->work: something to be done outside of the path */
    struct soft_event event;    /* DISCONNECTED */
    struct exsi_timer close_timer;
    uint64_t log_id;
    enum soft_qp_state state;
    int error;                    /* of DISCONNECTED; 0 or a positive errno */
    char reason[EXSI_REASON_MAX]; /* of it, in words */
    bool shut, peer_closed, down_polled;
    uint32_t close_timeout_ms;
    uint32_t max_recv_len;

    /* Send queue: chunks made when first needed; an empty queue starts again at slot 0, so that a
     * connection that sends little stays in its first chunk. */
    struct soft_tx **sq;
    uint32_t sq_cap, sq_head, sq_len;
    /* Posted receives. */
    struct exsi_recv_wr *rq;
    uint32_t rq_cap, rq_head, rq_len;
    uint32_t rx_msn, rx_mo; /* message that is arriving, and how far it came */
    bool starved;           /* the path holds a message for which no receive was posted */
    uint32_t cq_pending;    /* completions of ours not polled yet */

    struct soft_key *keys;
    uint32_t n_keys, free_key; /* free_key: index + 1, 0: none */

    union exsi_addr local, peer;
    struct soft_raw_qp *raw; /* raw.c's; NULL: made on a connection id */
};

static inline struct soft_qp *soft_qp_of(struct exsi_qp *qp)
{
    return exsi_container_of(qp, struct soft_qp, qp);
}
static inline struct soft_part *soft_part_of(struct exsi_part *p)
{
    return exsi_container_of(p, struct soft_part, part);
}
static inline struct soft_mr *soft_mr_of(struct exsi_dmr *d)
{
    return exsi_container_of(d, struct soft_mr, dmr);
}

/* qp.c */
int soft_qp_create(struct exsi_part *part, struct exsi_cm_id *id, const struct exsi_qp_attr *attr,
                   struct exsi_qp **out);
void soft_qp_destroy(struct exsi_qp *qp);
void soft_qp_abort(struct exsi_qp *qp);
void soft_qp_query(struct exsi_qp *qp, struct exsi_qp_info *out);
int soft_qp_post_recv(struct exsi_qp *qp, const struct exsi_recv_wr *wr, int n);
int soft_qp_post_send(struct exsi_qp *qp, const struct exsi_send_wr *wr, int n);
void soft_qp_flush(struct exsi_qp *qp);
/* takes path.  The connection is agreed; nothing moves before soft_qp_start. */
void soft_qp_attach(struct soft_qp *qp, struct soft_path *path);
/* The upper layer knows that the connection is up: bytes may move. */
void soft_qp_start(struct soft_qp *qp);
/* Sending is over; ends in DISCONNECTED. */
void soft_qp_shut(struct soft_qp *qp);
/* The end, with the positive errno of DISCONNECTED and what to say (NULL: nothing); idempotent.  The path has
 * stopped before. */
void soft_qp_down(struct soft_qp *qp, int error, const char *reason);
/* Do what sinks could only note; called at each entry of the table that polls. */
void soft_qp_settle(struct soft_part *part);

/* cq.c */
EXSI_MUST_CHECK int soft_cq_reserve(struct soft_part *part, uint32_t n);
void soft_cq_unreserve(struct soft_part *part, uint32_t n);
void soft_cq_push(struct soft_qp *qp, const struct exsi_wc *wc);
void soft_cq_forget(struct soft_qp *qp);
void soft_cq_fini(struct soft_part *part);
int soft_cq_poll(struct exsi_part *part, struct exsi_wc *wc, int max);

/* mr.c */
int soft_mr_reg(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out);
void soft_mr_dereg(struct exsi_device *dev, struct exsi_dmr *mr);
int soft_key_bind(struct exsi_qp *qp, struct exsi_dmr *mr, void *addr, size_t len, uint32_t *rkey);
int soft_key_invalidate(struct exsi_qp *qp, uint32_t rkey, uint64_t wr_id);
/* The range behind a key for a write of a peer: -ENOENT no such key, -ERANGE outside, -EACCES not for writing. */
EXSI_MUST_CHECK int soft_key_check(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst,
                                   bool *fragile);
void soft_keys_lend(struct soft_qp *qp);
void soft_keys_fini(struct soft_qp *qp);

/* path_tcp.c */
struct soft_tcp_config {
    int fd; /* takes: non-blocking, set-up is over */
    bool crc;
    bool peer_soft; /* takes FPDUs of any length */
    bool responder; /* may not send first to a peer that is not soft */
    uint32_t linger_ms;
    uint32_t keepalive_ms; /* 0: off */
};
EXSI_MUST_CHECK int soft_tcp_new(struct soft_part *part, const struct soft_tcp_config *cfg, struct soft_path **out);

/* linger.c: a socket that has something last to say.  takes fd; sends data (copied), shuts down writing
 * and drains to the end of the stream, at most timeout_ms; never fails visibly. */
void soft_linger(struct soft_part *part, int fd, const void *data, size_t len, uint32_t timeout_ms);
void soft_linger_fini(struct soft_part *part);
/* Close with a reset: the peer must not take what came so far for an orderly end. */
void soft_close_reset(int fd);

#endif
