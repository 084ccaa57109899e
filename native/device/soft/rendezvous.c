// SPDX-License-Identifier: MIT OR Apache-2.0
/* Agreeing on shared memory between two processes of one host (docs/wire/soft.md).  One UNIX listener
 * serves all set-ups of a part.
 *
 * The active side names its listener and a token in the MPA request; the passive one connects there,
 * repeats the token, and hands over the segment (HELLO); the active one maps it and says yes or no
 * (ACK).  Each checks the other's user, and tries to read the other's token out of its memory, which
 * tells whether process_vm_readv works.  Invariant: a side that said yes has everything it needs, so
 * that nothing can fail afterwards and the two never disagree. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "device/soft/shm.h"

#define STRANGERS_MAX   32 /* accepted and not yet introduced */
#define ACCEPTS_AT_ONCE 16

enum soft_shm_why {
    WHY_NOT_SAID = 0,
    WHY_OFF = SOFT_WHY_OFF, /* not wanted or not offered */
    WHY_NO_NAME,            /* the UNIX name cannot be reached: another network namespace, or another host */
    WHY_USER,               /* another user */
    WHY_NO_PULL,            /* process_vm_readv refused, and nothing else was allowed */
    WHY_RESOURCES,          /* descriptors or memory */
    WHY_PROTOCOL,           /* what came was not as it must be */
    WHY_END,
};

static const char *const why_texts[WHY_END] = {
    [WHY_NOT_SAID] = "not said",
    [WHY_OFF] = "the other side does not offer shared memory",
    [WHY_NO_NAME] = "the other side's UNIX socket cannot be reached (another host or network namespace)",
    [WHY_USER] = "the other side runs as another user",
    [WHY_NO_PULL] = "reading the other process's memory is not permitted (ptrace permission)",
    [WHY_RESOURCES] = "out of descriptors or memory",
    [WHY_PROTOCOL] = "the other side broke the set-up protocol",
};

const char *soft_shm_why_text(uint16_t why)
{
    return why_texts[why < WHY_END ? why : WHY_NOT_SAID];
}

/* A UNIX connection that has not said HELLO yet. */
struct stranger {
    struct exsi_list node;
    struct soft_part *part;
    struct exsi_watch watch;
    int fd;
    pid_t pid;
};

/* One set-up. */
struct soft_shm {
    struct soft_shm_ask ask;
    struct exsi_list node;
    bool active, confirmed;
    bool can_pull; /* we read the peer's token */
    bool have_hello;
    int fd; /* UNIX socket */
    pid_t pid;
    uint8_t token[SOFT_TOKEN_LEN]; /* ours; the peer reads it here */
    struct shm_msg hello;
    int fds[SHM_MAX_FDS]; /* of the HELLO */
    struct exsi_watch watch;
    struct shm_path *path; /* passive: ready and not joined */
};

/* --- the listener --------------------------------------------------------------------------------- */

static void on_listener(struct exsi_watch *w, uint32_t events);

static int open_listener(struct soft_shm_part *sp)
{
    uint8_t raw[12];
    exsi_random(raw, sizeof raw);
    char *at = (char *)sp->name;
    at += sprintf(at, "exs-");
    for (size_t i = 0; i < sizeof raw; i++) at += sprintf(at, "%02x", raw[i]);
    sp->name_len = (uint8_t)(at - (char *)sp->name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    memcpy(un.sun_path + 1, sp->name, sp->name_len);
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + sp->name_len);
    int rc = bind(fd, (struct sockaddr *)&un, len) < 0 || listen(fd, SOMAXCONN) < 0 ? -errno : 0;
    sp->listener.fn = on_listener;
    if (!rc) rc = exsi_poller_add(sp->part->poller, &sp->listener, fd, EPOLLIN);
    if (rc < 0) close(fd);
    return rc;
}

static void drop_stranger(struct stranger *s, bool close_fd)
{
    exsi_poller_del(s->part->poller, &s->watch);
    exsi_list_unlink(&s->node);
    s->part->shm->n_strangers--;
    if (close_fd) close(s->fd);
    free(s);
}

void shm_strangers_drop(struct soft_shm_part *sp)
{
    exsi_list_for_safe (s, &sp->strangers, struct stranger, node) drop_stranger(s, true);
}

