// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sockets that outlive their connection to say one last thing (a Terminate, a refusal).
 * Closing a socket with unread bytes sends a reset, and a reset may destroy what the peer has not
 * read yet; so: send, shut down writing, drain to the end of the stream, close, all within a bound. */
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "device/soft/qp.h"

enum { LINGER_DEFAULT_MS = 2000, LINGER_READS = 16 };

struct last_words {
    struct exsi_list node;
    struct exsi_watch watch;
    struct exsi_timer timer;
    struct soft_part *part;
    size_t len, sent;
    uint8_t data[];
};

void soft_close_reset(int fd)
{
    struct linger off = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
    close(fd);
}

static void linger_end(struct last_words *l, bool reset)
{
    int fd = l->watch.fd;
    exsi_poller_del(l->part->poller, &l->watch);
    exsi_timer_stop(l->part->poller, &l->timer);
    exsi_list_unlink(&l->node);
    if (reset)
        soft_close_reset(fd);
    else
        close(fd);
    free(l);
}

/* True when there is nothing left to say. */
static bool linger_send(struct last_words *l, int fd, bool *failed)
{
    while (l->sent < l->len) {
        ssize_t n = send(fd, l->data + l->sent, l->len - l->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            *failed = errno != EAGAIN && errno != EINTR;
            return false;
        }
        l->sent += (size_t)n;
    }
    return true;
}

static void linger_event(struct exsi_watch *w, uint32_t events)
{
    struct last_words *l = exsi_container_of(w, struct last_words, watch);
    uint8_t waste[4096];
    bool failed = false;
    if (l->sent < l->len && events & (EPOLLOUT | EPOLLERR | EPOLLHUP) && linger_send(l, w->fd, &failed)) {
        shutdown(w->fd, SHUT_WR);
        exsi_poller_mod(l->part->poller, w, EPOLLIN);
    }
    for (int i = 0; i < LINGER_READS && !failed; i++) {
        ssize_t n = recv(w->fd, waste, sizeof waste, MSG_DONTWAIT);
        if (n > 0) continue;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        linger_end(l, false);
        return;
    }
    if (failed) linger_end(l, true);
}

static void linger_late(struct exsi_timer *t)
{
    linger_end(exsi_container_of(t, struct last_words, timer), true);
}

void soft_linger(struct soft_part *part, int fd, const void *data, size_t len, uint32_t timeout_ms)
{
    struct last_words *l = malloc(sizeof *l + len);
    bool failed = false;
    if (!l) {
        soft_close_reset(fd);
        return;
    }
    *l = (struct last_words){.part = part, .len = len};
    l->watch = (struct exsi_watch){.fd = -1, .fn = linger_event};
    l->timer.fn = linger_late;
    exsi_list_append(&part->lingering, &l->node);
    if (len) memcpy(l->data, data, len);
    bool out = linger_send(l, fd, &failed);
    if (out) shutdown(fd, SHUT_WR);
    uint64_t bound_ns = (uint64_t)(timeout_ms ? timeout_ms : LINGER_DEFAULT_MS) * 1000000u;
    if (failed || exsi_timer_start(part->poller, &l->timer, bound_ns) < 0 ||
        exsi_poller_add(part->poller, &l->watch, fd, out ? EPOLLIN : EPOLLIN | EPOLLOUT) < 0) {
        exsi_timer_stop(part->poller, &l->timer);
        exsi_list_unlink(&l->node);
        free(l);
        soft_close_reset(fd);
    }
}

void soft_linger_fini(struct soft_part *part)
{
    while (!exsi_list_empty(&part->lingering))
        linger_end(exsi_list_first(&part->lingering, struct last_words, node), false);
}
