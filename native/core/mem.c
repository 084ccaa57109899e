// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sealed memory files. */
#include "core/mem.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Newer than some headers that we are built with. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define LARGE     ((size_t)64 << 20) /* from here on, ask whether there is so much */

static size_t round_up(size_t len, size_t page)
{
    return (len + page - 1) & ~(page - 1);
}

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Kernels before 6.3 do not know MFD_NOEXEC_SEAL; later ones want to be told. */
static int create_file(unsigned flags)
{
    int fd = memfd_create("exs-region", flags | MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create("exs-region", flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd < 0 ? -errno : fd;
}

/* Bytes that could be had without killing anybody; SIZE_MAX if the system does not say. */
static size_t available(void)
{
    char text[256];
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return SIZE_MAX;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return SIZE_MAX;
    text[got] = '\0';
    const char *at = strstr(text, "MemAvailable:");
    return at ? (size_t)strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024 : SIZE_MAX;
}

/* Give the file its size and its pages now: a page that cannot be had later is SIGBUS. */
static int fill_file(int fd, size_t size)
{
    /* Filling a file with more than there is does not fail: it calls the out-of-memory killer. */
    if (size >= LARGE && size > available()) return -ENOMEM;
    if (ftruncate(fd, (off_t)size) < 0) return errno == EFBIG || errno == EINVAL ? -ENOMEM : -errno;
    int rc;
    do {
        rc = fallocate(fd, 0, 0, (off_t)size) < 0 ? errno : 0;
    } while (rc == EINTR);
    return rc == ENOSPC ? -ENOMEM : -rc;
}

static int map_file(int fd, size_t size, bool shared_writable, void **addr)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return -errno;
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (shared_writable ? 0 : F_SEAL_FUTURE_WRITE);
    if (fcntl(fd, F_ADD_SEALS, seals) < 0) {
        int rc = -errno;
        munmap(at, size);
        return rc;
    }
    *addr = at;
    return 0;
}

static int try_memory(unsigned flags, size_t size, bool shared_writable, int *memfd, void **addr)
{
    int fd = create_file(flags);
    EXSI_TRY(fd);
    int rc = fill_file(fd, size);
    if (rc == 0) rc = map_file(fd, size, shared_writable, addr);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    *memfd = fd;
    return 0;
}

int exsi_memory_new(size_t len, bool huge, bool shared_writable, int *memfd, void **addr)
{
    if (len == 0) return -EINVAL;
    if (len > PTRDIFF_MAX - HUGE_PAGE) return -ENOMEM;
    /* Few hosts keep a pool of huge pages; where there is none, ask for transparent ones. */
    if (huge && len >= HUGE_PAGE &&
        try_memory(MFD_HUGETLB | MFD_HUGE_2MB, round_up(len, HUGE_PAGE), shared_writable, memfd, addr) == 0)
        return 0;
    size_t size = round_up(len, page_size());
    EXSI_TRY(try_memory(0, size, shared_writable, memfd, addr));
    if (huge) (void)madvise(*addr, size, MADV_HUGEPAGE); /* a wish only */
    return 0;
}

void exsi_memory_unmap(void *addr, size_t len)
{
    /* A mapping of huge pages refuses to be cut at a small one. */
    if (munmap(addr, round_up(len, page_size())) < 0) munmap(addr, round_up(len, HUGE_PAGE));
}
