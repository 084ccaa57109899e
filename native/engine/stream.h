// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside the STREAM engine (docs/explanation/stream-algorithm.md): one flow and two rings.
 *   stream.c       the tables, set-up, control messages, when to run what
 *   stream_send.c  rules S1 to S6: direct into an advertised buffer, or through the peer's ring
 *   stream_recv.c  rules R1 to R5 and SETTLE: placing, copying out, advertising */
#ifndef EXSI_STREAM_H
#define EXSI_STREAM_H

#include "engine/flow.h"

struct exsi_stream {
    struct exsi_flow f;

    /* Towards the peer: its ring, and how much of it we have used. */
    uint64_t isent, ifreed;
    uint64_t peer_ring;
    uint32_t peer_rkey, peer_len; /* rkey 0: not told yet */
    uint32_t put;                 /* isent mod peer_len */
    struct exsi_timer hold;       /* a large send waits a moment for an advertisement */
    bool advert_seen;             /* one came since the last wait was in vain, or was left out */
    uint8_t holds_in_vain;        /* one behind the other */
    uint8_t holds_to_skip;

    /* From the peer: our ring. */
    uint64_t iarr, icop;
    uint32_t get; /* icop mod ring_len */
    uint32_t ring_len, ring_rkey;
    uint8_t *ring;  /* the endpoint's memory */
    bool ring_late; /* the key was not in our hello: RING is our first message */
};

static inline struct exsi_stream *exsi_stream_of(const struct exsi_flow *f)
{
    return exsi_container_of(f, struct exsi_stream, f);
}

/* Entries of struct exsi_flow_ops take the flow. */
void exsi_stream_pump(struct exsi_flow *f);

/* --- stream_send.c */
bool exsi_stream_writable(struct exsi_stream *s);
void exsi_stream_pump_data(struct exsi_stream *s);
bool exsi_stream_freed(struct exsi_stream *s, uint64_t freed);
void exsi_stream_advert(struct exsi_stream *s, const struct exsi_control *c);
void exsi_stream_ring(struct exsi_stream *s, const struct exsi_control *c);
void exsi_stream_cancel_send(struct exsi_flow *f, struct exsi_op *op);
void exsi_stream_hold_over(struct exsi_timer *t);

/* --- stream_recv.c */
bool exsi_stream_readable(const struct exsi_stream *s);
void exsi_stream_word(struct exsi_flow *f, uint32_t word);
void exsi_stream_revoked(struct exsi_stream *s, uint32_t id);
void exsi_stream_settle(struct exsi_flow *f);
void exsi_stream_pump_adverts(struct exsi_stream *s);
int64_t exsi_stream_take(struct exsi_stream *s, void *buf, size_t len, bool fragile);
void exsi_stream_shut_recv(struct exsi_flow *f);

#endif
