// SPDX-License-Identifier: MIT OR Apache-2.0
/* The memory table.
 *
 * A slot's word is closing (bit 63) | generation (bits 32..55) | uses (bits 0..31).  A free slot is closing
 * with no uses.  Whoever brings the word to "closing, no uses" (a close of an idle region, or the last put
 * of a closing one) is alone with the slot and takes it apart, since no get passes the closing mark.
 * Slots live in chunks that double in size and never move, so a handle is followed without any lock. */
#include "core/mr.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/copy.h"
#include "core/mem.h"

#define CLOSING          ((uint64_t)1 << 63)
#define USES(word)       ((uint32_t)(word))
#define GENERATION(word) ((uint32_t)((word) >> 32) & GENERATION_MASK)
#define GENERATION_MASK  0xffffffu

#define CHUNK_SHIFT 6  /* chunk i has 64 << i slots */
#define CHUNKS      20 /* 67 million regions */

struct exsi_mr_table {
    pthread_mutex_t lock; /* of all but the words; nothing is called under it */
    _Atomic(struct exsi_mr *) chunks[CHUNKS];
    uint32_t cap, free_head; /* slot + 1 of the first free one, 0: none */
};

/* --- slots ------------------------------------------------------------------------------------------ */

static struct exsi_mr *slot_at(struct exsi_mr_table *t, uint32_t slot)
{
    uint32_t biased = (slot >> CHUNK_SHIFT) + 1;
    int chunk = 31 - __builtin_clz(biased);
    if (chunk >= CHUNKS) return NULL;
    /* Acquire: pairs with the release in grow, the slots' words are initialised. */
    struct exsi_mr *slots = atomic_load_explicit(&t->chunks[chunk], memory_order_acquire);
    uint32_t first = ((1u << chunk) - 1) << CHUNK_SHIFT;
    return slots ? &slots[slot - first] : NULL;
}

static int grow(struct exsi_mr_table *t)
{
    int chunk = 0;
    while (chunk < CHUNKS && atomic_load_explicit(&t->chunks[chunk], memory_order_relaxed)) chunk++;
    if (chunk == CHUNKS) return -ENOMEM;
    uint32_t n = 1u << (CHUNK_SHIFT + chunk);
    struct exsi_mr *slots = calloc(n, sizeof *slots);
    if (!slots) return -ENOMEM;
    for (uint32_t i = n; i-- > 0;) {
        atomic_init(&slots[i].word, CLOSING | (uint64_t)1 << 32);
        slots[i].next_free = t->free_head;
        t->free_head = t->cap + i + 1;
    }
    t->cap += n;
    atomic_store_explicit(&t->chunks[chunk], slots, memory_order_release);
    return 0;
}

/* A free slot, off the free list, its word still closing. */
static struct exsi_mr *take_slot(struct exsi_mr_table *t, uint32_t *number)
{
    struct exsi_mr *mr = NULL;
    pthread_mutex_lock(&t->lock);
    if (t->free_head != 0 || grow(t) == 0) {
        *number = t->free_head - 1;
        mr = slot_at(t, *number);
        t->free_head = mr->next_free;
    }
    pthread_mutex_unlock(&t->lock);
    return mr;
}

/* The slot behind a handle; whether the generation is current is for the word to say. */
static struct exsi_mr *find_slot(struct exsi_ctx *ctx, uint64_t handle)
{
    return handle >> 56 == EXSI_HANDLE_MR ? slot_at(ctx->mrs, (uint32_t)handle) : NULL;
}

static bool is_live(uint64_t word, uint64_t handle)
{
    return !(word & CLOSING) && GENERATION(word) == GENERATION(handle);
}

/* The word is "closing, no uses" and this thread brought it there. */
static void end_region(struct exsi_ctx *ctx, struct exsi_mr *mr)
{
    for (int i = 0; i < ctx->n_devices; i++) {
        struct exsi_dmr *dmr = atomic_load_explicit(&mr->dmr[i], memory_order_acquire);
        if (!dmr) continue;
        ctx->devices[i].entry->ops->dereg_mr(ctx->devices[i].dev, dmr);
        atomic_store_explicit(&mr->dmr[i], NULL, memory_order_relaxed);
    }
    if (mr->owns_memfd) close(mr->mem.memfd);
    if (mr->flags & EXSI_MR_MAPPED) exsi_memory_unmap(mr->mem.addr, mr->mem.len);
    if (mr->flags & EXSI_MR_HEAP) free(mr->mem.addr);

    struct exsi_mr_table *t = ctx->mrs;
    uint32_t number = (uint32_t)mr->handle;
    uint32_t generation = (GENERATION(mr->handle) + 1) & GENERATION_MASK;
    if (generation == 0) generation = 1;
    pthread_mutex_lock(&t->lock);
    atomic_store_explicit(&mr->word, CLOSING | (uint64_t)generation << 32, memory_order_relaxed);
    mr->next_free = t->free_head;
    t->free_head = number + 1;
    pthread_mutex_unlock(&t->lock);
}

