// SPDX-License-Identifier: MIT OR Apache-2.0
/* Regions.  A region is the process's, an ibv_mr is of one protection domain: it is made in the domains of all adapters
 * in use when the region comes, so that pinning happens outside of every lock, and in a domain that comes later at its
 * first use there.  What one connection owns (ONE_PEER: the stream's ring) and what no peer may write (receive slots)
 * waits for its queue pair, where that may be on one of several adapters or in a domain of its own.
 *
 * Access: with memory windows a region is never open to peers, its windows are.  Without, its one key opens all of it.
 * Invariant: a private registration is in the lists of its region and of its domain; who takes it out frees it. */
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#include "device/verbs/verbs.h"

/* A registration in the domain of one queue pair. */
struct verbs_private {
    struct ibv_mr *mr;
    struct verbs_mr *region;
    struct verbs_domain *domain;
    struct exsi_list mr_node, domain_node;
};

/* --- registering --------------------------------------------------------------------------------------- */

static int access_flags(const struct exsi_mem *mem, const struct verbs_domain *domain)
{
    bool remote = mem->access & EXSI_ACCESS_REMOTE_WRITE;
    int flags = mem->access & (EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE) ? IBV_ACCESS_LOCAL_WRITE : 0;
    if (!remote) return flags;
    if (verbs_has_windows(domain->adapter, domain)) return flags | IBV_ACCESS_MW_BIND;
    /* A domain of its own is there for strict keys, which expose nothing but the ring. */
    if (domain->slot < 0 && !(mem->access & EXSI_ACCESS_ONE_PEER)) return flags;
    return flags | IBV_ACCESS_REMOTE_WRITE;
}

static void tell_limit(struct verbs_device *vdev, const char *adapter, size_t len)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY) {
        exsi_log(vdev->log, EXSI_LOG_WARNING, 0, "verbs: %s is out of memory for a registration of %zu bytes", adapter,
                 len);
        return;
    }
    exsi_log(vdev->log, EXSI_LOG_WARNING, 0,
             "verbs: %s cannot pin %zu bytes: the limit of locked memory (RLIMIT_MEMLOCK) is %llu bytes; raise it by "
             "ulimit -l, in /etc/security/limits.conf or by LimitMEMLOCK= of the service",
             adapter, len, (unsigned long long)limit.rlim_cur);
}

/* How many bytes to register: where pages are huge, whole ones, since libibverbs cannot keep a part of one from a child
 * of fork (EINVAL).  What it is more belongs to the same region. */
static size_t registered_len(const struct exsi_mem *mem)
{
    struct statfs fs;
    if (mem->memfd < 0 || fstatfs(mem->memfd, &fs) < 0 || fs.f_type != HUGETLBFS_MAGIC) return mem->len;
    size_t page = (size_t)fs.f_bsize;
    return (mem->len + page - 1) / page * page;
}

static int register_in(struct verbs_mr *mr, struct verbs_domain *domain, struct ibv_mr **out)
{
    const struct exsi_mem *mem = &mr->dmr.mem;
    struct verbs_device *vdev = mr->vdev;
    errno = 0;
    *out = (vdev->lib.ibv_reg_mr)(domain->pd, mem->addr, registered_len(mem), access_flags(mem, domain));
    if (*out) return 0;
    int error = errno ? errno : ENOMEM;
    /* What kernels say of the limit; EPERM if it is 0. */
    if (error == EAGAIN || error == EPERM) error = ENOMEM;
    if (error == ENOMEM)
        tell_limit(vdev, domain->adapter->name, mem->len);
    else if (error == EFAULT && !(mem->access & (EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE)))
        exsi_log(
            vdev->log, EXSI_LOG_WARNING, 0,
            "verbs: %s cannot pin %zu bytes: kernels before 6.2 refuse a file that is mapped shared and only to be "
            "read; map it private (mmap.ACCESS_COPY)",
            domain->adapter->name, mem->len);
    else
        exsi_log(vdev->log, EXSI_LOG_WARNING, 0, "verbs: %s cannot register %zu bytes: %s", domain->adapter->name,
                 mem->len, strerror(error));
    return -error;
}

static int join_shared(struct verbs_mr *mr, struct verbs_domain *domain, struct ibv_mr **out)
{
    struct ibv_mr *made, *there = NULL;
    EXSI_TRY(register_in(mr, domain, &made));
    /* Release: for readers of the pointer.  Who loses the race takes the winner's. */
    if (atomic_compare_exchange_strong_explicit(&mr->shared[domain->slot], &there, made, memory_order_acq_rel,
                                                memory_order_acquire)) {
        *out = made;
    } else {
        mr->vdev->lib.ibv_dereg_mr(made);
        *out = there;
    }
    return 0;
}

static struct verbs_private *find_private(struct verbs_mr *mr, const struct verbs_domain *domain)
{
    struct verbs_private *found = NULL;
    pthread_mutex_lock(&mr->vdev->lock);
    exsi_list_for (p, &mr->privates, struct verbs_private, mr_node)
        if (p->domain == domain) found = p;
    pthread_mutex_unlock(&mr->vdev->lock);
    return found;
}

