// SPDX-License-Identifier: MIT OR Apache-2.0
/* Handles that cross the face of the library: 64 bits, kind | generation | slot (base/slab.h), each with a
 * count of those who use the object behind it.  Finding one takes no lock, so that program threads with
 * groups of their own share nothing on the data path.
 *
 * Life: _add makes the handle with one use, the owner's.  _get finds it and adds a use.  _close ends the
 * handle for finders, once.  _put drops a use; who drops the last one of a closed handle frees the object.
 * Invariant: an object is alive while its word counts a use; a slot is reused only after that. */
#ifndef EXSI_TABLE_H
#define EXSI_TABLE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/slab.h"

#define EXSI_TABLE_CHUNKS 24 /* chunk i has 64 << i slots */

struct exsi_table_slot;

struct exsi_table {
    pthread_mutex_t lock; /* of growing and of the free list */
    uint8_t kind;
    atomic_uint cap, used;
    uint32_t free_head; /* slot + 1 of the first free one, 0: none */
    _Atomic(struct exsi_table_slot *) chunks[EXSI_TABLE_CHUNKS];
};

void exsi_table_init(struct exsi_table *t, enum exsi_handle_kind kind);
/* Every handle has ended. */
void exsi_table_fini(struct exsi_table *t);
/* A handle for object, with the owner's use: -ENOMEM. */
EXSI_MUST_CHECK int exsi_table_add(struct exsi_table *t, void *object, uint64_t *handle);
/* The object with a use more, or NULL if the handle is not current. */
EXSI_MUST_CHECK void *exsi_table_get(struct exsi_table *t, uint64_t handle);
/* A use more, for somebody who has one. */
void exsi_table_hold(struct exsi_table *t, uint64_t handle);
/* The same as _get for slot number i < cap, for walks; handle may be NULL. */
EXSI_MUST_CHECK void *exsi_table_get_at(struct exsi_table *t, uint32_t i, uint64_t *handle);
/* No more finders: 0, or -EBADF if that was so already. */
EXSI_MUST_CHECK int exsi_table_close(struct exsi_table *t, uint64_t handle);
/* One use less; true: it was the last one, the object is the caller's to free. */
EXSI_MUST_CHECK bool exsi_table_put(struct exsi_table *t, uint64_t handle);

#endif
