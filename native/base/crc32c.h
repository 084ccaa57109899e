// SPDX-License-Identifier: MIT OR Apache-2.0
/* CRC32C (Castagnoli), as MPA uses it: by the processor's instruction where it has one. */
#ifndef EXSI_CRC32C_H
#define EXSI_CRC32C_H

#include "base/base.h"

/* Start with crc = 0; feed piece by piece; the result is the final, inverted value. */
uint32_t exsi_crc32c(uint32_t crc, const void *data, size_t len);

/* The table version, for tests to hold the fast one against. */
uint32_t exsi_crc32c_soft(uint32_t crc, const void *data, size_t len);

#endif
