// SPDX-License-Identifier: MIT OR Apache-2.0
/* SMC-R's CDC message and the arithmetic of its cursors (RFC 7609).  Fixed layout, no state, no
 * allocation.
 *
 * A cursor is a place in a ring of `size` bytes (a power of two): how often the end was passed, and an offset.  The
 * count of passes has 16 bits, so a cursor lives in a circle of 65536 * size bytes, and which of two cursors is ahead
 * is told by the shorter way round. */
#ifndef EXSI_SMC_CDC_H
#define EXSI_SMC_CDC_H

#include "base/bytes.h"

#define EXSI_SMC_MESSAGE_LEN 44
#define EXSI_SMC_CDC_TYPE    0xfe
#define EXSI_SMC_RMBE_MIN    16384u
#define EXSI_SMC_SIZE_CODES  16u /* 16384 << code */

enum exsi_smc_producer_flag {
    EXSI_SMC_WRITER_BLOCKED = 0x80,
    EXSI_SMC_URGENT_PENDING = 0x40,
    EXSI_SMC_URGENT_PRESENT = 0x20,
    EXSI_SMC_UPDATE_REQUESTED = 0x10,
    EXSI_SMC_FAILOVER_VALIDATION = 0x08,
};

enum exsi_smc_connection_flag {
    EXSI_SMC_SENDING_DONE = 0x80,
    EXSI_SMC_CLOSED = 0x40,
    EXSI_SMC_ABORT = 0x20,
};

struct exsi_smc_cursor {
    uint16_t wrap;
    uint32_t count;
};

struct exsi_smc_cdc {
    uint16_t seq;
    uint32_t token; /* of the receiver */
    struct exsi_smc_cursor producer, consumer;
    uint8_t producer_flags, connection_flags;
};

void exsi_smc_cdc_encode(const struct exsi_smc_cdc *c, uint8_t out[EXSI_SMC_MESSAGE_LEN]);
/* Looks at the first 44 bytes.  -EPROTO if they are fewer or no CDC.  Reserved fields are not looked at. */
EXSI_MUST_CHECK int exsi_smc_cdc_decode(const void *data, size_t len, struct exsi_smc_cdc *out);
/* Before the last one that was accepted? */
static inline bool exsi_smc_seq_is_old(uint16_t last, uint16_t seq)
{
    return (int16_t)(uint16_t)(seq - last) < 0;
}

/* --- cursors -------------------------------------------------------------------------------------- */

static inline bool exsi_smc_size_is_valid(uint64_t size)
{
    return size >= EXSI_SMC_RMBE_MIN && size <= (uint64_t)EXSI_SMC_RMBE_MIN << (EXSI_SMC_SIZE_CODES - 1) &&
           (size & (size - 1)) == 0;
}

/* From old to new, where new is ahead by at most size bytes. */
uint32_t exsi_smc_distance(struct exsi_smc_cursor old, struct exsi_smc_cursor new, uint32_t size);
/* n at most size. */
void exsi_smc_advance(struct exsi_smc_cursor *c, uint32_t n, uint32_t size);

enum exsi_smc_move { EXSI_SMC_FORWARD, EXSI_SMC_BACKWARD, EXSI_SMC_OUTSIDE };
/* A cursor that a peer names, against the last one: ahead by at most `most` bytes (FORWARD, *by says how many, also 0),
 * behind (it is to be ignored), or what no honest peer says: no offset of the ring, or further than most. */
enum exsi_smc_move exsi_smc_move(struct exsi_smc_cursor old, struct exsi_smc_cursor new, uint32_t most, uint32_t size,
                                 uint32_t *by);

/* --- writing -------------------------------------------------------------------------------------- */

/* Bytes of the peer's ring that are free. */
static inline uint32_t exsi_smc_free(struct exsi_smc_cursor producer, struct exsi_smc_cursor consumer, uint32_t size)
{
    return size - exsi_smc_distance(consumer, producer, size);
}
/* How many bytes one WRITE may put at producer.count: up to the consumer, and not across the end of the ring. */
uint32_t exsi_smc_span(struct exsi_smc_cursor producer, struct exsi_smc_cursor consumer, uint32_t size);

/* --- reading -------------------------------------------------------------------------------------- */

/* So many bytes are read before the peer is told. */
static inline uint32_t exsi_smc_update_limit(uint32_t size)
{
    return size / 10 > 2304 ? size / 10 : 2304;
}

struct exsi_smc_update {
    uint32_t unconfirmed; /* read since the peer was told */
    uint32_t unread;      /* arrived and not read */
    bool writer_blocked;  /* said the peer last */
    bool requested;
    bool urgent_passed; /* an urgent byte was read: its sender waits for that */
};
/* Must the peer be told now how far we have read?  */
bool exsi_smc_update_is_due(const struct exsi_smc_update *u, uint32_t size);

#endif
