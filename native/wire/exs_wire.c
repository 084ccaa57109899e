// SPDX-License-Identifier: MIT OR Apache-2.0
/* Encoding and checking of our own wire format (docs/wire/exs.md).
 * Owns no state.  Decoders fill *out only when they accept, and look at nothing behind the length
 * they were given.  Reserved fields and unknown flag bits are written zero and ignored on receipt. */
#include "wire/exs_wire.h"

struct hello_wire {
    exsi_be32 magic;
    uint8_t version, min_version;
    exsi_be16 flags;
    exsi_be64 ring_addr;
    exsi_be32 ring_rkey, ring_len;
    exsi_be16 credits, max_adverts;
    exsi_be32 max_transfer;
    exsi_be64 cookie;
    uint8_t zero[16];
};
_Static_assert(sizeof(struct hello_wire) == EXSI_HELLO_LEN, "layout");
_Static_assert(offsetof(struct hello_wire, flags) == 6, "layout");
_Static_assert(offsetof(struct hello_wire, ring_addr) == 8, "layout");
_Static_assert(offsetof(struct hello_wire, ring_rkey) == 16, "layout");
_Static_assert(offsetof(struct hello_wire, credits) == 24, "layout");
_Static_assert(offsetof(struct hello_wire, max_transfer) == 28, "layout");
_Static_assert(offsetof(struct hello_wire, cookie) == 32, "layout");
_Static_assert(offsetof(struct hello_wire, zero) == 40, "layout");

struct control_wire {
    uint8_t type, flags;
    exsi_be16 credits;
    exsi_be32 id;
    exsi_be64 freed, addr;
    exsi_be32 rkey, len;
    exsi_be64 ind, seq;
};
_Static_assert(sizeof(struct control_wire) == EXSI_CONTROL_LEN, "layout");
_Static_assert(offsetof(struct control_wire, credits) == 2, "layout");
_Static_assert(offsetof(struct control_wire, id) == 4, "layout");
_Static_assert(offsetof(struct control_wire, freed) == 8, "layout");
_Static_assert(offsetof(struct control_wire, addr) == 16, "layout");
_Static_assert(offsetof(struct control_wire, rkey) == 24, "layout");
_Static_assert(offsetof(struct control_wire, len) == 28, "layout");
_Static_assert(offsetof(struct control_wire, ind) == 32, "layout");
_Static_assert(offsetof(struct control_wire, seq) == 40, "layout");

static int refuse(const char **reason, const char *why)
{
    *reason = why;
    return -EPROTO;
}

/* Does [addr, addr + len) end inside the address space? */
static bool range_wraps(uint64_t addr, uint64_t len)
{
    return len > UINT64_MAX - addr;
}

void exsi_hello_encode(const struct exsi_hello *h, uint8_t out[EXSI_HELLO_LEN])
{
    struct hello_wire w = {
        .magic = exsi_put32(EXSI_HELLO_MAGIC),
        .version = h->version,
        .min_version = h->min_version,
        .flags = exsi_put16(h->flags),
        .ring_addr = exsi_put64(h->ring_addr),
        .ring_rkey = exsi_put32(h->ring_rkey),
        .ring_len = exsi_put32(h->ring_len),
        .credits = exsi_put16(h->credits),
        .max_adverts = exsi_put16(h->max_adverts),
        .max_transfer = exsi_put32(h->max_transfer),
        .cookie = exsi_put64(h->cookie),
    };
    memcpy(out, &w, sizeof w);
}

static int hello_check(const struct exsi_hello *h, const char **reason)
{
    uint16_t type = h->flags & (EXSI_HELLO_STREAM | EXSI_HELLO_SEQPACKET);
    if (h->version == 0 || h->min_version == 0 || h->min_version > h->version)
        return refuse(reason, "version range is empty");
    if (h->min_version > EXSI_PROTOCOL_VERSION) return refuse(reason, "peer asks for a newer protocol version");
    if (type != EXSI_HELLO_STREAM && type != EXSI_HELLO_SEQPACKET)
        return refuse(reason, "flags name no single socket type");
    if (h->credits < EXSI_MIN_CREDITS) return refuse(reason, "credits are fewer than 8");
    if (h->max_adverts == 0) return refuse(reason, "max_adverts is 0");
    if (h->max_transfer == 0) return refuse(reason, "max_transfer is 0");
    if (type == EXSI_HELLO_STREAM && h->ring_len == 0) return refuse(reason, "ring length is 0");
    if (type == EXSI_HELLO_SEQPACKET && h->ring_len != 0) return refuse(reason, "ring length is not 0 in seqpacket");
    if (range_wraps(h->ring_addr, h->ring_len)) return refuse(reason, "ring wraps the address space");
    return 0;
}

