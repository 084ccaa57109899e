// SPDX-License-Identifier: MIT OR Apache-2.0
/* Encoding of the CDC message, and where a cursor may go next.
 * Owns no state.  The decoder fills *out only when it accepts, and looks at nothing behind the length it was given. */
#include "wire/smc_cdc.h"

struct cursor_wire {
    uint8_t reserved[2];
    exsi_be16 wrap;
    exsi_be32 count;
};

struct cdc_wire {
    uint8_t type, length;
    exsi_be16 seq;
    exsi_be32 token;
    struct cursor_wire producer, consumer;
    uint8_t producer_flags, connection_flags;
    uint8_t reserved[18];
};
_Static_assert(sizeof(struct cursor_wire) == 8, "layout");
_Static_assert(sizeof(struct cdc_wire) == EXSI_SMC_MESSAGE_LEN, "layout");
_Static_assert(offsetof(struct cdc_wire, seq) == 2, "layout");
_Static_assert(offsetof(struct cdc_wire, token) == 4, "layout");
_Static_assert(offsetof(struct cdc_wire, producer.wrap) == 10, "layout");
_Static_assert(offsetof(struct cdc_wire, producer.count) == 12, "layout");
_Static_assert(offsetof(struct cdc_wire, consumer.wrap) == 18, "layout");
_Static_assert(offsetof(struct cdc_wire, consumer.count) == 20, "layout");
_Static_assert(offsetof(struct cdc_wire, producer_flags) == 24, "layout");
_Static_assert(offsetof(struct cdc_wire, connection_flags) == 25, "layout");

static struct cursor_wire put_cursor(struct exsi_smc_cursor c)
{
    return (struct cursor_wire){.wrap = exsi_put16(c.wrap), .count = exsi_put32(c.count)};
}

static struct exsi_smc_cursor get_cursor(const struct cursor_wire *w)
{
    return (struct exsi_smc_cursor){.wrap = exsi_get16(w->wrap), .count = exsi_get32(w->count)};
}

void exsi_smc_cdc_encode(const struct exsi_smc_cdc *c, uint8_t out[EXSI_SMC_MESSAGE_LEN])
{
    struct cdc_wire w = {
        .type = EXSI_SMC_CDC_TYPE,
        .length = EXSI_SMC_MESSAGE_LEN,
        .seq = exsi_put16(c->seq),
        .token = exsi_put32(c->token),
        .producer = put_cursor(c->producer),
        .consumer = put_cursor(c->consumer),
        .producer_flags = c->producer_flags,
        .connection_flags = c->connection_flags,
    };
    memcpy(out, &w, sizeof w);
}

int exsi_smc_cdc_decode(const void *data, size_t len, struct exsi_smc_cdc *out)
{
    struct exsi_cursor cur = exsi_cursor(data, len);
    struct cdc_wire w;
    EXSI_TRY(exsi_cursor_take(&cur, &w, sizeof w));
    if (w.type != EXSI_SMC_CDC_TYPE || w.length < EXSI_SMC_MESSAGE_LEN) return -EPROTO;
    *out = (struct exsi_smc_cdc){
        .seq = exsi_get16(w.seq),
        .token = exsi_get32(w.token),
        .producer = get_cursor(&w.producer),
        .consumer = get_cursor(&w.consumer),
        .producer_flags = w.producer_flags,
        .connection_flags = w.connection_flags,
    };
    return 0;
}

/* --- cursors -------------------------------------------------------------------------------------- */

/* Bytes from old to new, the way that goes forward, in the circle of 65536 * size. */
static uint64_t way_forward(struct exsi_smc_cursor old, struct exsi_smc_cursor new, uint32_t size)
{
    uint64_t circle = (uint64_t)size << 16;
    uint64_t from = (uint64_t)old.wrap * size + old.count, to = (uint64_t)new.wrap * size + new.count;
    return (to - from) & (circle - 1);
}

uint32_t exsi_smc_distance(struct exsi_smc_cursor old, struct exsi_smc_cursor new, uint32_t size)
{
    uint64_t way = way_forward(old, new, size);
    assert(way <= size);
    return (uint32_t)way;
}

void exsi_smc_advance(struct exsi_smc_cursor *c, uint32_t n, uint32_t size)
{
    assert(n <= size && c->count < size);
    if (n < size - c->count) {
        c->count += n;
        return;
    }
    c->count = n - (size - c->count);
    c->wrap++;
}

enum exsi_smc_move exsi_smc_move(struct exsi_smc_cursor old, struct exsi_smc_cursor new, uint32_t most, uint32_t size,
                                 uint32_t *by)
{
    *by = 0;
    if (new.count >= size) return EXSI_SMC_OUTSIDE;
    uint64_t way = way_forward(old, new, size);
    if (way >= (uint64_t)size << 15) return EXSI_SMC_BACKWARD;
    if (way > most) return EXSI_SMC_OUTSIDE;
    *by = (uint32_t)way;
    return EXSI_SMC_FORWARD;
}

uint32_t exsi_smc_span(struct exsi_smc_cursor producer, struct exsi_smc_cursor consumer, uint32_t size)
{
    return exsi_min_u32(exsi_smc_free(producer, consumer, size), size - producer.count);
}

bool exsi_smc_update_is_due(const struct exsi_smc_update *u, uint32_t size)
{
    if (u->requested || u->urgent_passed) return true;
    if (u->unconfirmed <= exsi_smc_update_limit(size)) return false;
    uint32_t space_known = size - (u->unconfirmed + u->unread);
    return u->writer_blocked || space_known <= size / 2;
}