int exsi_mr_table_open(struct exsi_ctx *ctx)
{
    struct exsi_mr_table *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    pthread_mutex_init(&t->lock, NULL);
    ctx->mrs = t;
    return 0;
}

void exsi_mr_table_close(struct exsi_ctx *ctx)
{
    struct exsi_mr_table *t = ctx->mrs;
    for (uint32_t i = 0; i < t->cap; i++) {
        struct exsi_mr *mr = slot_at(t, i);
        uint64_t word = atomic_load_explicit(&mr->word, memory_order_acquire);
        assert(USES(word) == 0);
        if (!(word & CLOSING)) end_region(ctx, mr);
    }
    for (int i = 0; i < CHUNKS; i++) free(atomic_load_explicit(&t->chunks[i], memory_order_relaxed));
    pthread_mutex_destroy(&t->lock);
    free(t);
    ctx->mrs = NULL;
}

/* --- open and close --------------------------------------------------------------------------------- */

static int add_region(struct exsi_ctx *ctx, const struct exsi_mem *mem, uint32_t flags, uint64_t *handle)
{
    uint32_t number;
    struct exsi_mr *mr = take_slot(ctx->mrs, &number);
    if (!mr) return -ENOMEM;
    uint64_t word = atomic_load_explicit(&mr->word, memory_order_relaxed) & ~CLOSING;
    mr->mem = *mem;
    mr->mem.access = 0;
    if (flags & EXSI_MR_WRITE) mr->mem.access |= EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE;
    if (flags & EXSI_MR_ONE_PEER) mr->mem.access |= EXSI_ACCESS_ONE_PEER;
    mr->flags = flags;
    mr->handle = (uint64_t)EXSI_HANDLE_MR << 56 | word | number;
    mr->owns_memfd = mem->memfd >= 0;
    mr->temporary = (flags & EXSI_MR_TEMPORARY) != 0;
    *handle = mr->handle;
    /* Release: a get that sees the generation alive sees the fields. */
    atomic_store_explicit(&mr->word, word, memory_order_release);
    return 0;
}

/* ES-API 1.5 */
int exsi_mr_open(struct exsi_ctx *ctx, void *addr, size_t len, uint32_t flags, uint64_t *handle)
{
    uintptr_t end;
    if (len == 0 || __builtin_add_overflow((uintptr_t)addr, len, &end)) return -EINVAL;
    struct exsi_mem mem = {.addr = addr, .len = len, .memfd = -1};
    if (flags & EXSI_MR_FRAGILE) {
        mem.fragile = true;
    } else if (!(flags & EXSI_MR_SAFE)) {
        int rc = exsi_range_is_fragile(addr, len);
        EXSI_TRY(rc);
        mem.fragile = rc != 0;
    }
    return add_region(ctx, &mem, flags, handle);
}

int exsi_mr_allocate(struct exsi_ctx *ctx, size_t len, uint32_t flags, uint64_t *handle, void **addr)
{
    struct exsi_mem mem = {.len = len};
    bool one_peer = (flags & EXSI_MR_ONE_PEER) != 0;
    EXSI_TRY(exsi_memory_new(len, (flags & EXSI_MR_HUGE) != 0, one_peer, &mem.memfd, &mem.addr));
    int rc = add_region(ctx, &mem, flags, handle);
    if (rc < 0) {
        exsi_memory_unmap(mem.addr, len);
        close(mem.memfd);
        return rc;
    }
    *addr = mem.addr;
    return 0;
}

void exsi_mr_unmap(void *addr, size_t len)
{
    exsi_memory_unmap(addr, len);
}

/* Set the closing mark: the word before, or -EBADF; with idle_only, -EBUSY instead if there are uses. */
static int start_close(struct exsi_mr *mr, uint64_t handle, bool idle_only, uint32_t *uses)
{
    uint64_t word = atomic_load_explicit(&mr->word, memory_order_relaxed);
    do {
        if (!is_live(word, handle)) return -EBADF;
        if (idle_only && USES(word) > 0) return -EBUSY;
        /* Acquire: everything that earlier users did comes before the end. */
    } while (!atomic_compare_exchange_weak_explicit(&mr->word, &word, word | CLOSING, memory_order_acquire,
                                                    memory_order_relaxed));
    *uses = USES(word);
    return 0;
}

