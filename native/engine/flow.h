// SPDX-License-Identifier: MIT OR Apache-2.0
/* What STREAM and SEQPACKET have in common: credits, control messages, advertisements in both
 * directions, the queues of operations, and the end of each direction.  One flow per endpoint; both
 * engines embed it as first member and add only what data means to them.
 *
 * flow.c: the rows of the engine table that are the same in both.
 * credit.c: credits and control messages; posting and retiring sends.
 * advert.c: advertisements, ours and the peer's, and how receives end.
 * Everything a peer sends is checked here or in the engine before it has an effect; what fails the
 * check ends the connection with EPROTO and a sentence that names the field. */
#ifndef EXSI_FLOW_H
#define EXSI_FLOW_H

#include "base/list.h"
#include "engine/engine.h"

/* Credits that only CREDIT messages may use (ES-API 2.3.5). */
#define EXSI_RESERVED_CREDITS 2
/* No single WRITE is longer: the notice word counts 29 bits. */
#define EXSI_MAX_WRITE (1u << 28)

/* Faults for the tests of the tests: compiled in only with EXSI_SEED_FAULTS. */
#ifdef EXSI_SEED_FAULTS
struct exsi_faults {
    bool skip_s1, skip_settle_a, ind_less, ack_before_copy, drop_waitall_rest, cancel_at_once, fin_early, ring_wrap;
    bool spend_reserve, revoked_late;
};
extern struct exsi_faults exsi_faults;
#define EXSI_FAULT(name) (exsi_faults.name)
#else
#define EXSI_FAULT(name) false
#endif

/* An advertisement of the peer. */
struct exsi_advert {
    uint64_t addr, ind;
    uint32_t id, rkey, len;
    bool waitall;
};

enum exsi_revoke { EXSI_REVOKE_NONE, EXSI_REVOKE_WANTED, EXSI_REVOKE_SENT };

struct exsi_flow;

/* What an engine adds; every entry is set. */
struct exsi_flow_ops {
    /* Everything that can be sent now, then tell the socket what changed. */
    void (*pump)(struct exsi_flow *f);
    /* enum exsi_change bits that hold now. */
    uint32_t (*ready)(struct exsi_flow *f);
    /* What arrived: the notice of data, or a control message whose header has not been looked at. */
    void (*word)(struct exsi_flow *f, uint32_t word);
    void (*control)(struct exsi_flow *f, const struct exsi_control *c);
    /* A receive was queued: end what can end now. */
    void (*settle)(struct exsi_flow *f);
    void (*cancel_send)(struct exsi_flow *f, struct exsi_op *op);
    void (*shut_recv)(struct exsi_flow *f);
};

struct exsi_flow {
    const struct exsi_flow_ops *ops;
    struct exsi_endpoint *ep;
    struct exsi_attach *at; /* NULL: the socket is gone, or not there yet */
    struct exsi_engine_config cfg;
    bool live;    /* we may send: up, and for the passive side, spoken to */
    bool opened;  /* our first message is out */
    bool stalled; /* waits for credit; counted once */
    bool dead;    /* on_error was called */
    int error;    /* what operations end with after that; 0: the end was in order */

    /* Credits: receives of the peer that we may use, and ours that we owe back. */
    uint32_t credit, peer_slots;
    uint32_t owed, slots;

    /* The peer's limits. */
    uint32_t peer_adverts;
    uint32_t max_write;

    /* Sending.  sends holds every send that has not ended, in order; those before unposted are out. */
    struct exsi_list sends;
    struct exsi_op *unposted;
    struct exsi_advert *adverts; /* FIFO of cfg.max_adverts */
    uint32_t adv_head, adv_len;
    uint32_t adv_last; /* last id seen */
    bool adv_wild;     /* ids do not count up by one: look for repeats */
    uint32_t *revoked; /* FIFO of REVOKED answers that we owe, cfg.max_adverts */
    uint32_t revoked_head, revoked_len;
    uint64_t sent; /* seq: bytes (stream) or messages (seqpacket) given to the device */
    bool fin_wanted, fin_sent, fin_acked;
    bool shut_asked; /* fin_wanted by shutdown, not only by a send's own flag */
    bool broken;     /* a send was cut: this direction refuses more */

