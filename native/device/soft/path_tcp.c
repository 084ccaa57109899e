// SPDX-License-Identifier: MIT OR Apache-2.0
/* Path tcp: its life, and the sending half.
 * Invariants: a frame names user memory only while its message is in the send queue and not done; bytes
 * leave in the order of the queue; after the descriptor was given up nothing of the queue is touched. */
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/copy.h"
#include "base/crc32c.h"
#include "device/soft/tcp.h"

enum { CRC_CHUNK = 4096, MIN_FPDU = 128 };

/* --- the end ----------------------------------------------------------------------------------- */

static int take_fd(struct soft_tcp *t)
{
    int fd = t->fd;
    exsi_poller_del(t->path.part->poller, &t->watch);
    exsi_timer_stop(t->path.part->poller, &t->pause);
    exsi_timer_stop(t->path.part->poller, &t->watchdog);
    t->fd = -1;
    return fd;
}

void soft_tcp_broken(struct soft_tcp *t, int error, const char *reason)
{
    if (t->fd < 0) return;
    soft_close_reset(take_fd(t));
    t->path.sink->broken(t->path.qp, error, reason);
}

static uint32_t frame_total(const struct tcp_frame *f)
{
    return f->head_len + f->len + f->tail_len;
}

/* An FPDU that is partly out must be completed before a Terminate can follow; its source goes back to
 * its owner now, so the rest is copied.  0 or -errno: then there is no Terminate. */
static int copy_partial(const struct soft_tcp *t, uint8_t *out, uint32_t *len)
{
    *len = 0;
    if (!t->frame_sent) return 0;
    const struct tcp_frame *f = &t->frames[t->frame_head];
    uint8_t *whole = out;
    uint32_t at = f->head_len, skip = f->off, left = f->len;
    memcpy(whole, f->bytes, f->head_len);
    for (uint32_t i = 0; left; i++) {
        const struct exsi_sge *sge = &f->tx->wr.sge[i];
        uint32_t n = sge->len > skip ? sge->len - skip : 0;
        n = exsi_min_u32(n, left);
        if (n) EXSI_TRY(exsi_copy(whole + at, (uint8_t *)sge->addr + skip, n, sge->mr && sge->mr->mem.fragile));
        skip -= exsi_min_u32(skip, sge->len);
        at += n;
        left -= n;
    }
    memcpy(whole + at, f->bytes + f->head_len, f->tail_len);
    *len = frame_total(f) - t->frame_sent;
    memmove(out, out + t->frame_sent, *len);
    return 0;
}

static uint32_t terminate_frame(const struct soft_tcp *t, const struct iwarp_error *err, bool with_header, uint8_t *out)
{
    uint8_t payload[IWARP_TERMINATE_MAX];
    uint32_t header_len = t->seg.tagged ? IWARP_TAGGED_LEN : IWARP_UNTAGGED_LEN;
    /* In MPA's eyes the stream is not what was sent, its headers included. */
    if (header_len > t->head_have || err->layer == IWARP_LAYER_MPA) with_header = false;
    struct iwarp_segment seg = {.last = true, .opcode = IWARP_TERMINATE, .qn = IWARP_QN_TERMINATE, .msn = 1};
    seg.payload = iwarp_terminate_encode(err, with_header ? t->head : NULL, header_len, payload);
    uint32_t at = iwarp_encode(&seg, out);
    memcpy(out + at, payload, seg.payload);
    at += seg.payload;
    uint8_t zero[3] = {0};
    uint32_t crc = t->crc ? exsi_crc32c(exsi_crc32c(0, out, at), zero, iwarp_pad(at)) : 0;
    return at + iwarp_put_trailer(at, crc, out + at);
}

