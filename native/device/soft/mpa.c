// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: no decoder looks beyond the length it was given, and what it accepts has been checked
 * against every limit of mpa.h. */
#include "device/soft/mpa.h"

#include <stdio.h>

#include "base/bytes.h"

static const char request_key[] = "MPA ID Req Frame", reply_key[] = "MPA ID Rep Frame";
_Static_assert(sizeof request_key == MPA_KEY_LEN + 1, "RFC 5044 §7.1.1");

enum { FLAG_MARKERS = 0x80, FLAG_CRC = 0x40, FLAG_REJECT = 0x20, FLAG_ENHANCED = 0x10 };
enum { DEPTH_MASK = 0x3fff, DEPTH_PEER_TO_PEER = 0x8000 };

struct mpa_header {
    uint8_t key[MPA_KEY_LEN];
    uint8_t flags, revision;
    exsi_be16 private_len;
};
_Static_assert(sizeof(struct mpa_header) == MPA_HEADER_LEN, "RFC 5044 figure 10");

struct block_wire {
    exsi_be16 flags, why;
    uint8_t token[SOFT_TOKEN_LEN];
    exsi_be64 probe_addr;
    exsi_be32 pid_hint;
    exsi_be16 verbs_port; /* reserved: where the same listener answers rdma_cm */
    uint8_t reserved, name_len;
    uint8_t name[SOFT_NAME_MAX];
    exsi_be32 raw_src_qpn, raw_dst_qpn, raw_src_psn, raw_dst_psn;
    uint8_t reserved2[12];
    /* At the very end, so that it is found without knowing how long the upper layer's bytes are, and
     * so that later versions may grow in front of it. */
    exsi_be16 length;
    uint8_t version, reserved3;
    exsi_be32 magic;
};
_Static_assert(sizeof(struct block_wire) == SOFT_BLOCK_LEN, "docs/wire/soft.md");
enum { BLOCK_TAIL = 8 };

bool mpa_key_matches(bool reply, const uint8_t *data, size_t len)
{
    return memcmp(data, reply ? reply_key : request_key, len < MPA_KEY_LEN ? len : MPA_KEY_LEN) == 0;
}

/* RFC 5044 §7.1.1 */
uint32_t mpa_encode(const struct mpa_frame *f, const void *upper, uint32_t upper_len, const struct soft_block *block,
                    uint8_t out[MPA_FRAME_TX])
{
    assert(upper_len <= MPA_UPPER_MAX);
    struct mpa_header h = {.revision = f->revision};
    memcpy(h.key, f->reply ? reply_key : request_key, MPA_KEY_LEN);
    h.flags = (uint8_t)((f->markers ? FLAG_MARKERS : 0) | (f->crc ? FLAG_CRC : 0) | (f->reject ? FLAG_REJECT : 0) |
                        (f->enhanced ? FLAG_ENHANCED : 0));
    uint32_t at = MPA_HEADER_LEN;
    if (f->enhanced) {
        exsi_be16 ird = exsi_put16((uint16_t)((f->ird & DEPTH_MASK) | (f->peer_to_peer ? DEPTH_PEER_TO_PEER : 0)));
        exsi_be16 ord = exsi_put16(f->ord & DEPTH_MASK);
        memcpy(out + at, &ird, 2);
        memcpy(out + at + 2, &ord, 2);
        at += MPA_DEPTHS_LEN;
    }
    if (upper_len) memcpy(out + at, upper, upper_len);
    at += upper_len;
    if (block) {
        soft_block_encode(block, out + at);
        at += SOFT_BLOCK_LEN;
    }
    h.private_len = exsi_put16((uint16_t)(at - MPA_HEADER_LEN));
    memcpy(out, &h, sizeof h);
    return at;
}

int mpa_decode_header(bool reply, const uint8_t head[MPA_HEADER_LEN], struct mpa_frame *out, uint32_t *rest,
                      const char **reason)
{
    struct mpa_header h;
    memcpy(&h, head, sizeof h);
    *reason = "not an MPA frame";
    if (!mpa_key_matches(reply, h.key, MPA_KEY_LEN)) return -EPROTO;
    *out = (struct mpa_frame){.reply = reply,
                              .markers = h.flags & FLAG_MARKERS,
                              .crc = h.flags & FLAG_CRC,
                              .reject = h.flags & FLAG_REJECT,
                              .revision = h.revision,
                              .enhanced = h.revision >= 2 && h.flags & FLAG_ENHANCED};
    *rest = exsi_get16(h.private_len);
    *reason = "MPA revision not known";
    if (h.revision < 1 || h.revision > 2) return -EPROTO;
    *reason = "MPA frame with too much private data";
    if (*rest > MPA_PRIVATE_RX) return -EPROTO;
    /* RFC 5044 §7.1.1: only a reply may reject. */
    *reason = "MPA request with the reject flag";
    if (!reply && out->reject) return -EPROTO;
    *reason = "MPA frame without its read depths";
    if (out->enhanced && *rest < MPA_DEPTHS_LEN) return -EPROTO;
    *reason = NULL;
    return 0;
}

