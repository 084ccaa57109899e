// SPDX-License-Identifier: MIT OR Apache-2.0
/* SMC-R's CDC message byte by byte, and its cursors against a plain model of positions that only grow:
 * whatever a writer and a reader do, no WRITE leaves the ring or touches what was not read yet. */
#include <string.h>

#include "sim/sim.h"
#include "tap.h"
#include "wire/smc_cdc.h"

#define SIZE 65536u

static const struct exsi_smc_cdc cdc = {
    .seq = 0x0102,
    .token = 0x03040506,
    .producer = {0x0708, 0x090a0b0c},
    .consumer = {0x0d0e, 0x0f101112},
    .producer_flags = EXSI_SMC_WRITER_BLOCKED | EXSI_SMC_UPDATE_REQUESTED,
    .connection_flags = EXSI_SMC_SENDING_DONE | EXSI_SMC_ABORT,
};

static const uint8_t cdc_bytes[EXSI_SMC_MESSAGE_LEN] = {
    0xfe, 44, 1, 2, 3, 4, 5, 6, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0, 13, 14, 15, 16, 17, 18, 0x90, 0xa0,
};

static bool same_cursor(struct exsi_smc_cursor a, struct exsi_smc_cursor b)
{
    return a.wrap == b.wrap && a.count == b.count;
}

static bool same(const struct exsi_smc_cdc *a, const struct exsi_smc_cdc *b)
{
    return a->seq == b->seq && a->token == b->token && same_cursor(a->producer, b->producer) &&
           same_cursor(a->consumer, b->consumer) && a->producer_flags == b->producer_flags &&
           a->connection_flags == b->connection_flags;
}

static void test_message(void)
{
    uint8_t wire[EXSI_SMC_MESSAGE_LEN];
    struct exsi_smc_cdc got;
    exsi_smc_cdc_encode(&cdc, wire);
    ok(memcmp(wire, cdc_bytes, sizeof wire) == 0, "golden bytes");
    ok(exsi_smc_cdc_decode(wire, sizeof wire, &got) == 0 && same(&got, &cdc), "every field comes back");
    memset(wire + 26, 0xff, 18);
    wire[8] = wire[9] = wire[16] = wire[17] = 0xff;
    ok(exsi_smc_cdc_decode(wire, sizeof wire, &got) == 0 && same(&got, &cdc), "reserved fields are ignored");
    bool refused = true;
    for (size_t n = 0; n < sizeof wire; n++) refused &= exsi_smc_cdc_decode(wire, n, &got) == -EPROTO;
    ok(refused, "a message cut anywhere is refused");
    wire[0] = 0x07;
    ok(exsi_smc_cdc_decode(wire, sizeof wire, &got) == -EPROTO, "another type is refused");
}

static void test_sequence(void)
{
    ok(!exsi_smc_seq_is_old(7, 7) && !exsi_smc_seq_is_old(7, 8) && exsi_smc_seq_is_old(7, 6),
       "point 69: an older sequence number is told from a newer one, an equal one is taken");
    ok(!exsi_smc_seq_is_old(65535, 0) && exsi_smc_seq_is_old(0, 65535) && exsi_smc_seq_is_old(2, 65530),
       "point 68: across the end of 16 bits");
}

/* --- vectors ------------------------------------------------------------------------------------------- */

static void test_distance(void)
{
    static const struct {
        uint32_t size;
        struct exsi_smc_cursor old, new;
        uint32_t distance;
    } rows[] = {
        {65536, {0, 0}, {0, 100}, 100}, {65536, {0, 60000}, {1, 17}, 5553},   {65536, {0, 0}, {1, 0}, 65536},
        {65536, {3, 65535}, {4, 0}, 1}, {65536, {65535, 10}, {0, 10}, 65536}, {16384, {7, 16000}, {8, 15999}, 16383},
    };
    bool right = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        right &= exsi_smc_distance(rows[i].old, rows[i].new, rows[i].size) == rows[i].distance;
    ok(right, "distances");
    ok(exsi_smc_free((struct exsi_smc_cursor){1, 40}, (struct exsi_smc_cursor){0, 40}, SIZE) == 0 &&
           exsi_smc_free((struct exsi_smc_cursor){1, 40}, (struct exsi_smc_cursor){1, 40}, SIZE) == SIZE,
       "point 71: the same count in another pass is full, in the same pass empty");
}

