// SPDX-License-Identifier: MIT OR Apache-2.0
/* The literal ES-API: sockets, from name to close.  A descriptor's core socket is made at the first call
 * that needs it, so that options can be set before, as with the system's sockets. */
#include "esapi/state.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* --- names ------------------------------------------------------------------------------------------- */

int exs_socket(int family, int type, int protocol)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    if (family != AF_INET && family != AF_INET6)
        rc = -EAFNOSUPPORT;
    else if ((kind != SOCK_STREAM && kind != SOCK_SEQPACKET) || protocol != 0)
        rc = -EPROTONOSUPPORT;
    else
        rc = es_add(family, kind, &f);
    if (rc == 0) {
        f->nonblock = type & SOCK_NONBLOCK;
        rc = f->fd;
    }
    es_leave();
    return es_return(rc);
}

static int bind_entry(struct es_fd *f, const struct sockaddr *addr, socklen_t addrlen)
{
    if (!addr || addrlen < sizeof(struct sockaddr_in) || addrlen > sizeof f->bound) return -EINVAL;
    if (addr->sa_family != f->family) return -EAFNOSUPPORT;
    if (f->bound_len || f->sock) return -EINVAL;
    memcpy(&f->bound, addr, addrlen);
    f->bound_len = addrlen;
    return 0;
}

int exs_bind(int fd, const struct sockaddr *addr, socklen_t addrlen)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_find(fd, &f);
    if (rc == 0) rc = bind_entry(f, addr, addrlen);
    es_leave();
    return es_return(rc);
}

int exs_listen(int fd, int backlog)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_find(fd, &f);
    if (rc == 0) rc = es_made(f);
    if (rc == 0) rc = exsi_listen(ctx, f->sock, backlog);
    if (rc == 0) f->listening = true;
    es_leave();
    return es_return(rc);
}

static int get_name(int fd, struct sockaddr *addr, socklen_t *addrlen, bool peer)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    EXSI_TRY(es_enter(&ctx));
    uint32_t len = addrlen ? *addrlen : 0;
    int rc = es_find(fd, &f);
    if (rc == 0 && (!addr || !addrlen)) rc = -EFAULT;
    if (rc == 0 && peer && !f->sock) rc = -ENOTCONN;
    if (rc == 0) rc = es_made(f);
    if (rc == 0) rc = (peer ? exsi_peername : exsi_sockname)(ctx, f->sock, addr, &len);
    es_leave();
    if (rc == 0) *addrlen = len;
    return rc;
}

int exs_getsockname(int fd, struct sockaddr *addr, socklen_t *addrlen)
{
    return es_return(get_name(fd, addr, addrlen, false));
}

int exs_getpeername(int fd, struct sockaddr *addr, socklen_t *addrlen)
{
    return es_return(get_name(fd, addr, addrlen, true));
}

/* --- options ------------------------------------------------------------------------------------------- */

static const char *const path_names[] = {"auto", "tcp", "shm", "shm-vm", "shm-ring"};

static int set_path(struct es_fd *f, const char *name)
{
    for (uint32_t i = 0; i < sizeof path_names / sizeof path_names[0]; i++) {
        if (strcmp(path_names[i], name) != 0) continue;
        f->opt.path = i;
        return 0;
    }
    return -EINVAL;
}

static int set_text(struct es_fd *f, int option, const void *value, socklen_t len)
{
    char text[16];
    if (len == 0 || len > sizeof text) return -EINVAL;
    memcpy(text, value, len);
    if (memchr(text, '\0', len) == NULL) {
        if (len == sizeof text) return -EINVAL;
        text[len] = '\0';
    }
    if (option == EXS_SO_PATH) return set_path(f, text);
    memcpy(f->opt.device, text, sizeof text);
    return 0;
}

