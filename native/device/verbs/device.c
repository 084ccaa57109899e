// SPDX-License-Identifier: MIT OR Apache-2.0
/* The verbs device as the table sees it, and its adapters: one device per context, whatever number of cards there is.
 * An adapter is an ibv_context of librdmacm's own, for connection ids live on those; they are never closed.
 * Invariant: the capabilities hold on every adapter found at open; what differs is asked of the queue pair. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "device/verbs/verbs.h"

extern const struct exsi_device_ops exsi_verbs_ops;

/* --- adapters ------------------------------------------------------------------------------------------ */

/* As ibv_query_port of the header does it, which would need the library at link time. */
int verbs_query_port(struct ibv_context *ctx, uint8_t port, struct ibv_port_attr *out)
{
    struct verbs_context *vctx = verbs_get_ctx(ctx);
    memset(out, 0, sizeof *out);
    if (!vctx || vctx->sz < sizeof *vctx - offsetof(struct verbs_context, query_port)) return -EOPNOTSUPP;
    return vctx->query_port ? -vctx->query_port(ctx, port, out, sizeof *out) : -EOPNOTSUPP;
}

static int query_adapter(struct verbs_adapter *a)
{
    struct ibv_port_attr port;
    int rc = a->vdev->lib.ibv_query_device(a->ctx, &a->attr);
    if (rc) return rc > 0 ? -rc : -EIO;
    a->iwarp = a->ctx->device->transport_type == IBV_TRANSPORT_IWARP;
    a->windows = (a->attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B) && a->attr.max_mw > 0;
    a->max_msg = 1u << 30;
    for (uint8_t i = 1; i <= a->attr.phys_port_cnt; i++)
        if (verbs_query_port(a->ctx, i, &port) == 0 && port.max_msg_sz)
            a->max_msg = exsi_min_u64(a->max_msg, port.max_msg_sz);
    return 0;
}

/* Some kernels claim windows that their device's library cannot make. */
static bool can_make_windows(struct ibv_pd *pd)
{
    struct ibv_mw *mw = ibv_alloc_mw(pd, IBV_MW_TYPE_2);
    if (mw) (void)ibv_dealloc_mw(mw);
    return mw != NULL;
}

/* siw's library takes the mapping offset 0x90000, which its kernel gives out like any other, for "no mapping": whatever
 * gets it cannot be made (in a fresh process: the sixth connection).  A completion queue that
 * nobody uses, made first, lies across that place. */
static void make_spacer(struct verbs_adapter *a)
{
    enum { SIW_VENDOR = 0x626d74, ENTRY = 32, PLACE = 0x90000 };
    if (a->iwarp && a->attr.vendor_id == SIW_VENDOR)
        a->spacer = a->vdev->lib.ibv_create_cq(a->ctx, PLACE / ENTRY + 128, NULL, NULL, 0);
}

static int adapter_new(struct verbs_device *vdev, struct ibv_context *ctx, struct verbs_adapter **out)
{
    struct verbs_adapter *a = calloc(1, sizeof *a);
    if (!a) return -ENOMEM;
    a->vdev = vdev;
    a->ctx = ctx;
    snprintf(a->name, sizeof a->name, "%s", vdev->lib.ibv_get_device_name(ctx->device));
    int rc = query_adapter(a);
    if (rc == 0) {
        errno = 0;
        a->domain.pd = vdev->lib.ibv_alloc_pd(ctx);
        if (!a->domain.pd) rc = errno ? -errno : -ENOMEM;
    }
    if (rc < 0) {
        free(a);
        return rc;
    }
    a->windows = a->windows && can_make_windows(a->domain.pd);
    make_spacer(a);
    a->domain.adapter = a;
    exsi_list_init(&a->domain.regions);
    *out = a;
    return 0;
}

static void adapter_free(struct verbs_adapter *a)
{
    if (a->spacer) (void)a->vdev->lib.ibv_destroy_cq(a->spacer);
    a->vdev->lib.ibv_dealloc_pd(a->domain.pd);
    free(a);
}

/* Under vdev->lock, or before anybody else knows the device. */
static void adapter_add(struct verbs_device *vdev, struct verbs_adapter *a)
{
    int n = atomic_load_explicit(&vdev->n_adapters, memory_order_relaxed);
    a->index = n;
    a->domain.slot = n;
    vdev->adapters[n] = a;
    /* Release: whoever sees the count sees the entry. */
    atomic_store_explicit(&vdev->n_adapters, n + 1, memory_order_release);
}

