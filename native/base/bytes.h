// SPDX-License-Identifier: MIT OR Apache-2.0
/* Big-endian fields and a read cursor that knows its end.
 * Wire structs are made of these types only, so their alignment is 1 and no packing is needed. */
#ifndef EXSI_BYTES_H
#define EXSI_BYTES_H

#include <string.h>

#include "base/base.h"

typedef struct {
    uint8_t b[2];
} exsi_be16;
typedef struct {
    uint8_t b[4];
} exsi_be32;
typedef struct {
    uint8_t b[8];
} exsi_be64;

static inline uint16_t exsi_get16(exsi_be16 v)
{
    return (uint16_t)((v.b[0] << 8) | v.b[1]);
}
static inline uint32_t exsi_get32(exsi_be32 v)
{
    uint32_t x;
    memcpy(&x, v.b, 4);
    return __builtin_bswap32(x);
}
static inline uint64_t exsi_get64(exsi_be64 v)
{
    uint64_t x;
    memcpy(&x, v.b, 8);
    return __builtin_bswap64(x);
}
static inline exsi_be16 exsi_put16(uint16_t x)
{
    return (exsi_be16){{(uint8_t)(x >> 8), (uint8_t)x}};
}
static inline exsi_be32 exsi_put32(uint32_t x)
{
    exsi_be32 v;
    x = __builtin_bswap32(x);
    memcpy(v.b, &x, 4);
    return v;
}
static inline exsi_be64 exsi_put64(uint64_t x)
{
    exsi_be64 v;
    x = __builtin_bswap64(x);
    memcpy(v.b, &x, 8);
    return v;
}

/* A cursor over bytes that somebody else owns (borrows). */
struct exsi_cursor {
    const uint8_t *at, *end;
};

static inline struct exsi_cursor exsi_cursor(const void *data, size_t len)
{
    return (struct exsi_cursor){data, (const uint8_t *)data + len};
}
static inline size_t exsi_cursor_left(const struct exsi_cursor *c)
{
    return (size_t)(c->end - c->at);
}

/* Copy the next LEN bytes out and step over them; -EPROTO (nothing moved) if there are fewer. */
EXSI_MUST_CHECK static inline int exsi_cursor_take(struct exsi_cursor *c, void *out, size_t len)
{
    if (exsi_cursor_left(c) < len) return -EPROTO;
    memcpy(out, c->at, len);
    c->at += len;
    return 0;
}

#endif