static int set_number(struct es_fd *f, int option, int n)
{
    switch (option) {
    case EXS_SO_RING:
        if (n < 65536 || n > 1 << 30) return -EINVAL;
        f->opt.ring_bytes = (uint32_t)n;
        return 0;
    case EXS_SO_PROGRESS:
        if (n != EXS_PROGRESS_INLINE && n != EXS_PROGRESS_THREAD) return -EINVAL;
        f->threaded = n == EXS_PROGRESS_THREAD;
        return 0;
    case EXS_SO_CLOSE_TIMEOUT:
        if (n < 1) return -EINVAL;
        f->opt.close_timeout_ms = (uint32_t)n;
        return 0;
    case EXS_SO_CONNECT_TIMEOUT:
        if (n < 1) return -EINVAL;
        f->opt.connect_timeout_ms = (uint32_t)n;
        return 0;
    case EXS_SO_CRC: f->opt.crc = n != 0; return 0;
    case EXS_SO_STRICT_SIZE: f->opt.strict_size = n != 0; return 0;
    default: return -ENOPROTOOPT;
    }
}

/* What is always so: may be asked, and set to what it is. */
static bool is_fixed(int level, int option)
{
    return (level == SOL_SOCKET && (option == SO_ASYNC_RECV_ORDERED || option == SO_KEEPALIVE)) ||
           (level == IPPROTO_TCP && option == TCP_NODELAY);
}

static uint8_t *switch_of(struct es_fd *f, int level, int option)
{
    if (level == SOL_SOCKET && option == SO_REUSEADDR) return &f->opt.reuse_address;
    if (level == SOL_SOCKET && option == SO_REUSEPORT) return &f->opt.reuse_port;
    if (level == IPPROTO_IPV6 && option == IPV6_V6ONLY) return &f->opt.v6_only;
    return NULL;
}

static int set_linger(struct es_fd *f, const void *value, socklen_t len)
{
    struct linger l;
    if (len != sizeof l) return -EINVAL;
    memcpy(&l, value, sizeof l);
    f->abort_on_close = l.l_onoff && l.l_linger == 0;
    return 0;
}

static int set_option(struct es_fd *f, int level, int option, const void *value, socklen_t len)
{
    int n = 0;
    uint8_t *sw = switch_of(f, level, option);
    if (!value) return -EFAULT;
    if (level == SOL_SOCKET && option == SO_LINGER) return set_linger(f, value, len);
    if (level == SOL_SOCKET && (option == SO_ASYNC_SEND_TIMEOUT || option == SO_ASYNC_RECV_TIMEOUT)) return -EOPNOTSUPP;
    bool late = f->sock != 0;
    if (level == SOL_EXS && (option == EXS_SO_DEVICE || option == EXS_SO_PATH))
        return late ? -EINVAL : set_text(f, option, value, len);
    if (len != sizeof n) return -EINVAL;
    memcpy(&n, value, sizeof n);
    if (is_fixed(level, option)) return n == 1 ? 0 : -EINVAL;
    if (level != SOL_EXS && !sw) return -ENOPROTOOPT;
    if (late) return -EINVAL;
    if (!sw) return set_number(f, option, n);
    *sw = n != 0;
    return 0;
}

int exs_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_find(fd, &f);
    if (rc == 0) rc = set_option(f, level, option, value, len);
    es_leave();
    return es_return(rc);
}

static int give(void *value, socklen_t *len, const void *what, size_t n)
{
    memcpy(value, what, *len < n ? *len : n);
    if (*len > n) *len = (socklen_t)n;
    return 0;
}

