// SPDX-License-Identifier: MIT OR Apache-2.0
/* The literal ES-API: exs_sendfile.  Pieces of files are read into registered staging memory and sent from
 * there, by a thread of their own if the caller does not wait; pieces of memory are sent where they lie.
 *
 * STREAM: two staging buffers, one being read while the other is on its way.  SEQPACKET: the pieces are one
 * message, so all of it is gathered first.  While a transfer runs, the sending direction of its socket is
 * its own, or what others send would land in the middle of it. */
#include "esapi/state.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STAGE_BYTES (256u << 10)
#define STAGES      2

struct es_file {
    exsi_ctx *ctx;
    pthread_t thread;
    uint64_t sock, cookie;
    uint64_t private_eq;
    struct exsi_eq *eq; /* the caller's, one slot reserved; NULL: it waits */
    int fd, type, cnt;
    bool shut;
    atomic_bool cancelled;
    uint64_t total;
    exs_xferfile_t vec[];
};

/* One staging buffer. */
struct stage {
    uint64_t mr;
    uint8_t *mem;
    size_t len;
    bool busy;
};

/* --- sending one range, and waiting --------------------------------------------------------------------- */

/* Post; the completion is taken by wait_one. */
static int post(struct es_file *s, void *base, size_t len, uint64_t mr)
{
    if (atomic_load(&s->cancelled)) return -ECANCELED;
    return exsi_send(s->ctx, s->sock, base, len, EXSI_FLAG_LOOK, mr, s->cookie, s->private_eq, NULL);
}

static int wait_one(struct es_file *s)
{
    exsi_event ev;
    for (;;) {
        int n = exsi_eq_wait(s->ctx, s->private_eq, &ev, 1, 1, -1, EXSI_WAIT_ADAPTIVE, ES_SPIN_US);
        if (n == -EINTR) continue;
        if (n < 0) return n;
        s->total += ev.error ? ev.extra : ev.value;
        return -ev.error;
    }
}

static int send_memory(struct es_file *s, const exs_iovec_t *v)
{
    uint64_t mr;
    EXSI_TRY(es_memory(v->exs_iov_mhandle, &mr));
    if (v->exs_iov_len == 0) return 0;
    EXSI_TRY(post(s, v->exs_iov_base, v->exs_iov_len, mr));
    return wait_one(s);
}

/* --- files ------------------------------------------------------------------------------------------------ */

/* Bytes that the piece asks for: length 0 means to the end of the file. */
static int64_t piece_length(const exs_fdvec_t *v)
{
    struct stat st;
    if (v->exs_fdv_offset < 0) return -EINVAL;
    if (v->exs_fdv_len) return v->exs_fdv_len > INT64_MAX ? -EINVAL : (int64_t)v->exs_fdv_len;
    if (fstat(v->exs_fdv_fd, &st) < 0) return -errno;
    return st.st_size > v->exs_fdv_offset ? st.st_size - v->exs_fdv_offset : 0;
}

