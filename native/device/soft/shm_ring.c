// SPDX-License-Identifier: MIT OR Apache-2.0
/* The sending half of a connection in shared memory: messages of the send queue become slots.
 *
 * Invariant: a slot is written only when the peer has consumed what was there before, and nothing the
 * peer writes is used but one number, `consumed`, which must lie between what it said last and what
 * we wrote.  A message is done when its bytes were copied, or when the peer consumed its last slot
 * that points into the source. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/copy.h"
#include "device/soft/shm.h"

#define KICK_ROUNDS 4

/* Pieces in the ring of bytes begin on a line of their own: the reader's prefetch is the next message. */
static uint64_t line_up(uint64_t n)
{
    return (n + EXSI_CACHE_LINE - 1) & ~(uint64_t)(EXSI_CACHE_LINE - 1);
}

/* Read how far the peer is.  -EPROTO when it cannot be true. */
static int refresh(struct shm_path *p)
{
    struct shm_tx *tx = &p->tx;
    uint64_t c = atomic_load_explicit(&tx->peer->consumed, memory_order_acquire);
    if (c == tx->freed) return 0;
    if (c - tx->freed > tx->next - tx->freed) return -EPROTO;
    tx->data_freed = tx->data_mark[(c - 1) & (p->slots - 1)];
    tx->freed = c;
    return 0;
}

/* 1: there is room for one slot and `data` bytes; 0: later. */
static int room(struct shm_path *p, uint64_t data)
{
    struct shm_tx *tx = &p->tx;
    if (tx->next - tx->freed < p->slots && tx->data_next - tx->data_freed + data <= p->data_bytes) return 1;
    EXSI_TRY(refresh(p));
    return tx->next - tx->freed < p->slots && tx->data_next - tx->data_freed + data <= p->data_bytes;
}

static struct shm_slot *slot_at(struct shm_path *p)
{
    return &p->tx.slots[p->tx.next & (p->slots - 1)];
}

static void publish(struct shm_path *p, struct shm_slot *s)
{
    struct shm_tx *tx = &p->tx;
    tx->data_mark[tx->next & (p->slots - 1)] = tx->data_next;
    tx->next++;
    /* Pairs with the acquire in peek() of shm_pull.c: the slot and the bytes before the number. */
    atomic_store_explicit(&s->seq, (uint32_t)tx->next, memory_order_release);
}

/* Where the source of a message is at some offset. */
struct source {
    uint8_t *at;
    uint32_t len; /* to the end of the piece of the work request */
    const struct soft_mr *mr;
    bool fragile;
};

static struct source source_at(const struct soft_tx *t, uint32_t off)
{
    uint32_t i = 0;
    while (i < t->wr.num_sge && off >= t->wr.sge[i].len) off -= t->wr.sge[i++].len;
    if (i == t->wr.num_sge) return (struct source){0};
    const struct exsi_sge *g = &t->wr.sge[i];
    const struct soft_mr *mr =
        g->mr && !(t->wr.flags & EXSI_WR_INLINE) ? exsi_container_of(g->mr, struct soft_mr, dmr) : NULL;
    return (struct source){(uint8_t *)g->addr + off, g->len - off, mr, mr && mr->dmr.mem.fragile};
}

static struct shm_lent *lent_for(struct shm_path *p, uint32_t rkey, uint64_t raddr, uint64_t len)
{
    for (int i = 0; i < SHM_LENT; i++) {
        struct shm_lent *l = &p->tx.lent[i];
        if (l->map.base && l->rkey == rkey && raddr >= l->raddr && exsi_range_inside(raddr - l->raddr, len, l->len))
            return l;
    }
    return NULL;
}

/* Tell the peer that region number `at` is not used any more: a slot, hence behind every use of it. */
static bool forget(struct shm_path *p, int at)
{
    struct shm_tx *tx = &p->tx;
    if (room(p, 0) <= 0) return false;
    struct shm_slot *s = slot_at(p);
    s->kind = SHM_FORGET;
    s->flags = 0;
    s->zero = 0;
    s->len = 0;
    s->region = tx->sent_region[at]->id;
    publish(p, s);
    soft_region_put(tx->sent_region[at]);
    tx->sent_region[at] = NULL;
    return true;
}