static int get_exs(const struct es_fd *f, const exsi_socket_info *info, int option, void *value, socklen_t *len)
{
    int n;
    const char *path = info->path[0] ? info->path : path_names[f->opt.path];
    const char *device = info->device[0] ? info->device : f->opt.device;
    switch (option) {
    case EXS_SO_DEVICE: return give(value, len, device, strlen(device) + 1);
    case EXS_SO_PATH: return give(value, len, path, strlen(path) + 1);
    case EXS_SO_REASON: return give(value, len, info->reason, strlen(info->reason) + 1);
    case EXS_SO_RING: n = (int)f->opt.ring_bytes; break;
    case EXS_SO_PROGRESS: n = f->threaded ? EXS_PROGRESS_THREAD : EXS_PROGRESS_INLINE; break;
    case EXS_SO_CLOSE_TIMEOUT: n = (int)f->opt.close_timeout_ms; break;
    case EXS_SO_CONNECT_TIMEOUT: n = (int)f->opt.connect_timeout_ms; break;
    case EXS_SO_CRC: n = f->opt.crc; break;
    case EXS_SO_STRICT_SIZE: n = f->opt.strict_size; break;
    default: return -ENOPROTOOPT;
    }
    return give(value, len, &n, sizeof n);
}

static int get_option(exsi_ctx *ctx, struct es_fd *f, int level, int option, void *value, socklen_t *len)
{
    exsi_socket_info info = {0};
    const uint8_t *sw = switch_of(f, level, option);
    int n;
    if (!value || !len) return -EFAULT;
    if (f->sock) EXSI_TRY(exsi_socket_query(ctx, f->sock, &info));
    if (level == SOL_EXS) return get_exs(f, &info, option, value, len);
    if (level == SOL_SOCKET && option == SO_LINGER) {
        struct linger l = {.l_onoff = f->abort_on_close};
        return give(value, len, &l, sizeof l);
    }
    if (sw)
        n = *sw;
    else if (is_fixed(level, option))
        n = 1;
    else if (level == SOL_SOCKET && option == SO_TYPE)
        n = f->type;
    else if (level == SOL_SOCKET && option == SO_DOMAIN)
        n = f->family;
    else if (level == SOL_SOCKET && option == SO_ERROR)
        n = info.error;
    else if (level == SOL_SOCKET && option == SO_ACCEPTCONN)
        n = f->listening;
    else if (level == SOL_SOCKET && option == SO_RCVBUF)
        n = (int)f->opt.ring_bytes;
    else
        return -ENOPROTOOPT;
    return give(value, len, &n, sizeof n);
}

int exs_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_find(fd, &f);
    if (rc == 0) rc = get_option(ctx, f, level, option, value, len);
    es_leave();
    return es_return(rc);
}

int exs_fcntl(int fd, int cmd, ...)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    va_list ap;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_find(fd, &f);
    if (rc == 0 && cmd == F_GETFL) {
        rc = O_RDWR | (f->nonblock ? O_NONBLOCK : 0);
    } else if (rc == 0 && cmd == F_SETFL) {
        va_start(ap, cmd);
        int flags = va_arg(ap, int);
        va_end(ap);
        if (flags & ~(O_NONBLOCK | O_ACCMODE))
            rc = -EINVAL;
        else
            f->nonblock = flags & O_NONBLOCK;
    } else if (rc == 0) {
        rc = -EINVAL;
    }
    es_leave();
    return es_return(rc);
}

/* --- one call with one record ---------------------------------------------------------------------------- */

int es_post_begin(struct es_post *p, int fd, exs_qhandle_t qh, const struct es_keep *keep)
{
    struct es_fd *f;
    struct es_record *r;
    *p = (struct es_post){.blocking = !exs_qhandle_valid(qh)};
    EXSI_TRY(es_enter(&p->ctx));
    int rc = es_find(fd, &f);
    if (rc == 0 && !p->blocking) rc = es_queue(qh, &p->eq);
    if (rc == 0) rc = es_made(f);
    if (rc == 0) {
        p->sock = f->sock;
        p->type = f->type;
        p->nonblock = f->nonblock;
        p->file_busy = f->file_busy;
    }
    if (rc == 0 && !p->blocking) {
        rc = es_record(f, keep->type, keep->ah, &r);
        if (rc == 0) {
            r->buffer = keep->buffer;
            r->mh = keep->mh;
            r->count = keep->count;
            p->cookie = r->cookie;
        }
    }
    es_leave();
    if (rc == 0 && p->blocking) rc = es_private(p->ctx, &p->eq);
    return rc;
}

