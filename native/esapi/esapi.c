// SPDX-License-Identifier: MIT OR Apache-2.0
/* The literal ES-API (es-api.md): the process's one context, memory and event queues.
 *
 * This is the one place of the library with process-wide state, because the standard's calls carry no
 * context.  After fork the child finds its parent's state dead (EINVAL) until it calls exs_init. */
#include "esapi/state.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define POOL_MAX      16
#define PRIVATE_DEPTH 4 /* sendfile has two in flight, and its shutdown */

struct queue_entry {
    uint64_t eq;
    int wait;
};

static struct {
    pthread_mutex_t lock;
    _Atomic(exsi_ctx *) ctx;
    uint64_t group;
    struct es_fd **fds; /* index: descriptor number */
    int n_fds;
    struct exsi_slab records;
    struct queue_entry *queues; /* index: slot of the core's handle */
    uint32_t n_queues;
    uint64_t pool[POOL_MAX]; /* private queues that nobody uses */
    int n_pool;
} es = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- start ------------------------------------------------------------------------------------------ */

/* The parent's tables name things that are dead here.  Its memory is left alone: other threads may have
 * been in the middle of it when the process forked.  ES-API 1.4 */
static void forget_parent(void)
{
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    for (int i = 0; i < es.n_fds; i++)
        if (es.fds[i]) close(i);
    memcpy(&es.lock, &fresh, sizeof fresh);
    atomic_store(&es.ctx, NULL);
    es.fds = NULL;
    es.queues = NULL;
    es.n_fds = es.n_pool = 0;
    es.n_queues = 0;
}

static int start(void)
{
    exsi_ctx *ctx;
    EXSI_TRY(exsi_open(&ctx));
    int rc = exsi_group_new(ctx, 0, &es.group);
    if (rc < 0) {
        exsi_close(ctx);
        return rc;
    }
    exsi_slab_init(&es.records, EXSI_HANDLE_OP, sizeof(struct es_record));
    /* Release pairs with es_enter: who sees the context sees the tables. */
    atomic_store_explicit(&es.ctx, ctx, memory_order_release);
    return 0;
}

int exs_init(int version)
{
    if (version != EXS_VERSION1) return es_return(-EINVAL);
    exsi_ctx *ctx = atomic_load(&es.ctx);
    if (ctx && exsi_forked(ctx)) forget_parent();
    pthread_mutex_lock(&es.lock);
    int rc = atomic_load(&es.ctx) ? 0 : start();
    pthread_mutex_unlock(&es.lock);
    return es_return(rc);
}

int es_enter(exsi_ctx **out)
{
    exsi_ctx *ctx = atomic_load_explicit(&es.ctx, memory_order_acquire);
    if (!ctx || exsi_forked(ctx)) return -EINVAL;
    pthread_mutex_lock(&es.lock);
    *out = ctx;
    return 0;
}

void es_leave(void)
{
    pthread_mutex_unlock(&es.lock);
}

/* --- descriptors ----------------------------------------------------------------------------------- */

int es_find(int fd, struct es_fd **out)
{
    struct es_fd *f = fd >= 0 && fd < es.n_fds ? es.fds[fd] : NULL;
    if (f && f->closing) return -EBADF;
    if (!f) return fcntl(fd, F_GETFD) < 0 ? -EBADF : -ENOTSOCK;
    *out = f;
    return 0;
}

static int grow_fds(int fd)
{
    int n = es.n_fds ? es.n_fds : 64;
    while (n <= fd) n *= 2;
    if (n == es.n_fds) return 0;
    struct es_fd **fds = realloc(es.fds, (size_t)n * sizeof *fds);
    if (!fds) return -ENOMEM;
    memset(fds + es.n_fds, 0, (size_t)(n - es.n_fds) * sizeof *fds);
    es.fds = fds;
    es.n_fds = n;
    return 0;
}

