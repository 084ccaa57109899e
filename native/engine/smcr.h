// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SMC-R engine: many sockets on one raw queue pair, the link (RFC 7609).  What CLC and LLC agree on is told by the
 * caller; here is what is hot or timed: the ring buffers (RMBs), CDC messages, TEST_LINK.
 *   smcr.c        the table; the link: what arrives, whose it is, what is told to the program, TEST_LINK
 *   smcr_send.c   WRITEs into the peer's ring, CDC messages, and whose turn it is
 *   smcr_stage.c  small sends, copied: several share a WRITE
 *   smcr_recv.c   what CDC messages say, and reading from our own ring
 *   smcr_close.c  done, closed, abort: how a connection ends
 *   smcr_look.c   what can be seen of it from outside
 *
 * Nothing is sent from inside a call: what has something to say is put on link->ready, and exsi_smcr_pump runs when
 * the endpoint is flushed.  So all that happened since goes into one CDC message.
 *
 * Invariants: no WRITE goes beyond the consumer cursor that the peer has told, nor outside its ring.  What a peer says
 * is checked before it has an effect; what fails the check ends that one connection with EPROTO and a line in the log
 * that names the field. */
#ifndef EXSI_SMCR_H
#define EXSI_SMCR_H

#include "base/list.h"
#include "engine/engine.h"
#include "wire/smc_cdc.h"

#define EXSI_SMCR_CONNECTIONS 255
#define EXSI_SMCR_LLC_MAX     8192

/* A ring that one peer fills. */
struct exsi_smcr_rmb {
    struct exsi_list node; /* link->rmbs */
    uint64_t number;       /* the program's name for it */
    uint8_t *base;
    uint32_t size, rkey;
    struct exsi_mr *mr; /* holds one use of a region that goes with it */
    bool in_use;        /* by a connection */
    bool ending;        /* its key is being ended */
};

/* What the program is to take, in order. */
enum exsi_smcr_notice_kind { EXSI_SMCR_LLC = 1, EXSI_SMCR_CONNECTION_DONE = 2, EXSI_SMCR_LINK_DOWN = 3 };

struct exsi_smcr_notice {
    struct exsi_list node; /* link->notices */
    enum exsi_smcr_notice_kind kind;
    int error;
    bool clean; /* CONNECTION_DONE: the peer has said that it is through */
    uint32_t token, len;
    uint64_t socket;
    uint8_t bytes[]; /* LLC: len of them */
};

struct smcr_flow;

struct exsi_smcr {
    struct exsi_endpoint *ep;
    struct exsi_list flows;        /* every connection, also one whose socket is gone */
    struct exsi_list ready;        /* those that may have something to send; the first has its turn */
    struct smcr_flow *tokens[256]; /* by the low byte of their token */
    uint32_t n_flows;
    struct exsi_list rmbs;
    uint64_t last_rmb;
    bool dead;
    bool closing; /* the program gave it up: nobody is told that it is down */

    struct exsi_list notices;
    uint32_t n_llc; /* of them */
    bool told_drop;
    void (*noticed)(void *owner);
    void *owner;

    struct exsi_list llc; /* messages of the program that wait for room */
    uint32_t n_llc_out;

    /* TEST_LINK. */
    bool active, test_due, asked, echo_due;
    uint8_t version;
    uint64_t interval_ns, timeout_ns, heard_ns, asked_ns;
    uint8_t echo[EXSI_SMC_MESSAGE_LEN];
    struct exsi_timer test_timer;
    struct exsi_timer stuck_timer; /* runs while something waits for room */
    struct exsi_timer leave_timer; /* connections whose peer has not answered the end */

    /* WRITEs that have not completed, in posting order; as many as the send queue takes. */
    struct smcr_write *writes;
    uint32_t write_head, write_len;

    uint64_t cdc_in, cdc_out, strays, tests_in, tests_out, llc_in, llc_out;
};

/* What the peer told of its side (CLC). */
struct exsi_smcr_peer {
    uint64_t addr;
    uint32_t rkey, size, token;
};

