// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: decoding a set-up frame of any bytes reads nothing beyond them, accepts at most 512 bytes of
 * private data, and what was accepted says the same when it is encoded and decoded once more. */
#include <stdlib.h>
#include <string.h>

#include "device/soft/mpa.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool holds)
{
    if (!holds) abort();
}

static void again(const struct mpa_frame *f, const uint8_t *upper, uint32_t upper_len, const struct soft_block *block)
{
    uint8_t out[MPA_FRAME_TX];
    struct mpa_frame g;
    struct soft_block same;
    uint32_t rest = 0, upper_again;
    const uint8_t *private_data;
    const char *why;
    if (upper_len > MPA_UPPER_MAX) return;
    uint32_t n = mpa_encode(f, upper, upper_len, block, out);
    require(n <= sizeof out && mpa_decode_header(f->reply, out, &g, &rest, &why) == 0);
    require(n == MPA_HEADER_LEN + rest && mpa_decode_rest(&g, out + MPA_HEADER_LEN, rest, &private_data, &why) == 0);
    require(g.markers == f->markers && g.crc == f->crc && g.reject == f->reject && g.enhanced == f->enhanced);
    require(g.ird == f->ird && g.ord == f->ord && g.revision == f->revision && g.peer_to_peer == f->peer_to_peer);
    if (!block) return;
    require(soft_block_decode(private_data, g.private_len, &same, &upper_again) && upper_again == upper_len);
    require(!upper_len || memcmp(private_data, upper, upper_len) == 0);
    require(same.flags == block->flags && same.why == block->why && same.probe_addr == block->probe_addr);
    require(same.pid_hint == block->pid_hint && same.name_len == block->name_len);
    require(memcmp(same.token, block->token, SOFT_TOKEN_LEN) == 0 &&
            memcmp(same.name, block->name, block->name_len) == 0);
    require(same.raw_src_qpn == block->raw_src_qpn && same.raw_dst_qpn == block->raw_dst_qpn);
    require(same.raw_src_psn == block->raw_src_psn && same.raw_dst_psn == block->raw_dst_psn);
}

static void one(bool reply, const uint8_t *data, size_t len)
{
    struct mpa_frame f;
    struct soft_block block;
    const uint8_t *private_data;
    const char *why;
    uint32_t rest, upper_len;
    bool begins = mpa_key_matches(reply, data, len);
    if (len < MPA_HEADER_LEN || mpa_decode_header(reply, data, &f, &rest, &why) < 0) return;
    require(begins && rest <= MPA_PRIVATE_RX && !why);
    if (len - MPA_HEADER_LEN < rest || mpa_decode_rest(&f, data + MPA_HEADER_LEN, rest, &private_data, &why) < 0)
        return;
    require(private_data + f.private_len == data + MPA_HEADER_LEN + rest);
    memset(&block, 0, sizeof block);
    bool soft = soft_block_decode(private_data, f.private_len, &block, &upper_len);
    require(upper_len <= f.private_len && block.name_len <= SOFT_NAME_MAX);
    again(&f, private_data, upper_len, soft ? &block : NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char quote[MPA_QUOTE_MAX];
    mpa_quote(data, len, quote);
    require(strlen(quote) < sizeof quote);
    one(false, data, len);
    one(true, data, len);
    return 0;
}
