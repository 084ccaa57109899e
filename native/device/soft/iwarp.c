// SPDX-License-Identifier: MIT OR Apache-2.0
/* Headers are laid out as structs of bytes and copied in and out, so nothing here depends on alignment.
 * Invariant: what iwarp_decode accepts has a payload length that fits its length field, and an offset that
 * does not wrap; it says nothing about keys or queues' state. */
#include "device/soft/iwarp.h"

enum { DDP_TAGGED = 0x80, DDP_LAST = 0x40, DDP_VERSION_MASK = 0x03, DDP_VERSION = 1 };
enum { RDMAP_VERSION_SHIFT = 6, RDMAP_VERSION = 1, RDMAP_OPCODE_MASK = 0x0f };
enum { TERM_HAS_LENGTH = 0x80, TERM_HAS_DDP = 0x40 };

/* RFC 5041 §4.1, §4.2, §4.3, RFC 5040 §4.1; offsets include the MPA length field. */
struct tagged_header {
    exsi_be16 ulpdu_len;
    uint8_t ddp, rdmap;
    exsi_be32 stag;
    exsi_be64 to;
};
struct untagged_header {
    exsi_be16 ulpdu_len;
    uint8_t ddp, rdmap;
    exsi_be32 stag, qn, msn, mo;
};
_Static_assert(sizeof(struct tagged_header) == IWARP_TAGGED_LEN, "RFC 5041 figure 3");
_Static_assert(sizeof(struct untagged_header) == IWARP_UNTAGGED_LEN, "RFC 5041 figure 5");
_Static_assert(offsetof(struct untagged_header, mo) == IWARP_TAGGED_LEN, "what is left after 16 bytes");

uint32_t iwarp_encode(const struct iwarp_segment *seg, uint8_t out[IWARP_UNTAGGED_LEN])
{
    uint32_t len = iwarp_header_len(seg->tagged);
    uint8_t ddp = (uint8_t)((seg->tagged ? DDP_TAGGED : 0) | (seg->last ? DDP_LAST : 0) | DDP_VERSION);
    uint8_t rdmap = (uint8_t)(RDMAP_VERSION << RDMAP_VERSION_SHIFT | seg->opcode);
    exsi_be16 ulpdu = exsi_put16((uint16_t)(len - 2 + seg->payload));
    if (seg->tagged) {
        struct tagged_header h = {ulpdu, ddp, rdmap, exsi_put32(seg->stag), exsi_put64(seg->to)};
        memcpy(out, &h, sizeof h);
    } else {
        struct untagged_header h = {
            ulpdu, ddp, rdmap, exsi_put32(seg->stag), exsi_put32(seg->qn), exsi_put32(seg->msn), exsi_put32(seg->mo)};
        memcpy(out, &h, sizeof h);
    }
    return len;
}

static int refuse(struct iwarp_error *err, uint8_t layer, uint8_t etype, uint8_t code)
{
    *err = (struct iwarp_error){layer, etype, code};
    return -EPROTO;
}

/* RFC 5041 §4.2 */
static int check_tagged(const struct iwarp_segment *seg, struct iwarp_error *err)
{
    if (seg->opcode != IWARP_WRITE && seg->opcode != IWARP_READ_RESPONSE)
        return refuse(err, IWARP_LAYER_RDMAP, IWARP_RDMAP_OPERATION, IWARP_O_OPCODE);
    if (seg->to + seg->payload < seg->to) return refuse(err, IWARP_LAYER_DDP, IWARP_DDP_TAGGED, IWARP_T_WRAP);
    return 0;
}

/* RFC 5040 §4.2: each opcode has its queue. */
static int check_untagged(const struct iwarp_segment *seg, struct iwarp_error *err)
{
    switch ((enum iwarp_opcode)seg->opcode) {
    case IWARP_SEND:
    case IWARP_SEND_SE:
    case IWARP_SEND_INVALIDATE:
    case IWARP_SEND_SE_INVALIDATE:
        if (seg->qn == IWARP_QN_SEND) return 0;
        break;
    case IWARP_READ_REQUEST:
        if (seg->qn == IWARP_QN_READ) return 0;
        break;
    case IWARP_TERMINATE:
        if (seg->qn == IWARP_QN_TERMINATE) return 0;
        break;
    case IWARP_WRITE:
    case IWARP_READ_RESPONSE: return refuse(err, IWARP_LAYER_RDMAP, IWARP_RDMAP_OPERATION, IWARP_O_OPCODE);
    }
    if (seg->opcode > IWARP_TERMINATE) return refuse(err, IWARP_LAYER_RDMAP, IWARP_RDMAP_OPERATION, IWARP_O_OPCODE);
    return refuse(err, IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_QN);
}