    /* Receiving.  recvs in posting order; ending: have their result, wait for a key to end. */
    struct exsi_list recvs, ending;
    struct exsi_op *next_advert; /* first receive that is not wholly advertised, or NULL */
    uint32_t last_id, live_adverts;
    uint32_t revokes_wanted, revokes_out;
    uint32_t keys_pending; /* invalidations on their way */
    int bind_error;        /* of the last key_bind, positive; 0: it went well */
    uint64_t arrived;      /* rarr: bytes or messages */
    uint64_t freed, acked; /* icop, iack (0 in seqpacket) */
    bool eof, eof_told;    /* FIN processed; the peer was told */
    bool ack_wanted, pong_wanted;
    bool recv_shut;
    uint64_t pong_seq;

    uint32_t seen; /* enum exsi_change bits last reported */
};

static inline struct exsi_flow *exsi_flow_of(const struct exsi_attach *at)
{
    return at->flow;
}

/* --- flow.c: rows of struct exsi_engine_ops; ep->engine_state is the flow ------------------------ */

void exsi_flow_on_up(struct exsi_endpoint *ep);
void exsi_flow_before_flush(struct exsi_endpoint *ep);
void exsi_flow_on_recv(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word);
void exsi_flow_on_write_done(struct exsi_endpoint *ep, uint64_t wr_id, int error);
void exsi_flow_on_invalidated(struct exsi_endpoint *ep, uint64_t wr_id);
void exsi_flow_on_room(struct exsi_endpoint *ep);
void exsi_flow_on_error(struct exsi_endpoint *ep);
int exsi_flow_send(struct exsi_attach *at, struct exsi_op *op);
int exsi_flow_recv(struct exsi_attach *at, struct exsi_op *op);
void exsi_flow_cancel(struct exsi_attach *at, struct exsi_op *op);
void exsi_flow_shutdown_send(struct exsi_attach *at);
void exsi_flow_shutdown_recv(struct exsi_attach *at);
void exsi_flow_abort(struct exsi_attach *at, int error, const char *why);
void exsi_flow_disconnect(struct exsi_attach *at);
uint32_t exsi_flow_ready_now(const struct exsi_attach *at);

/* --- credit.c -------------------------------------------------------------------------------- */

void exsi_flow_ep_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out);
EXSI_MUST_CHECK int exsi_flow_init(struct exsi_flow *f, struct exsi_endpoint *ep, const struct exsi_engine_config *cfg,
                                   const struct exsi_flow_ops *ops);
void exsi_flow_fini(struct exsi_flow *f);
/* The common part of the hello, and what the peer's says. */
void exsi_flow_hello(const struct exsi_flow *f, uint16_t type, struct exsi_hello *out);
EXSI_MUST_CHECK int exsi_flow_peer_hello(struct exsi_flow *f, uint16_t type, const struct exsi_hello *in, char *reason);
int exsi_flow_attach(struct exsi_attach *at);
void exsi_flow_detach(struct exsi_attach *at);

/* The connection is over for a violation by the peer. */
#define exsi_flow_fail(f, ...) exsi_ep_fail((f)->ep, EPROTO, __VA_ARGS__)
static inline bool exsi_flow_running(const struct exsi_flow *f)
{
    return !f->ep->shut && (f->ep->state == EXSI_EP_UP || f->ep->state == EXSI_EP_READY);
}

/* Sending may begin now. */
void exsi_flow_go_live(struct exsi_flow *f);
/* May one more message that costs n_wr work requests go out?  If not, the engine is called when it may. */
bool exsi_flow_may_send(struct exsi_flow *f, uint32_t n_wr);
/* Send a control message; type and fields by the caller, credits, freed and flags added.  false: not now. */
bool exsi_flow_control(struct exsi_flow *f, struct exsi_control *c);
/* CREDIT if half of our receives are owed; may use the reserve. */
void exsi_flow_return_credit(struct exsi_flow *f);
/* Our first message is a CREDIT(0), unless the engine has something better. */
bool exsi_flow_first_credit(struct exsi_flow *f);
/* A message arrived: its receive is owed.  false: the connection failed. */
bool exsi_flow_arrived(struct exsi_flow *f);
/* The notice word of a message, wherever it stands; or it is a control message (*is_word false). */
bool exsi_flow_decode(struct exsi_flow *f, const void *data, uint32_t len, const uint32_t *word, bool *is_word,
                      uint32_t *value, struct exsi_control *c);
