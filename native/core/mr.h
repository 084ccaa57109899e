// SPDX-License-Identifier: MIT OR Apache-2.0
/* The memory table: regions behind handles, counted while in use.
 * A region is process-wide; the table keeps one device registration per device, made at first use
 * there.  Taking and dropping a use are single atomic operations on a word that holds generation,
 * count and a closing mark, so the data path takes no lock and a stale or closing handle is -EBADF.
 * Invariant: dereg_mr is called only with count 0 and the closing mark set. */
#ifndef EXSI_MR_H
#define EXSI_MR_H

#include "core/group.h"

enum exsi_mr_flag {
    EXSI_MR_READ = 1,  /* may be sent from */
    EXSI_MR_WRITE = 2, /* may be received into */
    EXSI_MR_HUGE = 4,  /* allocate: huge pages wanted */
    /* Internal: */
    EXSI_MR_ONE_PEER = 8,   /* see EXSI_ACCESS_ONE_PEER */
    EXSI_MR_SAFE = 16,      /* open: known to be no file that can shrink, do not look */
    EXSI_MR_FRAGILE = 32,   /* open: may be such a file, do not look */
    EXSI_MR_TEMPORARY = 64, /* open: made for one call */
    EXSI_MR_HEAP = 128,     /* open: malloc gave the memory; freed with the region */
    EXSI_MR_MAPPED = 256,   /* allocate: unmapped with the region */
};

struct exsi_mr {
    struct exsi_mem mem;
    uint32_t flags;
    uint64_t handle;
    atomic_uint_fast64_t word;                        /* generation, uses, closing */
    _Atomic(struct exsi_dmr *) dmr[EXSI_MAX_DEVICES]; /* index as ctx->devices */
    bool owns_memfd, temporary;
    struct exsi_errand errand; /* its end, when the last use is dropped under a group's lock */
    uint32_t next_free;        /* slot + 1 of the next free one; under the table's lock */
};

EXSI_MUST_CHECK int exsi_mr_table_open(struct exsi_ctx *ctx);
void exsi_mr_table_close(struct exsi_ctx *ctx);

/* Register [addr, addr + len): borrows the memory until closed.  May block (pinning).  -EINVAL
 * length 0 or wrapped range, -EFAULT not mapped (unless _SAFE or _FRAGILE), -ENOMEM table or memlock limit. */
EXSI_MUST_CHECK int exsi_mr_open(struct exsi_ctx *ctx, void *addr, size_t len, uint32_t flags, uint64_t *handle);
/* A new sealed memfd (of whole pages), mapped, its first len bytes registered.  The mapping is the caller's
 * to unmap by exsi_mr_unmap (it outlives the region), unless _MAPPED; the memfd is the region's. */
EXSI_MUST_CHECK int exsi_mr_allocate(struct exsi_ctx *ctx, size_t len, uint32_t flags, uint64_t *handle, void **addr);
/* Unmap what _allocate mapped; len as asked there. */
void exsi_mr_unmap(void *addr, size_t len);
/* -EBUSY while in use (nothing happens), -EBADF stale. */
EXSI_MUST_CHECK int exsi_mr_close(struct exsi_ctx *ctx, uint64_t handle);
/* No new uses; closed by the last put, or now. */
EXSI_MUST_CHECK int exsi_mr_close_later(struct exsi_ctx *ctx, uint64_t handle);
/* Operations that use it, also while it is closing; -EBADF when it is gone. */
int exsi_mr_in_use(struct exsi_ctx *ctx, uint64_t handle);

/* Count one use of a range: -EBADF, -EFAULT (not inside), -EACCES (need: EXSI_MR_READ or WRITE). */
EXSI_MUST_CHECK int exsi_mr_get(struct exsi_ctx *ctx, uint64_t handle, const void *addr, size_t len, uint32_t need,
                                struct exsi_mr **out);
/* Without any lock: the last put of a closing region takes it apart, which may block. */
void exsi_mr_put(struct exsi_ctx *ctx, struct exsi_mr *mr);
/* The same under the group's lock: the end of the region comes when the lock is left. */
void exsi_mr_put_in(struct exsi_group *g, struct exsi_mr *mr);
/* The device's registration of a region in use (got and not put), made if this is the first use there.  May
 * block; without any lock. */
EXSI_MUST_CHECK int exsi_mr_on(struct exsi_ctx *ctx, struct exsi_mr *mr, struct exsi_device *dev,
                               struct exsi_dmr **out);

#endif
