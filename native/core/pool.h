// SPDX-License-Identifier: MIT OR Apache-2.0
/* Small blocks of registered memory, cut from chunks that are registered once: receive slots of endpoints
 * and the copies of small sends.  One pool per device of the context, shared by its groups.
 *
 * Taking may register a chunk, so it is done without any group's lock; giving back never blocks.  The
 * memory is for the device's own use: no key for a peer is ever bound to it. */
#ifndef EXSI_POOL_H
#define EXSI_POOL_H

#include <pthread.h>

#include "base/list.h"
#include "device/device.h"

struct exsi_ctx;
struct exsi_chunk;

#define EXSI_POOL_CLASSES 3

/* Part of the context's entry of a device. */
struct exsi_pool {
    pthread_mutex_t lock;                     /* a leaf, held for a few instructions */
    struct exsi_list open[EXSI_POOL_CLASSES]; /* chunks with a free block */
    struct exsi_list surplus;                 /* empty chunks, for the next take to end */
    uint32_t empty[EXSI_POOL_CLASSES];        /* chunks in open[] that have no block out */
};

struct exsi_block {
    uint8_t *addr; /* NULL: none */
    struct exsi_dmr *dmr;
    struct exsi_chunk *chunk;
};

void exsi_pool_init(struct exsi_pool *p);
/* Every block was given back. */
void exsi_pool_fini(struct exsi_pool *p);
/* A block of at least len bytes, not zeroed.  May block; without any group's lock.  -ENOMEM or the device's error. */
EXSI_MUST_CHECK int exsi_pool_take(struct exsi_ctx *ctx, struct exsi_device *dev, size_t len, struct exsi_block *out);
/* Back with it, and *b is none; nothing if it was none. */
void exsi_pool_give(struct exsi_block *b);

#endif
