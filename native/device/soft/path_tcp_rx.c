// SPDX-License-Identifier: MIT OR Apache-2.0
/* The receiving half of path tcp: a state machine over FPDUs.
 * Invariant: a header is checked completely, and the sink has named the target, before any byte of its
 * payload is asked from the socket; the target is asked for again before every further call, since its
 * key may have ended in between. */
#include <string.h>
#include <sys/uio.h>

#include "base/crc32c.h"
#include "device/soft/tcp.h"

/* What to say in a Terminate for an error of the sink.  RFC 5041 §7.1, §7.2 */
struct soft_terminate soft_terminate_for(int error, bool tagged)
{
    switch (error) {
    case -ENOENT: return (struct soft_terminate){IWARP_LAYER_DDP, IWARP_DDP_TAGGED, IWARP_T_INVALID_STAG};
    case -ERANGE:
        if (!tagged) return (struct soft_terminate){IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_MO};
        return (struct soft_terminate){IWARP_LAYER_DDP, IWARP_DDP_TAGGED, IWARP_T_BOUNDS};
    case -EACCES: return (struct soft_terminate){IWARP_LAYER_RDMAP, IWARP_RDMAP_PROTECTION, IWARP_P_ACCESS};
    case -ENOBUFS: return (struct soft_terminate){IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_NO_BUFFER};
    case -EMSGSIZE: return (struct soft_terminate){IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_TOO_LONG};
    case -EPROTO: return (struct soft_terminate){IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_MSN};
    default: return (struct soft_terminate){IWARP_LAYER_RDMAP, IWARP_RDMAP_LOCAL, 0};
    }
}

static int refuse_sink(struct soft_tcp *t, int rc)
{
    struct soft_terminate why = soft_terminate_for(rc, t->seg.tagged);
    /* Violations are the peer's; what is left is ours. */
    bool theirs = rc == -ENOENT || rc == -ERANGE || rc == -EACCES || rc == -ENOBUFS || rc == -EMSGSIZE;
    soft_tcp_refuse(t, (struct iwarp_error){why.layer, why.etype, why.code}, true, theirs ? EPROTO : -rc);
    return -1;
}

static int refuse(struct soft_tcp *t, struct iwarp_error err)
{
    soft_tcp_refuse(t, err, true, EPROTO);
    return -1;
}

/* RFC 5040 §4.6 */
static bool is_send(uint8_t opcode)
{
    return opcode == IWARP_SEND || opcode == IWARP_SEND_SE;
}

/* Ask the sink where the FPDU goes, or the part of it that is still missing.  RFC 5040 §4.3 */
static int find_target(struct soft_tcp *t)
{
    const struct iwarp_segment *seg = &t->seg;
    void *dst = NULL;
    int rc = 0;
    t->fragile = false;
    if (seg->tagged && seg->payload > t->placed) {
        rc = t->path.sink->tagged(t->path.qp, seg->stag, seg->to + t->placed, seg->payload - t->placed, &dst,
                                  &t->fragile);
        t->dst = dst;
    } else if (!seg->tagged) {
        rc = t->path.sink->untagged(t->path.qp, seg->msn, seg->mo, seg->payload, &dst);
        t->dst = rc < 0 ? NULL : (uint8_t *)dst + t->placed;
    }
    return rc < 0 ? refuse_sink(t, rc) : 0;
}

/* Sixteen bytes of a header are there.  RFC 5040 §4.4 */
static int begin(struct soft_tcp *t)
{
    struct iwarp_error err;
    t->placed = 0;
    t->scratch_have = 0;
    if (iwarp_decode(t->head, &t->seg, &err) < 0) return refuse(t, err);
    uint8_t op = t->seg.opcode;
    bool read = op == IWARP_READ_REQUEST && t->seg.payload == IWARP_READ_LEN && t->seg.last;
    if (op != IWARP_WRITE && op != IWARP_TERMINATE && !is_send(op) && !read) {
        /* Responses answer nothing, and no key of ours may be ended by the peer. */
        err = (struct iwarp_error){IWARP_LAYER_RDMAP, IWARP_RDMAP_OPERATION, IWARP_O_OPCODE};
        if (op == IWARP_SEND_INVALIDATE || op == IWARP_SEND_SE_INVALIDATE) err.code = IWARP_O_INVALIDATE;
        return refuse(t, err);
    }
    t->rx_crc = t->crc ? exsi_crc32c(0, t->head, IWARP_TAGGED_LEN) : 0;
    if (t->seg.tagged) {
        t->rx = TCP_RX_BODY;
        return find_target(t);
    }
    t->rx = t->seg.payload <= TCP_SMALL ? TCP_RX_SMALL : TCP_RX_REST;
    err = (struct iwarp_error){IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_TOO_LONG};
    if (op == IWARP_TERMINATE && t->rx == TCP_RX_REST) return refuse(t, err);
    return 0;
}

