// SPDX-License-Identifier: MIT OR Apache-2.0
/* Registered memory in small blocks (core/pool.h).
 *
 * A chunk is a mapping of its own, registered once, with blocks of one size; longer blocks have a chunk each.
 * Invariant: a chunk is in open[] of its class while it has a free block, in surplus when all of it is free and
 * there are enough such chunks, and in no list while every block is out. */
#include "core/pool.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "core/ctx.h"

#define CHUNK_BYTES ((size_t)64 << 10)
#define ALONE       EXSI_POOL_CLASSES /* class of chunks with a single block */
/* Empty chunks kept per class: so many sends may come and go without a registration. */
#define KEEP 4u

static const size_t block_len[EXSI_POOL_CLASSES] = {256, 1024, 4096};

struct exsi_chunk {
    struct exsi_list node;
    struct exsi_pool *pool;
    struct exsi_device *dev;
    struct exsi_dmr *dmr;
    uint8_t *memory;
    size_t len;
    uint32_t class, n_blocks, n_free;
    uint16_t free[]; /* numbers of the free blocks; the last one goes first */
};

void exsi_pool_init(struct exsi_pool *p)
{
    pthread_mutex_init(&p->lock, NULL);
    for (int i = 0; i < EXSI_POOL_CLASSES; i++) {
        exsi_list_init(&p->open[i]);
        p->empty[i] = 0;
    }
    exsi_list_init(&p->surplus);
}

static void end_chunk(struct exsi_chunk *c)
{
    assert(c->n_free == c->n_blocks);
    exsi_list_unlink(&c->node);
    c->dev->ops->dereg_mr(c->dev, c->dmr);
    munmap(c->memory, c->len);
    free(c);
}

void exsi_pool_fini(struct exsi_pool *p)
{
    for (int i = 0; i < EXSI_POOL_CLASSES; i++)
        exsi_list_for_safe (c, &p->open[i], struct exsi_chunk, node) end_chunk(c);
    exsi_list_for_safe (c, &p->surplus, struct exsi_chunk, node) end_chunk(c);
    pthread_mutex_destroy(&p->lock);
}

static int make_chunk(struct exsi_pool *p, struct exsi_device *dev, uint32_t class, size_t len, struct exsi_chunk **out)
{
    uint32_t n = class == ALONE ? 1 : (uint32_t)(CHUNK_BYTES / block_len[class]);
    struct exsi_chunk *c = calloc(1, sizeof *c + n * sizeof c->free[0]);
    if (!c) return -ENOMEM;
    int rc = -ENOMEM;
    c->len = class == ALONE ? len : CHUNK_BYTES;
    void *memory = mmap(NULL, c->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) goto fail_map;
    struct exsi_mem mem = {.addr = memory, .len = c->len, .access = EXSI_ACCESS_LOCAL_WRITE, .memfd = -1};
    rc = dev->ops->reg_mr(dev, &mem, &c->dmr);
    if (rc < 0) goto fail_reg;
    exsi_list_init(&c->node);
    c->pool = p;
    c->dev = dev;
    c->memory = memory;
    c->class = class;
    c->n_blocks = c->n_free = n;
    for (uint32_t i = 0; i < n; i++) c->free[i] = (uint16_t)(n - 1 - i);
    *out = c;
    return 0;
fail_reg:
    munmap(memory, c->len);
fail_map:
    free(c);
    return rc;
}

/* A chunk of the class with a free block, or NULL.  Lock held. */
static struct exsi_chunk *find_chunk(struct exsi_pool *p, uint32_t class)
{
    if (class == ALONE) return NULL;
    struct exsi_chunk *c = exsi_list_first(&p->open[class], struct exsi_chunk, node);
    if (c) return c;
    exsi_list_for (spare, &p->surplus, struct exsi_chunk, node) {
        if (spare->class != class) continue;
        exsi_list_unlink(&spare->node);
        exsi_list_append(&p->open[class], &spare->node);
        p->empty[class]++;
        return spare;
    }
    return NULL;
}

static void take_block(struct exsi_pool *p, struct exsi_chunk *c, struct exsi_block *out)
{
    if (c->class != ALONE && c->n_free == c->n_blocks) p->empty[c->class]--;
    uint32_t i = c->free[--c->n_free];
    if (c->n_free == 0) exsi_list_unlink(&c->node);
    *out = (struct exsi_block){
        .addr = c->memory + (c->class == ALONE ? 0 : i * block_len[c->class]), .dmr = c->dmr, .chunk = c};
}

int exsi_pool_take(struct exsi_ctx *ctx, struct exsi_device *dev, size_t len, struct exsi_block *out)
{
    int index = exsi_ctx_device_index(ctx, dev);
    EXSI_TRY(index);
    struct exsi_pool *p = &ctx->devices[index].pool;
    struct exsi_chunk *made = NULL;
    struct exsi_list over;
    uint32_t class = 0;
    while (class < ALONE && block_len[class] < len) class++;
    exsi_list_init(&over);
    pthread_mutex_lock(&p->lock);
    struct exsi_chunk *c = find_chunk(p, class);
    if (!c) {
        pthread_mutex_unlock(&p->lock);
        EXSI_TRY(make_chunk(p, dev, class, len, &made));
        pthread_mutex_lock(&p->lock);
        c = made;
        if (class != ALONE) {
            exsi_list_append(&p->open[class], &c->node);
            p->empty[class]++;
        }
    }
    take_block(p, c, out);
    exsi_list_for_safe (spare, &p->surplus, struct exsi_chunk, node) {
        exsi_list_unlink(&spare->node);
        exsi_list_append(&over, &spare->node);
    }
    pthread_mutex_unlock(&p->lock);
    exsi_list_for_safe (spare, &over, struct exsi_chunk, node) end_chunk(spare);
    return 0;
}

void exsi_pool_give(struct exsi_block *b)
{
    struct exsi_chunk *c = b->chunk;
    if (!b->addr) return;
    struct exsi_pool *p = c->pool;
    size_t at = (size_t)(b->addr - c->memory);
    pthread_mutex_lock(&p->lock);
    c->free[c->n_free++] = (uint16_t)(c->class == ALONE ? 0 : at / block_len[c->class]);
    bool empty = c->n_free == c->n_blocks, crowd = c->class == ALONE || p->empty[c->class] >= KEEP;
    if (empty && crowd) {
        exsi_list_unlink(&c->node);
        exsi_list_append(&p->surplus, &c->node);
    } else {
        if (c->n_free == 1) exsi_list_append(&p->open[c->class], &c->node);
        if (empty) p->empty[c->class]++;
    }
    pthread_mutex_unlock(&p->lock);
    *b = (struct exsi_block){0};
}
