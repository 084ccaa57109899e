// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the generated module exs._exs is compiled behind: the face of the core, and the headers that name its constants.
 */
#include "api/api.h"
#include "core/mr.h"
#include "core/op.h"
