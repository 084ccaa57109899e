// SPDX-License-Identifier: MIT OR Apache-2.0
/* Raw queue pairs between two processes: the four steps in which SMC-R needs them, either end first, through shared
 * memory and over TCP.  What would travel in CLC messages goes through a socket pair here. */
#include <sys/wait.h>

#include "device/soft/tcp.h"
#include "soft_pair.h"

/* What one end tells the other: CLC's part. */
struct told {
    struct exsi_raw_address raw;
    uint64_t addr;
    uint32_t rkey;
};

enum { LEN = 100000 };

static struct pair pair;
static bool no_shm;

static void soft_pair_open(struct pair *p)
{
    pair_open(p);
    p->a.soft->fault.no_shm = p->b.soft->fault.no_shm = no_shm;
}

static const char *way(void)
{
    return no_shm ? "tcp" : "shm";
}

static bool goes_by(const struct side *s, const char *family)
{
    struct exsi_qp_info info;
    ops->qp_query(s->qp, &info);
    return strncmp(info.path, family, strlen(family)) == 0;
}

static bool side_until(struct side *s, const bool *down, const int *count, int wanted)
{
    uint64_t until = exsi_now_ns() + PAIR_BOUND_NS;
    while (*count < wanted && !*down && exsi_now_ns() < until) {
        if (side_run(s)) continue;
        struct pollfd fd = {.fd = exsi_poller_fd(&s->poller), .events = POLLIN};
        poll(&fd, 1, 5);
    }
    return *count >= wanted;
}

static void raw_open(struct side *s)
{
    struct exsi_qp_attr attr = {.send_wr = 16, .recv_wr = 16, .max_recv_len = 64, .user = s, .stats = &s->stats};
    must(ops->qp_create(s->part, NULL, &attr, &s->qp) == 0);
}

/* One end of the whole story; wait_ms: before it goes to RTR.  0, or the step that failed. */
static int story(int fd, uint32_t wait_ms, bool first)
{
    struct pair *p = &pair;
    struct told mine = {0}, theirs;
    soft_pair_open(p);
    struct side *s = &p->a;
    raw_open(s);
    struct mem in = mem_new(p, LEN, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE), out = mem_new(p, LEN, 0);
    struct mem slot = mem_new(p, 64, EXSI_ACCESS_LOCAL_WRITE);
    mem_fill(&out, first ? 1 : 2);
    if (ops->raw_query(s->qp, &mine.raw) != 0 || mine.raw.gid[0] != 0xfd || !mine.raw.qpn) return 1;
    must(ops->key_bind(s->qp, in.mr, in.at, LEN, &mine.rkey) == 0);
    mine.addr = (uint64_t)(uintptr_t)in.at;
    post_recv(s, &slot, 0, 64, 5);
    struct exsi_send_wr early = wr_send(&out, 0, 1, 1);
    if (ops->post_send(s->qp, &early, 1) != -EINVAL) return 2;
    if (ops->raw_to_rts(s->qp) != -EINVAL) return 3;
    if (write(fd, &mine, sizeof mine) != sizeof mine || read(fd, &theirs, sizeof theirs) != sizeof theirs) return 4;
    poll(NULL, 0, (int)wait_ms);
    if (ops->raw_to_rtr(s->qp, &theirs.raw) != 0 || ops->raw_to_rts(s->qp) != 0) return 5;
    struct exsi_send_wr wr[2] = {wr_write(&out, 0, LEN, (void *)(uintptr_t)theirs.addr, theirs.rkey, 1),
                                 wr_send(&out, 0, 44, 2)};
    if (post(s, wr, 2) != 0) return 6;
    if (!side_until(s, &s->down, &s->n_recv, 1) || !side_until(s, &s->down, &s->n_send, 2)) return 7;
    mem_fill(&out, first ? 2 : 1);
    if (memcmp(in.at, out.at, LEN) != 0 || memcmp(slot.at, out.at, 44) != 0) return 8;
    if (!goes_by(s, way())) return 10;
    char byte = 0; /* both have all, so that neither's end is the other's error */
    if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1) return 9;
    ops->qp_destroy(s->qp);
    s->qp = NULL;
    mem_free(p, &in);
    mem_free(p, &out);
    mem_free(p, &slot);
    pair_close(p);
    return 0;
}

