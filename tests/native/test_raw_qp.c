// SPDX-License-Identifier: MIT OR Apache-2.0
/* Raw queue pairs between two processes: the four steps in which SMC-R needs them, either end first.
 * What would travel in CLC messages goes through a socket pair here. */
#include <sys/wait.h>

#include "soft_pair.h"

/* What one end tells the other: CLC's part. */
struct told {
    struct exsi_raw_address raw;
    uint64_t addr;
    uint32_t rkey;
};

enum { LEN = 100000 };

static struct pair pair;

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
    pair_open(p);
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
    ok(step == 0 && status == 0, "two processes, RTR after %u and %u ms (steps %d, %d)", mine_ms, theirs_ms, step,
       WEXITSTATUS(status));
}

static void test_refusals(void)
{
    struct pair *p = &pair;
    struct exsi_raw_address a, b, wrong;
    pair_open(p);
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
    test_story(0, 0);
    test_story(0, 60);
    test_story(60, 0);
    test_story(0, 0);
    test_story(0, 40);
    test_story(40, 0);
    test_refusals();
    return tap_done();
}
