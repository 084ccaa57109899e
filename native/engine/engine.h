// SPDX-License-Identifier: MIT OR Apache-2.0
/* The engines that there are.  What an engine is: core/engine_table.h. */
#ifndef EXSI_ENGINE_H
#define EXSI_ENGINE_H

#include "core/engine_table.h"

extern const struct exsi_engine_ops exsi_engine_stream;
extern const struct exsi_engine_ops exsi_engine_seqpacket;
extern const struct exsi_engine_ops exsi_engine_smcr;

#endif
