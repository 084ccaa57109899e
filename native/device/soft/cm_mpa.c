// SPDX-License-Identifier: MIT OR Apache-2.0
/* The exchange of MPA frames over a fresh TCP connection, and what the two sides agree on by it: CRC,
 * length of FPDUs, shared memory or not.  Nothing is sent behind a request before its reply (some
 * implementations read it as part of the request), and a frame is read exactly to its end, since
 * behind a reply the first FPDU may follow. */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "device/soft/cm.h"

enum { SHM_WAIT_MS = 2000, MPA_REVISION = 2 };

static bool path_forced(const struct soft_id *id)
{
    return id->opt.path == EXSI_PATH_SHM || id->opt.path == EXSI_PATH_SHM_VM || id->opt.path == EXSI_PATH_SHM_RING;
}

/* --- shared memory ----------------------------------------------------------------------------- */

static void shm_done(void *arg, struct soft_path *path, const char *reason)
{
    struct soft_id *id = arg;
    id->shm = NULL;
    if (!path && reason) exsi_log(id->part->log, EXSI_LOG_DEBUG, 0, "no shared memory: %s", reason);
    if (!path && path_forced(id))
        soft_id_fail(id, EOPNOTSUPP, "shared memory is not possible: %s", reason ? reason : "not said why");
    else
        soft_id_agreed(id, path);
}

static struct soft_shm_ask shm_ask(struct soft_id *id)
{
    return (struct soft_shm_ask){
        .part = id->part, .path = id->opt.path, .ring_bytes = id->opt.shm_ring_bytes, .done = shm_done, .arg = id};
}

static bool shm_wanted(const struct soft_id *id)
{
    return id->opt.path != EXSI_PATH_TCP && !id->part->fault.no_shm;
}

bool soft_mpa_give_up_shm(struct soft_id *id)
{
    if (path_forced(id)) return false;
    soft_shm_drop(id->shm);
    shm_done(id, NULL, "the peer did not come to our socket in time");
    return true;
}

/* --- frames out -------------------------------------------------------------------------------- */

static void frame_out(struct soft_id *id);

static void answered(struct soft_id *id)
{
    if (!id->shm) {
        soft_id_agreed(id, NULL);
        return;
    }
    id->state = SOFT_ID_SHARING;
    /* A peer that stayed on tcp may send before we have seen that it did: not our bytes to read. */
    exsi_poller_mod(id->part->poller, &id->watch, 0);
    soft_shm_wait(id->shm);
}

