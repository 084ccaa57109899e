// SPDX-License-Identifier: MIT OR Apache-2.0
/* The log sink: a bounded list of records that somebody else takes out (Python's logging, a C
 * program's printf).  C never calls up; when the sink is full, records are dropped and counted. */
#ifndef EXSI_LOG_H
#define EXSI_LOG_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"

enum exsi_log_level { EXSI_LOG_DEBUG = 10, EXSI_LOG_INFO = 20, EXSI_LOG_WARNING = 30, EXSI_LOG_ERROR = 40 };

#define EXSI_LOG_TEXT    232
#define EXSI_LOG_RECORDS 64

struct exsi_log_record {
    int32_t level;
    uint32_t dropped;         /* records lost just before this one */
    uint64_t socket;          /* handle, or 0 */
    char text[EXSI_LOG_TEXT]; /* NUL-terminated, cut if longer */
};

struct exsi_log {
    pthread_mutex_t lock;
    atomic_int threshold; /* records below it are not kept; EXSI_LOG_WARNING at first */
    uint32_t head, len, dropped;
    struct exsi_log_record ring[EXSI_LOG_RECORDS];
};

void exsi_log_init(struct exsi_log *log);
void exsi_log_fini(struct exsi_log *log);
/* Thread-safe, never blocks for long, never fails. */
void exsi_log(struct exsi_log *log, enum exsi_log_level level, uint64_t socket, const char *fmt, ...) EXSI_PRINTF(4, 5);
/* Take up to max records out; how many. */
int exsi_log_take(struct exsi_log *log, struct exsi_log_record *out, int max);

#endif
