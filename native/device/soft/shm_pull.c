// SPDX-License-Identifier: MIT OR Apache-2.0
/* The receiving half of a connection in shared memory: slots become messages at the sink.
 *
 * The peer is not trusted.  A slot is copied out once and only the copy is looked at; the position in
 * the ring of bytes is our own count; where bytes may land is the sink's word.  The bytes themselves
 * may change under us: they are payload, and what the peer wants them to be.
 *
 * The target moves the bytes, and counts a piece only if the sender had not withdrawn its sources
 * before *and* after the copy: whoever aborts may use its buffers at once. */
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/copy.h"
#include "device/soft/shm.h"

static uint64_t line_up(uint64_t n)
{
    return (n + EXSI_CACHE_LINE - 1) & ~(uint64_t)(EXSI_CACHE_LINE - 1);
}

/* Copy slot number n out, if it is there. */
static bool peek(const struct shm_path *p, uint64_t n, struct shm_slot *out)
{
    const struct shm_slot *s = &p->rx.slots[n & (p->slots - 1)];
    /* Pairs with the release in publish() of shm_ring.c. */
    if (atomic_load_explicit(&s->seq, memory_order_acquire) != (uint32_t)(n + 1)) return false;
    memcpy(out, s, sizeof *out);
    /* The copy is what is checked: no second look at the original. */
    __asm__ volatile("" : : : "memory");
    return true;
}

static void refuse(struct shm_path *p, int error, bool tagged, const char *reason)
{
    shm_path_violation(p, SHM_BLAME_PROTOCOL, soft_terminate_for(error, tagged), EPROTO, reason);
}

static bool withdrawn(struct shm_path *p)
{
    /* The copy before it must not be later than this look. */
    shm_fence();
    return atomic_load_explicit(&p->rx.peer->state, memory_order_seq_cst) & SHM_STATE_WITHDRAWN;
}

static void gone(struct shm_path *p)
{
    shm_path_break(p, ECONNRESET, "the peer withdrew what it was sending");
}

/* --- messages ---------------------------------------------------------------------------------- */

/* A SEND in the copy of a slot or in a word. */
static int place_small(struct shm_path *p, const void *src, uint32_t len, bool last, bool solicited)
{
    struct shm_rx *rx = &p->rx;
    void *dst = NULL;
    int rc = p->path.sink->untagged(p->path.qp, rx->msn, rx->mo, len, &dst);
    if (rc < 0) {
        refuse(p, rc, false, "a message came that nothing was posted for");
        return rc;
    }
    if (len) memcpy(dst, src, len);
    p->path.sink->untagged_done(p->path.qp, rx->mo, len, last, solicited);
    rx->mo = last ? 0 : rx->mo + len;
    rx->msn += last;
    return 0;
}

/* `len` bytes of the slot are where they belong; the slot may have more.  1: the slot is done. */
static int placed(struct shm_path *p, const struct shm_slot *s, uint32_t len)
{
    struct shm_rx *rx = &p->rx;
    bool all = rx->partial + len == s->len, last = all && (s->flags & SHM_LAST);
    rx->partial = all ? 0 : rx->partial + len;
    rx->next += all;
    if (s->flags & SHM_UNTAGGED) {
        p->path.sink->untagged_done(p->path.qp, rx->mo, len, last, s->flags & SHM_SOLICITED);
        rx->mo = last ? 0 : rx->mo + len;
        rx->msn += last;
        return all;
    }
    rx->in_write = !last;
    p->path.sink->tagged_done(p->path.qp, len, last);
    if (last && (s->flags & SHM_NOTICE))
        EXSI_TRY(place_small(p, &s->word, sizeof s->word, true, s->flags & SHM_SOLICITED));
    return all;
}

/* Where the next `len` bytes of the slot go. */
static int target(struct shm_path *p, const struct shm_slot *s, uint64_t done, uint32_t len, void **dst, bool *fragile)
{
    *dst = NULL;
    *fragile = false;
    if (s->flags & SHM_UNTAGGED) {
        if (p->rx.in_write) return -EPROTO;
        return p->path.sink->untagged(p->path.qp, p->rx.msn, p->rx.mo, len, dst);
    }
    if (p->rx.mo) return -EPROTO;
    if (!len) return 0; /* RFC 5040 §4.3: a WRITE of nothing needs no key */
    if (s->raddr + done < s->raddr) return -EFAULT;
    return p->path.sink->tagged(p->path.qp, s->rkey, s->raddr + done, len, dst, fragile);
}

