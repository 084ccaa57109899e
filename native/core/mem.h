// SPDX-License-Identifier: MIT OR Apache-2.0
/* Memory that exs makes itself: sealed memory files, which a neighbour process may map without having
 * to fear that they shrink.  Owns no state: descriptor and mapping are the caller's. */
#ifndef EXSI_MEM_H
#define EXSI_MEM_H

#include "base/base.h"

/* A memory file of len bytes (rounded up to its pages, all of them present), mapped for writing.  It can
 * neither shrink nor grow; nobody can map it for writing any more unless shared_writable.  huge: with huge
 * pages if they can be had.  -EINVAL len 0, -ENOMEM, or the error of the system call. */
EXSI_MUST_CHECK int exsi_memory_new(size_t len, bool huge, bool shared_writable, int *memfd, void **addr);
/* Unmap it; len as asked for. */
void exsi_memory_unmap(void *addr, size_t len);

#endif