/* RFC 5040 §4.1 */
int iwarp_decode(const uint8_t head[IWARP_TAGGED_LEN], struct iwarp_segment *out, struct iwarp_error *err)
{
    struct tagged_header h;
    memcpy(&h, head, sizeof h);
    *out = (struct iwarp_segment){.tagged = h.ddp & DDP_TAGGED,
                                  .last = h.ddp & DDP_LAST,
                                  .opcode = h.rdmap & RDMAP_OPCODE_MASK,
                                  .stag = exsi_get32(h.stag)};
    if ((h.ddp & DDP_VERSION_MASK) != DDP_VERSION)
        return refuse(err, IWARP_LAYER_DDP, out->tagged ? IWARP_DDP_TAGGED : IWARP_DDP_UNTAGGED,
                      out->tagged ? IWARP_T_VERSION : IWARP_U_VERSION);
    if (h.rdmap >> RDMAP_VERSION_SHIFT != RDMAP_VERSION)
        return refuse(err, IWARP_LAYER_RDMAP, IWARP_RDMAP_OPERATION, IWARP_O_VERSION);
    uint32_t ulpdu = exsi_get16(h.ulpdu_len), header = iwarp_header_len(out->tagged) - 2;
    /* An FPDU shorter than its own header: the stream is out of step. */
    if (ulpdu < header) return refuse(err, IWARP_LAYER_MPA, IWARP_MPA_ERROR, IWARP_M_MARKER);
    out->payload = ulpdu - header;
    if (out->tagged) {
        out->to = exsi_get64(h.to);
        return check_tagged(out, err);
    }
    struct untagged_header u = {0};
    memcpy(&u, head, IWARP_TAGGED_LEN);
    out->qn = exsi_get32(u.qn);
    out->msn = exsi_get32(u.msn);
    return check_untagged(out, err);
}

/* RFC 5041 §4.3 */
int iwarp_decode_rest(const uint8_t rest[IWARP_UNTAGGED_LEN - IWARP_TAGGED_LEN], struct iwarp_segment *seg,
                      struct iwarp_error *err)
{
    exsi_be32 mo;
    memcpy(&mo, rest, sizeof mo);
    seg->mo = exsi_get32(mo);
    if (seg->mo + seg->payload < seg->mo) return refuse(err, IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_MO);
    return 0;
}

/* RFC 5044 §4.1 */
uint32_t iwarp_put_trailer(uint32_t header_and_payload, uint32_t crc, uint8_t out[IWARP_TRAILER_MAX])
{
    uint32_t pad = iwarp_pad(header_and_payload);
    memset(out, 0, pad);
    /* RFC 5044 §4.4 takes iSCSI's CRC with iSCSI's byte order: least significant byte first. */
    for (uint32_t i = 0; i < IWARP_CRC_LEN; i++) out[pad + i] = (uint8_t)(crc >> (8 * i));
    return pad + IWARP_CRC_LEN;
}

