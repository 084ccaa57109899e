// SPDX-License-Identifier: MIT OR Apache-2.0
/* What every file of the core may rely on: attributes, small macros, the clock.
 * Owns no state.  Nothing here allocates, blocks or fails. */
#ifndef EXSI_BASE_H
#define EXSI_BASE_H

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Every fallible function returns 0 (or a count) or -errno, and its result must be looked at. */
#define EXSI_MUST_CHECK        __attribute__((warn_unused_result))
#define EXSI_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define EXSI_CACHE_LINE        64

/* The one control-flow macro of the house: leave with the error of EXPR, if it has one. */
#define EXSI_TRY(expr)                                                                                                 \
    do {                                                                                                               \
        int exsi_try_rc_ = (expr);                                                                                     \
        if (exsi_try_rc_ < 0) return exsi_try_rc_;                                                                     \
    } while (0)

#define exsi_container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

static inline uint64_t exsi_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t exsi_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
static inline uint32_t exsi_min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* True if [off, off + len) lies inside [0, total), without overflow for any input. */
static inline bool exsi_range_inside(uint64_t off, uint64_t len, uint64_t total)
{
    return off <= total && len <= total - off;
}

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline uint64_t exsi_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Tell the processor that this is a spin loop. */
static inline void exsi_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Fill with bytes of the kernel's generator; never fails on the kernels we support. */
void exsi_random(void *buf, size_t len);

#endif
