// SPDX-License-Identifier: MIT OR Apache-2.0
/* The sockets of connection management: how they are made and what is set on them. */
#include <fcntl.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include "device/soft/cm.h"

static int set_flag(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value) < 0 ? -errno : 0;
}

int soft_sock_listen(const union exsi_addr *addr, int backlog, const struct exsi_cm_options *opt,
                     union exsi_addr *bound)
{
    socklen_t len = sizeof *bound;
    int rc = 0, fd = socket(addr->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0) return -errno;
    if (opt->reuse_address) rc = set_flag(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (rc == 0 && opt->reuse_port) rc = set_flag(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    if (rc == 0 && addr->sa.sa_family == AF_INET6) rc = set_flag(fd, IPPROTO_IPV6, IPV6_V6ONLY, opt->v6_only);
    if (rc == 0 && bind(fd, &addr->sa, exsi_addr_len(addr)) < 0) rc = -errno;
    if (rc == 0 && listen(fd, backlog) < 0) rc = -errno;
    if (rc == 0 && getsockname(fd, &bound->sa, &len) < 0) rc = -errno;
    if (rc == 0) return fd;
    close(fd);
    return rc;
}

int soft_sock_connect(const union exsi_addr *source, const union exsi_addr *peer, const struct exsi_cm_options *opt)
{
    int rc = 0, fd = socket(peer->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0) return -errno;
    if (source) {
        if (opt->reuse_address) rc = set_flag(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        if (rc == 0 && bind(fd, &source->sa, exsi_addr_len(source)) < 0) rc = -errno;
    }
    soft_sock_tune(fd, opt);
    if (rc == 0 && connect(fd, &peer->sa, exsi_addr_len(peer)) < 0 && errno != EINPROGRESS) rc = -errno;
    if (rc == 0) return fd;
    close(fd);
    return rc;
}

/* Keep-alive asks the peer's kernel, not its program, which may compute for long (ES-API 1.9).  Probes
 * run while nothing is on the way; while something is, path_tcp.c looks after it.  TCP_USER_TIMEOUT is not
 * used: it would also end a connection whose peer's kernel answers, but whose program does not read. */
void soft_sock_tune(int fd, const struct exsi_cm_options *opt)
{
    (void)set_flag(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (!opt->keepalive_ms) return;
    int seconds = (int)((opt->keepalive_ms + 999) / 1000), probes = 3;
    int every = seconds / probes > 0 ? seconds / probes : 1;
    (void)set_flag(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    (void)set_flag(fd, IPPROTO_TCP, TCP_KEEPIDLE, every);
    (void)set_flag(fd, IPPROTO_TCP, TCP_KEEPINTVL, every);
    (void)set_flag(fd, IPPROTO_TCP, TCP_KEEPCNT, probes);
}

int soft_sock_error(int fd)
{
    int error = 0;
    socklen_t len = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0 ? errno : error;
}
