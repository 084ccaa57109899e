// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counters of one socket, and of all.  Each is written by the thread that holds the group's lock
 * and read by anyone, hence relaxed atomics; a snapshot is not a consistent cut. */
#ifndef EXSI_STATS_H
#define EXSI_STATS_H

#include <stdatomic.h>

#include "base/base.h"

#define EXSI_STATS_FIELDS(X)                                                                                           \
    X(bytes_direct)   /* payload placed by the device in a posted receive buffer */                                    \
    X(bytes_indirect) /* payload that arrived through the stream's ring */                                             \
    X(bytes_copied)   /* payload copied by exs: ring to buffer, small unregistered, bounce */                          \
    X(bytes_mapped)   /* payload taken by memcpy from a peer's mapped region */                                        \
    X(bytes_device)   /* payload moved by the device, both ways */                                                     \
    X(bytes_sent)     /* payload of completed sends */                                                                 \
    X(bytes_received) /* payload of completed receives */                                                              \
    X(operations)     /* operations completed */                                                                       \
    X(wakeups)        /* times a peer had to be woken */                                                               \
    X(syscalls)       /* system calls of the data path */                                                              \
    X(adverts_sent)                                                                                                    \
    X(adverts_received)                                                                                                \
    X(adverts_void)  /* advertisements dropped by the match rule */                                                    \
    X(credit_stalls) /* times a message waited for credit */                                                           \
    X(registrations) /* regions made for one call */

struct exsi_stats {
#define EXSI_STATS_MEMBER(name) atomic_uint_fast64_t name;
    EXSI_STATS_FIELDS(EXSI_STATS_MEMBER)
#undef EXSI_STATS_MEMBER
};

#define exsi_count(stats, field, n)                                                                                    \
    atomic_store_explicit(&(stats)->field,                                                                             \
                          atomic_load_explicit(&(stats)->field, memory_order_relaxed) + (uint64_t)(n),                 \
                          memory_order_relaxed)

/* into += from, field by field. */
void exsi_stats_add(struct exsi_stats *into, const struct exsi_stats *from);

#endif
