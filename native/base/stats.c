// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sums of counters. */
#include "base/stats.h"

void exsi_stats_add(struct exsi_stats *into, const struct exsi_stats *from)
{
#define ADD(name) exsi_count(into, name, atomic_load_explicit(&from->name, memory_order_relaxed));
    EXSI_STATS_FIELDS(ADD)
#undef ADD
}