int es_add(int family, int type, struct es_fd **out)
{
    struct es_fd *f = calloc(1, sizeof *f);
    if (!f) return -ENOMEM;
    /* A descriptor of the system stands behind the number, so that it never collides with another. */
    int rc = 0, fd = eventfd(0, EFD_CLOEXEC);
    if (fd < 0) rc = -errno;
    if (rc == 0) rc = grow_fds(fd);
    if (rc < 0) {
        if (fd >= 0) close(fd);
        free(f);
        return rc;
    }
    f->fd = fd;
    f->family = family;
    f->type = type;
    exsi_options_default(&f->opt);
    f->opt.reuse_address = 1;
    es.fds[fd] = f;
    *out = f;
    return 0;
}

static int group_for(exsi_ctx *ctx, const struct es_fd *f, uint64_t *group)
{
    *group = es.group;
    return f->threaded ? exsi_group_new(ctx, 1, group) : 0;
}

int es_made(struct es_fd *f)
{
    exsi_ctx *ctx = atomic_load_explicit(&es.ctx, memory_order_relaxed);
    uint64_t group, sock;
    if (f->sock) return 0;
    EXSI_TRY(group_for(ctx, f, &group));
    EXSI_TRY(exsi_socket_new(ctx, group, f->family, f->type, &f->opt, &sock));
    int rc = f->bound_len ? exsi_bind(ctx, sock, &f->bound, f->bound_len) : 0;
    if (rc < 0) {
        (void)!exsi_socket_close(ctx, sock, 1, 0, 0, NULL);
        return rc;
    }
    f->sock = sock;
    return 0;
}

static void release(struct es_fd *f)
{
    if (!f->closing || f->records > 0) return;
    es.fds[f->fd] = NULL;
    close(f->fd);
    free(f);
}

void es_forget(struct es_fd *f)
{
    f->closing = true;
    release(f);
}

int es_closing(int fd, struct es_fd **out)
{
    exsi_ctx *ctx;
    EXSI_TRY(es_enter(&ctx));
    int rc = es_find(fd, out);
    if (rc == 0) {
        (*out)->closing = true;
        (*out)->records++; /* keeps the entry until es_closed */
    }
    es_leave();
    return rc;
}

void es_closed(exsi_ctx *ctx, struct es_fd *f, bool done)
{
    exsi_ctx *same;
    if (es_enter(&same) < 0) return;
    uint64_t limbo = done ? f->limbo : 0;
    f->closing = done;
    f->records--;
    release(f);
    es_leave();
    /* The connect that nobody waited for ended with the socket. */
    if (limbo) (void)!exsi_eq_free(ctx, limbo);
}

/* --- records ---------------------------------------------------------------------------------------- */

int es_record(struct es_fd *f, int type, exs_ahandle_t ah, struct es_record **out)
{
    uint64_t cookie;
    struct es_record *r = exsi_slab_take(&es.records, &cookie);
    if (!r) return -ENOMEM;
    r->cookie = cookie;
    r->type = type;
    r->fd = f->fd;
    r->ah = ah;
    f->records++;
    *out = r;
    return 0;
}

struct es_record *es_record_at(uint64_t cookie)
{
    return exsi_slab_find(&es.records, cookie);
}

struct es_record *es_record_slot(uint32_t i)
{
    return exsi_slab_at(&es.records, i, NULL);
}

uint32_t es_records(void)
{
    return es.records.cap;
}

void es_drop(uint64_t cookie)
{
    struct es_record *r = es_record_at(cookie);
    struct es_fd *f = es.fds[r->fd];
    exsi_slab_give(&es.records, cookie);
    f->records--;
    release(f);
}

/* --- memory ------------------------------------------------------------------------------------------ */

int es_memory(exs_mhandle_t mh, uint64_t *mr)
{
    if (!exs_mhandle_valid(mh)) return -EINVAL;
    *mr = mh.exs_h == EXS_MHANDLE_UNREGISTERED.exs_h ? 0 : mh.exs_h;
    return 0;
}

_Static_assert(EXS_ACCESS_READ == EXSI_MR_READ && EXS_ACCESS_WRITE == EXSI_MR_WRITE, "passed through");

static int live_context(exsi_ctx **ctx)
{
    EXSI_TRY(es_enter(ctx));
    es_leave();
    return 0;
}

