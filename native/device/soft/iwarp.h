// SPDX-License-Identifier: MIT OR Apache-2.0
/* DDP and RDMAP headers as they stand in an FPDU (RFC 5040, 5041, 5044): encode, decode, check.
 * Pure: no state, no allocation.  Decoding checks all that does not depend on a connection; the
 * caller knows queues, message numbers and keys. */
#ifndef EXSI_SOFT_IWARP_H
#define EXSI_SOFT_IWARP_H

#include "base/bytes.h"

#define IWARP_TAGGED_LEN   16u /* with the two bytes of the length field */
#define IWARP_UNTAGGED_LEN 20u
#define IWARP_MAX_ULPDU    65535u
#define IWARP_MAX_TAGGED   (IWARP_MAX_ULPDU - (IWARP_TAGGED_LEN - 2))
#define IWARP_MAX_UNTAGGED (IWARP_MAX_ULPDU - (IWARP_UNTAGGED_LEN - 2))
#define IWARP_CRC_LEN      4u
#define IWARP_TRAILER_MAX  7u /* three bytes of padding and the CRC */

enum iwarp_opcode {
    IWARP_WRITE = 0,
    IWARP_READ_REQUEST = 1,
    IWARP_READ_RESPONSE = 2,
    IWARP_SEND = 3,
    IWARP_SEND_INVALIDATE = 4,
    IWARP_SEND_SE = 5,
    IWARP_SEND_SE_INVALIDATE = 6,
    IWARP_TERMINATE = 7,
};

enum iwarp_queue { IWARP_QN_SEND = 0, IWARP_QN_READ = 1, IWARP_QN_TERMINATE = 2 };

/* One segment: the header of one FPDU. */
struct iwarp_segment {
    bool tagged, last;
    uint8_t opcode;
    uint32_t payload; /* bytes behind the header */
    uint32_t stag;    /* tagged; untagged: the STag to invalidate */
    uint64_t to;      /* tagged: target offset */
    uint32_t qn, msn, mo;
};

/* Why an FPDU is refused, in the words of the RFCs. */
struct iwarp_error {
    uint8_t layer, etype, code;
};

enum { IWARP_LAYER_RDMAP = 0, IWARP_LAYER_DDP = 1, IWARP_LAYER_MPA = 2 };
/* RFC 5040 §4.8 */
enum { IWARP_RDMAP_LOCAL = 0, IWARP_RDMAP_PROTECTION = 1, IWARP_RDMAP_OPERATION = 2 };
enum {
    IWARP_P_INVALID_STAG = 0,
    IWARP_P_BOUNDS = 1,
    IWARP_P_ACCESS = 2,
    IWARP_P_STREAM = 3,
    IWARP_P_WRAP = 4,
    IWARP_O_VERSION = 5,
    IWARP_O_OPCODE = 6,
    IWARP_O_LOCAL_STREAM = 7,
    IWARP_O_INVALIDATE = 9,
    IWARP_UNSPECIFIED = 0xff,
};
/* RFC 5041 §7.2 */
enum { IWARP_DDP_LOCAL = 0, IWARP_DDP_TAGGED = 1, IWARP_DDP_UNTAGGED = 2 };
enum {
    IWARP_T_INVALID_STAG = 0,
    IWARP_T_BOUNDS = 1,
    IWARP_T_STREAM = 2,
    IWARP_T_WRAP = 3,
    IWARP_T_VERSION = 4,
    IWARP_U_QN = 1,
    IWARP_U_NO_BUFFER = 2,
    IWARP_U_MSN = 3,
    IWARP_U_MO = 4,
    IWARP_U_TOO_LONG = 5,
    IWARP_U_VERSION = 6,
};
/* RFC 5044 §8 */
enum { IWARP_MPA_ERROR = 0 };
enum { IWARP_M_CLOSED = 1, IWARP_M_CRC = 2, IWARP_M_MARKER = 3, IWARP_M_FRAME = 4 };

/* Bytes of padding and CRC behind a segment of this many bytes, length field included. */
static inline uint32_t iwarp_pad(uint32_t header_and_payload)
{
    return (0u - header_and_payload) & 3u;
}
static inline uint32_t iwarp_trailer_len(uint32_t header_and_payload)
{
    return iwarp_pad(header_and_payload) + IWARP_CRC_LEN;
}
static inline uint32_t iwarp_header_len(bool tagged)
{
    return tagged ? IWARP_TAGGED_LEN : IWARP_UNTAGGED_LEN;
}

/* Header with its length field; returns its length, 16 or 20. */
uint32_t iwarp_encode(const struct iwarp_segment *seg, uint8_t out[IWARP_UNTAGGED_LEN]);
/* The first 16 bytes of an FPDU: all of a tagged header, all but the message offset of an untagged one.
 * -EPROTO with err. */
EXSI_MUST_CHECK int iwarp_decode(const uint8_t head[IWARP_TAGGED_LEN], struct iwarp_segment *out,
                                 struct iwarp_error *err);
/* The rest of an untagged header, and the checks that need it. */
EXSI_MUST_CHECK int iwarp_decode_rest(const uint8_t rest[IWARP_UNTAGGED_LEN - IWARP_TAGGED_LEN],
                                      struct iwarp_segment *seg, struct iwarp_error *err);

/* Padding (zero) and CRC as they go behind the payload.  crc: exsi_crc32c over header, payload and
 * padding, or 0 where no CRC is used.  Returns the length. */
uint32_t iwarp_put_trailer(uint32_t header_and_payload, uint32_t crc, uint8_t out[IWARP_TRAILER_MAX]);
/* The CRC of a trailer as received. */
uint32_t iwarp_get_crc(const uint8_t *trailer, uint32_t header_and_payload);

/* The payload of a read request (RFC 5040 figure 6), as far as anybody here looks at it. */
#define IWARP_READ_LEN 28u
struct iwarp_read {
    uint32_t sink_stag, len;
    uint64_t sink_to;
};
struct iwarp_read iwarp_decode_read(const uint8_t payload[IWARP_READ_LEN]);

/* Payload of a Terminate: control word and, if headers is not NULL, the refused DDP header with its
 * segment length.  Returns its length. */
#define IWARP_TERMINATE_MAX 24u
uint32_t iwarp_terminate_encode(const struct iwarp_error *err, const uint8_t *header, uint32_t header_len,
                                uint8_t out[IWARP_TERMINATE_MAX]);
/* Also one whose layer and type changed places, where that can be told. */
EXSI_MUST_CHECK int iwarp_terminate_decode(const void *data, size_t len, struct iwarp_error *out);
/* In words, for the log; static text. */
const char *iwarp_error_text(const struct iwarp_error *err);
/* What a Terminate from the peer means here: a negative errno. */
int iwarp_error_errno(const struct iwarp_error *err);

#endif