static struct verbs_adapter *adapter_find(struct verbs_device *vdev, const struct ibv_context *ctx)
{
    int n = atomic_load_explicit(&vdev->n_adapters, memory_order_acquire);
    for (int i = 0; i < n; i++)
        if (vdev->adapters[i]->ctx == ctx) return vdev->adapters[i];
    return NULL;
}

/* Somebody else may have added it meanwhile, or the table may be full. */
static int adapter_join(struct verbs_device *vdev, struct verbs_adapter *mine, struct verbs_adapter **out)
{
    int rc = 0;
    pthread_mutex_lock(&vdev->lock);
    *out = adapter_find(vdev, mine->ctx);
    if (!*out && atomic_load_explicit(&vdev->n_adapters, memory_order_relaxed) == VERBS_MAX_ADAPTERS) {
        rc = -ENOSPC;
    } else if (!*out) {
        adapter_add(vdev, mine);
        *out = mine;
    }
    pthread_mutex_unlock(&vdev->lock);
    if (*out != mine) adapter_free(mine);
    return rc;
}

int verbs_adapter_of(struct verbs_device *vdev, struct ibv_context *ctx, struct verbs_adapter **out)
{
    struct verbs_adapter *a = ctx ? adapter_find(vdev, ctx) : NULL;
    if (!ctx) return -ENODEV;
    if (!a) {
        struct verbs_adapter *made;
        EXSI_TRY(adapter_new(vdev, ctx, &made));
        EXSI_TRY(adapter_join(vdev, made, &a));
    }
    if (atomic_load_explicit(&a->gone, memory_order_relaxed)) return -ENODEV;
    atomic_store_explicit(&a->used, true, memory_order_relaxed);
    *out = a;
    return 0;
}

/* --- opening ------------------------------------------------------------------------------------------------ */

static bool is_usable(const struct ibv_context *ctx)
{
    return ctx->device->transport_type == IBV_TRANSPORT_IB || ctx->device->transport_type == IBV_TRANSPORT_IWARP;
}

/* A page is registered and given back: a limit that forbids even that had better be told now. */
static int try_memory(struct verbs_adapter *a, char *reason)
{
    const struct verbs_lib *lib = &a->vdev->lib;
    size_t len = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return -errno;
    errno = 0;
    struct ibv_mr *mr = (lib->ibv_reg_mr)(a->domain.pd, page, len, IBV_ACCESS_LOCAL_WRITE);
    int rc = mr ? 0 : errno ? -errno : -ENOMEM;
    if (mr) lib->ibv_dereg_mr(mr);
    munmap(page, len);
    struct rlimit limit = {0};
    /* EPERM is what the kernel says of a limit of 0. */
    if ((rc == -ENOMEM || rc == -EPERM) && getrlimit(RLIMIT_MEMLOCK, &limit) == 0)
        snprintf(reason, EXSI_REASON_MAX,
                 "%s cannot register any memory: the limit of locked memory (RLIMIT_MEMLOCK) is %llu bytes: raise it "
                 "by ulimit -l",
                 a->name, (unsigned long long)limit.rlim_cur);
    else if (rc < 0)
        snprintf(reason, EXSI_REASON_MAX, "%s cannot register memory: %s", a->name, strerror(-rc));
    return rc;
}

/* The first error is what is told if no adapter can be used at all. */
static int open_adapters(struct verbs_device *vdev, char *reason)
{
    int n = 0, rc = -ENODEV;
    errno = 0;
    struct ibv_context **list = vdev->lib.rdma_get_devices(&n);
    if (!list || n == 0)
        snprintf(reason, EXSI_REASON_MAX, "librdmacm finds no device (%s)",
                 errno ? strerror(errno) : "none that is up");
    for (int i = 0; list && i < n && vdev->n_adapters < VERBS_MAX_ADAPTERS; i++) {
        struct verbs_adapter *a;
        char why[EXSI_REASON_MAX] = "the devices of this machine are neither InfiniBand, RoCE nor iWARP";
        int error = is_usable(list[i]) ? adapter_new(vdev, list[i], &a) : -ENODEV;
        if (error < 0 && is_usable(list[i]))
            snprintf(why, sizeof why, "%s cannot be used: %s", list[i]->device->name, strerror(-error));
        if (error == 0) {
            error = try_memory(a, why);
            if (error < 0) adapter_free(a);
        }
        if (error == 0)
            adapter_add(vdev, a);
        else if (!reason[0])
            snprintf(reason, EXSI_REASON_MAX, "%s", why);
        if (rc < 0) rc = error;
    }
    if (list) vdev->lib.rdma_free_devices(list);
    return vdev->n_adapters ? 0 : rc;
}

