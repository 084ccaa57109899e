// SPDX-License-Identifier: MIT OR Apache-2.0
/* Copies that touch a user's memory.
 * Memory that a program maps from a file can shrink at any moment, and then a plain load is SIGBUS:
 * such memory is touched by a system call only, which answers -EFAULT instead. */
#ifndef EXSI_COPY_H
#define EXSI_COPY_H

#include "base/base.h"

/* Copy len bytes.  fragile: src or dst may be file-backed, go through the kernel.
 * 0, or -EFAULT with dst undefined (never a signal when fragile). */
EXSI_MUST_CHECK int exsi_copy(void *dst, const void *src, size_t len, bool fragile);

/* 1 if any page of the range is a mapping of a file that can shrink under us, 0 if not, or
 * -EFAULT if part of it is not mapped.  Memory files that are sealed against shrinking do not count. */
EXSI_MUST_CHECK int exsi_range_is_fragile(const void *addr, size_t len);

#endif
