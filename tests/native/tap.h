// SPDX-License-Identifier: MIT OR Apache-2.0
/* A TAP producer in one header: ok(condition, "name"); ends with return tap_done(). */
#ifndef TAP_H
#define TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int tap_count, tap_failed;

__attribute__((format(printf, 3, 4), unused)) static bool tap_ok(bool passed, const char *where, const char *fmt, ...)
{
    va_list ap;
    printf("%s %d - ", passed ? "ok" : "not ok", ++tap_count);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    if (!passed) {
        tap_failed++;
        printf("# failed at %s\n", where);
    }
    fflush(stdout);
    return passed;
}

#define TAP_STR_(x)   #x
#define TAP_STR(x)    TAP_STR_(x)
#define ok(cond, ...) tap_ok((cond), __FILE__ ":" TAP_STR(__LINE__), __VA_ARGS__)

/* For steps without which the rest makes no sense. */
#define must(cond)                                                                                                     \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            printf("Bail out! %s:%d: %s\n", __FILE__, __LINE__, #cond);                                                \
            fflush(stdout);                                                                                            \
            exit(99);                                                                                                  \
        }                                                                                                              \
    } while (0)

__attribute__((unused)) static int tap_done(void)
{
    printf("1..%d\n", tap_count);
    return tap_failed ? 1 : 0;
}

#endif
