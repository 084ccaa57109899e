// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside the SMC-R engine: one connection of a link (engine/smcr.h). */
#ifndef EXSI_SMCR_FLOW_H
#define EXSI_SMCR_FLOW_H

#include "engine/smcr.h"

/* Room that flows leave for LLC. */
#define SMCR_RESERVE 8
/* How long the other side has to answer an end. */
#define SMCR_LEAVE_NS 2000000000u

struct smcr_write {
    struct smcr_flow *flow;
    uint32_t len;
    bool staged; /* from the staging ring, and of no send any more */
};

/* Small sends, copied: smcr_stage.c. */
struct smcr_stage {
    struct exsi_block block;
    uint32_t size;           /* a power of two; 0: no memory yet */
    uint64_t in, out, freed; /* bytes since the beginning: copied, written, completed */
    bool asked;
    struct smcr_stage_errand *errand; /* brings the memory */
};

struct smcr_flow {
    struct exsi_smcr *link;
    struct exsi_attach *at;      /* NULL: the socket is gone */
    struct smcr_flow *chain;     /* same low byte of the token */
    struct exsi_list node;       /* link->flows */
    struct exsi_list ready_node; /* link->ready */
    uint64_t socket;
    uint32_t token, peer_token; /* 0: not bound; not open */
    bool open;

    /* Sending: cursors in the peer's ring. */
    uint64_t peer_addr;
    uint32_t peer_rkey, peer_size;
    struct exsi_smc_cursor put, freed; /* written by us; read by the peer, as it has told */
    struct exsi_list sends;            /* that have not ended; those before unposted are out */
    struct exsi_op *unposted;
    struct smcr_stage stage;
    uint64_t unsent;    /* bytes accepted and not posted, copied or not */
    uint64_t written;   /* bytes, of all that were */
    uint32_t in_flight; /* WRITEs not completed */
    uint32_t urgents;   /* sends with an urgent byte that is not posted */
    bool urgent_now;    /* the last byte written is urgent: the next CDC says so */
    bool urgent_hold;   /* nothing more until the peer has read all */
    bool fin_wanted, shut_asked;
    bool broken; /* this direction takes no more */

    /* Receiving: cursors in our ring. */
    struct exsi_smcr_rmb *rmb;
    struct exsi_smc_cursor came, taken, told; /* written by the peer; read; read, as the peer was told */
    struct exsi_list recvs;
    uint32_t lent;        /* bytes of a view, from taken on */
    uint64_t received;    /* bytes, of all that came */
    uint32_t urgent_left; /* bytes up to and with the urgent one; 0: none */
    bool urgent_passed;
    uint8_t peer_flags; /* enum exsi_smc_producer_flag, of its last CDC message */
    bool recv_shut;
    bool unread; /* closed while something lay unread: the end is an abort */

    /* CDC. */
    uint16_t seq_out, seq_in;
    bool cdc_due;
    uint8_t said, heard; /* connection flags, sticky */

    /* The end. */
    bool over;   /* ended by an error, before both sides said closed */
    bool spoilt; /* by one of its own: what lies in the ring counts no more */
    bool abort;  /* owes the peer an abort */
    bool left;   /* both are through, and the socket has left */
    bool dead;   /* nothing is in flight, nothing will happen any more */
    int error;   /* what operations end with once over; 0: in order */
    char reason[EXSI_REASON_MAX];
    uint64_t leave_ns; /* without a socket: until when the peer may answer */
    uint32_t seen;     /* enum exsi_change bits last reported */
};

#define SMCR_FINAL (EXSI_SMC_CLOSED | EXSI_SMC_ABORT)

static inline struct smcr_flow *smcr_flow_of(const struct exsi_attach *at)
{
    return at->flow;
}

/* Bytes that the peer has written and nobody has read. */
static inline uint32_t smcr_arrived(const struct smcr_flow *f)
{
    return f->rmb && !f->spoilt ? exsi_smc_distance(f->taken, f->came, f->rmb->size) : 0;
}

/* No more will come from the peer. */
static inline bool smcr_is_eof(const struct smcr_flow *f)
{
    return (f->heard & (EXSI_SMC_SENDING_DONE | EXSI_SMC_CLOSED)) && !f->spoilt;
}