/* RFC 5040 §5.4 */
static void say_terminate(struct soft_tcp *t, const struct iwarp_error *err, bool with_header)
{
    uint32_t room = IWARP_MAX_ULPDU + 2 + IWARP_TRAILER_MAX, len = 0;
    uint8_t *out = malloc(room + IWARP_UNTAGGED_LEN + IWARP_TERMINATE_MAX + IWARP_TRAILER_MAX);
    int fd = take_fd(t);
    if (!out || t->fin_sent || copy_partial(t, out, &len) < 0) {
        soft_close_reset(fd);
    } else {
        len += terminate_frame(t, err, with_header, out + len);
        soft_linger(t->path.part, fd, out, len, t->linger_ms);
    }
    free(out);
}

void soft_tcp_refuse(struct soft_tcp *t, struct iwarp_error err, bool with_header, int error)
{
    if (t->fd < 0) return;
    say_terminate(t, &err, with_header);
    t->path.sink->broken(t->path.qp, error, iwarp_error_text(&err));
}

static void tcp_terminate(struct soft_path *p, int layer, int etype, int code)
{
    struct soft_tcp *t = soft_tcp_of(p);
    struct iwarp_error err = {(uint8_t)layer, (uint8_t)etype, (uint8_t)code};
    if (t->fd >= 0) say_terminate(t, &err, false);
}

static void tcp_abort(struct soft_path *p)
{
    struct soft_tcp *t = soft_tcp_of(p);
    if (t->fd >= 0) soft_close_reset(take_fd(t));
}

static void tcp_free(struct soft_path *p)
{
    struct soft_tcp *t = soft_tcp_of(p);
    /* Unread bytes would make a reset of it, which may destroy what the peer has not read. */
    if (t->fd >= 0 && !t->peer_fin && !t->frame_len)
        soft_linger(p->part, take_fd(t), NULL, 0, t->linger_ms);
    else if (t->fd >= 0)
        close(take_fd(t));
    free(t);
}

/* --- framing ----------------------------------------------------------------------------------- */

int soft_tcp_crc(uint32_t *crc, const uint8_t *data, size_t len, bool fragile)
{
    uint8_t chunk[CRC_CHUNK];
    if (!fragile) {
        *crc = exsi_crc32c(*crc, data, len);
        return 0;
    }
    for (size_t at = 0; at < len;) {
        size_t n = len - at < sizeof chunk ? len - at : sizeof chunk;
        EXSI_TRY(exsi_copy(chunk, data + at, n, true));
        *crc = exsi_crc32c(*crc, chunk, n);
        at += n;
    }
    return 0;
}

/* Pieces of [off, off + len) of a message, as iovecs; how many. */
static int tx_pieces(const struct soft_tx *tx, uint32_t off, uint32_t len, struct iovec *iov)
{
    int n = 0;
    for (uint32_t i = 0; len; i++) {
        const struct exsi_sge *sge = &tx->wr.sge[i];
        if (off >= sge->len) {
            off -= sge->len;
            continue;
        }
        uint32_t here = exsi_min_u32(sge->len - off, len);
        iov[n++] = (struct iovec){(uint8_t *)sge->addr + off, here};
        len -= here;
        off = 0;
    }
    return n;
}

/* CRC over one frame's header, payload and padding. */
static int frame_crc(const struct tcp_frame *f, uint32_t covered, uint32_t *crc)
{
    struct iovec iov[EXSI_MAX_SGE];
    uint8_t zero[3] = {0};
    int n = f->len ? tx_pieces(f->tx, f->off, f->len, iov) : 0;
    *crc = exsi_crc32c(0, f->bytes, f->head_len);
    for (int i = 0; i < n; i++) {
        bool fragile = false; /* any of the message's pieces: then all are taken with care */
        for (uint32_t k = 0; k < f->tx->wr.num_sge; k++)
            fragile |= f->tx->wr.sge[k].mr && f->tx->wr.sge[k].mr->mem.fragile;
        EXSI_TRY(soft_tcp_crc(crc, iov[i].iov_base, iov[i].iov_len, fragile));
    }
    *crc = exsi_crc32c(*crc, zero, iwarp_pad(covered));
    return 0;
}

