// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the files of the face share: checks of arguments.  No state. */
#ifndef EXSI_CHECK_H
#define EXSI_CHECK_H

#include "api/api.h"

/* 0 or -EINVAL. */
EXSI_MUST_CHECK int exsi_options_check(const exsi_options *o);

#endif