exs_mhandle_t exs_mregister(void *addr, size_t len, int flags)
{
    exsi_ctx *ctx;
    uint64_t mr = 0;
    const int access = EXS_ACCESS_READ | EXS_ACCESS_WRITE;
    int rc = live_context(&ctx);
    if (rc == 0 && (flags & ~(access | EXS_MRF_SHARED))) rc = -EINVAL;
    /* Registering may pin pages: without the lock. */
    if (rc == 0) rc = exsi_mem_register(ctx, addr, len, (uint32_t)(flags & access), &mr);
    (void)es_return(rc);
    return (exs_mhandle_t){rc < 0 ? 0 : mr};
}

int exs_mderegister(exs_mhandle_t mh)
{
    exsi_ctx *ctx;
    uint64_t mr;
    int rc = live_context(&ctx);
    if (rc == 0) rc = es_memory(mh, &mr);
    if (rc == 0) rc = exsi_mem_close(ctx, mr);
    return es_return(rc == -EBADF ? -EINVAL : rc);
}

/* --- queues ------------------------------------------------------------------------------------------ */

static struct queue_entry *queue_at(uint64_t eq)
{
    uint32_t slot = (uint32_t)eq;
    return slot < es.n_queues && es.queues[slot].eq == eq && eq ? &es.queues[slot] : NULL;
}

int es_queue(exs_qhandle_t qh, uint64_t *eq)
{
    if (!queue_at(qh.exs_h)) return -EINVAL;
    *eq = qh.exs_h;
    return 0;
}

static int add_queue(uint64_t eq)
{
    uint32_t slot = (uint32_t)eq, n = es.n_queues ? es.n_queues : 16;
    while (n <= slot) n *= 2;
    if (n > es.n_queues) {
        struct queue_entry *queues = realloc(es.queues, n * sizeof *queues);
        if (!queues) return -ENOMEM;
        memset(queues + es.n_queues, 0, (n - es.n_queues) * sizeof *queues);
        es.queues = queues;
        es.n_queues = n;
    }
    es.queues[slot] = (struct queue_entry){.eq = eq, .wait = EXS_WAIT_ADAPTIVE};
    return 0;
}

exs_qhandle_t exs_qcreate(int depth)
{
    exsi_ctx *ctx;
    uint64_t eq = 0;
    int rc = es_enter(&ctx);
    if (rc == 0) {
        rc = depth < 1 ? -EINVAL : exsi_eq_new(ctx, es.group, (uint32_t)depth, &eq);
        if (rc == 0) {
            rc = add_queue(eq);
            if (rc < 0) (void)!exsi_eq_free(ctx, eq);
        }
        es_leave();
    }
    (void)es_return(rc);
    return (exs_qhandle_t){rc < 0 ? 0 : eq};
}

/* The calls behind events that nobody will fetch. */
static void drop_undelivered(exsi_ctx *ctx, uint64_t eq)
{
    exsi_event ev[16];
    int n;
    while ((n = exsi_eq_poll(ctx, eq, ev, 16)) > 0)
        for (int i = 0; i < n; i++) {
            exs_event_t ignored;
            es_fill_event(ctx, &ev[i], &ignored);
            if (ignored.exs_evt_type == EXS_EVT_ACCEPT && ignored.exs_evt_errno == 0) {
                int fd = ignored.exs_evt_union.exs_evt_accept.exs_evt_new_socket;
                (void)!exsi_socket_close(ctx, es.fds[fd]->sock, 1, 0, 0, NULL);
                es_forget(es.fds[fd]);
            }
        }
}

int exs_qdelete(exs_qhandle_t qh)
{
    exsi_ctx *ctx;
    uint64_t eq;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_queue(qh, &eq);
    if (rc == 0) rc = exsi_eq_in_flight(ctx, eq);
    if (rc > 0) rc = -EBUSY;
    if (rc == 0) {
        drop_undelivered(ctx, eq);
        rc = exsi_eq_free(ctx, eq);
    }
    if (rc == 0) queue_at(eq)->eq = 0;
    es_leave();
    return es_return(rc);
}

static int wait_mode(int wait)
{
    switch (wait) {
    case EXS_WAIT_NOTIFY: return EXSI_WAIT_NOTIFY;
    case EXS_WAIT_BUSY_POLL: return EXSI_WAIT_BUSY;
    default: return EXSI_WAIT_ADAPTIVE;
    }
}