static void frame_out(struct soft_id *id)
{
    while (id->out_sent < id->out_len) {
        ssize_t n = send(id->fd, id->out + id->out_sent, id->out_len - id->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            exsi_poller_mod(id->part->poller, &id->watch, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0) {
            int error = errno == EPIPE ? ECONNRESET : errno;
            soft_id_fail(id, error, "the peer went away during set-up: %s", strerror(error));
            return;
        }
        id->out_sent += (uint32_t)n;
    }
    exsi_poller_mod(id->part->poller, &id->watch, EPOLLIN);
    if (id->state == SOFT_ID_ANSWERING) answered(id);
}

void soft_mpa_call(struct soft_id *id, const void *private_data, uint32_t len)
{
    char reason[EXSI_REASON_MAX] = "";
    if (shm_wanted(id)) {
        struct soft_shm_ask ask = shm_ask(id);
        id->shm = soft_shm_offer(&ask, &id->block, reason);
        if (id->shm) id->block.flags |= SOFT_BLOCK_SHM;
    }
    if (!id->shm && path_forced(id)) {
        soft_id_fail(id, EOPNOTSUPP, "shared memory is not possible: %s", reason);
        return;
    }
    struct mpa_frame f = {.crc = id->opt.crc, .revision = MPA_REVISION, .enhanced = true, .ird = 1, .ord = 1};
    id->out_len = mpa_encode(&f, private_data, len, &id->block, id->out);
    id->out_sent = id->in_have = 0;
    id->in_want = MPA_HEADER_LEN;
    id->state = SOFT_ID_CALLING;
    int rc = exsi_poller_add(id->part->poller, &id->watch, id->fd, EPOLLIN);
    if (rc < 0)
        soft_id_fail(id, -rc, "%s", strerror(-rc));
    else
        frame_out(id);
}

/* RFC 6581 §9.1 */
static uint32_t encode_reply(struct soft_id *id, bool reject, const void *private_data, uint32_t len)
{
    const struct mpa_frame *q = &id->request;
    /* Depths are granted as asked: reads are not served, but some initiators insist on the number. */
    struct mpa_frame f = {.reply = true,
                          .crc = q->crc || id->opt.crc,
                          .reject = reject,
                          .revision = q->revision,
                          .enhanced = q->enhanced,
                          .ird = q->ord ? q->ord : 1,
                          .ord = 1};
    return mpa_encode(&f, private_data, len, id->peer_soft ? &id->block : NULL, id->out);
}

void soft_mpa_reject(struct soft_id *id, const void *private_data, uint32_t len, uint16_t why)
{
    id->block = (struct soft_block){.why = why};
    uint32_t n = encode_reply(id, true, private_data, len);
    int fd = id->fd;
    exsi_poller_del(id->part->poller, &id->watch);
    id->fd = -1;
    soft_linger(id->part, fd, id->out, n, id->opt.close_timeout_ms);
}

void soft_mpa_answer(struct soft_id *id, const void *private_data, uint32_t len)
{
    char reason[EXSI_REASON_MAX] = "the peer did not offer it";
    bool offered = id->peer_soft && id->peer_block.flags & SOFT_BLOCK_SHM;
    id->block = (struct soft_block){0};
    id->crc = id->request.crc || id->opt.crc;
    if (offered && shm_wanted(id)) {
        struct soft_shm_ask ask = shm_ask(id);
        id->shm = soft_shm_answer(&ask, &id->peer_block, &id->block, reason);
        if (id->shm) id->block.flags |= SOFT_BLOCK_SHM;
    } else if (offered) {
        id->block.why = SOFT_WHY_OFF;
    }
    if (!id->shm && path_forced(id)) {
        soft_mpa_reject(id, private_data, len, id->block.why);
        soft_id_fail(id, EOPNOTSUPP, "shared memory is not possible: %s", reason);
        return;
    }
    id->out_len = encode_reply(id, false, private_data, len);
    id->out_sent = 0;
    id->state = SOFT_ID_ANSWERING;
    frame_out(id);
}

/* --- frames in --------------------------------------------------------------------------------- */

static void request_in(struct soft_id *id, const struct mpa_frame *f)
{
    id->request = *f;
    if (f->markers) {
        soft_mpa_reject(id, NULL, 0, 0);
        soft_id_fail(id, EPROTO, "the peer wants MPA markers");
        return;
    }
    exsi_timer_stop(id->part->poller, &id->timer);
    id->state = SOFT_ID_REQUESTED;
    if (id->raw) {
        soft_raw_requested(id);
        return;
    }
    /* From here until our reply the peer has nothing to say. */
    exsi_poller_mod(id->part->poller, &id->watch, EPOLLIN | EPOLLRDHUP);
    soft_id_event(id, EXSI_CM_REQUEST, id->upper, id->upper_len);
}

static void rejected(struct soft_id *id)
{
    if (id->peer_soft && id->peer_block.why)
        soft_id_fail(id, EOPNOTSUPP, "refused by the peer: %s", soft_shm_why_text(id->peer_block.why));
    else
        soft_id_fail(id, ECONNREFUSED, "refused by the peer's program");
}

static void reply_in(struct soft_id *id, const struct mpa_frame *f)
{
    if (f->reject) {
        rejected(id);
        return;
    }
    if (f->markers) {
        soft_id_fail(id, EPROTO, "the peer wants MPA markers");
        return;
    }
    id->crc = id->opt.crc || f->crc;
    bool shm = id->shm && id->peer_soft && id->peer_block.flags & SOFT_BLOCK_SHM;
    if (shm) {
        id->state = SOFT_ID_SHARING;
        exsi_poller_mod(id->part->poller, &id->watch, EPOLLRDHUP);
        if (exsi_timer_start(id->part->poller, &id->timer, (uint64_t)SHM_WAIT_MS * 1000000u) < 0) shm = false;
    }
    if (shm) {
        soft_shm_confirm(id->shm, &id->peer_block);
        return;
    }
    uint16_t why = id->peer_soft ? id->peer_block.why : 0;
    if (id->shm) soft_shm_drop(id->shm);
    id->shm = NULL;
    if (path_forced(id))
        soft_id_fail(id, EOPNOTSUPP, "shared memory is not possible: %s",
                     !id->peer_soft ? "the peer is another implementation" : soft_shm_why_text(why));
    else
        soft_id_agreed(id, NULL);
}

/* All bytes of a frame are there. */
static void frame_in(struct soft_id *id)
{
    bool reply = id->state == SOFT_ID_CALLING;
    struct mpa_frame f;
    const uint8_t *private_data;
    const char *why;
    uint32_t rest;
    if (mpa_decode_header(reply, id->in, &f, &rest, &why) < 0 ||
        mpa_decode_rest(&f, id->in + MPA_HEADER_LEN, rest, &private_data, &why) < 0) {
        soft_id_fail(id, EPROTO, "%s", why);
        return;
    }
    id->upper = private_data;
    id->peer_soft = soft_block_decode(private_data, f.private_len, &id->peer_block, &id->upper_len);
    if (reply)
        reply_in(id, &f);
    else
        request_in(id, &f);
}

/* What came does not begin as a frame must: say what it was. */
static void not_mpa(struct soft_id *id)
{
    char quote[MPA_QUOTE_MAX];
    mpa_quote(id->in, id->in_have, quote);
    soft_id_fail(id, EPROTO, "the peer does not speak MPA, it began with %s", quote);
}

/* Read as far as the frame goes: 1 complete, 0 more to come, -1 the id failed. */
static int read_frame(struct soft_id *id)
{
    bool reply = id->state == SOFT_ID_CALLING;
    while (id->in_have < id->in_want) {
        ssize_t n = recv(id->fd, id->in + id->in_have, id->in_want - id->in_have, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) {
            int error = n < 0 ? errno : ECONNRESET;
            soft_id_fail(id, error, "the peer went away during set-up: %s", n < 0 ? strerror(error) : "end of stream");
            return -1;
        }
        id->in_have += (uint32_t)n;
        if (!mpa_key_matches(reply, id->in, id->in_have)) {
            not_mpa(id);
            return -1;
        }
        if (id->in_have != MPA_HEADER_LEN || id->in_want != MPA_HEADER_LEN) continue;
        struct mpa_frame f;
        const char *why;
        uint32_t rest;
        if (mpa_decode_header(reply, id->in, &f, &rest, &why) < 0) {
            soft_id_fail(id, EPROTO, "%s", why);
            return -1;
        }
        id->in_want += rest;
    }
    return 1;
}

void soft_mpa_event(struct soft_id *id, uint32_t events)
{
    if (id->state == SOFT_ID_GREETING || id->state == SOFT_ID_CALLING) {
        if (events & EPOLLOUT && id->out_sent < id->out_len) {
            frame_out(id);
            return; /* level-triggered: what is to be read comes again, and the id may be gone */
        }
        if (read_frame(id) > 0) frame_in(id);
        return;
    }
    if (id->state == SOFT_ID_ANSWERING && !(events & (EPOLLERR | EPOLLHUP))) {
        if (events & EPOLLOUT) {
            frame_out(id);
            return;
        }
    }
    int error = soft_sock_error(id->fd);
    uint8_t byte;
    if (!error && recv(id->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
        soft_id_fail(id, EPROTO, "the peer sent data before our reply");
    else
        soft_id_fail(id, error ? error : ECONNRESET, "the peer went away during set-up");
}