static void test_story(uint32_t mine_ms, uint32_t theirs_ms)
{
    int fds[2], status = -1;
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    fflush(stdout);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        close(fds[0]);
        _exit(story(fds[1], theirs_ms, false));
    }
    close(fds[1]);
    int step = story(fds[0], mine_ms, true);
    close(fds[0]);
    must(waitpid(child, &status, 0) == child);
    ok(step == 0 && status == 0, "%s: two processes, RTR after %u and %u ms (steps %d, %d)", way(), mine_ms, theirs_ms,
       step, WEXITSTATUS(status));
}

/* Both ends in one process; *a is the address of the first. */
static void connect_raw(struct pair *p, struct exsi_raw_address *a)
{
    struct exsi_raw_address b;
    raw_open(&p->a);
    raw_open(&p->b);
    must(ops->raw_query(p->a.qp, a) == 0 && ops->raw_query(p->b.qp, &b) == 0);
    must(ops->raw_to_rtr(p->a.qp, &b) == 0 && ops->raw_to_rtr(p->b.qp, a) == 0);
    must(ops->raw_to_rts(p->a.qp) == 0 && ops->raw_to_rts(p->b.qp) == 0);
}

/* A message that comes before its receive waits, and one that is longer than its slot spills. */
static void test_receives(void)
{
    struct pair *p = &pair;
    struct exsi_raw_address a, b;
    enum { OWN = 44, MOST = 8192 };
    static const uint32_t lens[] = {10, 44, 45, 88, 300, 8192};
    soft_pair_open(p);
    connect_raw(p, &a);
    struct mem out = mem_new(p, MOST, 0), own = mem_new(p, 64, EXSI_ACCESS_LOCAL_WRITE);
    struct mem spill = mem_new(p, MOST, EXSI_ACCESS_LOCAL_WRITE);
    mem_fill(&out, 7);
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        struct exsi_send_wr wr = wr_send(&out, 0, lens[i], i);
        must(post(&p->a, &wr, 1) == 0);
    }
    pair_for_ms(p, 30);
    ok(p->b.n_recv == 0 && !p->a.down && !p->b.down, "six messages wait for a receive");
    bool whole = true;
    for (int i = 0; i < (int)(sizeof lens / sizeof *lens); i++) {
        struct exsi_recv_wr wr = {
            .wr_id = (uint64_t)i, .sge = {own.at, OWN, own.mr}, .spill = {spill.at, MOST, spill.mr}};
        must(ops->post_recv(p->b.qp, &wr, 1) == 0);
        must(pair_until(p, p->b.n_recv == i + 1));
        uint32_t len = lens[i], first = len < OWN ? len : OWN;
        whole &= memcmp(own.at, out.at, first) == 0;
        if (len > OWN) whole &= memcmp((char *)spill.at + OWN, (char *)out.at + OWN, len - OWN) == 0;
    }
    ok(whole, "each comes with its receive, 10 to 8192 bytes, what does not fit lies in the spill");
    struct exsi_recv_wr wr = {.sge = {own.at, OWN, own.mr}};
    struct exsi_send_wr big = wr_send(&out, 0, OWN + 1, 9);
    must(ops->post_recv(p->b.qp, &wr, 1) == 0 && post(&p->a, &big, 1) == 0);
    ok(pair_until(p, p->b.down) && p->b.error == EPROTO, "without a spill that is a violation");
    side_end(&p->a);
    side_end(&p->b);
    mem_free(p, &out);
    mem_free(p, &own);
    mem_free(p, &spill);
    struct exsi_qp_attr attr = {.send_wr = 4, .recv_wr = 4, .user = &p->a, .stats = &p->a.stats, .gid = a.gid};
    must(ops->qp_create(p->a.part, NULL, &attr, &p->a.qp) == 0);
    ok(ops->raw_query(p->a.qp, &b) == 0 && memcmp(a.gid, b.gid, sizeof a.gid) == 0, "the GID that was asked for");
    struct exsi_qp *none;
    attr.gid = (const uint8_t *)"0123456789abcdef";
    ok(ops->qp_create(p->a.part, NULL, &attr, &none) == -EADDRNOTAVAIL, "or none");
    side_end(&p->a);
    pair_close(p);
}

