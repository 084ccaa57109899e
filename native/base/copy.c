// SPDX-License-Identifier: MIT OR Apache-2.0
/* Copies that touch a user's memory, and the question whether it is a file that can shrink. */
#include "base/copy.h"

#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIPE_BYTES 65536
#define CALL_BYTES ((size_t)1 << 30)

/* --- copying -------------------------------------------------------------------------------------- */

/* Where a sandbox refuses process_vm_readv: two ordinary calls on a pipe have the same manners. */
static int copy_by_pipe(uint8_t *dst, const uint8_t *src, size_t len)
{
    int fds[2], rc = 0;
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) return -errno;
    while (len > 0 && rc == 0) {
        ssize_t in = write(fds[1], src, len < PIPE_BYTES ? len : PIPE_BYTES);
        if (in <= 0) {
            rc = in < 0 && errno == EINTR ? 0 : -EFAULT;
            continue;
        }
        for (ssize_t out = 0; out < in && rc == 0;) {
            ssize_t n = read(fds[0], dst + out, (size_t)(in - out));
            if (n > 0)
                out += n;
            else if (n == 0 || errno != EINTR)
                rc = -EFAULT;
        }
        src += in;
        dst += in;
        len -= (size_t)in;
    }
    close(fds[0]);
    close(fds[1]);
    return rc;
}

/* The kernel lets every process read its own memory this way, without any ptrace permission. */
static int copy_by_kernel(uint8_t *dst, const uint8_t *src, size_t len)
{
    pid_t self = getpid();
    while (len > 0) {
        size_t part = len < CALL_BYTES ? len : CALL_BYTES;
        struct iovec to = {.iov_base = dst, .iov_len = part};
        struct iovec from = {.iov_base = (void *)(uintptr_t)src, .iov_len = part};
        ssize_t n = process_vm_readv(self, &to, 1, &from, 1, 0);
        if (n < 0 && (errno == ENOSYS || errno == EPERM)) return copy_by_pipe(dst, src, len);
        if (n <= 0) return -EFAULT;
        src += n;
        dst += n;
        len -= (size_t)n;
    }
    return 0;
}

int exsi_copy(void *dst, const void *src, size_t len, bool fragile)
{
    if (fragile) return copy_by_kernel(dst, src, len);
    if (len > 0) memmove(dst, src, len);
    return 0;
}

/* --- which memory is fragile ---------------------------------------------------------------------- */

struct mapping {
    uintptr_t start, end;
    uint64_t inode;
    const char *path; /* of path_len bytes, not terminated */
    size_t path_len;
};

/* Step over one number in base 16 or 10. */
static uint64_t parse_number(const char **at, const char *end, unsigned base)
{
    uint64_t value = 0;
    for (; *at < end; (*at)++) {
        unsigned c = (unsigned char)**at, digit = 99;
        if (c >= '0' && c <= '9') digit = c - '0';
        if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
        if (digit >= base) break;
        value = value * base + digit;
    }
    return value;
}

static void skip_word(const char **at, const char *end)
{
    while (*at < end && **at != ' ') (*at)++;
    while (*at < end && **at == ' ') (*at)++;
}

/* "start-end perms offset dev inode   path" */
static void parse_line(const char *at, const char *end, struct mapping *out)
{
    out->start = (uintptr_t)parse_number(&at, end, 16);
    at++; /* '-' */
    out->end = (uintptr_t)parse_number(&at, end, 16);
    skip_word(&at, end);
    for (int field = 0; field < 3; field++) skip_word(&at, end);
    out->inode = parse_number(&at, end, 10);
    skip_word(&at, end);
    out->path = at;
    out->path_len = at < end ? (size_t)(end - at) : 0;
}

static bool starts_with(const struct mapping *m, const char *prefix)
{
    size_t len = strlen(prefix);
    return m->path_len >= len && memcmp(m->path, prefix, len) == 0;
}

/* Only what certainly cannot shrink is not fragile. */
static bool is_fragile(const struct mapping *m)
{
    if (m->inode == 0 || starts_with(m, "[")) return false;                        /* anonymous memory, heap, stacks */
    if (starts_with(m, "/memfd:exs-")) return false;                               /* our own memory files are sealed */
    if (starts_with(m, "/SYSV") || starts_with(m, "/anon_hugepage")) return false; /* no descriptor to shrink by */
    if (starts_with(m, "/dev/shm/") || starts_with(m, "/dev/hugepages/")) return true;
    return !starts_with(m, "/dev/"); /* /dev/zero (shared anonymous), drivers */
}

/* A cursor through the range: moved along by each mapping, in the ascending order of the list. */
struct range_walk {
    uintptr_t at, end;
    bool fragile;
};

/* True when the answer is known. */
static bool walk_mapping(struct range_walk *w, const struct mapping *m)
{
    if (m->end <= w->at) return false;
    if (m->start > w->at) return true; /* a hole */
    w->fragile = w->fragile || is_fragile(m);
    w->at = m->end;
    return w->at >= w->end;
}

static void walk_maps(struct range_walk *w, int fd)
{
    char buf[8192]; /* a line holds one path, at most 4096 bytes */
    size_t have = 0;
    for (;;) {
        ssize_t n = read(fd, buf + have, sizeof buf - have);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;
        have += (size_t)n;
        const char *line = buf, *newline;
        while ((newline = memchr(line, '\n', (size_t)(buf + have - line)))) {
            struct mapping m;
            parse_line(line, newline, &m);
            if (walk_mapping(w, &m)) return;
            line = newline + 1;
        }
        have = (size_t)(buf + have - line);
        memmove(buf, line, have);
    }
}

int exsi_range_is_fragile(const void *addr, size_t len)
{
    struct range_walk w = {.at = (uintptr_t)addr};
    if (len == 0) return 0;
    if (__builtin_add_overflow(w.at, len, &w.end)) return -EFAULT;
    /* Not /proc/self: that shows nothing once the first thread of the process has ended. */
    int fd = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 1; /* no way to know: take the careful way */
    walk_maps(&w, fd);
    close(fd);
    if (w.at < w.end) return -EFAULT;
    return w.fragile ? 1 : 0;
}
