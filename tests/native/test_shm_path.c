// SPDX-License-Identifier: MIT OR Apache-2.0
/* The path through shared memory between honest sides: every way a byte can take, order, the end of
 * sources, room, wake-ups, ends. */
#include <poll.h>

#include "shm_pair.h"

static uint8_t src[4 << 20], dst[4 << 20];

static void one_write(struct side *a, struct side *p, uint32_t len, struct soft_mr *mr, const char *how)
{
    uint64_t before = p->qp.writes, got = p->qp.received, done = a->qp.completed;
    uint32_t word = 0x12345678u + len;
    uint8_t *from = mr->dmr.mem.addr;
    pattern(from, len, len);
    memset(dst, 0, len + 1);
    post_write(a, from, len, mr, 7, dst);
    post_send(a, &word, sizeof word);
    kick(a);
    settle(a, p);
    bool same = !memcmp(from, dst, len) && dst[len] == 0;
    bool noticed = p->qp.received == got + 1 && !memcmp(p->qp.recv[got % FAKE_RECV], &word, sizeof word);
    ok(same && noticed && p->qp.writes == before + 1 && a->qp.completed == done + 2, "%s: %u bytes with a notice", how,
       len);
}

static void sizes(enum exsi_path path, const char *how, struct soft_mr *mr)
{
    static struct side a, p;
    static const uint32_t lens[] = {0, 1, 36, 37, 64, 100, 4096, 8191, 8192, 8193, 65536, 1 << 20, (3 << 20) + 17};
    pair_open(&a, &p, path);
    ok(!strcmp(a.path->ops->name(a.path), how) && !strcmp(p.path->ops->name(p.path), how), "the path is %s", how);
    add_key(&p, 7, dst, sizeof dst);
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) one_write(&a, &p, lens[i], mr, how);
    ok(!a.qp.broken && !p.qp.broken, "%s: nobody broke", how);
    pair_close(&a, &p);
}

static void counts(void)
{
    static struct side a, p;
    struct soft_mr mr = private_mr(src, sizeof src);
    pair_open(&a, &p, EXSI_PATH_SHM_VM);
    add_key(&p, 7, dst, sizeof dst);
    one_write(&a, &p, 1 << 20, &mr, "pull");
    ok(stat_of(&p.stats.bytes_copied) == 0 && stat_of(&a.stats.bytes_copied) == 0, "a pulled MiB is not copied by us");
    ok(stat_of(&a.stats.syscalls) == 0 && stat_of(&p.stats.syscalls) == 1, "and takes one system call in all");
    one_write(&a, &p, 4096, &mr, "ring");
    ok(stat_of(&p.stats.bytes_copied) == 4096 && stat_of(&a.stats.bytes_copied) == 4096,
       "4 KiB take one copy on each side");
    pair_close(&a, &p);

    struct soft_mr shared = shared_mr(1 << 20, true, 5);
    pair_open(&a, &p, EXSI_PATH_AUTO);
    add_key(&p, 7, dst, sizeof dst);
    one_write(&a, &p, 1 << 20, &shared, "mapped");
    one_write(&a, &p, 1 << 20, &shared, "mapped again");
    ok(stat_of(&p.stats.bytes_mapped) == 2 << 20 && stat_of(&p.stats.bytes_copied) == 0,
       "an allocated region is mapped");
    ok(stat_of(&a.stats.syscalls) == 1, "its file is sent once");
    pair_close(&a, &p);
    shared_mr_end(&shared);
}

static void lent(void)
{
    static struct side a, p;
    struct soft_mr mr = private_mr(src, sizeof src), ring = shared_mr(1 << 20, false, 0);
    uint8_t *at = ring.dmr.mem.addr;
    pair_open(&a, &p, EXSI_PATH_AUTO);
    add_key(&p, 9, at, 1 << 20);
    p.path->ops->lend(p.path, 9, &ring, (uint64_t)(uintptr_t)at, 1 << 20);
    settle(&a, &p);
    pattern(src, 300000, 3);
    post_write(&a, src, 300000, &mr, 9, at + 5000);
    kick(&a);
    ok(a.qp.completed == 1 && !memcmp(at + 5000, src, 300000), "lent memory is filled by the sender, at once");
    settle(&a, &p);
    ok(p.qp.writes == 1 && p.qp.write_bytes == 300000 && stat_of(&p.stats.syscalls) <= 2, "the target only checks it");
    post_write(&a, src, 300000, &mr, 9, at + (1 << 20) - 299999);
    kick(&a);
    settle(&a, &p);
    ok(p.qp.broken == EPROTO && a.qp.broken == EPROTO, "a write past the end of it is a violation");
    pair_close(&a, &p);
    shared_mr_end(&ring);
}