static int close_region(struct exsi_ctx *ctx, uint64_t handle, bool idle_only)
{
    struct exsi_mr *mr = find_slot(ctx, handle);
    if (!mr) return -EBADF;
    uint32_t uses;
    EXSI_TRY(start_close(mr, handle, idle_only, &uses));
    if (uses == 0) end_region(ctx, mr);
    return 0;
}

int exsi_mr_close(struct exsi_ctx *ctx, uint64_t handle)
{
    return close_region(ctx, handle, true);
}

int exsi_mr_close_later(struct exsi_ctx *ctx, uint64_t handle)
{
    return close_region(ctx, handle, false);
}

int exsi_mr_in_use(struct exsi_ctx *ctx, uint64_t handle)
{
    struct exsi_mr *mr = find_slot(ctx, handle);
    if (!mr) return -EBADF;
    uint64_t word = atomic_load_explicit(&mr->word, memory_order_relaxed);
    if (GENERATION(word) != GENERATION(handle)) return -EBADF;
    /* A closing region with uses still has operations to wait for; one without is about to be taken apart. */
    return (word & CLOSING) && USES(word) == 0 ? -EBADF : (int)USES(word);
}

/* --- use --------------------------------------------------------------------------------------------- */

/* ES-API 1.5 */
static int check_use(const struct exsi_mr *mr, const void *addr, size_t len, uint32_t need)
{
    if ((uintptr_t)addr < (uintptr_t)mr->mem.addr) return -EFAULT;
    if (!exsi_range_inside((uintptr_t)addr - (uintptr_t)mr->mem.addr, len, mr->mem.len)) return -EFAULT;
    return (mr->flags & need) == need ? 0 : -EACCES;
}

int exsi_mr_get(struct exsi_ctx *ctx, uint64_t handle, const void *addr, size_t len, uint32_t need,
                struct exsi_mr **out)
{
    struct exsi_mr *mr = find_slot(ctx, handle);
    if (!mr) return -EBADF;
    uint64_t word = atomic_load_explicit(&mr->word, memory_order_relaxed);
    do {
        if (!is_live(word, handle)) return -EBADF;
        /* Acquire: pairs with the release in add_region, the fields are this generation's. */
    } while (
        !atomic_compare_exchange_weak_explicit(&mr->word, &word, word + 1, memory_order_acquire, memory_order_relaxed));
    /* Only now may the fields be read: before, the slot might have been given to another region. */
    int rc = check_use(mr, addr, len, need);
    if (rc < 0) {
        exsi_mr_put(ctx, mr);
        return rc;
    }
    *out = mr;
    return 0;
}

/* True: it was the last one of a closing region, which is the caller's to end. */
static bool drop_use(struct exsi_mr *mr)
{
    /* Release: our use comes before the end of the region; acquire: for the one who ends it. */
    uint64_t word = atomic_fetch_sub_explicit(&mr->word, 1, memory_order_acq_rel);
    assert(USES(word) > 0);
    return (word & CLOSING) && USES(word) == 1;
}

void exsi_mr_put(struct exsi_ctx *ctx, struct exsi_mr *mr)
{
    if (drop_use(mr)) end_region(ctx, mr);
}

static void run_end(struct exsi_errand *e, struct exsi_group *g)
{
    end_region(g->ctx, exsi_container_of(e, struct exsi_mr, errand));
}

void exsi_mr_put_in(struct exsi_group *g, struct exsi_mr *mr)
{
    if (!drop_use(mr)) return;
    mr->errand.run = run_end;
    exsi_group_errand(g, &mr->errand);
}

int exsi_mr_on(struct exsi_ctx *ctx, struct exsi_mr *mr, struct exsi_device *dev, struct exsi_dmr **out)
{
    int i = exsi_ctx_device_index(ctx, dev);
    EXSI_TRY(i);
    struct exsi_dmr *dmr = atomic_load_explicit(&mr->dmr[i], memory_order_acquire);
    if (!dmr) {
        struct exsi_dmr *made;
        EXSI_TRY(dev->ops->reg_mr(dev, &mr->mem, &made));
        /* Release: for readers of the pointer.  Who loses the race takes the winner's. */
        if (atomic_compare_exchange_strong_explicit(&mr->dmr[i], &dmr, made, memory_order_acq_rel,
                                                    memory_order_acquire))
            dmr = made;
        else
            dev->ops->dereg_mr(dev, made);
    }
    *out = dmr;
    return 0;
}