/* What soft itself never sends: a request to read len bytes from there.  RFC 5040 figure 6 */
static void ask_to_read(struct side *s, uint32_t rkey, const void *at, uint32_t len)
{
    const struct soft_tcp *t = soft_tcp_of(soft_qp_of(s->qp)->path);
    struct iwarp_segment seg = {
        .last = true, .opcode = IWARP_READ_REQUEST, .qn = IWARP_QN_READ, .msn = 1, .payload = IWARP_READ_LEN};
    struct {
        exsi_be32 sink_stag;
        exsi_be64 sink_to;
        exsi_be32 len, stag;
        exsi_be64 to;
    } body = {.len = exsi_put32(len), .stag = exsi_put32(rkey), .to = exsi_put64((uint64_t)(uintptr_t)at)};
    _Static_assert(sizeof body == IWARP_READ_LEN, "RFC 5040 figure 6");
    uint8_t frame[IWARP_UNTAGGED_LEN + IWARP_READ_LEN + IWARP_TRAILER_MAX];
    uint32_t n = iwarp_encode(&seg, frame);
    memcpy(frame + n, &body, sizeof body);
    n += (uint32_t)sizeof body;
    must(!t->crc);
    n += iwarp_put_trailer(n, 0, frame + n);
    must(write(t->fd, frame, n) == (ssize_t)n);
}

/* A key lets its peer write, and nobody read; over TCP, which has a request for that. */
static void test_remote_read(void)
{
    struct pair *p = &pair;
    struct exsi_raw_address a, b;
    uint32_t rkey;
    soft_pair_open(p);
    raw_open(&p->a);
    raw_open(&p->b);
    struct mem ring = mem_new(p, LEN, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE), out = mem_new(p, 64, 0);
    struct mem slot = mem_new(p, 64, EXSI_ACCESS_LOCAL_WRITE);
    must(ops->key_bind(p->b.qp, ring.mr, ring.at, LEN, &rkey) == 0);
    must(ops->raw_query(p->a.qp, &a) == 0 && ops->raw_query(p->b.qp, &b) == 0);
    must(ops->raw_to_rtr(p->a.qp, &b) == 0 && ops->raw_to_rtr(p->b.qp, &a) == 0);
    must(ops->raw_to_rts(p->a.qp) == 0 && ops->raw_to_rts(p->b.qp) == 0);
    post_recv(&p->b, &slot, 0, 64, 1);
    mem_fill(&out, 3);
    struct exsi_send_wr wr[2] = {wr_write(&out, 0, 64, ring.at, rkey, 1), wr_send(&out, 0, 8, 2)};
    must(post(&p->a, wr, 2) == 0 && pair_until(p, p->b.n_recv == 1 && p->a.n_send == 2));
    ok(memcmp(ring.at, out.at, 64) == 0, "point 39: a peer with the key writes");
    struct exsi_send_wr read = wr[0];
    read.op = EXSI_WR_READ;
    ok(ops->post_send(p->a.qp, &read, 1) == -EOPNOTSUPP, "and has no way to read");
    ask_to_read(&p->a, rkey, ring.at, 64);
    ok(pair_until(p, p->b.down) && p->b.error == EPROTO, "one that asks all the same ends the queue pair");
    ok(pair_until(p, p->a.down) && strstr(p->a.reason, "Terminate"), "and gets no byte (%s)", p->a.reason);
    side_end(&p->a);
    side_end(&p->b);
    mem_free(p, &ring);
    mem_free(p, &out);
    mem_free(p, &slot);
    pair_close(p);
}