/* --- memory of the peer that is mapped here ----------------------------------------------------- */

int shm_rx_region(struct shm_path *p, const struct shm_msg *m, int fd)
{
    struct shm_region *free_one = NULL;
    for (int i = 0; i < SHM_REGIONS; i++) {
        struct shm_region *r = &p->rx.regions[i];
        if (r->map.base && r->id == m->id) return -EPROTO;
        if (!r->map.base && !free_one) free_one = r;
    }
    if (!free_one || !m->id) return -EPROTO;
    struct shm_map map;
    int rc = shm_memfd_map(fd, SHM_NEED_READ_ONLY, m->offset, m->len, &map);
    if (rc < 0) return rc;
    *free_one = (struct shm_region){m->id, map, m->len};
    return 0;
}

void shm_rx_forget(struct shm_region *r)
{
    shm_unmap(&r->map);
    *r = (struct shm_region){0};
}

static struct shm_region *find_region(struct shm_path *p, uint64_t id)
{
    for (;;) {
        for (int i = 0; i < SHM_REGIONS; i++)
            if (p->rx.regions[i].map.base && p->rx.regions[i].id == id) return &p->rx.regions[i];
        /* Its file was sent before the slot was written: it lies in the socket, if anywhere. */
        if (p->rx.stopped || !shm_path_drain(p)) return NULL;
    }
}

/* --- the kinds of slots: 1 done, 0 not finished (budget), < 0 the connection is over -------------- */

static int take_inline(struct shm_path *p, const struct shm_slot *s)
{
    bool untagged = s->flags & SHM_UNTAGGED, fragile;
    void *dst;
    if (s->len > (untagged ? SHM_INLINE_UNTAGGED : SHM_INLINE_TAGGED)) {
        refuse(p, -EPROTO, !untagged, "a slot claims more than it can hold");
        return -EPROTO;
    }
    int rc = target(p, s, 0, s->len, &dst, &fragile);
    if (rc < 0) {
        refuse(p, rc, !untagged,
               untagged ? "a message came that nothing was posted for" : "a write outside what was advertised");
        return rc;
    }
    if (!untagged) exsi_count(p->path.stats, bytes_copied, s->len);
    if (s->len) rc = exsi_copy(dst, untagged ? s->untagged : s->tagged, s->len, fragile);
    if (rc < 0) {
        shm_path_violation(p, SHM_BLAME_MINE, soft_terminate_for(rc, !untagged), EFAULT,
                           "the receiving memory is gone");
        return rc;
    }
    return placed(p, s, s->len);
}

static int take_ring(struct shm_path *p, const struct shm_slot *s)
{
    struct shm_rx *rx = &p->rx;
    bool untagged = s->flags & SHM_UNTAGGED, fragile;
    void *dst;
    if (s->len > p->data_bytes) {
        refuse(p, -EPROTO, !untagged, "a slot claims more than the ring holds");
        return -EPROTO;
    }
    int rc = target(p, s, 0, s->len, &dst, &fragile);
    if (rc < 0) {
        refuse(p, rc, !untagged,
               untagged ? "a message came that nothing was posted for" : "a write outside what was advertised");
        return rc;
    }
    uint32_t at = (uint32_t)(rx->data_next & (p->data_bytes - 1));
    uint32_t first = exsi_min_u32(s->len, p->data_bytes - at);
    if (!untagged) exsi_count(p->path.stats, bytes_copied, s->len);
    if (first) rc = exsi_copy(dst, rx->data + at, first, fragile);
    if (!rc && first < s->len) rc = exsi_copy((uint8_t *)dst + first, rx->data, s->len - first, fragile);
    if (rc < 0) {
        shm_path_violation(p, SHM_BLAME_MINE, soft_terminate_for(rc, !untagged), EFAULT,
                           "the receiving memory is gone");
        return rc;
    }
    rx->data_next += line_up(s->len);
    return placed(p, s, s->len);
}

static int take_filled(struct shm_path *p, const struct shm_slot *s)
{
    bool fragile;
    void *dst;
    int rc = s->flags & SHM_UNTAGGED ? -EPROTO : target(p, s, 0, s->len, &dst, &fragile);
    if (rc < 0) {
        refuse(p, rc, true, "a write outside what was advertised");
        return rc;
    }
    return placed(p, s, s->len);
}

