// SPDX-License-Identifier: MIT OR Apache-2.0
/* A part's side of shared memory: the page that tells peers who sleeps, and the round over all its
 * connections.  Invariant: whoever sleeps has published an odd number that no peer has rung for before
 * its last look at the rings. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device/soft/shm.h"

int shm_part_get(struct soft_part *part)
{
    if (part->shm) return 0;
    struct soft_shm_part *sp = calloc(1, sizeof *sp);
    if (!sp) return -ENOMEM;
    void *map = NULL;
    sp->part = part;
    sp->listener.fd = -1;
    exsi_list_init(&sp->offers);
    exsi_list_init(&sp->strangers);
    int rc = shm_memfd_new("exs-group", SHM_PAGE_BYTES, true, &sp->page_fd, &map);
    if (rc < 0) {
        free(sp);
        return rc;
    }
    sp->page = map;
    sp->page->magic = SHM_PAGE_MAGIC;
    sp->page->version = SHM_VERSION;
    atomic_store_explicit(&sp->page->sleep, part->asleep ? 1 : 0, memory_order_relaxed);
    part->shm = sp;
    sp->spare_fd = -1;
    shm_part_keep_room(part);
    return 0;
}

void soft_shm_part_close(struct soft_part *part)
{
    struct soft_shm_part *sp = part->shm;
    if (!sp) return;
    shm_strangers_drop(sp);
    if (sp->listener.fd >= 0) {
        int fd = sp->listener.fd;
        exsi_poller_del(part->poller, &sp->listener);
        close(fd);
    }
    shm_part_make_room(part);
    munmap(sp->page, SHM_PAGE_BYTES);
    close(sp->page_fd);
    free(sp);
    part->shm = NULL;
}

void shm_part_make_room(struct soft_part *part)
{
    if (part->shm->spare_fd >= 0) close(part->shm->spare_fd);
    part->shm->spare_fd = -1;
}

void shm_part_keep_room(struct soft_part *part)
{
    /* Not had now: another thread was faster; the next message tries again. */
    if (part->shm->spare_fd < 0) part->shm->spare_fd = fcntl(part->shm->page_fd, F_DUPFD_CLOEXEC, 0);
}

/* Regions were closed: their memory is not free before the peers have unmapped it. */
static void forget_regions(struct soft_shm_part *sp, uint64_t gone)
{
    bool all = true;
    exsi_list_for (path, &sp->part->shm_paths, struct soft_path, node)
        all &= shm_tx_forget_gone(exsi_container_of(path, struct shm_path, path));
    if (all) sp->gone_seen = gone;
}

int soft_shm_part_progress(struct soft_part *part)
{
    uint64_t budget = SHM_PULL_BUDGET;
    int work = 0;
    if (!part->shm) return 0;
    uint64_t gone = atomic_load_explicit(&part->sdev->regions_gone, memory_order_acquire);
    if (gone != part->shm->gone_seen) forget_regions(part->shm, gone);
    exsi_list_for_safe (path, &part->shm_paths, struct soft_path, node) {
        work += shm_path_progress(exsi_container_of(path, struct shm_path, path), &budget);
        if (budget) continue;
        /* The lock has been held long enough: whoever comes behind this one is first next time. */
        struct exsi_list *next = path->node.next;
        if (next != &part->shm_paths) {
            exsi_list_unlink(&part->shm_paths);
            exsi_list_insert_before(next, &part->shm_paths);
        }
        break;
    }
    return work;
}

/* Odd: asleep.  Every change is a new value, so that a peer that has rung for the last one rings again. */
static void set_sleep(struct soft_shm_part *sp, bool asleep)
{
    uint32_t now = atomic_load_explicit(&sp->page->sleep, memory_order_relaxed);
    uint32_t next = asleep ? (now + 1) | 1 : (now + 1) & ~1u;
    atomic_store_explicit(&sp->page->sleep, next, memory_order_seq_cst);
    /* The flag before the last look at the rings: pairs with the fence in shm_path_wake. */
    shm_fence();
}

void soft_shm_part_doorbell(struct soft_part *part, bool asleep)
{
    bool same = part->asleep == asleep;
    part->asleep = asleep;
    if (part->shm && (!same || asleep)) set_sleep(part->shm, asleep);
}

void shm_part_heard(struct soft_part *part)
{
    if (part->shm && part->asleep) set_sleep(part->shm, true);
}
