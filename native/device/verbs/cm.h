// SPDX-License-Identifier: MIT OR Apache-2.0
/* Between the files of connection management: cm.c (states, the table), cm_event.c (what librdmacm says),
 * cm_dial.c (what blocks). */
#ifndef EXSI_VERBS_CM_H
#define EXSI_VERBS_CM_H

#include "device/verbs/verbs.h"

#define VERBS_REJECT_MAX 148 /* private data of an InfiniBand REJ */

/* Private data of an event. */
struct verbs_private {
    uint32_t len;
    uint8_t data[EXSI_PRIVATE_MAX];
};

struct verbs_id *verbs_id_new(struct verbs_part *part, const struct exsi_cm_options *opt, void *user);
/* Ends the rdma_cm id, and the memory. */
void verbs_id_free(struct verbs_id *id);
/* What the upper layer destroyed, below too. */
void verbs_id_end(struct verbs_id *id);
void verbs_id_event(struct verbs_id *id, enum exsi_cm_kind kind, const struct verbs_private *private_data);
/* The end of a set-up: FAILED with error (positive) and words.  An id that nobody knows of is freed. */
void verbs_id_fail(struct verbs_id *id, int error, const struct verbs_private *private_data, const char *fmt, ...)
    EXSI_PRINTF(4, 5);
/* The same, in the words that go with an error of the network. */
void verbs_id_unreachable(struct verbs_id *id, int error);

/* iWARP: rdma_connect blocks for the set-up of TCP, and from then on until the peer has answered everything that would
 * end the id or its queue pair blocks: each runs in a short-lived thread of its own. */
EXSI_MUST_CHECK int verbs_dial_start(struct verbs_id *id, const struct rdma_conn_param *param);
/* The kernel said how it went: nothing blocks any more. */
void verbs_dial_over(struct verbs_id *id);
/* Ends the id, and its grave, in a thread; frees them then. */
void verbs_dial_bury(struct verbs_id *id);

#endif
