// SPDX-License-Identifier: MIT OR Apache-2.0
/* The one file that knows which devices there are.  Order is preference: "auto" takes the first one
 * that opens and reaches the peer. */
#include "device/device.h"

extern const struct exsi_device_ops exsi_soft_ops;
extern const struct exsi_device_ops exsi_verbs_ops;

static const struct exsi_device_entry entries[] = {
    {
        .name = "verbs",
        .summary = "RDMA cards and the kernel's soft RDMA, by libibverbs",
#ifdef EXSI_HAVE_VERBS
        .ops = &exsi_verbs_ops,
#else
        .absent = "this build has no verbs device: it was made without the headers of rdma-core",
#endif
    },
    {
        .name = "soft",
        .summary = "embedded: iWARP over TCP, shared memory within a host",
        .ops = &exsi_soft_ops,
    },
};

const struct exsi_device_entry *exsi_device_registry(int *n)
{
    *n = (int)(sizeof entries / sizeof entries[0]);
    return entries;
}
