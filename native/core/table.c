// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counted handles.  A slot's word is closing (bit 63) | generation (bits 32..55) | uses (bits 0..31); a free
 * slot is closing with no uses.  Whoever brings the word to "closing, no uses" is alone with the slot, since
 * no get passes the closing mark.  Chunks double in size and never move, so a handle is followed without
 * any lock. */
#include "core/table.h"

#include <stdlib.h>

#define CLOSING          ((uint64_t)1 << 63)
#define USES(word)       ((uint32_t)(word))
#define GENERATION(word) ((uint32_t)((word) >> 32) & GENERATION_MASK)
#define GENERATION_MASK  0xffffffu
#define CHUNK_SHIFT      6

struct exsi_table_slot {
    atomic_uint_fast64_t word;
    void *object;       /* written while the word is closing, by the one who has the slot */
    uint32_t next_free; /* under the table's lock */
};

void exsi_table_init(struct exsi_table *t, enum exsi_handle_kind kind)
{
    *t = (struct exsi_table){.kind = (uint8_t)kind};
    pthread_mutex_init(&t->lock, NULL);
}

void exsi_table_fini(struct exsi_table *t)
{
    assert(atomic_load_explicit(&t->used, memory_order_relaxed) == 0);
    for (int i = 0; i < EXSI_TABLE_CHUNKS; i++) free(atomic_load_explicit(&t->chunks[i], memory_order_relaxed));
    pthread_mutex_destroy(&t->lock);
}

static struct exsi_table_slot *slot_at(struct exsi_table *t, uint32_t slot)
{
    uint32_t biased = (slot >> CHUNK_SHIFT) + 1;
    int chunk = 31 - __builtin_clz(biased);
    if (chunk >= EXSI_TABLE_CHUNKS) return NULL;
    /* Acquire: pairs with the release in grow, the slots' words are initialised. */
    struct exsi_table_slot *slots = atomic_load_explicit(&t->chunks[chunk], memory_order_acquire);
    uint32_t first = ((1u << chunk) - 1) << CHUNK_SHIFT;
    return slots ? &slots[slot - first] : NULL;
}

static int grow(struct exsi_table *t)
{
    int chunk = 0;
    uint32_t cap = atomic_load_explicit(&t->cap, memory_order_relaxed);
    while (chunk < EXSI_TABLE_CHUNKS && atomic_load_explicit(&t->chunks[chunk], memory_order_relaxed)) chunk++;
    if (chunk == EXSI_TABLE_CHUNKS) return -ENOMEM;
    uint32_t n = 1u << (CHUNK_SHIFT + chunk);
    struct exsi_table_slot *slots = calloc(n, sizeof *slots);
    if (!slots) return -ENOMEM;
    for (uint32_t i = n; i-- > 0;) {
        atomic_init(&slots[i].word, CLOSING | (uint64_t)1 << 32);
        slots[i].next_free = t->free_head;
        t->free_head = cap + i + 1;
    }
    atomic_store_explicit(&t->chunks[chunk], slots, memory_order_release);
    atomic_store_explicit(&t->cap, cap + n, memory_order_release);
    return 0;
}

int exsi_table_add(struct exsi_table *t, void *object, uint64_t *handle)
{
    struct exsi_table_slot *slot = NULL;
    uint32_t number = 0;
    pthread_mutex_lock(&t->lock);
    if (t->free_head != 0 || grow(t) == 0) {
        number = t->free_head - 1;
        slot = slot_at(t, number);
        t->free_head = slot->next_free;
        atomic_fetch_add_explicit(&t->used, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&t->lock);
    if (!slot) return -ENOMEM;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed) & ~CLOSING;
    slot->object = object;
    *handle = (uint64_t)t->kind << 56 | word | number;
    /* Release: a get that sees the generation alive sees the object. */
    atomic_store_explicit(&slot->word, word | 1, memory_order_release);
    return 0;
}

/* The slot of a handle; whether the generation is current is for the word to say. */
static struct exsi_table_slot *find(struct exsi_table *t, uint64_t handle)
{
    return handle >> 56 == t->kind ? slot_at(t, (uint32_t)handle) : NULL;
}

void *exsi_table_get(struct exsi_table *t, uint64_t handle)
{
    struct exsi_table_slot *slot = find(t, handle);
    if (!slot) return NULL;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    do {
        if ((word & CLOSING) || GENERATION(word) != GENERATION(handle)) return NULL;
        /* Acquire: pairs with the release in add. */
    } while (!atomic_compare_exchange_weak_explicit(&slot->word, &word, word + 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return slot->object;
}

void exsi_table_hold(struct exsi_table *t, uint64_t handle)
{
    uint64_t before = atomic_fetch_add_explicit(&find(t, handle)->word, 1, memory_order_relaxed);
    assert(USES(before) > 0);
    (void)before;
}

void *exsi_table_get_at(struct exsi_table *t, uint32_t i, uint64_t *handle)
{
    if (i >= atomic_load_explicit(&t->cap, memory_order_acquire)) return NULL;
    uint64_t word = atomic_load_explicit(&slot_at(t, i)->word, memory_order_relaxed);
    uint64_t found = (uint64_t)t->kind << 56 | (uint64_t)GENERATION(word) << 32 | i;
    if (handle) *handle = found;
    return exsi_table_get(t, found);
}

int exsi_table_close(struct exsi_table *t, uint64_t handle)
{
    struct exsi_table_slot *slot = find(t, handle);
    if (!slot) return -EBADF;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    do {
        if ((word & CLOSING) || GENERATION(word) != GENERATION(handle)) return -EBADF;
    } while (!atomic_compare_exchange_weak_explicit(&slot->word, &word, word | CLOSING, memory_order_relaxed,
                                                    memory_order_relaxed));
    return 0;
}

bool exsi_table_put(struct exsi_table *t, uint64_t handle)
{
    struct exsi_table_slot *slot = find(t, handle);
    /* Release: what was done with the object comes before its end; acquire: for the one who ends it. */
    uint64_t before = atomic_fetch_sub_explicit(&slot->word, 1, memory_order_acq_rel);
    assert(USES(before) > 0);
    if (!(before & CLOSING) || USES(before) != 1) return false;
    uint32_t generation = (GENERATION(before) + 1) & GENERATION_MASK;
    if (generation == 0) generation = 1;
    pthread_mutex_lock(&t->lock);
    atomic_store_explicit(&slot->word, CLOSING | (uint64_t)generation << 32, memory_order_relaxed);
    slot->next_free = t->free_head;
    t->free_head = (uint32_t)handle + 1;
    atomic_fetch_sub_explicit(&t->used, 1, memory_order_relaxed);
    pthread_mutex_unlock(&t->lock);
    return true;
}