/* --- common ----------------------------------------------------------------------------------------- */

static void shm_free(struct soft_shm *shm)
{
    exsi_list_unlink(&shm->node);
    exsi_poller_del(shm->ask.part->poller, &shm->watch);
    shm_close_fds(shm->fds, SHM_MAX_FDS);
    if (shm->fd >= 0) close(shm->fd);
    if (shm->path) shm_path_free(shm->path);
    free(shm);
}

void soft_shm_drop(struct soft_shm *shm)
{
    if (shm) shm_free(shm);
}

static void finish(struct soft_shm *shm, struct soft_path *path, const char *reason)
{
    struct soft_shm_ask ask = shm->ask;
    shm_free(shm);
    ask.done(ask.arg, path, reason);
}

static struct soft_shm *shm_make(const struct soft_shm_ask *ask, char *reason)
{
    int rc = ask->part->fault.no_shm ? -EOPNOTSUPP : shm_part_get(ask->part);
    struct soft_shm *shm = rc < 0 ? NULL : calloc(1, sizeof *shm);
    if (!shm) {
        if (rc == -EOPNOTSUPP)
            snprintf(reason, EXSI_REASON_MAX, "shared memory was turned off");
        else
            snprintf(reason, EXSI_REASON_MAX, "no shared memory: %s", strerror(rc < 0 ? -rc : ENOMEM));
        return NULL;
    }
    shm->ask = *ask;
    shm->fd = shm->watch.fd = shm->fds[0] = shm->fds[1] = -1;
    exsi_list_init(&shm->node);
    exsi_random(shm->token, sizeof shm->token);
    return shm;
}

/* The process behind a UNIX socket: -EACCES if it is another user's. */
static int peer_process(int fd, pid_t *pid)
{
    struct ucred cred;
    socklen_t len = sizeof cred;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) return -errno;
    *pid = cred.pid; /* 0: in a pid namespace that we cannot see */
    return cred.uid == geteuid() ? 0 : -EACCES;
}

/* Can we read that process, and is it the one that knows the token? */
static bool probe(pid_t pid, uint64_t addr, const uint8_t token[SOFT_TOKEN_LEN])
{
    uint8_t seen[SOFT_TOKEN_LEN];
    if (pid <= 0) return false;
    struct iovec l = {seen, sizeof seen}, r = {(void *)(uintptr_t)addr, sizeof seen};
    return process_vm_readv(pid, &l, 1, &r, 1, 0) == (ssize_t)sizeof seen && !memcmp(seen, token, sizeof seen);
}

static uint16_t my_flags(const struct soft_shm *shm)
{
    return (uint16_t)((shm->can_pull ? SHM_MSG_CAN_PULL : 0) |
                      (shm->ask.path == EXSI_PATH_SHM_VM ? SHM_MSG_NEED_VM : 0) |
                      (shm->ask.path == EXSI_PATH_SHM_RING ? SHM_MSG_RING_ONLY : 0));
}

static bool may_pull(const struct soft_shm *shm, const struct shm_msg *peer)
{
    return shm->can_pull && (peer->flags & SHM_MSG_CAN_PULL);
}

static bool ring_only(const struct soft_shm *shm, const struct shm_msg *peer)
{
    return shm->ask.path == EXSI_PATH_SHM_RING || (peer->flags & SHM_MSG_RING_ONLY);
}

static int map_page(int fd, struct shm_map *out)
{
    EXSI_TRY(shm_memfd_map(fd, SHM_NEED_READ_ONLY, 0, SHM_PAGE_BYTES, out));
    const struct shm_page *page = out->base;
    if (page->magic == SHM_PAGE_MAGIC && page->version == SHM_VERSION) return 0;
    shm_unmap(out);
    return -EPROTO;
}

/* --- active side --------------------------------------------------------------------------------------- */

