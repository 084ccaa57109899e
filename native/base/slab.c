// SPDX-License-Identifier: MIT OR Apache-2.0
/* Slots with generations.  Each slot is a 16-byte header and the object.  Invariant: a header's
 * generation is the one of the live handle, or of the next handle if the slot is free. */
#include "base/slab.h"

#include <stdlib.h>
#include <string.h>

#define GENERATION_MASK 0xffffffu
#define SLOT_LIVE       UINT32_MAX

struct slot_header {
    uint32_t generation;
    uint32_t next_free; /* slot + 1 of the next free one, 0: last; SLOT_LIVE: taken */
    uint32_t pad[2];    /* keeps the object on 16 bytes */
};

static struct slot_header *header_of(const struct exsi_slab *s, uint32_t slot)
{
    size_t stride = sizeof(struct slot_header) + s->item_size;
    return (struct slot_header *)(void *)(s->chunks[slot / EXSI_SLAB_CHUNK] + (slot % EXSI_SLAB_CHUNK) * stride);
}

static uint64_t handle_of(const struct exsi_slab *s, uint32_t slot, uint32_t generation)
{
    return (uint64_t)s->kind << 56 | (uint64_t)generation << 32 | slot;
}

/* The header of the live object behind a handle, or NULL. */
static struct slot_header *live_header(const struct exsi_slab *s, uint64_t handle)
{
    uint32_t slot = (uint32_t)handle;
    if (handle >> 56 != s->kind || slot >= s->cap) return NULL;
    struct slot_header *h = header_of(s, slot);
    bool current = h->next_free == SLOT_LIVE && h->generation == ((handle >> 32) & GENERATION_MASK);
    return current ? h : NULL;
}

void exsi_slab_init(struct exsi_slab *s, enum exsi_handle_kind kind, size_t item_size)
{
    memset(s, 0, sizeof *s);
    s->kind = (uint8_t)kind;
    s->item_size = (item_size + 15) & ~(size_t)15;
}

void exsi_slab_fini(struct exsi_slab *s)
{
    for (uint32_t i = 0; i < s->n_chunks; i++) free(s->chunks[i]);
    free(s->chunks);
    exsi_slab_init(s, (enum exsi_handle_kind)s->kind, s->item_size);
}

static int grow(struct exsi_slab *s)
{
    if (s->cap > SLOT_LIVE - 2 * EXSI_SLAB_CHUNK) return -ENOMEM;
    uint8_t **chunks = realloc(s->chunks, (s->n_chunks + 1) * sizeof *chunks);
    if (!chunks) return -ENOMEM;
    s->chunks = chunks;
    uint8_t *chunk = calloc(EXSI_SLAB_CHUNK, sizeof(struct slot_header) + s->item_size);
    if (!chunk) return -ENOMEM;
    s->chunks[s->n_chunks++] = chunk;

    /* Backwards, so that the lowest slot is taken first. */
    for (uint32_t slot = s->cap + EXSI_SLAB_CHUNK; slot-- > s->cap;) {
        struct slot_header *h = header_of(s, slot);
        h->generation = 1;
        h->next_free = s->free_head;
        s->free_head = slot + 1;
    }
    s->cap += EXSI_SLAB_CHUNK;
    return 0;
}

void *exsi_slab_take(struct exsi_slab *s, uint64_t *handle)
{
    if (s->free_head == 0 && grow(s) < 0) return NULL;
    uint32_t slot = s->free_head - 1;
    struct slot_header *h = header_of(s, slot);
    s->free_head = h->next_free;
    h->next_free = SLOT_LIVE;
    s->used++;
    *handle = handle_of(s, slot, h->generation);
    return memset(h + 1, 0, s->item_size);
}

void *exsi_slab_find(const struct exsi_slab *s, uint64_t handle)
{
    struct slot_header *h = live_header(s, handle);
    return h ? h + 1 : NULL;
}

void exsi_slab_give(struct exsi_slab *s, uint64_t handle)
{
    struct slot_header *h = live_header(s, handle);
    assert(h);
    if (!h) return;
    h->generation = (h->generation + 1) & GENERATION_MASK;
    if (h->generation == 0) h->generation = 1;
    h->next_free = s->free_head;
    s->free_head = (uint32_t)handle + 1;
    s->used--;
}

void *exsi_slab_at(const struct exsi_slab *s, uint32_t slot, uint64_t *handle)
{
    if (slot >= s->cap) return NULL;
    struct slot_header *h = header_of(s, slot);
    if (h->next_free != SLOT_LIVE) return NULL;
    if (handle) *handle = handle_of(s, slot, h->generation);
    return h + 1;
}