static int frame_seal(struct soft_tcp *t, struct tcp_frame *f)
{
    struct soft_fault *fault = &t->path.part->fault;
    uint32_t covered = f->head_len + f->len, crc = 0;
    if (t->crc) EXSI_TRY(frame_crc(f, covered, &crc));
    if (++fault->sent_fpdus == fault->corrupt_crc_at) crc ^= 0x5a5a5a5au;
    f->tail_len = (uint8_t)iwarp_put_trailer(covered, crc, f->bytes + f->head_len);
    return 0;
}

/* The response to an empty read: nothing, to where the peer said. */
static int frame_answer(struct soft_tcp *t)
{
    struct iwarp_segment seg = {
        .tagged = true, .last = true, .opcode = IWARP_READ_RESPONSE, .stag = t->answer_stag, .to = t->answer_to};
    struct tcp_frame *f = &t->frames[(t->frame_head + t->frame_len) % TCP_FRAMES];
    *f = (struct tcp_frame){.head_len = IWARP_TAGGED_LEN};
    (void)iwarp_encode(&seg, f->bytes);
    EXSI_TRY(frame_seal(t, f));
    t->frame_len++;
    t->answer_due = false;
    return 1;
}

/* Frame the next FPDU of the send queue: 1, 0 when there is none, or -EFAULT.  RFC 5040 §5.5, RFC 5041 §5.2 */
static int frame_next(struct soft_tcp *t)
{
    struct soft_tx *tx = soft_qp_tx(t->path.qp, t->framed);
    if (t->frame_len == TCP_FRAMES) return 0;
    /* Between messages: some peers refuse it inside of one. */
    if (t->answer_due && (!tx || !tx->sent)) return frame_answer(t);
    if (!tx) return 0;
    bool tagged = tx->wr.op == EXSI_WR_WRITE;
    uint32_t len = exsi_min_u32(tx->len - tx->sent, tagged ? t->max_tagged : t->max_untagged);
    bool last = tx->sent + len == tx->len;
    struct iwarp_segment seg = {.tagged = tagged, .last = last, .payload = len};
    if (tagged) {
        seg.opcode = IWARP_WRITE;
        seg.stag = tx->wr.rkey;
        seg.to = tx->wr.raddr + tx->sent;
    } else {
        seg.opcode = tx->wr.flags & EXSI_WR_SOLICITED ? IWARP_SEND_SE : IWARP_SEND;
        seg.msn = t->tx_msn;
        seg.mo = tx->sent;
    }
    struct tcp_frame *f = &t->frames[(t->frame_head + t->frame_len) % TCP_FRAMES];
    f->tx = tx;
    f->off = tx->sent;
    f->len = len;
    f->ends = last;
    f->head_len = (uint8_t)iwarp_encode(&seg, f->bytes);
    if (tx->wr.flags & EXSI_WR_INLINE) {
        memcpy(f->bytes + f->head_len, tx->inline_data + tx->sent, len);
        f->head_len = (uint8_t)(f->head_len + len);
        f->len = 0;
    }
    EXSI_TRY(frame_seal(t, f));
    t->frame_len++;
    tx->sent += len;
    if (last) {
        t->framed++;
        if (!tagged) t->tx_msn++;
    }
    return 1;
}

/* --- sending ----------------------------------------------------------------------------------- */

/* Drop the first bytes that are out already. */
static int iov_skip(struct iovec *iov, int n, size_t skip)
{
    int first = 0;
    while (first < n && skip >= iov[first].iov_len) skip -= iov[first++].iov_len;
    if (first < n) {
        iov[first].iov_base = (uint8_t *)iov[first].iov_base + skip;
        iov[first].iov_len -= skip;
    }
    memmove(iov, iov + first, (size_t)(n - first) * sizeof *iov);
    return n - first;
}