/* What can be seen of a connection.  The cursors are in the peer's ring: how far we have written, and how far it has
 * told that it has read; and in ours: how far it has told that it has written, how far was read, and how far it was
 * told. */
struct exsi_smcr_state {
    uint64_t socket; /* the handle that it has, or had before it was closed */
    uint32_t token, size;
    struct exsi_smcr_peer peer; /* zeros before it is known */
    struct exsi_smc_cursor put, freed, came, taken, told;
    uint64_t sent, received;                         /* bytes written in each direction since the beginning */
    uint64_t unsent;                                 /* bytes accepted and not written, copied or not */
    uint32_t unread;                                 /* bytes that came and were not read */
    uint8_t producer_flags, peer_producer_flags;     /* ours: as the next CDC says it; the peer's: of its last one */
    uint8_t connection_flags, peer_connection_flags; /* all that were ever said */
    int error;                                       /* positive; 0: in order */
};

/* --- for sock/: all under the group's lock ------------------------------------------------------------ */

static inline struct exsi_smcr *exsi_smcr_of(const struct exsi_endpoint *ep)
{
    return ep->engine_state;
}

/* Takes the use of mr (whose memory is base).  size: exsi_smc_size_is_valid. */
EXSI_MUST_CHECK int exsi_smcr_rmb_new(struct exsi_smcr *l, struct exsi_mr *mr, struct exsi_dmr *dmr, uint8_t *base,
                                      uint32_t size, struct exsi_smcr_rmb **out);
struct exsi_smcr_rmb *exsi_smcr_rmb_find(struct exsi_smcr *l, uint64_t number);
/* -EBUSY while a connection has it. */
EXSI_MUST_CHECK int exsi_smcr_rmb_close(struct exsi_smcr *l, struct exsi_smcr_rmb *rmb);

/* An attached socket gets its ring and its alert token: -EINVAL (token 0), -EBUSY (ring in use), -EEXIST (token). */
EXSI_MUST_CHECK int exsi_smcr_bind(struct exsi_attach *at, struct exsi_smcr_rmb *rmb, uint32_t token);
/* The peer is known: data may flow.  -EINVAL: a size, address or token that cannot be. */
EXSI_MUST_CHECK int exsi_smcr_open(struct exsi_attach *at, const struct exsi_smcr_peer *peer);
/* Lend the bytes that lie in the ring and are contiguous: 1, 0 at the end of the stream, -EAGAIN, -EBUSY, or the
 * error of the connection. */
EXSI_MUST_CHECK int exsi_smcr_lend(struct exsi_attach *at, void **addr, uint64_t *len);
/* n of them are read; the loan ends. */
EXSI_MUST_CHECK int exsi_smcr_lend_over(struct exsi_attach *at, uint64_t n);
bool exsi_smcr_is_lent(const struct exsi_attach *at);

/* Queue an LLC message; block: a copy of it, taken also on failure, for one that is longer than 44 bytes. */
EXSI_MUST_CHECK int exsi_smcr_llc_send(struct exsi_smcr *l, const void *data, uint32_t len, struct exsi_block *block);
/* TEST_LINK from now on.  interval_ms 0: never. */
EXSI_MUST_CHECK int exsi_smcr_active(struct exsi_smcr *l, uint8_t version, uint32_t interval_ms, uint32_t timeout_ms);
/* The next notice, unlinked, the caller's to free; NULL. */
struct exsi_smcr_notice *exsi_smcr_take(struct exsi_smcr *l);
/* The connection with that token of ours, also when its socket is gone: -ENOENT. */
EXSI_MUST_CHECK int exsi_smcr_look(const struct exsi_smcr *l, uint32_t token, struct exsi_smcr_state *out);
/* Bytes of all its rings, those that no connection has included; *n: how many they are. */
uint64_t exsi_smcr_rings(const struct exsi_smcr *l, uint32_t *n);
/* The program gives the link up: every connection ends with ECONNABORTED and tells its peer. */
void exsi_smcr_give_up(struct exsi_smcr *l);

#endif
