// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the files of the literal ES-API share: the process's one context and its tables.
 *   esapi.c       the state itself, exs_init, memory, queues
 *   sock.c  sockets: names, options, connect, accept, poll, cancel, shutdown, close
 *   xfer.c  send, recv, sendmsg, recvmsg
 *   file.c  sendfile
 *
 * Only these files set errno; inside they use -errno like the rest.  es_lock guards the tables and is
 * never held across a call that waits.
 *
 * A call is a record from its acceptance until its event was dequeued; the record's handle is the cookie
 * of the operation below, so an event finds what the caller passed.  A descriptor number is given back to
 * the system only when it was closed and its last record is gone. */
#ifndef EXSI_ESAPI_STATE_H
#define EXSI_ESAPI_STATE_H

#include "api/api.h"
#include "core/mr.h"
#include "core/op.h"

#define EXS_BUILDING
#include "exs.h"

#define ES_SPIN_US 20

/* One descriptor. */
struct es_fd {
    int fd;
    int family, type;
    uint64_t sock; /* core handle; 0: not made yet, so that options can still be set */
    exsi_options opt;
    bool threaded, nonblock, abort_on_close;
    bool listening, closing, file_busy;
    struct sockaddr_storage bound;
    socklen_t bound_len;
    uint32_t records;
    uint64_t limbo; /* queue of a connect that nobody waits for, 0: none */
};

/* One accepted call. */
struct es_record {
    uint64_t cookie;
    int type, fd;
    exs_ahandle_t ah;
    void *buffer; /* what the event names: buffer, msghdr, file vector, poll vector, address */
    exs_mhandle_t mh;
    int count;
    struct es_file *file; /* sendfile: its worker, which a cancel asks to stop */
};

/* --- the state: 0 or -errno; es_enter and es_leave around everything that looks into the tables ----- */
EXSI_MUST_CHECK int es_enter(exsi_ctx **ctx);
void es_leave(void);
/* The entry of a descriptor: valid until es_leave.  -EBADF, -ENOTSOCK. */
EXSI_MUST_CHECK int es_find(int fd, struct es_fd **out);
/* A new descriptor with its entry. */
EXSI_MUST_CHECK int es_add(int family, int type, struct es_fd **out);
/* Its core socket, made now if need be. */
EXSI_MUST_CHECK int es_made(struct es_fd *f);
/* Closed: the number goes with the last record. */
void es_forget(struct es_fd *f);
/* Around the close of a descriptor, not under es_enter: from _closing on no other call finds it; the entry
 * stays until _closed, which takes the mark back if the close was refused (done false). */
EXSI_MUST_CHECK int es_closing(int fd, struct es_fd **out);
void es_closed(exsi_ctx *ctx, struct es_fd *f, bool done);
/* Records; fd counts them. */
EXSI_MUST_CHECK int es_record(struct es_fd *f, int type, exs_ahandle_t ah, struct es_record **out);
struct es_record *es_record_at(uint64_t cookie);
/* Record number i of all, or NULL; i < es_records(). */
struct es_record *es_record_slot(uint32_t i);
uint32_t es_records(void);
void es_drop(uint64_t cookie);

/* A queue handle of the caller: the core's handle, or -EINVAL. */
EXSI_MUST_CHECK int es_queue(exs_qhandle_t qh, uint64_t *eq);
/* A memory handle: the core's (0: not registered), or -EINVAL. */
EXSI_MUST_CHECK int es_memory(exs_mhandle_t mh, uint64_t *mr);

/* --- calls without a queue ------------------------------------------------------------------------ */
/* Not under es_enter.  A queue of a few slots, from a pool; empty when it is put back. */
EXSI_MUST_CHECK int es_private(exsi_ctx *ctx, uint64_t *eq);
void es_private_put(exsi_ctx *ctx, uint64_t eq);
/* The event of a post that returned rc on a private queue; sock and posted say what to cancel when a
 * signal comes: then -EINTR, if it could still be withdrawn. */
EXSI_MUST_CHECK int es_await(exsi_ctx *ctx, uint64_t eq, uint64_t sock, int rc, exsi_posted *posted);

/* --- one call with one record (sock.c) ------------------------------------------------------------ */
struct es_post {
    exsi_ctx *ctx;
    uint64_t sock, eq, cookie;
    int type; /* SOCK_STREAM or SOCK_SEQPACKET */
    bool blocking, nonblock, file_busy;
    exsi_posted posted; /* blocking: the result, after es_post_end */
};
/* What the record of a call keeps. */
struct es_keep {
    int type; /* EXS_EVT_... */
    exs_ahandle_t ah;
    void *buffer;
    exs_mhandle_t mh;
    int count;
};
/* Find the descriptor and the queue; with a queue make the record. */
EXSI_MUST_CHECK int es_post_begin(struct es_post *p, int fd, exs_qhandle_t qh, const struct es_keep *keep);
static inline exsi_posted *es_post_out(struct es_post *p)
{
    return p->blocking ? &p->posted : NULL;
}
/* rc: of the post.  Refused: forget the record.  Blocking: wait; the error of the operation is the result. */
EXSI_MUST_CHECK int es_post_end(struct es_post *p, int rc);

static inline int es_return(int rc)
{
    if (rc >= 0) return rc;
    errno = -rc;
    return -1;
}

/* --- across files ------------------------------------------------------------------------------------ */
void es_fill_event(exsi_ctx *ctx, const exsi_event *ev, exs_event_t *out);
/* sock.c: what the event of these kinds says beyond its length. */
void es_fill_accept(exsi_ctx *ctx, const struct es_record *r, const exsi_event *ev, exs_event_t *out);
void es_fill_poll(exsi_ctx *ctx, const struct es_record *r, const exsi_event *ev, exs_event_t *out);
int es_event_flags(const exsi_event *ev);
/* file.c */
void es_file_cancel(struct es_file *file);
void es_file_reap(struct es_file *file);

#endif