static int iov_cap(struct iovec *iov, int n, size_t cap)
{
    for (int i = 0; i < n; i++) {
        if (iov[i].iov_len >= cap) {
            iov[i].iov_len = cap;
            return i + 1;
        }
        cap -= iov[i].iov_len;
    }
    return n;
}

static size_t iov_sum(const struct iovec *iov, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += iov[i].iov_len;
    return sum;
}

/* Everything that goes into the next sendmsg; -EFAULT when a source cannot be read for its CRC. */
static int gather(struct soft_tcp *t, struct iovec *iov)
{
    int n = 0;
    size_t bytes = 0;
    /* Peers that expect FPDUs aligned to segments get one per call. */
    uint32_t most = t->peer_soft ? TCP_FRAMES : 1;
    for (uint32_t i = 0; i < most && n + EXSI_MAX_SGE + 2 <= TCP_IOVS && bytes < TCP_BUDGET; i++) {
        if (i == t->frame_len) {
            int rc = frame_next(t);
            if (rc < 0) return rc;
            if (rc == 0) break;
        }
        const struct tcp_frame *f = &t->frames[(t->frame_head + i) % TCP_FRAMES];
        if (f->len) {
            iov[n++] = (struct iovec){(void *)f->bytes, f->head_len};
            n += tx_pieces(f->tx, f->off, f->len, iov + n);
            iov[n++] = (struct iovec){(void *)(f->bytes + f->head_len), f->tail_len};
        } else {
            iov[n++] = (struct iovec){(void *)f->bytes, (size_t)f->head_len + f->tail_len};
        }
        bytes += frame_total(f);
    }
    n = iov_skip(iov, n, t->frame_sent);
    const struct soft_fault *fault = &t->path.part->fault;
    return fault->max_send ? iov_cap(iov, n, fault->max_send) : n;
}

static void sent(struct soft_tcp *t, size_t bytes)
{
    bool done = false;
    while (bytes) {
        struct tcp_frame *f = &t->frames[t->frame_head];
        uint32_t left = frame_total(f) - t->frame_sent;
        if (bytes < left) {
            t->frame_sent += (uint32_t)bytes;
            break;
        }
        bytes -= left;
        t->frame_sent = 0;
        t->frame_head = (t->frame_head + 1) % TCP_FRAMES;
        t->frame_len--;
        if (!f->ends) continue;
        f->tx->done = done = true;
        t->framed--;
    }
    if (done) t->path.sink->tx_done(t->path.qp);
}

static void want(struct soft_tcp *t)
{
    bool reads = !t->peer_fin && !t->starved;
    uint32_t events = (reads ? (uint32_t)EPOLLIN : 0u) | (t->blocked ? (uint32_t)EPOLLOUT : 0u);
    exsi_poller_mod(t->path.part->poller, &t->watch, events);
}

static void send_failed(struct soft_tcp *t, int error)
{
    if (error == EFAULT) {
        struct iwarp_error err = {IWARP_LAYER_RDMAP, IWARP_RDMAP_LOCAL, 0};
        soft_tcp_refuse(t, err, false, EFAULT);
        return;
    }
    /* What the peer said before it reset the connection is still there to be read, and is the better reason. */
    soft_tcp_drain(t);
    soft_tcp_broken(t, error == EPIPE ? ECONNRESET : error, strerror(error));
}

/* Scripted faults: true if nothing may be sent now. */
static bool held_by_fault(struct soft_tcp *t)
{
    struct soft_fault *fault = &t->path.part->fault;
    if (fault->kill_after && fault->sent_bytes >= fault->kill_after) {
        soft_tcp_broken(t, ECONNRESET, "killed by a scripted fault");
        return true;
    }
    if (!fault->delay_ns || !soft_qp_tx(t->path.qp, 0)) return false;
    if (exsi_timer_running(&t->pause)) return true;
    if (t->paused) {
        t->paused = false;
        return false;
    }
    t->paused = exsi_timer_start(t->path.part->poller, &t->pause, fault->delay_ns) == 0;
    return t->paused;
}

