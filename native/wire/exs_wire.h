// SPDX-License-Identifier: MIT OR Apache-2.0
/* Our own wire format: the block in the private data, the 48-byte control message, the notice word
 * (docs/wire/exs.md).  Fixed layouts, encode and decode, no state, no allocation.  Decoding checks
 * everything that does not depend on the state of a connection. */
#ifndef EXSI_EXS_WIRE_H
#define EXSI_EXS_WIRE_H

#include "base/bytes.h"

#define EXSI_HELLO_MAGIC      0x45585331u
#define EXSI_HELLO_LEN        56
#define EXSI_CONTROL_LEN      48
#define EXSI_WORD_LEN         4
#define EXSI_PROTOCOL_VERSION 1
#define EXSI_MIN_CREDITS      8

enum exsi_hello_flag {
    EXSI_HELLO_STREAM = 1,
    EXSI_HELLO_SEQPACKET = 2,
    EXSI_HELLO_IMMEDIATE = 4,
    EXSI_HELLO_VERBS = 8
};

struct exsi_hello {
    uint8_t version, min_version;
    uint16_t flags;
    uint64_t ring_addr;
    uint32_t ring_rkey, ring_len;
    uint16_t credits, max_adverts;
    uint32_t max_transfer;
    uint64_t cookie;
};

enum exsi_control_type {
    EXSI_CTL_ADVERT = 1,
    EXSI_CTL_ACK,
    EXSI_CTL_CREDIT,
    EXSI_CTL_REVOKE,
    EXSI_CTL_REVOKED,
    EXSI_CTL_FIN,
    EXSI_CTL_RESET,
    EXSI_CTL_PING,
    EXSI_CTL_PONG,
    EXSI_CTL_LENGTH,
    EXSI_CTL_RING,
};

enum exsi_control_flag { EXSI_CTLF_WAITALL = 1, EXSI_CTLF_FIN_PROCESSED = 2 };

struct exsi_control {
    uint8_t type, flags;
    uint16_t credits;
    uint32_t id;
    uint64_t freed, addr;
    uint32_t rkey, len;
    uint64_t ind, seq;
};

void exsi_hello_encode(const struct exsi_hello *h, uint8_t out[EXSI_HELLO_LEN]);
/* Reads the first 56 bytes, ignores the rest.  -EPROTO with a reason (static text). */
EXSI_MUST_CHECK int exsi_hello_decode(const void *data, size_t len, struct exsi_hello *out, const char **reason);

void exsi_control_encode(const struct exsi_control *c, uint8_t out[EXSI_CONTROL_LEN]);
EXSI_MUST_CHECK int exsi_control_decode(const void *data, size_t len, struct exsi_control *out, const char **reason);

/* The notice word: kind, end of message, byte count. */
enum exsi_word_kind { EXSI_WORD_DIRECT = 0, EXSI_WORD_INDIRECT = 1 };
#define EXSI_WORD_MAX_COUNT ((1u << 29) - 1)

static inline uint32_t exsi_word(enum exsi_word_kind kind, bool end, uint32_t count)
{
    return (uint32_t)kind << 30 | (uint32_t)end << 29 | count;
}
EXSI_MUST_CHECK int exsi_word_decode(uint32_t word, enum exsi_word_kind *kind, bool *end, uint32_t *count,
                                     const char **reason);

#endif
