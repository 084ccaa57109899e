// SPDX-License-Identifier: MIT OR Apache-2.0
/* Random bytes: tokens, keys and connection names that a stranger must not guess. */
#include <sys/random.h>

#include "base/base.h"

void exsi_random(void *buf, size_t len)
{
    uint8_t *at = buf;
    while (len > 0) {
        /* Up to 256 bytes are never cut short, but a signal may come before the pool is ready. */
        ssize_t n = getrandom(at, len, 0);
        if (n < 0) continue;
        at += n;
        len -= (size_t)n;
    }
}
