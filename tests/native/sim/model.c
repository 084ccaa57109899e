// SPDX-License-Identifier: MIT OR Apache-2.0
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FREED  0xDD
#define POSTED 0xEE

static uint8_t byte_of(int dir, uint32_t send, uint32_t i)
{
    uint64_t state = (uint64_t)dir << 60 | (uint64_t)send << 20 | i;
    return (uint8_t)sim_next(&state);
}

static bool all(const uint8_t *at, size_t len, uint8_t value)
{
    for (size_t i = 0; i < len; i++)
        if (at[i] != value) return false;
    return true;
}

void model_start(struct model *m, struct pair *p, bool packets)
{
    uint8_t *log[2] = {m->dir[0].log, m->dir[1].log};
    struct message *messages[2] = {m->dir[0].messages, m->dir[1].messages};
    uint32_t cap[2] = {m->dir[0].log_cap, m->dir[1].log_cap};
    uint64_t events = m->events;
    for (int i = 0; i < 2; i++) m->dir[i].n_sends = 0;
    memset(m->send, 0, offsetof(struct model, wrong) + 1 - offsetof(struct model, send));
    m->pair = p;
    m->packets = packets;
    m->events = events;
    for (int i = 0; i < 2; i++) {
        struct direction *d = &m->dir[i];
        d->log = log[i];
        d->log_cap = cap[i];
        d->messages = messages[i] ? messages[i] : calloc(MAX_SENDS * 2, sizeof *messages[i]);
        d->n_sends = d->log_len = d->n_messages = d->last_ok = d->shut_at = 0;
        d->receiver_shut = false;
        memset(p->side[i].memory, FREED, SLOTS * 2 * SLOT_STRIDE);
        for (uint32_t k = 0; k < SLOTS; k++) {
            m->send[i][k].base = p->side[i].memory + k * SLOT_STRIDE;
            m->recv[i][k].base = p->side[i].memory + (SLOTS + k) * SLOT_STRIDE;
        }
    }
}

void model_end(struct model *m)
{
    for (int i = 0; i < 2; i++) {
        free(m->dir[i].log);
        free(m->dir[i].messages);
    }
}

static struct slot *free_slot(struct slot *slots)
{
    for (uint32_t i = 0; i < SLOTS; i++)
        if (!slots[i].busy) return &slots[i];
    return NULL;
}

static uint64_t cookie_of(const struct slot *s, const struct slot *slots, bool recv)
{
    return (uint64_t)recv << 32 | (uint64_t)(s - slots);
}

void model_post_send(struct model *m, int side, uint32_t len, uint32_t split, uint32_t flags)
{
    struct direction *d = &m->dir[side];
    struct slot *s = free_slot(m->send[side]);
    if (!s || d->n_sends == MAX_SENDS) return;
    if (!all(s->base, SLOT_STRIDE, FREED)) wrong(m, "memory of an ended send was written");
    for (uint32_t i = 0; i < len; i++) s->base[i] = byte_of(side, d->n_sends, i);
    uint32_t index = d->n_sends++;
    d->sends[index] = (struct sent){.len = len};
    *s = (struct slot){.busy = true, .index = index, .len = len, .flags = flags, .base = s->base};
    m->busy_sends[side]++;
    int rc =
        pair_post(m->pair, side, EXSI_OP_SEND, s->base, len, split, flags, cookie_of(s, m->send[side], false), &s->op);
    if (flags & EXSI_OPF_SHUT_WR) m->send_shut[side] = true;
    if (rc == 0) return;
    if (rc != -EPIPE && !m->over) wrong(m, "a send was refused with %d", rc);
    s->busy = false;
    m->busy_sends[side]--;
    d->n_sends--;
    memset(s->base, FREED, SLOT_STRIDE);
}

void model_post_recv(struct model *m, int side, uint32_t len, uint32_t split, uint32_t flags)
{
    struct slot *s = free_slot(m->recv[side]);
    if (!s) return;
    if (!all(s->base, SLOT_STRIDE, FREED)) wrong(m, "memory of an ended receive was written");
    memset(s->base, POSTED, SLOT_STRIDE);
    *s = (struct slot){.busy = true, .index = m->n_recvs[side]++, .len = len, .flags = flags, .base = s->base};
    m->busy_recvs[side]++;
    int rc =
        pair_post(m->pair, side, EXSI_OP_RECV, s->base, len, split, flags, cookie_of(s, m->recv[side], true), &s->op);
    if (rc < 0) {
        wrong(m, "a receive was refused with %d", rc);
        s->busy = false;
        m->busy_recvs[side]--;
    }
}