uint32_t iwarp_get_crc(const uint8_t *trailer, uint32_t header_and_payload)
{
    const uint8_t *at = trailer + iwarp_pad(header_and_payload);
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* RFC 5040 §4.8 */
uint32_t iwarp_terminate_encode(const struct iwarp_error *err, const uint8_t *header, uint32_t header_len,
                                uint8_t out[IWARP_TERMINATE_MAX])
{
    memset(out, 0, IWARP_TERMINATE_MAX);
    out[0] = (uint8_t)(err->layer << 4 | (err->etype & 0x0f));
    out[1] = err->code;
    if (!header) return 4;
    assert(header_len == IWARP_TAGGED_LEN || header_len == IWARP_UNTAGGED_LEN);
    /* The refused header begins with the length field, so length and header are one copy. */
    out[2] = TERM_HAS_LENGTH | TERM_HAS_DDP;
    memcpy(out + 4, header, header_len);
    return 4 + header_len;
}

/* RFC 5040 §4.4 */
struct iwarp_read iwarp_decode_read(const uint8_t payload[IWARP_READ_LEN])
{
    exsi_be32 stag, len;
    exsi_be64 to;
    memcpy(&stag, payload, sizeof stag);
    memcpy(&to, payload + 4, sizeof to);
    memcpy(&len, payload + 12, sizeof len);
    return (struct iwarp_read){.sink_stag = exsi_get32(stag), .len = exsi_get32(len), .sink_to = exsi_get64(to)};
}

/* Whether one of the RFCs defines it: 5040 section 4.8, 5041 section 7, 5044 section 8. */
static bool defined(const struct iwarp_error *err)
{
    static const struct {
        uint8_t first, last; /* codes */
    } known[][3] = {
        [IWARP_LAYER_RDMAP] = {{0, 0}, {IWARP_P_INVALID_STAG, IWARP_P_WRAP}, {IWARP_O_VERSION, IWARP_O_INVALIDATE}},
        [IWARP_LAYER_DDP] = {{0, 0}, {IWARP_T_INVALID_STAG, IWARP_T_VERSION}, {IWARP_U_QN, IWARP_U_VERSION}},
        [IWARP_LAYER_MPA] = {{IWARP_M_CLOSED, IWARP_M_FRAME}, {1, 0}, {1, 0}},
    };
    if (err->layer > IWARP_LAYER_MPA || err->etype > 2) return false;
    if (err->layer == IWARP_LAYER_RDMAP && err->etype && err->code == IWARP_UNSPECIFIED) return true;
    return err->code >= known[err->layer][err->etype].first && err->code <= known[err->layer][err->etype].last;
}

int iwarp_terminate_decode(const void *data, size_t len, struct iwarp_error *out)
{
    struct exsi_cursor c = exsi_cursor(data, len);
    uint8_t word[4];
    EXSI_TRY(exsi_cursor_take(&c, word, sizeof word));
    *out = (struct iwarp_error){word[0] >> 4, word[0] & 0x0f, word[1]};
    /* The kernel's siw, seen in 6.1 on x86, has the layer in the other half of the byte. */
    struct iwarp_error swapped = {out->etype, out->layer, out->code};
    if (!defined(out) && defined(&swapped)) *out = swapped;
    return 0;
}

static const char *rdmap_text(const struct iwarp_error *err)
{
    if (err->etype == IWARP_RDMAP_LOCAL) return "RDMAP: local catastrophic error";
    switch (err->code) {
    case IWARP_P_INVALID_STAG: return "RDMAP: invalid key";
    case IWARP_P_BOUNDS: return "RDMAP: outside of the range behind the key";
    case IWARP_P_ACCESS: return "RDMAP: access not granted";
    case IWARP_P_STREAM: return "RDMAP: key belongs to another connection";
    case IWARP_P_WRAP: return "RDMAP: offset wraps around";
    case IWARP_O_VERSION: return "RDMAP: version not known";
    case IWARP_O_OPCODE: return "RDMAP: operation not expected";
    case IWARP_O_LOCAL_STREAM: return "RDMAP: catastrophic error of the stream";
    case IWARP_O_INVALIDATE: return "RDMAP: key cannot be invalidated";
    default: return "RDMAP: unspecified error";
    }
}

static const char *ddp_text(const struct iwarp_error *err)
{
    static const char *const tagged[] = {"DDP: invalid key", "DDP: outside of the range behind the key",
                                         "DDP: key belongs to another connection", "DDP: offset wraps around",
                                         "DDP: version not known"};
    static const char *const untagged[] = {"DDP: unspecified error",
                                           "DDP: queue not known",
                                           "DDP: no receive posted",
                                           "DDP: message number out of order",
                                           "DDP: message offset out of order",
                                           "DDP: message longer than the receive",
                                           "DDP: version not known"};
    if (err->etype == IWARP_DDP_TAGGED && err->code < sizeof tagged / sizeof *tagged) return tagged[err->code];
    if (err->etype == IWARP_DDP_UNTAGGED && err->code < sizeof untagged / sizeof *untagged) return untagged[err->code];
    return "DDP: unspecified error";
}

const char *iwarp_error_text(const struct iwarp_error *err)
{
    static const char *const mpa[] = {"MPA: unspecified error", "MPA: connection lost", "MPA: CRC mismatch",
                                      "MPA: length or marker mismatch", "MPA: invalid set-up frame"};
    if (err->layer == IWARP_LAYER_RDMAP) return rdmap_text(err);
    if (err->layer == IWARP_LAYER_DDP) return ddp_text(err);
    if (err->layer == IWARP_LAYER_MPA && err->code < sizeof mpa / sizeof *mpa) return mpa[err->code];
    return "unspecified error";
}

int iwarp_error_errno(const struct iwarp_error *err)
{
    if (err->etype == 0 && err->layer != IWARP_LAYER_MPA) return -ECONNRESET; /* the peer's own trouble */
    if (err->layer == IWARP_LAYER_MPA && err->code == IWARP_M_CLOSED) return -ECONNRESET;
    return -EPROTO;
}
