// SPDX-License-Identifier: MIT OR Apache-2.0
/* Memory files between two processes, and the messages that carry them.
 *
 * A mapped file that is made shorter turns the next load into SIGBUS: a crash that the peer decides
 * on.  So nothing is mapped unless it can neither shrink nor lose pages in another way: sealed
 * against both, of a file system that seals protect, and with its pages there.  A hole costs nothing
 * but memory in what both sides may write; in what is mapped read-only it is refused, and the seal
 * against future writes keeps holes from being made later. */
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "device/soft/shm.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static int memfd_open(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING); /* before 6.3 */
    return fd < 0 ? -errno : fd;
}

int shm_memfd_new(const char *name, uint64_t bytes, bool future_write, int *fd_out, void **map_out)
{
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | (future_write ? F_SEAL_FUTURE_WRITE : 0);
    int fd = memfd_open(name);
    if (fd < 0) return fd;
    int rc = posix_fallocate(fd, 0, (off_t)bytes);
    if (rc) {
        close(fd);
        return -rc;
    }
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        rc = -errno;
        close(fd);
        return rc;
    }
    if (fcntl(fd, F_ADD_SEALS, seals) < 0) {
        rc = -errno;
        munmap(map, bytes);
        close(fd);
        return rc;
    }
    *fd_out = fd;
    *map_out = map;
    return 0;
}

int shm_memfd_map(int fd, enum shm_need need, uint64_t offset, uint64_t bytes, struct shm_map *out)
{
    int want = F_SEAL_SHRINK | F_SEAL_GROW | (need == SHM_NEED_READ_ONLY ? F_SEAL_FUTURE_WRITE : 0);
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) return -EPROTO; /* no memory file at all */
    if (need == SHM_NEED_READ_ONLY && (seals & F_SEAL_WRITE)) seals |= F_SEAL_FUTURE_WRITE;
    if ((seals & want) != want) return -EPROTO;
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0) return -errno;
    /* Huge pages come from a pool that can run out under a writer who may make holes. */
    if (fs.f_type != TMPFS_MAGIC && (need != SHM_NEED_READ_ONLY || fs.f_type != HUGETLBFS_MAGIC)) return -EPROTO;
    if (st.st_size < 0 || !bytes || !exsi_range_inside(offset, bytes, (uint64_t)st.st_size)) return -EPROTO;
    if (need == SHM_NEED_READ_ONLY && (uint64_t)st.st_blocks * 512 < (uint64_t)st.st_size) return -EPROTO;
    if (offset % (uint64_t)fs.f_bsize) return -EPROTO;
    int prot = need == SHM_NEED_READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE;
    void *map = mmap(NULL, bytes, prot, MAP_SHARED, fd, (off_t)offset);
    if (map == MAP_FAILED) return -errno;
    /* Huge pages are unmapped whole or not at all. */
    uint64_t page = (uint64_t)fs.f_bsize;
    *out = (struct shm_map){map, (bytes + page - 1) / page * page};
    return 0;
}

void shm_unmap(struct shm_map *map)
{
    if (map->base) munmap(map->base, map->bytes);
    *map = (struct shm_map){0};
}

void shm_close_fds(int *fds, int n)
{
    for (int i = 0; i < n; i++) {
        if (fds[i] >= 0) close(fds[i]);
        fds[i] = -1;
    }
}

union rights {
    char space[CMSG_SPACE(SHM_MAX_FDS * sizeof(int))];
    struct cmsghdr align;
};

int shm_send_msg(int unix_fd, const struct shm_msg *m, const int *fds, int n_fds)
{
    union rights ctl;
    struct iovec iov = {(void *)(uintptr_t)m, sizeof *m};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n_fds > 0) {
        memset(&ctl, 0, sizeof ctl);
        msg.msg_control = &ctl;
        msg.msg_controllen = CMSG_SPACE((size_t)n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)n_fds * sizeof(int));
    }
    ssize_t n;
    do n = sendmsg(unix_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* Descriptors of a received message; whatever is more than we have room for the kernel has closed. */
static int take_fds(struct msghdr *msg, int fds[SHM_MAX_FDS], int *n_fds)
{
    int rc = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (*n_fds < SHM_MAX_FDS) {
                fds[(*n_fds)++] = fd;
            } else {
                close(fd);
                rc = -EPROTO;
            }
        }
    }
    /* Cut short: more than any message brings, or no room in the process's table. */
    if (msg->msg_flags & MSG_CTRUNC) return *n_fds < SHM_MAX_FDS ? -EMFILE : -EPROTO;
    return rc;
}

int shm_peek_fds(int unix_fd)
{
    uint8_t byte;
    struct iovec iov = {&byte, sizeof byte};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;
    do n = recvmsg(unix_fd, &msg, MSG_DONTWAIT | MSG_PEEK);
    while (n < 0 && errno == EINTR);
    if (n < 0) return -errno;
    return (msg.msg_flags & MSG_CTRUNC) != 0;
}

int shm_recv_msg(int unix_fd, struct shm_msg *m, int fds[SHM_MAX_FDS], int *n_fds)
{
    union rights ctl;
    struct iovec iov = {m, sizeof *m};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof ctl};
    ssize_t n;
    *n_fds = 0;
    do n = recvmsg(unix_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0) return -errno;
    int rc = take_fds(&msg, fds, n_fds);
    if (!rc && n == 0 && *n_fds == 0) return 0;
    if (rc || (size_t)n != sizeof *m || (msg.msg_flags & MSG_TRUNC) || m->magic != SHM_MAGIC ||
        m->version != SHM_VERSION) {
        shm_close_fds(fds, *n_fds);
        *n_fds = 0;
        return rc == -EMFILE ? rc : -EPROTO;
    }
    return (int)n;
}