int es_post_end(struct es_post *p, int rc)
{
    exsi_ctx *ctx;
    if (p->blocking) {
        rc = es_await(p->ctx, p->eq, p->sock, rc, &p->posted);
        es_private_put(p->ctx, p->eq);
        return rc < 0 ? rc : -p->posted.event.error;
    }
    if (rc < 0 && es_enter(&ctx) == 0) {
        es_drop(p->cookie);
        es_leave();
    }
    return rc < 0 ? rc : 0;
}

/* --- connect and accept ------------------------------------------------------------------------------------ */

/* Try and fail: the connect goes on without us; poll and SO_ERROR tell how it went. */
static int connect_later(struct es_post *p, int fd, const struct sockaddr *addr, socklen_t addrlen)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    int rc = exsi_connect(p->ctx, p->sock, addr, addrlen, 0, p->eq, NULL);
    if (rc < 0) {
        es_private_put(p->ctx, p->eq);
        return rc;
    }
    EXSI_TRY(es_enter(&ctx));
    if (es_find(fd, &f) == 0) f->limbo = p->eq;
    es_leave();
    return -EINPROGRESS;
}

int exs_connect(int fd, const struct sockaddr *addr, socklen_t addrlen, exs_ahandle_t ah, exs_qhandle_t qh)
{
    struct es_post p;
    int rc = es_post_begin(&p, fd, qh, &(struct es_keep){.type = EXS_EVT_CONNECT, .ah = ah});
    if (rc < 0) return es_return(rc);
    if (p.blocking && p.nonblock) return es_return(connect_later(&p, fd, addr, addrlen));
    rc = exsi_connect(p.ctx, p.sock, addr, addrlen, p.cookie, p.eq, es_post_out(&p));
    return es_return(es_post_end(&p, rc));
}

/* Inside es_enter: a descriptor for an accepted socket; without one the connection is given up. */
static int adopt(exsi_ctx *ctx, int listener, uint64_t sock)
{
    struct es_fd *f, *from = NULL;
    exsi_socket_info info;
    int rc = exsi_socket_query(ctx, sock, &info);
    if (rc == 0) rc = es_add(info.family, info.type, &f);
    if (rc < 0) {
        (void)!exsi_socket_close(ctx, sock, 1, 0, 0, NULL);
        return rc;
    }
    f->sock = sock;
    if (es_find(listener, &from) == 0) {
        f->opt = from->opt;
        f->threaded = from->threaded;
    }
    return f->fd;
}

void es_fill_accept(exsi_ctx *ctx, const struct es_record *r, const exsi_event *ev, exs_event_t *out)
{
    exs_acceptaddr_t *slot = r->buffer;
    int fd = ev->error ? -1 : adopt(ctx, r->fd, ev->value);
    if (fd < 0 && !ev->error) {
        out->exs_evt_errno = -fd;
        fd = -1;
    }
    if (fd >= 0 && slot && slot->exs_acc_addr) {
        uint32_t len = slot->exs_acc_addrlen;
        if (exsi_peername(ctx, ev->value, slot->exs_acc_addr, &len) == 0) slot->exs_acc_addrlen = len;
    }
    out->exs_evt_union.exs_evt_accept = (exs_evt_accept_t){.exs_evt_new_socket = fd, .exs_evt_addr = slot};
}