static void pieces_and_order(void)
{
    static struct side a, p;
    struct soft_mr mr = private_mr(src, sizeof src);
    pair_open(&a, &p, EXSI_PATH_AUTO);
    add_key(&p, 7, dst, sizeof dst);
    pattern(src, sizeof src, 1);
    struct soft_tx *t = post(&a, EXSI_WR_WRITE);
    t->wr.num_sge = 4;
    t->wr.sge[0] = (struct exsi_sge){src, 100000, &mr.dmr};
    t->wr.sge[1] = (struct exsi_sge){src + 200000, 0, &mr.dmr};
    t->wr.sge[2] = (struct exsi_sge){src + 300000, 10, &mr.dmr};
    t->wr.sge[3] = (struct exsi_sge){src + 400000, 5000, &mr.dmr};
    t->len = 105010;
    t->wr.rkey = 7;
    t->wr.raddr = (uint64_t)(uintptr_t)dst;
    post_send(&a, "then", 5);
    kick(&a);
    settle(&a, &p);
    ok(!memcmp(dst, src, 100000) && !memcmp(dst + 100000, src + 300000, 10) &&
           !memcmp(dst + 100010, src + 400000, 5000),
       "a WRITE of four pieces, one of them empty");
    ok(p.qp.writes == 1 && p.qp.received == 1 && !strcmp((char *)p.qp.recv[0], "then"),
       "counts as one, before the SEND");

    static uint8_t big[200];
    pattern(big, sizeof big, 9);
    struct soft_mr bigmr = private_mr(big, sizeof big);
    t = post(&a, EXSI_WR_SEND);
    t->wr.num_sge = 2;
    t->wr.sge[0] = (struct exsi_sge){big, 60, &bigmr.dmr};
    t->wr.sge[1] = (struct exsi_sge){big + 60, 140, &bigmr.dmr};
    t->wr.flags = EXSI_WR_SOLICITED;
    t->len = 200;
    kick(&a);
    settle(&a, &p);
    ok(p.qp.received == 2 && p.qp.recv_len[1] == 200 && !memcmp(p.qp.recv[1], big, 200) && p.qp.solicited,
       "a solicited SEND of two pieces arrives whole");

    uint8_t small[52];
    pattern(small, sizeof small, 4);
    post_send(&p, small, 48);
    post_send(&p, small, 0);
    kick(&p);
    settle(&a, &p);
    ok(a.qp.received == 2 && a.qp.recv_len[0] == 48 && !memcmp(a.qp.recv[0], small, 48) && a.qp.recv_len[1] == 0,
       "a control message, and one of nothing, the other way");
    pair_close(&a, &p);
}

static void room(void)
{
    static struct side a, p;
    struct soft_mr mr = private_mr(src, sizeof src);
    must(pair_open_as(&a, &p, EXSI_PATH_SHM_RING, EXSI_PATH_AUTO, 65536));
    add_key(&p, 7, dst, sizeof dst);
    pattern(src, sizeof src, 77);
    memset(dst, 0, sizeof dst);
    post_write(&a, src, 4 << 20, &mr, 7, dst);
    kick(&a);
    ok(a.qp.completed == 0 && a.qp.tx[a.qp.head].sent <= shm_of(&a)->data_bytes,
       "no more than the ring holds goes out");
    ok(shm_of(&a)->segment.bytes <= 28 << 10, "a small connection has a segment of at most 28 KiB");
    for (int i = 0; i < 20; i++) turn(&a);
    ok(a.qp.completed == 0, "and waits there");
    settle(&a, &p);
    ok(a.qp.completed == 1 && !memcmp(src, dst, sizeof dst), "then everything arrives");

    /* More messages than slots, nobody receives. */
    uint32_t sent = 0, word = 0;
    for (int round = 0; round < 4; round++) {
        while (a.qp.len < FAKE_TX) {
            post_send(&a, &sent, sizeof sent);
            sent++;
        }
        kick(&a);
    }
    p.qp.posted = UINT32_MAX;
    bool order = true;
    for (uint32_t seen = p.qp.received; a.qp.len || seen < p.qp.received;) {
        turn(&p);
        for (; seen < p.qp.received; seen++) {
            uint32_t got;
            if (p.qp.received - seen > FAKE_RECV) continue; /* overwritten */
            memcpy(&got, p.qp.recv[seen % FAKE_RECV], sizeof got);
            order &= got == word + seen;
        }
        turn(&a);
    }
    ok(order && !p.qp.broken, "messages beyond the slots wait their turn");
    pair_close(&a, &p);
}

