// SPDX-License-Identifier: MIT OR Apache-2.0
/* The soft device as the table sees it: no privileges, no kernel module, nothing pinned.  Owns the
 * device and its parts; all that moves is in the other files. */
#include <stdlib.h>

#include "device/soft/cm.h"

static const struct exsi_caps soft_caps = {
    .max_inline = SOFT_MAX_INLINE,
    .max_sge = EXSI_MAX_SGE,
    .max_qp_wr = SOFT_MAX_WR,
    .max_request_private = MPA_UPPER_MAX,
    .max_reply_private = MPA_UPPER_MAX,
    .max_msg = 1u << 30,
    .has_immediate = false, /* RFC 7306 is answered by Terminate elsewhere, and saves nothing here */
    .has_key_per_range = true,
    .has_read = false,
    .has_raw_qp = true,
    .pins_memory = false,
};

static int device_open(struct exsi_log *log, struct exsi_device **out, char *reason)
{
    (void)reason;
    struct soft_device *sdev = calloc(1, sizeof *sdev);
    if (!sdev) return -ENOMEM;
    sdev->dev.ops = &exsi_soft_ops;
    sdev->dev.caps = soft_caps;
    sdev->log = log;
    atomic_init(&sdev->next_region, 0);
    atomic_init(&sdev->regions_gone, 0);
    *out = &sdev->dev;
    return 0;
}

static void device_close(struct exsi_device *dev)
{
    free(exsi_container_of(dev, struct soft_device, dev));
}

static void device_query(struct exsi_device *dev, struct exsi_caps *out)
{
    *out = dev->caps;
}

static int part_open(struct exsi_device *dev, struct exsi_poller *poller, struct exsi_part **out)
{
    struct soft_part *part = calloc(1, sizeof *part);
    if (!part) return -ENOMEM;
    part->part.dev = dev;
    part->sdev = exsi_container_of(dev, struct soft_device, dev);
    part->poller = poller;
    part->log = part->sdev->log;
    exsi_list_init(&part->qps);
    exsi_list_init(&part->ids);
    exsi_list_init(&part->lingering);
    exsi_list_init(&part->events);
    exsi_list_init(&part->work);
    exsi_list_init(&part->shm_paths);
    *out = &part->part;
    return 0;
}

static void part_close(struct exsi_part *epart)
{
    struct soft_part *part = soft_part_of(epart);
    while (!exsi_list_empty(&part->qps)) soft_qp_destroy(&exsi_list_first(&part->qps, struct soft_qp, node)->qp);
    soft_raw_part_close(part);
    while (!exsi_list_empty(&part->ids)) soft_cm_destroy(&exsi_list_first(&part->ids, struct soft_id, node)->id);
    soft_linger_fini(part);
    soft_shm_part_close(part);
    soft_cq_fini(part);
    free(part);
}

static int part_progress(struct exsi_part *part)
{
    return soft_shm_part_progress(soft_part_of(part));
}

static void part_doorbell(struct exsi_part *part, bool asleep)
{
    soft_part_of(part)->asleep = asleep;
    soft_shm_part_doorbell(soft_part_of(part), asleep);
}

const struct exsi_device_ops exsi_soft_ops = {
    .name = "soft",
    .open = device_open,
    .close = device_close,
    .query = device_query,
    .reg_mr = soft_mr_reg,
    .dereg_mr = soft_mr_dereg,
    .part_open = part_open,
    .part_close = part_close,
    .part_progress = part_progress,
    .part_doorbell = part_doorbell,
    .poll_cq = soft_cq_poll,
    .poll_cm = soft_cm_poll,
    .qp_create = soft_qp_create,
    .qp_destroy = soft_qp_destroy,
    .qp_abort = soft_qp_abort,
    .qp_query = soft_qp_query,
    .post_recv = soft_qp_post_recv,
    .post_send = soft_qp_post_send,
    .qp_flush = soft_qp_flush,
    .key_bind = soft_key_bind,
    .key_invalidate = soft_key_invalidate,
    .raw_query = soft_raw_query,
    .raw_to_rtr = soft_raw_to_rtr,
    .raw_to_rts = soft_raw_to_rts,
    .cm_listen = soft_cm_listen,
    .cm_resolve = soft_cm_resolve,
    .cm_connect = soft_cm_connect,
    .cm_accept = soft_cm_accept,
    .cm_reject = soft_cm_reject,
    .cm_disconnect = soft_cm_disconnect,
    .cm_destroy = soft_cm_destroy,
};