static int accept_now(int fd, exs_acceptaddr_t *slot)
{
    struct es_post p;
    exsi_ctx *ctx;
    exsi_posted ended;
    exs_event_t out = {0};
    EXSI_TRY(es_post_begin(&p, fd, EXS_QHANDLE_INVALID, NULL));
    int rc = exsi_accept(p.ctx, p.sock, 0, p.eq, &p.posted);
    if (rc == 0 && p.nonblock && exsi_cancel(p.ctx, p.sock, p.posted.op, &ended) == 1) {
        es_private_put(p.ctx, p.eq);
        return -EAGAIN;
    }
    EXSI_TRY(es_post_end(&p, rc));
    EXSI_TRY(es_enter(&ctx));
    es_fill_accept(ctx, &(struct es_record){.fd = fd, .buffer = slot}, &p.posted.event, &out);
    es_leave();
    return out.exs_evt_errno ? -out.exs_evt_errno : out.exs_evt_union.exs_evt_accept.exs_evt_new_socket;
}

static int accept_one(int fd, exs_acceptaddr_t *slot, exs_ahandle_t ah, exs_qhandle_t qh, uint64_t *cookie)
{
    struct es_post p;
    EXSI_TRY(es_post_begin(&p, fd, qh, &(struct es_keep){.type = EXS_EVT_ACCEPT, .ah = ah, .buffer = slot}));
    *cookie = p.cookie;
    return es_post_end(&p, exsi_accept(p.ctx, p.sock, p.cookie, p.eq, NULL));
}

int exs_accept(int fd, exs_acceptaddr_t *addr, int n, int flags, exs_ahandle_t ah, exs_qhandle_t qh)
{
    uint64_t cookie;
    if (flags != 0 || n < 0 || (n > 1 && !addr)) return es_return(-EINVAL);
    if (!exs_qhandle_valid(qh)) return es_return(n > 1 ? -EINVAL : accept_now(fd, addr));
    int rc = accept_one(fd, addr, ah, qh, &cookie);
    /* A queue that takes fewer than n leaves fewer armed: the caller sees that by the events. */
    for (int i = 1; i < n && rc == 0; i++)
        if (accept_one(fd, addr + i, ah, qh, &cookie) < 0) break;
    return es_return(rc);
}

/* --- poll ---------------------------------------------------------------------------------------------------- */

_Static_assert(EXS_POLLIN == EXSI_OPF_POLL_IN && EXS_POLLOUT == EXSI_OPF_POLL_OUT, "passed through");

/* Inside es_enter: what is ready now; how many sockets. */
static int look(exsi_ctx *ctx, exs_pollfd_t *fds, int nfds, int first, int first_bits)
{
    int ready = 0;
    for (int i = 0; i < nfds; i++) {
        exsi_socket_info info = {0};
        struct es_fd *f;
        int bits = i == first ? first_bits : 0;
        if (es_find(fds[i].exs_pfd_fd, &f) == 0 && f->sock && exsi_socket_query(ctx, f->sock, &info) == 0)
            bits |= (info.readable ? EXS_POLLIN : 0) | (info.writable ? EXS_POLLOUT : 0);
        fds[i].exs_pfd_revents = (short)(bits & fds[i].exs_pfd_events);
        ready += fds[i].exs_pfd_revents != 0;
    }
    return ready;
}

void es_fill_poll(exsi_ctx *ctx, const struct es_record *r, const exsi_event *ev, exs_event_t *out)
{
    exs_pollfd_t *fds = r->buffer;
    int ready = ev->error ? 0 : look(ctx, fds, r->count, (int)ev->extra, (int)ev->value);
    out->exs_evt_union.exs_evt_poll = (exs_evt_poll_t){fds, r->count, ready};
}

struct poll_set {
    uint64_t *socks;
    uint32_t *flags;
};

static int poll_sockets(const exs_pollfd_t *fds, int nfds, struct poll_set *set)
{
    exsi_ctx *ctx;
    EXSI_TRY(es_enter(&ctx));
    int rc = 0;
    for (int i = 0; i < nfds && rc == 0; i++) {
        struct es_fd *f;
        rc = es_find(fds[i].exs_pfd_fd, &f);
        if (rc == 0) rc = es_made(f);
        if (rc == 0) {
            set->socks[i] = f->sock;
            set->flags[i] = (uint16_t)fds[i].exs_pfd_events;
        }
    }
    es_leave();
    return rc;
}

