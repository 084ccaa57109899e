// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: whatever bytes a peer sends over a connection, the receiver writes nothing outside of the
 * range behind a key and of the posted receive, completes no message that it did not get whole, ends
 * with exactly one of "closed" and "broken", and never waits for more after the end of the stream. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "device/soft/qp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { KEY = 1, WINDOW = 4096, SLOT = 512, RECEIVES = 4, GUARD = 64, BASE = 0x10000 };

/* The sink stands for a queue pair: one key for window, RECEIVES receives of SLOT bytes each. */
static struct {
    uint8_t before[GUARD], window[WINDOW], between[GUARD], slot[RECEIVES][SLOT], after[GUARD];
    uint32_t msn, mo;
    int closed, broken;
    bool held, fed; /* a message waits for its receive; gets it */
} state;

static void require(bool holds)
{
    if (!holds) abort();
}

static int on_tagged(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst, bool *fragile)
{
    (void)qp;
    require(!state.closed && !state.broken);
    if (rkey != KEY) return -ENOENT;
    if (raddr < BASE || !exsi_range_inside(raddr - BASE, len, WINDOW)) return -ERANGE;
    *dst = state.window + (raddr - BASE);
    *fragile = raddr & 1; /* both ways of touching it */
    return 0;
}

static void on_tagged_done(struct soft_qp *qp, uint32_t len, bool last)
{
    (void)qp;
    (void)last;
    require(len <= WINDOW && !state.closed && !state.broken);
}

static int on_untagged(struct soft_qp *qp, uint32_t msn, uint32_t mo, uint32_t len, void **dst)
{
    (void)qp;
    require(!state.closed && !state.broken);
    if (msn != state.msn || mo != state.mo) return -EPROTO;
    if (msn > RECEIVES) return -ENOBUFS;
    if (!exsi_range_inside(mo, len, SLOT)) return -EMSGSIZE;
    *dst = state.slot[msn - 1] + mo;
    return 0;
}

static void on_untagged_done(struct soft_qp *qp, uint32_t mo, uint32_t len, bool last, bool solicited)
{
    (void)qp;
    (void)solicited;
    require(mo == state.mo && mo + len <= SLOT && state.msn <= RECEIVES);
    state.mo = last ? 0 : mo + len;
    state.msn += last;
}

/* Now and then a message has to wait. */
static bool on_may_receive(struct soft_qp *qp)
{
    (void)qp;
    state.held = state.msn % 3 == 2 && !state.fed;
    return !state.held;
}

static void on_tx_done(struct soft_qp *qp)
{
    (void)qp;
}

static void on_closed(struct soft_qp *qp)
{
    (void)qp;
    state.closed++;
}

static void on_broken(struct soft_qp *qp, int error, const char *reason)
{
    (void)qp;
    require(error > 0 && reason);
    state.broken++;
}

static const struct soft_sink_ops sink = {
    .tagged = on_tagged,
    .tagged_done = on_tagged_done,
    .untagged = on_untagged,
    .untagged_done = on_untagged_done,
    .may_receive = on_may_receive,
    .tx_done = on_tx_done,
    .peer_closed = on_closed,
    .broken = on_broken,
};

/* The receive that a message waits for. */
static void feed(struct soft_path *path)
{
    if (!state.held) return;
    state.held = false;
    state.fed = true;
    path->ops->resume(path);
    state.fed = false;
}

static void run(struct soft_part *part, const uint8_t *data, size_t len, bool crc)
{
    struct soft_qp qp = {.sq_cap = SOFT_TX_CHUNK};
    struct exsi_stats stats = {0};
    struct soft_path *path;
    int fds[2];
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    struct soft_tcp_config cfg = {.fd = fds[0], .crc = crc, .peer_soft = true, .linger_ms = 1};
    require(soft_tcp_new(part, &cfg, &path) == 0);
    path->qp = &qp;
    path->sink = &sink;
    path->stats = &stats;
    require(path->ops->start(path) == 0);
    for (size_t at = 0; at < len; feed(path)) {
        ssize_t n = send(fds[1], data + at, len - at, MSG_NOSIGNAL);
        if (n > 0) at += (size_t)n;
        if (n <= 0 && exsi_poller_run(part->poller) == 0) break; /* it has ended: the rest goes nowhere */
    }
    shutdown(fds[1], SHUT_WR);
    for (int i = 0; i < 100000 && !state.closed && !state.broken; i++) {
        feed(path);
        exsi_poller_run(part->poller);
    }
    require(state.closed + state.broken == 1);
    path->ops->free(path);
    close(fds[1]);
    soft_linger_fini(part);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct exsi_poller poller;
    struct soft_device dev = {.dev = {.caps = {.max_msg = 1u << 30}}};
    struct soft_part part = {.part = {.dev = &dev.dev}, .poller = &poller};
    if (len < 1 || len > 60000) return 0;
    exsi_list_init(&part.lingering);
    part.fault.max_recv = data[0] & 0x7f; /* how the stream is cut into reads */
    memset(&state, 0, sizeof state);
    state.msn = 1;
    require(exsi_poller_init(&poller) == 0);
    run(&part, data + 1, len - 1, data[0] & 0x80);
    exsi_poller_fini(&poller);
    for (int i = 0; i < GUARD; i++) require(!state.before[i] && !state.between[i] && !state.after[i]);
    return 0;
}