struct soft_shm *soft_shm_offer(const struct soft_shm_ask *ask, struct soft_block *block, char *reason)
{
    struct soft_shm *shm = shm_make(ask, reason);
    if (!shm) return NULL;
    struct soft_shm_part *sp = ask->part->shm;
    int rc = sp->listener.fd >= 0 ? 0 : open_listener(sp);
    if (rc < 0) {
        snprintf(reason, EXSI_REASON_MAX, "no UNIX listener: %s", strerror(-rc));
        shm_free(shm);
        return NULL;
    }
    shm->active = true;
    exsi_list_append(&sp->offers, &shm->node);
    block->flags |= SOFT_BLOCK_SHM;
    memcpy(block->token, shm->token, SOFT_TOKEN_LEN);
    block->probe_addr = (uint64_t)(uintptr_t)shm->token;
    block->pid_hint = (uint32_t)getpid();
    block->name_len = sp->name_len;
    memcpy(block->name, sp->name, sp->name_len);
    return shm;
}

/* Map what the HELLO brought and make the path of it: 0 or why not. */
static uint16_t take_segment(struct soft_shm *shm)
{
    const struct shm_msg *m = &shm->hello;
    struct shm_map map;
    if (!shm_sizes_ok(m->slots, m->data_bytes) || shm->fds[0] < 0 || shm->fds[1] < 0) return WHY_PROTOCOL;
    uint64_t bytes = shm_page_up(shm_segment_bytes(m->slots, m->data_bytes));
    int rc = shm_memfd_map(shm->fds[0], SHM_NEED_SHARED, 0, bytes, &map);
    if (rc < 0) return rc == -EPROTO ? WHY_PROTOCOL : WHY_RESOURCES;
    const struct shm_head *h = map.base;
    if (h->magic != SHM_MAGIC || h->version != SHM_VERSION || h->slots != m->slots || h->data_bytes != m->data_bytes) {
        shm_unmap(&map);
        return WHY_PROTOCOL;
    }
    struct shm_made made = {shm->ask.part, map, m->slots, m->data_bytes, true};
    return shm_path_new(&made, &shm->path) < 0 ? WHY_RESOURCES : 0;
}

static uint16_t take_hello(struct soft_shm *shm)
{
    const struct shm_msg *m = &shm->hello;
    struct shm_map page;
    shm->can_pull = shm->ask.path != EXSI_PATH_SHM_RING && probe(shm->pid, m->addr, m->peer_token);
    bool vm = may_pull(shm, m);
    if (!vm && (shm->ask.path == EXSI_PATH_SHM_VM || (m->flags & SHM_MSG_NEED_VM))) return WHY_NO_PULL;
    uint16_t why = take_segment(shm);
    if (why) return why;
    int rc = map_page(shm->fds[1], &page);
    if (rc < 0) return rc == -EPROTO ? WHY_PROTOCOL : WHY_RESOURCES;
    shm_path_join(shm->path, shm->fd, page, shm->pid, vm, ring_only(shm, m));
    return 0;
}

/* The HELLO is here and the reply too: say yes or no. */
static void decide(struct soft_shm *shm)
{
    uint16_t why = take_hello(shm);
    struct shm_msg ack = {
        .magic = SHM_MAGIC, .version = SHM_VERSION, .type = SHM_MSG_ACK, .flags = my_flags(shm), .why = why};
    memcpy(ack.token, shm->hello.peer_token, sizeof ack.token);
    int rc = shm_send_msg(shm->fd, &ack, &shm->ask.part->shm->page_fd, why ? 0 : 1);
    if (why || rc < 0) {
        /* A path that was joined has the socket; both are closed with it. */
        if (shm->path && shm->path->unix_fd >= 0) shm->fd = -1;
        finish(shm, NULL, why ? soft_shm_why_text(why) : "the other side went away during set-up");
        return;
    }
    struct soft_path *path = &shm->path->path;
    shm->path = NULL;
    shm->fd = -1;
    finish(shm, path, NULL);
}

static struct soft_shm *offer_for(struct soft_shm_part *sp, const struct shm_msg *m)
{
    exsi_list_for (shm, &sp->offers, struct soft_shm, node)
        if (!shm->have_hello && !memcmp(shm->token, m->token, SOFT_TOKEN_LEN)) return shm;
    return NULL;
}