static int poll_posted(struct es_post *p, exs_pollfd_t *fds, int nfds, const struct poll_set *set)
{
    exsi_ctx *ctx;
    int rc = exsi_poll_many(p->ctx, set->socks, set->flags, nfds, p->cookie, p->eq, es_post_out(p));
    bool blocking = p->blocking;
    rc = es_post_end(p, rc);
    if (rc < 0 || !blocking) return rc;
    EXSI_TRY(es_enter(&ctx));
    rc = look(ctx, fds, nfds, (int)p->posted.event.extra, (int)p->posted.event.value);
    es_leave();
    return rc;
}

int exs_poll(exs_pollfd_t *fds, int nfds, exs_ahandle_t ah, exs_qhandle_t qh)
{
    struct es_post p;
    if (!fds || nfds < 1) return es_return(-EINVAL);
    struct poll_set set = {calloc((size_t)nfds, sizeof(uint64_t)), calloc((size_t)nfds, sizeof(uint32_t))};
    int rc = set.socks && set.flags ? poll_sockets(fds, nfds, &set) : -ENOMEM;
    if (rc == 0) {
        struct es_keep keep = {.type = EXS_EVT_POLL, .ah = ah, .buffer = fds, .count = nfds};
        rc = es_post_begin(&p, fds[0].exs_pfd_fd, qh, &keep);
    }
    if (rc == 0) rc = poll_posted(&p, fds, nfds, &set);
    free(set.socks);
    free(set.flags);
    return es_return(rc);
}

/* --- cancel, shutdown, close ------------------------------------------------------------------------------------- */

/* Inside es_enter. */
static int cancel_record(exsi_ctx *ctx, const struct es_record *r)
{
    struct es_fd *f;
    if (r->file) {
        es_file_cancel(r->file);
        return 1;
    }
    if (es_find(r->fd, &f) < 0) return 0;
    int n = exsi_cancel_match(ctx, f->sock, 1, r->cookie);
    return n > 0 ? n : 0;
}

int exs_cancel(int fd, exs_ahandle_t ah, int caf)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    if (!caf || (caf & ~(EXS_CAF_FILDES | EXS_CAF_AHANDLE))) return es_return(-EINVAL);
    int n = 0, rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    if (caf & EXS_CAF_FILDES) rc = es_find(fd, &f);
    for (uint32_t i = 0; rc == 0 && i < es_records(); i++) {
        const struct es_record *r = es_record_slot(i);
        if (!r || ((caf & EXS_CAF_FILDES) && r->fd != fd) || ((caf & EXS_CAF_AHANDLE) && r->ah != ah)) continue;
        n += cancel_record(ctx, r);
    }
    es_leave();
    return es_return(rc < 0 ? rc : n);
}

int exs_shutdown(int fd, int how, exs_ahandle_t ah, exs_qhandle_t qh)
{
    struct es_post p;
    int rc = es_post_begin(&p, fd, qh, &(struct es_keep){.type = EXS_EVT_SHUTDOWN, .ah = ah});
    if (rc < 0) return es_return(rc);
    rc = exsi_shutdown(p.ctx, p.sock, how, p.cookie, p.eq, es_post_out(&p));
    return es_return(es_post_end(&p, rc));
}

int exs_close(int fd, exs_ahandle_t ah, exs_qhandle_t qh)
{
    struct es_post p;
    struct es_fd *f;
    int rc = es_post_begin(&p, fd, qh, &(struct es_keep){.type = EXS_EVT_CLOSE, .ah = ah});
    if (rc < 0) return es_return(rc);
    rc = es_closing(fd, &f);
    if (rc == 0) {
        rc = exsi_socket_close(p.ctx, p.sock, f->abort_on_close, p.cookie, p.eq, es_post_out(&p));
        es_closed(p.ctx, f, rc >= 0);
    }
    return es_return(es_post_end(&p, rc));
}