/* The peer has this region, or gets it now.  false: it cannot, take another way. */
static bool region_sent(struct shm_path *p, const struct soft_mr *mr)
{
    struct shm_tx *tx = &p->tx;
    int at = -1;
    for (int i = 0; i < SHM_REGIONS; i++) {
        if (tx->sent_region[i] == mr->region) return true;
        if (!tx->sent_region[i]) at = i;
    }
    if (at < 0) {
        /* All places taken: the oldest goes.  The file of the new one must not overtake that slot, so
         * this message takes another way. */
        if (forget(p, (int)(tx->region_turn % SHM_REGIONS))) tx->region_turn++;
        return false;
    }
    struct shm_msg m = {.magic = SHM_MAGIC,
                        .version = SHM_VERSION,
                        .type = SHM_MSG_REGION,
                        .id = mr->region->id,
                        .offset = mr->dmr.mem.memfd_offset,
                        .len = mr->dmr.mem.len};
    int fd = mr->dmr.mem.memfd;
    exsi_count(p->path.stats, syscalls, 1);
    if (shm_send_msg(p->unix_fd, &m, &fd, 1) < 0) return false;
    atomic_fetch_add_explicit(&mr->region->refs, 1, memory_order_relaxed);
    tx->sent_region[at] = mr->region;
    return true;
}

bool shm_tx_forget_gone(struct shm_path *p)
{
    struct shm_tx *tx = &p->tx;
    uint64_t before = tx->next;
    bool all = true;
    if (p->broken_told) return true;
    for (int i = 0; i < SHM_REGIONS; i++)
        if (tx->sent_region[i] && atomic_load_explicit(&tx->sent_region[i]->gone, memory_order_relaxed))
            all &= forget(p, i);
    if (tx->next != before) shm_path_wake(p);
    return all;
}

/* Copy into the ring of bytes; in two parts where it wraps. */
static int to_ring(struct shm_path *p, const struct source *src, uint32_t len)
{
    struct shm_tx *tx = &p->tx;
    uint32_t at = (uint32_t)(tx->data_next & (p->data_bytes - 1));
    uint32_t first = exsi_min_u32(len, p->data_bytes - at);
    EXSI_TRY(exsi_copy(tx->data + at, src->at, first, src->fragile));
    if (first < len) EXSI_TRY(exsi_copy(tx->data, src->at + first, len - first, src->fragile));
    tx->data_next += line_up(len);
    return 0;
}

/* How a piece travels, and how long it is. */
struct plan {
    enum shm_kind kind;
    uint32_t len;
    struct shm_lent *lent;
};

static struct plan plan_piece(struct shm_path *p, const struct soft_tx *t, const struct source *src)
{
    bool untagged = t->wr.op == EXSI_WR_SEND;
    uint32_t len = src->len;
    if (len <= (untagged ? SHM_INLINE_UNTAGGED : SHM_INLINE_TAGGED)) return (struct plan){SHM_INLINE, len, NULL};
    if (!untagged) {
        struct shm_lent *l = lent_for(p, t->wr.rkey, t->wr.raddr + t->sent, len);
        if (l) return (struct plan){SHM_FILLED, len, l};
    }
    if (len <= p->ring_max) return (struct plan){SHM_RING, len, NULL};
    if (src->mr && src->mr->region && !p->ring_only && region_sent(p, src->mr))
        return (struct plan){SHM_MAPPED, len, NULL};
    if (p->vm) return (struct plan){SHM_PULL, len, NULL};
    return (struct plan){SHM_RING, exsi_min_u32(len, p->data_bytes / 4), NULL};
}

/* Move or name the bytes of one piece in its slot. */
static int fill_slot(struct shm_path *p, struct soft_tx *t, const struct source *src, const struct plan *plan,
                     struct shm_slot *s)
{
    bool untagged = t->wr.op == EXSI_WR_SEND;
    s->kind = (uint8_t)plan->kind;
    s->zero = 0;
    s->len = plan->len;
    if (!untagged) {
        s->rkey = t->wr.rkey;
        s->raddr = t->wr.raddr + t->sent;
    }
    switch (plan->kind) {
    case SHM_INLINE:
        if (!plan->len) return 0;
        if (!untagged) exsi_count(p->path.stats, bytes_copied, plan->len);
        return exsi_copy(untagged ? s->untagged : s->tagged, src->at, plan->len, src->fragile);
    case SHM_RING:
        if (!untagged) exsi_count(p->path.stats, bytes_copied, plan->len);
        return to_ring(p, src, plan->len);
    case SHM_FILLED:
        return exsi_copy(plan->lent->at + (s->raddr - plan->lent->raddr), src->at, plan->len, src->fragile);
    case SHM_PULL:
        s->src = (uint64_t)(uintptr_t)src->at;
        s->region = 0;
        return 0;
    case SHM_MAPPED:
        s->src = (uint64_t)(src->at - (uint8_t *)src->mr->dmr.mem.addr);
        s->region = src->mr->region->id;
        return 0;
    case SHM_SHUT:
    case SHM_FORGET: break;
    }
    return -EINVAL;
}