static void wakes(void)
{
    static struct side a, p;
    pair_open(&a, &p, EXSI_PATH_AUTO);
    post_send(&a, "one", 4);
    kick(&a);
    ok(stat_of(&a.stats.wakeups) == 0 && exsi_poller_run(&p.poller) == 0, "nobody asleep, nobody rung");
    settle(&a, &p);
    soft_shm_part_doorbell(&p.part, true);
    post_send(&a, "two", 4);
    kick(&a);
    post_send(&a, "thr", 4);
    kick(&a);
    ok(stat_of(&a.stats.wakeups) == 1, "a sleeper is rung once");
    ok(exsi_poller_run(&p.poller) == 1, "and hears it");
    soft_shm_part_progress(&p.part);
    ok(p.qp.received == 3, "both are there");
    post_send(&a, "fou", 4);
    kick(&a);
    ok(stat_of(&a.stats.wakeups) == 2, "still asleep after hearing: rung again");
    soft_shm_part_doorbell(&p.part, false);
    settle(&a, &p);
    post_send(&a, "fiv", 4);
    kick(&a);
    ok(stat_of(&a.stats.wakeups) == 2, "awake: not rung");
    settle(&a, &p);

    struct soft_mr mr = private_mr(src, sizeof src);
    add_key(&p, 7, dst, sizeof dst);
    post_write(&a, src, 100000, &mr, 7, dst);
    kick(&a);
    soft_shm_part_doorbell(&a.part, true);
    soft_shm_part_progress(&a.part);
    ok(soft_shm_part_progress(&a.part) == 0, "the sender sleeps on its source");
    soft_shm_part_progress(&p.part);
    ok(stat_of(&p.stats.wakeups) == 1, "and is rung when that was taken");
    settle(&a, &p);
    post_send(&a, "six", 4);
    kick(&a);
    settle(&a, &p);
    ok(stat_of(&p.stats.wakeups) == 1, "but not for what it does not wait for");
    ok(a.qp.completed == p.qp.received + 1, "everything sent is complete");

    /* Posted by another thread while the group sleeps: the peer consumes before the wish is there. */
    soft_shm_part_doorbell(&a.part, true);
    uint64_t done = a.qp.completed;
    a.path->ops->kick(a.path);
    for (int i = 0; i < 3; i++) {
        post_write(&a, src, 100000, &mr, 7, dst);
        kick(&a);
        uint64_t rung = stat_of(&p.stats.wakeups);
        soft_shm_part_progress(&p.part);
        ok(stat_of(&p.stats.wakeups) == rung + 1, "the sleeper is rung for write %d", i);
        turn(&a);
    }
    ok(a.qp.completed == done + 3, "and completes them");
    pair_close(&a, &p);
}

static void ends(void)
{
    static struct side a, p;
    pair_open(&a, &p, EXSI_PATH_AUTO);
    post_send(&a, "bye", 4);
    kick(&a);
    a.path->ops->shut(a.path);
    p.path->ops->shut(p.path);
    settle(&a, &p);
    ok(p.qp.closed && a.qp.closed && p.qp.received == 1, "an orderly end, both ways, behind the last message");
    a.path->ops->free(a.path);
    a.path = NULL;
    settle(&a, &p);
    ok(!p.qp.broken, "after which the death of the peer is no news");
    pair_close(&a, &p);

    pair_open(&a, &p, EXSI_PATH_AUTO);
    post_send(&a, "last", 5);
    kick(&a);
    a.path->ops->shut(a.path);
    a.path->ops->free(a.path);
    a.path = NULL;
    settle(&a, &p);
    ok(p.qp.received == 1 && p.qp.closed && !p.qp.broken, "what was published before the end is taken");
    post_send(&p, "too late", 9);
    kick(&p);
    ok(p.qp.broken == ECONNRESET, "sending to nobody is a reset");
    pair_close(&a, &p);

    pair_open(&a, &p, EXSI_PATH_AUTO);
    post_send(&a, "last", 5);
    kick(&a);
    a.path->ops->free(a.path);
    a.path = NULL;
    settle(&a, &p);
    ok(p.qp.received == 1 && p.qp.broken == ECONNRESET, "an end without a word: the data, then ECONNRESET");
    pair_close(&a, &p);
}