void model_cancel(struct model *m, int side, bool recv, uint32_t slot)
{
    struct slot *s = recv ? &m->recv[side][slot] : &m->send[side][slot];
    if (!s->busy) return;
    s->cancelled = true;
    pair_cancel(m->pair, side, s->op);
}

static void deliver(struct model *m, int side, const uint8_t *at, uint32_t len)
{
    struct direction *d = &m->dir[1 - side];
    if (len == 0) return; /* an empty delivery has no memory on either side */
    if (d->log_len + len > d->log_cap) {
        d->log_cap = 2 * (d->log_len + len) + 4096;
        d->log = realloc(d->log, d->log_cap);
    }
    memcpy(d->log + d->log_len, at, len);
    d->log_len += len;
}

void model_take(struct model *m, int side, uint32_t len)
{
    uint8_t copy[SLOT_BYTES];
    struct side *s = &m->pair->side[side];
    model_events(m); /* bytes of receives that ended come before these */
    int64_t got = s->ep->engine->take(&s->at, copy, len, false);
    exsi_group_flush(m->pair->group);
    if (got > (int64_t)len) wrong(m, "take gave more than asked");
    if (got > 0) deliver(m, side, copy, (uint32_t)got);
    if (got < 0 && got != -EAGAIN && !m->over) wrong(m, "take failed with %d", (int)got);
}

void model_shut_send(struct model *m, int side)
{
    m->send_shut[side] = true;
    m->pair->side[side].ep->engine->shutdown_send(&m->pair->side[side].at);
    exsi_group_flush(m->pair->group);
}

void model_shut_recv(struct model *m, int side)
{
    struct direction *d = &m->dir[1 - side];
    model_events(m);
    m->recv_shut[side] = true;
    d->receiver_shut = true;
    d->shut_at = d->log_len;
    m->pair->side[side].ep->engine->shutdown_recv(&m->pair->side[side].at);
    exsi_group_flush(m->pair->group);
}

/* --- events ------------------------------------------------------------------------------------------ */

static void send_event(struct model *m, int side, struct slot *s, const struct exsi_event *ev)
{
    struct direction *d = &m->dir[side];
    struct sent *sent = &d->sends[s->index];
    sent->over = true;
    sent->counts = m->packets ? ev->error == 0 : (uint32_t)ev->value;
    switch (ev->error) {
    case 0:
        if (ev->value != s->len) wrong(m, "a send of %u ended well with %u", s->len, (unsigned)ev->value);
        if (s->index < d->last_ok) wrong(m, "sends ended out of order");
        d->last_ok = s->index + 1;
        break;
    case ECANCELED:
        if (!s->cancelled) wrong(m, "a send ended with ECANCELED unasked");
        if (ev->value > s->len || ev->value != ev->extra) wrong(m, "a cancelled send counts %u", (unsigned)ev->value);
        if (!m->over && (ev->value > 0) != !!(ev->flags & EXSI_EV_SEND_SHUT)) wrong(m, "SEND_SHUT does not fit");
        if (ev->value) m->send_shut[side] = true;
        break;
    case EPIPE:
        if (m->packets || ev->value) wrong(m, "EPIPE for a send that was accepted");
        break;
    case EMSGSIZE:
        if (!(s->flags & EXSI_OPF_STRICT_SIZE)) wrong(m, "EMSGSIZE unasked");
        break;
    default:
        sent->failed = true;
        if (!m->over) wrong(m, "a send ended with %d", ev->error);
    }
    memset(s->base, FREED, SLOT_STRIDE);
    m->busy_sends[side]--;
}