/* Whatever completed at an end that then goes away still comes, and behind it the end, however late a receive is. */
static void test_last_words(void)
{
    struct pair *p = &pair;
    struct exsi_raw_address a;
    enum { N = 6, LONG = 9000 };
    soft_pair_open(p);
    connect_raw(p, &a);
    struct mem out = mem_new(p, LONG, 0), in = mem_new(p, LONG, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct mem slot = mem_new(p, 64, EXSI_ACCESS_LOCAL_WRITE);
    uint32_t rkey;
    mem_fill(&out, 3);
    must(ops->key_bind(p->b.qp, in.mr, in.at, LONG, &rkey) == 0);
    /* The first SEND holds the WRITE behind it back; that one is short, so that its completion waits for nobody. */
    struct exsi_send_wr wr[N];
    for (int i = 0; i < N; i++) wr[i] = wr_send(&out, 0, 4, (uint64_t)i);
    wr[1] = wr_write(&out, 0, 1000, in.at, rkey, 1);
    must(post(&p->a, wr, N) == 0);
    bool out_there = pair_until(p, p->a.n_send == N);
    ok(out_there && p->b.n_recv == 0 && !p->b.down, "%s: all completed, none has a receive", way());
    side_end(&p->a);
    pair_for_ms(p, 30);
    ok(!p->b.down && in.at[0] == 0, "%s: the sender is gone, its words wait", way());
    for (int i = 0; i < N - 1; i++) {
        post_recv(&p->b, &slot, 0, 64, (uint64_t)i);
        must(pair_until(p, p->b.n_recv == i + 1));
    }
    ok(memcmp(in.at, out.at, 1000) == 0, "%s: they come", way());
    ok(pair_until(p, p->b.down), "%s: and then the end (%d)", way(), p->b.error);
    side_end(&p->b);
    mem_free(p, &out);
    mem_free(p, &in);
    mem_free(p, &slot);
    pair_close(p);
}

static void test_refusals(void)
{
    struct pair *p = &pair;
    struct exsi_raw_address a, b, wrong;
    soft_pair_open(p);
    raw_open(&p->a);
    raw_open(&p->b);
    must(ops->raw_query(p->a.qp, &a) == 0 && ops->raw_query(p->b.qp, &b) == 0);
    bool a_calls = memcmp(a.gid, b.gid, sizeof a.gid) > 0;
    struct side *caller = a_calls ? &p->a : &p->b, *called = a_calls ? &p->b : &p->a;
    struct exsi_raw_address *to_caller = a_calls ? &a : &b, *to_called = a_calls ? &b : &a;
    wrong = *to_caller;
    wrong.gid[0] = 0xfe;
    ok(ops->raw_to_rtr(called->qp, &wrong) == -EHOSTUNREACH, "a GID that soft did not make");
    wrong = *to_caller;
    wrong.psn ^= 1;
    ok(ops->raw_to_rtr(called->qp, &wrong) == 0, "told to expect somebody");
    ok(ops->raw_to_rtr(caller->qp, to_called) == 0, "somebody else calls");
    ok(pair_until(p, caller->down) && caller->error == ECONNREFUSED, "and is refused");
    ok(!called->down, "the other still waits");
    side_end(&p->a);
    side_end(&p->b);

    struct exsi_cm_options tcp = {.path = EXSI_PATH_TCP};
    pair_listen(p, "127.0.0.1", &tcp);
    pair_connect(p, &tcp, 8);
    ok(ops->raw_query(p->a.qp, &a) == -EOPNOTSUPP, "a connected queue pair is not raw");
    pair_close(p);
}

int main(void)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        no_shm = tcp;
        test_story(0, 0);
        test_story(0, 60);
        test_story(60, 0);
        test_story(0, 0);
        test_story(0, 40);
        test_story(40, 0);
        test_receives();
        test_last_words();
        test_refusals();
    }
    test_remote_read();
    return tap_done();
}
