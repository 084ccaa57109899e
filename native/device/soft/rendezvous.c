// SPDX-License-Identifier: MIT OR Apache-2.0
/* Agreeing on shared memory between two processes of one host: not offered here yet, every
 * connection stays on tcp. */
#include <stdio.h>

#include "device/soft/soft.h"

struct soft_shm *soft_shm_offer(const struct soft_shm_ask *ask, struct soft_block *block, char *reason)
{
    (void)ask;
    (void)block;
    snprintf(reason, EXSI_REASON_MAX, "shared memory is not in this build");
    return NULL;
}

struct soft_shm *soft_shm_answer(const struct soft_shm_ask *ask, const struct soft_block *request,
                                 struct soft_block *reply, char *reason)
{
    (void)request;
    return soft_shm_offer(ask, reply, reason);
}

void soft_shm_confirm(struct soft_shm *shm, const struct soft_block *reply)
{
    (void)shm;
    (void)reply;
}

void soft_shm_wait(struct soft_shm *shm) { (void)shm; }

void soft_shm_drop(struct soft_shm *shm) { (void)shm; }

const char *soft_shm_why_text(uint16_t why)
{
    (void)why;
    return "not said";
}

int soft_shm_part_progress(struct soft_part *part)
{
    (void)part;
    return 0;
}

void soft_shm_part_doorbell(struct soft_part *part, bool asleep) { part->asleep = asleep; }

void soft_shm_part_close(struct soft_part *part) { (void)part; }
