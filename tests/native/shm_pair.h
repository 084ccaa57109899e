// SPDX-License-Identifier: MIT OR Apache-2.0
/* Two paths through shared memory in one process, joined by the real set-up, each with a queue pair
 * that is only a list: what was posted, what arrived, what ended. */
#ifndef SHM_PAIR_H
#define SHM_PAIR_H

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device/soft/shm.h"
#include "tap.h"

#define FAKE_TX   64
#define FAKE_RECV 64
#define FAKE_KEYS 8

struct fake_key {
    uint32_t rkey;
    uint8_t *addr;
    uint64_t len;
    bool fragile;
};

struct soft_qp {
    struct soft_tx tx[FAKE_TX]; /* ring */
    uint32_t head, len;
    uint64_t completed;
    struct fake_key keys[FAKE_KEYS];
    uint8_t recv[FAKE_RECV][256]; /* every SEND has a slot: msn - 1 modulo */
    uint32_t recv_len[FAKE_RECV];
    uint32_t posted; /* receives posted so far */
    uint32_t received;
    uint64_t write_bytes, writes;
    bool solicited, closed;
    int broken;
    char reason[EXSI_REASON_MAX];
};

struct soft_tx *soft_qp_tx(struct soft_qp *qp, uint32_t i)
{
    return i < qp->len ? &qp->tx[(qp->head + i) % FAKE_TX] : NULL;
}

struct soft_terminate soft_terminate_for(int error, bool tagged)
{
    (void)error;
    (void)tagged;
    return (struct soft_terminate){1, 1, 0};
}

static int fake_tagged(struct soft_qp *qp, uint32_t rkey, uint64_t raddr, uint32_t len, void **dst, bool *fragile)
{
    for (int i = 0; i < FAKE_KEYS; i++) {
        struct fake_key *k = &qp->keys[i];
        if (!k->addr || k->rkey != rkey) continue;
        uint64_t base = (uint64_t)(uintptr_t)k->addr;
        if (raddr < base || !exsi_range_inside(raddr - base, len, k->len)) return -ERANGE;
        *dst = k->addr + (raddr - base);
        *fragile = k->fragile;
        return 0;
    }
    return -ENOENT;
}

static void fake_tagged_done(struct soft_qp *qp, uint32_t len, bool last)
{
    qp->write_bytes += len;
    qp->writes += last;
}

static int fake_untagged(struct soft_qp *qp, uint32_t msn, uint32_t mo, uint32_t len, void **dst)
{
    if (msn != qp->received + 1) return -EPROTO;
    if (qp->received == qp->posted) return -ENOBUFS;
    uint32_t slot = (msn - 1) % FAKE_RECV;
    if (mo != (mo ? qp->recv_len[slot] : 0)) return -EPROTO;
    if (!exsi_range_inside(mo, len, sizeof qp->recv[slot])) return -EMSGSIZE;
    *dst = qp->recv[slot] + mo;
    return 0;
}

static void fake_untagged_done(struct soft_qp *qp, uint32_t mo, uint32_t len, bool last, bool solicited)
{
    qp->recv_len[qp->received % FAKE_RECV] = mo + len;
    qp->received += last;
    if (last) qp->solicited = solicited;
}

static bool fake_may_receive(struct soft_qp *qp)
{
    (void)qp;
    return true;
}

static void fake_tx_done(struct soft_qp *qp)
{
    while (qp->len && qp->tx[qp->head].done) {
        qp->head = (qp->head + 1) % FAKE_TX;
        qp->len--;
        qp->completed++;
    }
}

static void fake_closed(struct soft_qp *qp)
{
    qp->closed = true;
}

static void fake_broken(struct soft_qp *qp, int error, const char *reason)
{
    qp->broken = error;
    snprintf(qp->reason, sizeof qp->reason, "%s", reason);
}

static const struct soft_sink_ops fake_sink = {
    .tagged = fake_tagged,
    .tagged_done = fake_tagged_done,
    .untagged = fake_untagged,
    .untagged_done = fake_untagged_done,
    .may_receive = fake_may_receive,
    .tx_done = fake_tx_done,
    .peer_closed = fake_closed,
    .broken = fake_broken,
};

/* --- two sides ------------------------------------------------------------------------------------ */

struct side {
    struct soft_device dev;
    struct soft_part part;
    struct exsi_poller poller;
    struct soft_qp qp;
    struct exsi_stats stats;
    struct soft_path *path;
    bool done;
    char reason[EXSI_REASON_MAX];
};

static void side_done(void *arg, struct soft_path *path, const char *reason)
{
    struct side *s = arg;
    s->done = true;
    s->path = path;
    snprintf(s->reason, sizeof s->reason, "%s", reason ? reason : "");
}

__attribute__((unused)) static void side_open(struct side *s)
{
    memset(s, 0, sizeof *s);
    must(exsi_poller_init(&s->poller) == 0);
    s->part.poller = &s->poller;
    s->part.sdev = &s->dev;
    exsi_list_init(&s->part.shm_paths);
    s->qp.posted = FAKE_RECV;
}

__attribute__((unused)) static void side_close(struct side *s)
{
    if (s->path) s->path->ops->free(s->path);
    s->path = NULL;
    soft_shm_part_close(&s->part);
    exsi_poller_fini(&s->poller);
}

__attribute__((unused)) static void side_adopt(struct side *s)
{
    s->path->qp = &s->qp;
    s->path->sink = &fake_sink;
    s->path->stats = &s->stats;
    must(s->path->ops->start(s->path) == 0);
}