/* ES-API 1.6 */
static int check_dequeue(exsi_ctx *ctx, exs_qhandle_t qh, int cnt, const struct timeval *timeout, int *mode)
{
    uint64_t eq;
    EXSI_TRY(es_queue(qh, &eq));
    *mode = wait_mode(queue_at(eq)->wait);
    if (cnt == 0 || cnt > EXS_EVTVEC_MAX || cnt < -EXS_EVTVEC_MAX) return -EINVAL;
    if (timeout && (timeout->tv_sec < 0 || timeout->tv_usec < 0 || timeout->tv_usec >= 1000000)) return -EINVAL;
    /* More than can ever lie in the queue at once would be waited for in vain only if nobody posts while we
     * wait; the rule is simple all the same. */
    if (cnt < 0 && -cnt > exsi_eq_depth(ctx, eq, 0)) return -EINVAL;
    return 0;
}

int exs_qdequeue(exs_qhandle_t qh, exs_event_t *vec, int cnt, struct timeval *timeout)
{
    exsi_ctx *ctx;
    int mode = 0, rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = check_dequeue(ctx, qh, cnt, timeout, &mode);
    es_leave();
    if (rc < 0) return es_return(rc);

    exsi_event raw[EXS_EVTVEC_MAX];
    int max = cnt < 0 ? -cnt : cnt;
    int64_t limit = timeout ? (int64_t)timeout->tv_sec * 1000000 + timeout->tv_usec : -1;
    int n = exsi_eq_wait(ctx, qh.exs_h, raw, max, cnt < 0 ? max : 1, limit, mode, ES_SPIN_US);
    if (n < 0) return es_return(n);
    rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    for (int i = 0; i < n; i++) es_fill_event(ctx, &raw[i], &vec[i]);
    es_leave();
    return n;
}

int exs_qmodify(exs_qhandle_t qh, int attr, ...)
{
    exsi_ctx *ctx;
    uint64_t eq = 0;
    va_list ap;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_queue(qh, &eq);
    va_start(ap, attr);
    if (rc == 0 && attr == EXS_QATTR_DEPTH) {
        int depth = va_arg(ap, int);
        rc = depth < 1 ? -EINVAL : exsi_eq_depth(ctx, eq, (uint32_t)depth);
    } else if (rc == 0 && attr == EXS_QATTR_WAIT) {
        int wait = va_arg(ap, int);
        if (wait < EXS_WAIT_ADAPTIVE || wait > EXS_WAIT_BUSY_POLL)
            rc = -EINVAL;
        else
            queue_at(eq)->wait = wait;
    } else if (rc == 0 && attr == EXS_QATTR_SIGNAL) {
        const exs_signal_t *sig = va_arg(ap, const exs_signal_t *);
        rc = sig && sig->exs_sig_enable == EXS_SIG_DISABLE ? 0 : -EOPNOTSUPP;
    } else if (rc == 0) {
        rc = -EINVAL;
    }
    va_end(ap);
    es_leave();
    return es_return(rc < 0 ? rc : 0);
}

int exs_qstatus(exs_qhandle_t qh, int attr, ...)
{
    exsi_ctx *ctx;
    uint64_t eq = 0;
    va_list ap;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_queue(qh, &eq);
    va_start(ap, attr);
    int *out = va_arg(ap, int *);
    va_end(ap);
    if (rc == 0 && attr == EXS_QATTR_DEPTH) {
        rc = *out = exsi_eq_depth(ctx, eq, 0);
    } else if (rc == 0 && attr == EXS_QATTR_EVENTS) {
        rc = *out = exsi_eq_count(ctx, eq);
    } else if (rc == 0 && attr == EXS_QATTR_WAIT) {
        *out = queue_at(eq)->wait;
    } else if (rc == 0 && attr == EXS_QATTR_SIGNAL) {
        *out = EXS_SIG_DISABLE;
    } else if (rc == 0) {
        rc = -EINVAL;
    }
    es_leave();
    return es_return(rc < 0 ? rc : 0);
}