/* RFC 6581 §6 */
int mpa_decode_rest(struct mpa_frame *f, const uint8_t *data, uint32_t len, const uint8_t **private_data,
                    const char **reason)
{
    struct exsi_cursor c = exsi_cursor(data, len);
    if (f->enhanced) {
        exsi_be16 ird, ord;
        *reason = "MPA frame without its read depths";
        EXSI_TRY(exsi_cursor_take(&c, &ird, sizeof ird));
        EXSI_TRY(exsi_cursor_take(&c, &ord, sizeof ord));
        f->ird = exsi_get16(ird) & DEPTH_MASK;
        f->ord = exsi_get16(ord) & DEPTH_MASK;
        f->peer_to_peer = exsi_get16(ird) & DEPTH_PEER_TO_PEER;
    }
    *private_data = c.at;
    f->private_len = (uint32_t)exsi_cursor_left(&c);
    *reason = NULL;
    return 0;
}

void soft_block_encode(const struct soft_block *b, uint8_t out[SOFT_BLOCK_LEN])
{
    assert(b->name_len <= SOFT_NAME_MAX);
    struct block_wire w = {.flags = exsi_put16(b->flags),
                           .why = exsi_put16(b->why),
                           .probe_addr = exsi_put64(b->probe_addr),
                           .pid_hint = exsi_put32(b->pid_hint),
                           .name_len = b->name_len,
                           .raw_src_qpn = exsi_put32(b->raw_src_qpn),
                           .raw_dst_qpn = exsi_put32(b->raw_dst_qpn),
                           .raw_src_psn = exsi_put32(b->raw_src_psn),
                           .raw_dst_psn = exsi_put32(b->raw_dst_psn),
                           .length = exsi_put16(SOFT_BLOCK_LEN),
                           .version = SOFT_BLOCK_VERSION,
                           .magic = exsi_put32(SOFT_BLOCK_MAGIC)};
    memcpy(w.token, b->token, SOFT_TOKEN_LEN);
    memcpy(w.name, b->name, b->name_len);
    memcpy(out, &w, sizeof w);
}

bool soft_block_decode(const uint8_t *private_data, uint32_t len, struct soft_block *out, uint32_t *upper_len)
{
    struct block_wire w;
    *upper_len = len;
    if (len < SOFT_BLOCK_LEN) return false;
    memcpy(&w, private_data + len - SOFT_BLOCK_LEN, sizeof w);
    uint32_t length = exsi_get16(w.length);
    if (exsi_get32(w.magic) != SOFT_BLOCK_MAGIC || w.version < SOFT_BLOCK_VERSION) return false;
    if (length < SOFT_BLOCK_LEN || length > len || w.name_len > SOFT_NAME_MAX) return false;
    *upper_len = len - length;
    *out = (struct soft_block){.flags = exsi_get16(w.flags),
                               .why = exsi_get16(w.why),
                               .probe_addr = exsi_get64(w.probe_addr),
                               .pid_hint = exsi_get32(w.pid_hint),
                               .name_len = w.name_len,
                               .raw_src_qpn = exsi_get32(w.raw_src_qpn),
                               .raw_dst_qpn = exsi_get32(w.raw_dst_qpn),
                               .raw_src_psn = exsi_get32(w.raw_src_psn),
                               .raw_dst_psn = exsi_get32(w.raw_dst_psn)};
    memcpy(out->token, w.token, SOFT_TOKEN_LEN);
    memcpy(out->name, w.name, w.name_len);
    return true;
}

void mpa_quote(const uint8_t *data, size_t len, char out[MPA_QUOTE_MAX])
{
    size_t at = 0;
    out[at++] = '"';
    for (size_t i = 0; i < len && i < MPA_KEY_LEN; i++) {
        bool plain = data[i] >= 0x20 && data[i] < 0x7f && data[i] != '"' && data[i] != '\\';
        if (plain)
            out[at++] = (char)data[i];
        else
            at += (size_t)snprintf(out + at, MPA_QUOTE_MAX - at, "\\x%02x", data[i]);
    }
    out[at++] = '"';
    out[at] = 0;
}