static void aborts(void)
{
    static struct side a, p;
    struct soft_mr mr = private_mr(src, sizeof src);
    pair_open(&a, &p, EXSI_PATH_SHM_VM);
    add_key(&p, 7, dst, sizeof dst);
    memset(src, 1, 1 << 20);
    post_write(&a, src, 1 << 20, &mr, 7, dst);
    kick(&a);
    a.path->ops->abort(a.path);
    memset(src, 2, 1 << 20);
    memset(dst, 0, 1 << 20);
    settle(&a, &p);
    ok(p.qp.writes == 0 && p.qp.write_bytes == 0 && p.qp.broken == ECONNRESET, "a withdrawn source does not count");
    ok(!a.qp.broken, "whoever aborted hears nothing");
    pair_close(&a, &p);

    pair_open(&a, &p, EXSI_PATH_SHM_VM);
    add_key(&p, 7, dst, sizeof dst);
    post_write(&a, src, 1 << 20, &mr, 7, dst);
    kick(&a);
    p.path->ops->abort(p.path);
    memset(dst, 3, 1 << 20);
    settle(&a, &p);
    ok(dst[0] == 3 && dst[(1 << 20) - 1] == 3 && p.qp.writes == 0, "nothing lands where the target aborted");
    ok(a.qp.broken == ECONNRESET && a.qp.completed == 0, "and the sender is told");
    pair_close(&a, &p);

    pair_open(&a, &p, EXSI_PATH_AUTO);
    p.path->ops->terminate(p.path, 1, 1, 0);
    settle(&a, &p);
    ok(a.qp.broken == EPROTO && !p.qp.broken, "a Terminate reaches the other side as EPROTO");
    pair_close(&a, &p);
}

static void no_receive(void)
{
    static struct side a, p;
    pair_open(&a, &p, EXSI_PATH_AUTO);
    p.qp.posted = 0;
    post_send(&a, "x", 2);
    kick(&a);
    settle(&a, &p);
    ok(p.qp.broken == EPROTO && a.qp.broken == EPROTO, "a SEND that nothing was posted for ends the connection");
    pair_close(&a, &p);
}

static void both_ways(void)
{
    static struct side a, p;
    static uint8_t back[1 << 20];
    struct soft_mr mr = private_mr(src, sizeof src);
    pair_open(&a, &p, EXSI_PATH_SHM_RING);
    add_key(&p, 7, dst, 1 << 20);
    add_key(&a, 8, back, sizeof back);
    pattern(src, 1 << 20, 5);
    for (int i = 0; i < 4; i++) {
        post_write(&a, src, 1 << 20, &mr, 7, dst);
        post_write(&p, src, 1 << 20, &mr, 8, back);
    }
    kick(&a);
    kick(&p);
    settle(&a, &p);
    ok(a.qp.completed == 4 && p.qp.completed == 4 && !memcmp(dst, src, 1 << 20) && !memcmp(back, src, 1 << 20),
       "both send more than fits, and neither stops the other");
    pair_close(&a, &p);
}

static void many_regions(void)
{
    static struct side a, p;
    struct soft_mr mrs[SHM_REGIONS + 8];
    pair_open(&a, &p, EXSI_PATH_AUTO);
    add_key(&p, 7, dst, sizeof dst);
    bool same = true;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < SHM_REGIONS + 8; i++) {
            if (!round) mrs[i] = shared_mr(65536, true, (uint64_t)i + 1);
            pattern(mrs[i].dmr.mem.addr, 65536, (uint32_t)i);
            post_write(&a, mrs[i].dmr.mem.addr, 65536, &mrs[i], 7, dst);
            kick(&a);
            settle(&a, &p);
            same &= !memcmp(mrs[i].dmr.mem.addr, dst, 65536);
        }
    ok(same && !p.qp.broken && p.qp.writes == 2 * (SHM_REGIONS + 8), "more regions than a connection keeps");
    for (int i = 0; i < SHM_REGIONS + 8; i++) shared_mr_end(&mrs[i]);
    pair_close(&a, &p);
}

static int regions_mapped(struct side *s)
{
    int n = 0;
    for (int i = 0; i < SHM_REGIONS; i++) n += shm_of(s)->rx.regions[i].map.base != NULL;
    return n;
}