__attribute__((unused)) static struct soft_shm_ask side_ask(struct side *s, enum exsi_path path, uint32_t ring_bytes)
{
    return (struct soft_shm_ask){.part = &s->part, .path = path, .ring_bytes = ring_bytes, .done = side_done, .arg = s};
}

__attribute__((unused)) static struct shm_path *shm_of(struct side *s)
{
    return exsi_container_of(s->path, struct shm_path, path);
}

/* One pass of one side: what its thread would do between two waits. */
__attribute__((unused)) static int turn(struct side *s)
{
    int n = exsi_poller_run(&s->poller);
    return n + soft_shm_part_progress(&s->part);
}

__attribute__((unused)) static void settle(struct side *a, struct side *p)
{
    for (int quiet = 0, i = 0; quiet < 3 && i < 100000; i++) {
        int n = (a ? turn(a) : 0) + (p ? turn(p) : 0);
        quiet = n ? 0 : quiet + 1;
    }
}

__attribute__((unused)) static bool pair_open_as(struct side *a, struct side *p, enum exsi_path ap, enum exsi_path pp,
                                                 uint32_t ring_bytes)
{
    struct soft_block request = {0}, reply = {0};
    char reason[EXSI_REASON_MAX] = "";
    side_open(a);
    side_open(p);
    struct soft_shm_ask aa = side_ask(a, ap, ring_bytes), pa = side_ask(p, pp, ring_bytes);
    struct soft_shm *as = soft_shm_offer(&aa, &request, reason);
    must(as);
    struct soft_shm *ps = soft_shm_answer(&pa, &request, &reply, reason);
    must(ps && (reply.flags & SOFT_BLOCK_SHM));
    soft_shm_wait(ps);
    soft_shm_confirm(as, &reply);
    settle(a, p);
    must(a->done && p->done);
    if (!a->path || !p->path) return false;
    side_adopt(a);
    side_adopt(p);
    return true;
}

__attribute__((unused)) static void pair_open(struct side *a, struct side *p, enum exsi_path path)
{
    must(pair_open_as(a, p, path, EXSI_PATH_AUTO, 1 << 20));
}

__attribute__((unused)) static void pair_close(struct side *a, struct side *p)
{
    side_close(a);
    side_close(p);
}

/* --- posting -------------------------------------------------------------------------------------- */

__attribute__((unused)) static struct soft_tx *post(struct side *s, enum exsi_wr_op op)
{
    must(s->qp.len < FAKE_TX);
    struct soft_tx *t = &s->qp.tx[(s->qp.head + s->qp.len++) % FAKE_TX];
    memset(t, 0, sizeof *t);
    t->wr.op = op;
    return t;
}

__attribute__((unused)) static void post_send(struct side *s, const void *data, uint32_t len)
{
    struct soft_tx *t = post(s, EXSI_WR_SEND);
    must(len <= sizeof t->inline_data);
    memcpy(t->inline_data, data, len);
    t->wr.flags = EXSI_WR_INLINE;
    t->wr.num_sge = len ? 1 : 0;
    t->wr.sge[0] = (struct exsi_sge){t->inline_data, len, NULL};
    t->len = len;
}

__attribute__((unused)) static void post_write(struct side *s, const void *src, uint32_t len, struct soft_mr *mr,
                                               uint32_t rkey, const void *dst)
{
    struct soft_tx *t = post(s, EXSI_WR_WRITE);
    t->wr.num_sge = len ? 1 : 0;
    t->wr.sge[0] = (struct exsi_sge){(void *)(uintptr_t)src, len, &mr->dmr};
    t->wr.rkey = rkey;
    t->wr.raddr = (uint64_t)(uintptr_t)dst;
    t->len = len;
}

__attribute__((unused)) static void add_key(struct side *s, uint32_t rkey, void *addr, uint64_t len)
{
    for (int i = 0; i < FAKE_KEYS; i++)
        if (!s->qp.keys[i].addr) {
            s->qp.keys[i] = (struct fake_key){rkey, addr, len, false};
            return;
        }
    must(false);
}

__attribute__((unused)) static void kick(struct side *s)
{
    s->path->ops->kick(s->path);
}

__attribute__((unused)) static uint64_t stat_of(atomic_uint_fast64_t *field)
{
    return atomic_load(field);
}

__attribute__((unused)) static void pattern(uint8_t *at, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++) at[i] = (uint8_t)((i * 2654435761u + seed) >> 13);
}

__attribute__((unused)) static struct soft_mr private_mr(void *addr, size_t len)
{
    return (struct soft_mr){.dmr = {.mem = {.addr = addr, .len = len, .memfd = -1}}};
}

/* A region as exs allocates them: in a sealed memory file. */
__attribute__((unused)) static struct soft_mr shared_mr(size_t len, bool future_write, uint64_t id)
{
    struct soft_mr mr = {.region = id ? calloc(1, sizeof(struct soft_region)) : NULL};
    void *map = NULL;
    if (mr.region) {
        mr.region->id = id;
        atomic_init(&mr.region->refs, 1);
    }
    must(shm_memfd_new("test", len, future_write, &mr.dmr.mem.memfd, &map) == 0);
    mr.dmr.mem.addr = map;
    mr.dmr.mem.len = len;
    return mr;
}

__attribute__((unused)) static void shared_mr_end(struct soft_mr *mr)
{
    munmap(mr->dmr.mem.addr, mr->dmr.mem.len);
    close(mr->dmr.mem.memfd);
    soft_region_put(mr->region);
}

#endif