/* All of it, or an error: a file that ended early is EIO, for the peer was to get so many bytes. */
static int read_all(int fd, uint8_t *to, size_t len, off_t at)
{
    while (len > 0) {
        ssize_t n = pread(fd, to, len, at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        if (n == 0) return -EIO;
        to += n;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static int stage_open(exsi_ctx *ctx, struct stage *st, size_t len)
{
    void *mem;
    EXSI_TRY(exsi_mem_allocate(ctx, len, EXSI_MR_READ, &st->mr, &mem));
    st->mem = mem;
    st->len = len;
    st->busy = false;
    return 0;
}

static void stage_close(exsi_ctx *ctx, struct stage *st)
{
    if (!st->mem) return;
    (void)!exsi_mem_close_later(ctx, st->mr);
    exsi_mem_unmap(st->mem, st->len);
    st->mem = NULL;
}

static int send_file(struct es_file *s, const exs_fdvec_t *v, struct stage *stages)
{
    int64_t left = piece_length(v);
    off_t at = v->exs_fdv_offset;
    int out = 0, rc = left < 0 ? (int)left : 0;
    for (int i = 0; rc == 0 && left > 0; i = (i + 1) % STAGES) {
        size_t len = left < STAGE_BYTES ? (size_t)left : STAGE_BYTES;
        if (!stages[i].mem) rc = stage_open(s->ctx, &stages[i], STAGE_BYTES);
        /* Sends end in order: with all buffers out, the oldest one is this. */
        if (rc == 0 && out == STAGES) {
            rc = wait_one(s);
            out--;
        }
        if (rc == 0) rc = read_all(v->exs_fdv_fd, stages[i].mem, len, at);
        if (rc == 0) rc = post(s, stages[i].mem, len, stages[i].mr);
        if (rc < 0) break;
        out++;
        at += (off_t)len;
        left -= (int64_t)len;
    }
    /* The buffers are ours again only when their events are here. */
    for (; out > 0; out--) {
        int rest = wait_one(s);
        if (rc == 0) rc = rest;
    }
    return rc;
}

static int send_stream(struct es_file *s)
{
    struct stage stages[STAGES] = {0};
    int rc = 0;
    for (int i = 0; rc == 0 && i < s->cnt; i++) {
        const exs_xferfile_t *x = &s->vec[i];
        rc = x->exs_xff_type == EXS_IOVEC ? send_memory(s, &x->exs_xff_u.exs_xff_iov)
                                          : send_file(s, &x->exs_xff_u.exs_xff_fdv, stages);
    }
    for (int i = 0; i < STAGES; i++) stage_close(s->ctx, &stages[i]);
    return rc;
}

/* --- messages --------------------------------------------------------------------------------------------- */

static int64_t message_length(const struct es_file *s)
{
    int64_t sum = 0;
    for (int i = 0; i < s->cnt; i++) {
        const exs_xferfile_t *x = &s->vec[i];
        int64_t len = x->exs_xff_type == EXS_IOVEC ? (int64_t)x->exs_xff_u.exs_xff_iov.exs_iov_len
                                                   : piece_length(&x->exs_xff_u.exs_xff_fdv);
        if (len < 0) return len;
        if (len > INT64_MAX - sum) return -EMSGSIZE;
        sum += len;
    }
    return sum;
}

static int gather(const struct es_file *s, uint8_t *to)
{
    for (int i = 0; i < s->cnt; i++) {
        const exs_xferfile_t *x = &s->vec[i];
        if (x->exs_xff_type == EXS_IOVEC) {
            const exs_iovec_t *v = &x->exs_xff_u.exs_xff_iov;
            memcpy(to, v->exs_iov_base, v->exs_iov_len);
            to += v->exs_iov_len;
        } else {
            const exs_fdvec_t *v = &x->exs_xff_u.exs_xff_fdv;
            int64_t len = piece_length(v);
            EXSI_TRY((int)(len < 0 ? len : 0));
            EXSI_TRY(read_all(v->exs_fdv_fd, to, (size_t)len, v->exs_fdv_offset));
            to += len;
        }
    }
    return 0;
}

static int send_message(struct es_file *s)
{
    struct stage st = {0};
    int64_t len = message_length(s);
    if (len < 0) return (int)len;
    int rc = len ? stage_open(s->ctx, &st, (size_t)len) : 0;
    if (rc == 0 && len) rc = gather(s, st.mem);
    if (rc == 0) rc = post(s, st.mem, (size_t)len, st.mr);
    if (rc == 0) rc = wait_one(s);
    stage_close(s->ctx, &st);
    return rc;
}

/* --- the transfer as a whole ------------------------------------------------------------------------------- */

static void set_busy(int fd, bool busy)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    if (es_enter(&ctx) < 0) return;
    if (es_find(fd, &f) == 0) f->file_busy = busy;
    es_leave();
}

static int run(struct es_file *s)
{
    int rc = s->type == SOCK_STREAM ? send_stream(s) : send_message(s);
    if (rc == 0 && s->shut) {
        rc = exsi_shutdown(s->ctx, s->sock, SHUT_WR, s->cookie, s->private_eq, NULL);
        if (rc == 0) rc = wait_one(s);
    }
    es_private_put(s->ctx, s->private_eq);
    set_busy(s->fd, false);
    return rc;
}

static void *thread_main(void *arg)
{
    struct es_file *s = arg;
    int rc = run(s);
    exsi_event ev = {.cookie = s->cookie, .value = s->total, .error = -rc, .kind = EXSI_OP_SEND};
    exsi_eq_push(s->eq, &ev);
    exsi_eq_put(s->eq);
    return NULL;
}

void es_file_cancel(struct es_file *s)
{
    atomic_store(&s->cancelled, true);
    (void)!exsi_cancel_match(s->ctx, s->sock, 1, s->cookie);
}

void es_file_reap(struct es_file *s)
{
    pthread_join(s->thread, NULL);
    free(s);
}

static int make(const exs_xferfile_t *vec, int cnt, int flags, struct es_file **out)
{
    if (!vec || cnt < 1 || cnt > IOV_MAX) return -EINVAL;
    if (flags & ~(EXS_SHUT_WR | MSG_NOSIGNAL)) return -EINVAL;
    for (int i = 0; i < cnt; i++)
        if (vec[i].exs_xff_type != EXS_IOVEC && vec[i].exs_xff_type != EXS_FDVEC) return -EINVAL;
    struct es_file *s = calloc(1, sizeof *s + (size_t)cnt * sizeof *vec);
    if (!s) return -ENOMEM;
    memcpy(s->vec, vec, (size_t)cnt * sizeof *vec);
    s->cnt = cnt;
    s->shut = flags & EXS_SHUT_WR;
    *out = s;
    return 0;
}

/* The socket is free for a file; it is taken. */
static int take_socket(struct es_file *s, const struct es_post *p, int fd)
{
    exsi_ctx *ctx;
    struct es_fd *f;
    exsi_socket_info info;
    EXSI_TRY(exsi_socket_query(p->ctx, p->sock, &info));
    if (info.state != EXSI_SOCK_CONNECTED && info.state != EXSI_SOCK_DEAD) return -ENOTCONN;
    EXSI_TRY(es_enter(&ctx));
    int rc = es_find(fd, &f);
    if (rc == 0 && f->file_busy) rc = -EAGAIN;
    if (rc == 0) f->file_busy = true;
    es_leave();
    s->ctx = p->ctx;
    s->fd = fd;
    s->sock = p->sock;
    s->type = p->type;
    s->cookie = p->cookie;
    return rc;
}

/* The event has its slot before the thread exists. */
static int start(struct es_file *s, uint64_t eq)
{
    sigset_t all, old;
    s->eq = exsi_eq_get(s->ctx, eq);
    if (!s->eq) return -EINVAL;
    int rc = exsi_eq_reserve(s->eq);
    if (rc == 0) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = -pthread_create(&s->thread, NULL, thread_main, s);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (rc < 0) exsi_eq_unreserve(s->eq);
    }
    if (rc < 0) exsi_eq_put(s->eq);
    return rc;
}

static int64_t begin(struct es_file *s, struct es_post *p, int fd)
{
    exsi_ctx *ctx;
    int rc = take_socket(s, p, fd);
    if (rc < 0) return rc;
    rc = es_private(p->ctx, &s->private_eq);
    if (rc < 0) {
        set_busy(fd, false);
        return rc;
    }
    if (p->blocking) {
        rc = run(s);
        return rc < 0 ? rc : (int64_t)s->total;
    }
    EXSI_TRY(es_enter(&ctx));
    /* Under the lock, so that no dequeue finds the record without its file. */
    rc = start(s, p->eq);
    if (rc == 0) es_record_at(p->cookie)->file = s;
    es_leave();
    if (rc < 0) {
        es_private_put(p->ctx, s->private_eq);
        set_busy(fd, false);
    }
    return rc;
}

ssize_t exs_sendfile(int fd, exs_xferfile_t *vec, int cnt, int flags, exs_ahandle_t ah, exs_qhandle_t qh)
{
    struct es_post p;
    struct es_file *s;
    struct es_keep keep = {.type = EXS_EVT_SENDFILE, .ah = ah, .buffer = vec, .count = cnt};
    int rc = make(vec, cnt, flags, &s);
    if (rc == 0) {
        rc = es_post_begin(&p, fd, qh, &keep);
        if (rc < 0) free(s);
    }
    if (rc < 0) return es_return(rc);
    int64_t n = begin(s, &p, fd);
    if (p.blocking) {
        es_private_put(p.ctx, p.eq);
        free(s);
    } else if (n < 0) {
        free(s);
        n = es_post_end(&p, (int)n);
    }
    if (n >= 0) return (ssize_t)n;
    errno = (int)-n;
    return -1;
}