/* A stranger spoke.  true: it is one no more. */
static bool introduce(struct stranger *s)
{
    struct shm_msg m;
    int fds[SHM_MAX_FDS] = {-1, -1}, n_fds = 0;
    int rc = shm_recv_msg(s->fd, &m, fds, &n_fds);
    if (rc == -EAGAIN) return false;
    struct soft_shm *shm = rc > 0 && m.type == SHM_MSG_HELLO ? offer_for(s->part->shm, &m) : NULL;
    if (!shm) {
        shm_close_fds(fds, n_fds);
        drop_stranger(s, true);
        return true;
    }
    shm->have_hello = true;
    shm->hello = m;
    shm->fd = s->fd;
    shm->pid = s->pid;
    for (int i = 0; i < n_fds; i++) shm->fds[i] = fds[i];
    drop_stranger(s, false);
    if (shm->confirmed) decide(shm);
    return true;
}

static void on_stranger(struct exsi_watch *w, uint32_t events)
{
    (void)events;
    introduce(exsi_container_of(w, struct stranger, watch));
}

static void admit(struct soft_shm_part *sp, int fd)
{
    pid_t pid = 0;
    struct stranger *s = peer_process(fd, &pid) < 0 ? NULL : calloc(1, sizeof *s);
    if (!s) {
        close(fd);
        return;
    }
    *s = (struct stranger){.part = sp->part, .fd = fd, .pid = pid, .watch = {.fd = -1, .fn = on_stranger}};
    exsi_list_init(&s->node);
    /* Somebody who connects and says nothing must not keep others out. */
    if (sp->n_strangers == STRANGERS_MAX) drop_stranger(exsi_list_first(&sp->strangers, struct stranger, node), true);
    exsi_list_append(&sp->strangers, &s->node);
    sp->n_strangers++;
    if (introduce(s)) return;
    if (exsi_poller_add(sp->part->poller, &s->watch, fd, EPOLLIN) < 0) drop_stranger(s, true);
}

static int accept_some(struct soft_shm_part *sp)
{
    int n = 0;
    while (n < ACCEPTS_AT_ONCE) {
        int fd = accept4(sp->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) break;
        n++;
        admit(sp, fd);
    }
    return n;
}

static void on_listener(struct exsi_watch *w, uint32_t events)
{
    (void)events;
    accept_some(exsi_container_of(w, struct soft_shm_part, listener));
}

void soft_shm_confirm(struct soft_shm *shm, const struct soft_block *reply)
{
    (void)reply;
    struct soft_shm_part *sp = shm->ask.part->shm;
    /* The HELLO was sent before the reply, so it lies in the listener's queue. */
    while (!shm->have_hello && accept_some(sp) > 0) {
    }
    shm->confirmed = true;
    if (shm->have_hello) decide(shm);
}

/* --- passive side ---------------------------------------------------------------------------------------- */

