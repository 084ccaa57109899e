// SPDX-License-Identifier: MIT OR Apache-2.0
/* A pair of parts of the soft device (device_pair.h), with its scripted faults at hand. */
#ifndef SOFT_PAIR_H
#define SOFT_PAIR_H

#include "device/soft/soft.h"

#define PAIR_OPS          (&exsi_soft_ops)
#define PAIR_OWN          struct soft_part *soft;
#define PAIR_SIDE_OPEN(s) ((s)->soft = exsi_container_of((s)->part, struct soft_part, part))
#define PAIR_SIDE_END(s)  memset(&(s)->soft->fault, 0, sizeof(s)->soft->fault)

#include "device_pair.h"

#endif