/* Credits and FIN mark of a control message; PING, PONG, RESET, REVOKE.  false: it failed, or it is done. */
bool exsi_flow_header(struct exsi_flow *f, const struct exsi_control *c);
/* What both engines send besides data, in order of need.  false: no credit or room for more. */
bool exsi_flow_pump_acks(struct exsi_flow *f);
bool exsi_flow_pump_fin(struct exsi_flow *f);
/* FIN of the peer; total: what arrived must be. */
bool exsi_flow_fin_arrived(struct exsi_flow *f, const struct exsi_control *c);
/* Tell the socket which of the bits are new. */
void exsi_flow_report(struct exsi_flow *f, uint32_t bits);
/* Bits that mean the same in both engines. */
uint32_t exsi_flow_ready(const struct exsi_flow *f);

/* Post len bytes of op's next ones (within one span) to the peer; notice word behind. */
bool exsi_flow_write(struct exsi_flow *f, struct exsi_op *op, const uint8_t *src, struct exsi_dmr *dmr, uint32_t len,
                     uint64_t raddr, uint32_t rkey, uint32_t word);
/* Accept a send, or refuse it. */
EXSI_MUST_CHECK int exsi_flow_queue_send(struct exsi_flow *f, struct exsi_op *op);
/* unposted is wholly out: on to the next. */
void exsi_flow_posted(struct exsi_flow *f);
void exsi_flow_write_done(struct exsi_flow *f, uint64_t len, int error);
/* End the sends whose every WRITE completed, in order. */
void exsi_flow_retire_sends(struct exsi_flow *f);
/* End all operations: the connection is over. */
void exsi_flow_end_all(struct exsi_flow *f);

/* --- advert.c -------------------------------------------------------------------------------- */

/* The peer's. */
static inline struct exsi_advert *exsi_flow_advert(struct exsi_flow *f)
{
    return &f->adverts[f->adv_head];
}
/* Remember an ADVERT; false: the connection failed. */
bool exsi_flow_advert_add(struct exsi_flow *f, const struct exsi_control *c);
void exsi_flow_advert_pop(struct exsi_flow *f);
/* Owe a REVOKED, and forget the advertisement if we have it. */
void exsi_flow_revoke_arrived(struct exsi_flow *f, uint32_t id);
/* Answer what is owed, but not for advertisement `busy` (0: none).  true: none is left but that. */
bool exsi_flow_pump_revoked(struct exsi_flow *f, uint32_t busy);

/* Ours. */
static inline uint32_t exsi_flow_next_id(struct exsi_flow *f)
{
    if (++f->last_id == 0) f->last_id = 1;
    return f->last_id;
}
/* Advertise len bytes of op from op->done on.  false: not now. */
bool exsi_flow_advertise(struct exsi_flow *f, struct exsi_op *op, uint32_t len, uint8_t flags, uint64_t ind);
/* The advertisement of op is used up or void: end its key. */
void exsi_flow_unadvertise(struct exsi_flow *f, struct exsi_op *op);
/* First receive with a live advertisement, or NULL. */
struct exsi_op *exsi_flow_first_live(struct exsi_flow *f);
EXSI_MUST_CHECK int exsi_flow_queue_recv(struct exsi_flow *f, struct exsi_op *op);
/* A receive has its result: its event goes out now, or when its key has ended. */
void exsi_flow_end_recv(struct exsi_flow *f, struct exsi_op *op, int error);
/* It ends because somebody asked for it (cancel, SHUT_RD). */
void exsi_flow_end_cancelled(struct exsi_flow *f, struct exsi_op *op);
void exsi_flow_cancel_recv(struct exsi_flow *f, struct exsi_op *op);
void exsi_flow_cancel_all_recvs(struct exsi_flow *f);
/* All receives end: end of stream (error 0) or a dead connection. */
void exsi_flow_end_recvs(struct exsi_flow *f, int error);
bool exsi_flow_pump_revokes(struct exsi_flow *f);
/* REVOKED arrived.  The receive that it ends, already taken out of the account, or NULL. */
struct exsi_op *exsi_flow_revoked(struct exsi_flow *f, uint32_t id);
void exsi_flow_invalidated(struct exsi_flow *f, uint64_t wr_id);

#endif