/* The notice that goes with the last piece of a WRITE: a SEND of four bytes right behind it. */
static struct soft_tx *notice_of(struct shm_path *p, const struct soft_tx *t, uint32_t *word)
{
    if (t->wr.op != EXSI_WR_WRITE || p->path.raw) return NULL; /* where it may wait, it waits alone */
    struct soft_tx *n = soft_qp_tx(p->path.qp, p->tx.handed + 1);
    if (!n || n->wr.op != EXSI_WR_SEND || n->len != sizeof *word || n->wr.num_sge != 1) return NULL;
    if (!(n->wr.flags & EXSI_WR_INLINE)) return NULL;
    memcpy(word, n->wr.sge[0].addr, sizeof *word);
    return n;
}

static uint8_t last_flags(const struct soft_tx *t, const struct soft_tx *notice)
{
    const struct soft_tx *send = notice ? notice : t;
    bool solicited = send->wr.op == EXSI_WR_SEND && (send->wr.flags & EXSI_WR_SOLICITED);
    return (uint8_t)(SHM_LAST | (notice ? SHM_NOTICE : 0) | (solicited ? SHM_SOLICITED : 0));
}

/* Write slots for the message behind the handed ones.  1: all of it; 0: no room for the rest. */
static int hand_on(struct shm_path *p, struct soft_tx *t)
{
    struct shm_tx *tx = &p->tx;
    if (!tx->mid) {
        t->sent = 0;
        t->path_mark = 0;
        tx->mid = true;
    }
    do {
        struct source src = source_at(t, t->sent);
        struct plan plan = plan_piece(p, t, &src);
        int rc = room(p, plan.kind == SHM_RING ? line_up(plan.len) : 0);
        if (rc <= 0) return rc;
        struct shm_slot *s = slot_at(p);
        uint8_t flags = t->wr.op == EXSI_WR_SEND ? SHM_UNTAGGED : 0;
        EXSI_TRY(fill_slot(p, t, &src, &plan, s));
        t->sent += plan.len;
        struct soft_tx *notice = NULL;
        if (t->sent == t->len) {
            uint32_t word = 0;
            notice = notice_of(p, t, &word);
            flags |= last_flags(t, notice);
            if (notice) s->word = word;
        }
        s->flags = flags;
        publish(p, s);
        if (plan.kind == SHM_PULL || plan.kind == SHM_MAPPED) t->path_mark = tx->source_mark = tx->next;
        if (notice) {
            notice->path_mark = 0;
            notice->sent = notice->len;
            tx->handed++;
        }
    } while (t->sent < t->len);
    tx->handed++;
    tx->mid = false;
    return 1;
}

/* Complete the messages at the head that need their source no more. */
static int retire(struct shm_path *p)
{
    struct shm_tx *tx = &p->tx;
    uint32_t n = 0;
    while (n < tx->handed) {
        struct soft_tx *t = soft_qp_tx(p->path.qp, n);
        if (!t || t->path_mark > tx->freed) break;
        t->done = true;
        n++;
    }
    if (!n) return 0;
    tx->handed -= n;
    p->path.sink->tx_done(p->path.qp);
    return (int)n;
}

/* Say from which count on we must be woken: the head waits for its source, or the rest for room.
 * true: the wish is new. */
static bool set_want(struct shm_path *p)
{
    struct shm_tx *tx = &p->tx;
    uint64_t want = SHM_WANT_NOTHING;
    if (tx->handed) {
        struct soft_tx *t = soft_qp_tx(p->path.qp, 0);
        if (t && t->path_mark) want = t->path_mark;
    }
    if (tx->stalled) want = exsi_min_u64(want, tx->freed + (tx->next - tx->freed + 1) / 2);
    if (want == tx->want) return false;
    tx->want = want;
    atomic_store_explicit(&tx->mine->want, want, memory_order_release);
    return true;
}

