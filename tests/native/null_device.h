// SPDX-License-Identifier: MIT OR Apache-2.0
/* A device that registers memory and does nothing else, and a registry that knows only it: so the core is
 * tested without any device below it.  It counts, so that leaks of registrations show. */
#ifndef NULL_DEVICE_H
#define NULL_DEVICE_H

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "device/device.h"

static struct {
    int opened, parts, fail_open, fail_reg;
    atomic_int registered;
    bool asleep;
} null_state;

static int null_open(struct exsi_log *log, struct exsi_device **out, char *reason);

static void null_close(struct exsi_device *dev)
{
    null_state.opened--;
    free(dev);
}

static void null_query(struct exsi_device *dev, struct exsi_caps *out)
{
    *out = dev->caps;
}

static int null_reg_mr(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out)
{
    (void)dev;
    if (null_state.fail_reg) return -null_state.fail_reg;
    struct exsi_dmr *dmr = calloc(1, sizeof *dmr);
    if (!dmr) return -ENOMEM;
    dmr->mem = *mem;
    atomic_fetch_add(&null_state.registered, 1);
    *out = dmr;
    return 0;
}

static void null_dereg_mr(struct exsi_device *dev, struct exsi_dmr *dmr)
{
    (void)dev;
    atomic_fetch_sub(&null_state.registered, 1);
    free(dmr);
}

static int null_part_open(struct exsi_device *dev, struct exsi_poller *poller, struct exsi_part **out)
{
    (void)poller;
    struct exsi_part *part = calloc(1, sizeof *part);
    if (!part) return -ENOMEM;
    part->dev = dev;
    null_state.parts++;
    *out = part;
    return 0;
}

static void null_part_close(struct exsi_part *part)
{
    null_state.parts--;
    free(part);
}

static void null_part_doorbell(struct exsi_part *part, bool asleep)
{
    (void)part;
    null_state.asleep = asleep;
}

static const struct exsi_device_ops null_ops = {
    .name = "null",
    .open = null_open,
    .close = null_close,
    .query = null_query,
    .reg_mr = null_reg_mr,
    .dereg_mr = null_dereg_mr,
    .part_open = null_part_open,
    .part_close = null_part_close,
    .part_doorbell = null_part_doorbell,
};

static int null_open(struct exsi_log *log, struct exsi_device **out, char *reason)
{
    (void)log;
    if (null_state.fail_open) {
        snprintf(reason, EXSI_REASON_MAX, "told to fail");
        return -null_state.fail_open;
    }
    struct exsi_device *dev = calloc(1, sizeof *dev);
    if (!dev) return -ENOMEM;
    dev->ops = &null_ops;
    null_state.opened++;
    *out = dev;
    return 0;
}

static const struct exsi_device_entry null_entries[] = {
    {.name = "ghost", .summary = "never there", .absent = "nobody has one"},
    {.name = "null", .summary = "registers and forgets", .ops = &null_ops},
};

const struct exsi_device_entry *exsi_device_registry(int *n)
{
    *n = 2;
    return null_entries;
}

#endif
