// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: decoding any bytes reads nothing beyond them; what is accepted says the same when it is encoded again; and
 * whatever cursors it names, a ring that follows the rules for them never writes outside of itself nor over what was
 * not read. */
#include <stdlib.h>

#include "wire/smc_cdc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool holds)
{
    if (!holds) abort();
}

struct ends {
    uint32_t size;
    struct exsi_smc_cursor put, freed;  /* in the peer's ring: ours, and what the peer has read */
    struct exsi_smc_cursor came, taken; /* in our ring */
};

/* As an engine takes a message; false: the connection would end. */
static bool take(struct ends *e, const struct exsi_smc_cdc *c)
{
    uint32_t by, out = exsi_smc_distance(e->freed, e->put, e->size);
    enum exsi_smc_move move = exsi_smc_move(e->freed, c->consumer, out, e->size, &by);
    if (move == EXSI_SMC_OUTSIDE) return false;
    if (move == EXSI_SMC_FORWARD) exsi_smc_advance(&e->freed, by, e->size);
    uint32_t most = exsi_smc_free(e->came, e->taken, e->size);
    move = exsi_smc_move(e->came, c->producer, most, e->size, &by);
    if (move == EXSI_SMC_OUTSIDE) return false;
    if (move == EXSI_SMC_FORWARD) exsi_smc_advance(&e->came, by, e->size);
    return true;
}

static void go_on(struct ends *e, uint32_t wanted)
{
    uint32_t before = exsi_smc_free(e->put, e->freed, e->size), n, all = 0;
    while (all < wanted && (n = exsi_min_u32(wanted - all, exsi_smc_span(e->put, e->freed, e->size)))) {
        require(e->put.count < e->size && n <= e->size - e->put.count);
        exsi_smc_advance(&e->put, n, e->size);
        all += n;
    }
    require(all <= before && exsi_smc_free(e->put, e->freed, e->size) == before - all);
    n = exsi_min_u32(wanted, exsi_smc_distance(e->taken, e->came, e->size));
    exsi_smc_advance(&e->taken, n, e->size);
    require(e->taken.count < e->size && e->came.count < e->size && e->freed.count < e->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct ends e = {.size = EXSI_SMC_RMBE_MIN << (len ? data[len - 1] % EXSI_SMC_SIZE_CODES : 0)};
    for (size_t at = 0; at < len; at += EXSI_SMC_MESSAGE_LEN) {
        struct exsi_smc_cdc c;
        uint8_t wire[EXSI_SMC_MESSAGE_LEN];
        if (exsi_smc_cdc_decode(data + at, len - at, &c) < 0) return 0;
        exsi_smc_cdc_encode(&c, wire);
        require(memcmp(wire + 2, data + at + 2, 6) == 0 && memcmp(wire + 24, data + at + 24, 2) == 0);
        if (!take(&e, &c)) return 0;
        go_on(&e, c.token & (2 * e.size - 1));
    }
    return 0;
}
