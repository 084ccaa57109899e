// SPDX-License-Identifier: MIT OR Apache-2.0
/* Slots with generations: objects of one size behind 64-bit handles.
 * A handle is kind (8 bits) | generation (24) | slot (32).  A freed slot gets the next generation,
 * so a stale handle finds nothing.  Memory of a slot never moves and is reused, not freed, until
 * _fini.  Not locked: the owner's lock protects it. */
#ifndef EXSI_SLAB_H
#define EXSI_SLAB_H

#include "base/base.h"

enum exsi_handle_kind {
    EXSI_HANDLE_NONE = 0,
    EXSI_HANDLE_GROUP = 1,
    EXSI_HANDLE_EQ = 2,
    EXSI_HANDLE_MR = 3,
    EXSI_HANDLE_SOCKET = 4,
    EXSI_HANDLE_OP = 5,
    EXSI_HANDLE_ENDPOINT = 6,
};

#define EXSI_SLAB_CHUNK 64

struct exsi_slab {
    uint8_t kind;
    size_t item_size;   /* rounded up to 16 bytes */
    uint32_t used, cap; /* live slots; slots in all chunks */
    uint32_t free_head; /* slot + 1 of the first free one, 0: none */
    uint8_t **chunks;   /* EXSI_SLAB_CHUNK slots each */
    uint32_t n_chunks;
};

void exsi_slab_init(struct exsi_slab *s, enum exsi_handle_kind kind, size_t item_size);
/* Frees all memory, live slots included: the owner has ended them before. */
void exsi_slab_fini(struct exsi_slab *s);
/* A zeroed object and its handle; NULL when memory is out. */
EXSI_MUST_CHECK void *exsi_slab_take(struct exsi_slab *s, uint64_t *handle);
/* The object behind a handle; NULL if the kind, slot or generation is not current. */
void *exsi_slab_find(const struct exsi_slab *s, uint64_t handle);
/* Ends the handle.  Giving back a stale handle is a bug (assert). */
void exsi_slab_give(struct exsi_slab *s, uint64_t handle);
/* Live object number i in slot order, or NULL for a free slot; i < s->cap.  For shutdown and sums. */
void *exsi_slab_at(const struct exsi_slab *s, uint32_t slot, uint64_t *handle);

#endif