static int dial(const struct soft_block *request)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (!request->name_len || request->name_len > SOFT_NAME_MAX) return -EPROTO;
    memcpy(un.sun_path + 1, request->name, request->name_len);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + request->name_len);
    if (connect(fd, (struct sockaddr *)&un, len) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

static uint32_t power_below(uint32_t x)
{
    uint32_t p = 1;
    while (p <= x / 2) p *= 2;
    return p;
}

/* Make the segment and the path: *fd is its memory file. */
static int make_segment(struct soft_shm *shm, int *fd)
{
    uint32_t hint = shm->ask.ring_bytes ? shm->ask.ring_bytes : 1u << 20;
    uint32_t data = power_below((uint32_t)exsi_min_u64(exsi_max_u64(hint / 8, 4096), 256u << 10));
    uint32_t slots = (uint32_t)exsi_min_u64(exsi_max_u64(data / 512, 64), 256);
    struct shm_map map = {.bytes = shm_page_up(shm_segment_bytes(slots, data))};
    EXSI_TRY(shm_memfd_new("exs-segment", map.bytes, false, fd, &map.base));
    struct shm_head *h = map.base;
    h->magic = SHM_MAGIC;
    h->version = SHM_VERSION;
    h->slots = slots;
    h->data_bytes = data;
    struct shm_made made = {shm->ask.part, map, slots, data, false};
    int rc = shm_path_new(&made, &shm->path);
    if (rc < 0) close(*fd);
    return rc;
}

static int send_hello(struct soft_shm *shm, const struct soft_block *request)
{
    int fds[2];
    EXSI_TRY(make_segment(shm, &fds[0]));
    fds[1] = shm->ask.part->shm->page_fd;
    struct shm_msg m = {.magic = SHM_MAGIC,
                        .version = SHM_VERSION,
                        .type = SHM_MSG_HELLO,
                        .flags = my_flags(shm),
                        .addr = (uint64_t)(uintptr_t)shm->token,
                        .slots = shm->path->slots,
                        .data_bytes = shm->path->data_bytes};
    memcpy(m.token, request->token, sizeof m.token);
    memcpy(m.peer_token, shm->token, sizeof m.peer_token);
    int rc = shm_send_msg(shm->fd, &m, fds, 2);
    close(fds[0]);
    return rc;
}

/* 0, or why not. */
static uint16_t answer(struct soft_shm *shm, const struct soft_block *request)
{
    shm->fd = dial(request);
    if (shm->fd < 0) return shm->fd == -EMFILE || shm->fd == -ENFILE ? WHY_RESOURCES : WHY_NO_NAME;
    if (peer_process(shm->fd, &shm->pid) < 0) return WHY_USER;
    shm->can_pull = shm->ask.path != EXSI_PATH_SHM_RING && probe(shm->pid, request->probe_addr, request->token);
    if (shm->ask.path == EXSI_PATH_SHM_VM && !shm->can_pull) return WHY_NO_PULL;
    return send_hello(shm, request) < 0 ? WHY_RESOURCES : 0;
}

struct soft_shm *soft_shm_answer(const struct soft_shm_ask *ask, const struct soft_block *request,
                                 struct soft_block *reply, char *reason)
{
    reply->why = WHY_OFF;
    struct soft_shm *shm = shm_make(ask, reason);
    if (!shm) return NULL;
    uint16_t why = answer(shm, request);
    if (why) {
        reply->why = why;
        snprintf(reason, EXSI_REASON_MAX, "%s", soft_shm_why_text(why));
        shm_free(shm);
        return NULL;
    }
    reply->why = 0;
    reply->flags |= SOFT_BLOCK_SHM;
    return shm;
}

/* The ACK says yes: join what is ready. */
static const char *take_ack(struct soft_shm *shm, const struct shm_msg *m, int page_fd)
{
    struct shm_map page;
    bool vm = may_pull(shm, m);
    if (!vm && shm->ask.path == EXSI_PATH_SHM_VM) return soft_shm_why_text(WHY_NO_PULL);
    if (map_page(page_fd, &page) < 0) return soft_shm_why_text(WHY_PROTOCOL);
    exsi_poller_del(shm->ask.part->poller, &shm->watch);
    shm_path_join(shm->path, shm->fd, page, shm->pid, vm, ring_only(shm, m));
    return NULL;
}

static void on_ack(struct exsi_watch *w, uint32_t events)
{
    struct soft_shm *shm = exsi_container_of(w, struct soft_shm, watch);
    struct shm_msg m;
    int fds[SHM_MAX_FDS], n_fds;
    (void)events;
    int rc = shm_recv_msg(shm->fd, &m, fds, &n_fds);
    if (rc == -EAGAIN) return;
    if (rc == 0 || rc == -ECONNRESET) {
        finish(shm, NULL, "the other side went away during set-up");
        return;
    }
    const char *why = NULL;
    if (rc < 0 || m.type != SHM_MSG_ACK || memcmp(m.token, shm->token, SOFT_TOKEN_LEN))
        why = soft_shm_why_text(WHY_PROTOCOL);
    else if (m.why)
        why = soft_shm_why_text(m.why);
    else if (n_fds != 1)
        why = soft_shm_why_text(WHY_PROTOCOL);
    else
        why = take_ack(shm, &m, fds[0]);
    shm_close_fds(fds, n_fds);
    if (why) {
        finish(shm, NULL, why);
        return;
    }
    struct soft_path *path = &shm->path->path;
    shm->path = NULL;
    shm->fd = -1;
    finish(shm, path, NULL);
}

void soft_shm_wait(struct soft_shm *shm)
{
    shm->watch.fn = on_ack;
    if (exsi_poller_add(shm->ask.part->poller, &shm->watch, shm->fd, EPOLLIN) < 0)
        finish(shm, NULL, soft_shm_why_text(WHY_RESOURCES));
}