static void pause_over(struct exsi_timer *timer)
{
    soft_tcp_send(exsi_container_of(timer, struct soft_tcp, pause));
}

/* --- is the peer's host still there? ------------------------------------------------------------ */

/* TCP probes only an idle connection; one with bytes on the way it keeps for a quarter of an hour. */
static void watch_over(struct soft_tcp *t)
{
    uint64_t after_ns = (uint64_t)t->keepalive_ms * 1000000u / 2;
    if (!t->keepalive_ms || exsi_timer_running(&t->watchdog)) return;
    if (exsi_timer_start(t->path.part->poller, &t->watchdog, after_ns) < 0) return; /* TCP's own bound is left */
}

static void watchdog(struct exsi_timer *timer)
{
    struct soft_tcp *t = exsi_container_of(timer, struct soft_tcp, watchdog);
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    int queued = 0;
    if (ioctl(t->fd, SIOCOUTQ, &queued) < 0 || queued == 0) return; /* the next send starts it again */
    if (getsockopt(t->fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) return;
    /* With segments on the way a living host answers within a round trip.  With its window closed it
     * answers the probes, which become rarer, so silence alone says nothing there. */
    bool silent = info.tcpi_last_ack_recv >= t->keepalive_ms;
    bool asked = info.tcpi_unacked ? info.tcpi_retransmits > 1 : info.tcpi_probes > 2;
    if (silent && asked)
        soft_tcp_broken(t, ETIMEDOUT, "the peer's host does not answer");
    else
        watch_over(t);
}

/* One sendmsg.  Bytes that went out; 0: nothing to send or no room; -1: the path has ended. */
static ssize_t send_some(struct soft_tcp *t)
{
    struct iovec iov[TCP_IOVS];
    int n = gather(t, iov);
    if (n < 0) {
        send_failed(t, EFAULT);
        return -1;
    }
    if (n == 0) return 0;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (t->peer_soft ? 0 : MSG_EOR);
    size_t asked = iov_sum(iov, n);
    exsi_count(t->path.stats, syscalls, 1);
    ssize_t got = sendmsg(t->fd, &msg, flags);
    if (got < 0 && errno != EAGAIN && errno != EINTR) {
        send_failed(t, errno);
        return -1;
    }
    t->blocked = got < (ssize_t)asked;
    if (got <= 0) return 0;
    t->path.part->fault.sent_bytes += (uint64_t)got;
    watch_over(t);
    sent(t, (size_t)got);
    return got;
}

void soft_tcp_send(struct soft_tcp *t)
{
    ssize_t budget = TCP_BUDGET;
    if (t->fd < 0 || t->blocked) return;
    /* RFC 5044 §7.1.2: a responder does not send before it has received. */
    if (t->responder && !t->peer_soft && !t->heard) return;
    if (held_by_fault(t)) return;
    for (;;) {
        ssize_t n = send_some(t);
        if (n < 0) return;
        budget -= n;
        if (n == 0 || t->blocked) break;
        if (budget <= 0) {
            t->blocked = t->frame_len > 0 || soft_qp_tx(t->path.qp, t->framed);
            break;
        }
        if (held_by_fault(t)) break;
    }
    if (t->fd < 0) return;
    if (t->shut && !t->fin_sent && !t->frame_len && !soft_qp_tx(t->path.qp, 0)) {
        t->fin_sent = true;
        shutdown(t->fd, SHUT_WR);
    }
    if (t->fin_sent && t->peer_fin)
        exsi_poller_del(t->path.part->poller, &t->watch); /* else it would report the hang-up for ever */
    else
        want(t);
}

static void tcp_kick(struct soft_path *p)
{
    soft_tcp_send(soft_tcp_of(p));
}

static void tcp_resume(struct soft_path *p)
{
    struct soft_tcp *t = soft_tcp_of(p);
    soft_tcp_fed(t);
    if (t->fd >= 0) soft_tcp_send(t);
}

/* RFC 5044 §7.2 */
static void tcp_shut(struct soft_path *p)
{
    struct soft_tcp *t = soft_tcp_of(p);
    t->shut = true;
    soft_tcp_send(t);
}

/* --- life -------------------------------------------------------------------------------------- */

static void tcp_event(struct exsi_watch *w, uint32_t events)
{
    struct soft_tcp *t = exsi_container_of(w, struct soft_tcp, watch);
    /* Readable first, also while a send is stuck: else two senders stop each other. */
    if (!t->peer_fin && events & ~(uint32_t)EPOLLOUT) soft_tcp_receive(t);
    if (t->fd >= 0 && t->peer_fin && events & (EPOLLERR | EPOLLHUP) && !t->fin_sent)
        soft_tcp_broken(t, ECONNRESET, "the peer closed before it had taken everything");
    if (t->fd < 0) return;
    if (events & EPOLLOUT) t->blocked = false;
    soft_tcp_send(t);
}

static int tcp_start(struct soft_path *p)
{
    struct soft_tcp *t = soft_tcp_of(p);
    return exsi_poller_add(p->part->poller, &t->watch, t->fd, EPOLLIN);
}

static const char *tcp_name(const struct soft_path *p)
{
    (void)p;
    return "tcp";
}

static int tcp_progress(struct soft_path *p)
{
    (void)p;
    return 0; /* the poller announces everything */
}

static void tcp_lend(struct soft_path *p, uint32_t rkey, const struct soft_mr *mr, uint64_t raddr, size_t len)
{
    (void)p;
    (void)rkey;
    (void)mr;
    (void)raddr;
    (void)len;
}

static const struct soft_path_ops tcp_ops = {
    .family = "tcp",
    .name = tcp_name,
    .start = tcp_start,
    .kick = tcp_kick,
    .progress = tcp_progress,
    .resume = tcp_resume,
    .shut = tcp_shut,
    .terminate = tcp_terminate,
    .abort = tcp_abort,
    .free = tcp_free,
    .lend = tcp_lend,
};

/* What one FPDU may carry: all a length field can say to a soft peer, one TCP segment to all others.  RFC 5044 §4.5 */
static void tcp_limits(struct soft_tcp *t)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    t->max_tagged = IWARP_MAX_TAGGED;
    t->max_untagged = IWARP_MAX_UNTAGGED;
    if (t->peer_soft) return;
    uint32_t segment = 536; /* RFC 9293: what every path carries */
    if (getsockopt(t->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_snd_mss >= MIN_FPDU)
        segment = info.tcpi_snd_mss;
    uint32_t fpdu = exsi_min_u32(segment & ~3u, IWARP_MAX_ULPDU & ~3u);
    t->max_tagged = fpdu - IWARP_TAGGED_LEN - IWARP_CRC_LEN;
    t->max_untagged = fpdu - IWARP_UNTAGGED_LEN - IWARP_CRC_LEN;
}

int soft_tcp_new(struct soft_part *part, const struct soft_tcp_config *cfg, struct soft_path **out)
{
    struct soft_tcp *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    t->path.ops = &tcp_ops;
    t->path.part = part;
    t->path.max_msg = part->part.dev->caps.max_msg;
    exsi_list_init(&t->path.node);
    t->watch = (struct exsi_watch){.fd = -1, .fn = tcp_event};
    t->pause.fn = pause_over;
    t->watchdog.fn = watchdog;
    t->fd = cfg->fd;
    t->crc = cfg->crc;
    t->peer_soft = cfg->peer_soft;
    t->responder = cfg->responder;
    t->linger_ms = cfg->linger_ms;
    t->keepalive_ms = cfg->keepalive_ms;
    t->tx_msn = 1;
    tcp_limits(t);
    *out = &t->path;
    return 0;
}