static void test_advance(void)
{
    static const struct {
        uint32_t size;
        struct exsi_smc_cursor start;
        uint32_t n;
        struct exsi_smc_cursor end;
    } rows[] = {
        {65536, {0, 65530}, 6, {1, 0}},
        {65536, {0, 65530}, 7, {1, 1}},
        {65536, {65535, 65535}, 1, {0, 0}},
        {16384, {2, 0}, 16384, {3, 0}},
    };
    bool right = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct exsi_smc_cursor c = rows[i].start;
        exsi_smc_advance(&c, rows[i].n, rows[i].size);
        right &= c.wrap == rows[i].end.wrap && c.count == rows[i].end.count;
    }
    ok(right, "advances");
}

/* What a writer puts where: at most two WRITEs. */
static bool writes_are(struct exsi_smc_cursor p, struct exsi_smc_cursor c, uint32_t wanted, const uint32_t wrote[4])
{
    uint32_t got[4] = {0};
    for (int i = 0; i < 2 && wanted; i++) {
        uint32_t n = exsi_min_u32(wanted, exsi_smc_span(p, c, SIZE));
        if (!n) break;
        got[2 * i] = p.count;
        got[2 * i + 1] = n;
        exsi_smc_advance(&p, n, SIZE);
        wanted -= n;
    }
    return memcmp(got, wrote, sizeof got) == 0;
}

static void test_writes(void)
{
    ok(writes_are((struct exsi_smc_cursor){0, 65000}, (struct exsi_smc_cursor){0, 60000}, 1000,
                  (uint32_t[4]){65000, 536, 0, 464}),
       "point 72: a write across the end is two");
    ok(writes_are((struct exsi_smc_cursor){1, 100}, (struct exsi_smc_cursor){0, 60000}, 1000,
                  (uint32_t[4]){100, 1000, 0, 0}),
       "inside it is one");
    ok(writes_are((struct exsi_smc_cursor){0, 65000}, (struct exsi_smc_cursor){0, 65000}, 70000,
                  (uint32_t[4]){65000, 536, 0, 65000}),
       "and ends at the consumer");
    ok(writes_are((struct exsi_smc_cursor){1, 0}, (struct exsi_smc_cursor){0, 0}, 10, (uint32_t[4]){0}),
       "a full ring takes nothing");
}

static void test_updates(void)
{
    static const uint32_t limits[] = {2304, 3276, 6553, 13107, 26214, 52428};
    bool right = true;
    for (int i = 0; i < 6; i++) right &= exsi_smc_update_limit(16384u << i) == limits[i];
    ok(right, "the limit below which nobody is told");
    static const struct {
        struct exsi_smc_update u;
        bool due;
    } rows[] = {
        {{.unconfirmed = 10000, .unread = 30000}, true},
        {{.unconfirmed = 20000}, false},
        {{.unconfirmed = 20000, .writer_blocked = true}, true},
        {{.unconfirmed = 6553, .unread = 58983, .writer_blocked = true}, false},
        {{.unconfirmed = 6554, .unread = 58982, .writer_blocked = true}, true},
        {{.unconfirmed = 1, .requested = true}, true},
        {{.unconfirmed = 1, .urgent_passed = true}, true},
    };
    right = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        right &= exsi_smc_update_is_due(&rows[i].u, SIZE) == rows[i].due;
    ok(right, "point 75: when the peer is told");
}

static void test_sizes(void)
{
    bool right = true;
    for (uint32_t code = 0; code < EXSI_SMC_SIZE_CODES; code++)
        right &= exsi_smc_size_is_valid((uint64_t)EXSI_SMC_RMBE_MIN << code);
    ok(right && !exsi_smc_size_is_valid(0) && !exsi_smc_size_is_valid(8192) && !exsi_smc_size_is_valid(16385) &&
           !exsi_smc_size_is_valid((uint64_t)EXSI_SMC_RMBE_MIN << 16),
       "sizes of a ring");
}

/* --- what a peer may name ------------------------------------------------------------------------------- */