static void recv_event(struct model *m, int side, struct slot *s, const struct exsi_event *ev)
{
    uint32_t len = (uint32_t)ev->value;
    struct direction *d = &m->dir[1 - side];
    if (len > s->len)
        wrong(m, "a receive of %u got %u", s->len, len);
    else if (!m->over && !all(s->base + len, SLOT_STRIDE - len, POSTED)) /* an abort may leave what was not noticed */
        wrong(m, "bytes behind the count of a receive were written");
    bool eof = ev->flags & EXSI_EV_EOF, message = ev->flags & EXSI_EV_EOR;
    bool ended = eof || m->over || s->cancelled || m->recv_shut[side];
    if (ev->error == ECANCELED && (!s->cancelled || len)) wrong(m, "a receive ended with ECANCELED and %u bytes", len);
    if (ev->error && ev->error != ECANCELED && !m->over) wrong(m, "a receive ended with %d", ev->error);
    if (ev->error && len) wrong(m, "bytes of a failed receive are lost");
    if (!ev->error && s->len && !message && !len && !eof) wrong(m, "a receive of nothing");
    if (eof && len) wrong(m, "end of stream with bytes");
    if (!m->packets && (s->flags & EXSI_OPF_WAITALL) && !ev->error && len < s->len && !ended &&
        !(m->pair->side[side].changed & EXSI_CHANGE_PEER_FIN))
        wrong(m, "waitall ended early");
    if (len || message) {
        if (s->index < m->last_recv[side]) wrong(m, "receives ended out of order");
        m->last_recv[side] = s->index + 1;
    }
    if (m->packets && !ev->error && message) {
        uint32_t full = ev->flags & EXSI_EV_TRUNCATED ? (uint32_t)ev->extra : len;
        if (ev->flags & EXSI_EV_TRUNCATED && len != s->len) wrong(m, "a cut message does not fill its receive");
        d->messages[d->n_messages++] = (struct message){.len = len, .full = full, .at = d->log_len};
    }
    deliver(m, side, s->base, len);
    memset(s->base, FREED, SLOT_STRIDE);
    m->busy_recvs[side]--;
}

void model_events(struct model *m)
{
    struct exsi_event ev;
    for (int side = 0; side < 2; side++) {
        while (pair_event(m->pair, side, &ev)) {
            bool recv = ev.cookie >> 32;
            struct slot *s = recv ? &m->recv[side][(uint32_t)ev.cookie] : &m->send[side][(uint32_t)ev.cookie];
            m->events++;
            if (!s->busy || ev.kind != (recv ? EXSI_OP_RECV : EXSI_OP_SEND)) {
                wrong(m, "an event too many");
                continue;
            }
            if (recv)
                recv_event(m, side, s, &ev);
            else
                send_event(m, side, s, &ev);
            s->busy = s->cancelled = false;
        }
    }
}

/* --- the end ------------------------------------------------------------------------------------------- */

static void compare_stream(struct model *m, int dir, bool whole)
{
    const struct direction *d = &m->dir[dir];
    uint32_t upto = d->receiver_shut ? d->shut_at : d->log_len, at = 0;
    for (uint32_t i = 0; i < d->n_sends; i++) {
        uint32_t n = d->sends[i].failed ? d->sends[i].len : d->sends[i].counts;
        for (uint32_t j = 0; j < n && at < upto; j++, at++) {
            if (d->log[at] != byte_of(dir, i, j)) {
                wrong(m, "direction %d: byte %u is not byte %u of send %u", dir, at, j, i);
                return;
            }
        }
        if (whole && !d->receiver_shut && at == upto && i + 1 < d->n_sends && n) continue;
    }
    if (at < upto) wrong(m, "direction %d: %u bytes were received that nobody sent", dir, upto - at);
    if (!whole || d->receiver_shut) return;
    uint64_t total = 0;
    for (uint32_t i = 0; i < d->n_sends; i++) total += d->sends[i].counts;
    if (total != d->log_len) wrong(m, "direction %d: %u of %u bytes arrived", dir, d->log_len, (uint32_t)total);
}

static void compare_messages(struct model *m, int dir, bool whole)
{
    const struct direction *d = &m->dir[dir];
    uint32_t k = 0;
    for (uint32_t i = 0; i < d->n_sends; i++) {
        if (!d->sends[i].counts && !d->sends[i].failed) continue;
        if (k == d->n_messages) {
            if (whole && !d->receiver_shut) wrong(m, "direction %d: message %u of send %u is missing", dir, k, i);
            return;
        }
        const struct message *got = &d->messages[k++];
        if (got->full != d->sends[i].len) wrong(m, "message %u is %u long, not %u", k, got->full, d->sends[i].len);
        for (uint32_t j = 0; j < got->len; j++)
            if (d->log[got->at + j] != byte_of(dir, i, j)) wrong(m, "message %u differs at %u", k, j);
    }
    if (k < d->n_messages) wrong(m, "direction %d: %u messages too many", dir, d->n_messages - k);
}

void model_compare(struct model *m, bool whole)
{
    for (int i = 0; i < 2; i++) {
        if (m->busy_sends[i] || m->busy_recvs[i])
            wrong(m, "side %d: %u sends and %u receives never ended", i, m->busy_sends[i], m->busy_recvs[i]);
        if (m->packets)
            compare_messages(m, i, whole);
        else
            compare_stream(m, i, whole);
    }
}