static int put_shut(struct shm_path *p)
{
    int rc = room(p, 0);
    if (rc <= 0) return rc;
    struct shm_slot *s = slot_at(p);
    s->kind = SHM_SHUT;
    s->flags = 0;
    s->zero = 0;
    s->len = 0;
    publish(p, s);
    p->tx.shut_sent = true;
    return 1;
}

/* As far as it goes: slots written, or -errno. */
static int push(struct shm_path *p)
{
    struct shm_tx *tx = &p->tx;
    struct soft_tx *t;
    int rc = 1;
    while (rc > 0 && (t = soft_qp_tx(p->path.qp, tx->handed))) rc = hand_on(p, t);
    if (rc > 0 && tx->shut_wanted && !tx->shut_sent) rc = put_shut(p);
    if (rc < 0) return rc;
    tx->stalled = rc == 0;
    return 0;
}

static void fail(struct shm_path *p, int rc)
{
    struct soft_terminate t = soft_terminate_for(rc, true);
    if (rc == -EPROTO)
        shm_path_violation(p, SHM_BLAME_PROTOCOL, t, EPROTO, "the peer consumed what was never sent");
    else
        shm_path_violation(p, SHM_BLAME_MINE, t, -rc, "the memory to be sent cannot be read");
}

/* Write what goes, complete what is over.  false: the path broke. */
static bool round_of(struct shm_path *p)
{
    uint64_t before = p->tx.next;
    int rc = push(p);
    if (p->tx.next != before) shm_path_wake(p);
    if (rc < 0) {
        fail(p, rc);
        return false;
    }
    retire(p);
    return true;
}

/* After a change of the wish while the group sleeps: the peer may have consumed before it could see
 * the wish, and then it will not ring.  1: it has consumed, go round once more; 0: all is well. */
static int missed(struct shm_path *p)
{
    if (!set_want(p) || !p->path.part->asleep) return 0;
    uint64_t before = p->tx.freed;
    /* Pairs with the fence in tell() of shm_pull.c. */
    shm_fence();
    EXSI_TRY(refresh(p));
    return p->tx.freed != before;
}

void shm_tx_kick(struct shm_path *p)
{
    int more = 1;
    /* A peer that keeps up could hold us here for as long as there is something to send: after a few
     * rounds the sleeper is woken to go on. */
    for (int i = 0; more > 0 && !p->broken_told; i++) {
        if (i >= KICK_ROUNDS && shm_path_again(p)) return;
        if (!round_of(p)) return;
        more = missed(p);
    }
    if (more < 0) fail(p, more);
}

int shm_tx_progress(struct shm_path *p)
{
    struct shm_tx *tx = &p->tx;
    if ((!tx->handed && !tx->stalled) || p->broken_told) return 0;
    uint64_t before = tx->freed;
    int rc = refresh(p);
    if (rc < 0) {
        fail(p, rc);
        return 1;
    }
    if (tx->freed == before) return 0;
    int done = retire(p);
    /* While somebody of the group sleeps, a new wish needs a second look at what the peer consumed. */
    if (tx->stalled || p->path.part->asleep)
        shm_tx_kick(p);
    else
        set_want(p);
    return done + 1;
}

void shm_tx_lent(struct shm_path *p, const struct shm_msg *m, int fd)
{
    if (!m->len || m->addr + m->len < m->addr) return;
    uint64_t skip = m->offset % SHM_HEAD_BYTES;
    if (m->len > UINT64_MAX - skip) return;
    struct shm_map map;
    /* What cannot be used is not filled: the peer's pull or the ring serves as well. */
    if (shm_memfd_map(fd, SHM_NEED_SHARED, m->offset - skip, m->len + skip, &map) < 0) return;
    /* Nobody says which keys have ended: the latest ones are the likeliest to live. */
    struct shm_lent *l = &p->tx.lent[p->tx.lent_turn++ % SHM_LENT];
    shm_unmap(&l->map);
    *l = (struct shm_lent){
        .rkey = m->rkey, .raddr = m->addr, .len = m->len, .at = (uint8_t *)map.base + skip, .map = map};
}