static void test_moves(void)
{
    uint32_t by;
    struct exsi_smc_cursor at = {5, 100};
    ok(exsi_smc_move(at, at, 0, SIZE, &by) == EXSI_SMC_FORWARD && by == 0, "a cursor that stays");
    ok(exsi_smc_move(at, (struct exsi_smc_cursor){6, 100}, SIZE, SIZE, &by) == EXSI_SMC_FORWARD && by == SIZE,
       "a whole ring further");
    ok(exsi_smc_move(at, (struct exsi_smc_cursor){5, 201}, 100, SIZE, &by) == EXSI_SMC_OUTSIDE, "further than may be");
    ok(exsi_smc_move(at, (struct exsi_smc_cursor){5, SIZE}, SIZE, SIZE, &by) == EXSI_SMC_OUTSIDE &&
           exsi_smc_move(at, (struct exsi_smc_cursor){0xffff, 0xffffffff}, SIZE, SIZE, &by) == EXSI_SMC_OUTSIDE,
       "no offset of the ring");
    ok(exsi_smc_move(at, (struct exsi_smc_cursor){5, 99}, SIZE, SIZE, &by) == EXSI_SMC_BACKWARD &&
           exsi_smc_move(at, (struct exsi_smc_cursor){4, 200}, SIZE, SIZE, &by) == EXSI_SMC_BACKWARD &&
           exsi_smc_move((struct exsi_smc_cursor){0, 5}, (struct exsi_smc_cursor){65535, 7}, SIZE, SIZE, &by) ==
               EXSI_SMC_BACKWARD,
       "point 80: backwards, also across the end of the passes");
}

/* --- the model -------------------------------------------------------------------------------------------- */

/* One direction.  The cursors are what the code has; the positions only grow. */
struct ring {
    uint32_t size;
    struct exsi_smc_cursor producer, consumer, told, seen; /* seen: the writer's idea of the consumer */
    uint64_t put, got, said, known;
};

static bool agrees(const struct exsi_smc_cursor *c, uint64_t at, uint32_t size)
{
    return c->count == at % size && c->wrap == (uint16_t)(at / size);
}

/* The writer puts up to n bytes; false: a WRITE would leave the ring, or touch what was not read. */
static bool model_write(struct ring *r, uint32_t n)
{
    for (int i = 0; n; i++) {
        uint32_t span = exsi_min_u32(n, exsi_smc_span(r->producer, r->seen, r->size));
        if (!span) return r->put - r->known == r->size;
        if (i > 1 || r->producer.count >= r->size || span > r->size - r->producer.count) return false;
        if (r->put + span > r->got + r->size) return false;
        exsi_smc_advance(&r->producer, span, r->size);
        r->put += span;
        n -= span;
    }
    return agrees(&r->producer, r->put, r->size);
}

static bool model_read(struct ring *r, uint32_t n)
{
    uint32_t there = exsi_smc_distance(r->consumer, r->producer, r->size);
    if (there != r->put - r->got) return false;
    n = exsi_min_u32(n, there);
    exsi_smc_advance(&r->consumer, n, r->size);
    r->got += n;
    return agrees(&r->consumer, r->got, r->size);
}

/* The reader says where it is, and the writer hears it; by the way an old word comes that it must not believe. */
static bool model_tell(struct ring *r, uint64_t *rng)
{
    uint32_t by, out = exsi_smc_distance(r->seen, r->producer, r->size);
    struct exsi_smc_cursor old = r->seen, wild = {(uint16_t)sim_next(rng), (uint32_t)sim_next(rng)};
    enum exsi_smc_move move = exsi_smc_move(r->seen, wild, out, r->size, &by);
    if (move == EXSI_SMC_FORWARD && by > out) return false;
    if (exsi_smc_move(r->seen, r->consumer, out, r->size, &by) != EXSI_SMC_FORWARD || by != r->got - r->known)
        return false;
    r->seen = r->told = r->consumer;
    r->known = r->said = r->got;
    if (by && exsi_smc_move(r->seen, old, r->size, r->size, &by) != EXSI_SMC_BACKWARD) return false;
    return agrees(&r->seen, r->known, r->size);
}

static bool model_run(uint32_t size, uint64_t wraps, uint64_t *rng, uint64_t *rounds)
{
    struct ring r = {.size = size};
    while (r.got / size < wraps) {
        uint32_t most = sim_below(rng, 4) ? size + 1 : 200;
        ++*rounds;
        if (!model_write(&r, sim_below(rng, most + 1))) return false;
        if (!model_read(&r, sim_below(rng, most + 1))) return false;
        if (sim_below(rng, 2) && !model_tell(&r, rng)) return false;
    }
    return true;
}

static void test_model(void)
{
    uint64_t rng = 20261128, rounds = 0;
    ok(model_run(16384, 70001, &rng, &rounds),
       "point 70: 70001 passes of a 16 KiB ring, no WRITE outside (%llu rounds)", (unsigned long long)rounds);
    for (uint32_t code = 1; code < EXSI_SMC_SIZE_CODES; code++)
        ok(model_run(16384u << code, 300, &rng, &rounds), "300 passes of %u KiB", 16u << code);
}

int main(void)
{
    test_message();
    test_sequence();
    test_distance();
    test_advance();
    test_writes();
    test_updates();
    test_sizes();
    test_moves();
    test_model();
    return tap_done();
}
