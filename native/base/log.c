// SPDX-License-Identifier: MIT OR Apache-2.0
/* The ring of log records.  The oldest records stay and new ones are dropped when it is full: the
 * first thing that went wrong says more than the hundredth. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void exsi_log_init(struct exsi_log *log)
{
    memset(log, 0, sizeof *log);
    pthread_mutex_init(&log->lock, NULL);
    atomic_init(&log->threshold, EXSI_LOG_WARNING);
}

void exsi_log_fini(struct exsi_log *log)
{
    pthread_mutex_destroy(&log->lock);
}

void exsi_log(struct exsi_log *log, enum exsi_log_level level, uint64_t socket, const char *fmt, ...)
{
    if ((int)level < atomic_load_explicit(&log->threshold, memory_order_relaxed)) return;

    /* Formatted outside of the lock, so that nobody waits for it. */
    char text[EXSI_LOG_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);

    pthread_mutex_lock(&log->lock);
    if (log->len == EXSI_LOG_RECORDS) {
        log->dropped++;
    } else {
        struct exsi_log_record *rec = &log->ring[(log->head + log->len++) % EXSI_LOG_RECORDS];
        rec->level = (int32_t)level;
        rec->dropped = log->dropped;
        rec->socket = socket;
        memcpy(rec->text, text, sizeof text);
        log->dropped = 0;
    }
    pthread_mutex_unlock(&log->lock);
}

int exsi_log_take(struct exsi_log *log, struct exsi_log_record *out, int max)
{
    int n = 0;
    pthread_mutex_lock(&log->lock);
    while (n < max && log->len > 0) {
        out[n++] = log->ring[log->head];
        log->head = (log->head + 1) % EXSI_LOG_RECORDS;
        log->len--;
    }
    pthread_mutex_unlock(&log->lock);
    return n;
}