static int take_mapped(struct shm_path *p, const struct shm_slot *s, uint64_t *budget)
{
    struct shm_rx *rx = &p->rx;
    bool untagged = s->flags & SHM_UNTAGGED, fragile;
    struct shm_region *r = find_region(p, s->region);
    if (rx->stopped) return -ECONNRESET;
    if (!r || !exsi_range_inside(s->src, s->len, r->len)) {
        refuse(p, -EPROTO, !untagged, "a slot points outside the memory that came with it");
        return -EPROTO;
    }
    uint32_t left = s->len - (uint32_t)rx->partial;
    uint32_t n = (uint32_t)exsi_min_u64(left, *budget * (SHM_MAP_BUDGET / SHM_PULL_BUDGET));
    void *dst;
    int rc = target(p, s, rx->partial, n, &dst, &fragile);
    if (rc < 0) {
        refuse(p, rc, !untagged,
               untagged ? "a message came that nothing was posted for" : "a write outside what was advertised");
        return rc;
    }
    if (withdrawn(p)) {
        gone(p);
        return -ECONNRESET;
    }
    rc = n ? exsi_copy(dst, (const uint8_t *)r->map.base + s->src + rx->partial, n, fragile) : 0;
    if (rc < 0) {
        shm_path_violation(p, SHM_BLAME_MINE, soft_terminate_for(rc, !untagged), EFAULT,
                           "the receiving memory is gone");
        return rc;
    }
    if (withdrawn(p)) {
        gone(p);
        return -ECONNRESET;
    }
    exsi_count(p->path.stats, bytes_mapped, n);
    *budget -= exsi_min_u64(*budget, 1 + n / (SHM_MAP_BUDGET / SHM_PULL_BUDGET));
    return placed(p, s, n);
}

/* --- process_vm_readv ------------------------------------------------------------------------------ */

struct pull {
    struct shm_slot slot[SHM_PULL_BATCH];
    struct iovec local[SHM_PULL_BATCH], remote[SHM_PULL_BATCH];
    uint32_t len[SHM_PULL_BATCH]; /* asked for now */
    int n;
    uint64_t bytes;
};

/* Pieces that can be pulled in one call: as many as follow each other.  0, or the first one's error. */
static int gather(struct shm_path *p, const struct shm_slot *first, uint64_t budget, struct pull *b)
{
    b->n = 0;
    b->bytes = 0;
    for (struct shm_slot s = *first; b->n < SHM_PULL_BATCH && b->bytes < budget;) {
        uint64_t done = b->n ? 0 : p->rx.partial;
        uint32_t n = (uint32_t)exsi_min_u64(s.len - done, budget - b->bytes);
        void *dst;
        bool fragile;
        int rc = target(p, &s, done, n, &dst, &fragile);
        if (rc < 0 && !b->n) return rc;
        if (rc < 0) break; /* its turn comes, and then its error */
        b->slot[b->n] = s;
        b->local[b->n] = (struct iovec){dst, n};
        b->remote[b->n] = (struct iovec){(void *)(uintptr_t)(s.src + done), n};
        b->len[b->n++] = n;
        b->bytes += n;
        /* A SEND moves the place where the next one goes; that place is known when it has ended. */
        if ((s.flags & SHM_UNTAGGED) || n < s.len - done) break;
        if (!peek(p, p->rx.next + (uint64_t)b->n, &s) || s.kind != SHM_PULL || (s.flags & SHM_UNTAGGED) || !s.len)
            break;
    }
    return 0;
}

/* Nothing could be read at the first byte.  Whose memory is it? */
static void pull_failed(struct shm_path *p, const struct pull *b, int error)
{
    struct soft_terminate t = soft_terminate_for(-EFAULT, true);
    uint8_t probe;
    struct iovec l = {&probe, 1}, r = {b->remote[0].iov_base, 1};
    if (error == EFAULT && process_vm_readv(p->pid, &l, 1, &r, 1, 0) == 1)
        shm_path_violation(p, SHM_BLAME_MINE, t, EFAULT, "the receiving memory is gone");
    else if (error == EFAULT)
        shm_path_violation(p, SHM_BLAME_SOURCE, t, ECONNRESET, "the peer's source cannot be read");
    else if (error == ESRCH)
        shm_path_break(p, ECONNRESET, "the peer died");
    else if (error == EPERM)
        shm_path_violation(p, SHM_BLAME_SOURCE, t, ECONNRESET, "the peer's memory may not be read any more");
    else
        shm_path_violation(p, SHM_BLAME_MINE, t, error, "reading the peer's memory failed");
}

