// SPDX-License-Identifier: MIT OR Apache-2.0
/* The literal ES-API: send and receive, of one buffer or a vector. */
#include "esapi/state.h"

#include <limits.h>
#include <stdlib.h>

/* What a transfer is, beyond its descriptor. */
struct transfer {
    bool receive;
    const exsi_piece *vec;
    int n;
    int flags;
    int *out_flags; /* blocking recvmsg: msg_flags */
};

static int take_flags(const struct transfer *t, uint32_t *flags)
{
    int known = MSG_DONTWAIT | MSG_NOSIGNAL | (t->receive ? MSG_WAITALL : EXS_SHUT_WR);
    if (t->flags & ~known) return t->flags & (MSG_PEEK | MSG_OOB | MSG_TRUNC) ? -EOPNOTSUPP : -EINVAL;
    /* A C program may have mapped a file anywhere: memory that is not registered is looked at. */
    *flags = EXSI_FLAG_LOOK;
    if (t->flags & MSG_WAITALL) *flags |= EXSI_OPF_WAITALL;
    if (t->flags & EXS_SHUT_WR) *flags |= EXSI_OPF_SHUT_WR;
    return 0;
}

/* Without a queue and not to block: 1 if the call is answered by *rc already. */
static bool try_now(struct es_post *p, const struct transfer *t, uint32_t flags, int64_t *rc)
{
    exsi_socket_info info;
    if (t->receive) {
        *rc = exsi_recvmsg(p->ctx, p->sock, t->vec, t->n, flags | EXSI_OPF_DONTWAIT, 0, 0, &p->posted);
        if (*rc == 1) *rc = (int64_t)p->posted.event.value;
        return true;
    }
    *rc = exsi_socket_query(p->ctx, p->sock, &info);
    if (*rc < 0) return true;
    /* The errors of a dead or shut connection come from the send itself. */
    if (info.state == EXSI_SOCK_CONNECTED && !info.writable && !info.send_shut) *rc = -EAGAIN;
    return *rc < 0;
}

static int64_t run_posted(struct es_post *p, const struct transfer *t)
{
    uint32_t flags;
    int64_t now;
    int rc = take_flags(t, &flags);
    if (rc == 0 && p->blocking && (p->nonblock || (t->flags & MSG_DONTWAIT)) && try_now(p, t, flags, &now)) {
        es_private_put(p->ctx, p->eq);
        return now;
    }
    if (rc == 0)
        rc = (t->receive ? exsi_recvmsg : exsi_sendmsg)(p->ctx, p->sock, t->vec, t->n, flags, p->cookie, p->eq,
                                                        es_post_out(p));
    EXSI_TRY(es_post_end(p, rc));
    if (!p->blocking) return 0;
    if (t->out_flags) *t->out_flags = es_event_flags(&p->posted.event) & (MSG_TRUNC | MSG_EOR);
    return (int64_t)p->posted.event.value;
}

static ssize_t es_return_size(int64_t rc)
{
    if (rc >= 0) return (ssize_t)rc;
    errno = (int)-rc;
    return -1;
}

static int64_t run(int fd, const struct transfer *t, exs_qhandle_t qh, const struct es_keep *keep)
{
    struct es_post p;
    EXSI_TRY(es_post_begin(&p, fd, qh, keep));
    if (!t->receive && p.file_busy) return es_post_end(&p, -EAGAIN);
    return run_posted(&p, t);
}

/* --- one buffer --------------------------------------------------------------------------------------- */

static ssize_t one(int fd, void *buf, size_t len, int flags, exs_mhandle_t mh, exs_ahandle_t ah, exs_qhandle_t qh,
                   bool receive)
{
    exsi_piece piece = {.base = buf, .len = len};
    int rc = es_memory(mh, &piece.mr);
    if (rc < 0) return es_return_size(rc);
    struct transfer t = {.receive = receive, .vec = &piece, .n = 1, .flags = flags};
    struct es_keep keep = {.type = receive ? EXS_EVT_RECV : EXS_EVT_SEND, .ah = ah, .buffer = buf, .mh = mh};
    return es_return_size(run(fd, &t, qh, &keep));
}

ssize_t exs_send(int fd, const void *buf, size_t len, int flags, exs_mhandle_t mh, exs_ahandle_t ah, exs_qhandle_t qh)
{
    return one(fd, (void *)(uintptr_t)buf, len, flags, mh, ah, qh, false);
}

ssize_t exs_recv(int fd, void *buf, size_t len, int flags, exs_mhandle_t mh, exs_ahandle_t ah, exs_qhandle_t qh)
{
    return one(fd, buf, len, flags, mh, ah, qh, true);
}

/* --- vectors -------------------------------------------------------------------------------------------- */

static int take_vector(const exs_msghdr_t *msg, exsi_piece **out)
{
    if (!msg || !msg->exs_msg_iov) return -EFAULT;
    if (msg->exs_msg_control || msg->exs_msg_controllen) return -EOPNOTSUPP;
    if (msg->exs_msg_iovlen < 1 || msg->exs_msg_iovlen > IOV_MAX) return -EMSGSIZE;
    exsi_piece *vec = calloc((size_t)msg->exs_msg_iovlen, sizeof *vec);
    if (!vec) return -ENOMEM;
    for (int i = 0; i < msg->exs_msg_iovlen; i++) {
        const exs_iovec_t *v = &msg->exs_msg_iov[i];
        vec[i] = (exsi_piece){.base = v->exs_iov_base, .len = v->exs_iov_len};
        int rc = es_memory(v->exs_iov_mhandle, &vec[i].mr);
        if (rc < 0) {
            free(vec);
            return rc;
        }
    }
    *out = vec;
    return 0;
}

static ssize_t many(int fd, const exs_msghdr_t *msg, int *out_flags, int flags, exs_ahandle_t ah, exs_qhandle_t qh,
                    bool receive)
{
    exsi_piece *vec;
    int rc = take_vector(msg, &vec);
    if (rc < 0) return es_return_size(rc);
    struct transfer t = {
        .receive = receive, .vec = vec, .n = msg->exs_msg_iovlen, .flags = flags, .out_flags = out_flags};
    struct es_keep keep = {
        .type = receive ? EXS_EVT_RECVMSG : EXS_EVT_SENDMSG, .ah = ah, .buffer = (void *)(uintptr_t)msg};
    ssize_t n = es_return_size(run(fd, &t, qh, &keep));
    free(vec);
    return n;
}

ssize_t exs_sendmsg(int fd, const exs_msghdr_t *msg, int flags, exs_ahandle_t ah, exs_qhandle_t qh)
{
    return many(fd, msg, NULL, flags, ah, qh, false);
}

ssize_t exs_recvmsg(int fd, exs_msghdr_t *msg, int flags, exs_ahandle_t ah, exs_qhandle_t qh)
{
    return many(fd, msg, msg ? &msg->exs_msg_flags : NULL, flags, ah, qh, true);
}