/* A domain's queue pair is under one group's lock: nobody else registers in it. */
static int join_private(struct verbs_mr *mr, struct verbs_domain *domain, struct ibv_mr **out)
{
    struct verbs_private *p = find_private(mr, domain);
    if (!p) {
        p = calloc(1, sizeof *p);
        if (!p) return -ENOMEM;
        int rc = register_in(mr, domain, &p->mr);
        if (rc < 0) {
            free(p);
            return rc;
        }
        p->region = mr;
        p->domain = domain;
        pthread_mutex_lock(&mr->vdev->lock);
        exsi_list_init(&p->mr_node);
        exsi_list_init(&p->domain_node);
        exsi_list_append(&mr->privates, &p->mr_node);
        exsi_list_append(&domain->regions, &p->domain_node);
        pthread_mutex_unlock(&mr->vdev->lock);
    }
    *out = p->mr;
    return 0;
}

int verbs_mr_join(struct verbs_mr *mr, struct verbs_domain *domain, struct ibv_mr **out)
{
    return domain->slot >= 0 ? join_shared(mr, domain, out) : join_private(mr, domain, out);
}

/* --- the table's entries ---------------------------------------------------------------------------------- */

/* Is it known already where a connection's own memory will be used?  On the only adapter, if no queue pair gets a
 * domain of its own there. */
static bool place_is_known(const struct verbs_device *vdev)
{
    return atomic_load_explicit(&vdev->n_adapters, memory_order_acquire) == 1 && vdev->adapters[0]->windows;
}

static bool waits_for_queue_pair(const struct exsi_mem *mem)
{
    return (mem->access & EXSI_ACCESS_ONE_PEER) || !(mem->access & EXSI_ACCESS_REMOTE_WRITE);
}

/* 0 if it is registered on one adapter at least, or none is in use yet; else the first error. */
static int register_everywhere(struct verbs_mr *mr)
{
    struct verbs_device *vdev = mr->vdev;
    int n = atomic_load_explicit(&vdev->n_adapters, memory_order_acquire), error = 0;
    bool any = false;
    for (int i = 0; i < n; i++) {
        struct verbs_adapter *a = vdev->adapters[i];
        struct ibv_mr *made;
        if (!atomic_load_explicit(&a->used, memory_order_relaxed)) continue;
        if (atomic_load_explicit(&a->gone, memory_order_relaxed)) continue;
        int rc = join_shared(mr, &a->domain, &made);
        any |= rc == 0;
        if (!error) error = rc;
    }
    return any ? 0 : error;
}

int verbs_mr_reg(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out)
{
    if (!mem->len || (uintptr_t)mem->addr + mem->len < (uintptr_t)mem->addr) return -EINVAL;
    struct verbs_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return -ENOMEM;
    mr->dmr.mem = *mem;
    mr->vdev = verbs_device_of(dev);
    exsi_list_init(&mr->privates);
    int rc = waits_for_queue_pair(mem) && !place_is_known(mr->vdev) ? 0 : register_everywhere(mr);
    if (rc < 0) {
        free(mr);
        return rc;
    }
    *out = &mr->dmr;
    return 0;
}

static void end_registration(struct verbs_device *vdev, struct ibv_mr *mr)
{
    int rc = vdev->lib.ibv_dereg_mr(mr);
    if (rc) exsi_log(vdev->log, EXSI_LOG_ERROR, 0, "verbs: a region could not be given back: %s", strerror(rc));
}

/* Out of both lists, or NULL if there is none (any more). */
static struct verbs_private *take_private(struct verbs_device *vdev, struct verbs_mr *mr, struct verbs_domain *domain)
{
    pthread_mutex_lock(&vdev->lock);
    struct verbs_private *p = mr ? exsi_list_first(&mr->privates, struct verbs_private, mr_node)
                                 : exsi_list_first(&domain->regions, struct verbs_private, domain_node);
    if (p) {
        exsi_list_unlink(&p->mr_node);
        exsi_list_unlink(&p->domain_node);
    }
    pthread_mutex_unlock(&vdev->lock);
    return p;
}

static void end_privates(struct verbs_device *vdev, struct verbs_mr *mr, struct verbs_domain *domain)
{
    struct verbs_private *p;
    while ((p = take_private(vdev, mr, domain))) {
        end_registration(vdev, p->mr);
        free(p);
    }
}

void verbs_mr_dereg(struct exsi_device *dev, struct exsi_dmr *dmr)
{
    struct verbs_device *vdev = verbs_device_of(dev);
    struct verbs_mr *mr = verbs_mr_of(dmr);
    for (int i = 0; i < VERBS_MAX_ADAPTERS; i++) {
        struct ibv_mr *made = atomic_load_explicit(&mr->shared[i], memory_order_acquire);
        if (made) end_registration(vdev, made);
    }
    end_privates(vdev, mr, NULL);
    free(mr);
}

/* --- domains of one queue pair ------------------------------------------------------------------------------ */

int verbs_domain_open(struct verbs_domain *domain, struct verbs_adapter *adapter)
{
    errno = 0;
    domain->pd = adapter->vdev->lib.ibv_alloc_pd(adapter->ctx);
    if (!domain->pd) return errno ? -errno : -ENOMEM;
    domain->adapter = adapter;
    domain->slot = -1;
    exsi_list_init(&domain->regions);
    return 0;
}

void verbs_domain_close(struct verbs_domain *domain)
{
    struct verbs_device *vdev = domain->adapter->vdev;
    end_privates(vdev, NULL, domain);
    int rc = vdev->lib.ibv_dealloc_pd(domain->pd);
    if (rc) exsi_log(vdev->log, EXSI_LOG_ERROR, 0, "verbs: a protection domain could not be freed: %s", strerror(rc));
    domain->pd = NULL;
}