int exs_qfd(exs_qhandle_t qh)
{
    exsi_ctx *ctx;
    uint64_t eq;
    int rc = es_enter(&ctx);
    if (rc < 0) return es_return(rc);
    rc = es_queue(qh, &eq);
    if (rc == 0) rc = exsi_eq_fd(ctx, eq);
    es_leave();
    return es_return(rc);
}

/* --- events --------------------------------------------------------------------------------------------- */

int es_event_flags(const exsi_event *ev)
{
    int flags = 0;
    if (ev->flags & EXSI_EV_TRUNCATED) flags |= MSG_TRUNC;
    if (ev->flags & EXSI_EV_EOR) flags |= MSG_EOR;
    if (ev->flags & EXSI_EV_DIRECT) flags |= EXS_XF_DIRECT;
    if (ev->flags & EXSI_EV_INDIRECT) flags |= EXS_XF_INDIRECT;
    return flags;
}

/* A failed send says how many leading bytes went out. */
static size_t length_of(const exsi_event *ev)
{
    return ev->error && ev->kind == EXSI_OP_SEND ? ev->extra : ev->value;
}

void es_fill_event(exsi_ctx *ctx, const exsi_event *ev, exs_event_t *out)
{
    const struct es_record *r = es_record_at(ev->cookie);
    memset(out, 0, sizeof *out);
    out->exs_evt_type = r->type;
    out->exs_evt_errno = ev->error;
    out->exs_evt_socket = r->fd;
    out->exs_evt_ahandle = r->ah;
    size_t full = ev->flags & EXSI_EV_TRUNCATED ? ev->extra : length_of(ev);
    switch (r->type) {
    case EXS_EVT_SEND:
    case EXS_EVT_RECV:
        out->exs_evt_union.exs_evt_xfer = (exs_evt_xfer_t){r->buffer, r->mh, length_of(ev), full, es_event_flags(ev)};
        break;
    case EXS_EVT_SENDMSG:
    case EXS_EVT_RECVMSG:
        out->exs_evt_union.exs_evt_xfermsg = (exs_evt_xfermsg_t){r->buffer, length_of(ev), full, es_event_flags(ev)};
        break;
    case EXS_EVT_SENDFILE:
        out->exs_evt_union.exs_evt_xferfile = (exs_evt_xferfile_t){r->buffer, r->count, ev->value};
        if (r->file) es_file_reap(r->file);
        break;
    case EXS_EVT_ACCEPT: es_fill_accept(ctx, r, ev, out); break;
    case EXS_EVT_POLL: es_fill_poll(ctx, r, ev, out); break;
    default: break;
    }
    es_drop(ev->cookie);
}

/* --- calls without a queue -------------------------------------------------------------------------------- */

int es_private(exsi_ctx *ctx, uint64_t *eq)
{
    exsi_ctx *same;
    EXSI_TRY(es_enter(&same));
    *eq = es.n_pool ? es.pool[--es.n_pool] : 0;
    es_leave();
    return *eq ? 0 : exsi_eq_new(ctx, es.group, PRIVATE_DEPTH, eq);
}

void es_private_put(exsi_ctx *ctx, uint64_t eq)
{
    exsi_ctx *same;
    if (es_enter(&same) < 0) return;
    bool kept = es.n_pool < POOL_MAX;
    if (kept) es.pool[es.n_pool++] = eq;
    es_leave();
    if (!kept) (void)!exsi_eq_free(ctx, eq);
}

int es_await(exsi_ctx *ctx, uint64_t eq, uint64_t sock, int rc, exsi_posted *posted)
{
    bool interrupted = false;
    if (rc != 0) return rc < 0 ? rc : 0;
    for (;;) {
        int n = exsi_eq_wait(ctx, eq, &posted->event, 1, 1, -1, EXSI_WAIT_ADAPTIVE, ES_SPIN_US);
        if (n == 1) return interrupted && posted->event.error == ECANCELED ? -EINTR : 0;
        if (n != -EINTR) return n;
        /* The buffer is the caller's again only when the event is there: ask, and wait for it. */
        if (!interrupted) (void)exsi_cancel(ctx, sock, posted->op, NULL);
        interrupted = true;
    }
}
