// SPDX-License-Identifier: MIT OR Apache-2.0
/* MPA set-up frames (RFC 5044 §7.1, RFC 6581) and soft's own block in their private data.
 * Pure: encode and decode, no state, no allocation.  docs/wire/soft.md has the layouts. */
#ifndef EXSI_SOFT_MPA_H
#define EXSI_SOFT_MPA_H

#include "device/soft/soft.h"

#define MPA_KEY_LEN    16u
#define MPA_HEADER_LEN 20u
#define MPA_PRIVATE_RX 512u /* RFC 5044: most that a frame may carry */
#define MPA_PRIVATE_TX 256u /* most that the kernel's siw takes, depths included */
#define MPA_DEPTHS_LEN 4u
#define MPA_FRAME_RX   (MPA_HEADER_LEN + MPA_PRIVATE_RX)
#define MPA_FRAME_TX   (MPA_HEADER_LEN + MPA_PRIVATE_TX)
#define MPA_UPPER_MAX  (MPA_PRIVATE_TX - MPA_DEPTHS_LEN - SOFT_BLOCK_LEN)

#define SOFT_BLOCK_LEN     104u
#define SOFT_BLOCK_MAGIC   0x45585342u /* "EXSB" */
#define SOFT_BLOCK_VERSION 1

/* A request or a reply. */
struct mpa_frame {
    bool reply;
    bool markers, crc, reject;
    bool enhanced;     /* RFC 6581: read depths are there */
    uint8_t revision;  /* 1 or 2 */
    bool peer_to_peer; /* enhanced: the initiator wants to send a first empty FPDU */
    uint16_t ird, ord;
    uint32_t private_len; /* what follows the depths */
};

/* Frame with its private data: upper's bytes and then, unless NULL, the block.  Returns its length. */
uint32_t mpa_encode(const struct mpa_frame *f, const void *upper, uint32_t upper_len, const struct soft_block *block,
                    uint8_t out[MPA_FRAME_TX]);
/* Is what came so far (at most MPA_KEY_LEN bytes are looked at) the beginning of a frame? */
bool mpa_key_matches(bool reply, const uint8_t *data, size_t len);
/* The 20 bytes of a header; *rest: how many bytes follow it.  -EPROTO with reason (static text). */
EXSI_MUST_CHECK int mpa_decode_header(bool reply, const uint8_t head[MPA_HEADER_LEN], struct mpa_frame *out,
                                      uint32_t *rest, const char **reason);
/* What follows: reads the depths; *private_data points behind them and out->private_len counts from there. */
EXSI_MUST_CHECK int mpa_decode_rest(struct mpa_frame *f, const uint8_t *data, uint32_t len,
                                    const uint8_t **private_data, const char **reason);

/* soft's block at the end of private data: true if there is one; *upper_len: bytes before it. */
bool soft_block_decode(const uint8_t *private_data, uint32_t len, struct soft_block *out, uint32_t *upper_len);
void soft_block_encode(const struct soft_block *block, uint8_t out[SOFT_BLOCK_LEN]);

/* Bytes that are no MPA, made printable for a message: at most n of them, quoted. */
#define MPA_QUOTE_MAX 72
void mpa_quote(const uint8_t *data, size_t len, char out[MPA_QUOTE_MAX]);

#endif