/* The CRC behind the payload; rx_crc covers header and payload.  RFC 5044 §4.4 */
static int check_crc(struct soft_tcp *t, const uint8_t *trailer, uint32_t covered)
{
    if (!t->crc) return 0;
    uint32_t crc = exsi_crc32c(t->rx_crc, trailer, iwarp_pad(covered));
    if (crc == iwarp_get_crc(trailer, covered)) return 0;
    return refuse(t, (struct iwarp_error){IWARP_LAYER_MPA, IWARP_MPA_ERROR, IWARP_M_CRC});
}

/* One FPDU is complete; behind it the first bytes of the next may have come already. */
static int next(struct soft_tcp *t, const uint8_t *more, uint32_t len)
{
    t->mid_message = !t->seg.last;
    t->heard = true;
    t->rx = TCP_RX_HEAD;
    memmove(t->head, more, len);
    t->head_have = len;
    return len == IWARP_TAGGED_LEN ? begin(t) : 0;
}

/* RFC 5040 §5.4 */
static int peer_terminated(struct soft_tcp *t, const uint8_t *payload)
{
    struct iwarp_error err;
    char text[EXSI_REASON_MAX] = "the peer sent a Terminate: ";
    if (iwarp_terminate_decode(payload, t->seg.payload, &err) < 0) err = (struct iwarp_error){0};
    strncat(text, iwarp_error_text(&err), sizeof text - strlen(text) - 1);
    soft_tcp_broken(t, -iwarp_error_errno(&err), text);
    return -1;
}

/* Only empty reads are served: they ask whether we are there.  No key of ours lets anything be read.
 * RFC 5040 §4.4, §5.2 */
static int read_requested(struct soft_tcp *t, const uint8_t *payload)
{
    struct iwarp_error err = {IWARP_LAYER_RDMAP, IWARP_RDMAP_OPERATION, IWARP_O_OPCODE};
    struct iwarp_read read = iwarp_decode_read(payload);
    if (t->seg.msn != t->reads + 1 || t->seg.mo) {
        err = (struct iwarp_error){IWARP_LAYER_DDP, IWARP_DDP_UNTAGGED, IWARP_U_MSN};
        return refuse(t, err);
    }
    /* We granted one at a time. */
    if (read.len || t->answer_due) return refuse(t, err);
    t->reads++;
    t->answer_due = true;
    t->answer_stag = read.sink_stag;
    t->answer_to = read.sink_to;
    return 0;
}

/* A SEND for which there is no receive stays where it is, and all that is behind it in the socket. */
static bool must_wait(struct soft_tcp *t)
{
    t->starved = is_send(t->seg.opcode) && !t->path.sink->may_receive(t->path.qp);
    return t->starved;
}

static int small_done(struct soft_tcp *t)
{
    struct iwarp_segment *seg = &t->seg;
    if (must_wait(t)) return 0;
    const uint8_t *payload = t->scratch + 4, *trailer = payload + seg->payload;
    uint32_t covered = IWARP_UNTAGGED_LEN + seg->payload;
    struct iwarp_error err;
    memcpy(t->head + IWARP_TAGGED_LEN, t->scratch, 4);
    t->head_have = IWARP_UNTAGGED_LEN;
    if (t->crc) t->rx_crc = exsi_crc32c(t->rx_crc, t->scratch, 4 + seg->payload);
    if (check_crc(t, trailer, covered) < 0) return -1;
    if (iwarp_decode_rest(t->scratch, seg, &err) < 0) return refuse(t, err);
    if (seg->opcode == IWARP_TERMINATE) return peer_terminated(t, payload);
    if (seg->opcode == IWARP_READ_REQUEST) {
        if (read_requested(t, payload) < 0) return -1;
    } else {
        if (find_target(t) < 0) return -1;
        if (seg->payload) memcpy(t->dst, payload, seg->payload);
        t->path.sink->untagged_done(t->path.qp, seg->mo, seg->payload, seg->last, seg->opcode == IWARP_SEND_SE);
    }
    const uint8_t *more = trailer + iwarp_trailer_len(covered);
    return next(t, more, (uint32_t)(t->scratch + t->scratch_have - more));
}

static int rest_done(struct soft_tcp *t)
{
    struct iwarp_error err;
    if (must_wait(t)) return 0;
    if (iwarp_decode_rest(t->head + IWARP_TAGGED_LEN, &t->seg, &err) < 0) return refuse(t, err);
    if (t->crc) t->rx_crc = exsi_crc32c(t->rx_crc, t->head + IWARP_TAGGED_LEN, 4);
    t->rx = TCP_RX_BODY;
    return find_target(t);
}

static int body_done(struct soft_tcp *t)
{
    const struct iwarp_segment *seg = &t->seg;
    uint32_t covered = iwarp_header_len(seg->tagged) + seg->payload, trailer = iwarp_trailer_len(covered);
    if (check_crc(t, t->scratch, covered) < 0) return -1;
    if (seg->tagged)
        t->path.sink->tagged_done(t->path.qp, seg->payload, seg->last);
    else
        t->path.sink->untagged_done(t->path.qp, seg->mo, seg->payload, seg->last, seg->opcode == IWARP_SEND_SE);
    return next(t, t->scratch + trailer, t->scratch_have - trailer);
}