/* --- smcr_send.c */
/* It may have something to send: it gets its turn when the endpoint is flushed. */
void smcr_want(struct smcr_flow *f);
/* All that the link has to send and may: row before_flush. */
void smcr_pump(struct exsi_endpoint *ep);
bool smcr_is_writable(struct smcr_flow *f);
/* What the next CDC says of our writing: enum exsi_smc_producer_flag. */
uint8_t smcr_producer_flags(const struct smcr_flow *f);
int smcr_send(struct exsi_attach *at, struct exsi_op *op);
void smcr_cancel_send(struct smcr_flow *f, struct exsi_op *op);
void smcr_write_done(struct exsi_endpoint *ep, uint64_t wr_id, int error);
/* End those whose every WRITE completed; once over, also those that were never begun. */
void smcr_retire_sends(struct smcr_flow *f);
/* What was not posted ends with error when its turn comes; this direction takes no more. */
void smcr_cut_sends(struct smcr_flow *f);

/* --- smcr_stage.c */
/* Copied and not written. */
static inline uint32_t smcr_staged(const struct smcr_flow *f)
{
    return (uint32_t)(f->stage.in - f->stage.out);
}
/* A WRITE of staged bytes is on the way. */
static inline bool smcr_stage_is_away(const struct smcr_flow *f)
{
    return f->stage.out != f->stage.freed;
}
uint32_t smcr_stage_room(const struct smcr_flow *f);
/* The oldest that is not posted: copy it, if it is small and there is room.  True: nothing of it is left to post. */
bool smcr_stage_op(struct smcr_flow *f, struct exsi_op *op);
/* It will be copied once there is room. */
bool smcr_waits_for_stage(const struct smcr_flow *f, const struct exsi_op *op);
/* So much lies there that it should not wait for company. */
bool smcr_stage_is_due(const struct smcr_flow *f);
/* The bytes to write next that are contiguous; some are staged. */
uint32_t smcr_stage_span(const struct smcr_flow *f, uint8_t **src, struct exsi_dmr **dmr);
/* n of them are posted; n, the oldest posted ones, are complete. */
void smcr_stage_sent(struct smcr_flow *f, uint32_t n);
void smcr_stage_done(struct smcr_flow *f, uint32_t n);
/* What is not posted will not be: how much that was. */
uint32_t smcr_stage_drop(struct smcr_flow *f);
/* No WRITE from it is in flight. */
void smcr_stage_fini(struct smcr_flow *f);

/* --- smcr_recv.c */
/* A CDC message for the flow, which may be gone afterwards. */
void smcr_cdc(struct smcr_flow *f, const struct exsi_smc_cdc *c);
int smcr_recv(struct exsi_attach *at, struct exsi_op *op);
int64_t smcr_take(struct exsi_attach *at, void *buf, size_t len, bool fragile);
void smcr_cancel_recv(struct smcr_flow *f, struct exsi_op *op);
/* Everything that lies there goes into the posted receives, or to nobody once that side is shut. */
void smcr_settle(struct smcr_flow *f);
void smcr_end_recvs(struct smcr_flow *f, int error);
void smcr_shutdown_recv(struct exsi_attach *at);
bool smcr_is_readable(const struct smcr_flow *f);

/* --- smcr_close.c */
void smcr_shutdown_send(struct exsi_attach *at);
/* The flags that the next CDC is to say in addition, if it is time. */
uint8_t smcr_end_flags(const struct smcr_flow *f);
/* The peer said done, closed or abort. */
void smcr_heard(struct smcr_flow *f, uint8_t flags);
/* The connection ends now, for itself: the peer gets an abort. */
void smcr_end(struct smcr_flow *f, int error, const char *why);
void smcr_violation(struct smcr_flow *f, const char *fmt, ...) EXSI_PRINTF(2, 3);
/* Nothing of it is in flight any more: it may be dead now, or gone if it has no socket. */
void smcr_step(struct smcr_flow *f);
void smcr_abort(struct exsi_attach *at, int error, const char *why);
void smcr_disconnect(struct exsi_attach *at);
void smcr_detach(struct exsi_attach *at);
void smcr_leave_over(struct exsi_timer *t);
/* The link is down: everything ends. */
void smcr_link_lost(struct smcr_flow *f);
uint32_t smcr_ready(struct smcr_flow *f);
void smcr_report(struct smcr_flow *f);

/* --- smcr.c */
struct smcr_flow *smcr_find(const struct exsi_smcr *l, uint32_t token);
/* Without an owner any more: the program is told, the memory goes. */
void smcr_release(struct smcr_flow *f);
/* False: out of memory, nobody is told. */
bool smcr_notice(struct exsi_smcr *l, enum exsi_smcr_notice_kind kind, const void *bytes, uint32_t len,
                 struct exsi_smcr_notice **out);
/* What LLC has to send; false: it waits for room. */
bool smcr_pump_llc(struct exsi_smcr *l);

#endif
