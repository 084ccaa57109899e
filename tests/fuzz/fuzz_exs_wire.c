// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: decoding any bytes reads nothing beyond them; what is refused has a reason; what is accepted
 * says the same when it is encoded and decoded once more, and names no range that wraps. */
#include <stdlib.h>
#include <string.h>

#include "wire/exs_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool holds)
{
    if (!holds) abort();
}

static void hello(const uint8_t *data, size_t len)
{
    struct exsi_hello h;
    const char *why = NULL;
    if (exsi_hello_decode(data, len, &h, &why) < 0) {
        require(why != NULL);
        return;
    }
    uint8_t wire[EXSI_HELLO_LEN];
    exsi_hello_encode(&h, wire);
    require(memcmp(wire, data, 40) == 0);
    require(h.credits >= EXSI_MIN_CREDITS && h.max_adverts && h.max_transfer);
    require(h.ring_addr + h.ring_len >= h.ring_addr);
}

static void control(const uint8_t *data, size_t len)
{
    struct exsi_control c;
    const char *why = NULL;
    if (exsi_control_decode(data, len, &c, &why) < 0) {
        require(why != NULL);
        return;
    }
    uint8_t wire[EXSI_CONTROL_LEN];
    exsi_control_encode(&c, wire);
    wire[1] = data[1];
    require(memcmp(wire, data, sizeof wire) == 0);
    require(c.type != EXSI_CTL_ADVERT || (c.id && c.addr + c.len >= c.addr));
}

static void word(const uint8_t *data, size_t len)
{
    enum exsi_word_kind kind;
    bool end;
    uint32_t count;
    const char *why = NULL;
    exsi_be32 w;
    if (len < sizeof w) return;
    memcpy(&w, data, sizeof w);
    if (exsi_word_decode(exsi_get32(w), &kind, &end, &count, &why) < 0)
        require(why != NULL);
    else
        require(exsi_word(kind, end, count) == exsi_get32(w));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    hello(data, len);
    control(data, len);
    word(data, len);
    return 0;
}