/* Bytes that complete the current FPDU's trailer. */
static uint32_t trailer_len(const struct soft_tcp *t)
{
    return iwarp_trailer_len(iwarp_header_len(t->seg.tagged) + t->seg.payload);
}

/* Where the next bytes go, in the present state. */
static int plan(struct soft_tcp *t, struct iovec iov[2])
{
    uint32_t all;
    switch (t->rx) {
    case TCP_RX_HEAD: iov[0] = (struct iovec){t->head + t->head_have, IWARP_TAGGED_LEN - t->head_have}; return 1;
    case TCP_RX_SMALL:
        all = 4 + t->seg.payload + trailer_len(t) + IWARP_TAGGED_LEN;
        iov[0] = (struct iovec){t->scratch + t->scratch_have, all - t->scratch_have};
        return 1;
    case TCP_RX_REST: iov[0] = (struct iovec){t->head + t->head_have, IWARP_UNTAGGED_LEN - t->head_have}; return 1;
    case TCP_RX_BODY:
        iov[0] = (struct iovec){t->dst, t->seg.payload - t->placed};
        iov[1] = (struct iovec){t->scratch + t->scratch_have, trailer_len(t) + IWARP_TAGGED_LEN - t->scratch_have};
        return 2;
    }
    return 0;
}

static int body_received(struct soft_tcp *t, uint32_t n)
{
    uint32_t body = exsi_min_u32(n, t->seg.payload - t->placed);
    if (t->crc && body) {
        int rc = soft_tcp_crc(&t->rx_crc, t->dst, body, t->fragile);
        if (rc < 0) return refuse_sink(t, rc);
    }
    t->placed += body;
    if (body) t->dst += body;
    t->scratch_have += n - body;
    return t->placed == t->seg.payload && t->scratch_have >= trailer_len(t) ? body_done(t) : 0;
}

/* n more bytes are where plan said.  -1: the path has ended. */
static int received(struct soft_tcp *t, uint32_t n)
{
    switch (t->rx) {
    case TCP_RX_HEAD: t->head_have += n; return t->head_have == IWARP_TAGGED_LEN ? begin(t) : 0;
    case TCP_RX_SMALL:
        t->scratch_have += n;
        return t->scratch_have >= 4 + t->seg.payload + trailer_len(t) ? small_done(t) : 0;
    case TCP_RX_REST: t->head_have += n; return t->head_have == IWARP_UNTAGGED_LEN ? rest_done(t) : 0;
    case TCP_RX_BODY: return body_received(t, n);
    }
    return -1;
}

/* The header of an FPDU is kept until its CRC has come: head_have tells of each moment inside of one.  RFC 5044 §7.2 */
static void end_of_stream(struct soft_tcp *t)
{
    if (t->head_have || t->mid_message) {
        soft_tcp_broken(t, ECONNRESET, "the peer closed in the middle of a message");
        return;
    }
    t->peer_fin = true;
    t->path.sink->peer_closed(t->path.qp);
}

/* One recvmsg.  1: there may be more, 0: not now, -1: over. */
static int receive_some(struct soft_tcp *t, ssize_t *got)
{
    struct iovec iov[2];
    if (t->starved) return 0;
    if (t->rx == TCP_RX_BODY && t->placed < t->seg.payload && find_target(t) < 0) return -1;
    int n = plan(t, iov);
    size_t asked = iov[0].iov_len + (n > 1 ? iov[1].iov_len : 0);
    uint32_t cap = t->path.part->fault.max_recv;
    if (cap && cap < asked) {
        asked = cap;
        if (iov[0].iov_len >= cap) n = 1;
        if (n > 1) iov[1].iov_len = cap - iov[0].iov_len;
        if (iov[0].iov_len > cap) iov[0].iov_len = cap;
    }
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
    exsi_count(t->path.stats, syscalls, 1);
    *got = recvmsg(t->fd, &msg, MSG_DONTWAIT);
    if (*got < 0) {
        if (errno == EAGAIN || errno == EINTR) return 0;
        if (errno == EFAULT) return refuse_sink(t, -EFAULT);
        soft_tcp_broken(t, errno, strerror(errno));
        return -1;
    }
    if (*got == 0) {
        end_of_stream(t);
        return -1;
    }
    if (received(t, (uint32_t)*got) < 0) return -1;
    return !t->starved && (size_t)*got == asked;
}

void soft_tcp_receive(struct soft_tcp *t)
{
    ssize_t budget = TCP_BUDGET, got = 0;
    while (t->fd >= 0 && budget > 0 && receive_some(t, &got) > 0) budget -= got;
}

void soft_tcp_fed(struct soft_tcp *t)
{
    if (!t->starved || t->fd < 0) return;
    t->starved = false;
    if ((t->rx == TCP_RX_SMALL ? small_done(t) : rest_done(t)) < 0 || t->starved) return;
    soft_tcp_receive(t);
}

void soft_tcp_drain(struct soft_tcp *t)
{
    ssize_t got;
    do {
        got = 0;
        (void)receive_some(t, &got);
    } while (got > 0 && t->fd >= 0);
}