int exsi_hello_decode(const void *data, size_t len, struct exsi_hello *out, const char **reason)
{
    struct exsi_cursor c = exsi_cursor(data, len);
    struct hello_wire w;
    if (exsi_cursor_take(&c, &w, sizeof w) < 0) return refuse(reason, "private data is shorter than 56 bytes");
    if (exsi_get32(w.magic) != EXSI_HELLO_MAGIC) return refuse(reason, "magic is not that of exs");
    struct exsi_hello h = {
        .version = w.version,
        .min_version = w.min_version,
        .flags = exsi_get16(w.flags),
        .ring_addr = exsi_get64(w.ring_addr),
        .ring_rkey = exsi_get32(w.ring_rkey),
        .ring_len = exsi_get32(w.ring_len),
        .credits = exsi_get16(w.credits),
        .max_adverts = exsi_get16(w.max_adverts),
        .max_transfer = exsi_get32(w.max_transfer),
        .cookie = exsi_get64(w.cookie),
    };
    EXSI_TRY(hello_check(&h, reason));
    *out = h;
    return 0;
}

void exsi_control_encode(const struct exsi_control *c, uint8_t out[EXSI_CONTROL_LEN])
{
    struct control_wire w = {
        .type = c->type,
        .flags = c->flags,
        .credits = exsi_put16(c->credits),
        .id = exsi_put32(c->id),
        .freed = exsi_put64(c->freed),
        .addr = exsi_put64(c->addr),
        .rkey = exsi_put32(c->rkey),
        .len = exsi_put32(c->len),
        .ind = exsi_put64(c->ind),
        .seq = exsi_put64(c->seq),
    };
    memcpy(out, &w, sizeof w);
}

static int control_check(const struct exsi_control *c, const char **reason)
{
    switch (c->type) {
    case EXSI_CTL_ADVERT:
        if (c->id == 0) return refuse(reason, "ADVERT with id 0");
        if (range_wraps(c->addr, c->len)) return refuse(reason, "ADVERT wraps the address space");
        return 0;
    case EXSI_CTL_RING:
        if (c->rkey == 0) return refuse(reason, "RING with rkey 0");
        if (c->len == 0) return refuse(reason, "RING with length 0");
        if (range_wraps(c->addr, c->len)) return refuse(reason, "RING wraps the address space");
        return 0;
    case EXSI_CTL_REVOKE:
    case EXSI_CTL_REVOKED: return c->id ? 0 : refuse(reason, "REVOKE or REVOKED with id 0");
    case EXSI_CTL_LENGTH: return c->seq ? 0 : refuse(reason, "LENGTH of 0");
    case EXSI_CTL_ACK:
    case EXSI_CTL_CREDIT:
    case EXSI_CTL_FIN:
    case EXSI_CTL_RESET:
    case EXSI_CTL_PING:
    case EXSI_CTL_PONG: return 0;
    default: return refuse(reason, "unknown control message type");
    }
}

int exsi_control_decode(const void *data, size_t len, struct exsi_control *out, const char **reason)
{
    struct exsi_cursor cur = exsi_cursor(data, len);
    struct control_wire w;
    if (exsi_cursor_take(&cur, &w, sizeof w) < 0 || exsi_cursor_left(&cur) != 0)
        return refuse(reason, "control message is not 48 bytes");
    struct exsi_control c = {
        .type = w.type,
        .flags = w.flags & (EXSI_CTLF_WAITALL | EXSI_CTLF_FIN_PROCESSED),
        .credits = exsi_get16(w.credits),
        .id = exsi_get32(w.id),
        .freed = exsi_get64(w.freed),
        .addr = exsi_get64(w.addr),
        .rkey = exsi_get32(w.rkey),
        .len = exsi_get32(w.len),
        .ind = exsi_get64(w.ind),
        .seq = exsi_get64(w.seq),
    };
    EXSI_TRY(control_check(&c, reason));
    *out = c;
    return 0;
}

int exsi_word_decode(uint32_t word, enum exsi_word_kind *kind, bool *end, uint32_t *count, const char **reason)
{
    if (word >> 30 > EXSI_WORD_INDIRECT) return refuse(reason, "notice word of reserved kind");
    *kind = (enum exsi_word_kind)(word >> 30);
    *end = word >> 29 & 1;
    *count = word & EXSI_WORD_MAX_COUNT;
    if (*count == 0 && !*end) return refuse(reason, "notice word with count 0");
    return 0;
}