static void fill_caps(struct verbs_device *vdev)
{
    struct exsi_caps c = {
        .max_inline = VERBS_INLINE,
        .max_sge = EXSI_MAX_SGE,
        .max_qp_wr = UINT32_MAX,
        /* What is left of the 92 bytes of an InfiniBand request by rdma_cm, and of its reply's 196. */
        .max_request_private = 56,
        .max_reply_private = 196,
        .max_msg = UINT64_MAX,
        .has_key_per_range = true,
        .has_read = true,
        .pins_memory = true,
    };
    for (int i = 0; i < vdev->n_adapters; i++) {
        const struct verbs_adapter *a = vdev->adapters[i];
        c.max_sge = exsi_min_u32(c.max_sge, (uint32_t)a->attr.max_sge);
        c.max_qp_wr = exsi_min_u32(c.max_qp_wr, (uint32_t)a->attr.max_qp_wr);
        c.max_msg = exsi_min_u64(c.max_msg, a->max_msg);
        c.has_immediate |= !a->iwarp;
        c.has_raw_qp |= !a->iwarp;
        c.has_key_per_range &= a->windows;
    }
    vdev->dev.caps = c;
}

static void device_free(struct verbs_device *vdev)
{
    for (int i = 0; i < vdev->n_adapters; i++) adapter_free(vdev->adapters[i]);
    pthread_cond_destroy(&vdev->left);
    pthread_mutex_destroy(&vdev->lock);
    free(vdev);
}

static int device_open(struct exsi_log *log, struct exsi_device **out, char *reason)
{
    struct verbs_device *vdev = calloc(1, sizeof *vdev);
    if (!vdev) return -ENOMEM;
    vdev->dev.ops = &exsi_verbs_ops;
    vdev->log = log;
    pthread_mutex_init(&vdev->lock, NULL);
    pthread_cond_init(&vdev->left, NULL);
    exsi_list_init(&vdev->parts);
    exsi_list_init(&vdev->qps);
    exsi_list_init(&vdev->cqs);
    reason[0] = '\0';
    int rc = verbs_lib_open(&vdev->lib, reason);
    /* ES-API 1.4: before the first registration of this process, or a child of fork takes the pages away under the
     * device.  Refused if somebody else registered already; newer kernels need none of it. */
    if (rc == 0 && vdev->lib.ibv_fork_init() != 0)
        exsi_log(log, EXSI_LOG_INFO, 0, "verbs: fork protection was not set up: registered memory exists already");
    if (rc == 0) rc = verbs_lib_probe(&vdev->lib, reason);
    if (rc == 0) rc = open_adapters(vdev, reason);
    if (rc < 0) {
        device_free(vdev);
        return rc;
    }
    fill_caps(vdev);
    *out = &vdev->dev;
    return 0;
}

/* The one place that waits for what the kernel holds back (10 s in siw): the process ends, or might open it anew. */
static void device_close(struct exsi_device *dev)
{
    struct verbs_device *vdev = verbs_device_of(dev);
    pthread_mutex_lock(&vdev->lock);
    while (vdev->lingering) pthread_cond_wait(&vdev->left, &vdev->lock);
    pthread_mutex_unlock(&vdev->lock);
    device_free(vdev);
}

static void device_query(struct exsi_device *dev, struct exsi_caps *out)
{
    *out = dev->caps;
}

const struct exsi_device_ops exsi_verbs_ops = {
    .name = "verbs",
    .open = device_open,
    .close = device_close,
    .query = device_query,
    .reg_mr = verbs_mr_reg,
    .dereg_mr = verbs_mr_dereg,
    .part_open = verbs_part_open,
    .part_close = verbs_part_close,
    .part_progress = verbs_part_progress,
    .part_doorbell = verbs_part_doorbell,
    .poll_cq = verbs_poll_cq,
    .poll_cm = verbs_cm_poll,
    .qp_create = verbs_qp_create,
    .qp_destroy = verbs_qp_destroy,
    .qp_abort = verbs_qp_abort,
    .qp_query = verbs_qp_query,
    .post_recv = verbs_qp_post_recv,
    .post_send = verbs_qp_post_send,
    .qp_flush = verbs_qp_flush,
    .key_bind = verbs_key_bind,
    .key_invalidate = verbs_key_invalidate,
    .raw_query = verbs_raw_query,
    .raw_to_rtr = verbs_raw_to_rtr,
    .raw_to_rts = verbs_raw_to_rts,
    .cm_listen = verbs_cm_listen,
    .cm_resolve = verbs_cm_resolve,
    .cm_connect = verbs_cm_connect,
    .cm_accept = verbs_cm_accept,
    .cm_reject = verbs_cm_reject,
    .cm_disconnect = verbs_cm_disconnect,
    .cm_destroy = verbs_cm_destroy,
};