static int take_pull(struct shm_path *p, const struct shm_slot *first, uint64_t *budget)
{
    struct pull b;
    bool untagged = first->flags & SHM_UNTAGGED;
    if (!p->vm || !first->len) {
        refuse(p, -EPROTO, !untagged, "a slot that was not agreed upon");
        return -EPROTO;
    }
    int rc = gather(p, first, *budget, &b);
    if (rc < 0) {
        refuse(p, rc, !untagged,
               untagged ? "a message came that nothing was posted for" : "a write outside what was advertised");
        return rc;
    }
    if (withdrawn(p)) {
        gone(p);
        return -ECONNRESET;
    }
    exsi_count(p->path.stats, syscalls, 1);
    ssize_t got = process_vm_readv(p->pid, b.local, (unsigned long)b.n, b.remote, (unsigned long)b.n, 0);
    int error = got < 0 ? errno : 0;
    if (withdrawn(p)) {
        gone(p);
        return -ECONNRESET;
    }
    if (got <= 0) {
        pull_failed(p, &b, error ? error : EFAULT);
        return -ECONNRESET;
    }
    *budget -= exsi_min_u64(*budget, (uint64_t)got);
    for (int i = 0; i < b.n && got > 0; i++) {
        uint32_t n = (uint32_t)exsi_min_u64(b.len[i], (uint64_t)got);
        got -= n;
        rc = placed(p, &b.slot[i], n);
        if (rc < 0) return rc;
    }
    return rc;
}

/* --- the loop ---------------------------------------------------------------------------------------- */

static int take_shut(struct shm_path *p)
{
    struct shm_rx *rx = &p->rx;
    if (rx->in_write || rx->mo) {
        refuse(p, -EPROTO, true, "the end came in the middle of a message");
        return -EPROTO;
    }
    rx->next++;
    rx->shut_seen = true;
    p->path.sink->peer_closed(p->path.qp);
    return 1;
}

static int take_slot(struct shm_path *p, const struct shm_slot *s, uint64_t *budget)
{
    if (p->rx.shut_seen) {
        refuse(p, -EPROTO, true, "something came behind the end");
        return -EPROTO;
    }
    switch ((enum shm_kind)s->kind) {
    case SHM_INLINE: return take_inline(p, s);
    case SHM_RING: return take_ring(p, s);
    case SHM_PULL: return take_pull(p, s, budget);
    case SHM_MAPPED: return take_mapped(p, s, budget);
    case SHM_FILLED: return take_filled(p, s);
    case SHM_SHUT: return take_shut(p);
    case SHM_FORGET:
        for (int i = 0; i < SHM_REGIONS; i++)
            if (p->rx.regions[i].map.base && p->rx.regions[i].id == s->region) shm_rx_forget(&p->rx.regions[i]);
        p->rx.next++;
        return 1;
    }
    refuse(p, -EPROTO, true, "a slot of an unknown kind");
    return -EPROTO;
}

/* A message begins for which no receive is posted, and whose sender could not know. */
static bool must_wait(struct shm_path *p, const struct shm_slot *s)
{
    if (!p->path.raw || !(s->flags & SHM_UNTAGGED) || p->rx.mo) return false;
    p->rx.starved = !p->path.sink->may_receive(p->path.qp);
    return p->rx.starved;
}

/* Tell the peer how far we are, and wake it if it waits for that. */
static void tell(struct shm_path *p)
{
    struct shm_rx *rx = &p->rx;
    rx->told = rx->next;
    atomic_store_explicit(&rx->mine->consumed, rx->next, memory_order_release);
    /* Its wish, then its sleep, then its last look: one of us sees the other (fence in the doorbell). */
    shm_fence();
    if (atomic_load_explicit(&rx->peer->want, memory_order_relaxed) <= rx->next) shm_path_wake(p);
}

bool shm_rx_left(const struct shm_path *p)
{
    struct shm_slot s;
    return !p->rx.stopped && !p->rx.starved && peek(p, p->rx.next, &s);
}

int shm_rx_run(struct shm_path *p, uint64_t *budget)
{
    struct shm_rx *rx = &p->rx;
    struct shm_slot s;
    uint64_t start = rx->next;
    int work = 0;
    while (!rx->stopped && !rx->starved && *budget && rx->next - start < SHM_SLOT_BUDGET && peek(p, rx->next, &s)) {
        if (must_wait(p, &s)) break;
        work++;
        if (take_slot(p, &s, budget) < 0) break;
        if (rx->next - rx->told >= p->slots / 4) tell(p);
    }
    if (rx->next != rx->told) tell(p);
    return work;
}