static void closed_regions(void)
{
    static struct side a, p;
    struct soft_mr one = shared_mr(65536, true, 1), two = shared_mr(65536, true, 2);
    pair_open(&a, &p, EXSI_PATH_AUTO);
    add_key(&p, 7, dst, sizeof dst);
    post_write(&a, one.dmr.mem.addr, 65536, &one, 7, dst);
    post_write(&a, two.dmr.mem.addr, 65536, &two, 7, dst);
    kick(&a);
    settle(&a, &p);
    ok(regions_mapped(&p) == 2, "two regions are mapped");
    atomic_store(&one.region->gone, true);
    atomic_fetch_add(&a.dev.regions_gone, 1);
    settle(&a, &p);
    ok(regions_mapped(&p) == 1, "one was closed: the peer forgets it");
    post_write(&a, two.dmr.mem.addr, 65536, &two, 7, dst);
    kick(&a);
    settle(&a, &p);
    ok(p.qp.writes == 3 && stat_of(&p.stats.bytes_mapped) == 3 * 65536 && stat_of(&a.stats.syscalls) == 2,
       "the other serves on");
    pair_close(&a, &p);
    shared_mr_end(&one);
    shared_mr_end(&two);
}

/* One waiter sleeps, another moves a part of what there is and leaves: the sleeper wakes for the rest. */
static void left_over(void)
{
    static struct side a, p;
    struct soft_mr mr = private_mr(src, sizeof src);
    pair_open(&a, &p, EXSI_PATH_AUTO);
    add_key(&p, 7, dst, sizeof dst);
    post_write(&a, src, 3 << 20, &mr, 7, dst);
    soft_shm_part_doorbell(&p.part, true);
    kick(&a);
    exsi_poller_run(&p.poller);
    soft_shm_part_progress(&p.part);
    struct pollfd pf = {.fd = exsi_poller_fd(&p.poller), .events = POLLIN};
    ok(p.qp.writes == 0 && poll(&pf, 1, 1000) == 1, "a sleeper wakes for what was left");
    for (int i = 0; i < 5 && !p.qp.writes; i++) {
        exsi_poller_run(&p.poller);
        soft_shm_part_progress(&p.part);
    }
    exsi_poller_run(&p.poller);
    ok(p.qp.writes == 1 && poll(&pf, 1, 0) == 0, "and sleeps on when nothing is");
    pair_close(&a, &p);
}

/* Three connections of one part with endless work: none waits for the others. */
static void fairness(void)
{
    static struct side a, p, ends[6];
    struct soft_mr mr = private_mr(src, sizeof src);
    side_open(&a);
    side_open(&p);
    for (int i = 0; i < 3; i++) {
        struct soft_block request = {0}, reply = {0};
        char reason[EXSI_REASON_MAX];
        struct soft_shm_ask aa = side_ask(&a, EXSI_PATH_AUTO, 65536), pa = side_ask(&p, EXSI_PATH_AUTO, 65536);
        aa.arg = &ends[2 * i];
        pa.arg = &ends[2 * i + 1];
        struct soft_shm *as = soft_shm_offer(&aa, &request, reason),
                        *ps = soft_shm_answer(&pa, &request, &reply, reason);
        must(as && ps);
        soft_shm_wait(ps);
        soft_shm_confirm(as, &reply);
        settle(&a, &p);
        must(ends[2 * i].path && ends[2 * i + 1].path);
        side_adopt(&ends[2 * i]);
        side_adopt(&ends[2 * i + 1]);
        add_key(&ends[2 * i + 1], 7, dst, sizeof dst);
    }
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 8; k++) post_write(&ends[2 * i], src, 3 << 20, &mr, 7, dst);
        kick(&ends[2 * i]);
    }
    uint64_t most = 0, last = 0;
    for (int pass = 0; pass < 30; pass++) {
        soft_shm_part_progress(&p.part);
        uint64_t sum = ends[1].qp.write_bytes + ends[3].qp.write_bytes + ends[5].qp.write_bytes;
        most = exsi_max_u64(most, sum - last);
        last = sum;
    }
    ok(most <= SHM_PULL_BUDGET, "a pass moves a bounded amount");
    ok(ends[1].qp.write_bytes == ends[3].qp.write_bytes && ends[3].qp.write_bytes == ends[5].qp.write_bytes &&
           last == 30u << 20,
       "and each connection gets its share");
    for (int i = 0; i < 6; i++) ends[i].path->ops->free(ends[i].path);
    pair_close(&a, &p);
}

int main(void)
{
    struct soft_mr mr = private_mr(src, sizeof src), shared = shared_mr(4 << 20, true, 11);
    sizes(EXSI_PATH_AUTO, "shm-vm", &mr);
    sizes(EXSI_PATH_SHM_RING, "shm-ring", &mr);
    sizes(EXSI_PATH_SHM_VM, "shm-vm", &shared);
    shared_mr_end(&shared);
    counts();
    lent();
    pieces_and_order();
    room();
    wakes();
    ends();
    aborts();
    no_receive();
    both_ways();
    many_regions();
    closed_regions();
    left_over();
    fairness();
    return tap_done();
}
