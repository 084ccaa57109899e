// SPDX-License-Identifier: MIT OR Apache-2.0
/* The soft device against a peer written by hand: an iWARP implementation that is not soft, one that
 * breaks the rules, one that goes away at every moment; and against its own process running out of
 * descriptors or losing the file behind its memory. */
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/crc32c.h"
#include "device/soft/iwarp.h"
#include "soft_pair.h"

static const struct exsi_cm_options tcp_only = {
    .path = EXSI_PATH_TCP, .connect_timeout_ms = 3000, .close_timeout_ms = 2000};

static struct pair pair;

/* --- a peer by hand -------------------------------------------------------------------------------- */

static int dial(const struct pair *p)
{
    int fd = socket(p->b.addr.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0 && connect(fd, &p->b.addr.sa, exsi_addr_len(&p->b.addr)) == 0);
    return fd;
}

static void say(int fd, const void *data, size_t len)
{
    must(send(fd, data, len, MSG_NOSIGNAL) == (ssize_t)len);
}

/* Exactly len bytes, while b runs; false at the end of the stream. */
static bool hear(struct pair *p, int fd, void *out, size_t len)
{
    uint64_t until = exsi_now_ns() + PAIR_BOUND_NS;
    for (size_t at = 0; at < len;) {
        ssize_t n = recv(fd, (uint8_t *)out + at, len - at, MSG_DONTWAIT);
        if (n > 0) at += (size_t)n;
        if (n == 0 || (n < 0 && errno != EAGAIN) || exsi_now_ns() > until) return false;
        pair_pass(p);
    }
    return true;
}

/* Set up by hand; the reply's flags, or -1.  b accepts. */
static int set_up(struct pair *p, int fd, uint8_t flags, uint8_t revision, uint8_t reply[24])
{
    uint8_t request[24] = "MPA ID Req Frame";
    bool depths = revision == 2 && flags & 0x10;
    request[16] = flags;
    request[17] = revision;
    request[19] = depths ? 4 : 0;
    request[21] = request[23] = 1;
    say(fd, request, depths ? 24 : 20);
    must(pair_until(p, p->b.requested));
    pair_qp(&p->b, p->b.id, 16);
    must(ops->cm_accept(p->b.id, "", 0) == 0);
    if (!hear(p, fd, reply, depths ? 24 : 20)) return -1;
    must(pair_until(p, p->b.up));
    return reply[16];
}

static void fpdu(int fd, const struct iwarp_segment *seg, const void *payload, bool crc)
{
    static uint8_t bytes[70000];
    uint32_t at = iwarp_encode(seg, bytes);
    memcpy(bytes + at, payload, seg->payload);
    at += seg->payload;
    memset(bytes + at, 0, 3);
    uint32_t sum = crc ? exsi_crc32c(0, bytes, at + iwarp_pad(at)) : 0;
    at += iwarp_put_trailer(at, sum, bytes + at);
    say(fd, bytes, at);
}

static void send_fpdu(int fd, uint32_t msn, uint32_t mo, const void *data, uint32_t len, bool last, bool crc)
{
    struct iwarp_segment seg = {.last = last, .opcode = IWARP_SEND, .payload = len, .msn = msn, .mo = mo};
    fpdu(fd, &seg, data, crc);
}

/* One FPDU from b: its header, payload into out; checks padding and CRC. */
static bool hear_fpdu(struct pair *p, int fd, bool crc, struct iwarp_segment *seg, uint8_t *out)
{
    static uint8_t bytes[70000];
    struct iwarp_error err;
    if (!hear(p, fd, bytes, IWARP_TAGGED_LEN) || iwarp_decode(bytes, seg, &err) < 0) return false;
    uint32_t header = iwarp_header_len(seg->tagged), covered = header + seg->payload;
    uint32_t all = covered + iwarp_trailer_len(covered);
    if (!hear(p, fd, bytes + IWARP_TAGGED_LEN, all - IWARP_TAGGED_LEN)) return false;
    if (!seg->tagged && iwarp_decode_rest(bytes + IWARP_TAGGED_LEN, seg, &err) < 0) return false;
    memcpy(out, bytes + header, seg->payload);
    uint32_t sum = crc ? exsi_crc32c(0, bytes, covered + iwarp_pad(covered)) : 0;
    return iwarp_get_crc(bytes + covered, covered) == sum;
}

static bool hear_terminate(struct pair *p, int fd, struct iwarp_error *err)
{
    static uint8_t payload[70000];
    struct iwarp_segment seg;
    return hear_fpdu(p, fd, false, &seg, payload) && seg.opcode == IWARP_TERMINATE && seg.qn == IWARP_QN_TERMINATE &&
           iwarp_terminate_decode(payload, seg.payload, err) == 0;
}

/* --- another implementation ------------------------------------------------------------------------ */

static void test_foreign(struct pair *p, uint8_t flags, uint8_t revision)
{
    static uint8_t big[300000], got[70000];
    struct mem in = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE), out = mem_new(p, sizeof big, 0);
    bool crc = flags & 0x40;
    uint8_t reply[24];
    int fd = dial(p), answered = set_up(p, fd, flags, revision, reply);
    ok(answered == flags && reply[17] == revision, "revision %u, flags %02x: answered in kind", revision, flags);
    mem_fill(&out, 4);
    post_recv(&p->b, &in, 0, 100, 1);
    struct exsi_send_wr wr[2] = {wr_write(&out, 0, (uint32_t)out.len, NULL, 77, 1), wr_send(&out, 5, 20, 2)};
    must(post(&p->b, wr, 2) == 0);
    pair_for_ms(p, 20);
    ok(recv(fd, got, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "a responder is silent before it has heard something");
    send_fpdu(fd, 1, 0, "hello", 5, true, crc);
    uint64_t to = 0;
    uint32_t longest = 0;
    struct iwarp_segment seg;
    bool good = true;
    for (bool last = false; good && !last; last = seg.last) {
        good = hear_fpdu(p, fd, crc, &seg, got) && seg.tagged && seg.stag == 77 && seg.to == to;
        if (good) memcpy(big + to, got, seg.payload);
        to += seg.payload;
        if (seg.payload > longest) longest = seg.payload;
    }
    ok(good && to == out.len && memcmp(big, out.at, out.len) == 0, "WRITE in FPDUs of at most %u bytes", longest);
    good = hear_fpdu(p, fd, crc, &seg, got) && !seg.tagged && seg.msn == 1 && seg.payload == 20;
    ok(good && memcmp(got, out.at + 5, 20) == 0 && p->b.n_recv == 1 && memcmp(in.at, "hello", 5) == 0,
       "SENDs both ways");
    shutdown(fd, SHUT_WR);
    ok(pair_until(p, p->b.down) && p->b.error == 0, "its end at a message boundary is an end in order");
    ok(!hear(p, fd, got, 1), "and is answered by ours");
    close(fd);
    side_end(&p->b);
    mem_free(p, &in);
    mem_free(p, &out);
}

/* An empty read asks whether anybody is there; its answer comes between messages. */
static void test_empty_reads(struct pair *p, uint8_t flags)
{
    static const uint8_t request[IWARP_READ_LEN] = {[3] = 7, [11] = 9};
    static uint8_t got[70000];
    bool crc = flags & 0x40, good = true;
    struct iwarp_segment seg;
    uint8_t reply[24];
    int fd = dial(p);
    must(set_up(p, fd, flags, 2, reply) == flags);
    for (uint32_t msn = 1; msn <= 3; msn++) {
        struct iwarp_segment ask = {
            .last = true, .opcode = IWARP_READ_REQUEST, .qn = IWARP_QN_READ, .msn = msn, .payload = IWARP_READ_LEN};
        fpdu(fd, &ask, request, crc);
        good = good && hear_fpdu(p, fd, crc, &seg, got) && seg.opcode == IWARP_READ_RESPONSE && seg.last;
        good = good && seg.payload == 0 && seg.stag == 7 && seg.to == 9;
    }
    ok(good, "flags %02x: empty reads are answered", flags);
    close(fd);
    must(pair_until(p, p->b.down));
    side_end(&p->b);
}

/* --- one that breaks the rules --------------------------------------------------------------------- */

struct breach {
    const char *name;
    struct iwarp_segment seg;
    struct iwarp_error expect;
};

static void test_breaches(struct pair *p)
{
    static const struct breach all[] = {
        {"a read of one byte",
         {.last = true, .opcode = IWARP_READ_REQUEST, .qn = 1, .msn = 1, .payload = 28},
         {0, 2, 6}},
        {"a read response", {.tagged = true, .last = true, .opcode = IWARP_READ_RESPONSE, .payload = 4}, {0, 2, 6}},
        {"a SEND that ends a key", {.last = true, .opcode = IWARP_SEND_INVALIDATE, .msn = 1, .payload = 4}, {0, 2, 9}},
        {"message 2 before 1", {.last = true, .opcode = IWARP_SEND, .msn = 2, .payload = 4}, {1, 2, 3}},
        {"an offset that leaves a hole",
         {.last = true, .opcode = IWARP_SEND, .msn = 1, .mo = 4, .payload = 4},
         {1, 2, 4}},
        {"a large one with a hole",
         {.last = true, .opcode = IWARP_SEND, .msn = 1, .mo = 4, .payload = 1000},
         {1, 2, 4}},
        {"a SEND longer than the receive", {.last = true, .opcode = IWARP_SEND, .msn = 1, .payload = 2000}, {1, 2, 5}},
        {"a key that nobody gave",
         {.tagged = true, .last = true, .opcode = IWARP_WRITE, .payload = 4, .stag = 9},
         {1, 1, 0}},
        {"a Terminate too long to be one",
         {.last = true, .opcode = IWARP_TERMINATE, .qn = 2, .msn = 1, .payload = 300},
         {1, 2, 5}},
    };
    static const uint8_t zero[2000], one[IWARP_READ_LEN] = {[15] = 1};
    struct mem in = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct iwarp_error err = {9, 9, 9};
        uint8_t reply[24];
        int fd = dial(p);
        must(set_up(p, fd, 0x10, 2, reply) == 0x10);
        post_recv(&p->b, &in, 0, 1500, 1);
        fpdu(fd, &all[i].seg, all[i].seg.opcode == IWARP_READ_REQUEST ? one : zero, false);
        bool told = hear_terminate(p, fd, &err);
        ok(told && memcmp(&err, &all[i].expect, sizeof err) == 0, "%s: Terminate %u %u %u", all[i].name, err.layer,
           err.etype, err.code);
        ok(pair_until(p, p->b.down) && p->b.error == EPROTO && p->b.n_recv == 0, "and EPROTO");
        close(fd);
        side_end(&p->b);
    }
    mem_free(p, &in);
}

static void test_told_off(struct pair *p)
{
    static const uint8_t payload[4] = {0x11, 0x01, 0, 0}, trouble[4] = {0, 0, 0, 0};
    struct iwarp_segment seg = {.last = true, .opcode = IWARP_TERMINATE, .qn = 2, .msn = 1, .payload = 4};
    for (int i = 0; i < 2; i++) {
        uint8_t reply[24];
        int fd = dial(p);
        must(set_up(p, fd, 0x10, 2, reply) == 0x10);
        fpdu(fd, &seg, i ? trouble : payload, false);
        ok(pair_until(p, p->b.down) && p->b.error == (i ? ECONNRESET : EPROTO), "a Terminate of the peer is %s",
           i ? "ECONNRESET when it was its own trouble" : "EPROTO when it was ours");
        close(fd);
        side_end(&p->b);
    }
}

/* --- one that goes away ---------------------------------------------------------------------------- */

static void test_gone(struct pair *p)
{
    static const struct {
        const char *when, *said;
        size_t len;
    } gone[] = {
        {"in a header", "\0\x20\x41", 3},
        {"behind a header that may be all of it", "\0\x12\x41\x43\0\0\0\0\0\0\0\0\0\0\0\1", 16},
        {"in a small payload", "\0\x20\x41\x43\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0ab", 22},
        {"in a large payload", "\4\x20\x41\x43\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0ab", 22},
        {"in a WRITE of nothing", "\0\x0e\xc1\x40\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 18},
        {"in the CRC", "\0\x14\x41\x43\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0ab\0\0\0", 25},
        {"between FPDUs of one message", NULL, 0},
        {"by a reset", NULL, 0},
    };
    struct mem in = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        uint8_t reply[24];
        int fd = dial(p);
        must(set_up(p, fd, 0x10, 2, reply) == 0x10);
        post_recv(&p->b, &in, 0, 4096, 1);
        struct linger reset = {.l_onoff = 1};
        bool by_reset = i == sizeof gone / sizeof *gone - 1;
        if (gone[i].said)
            say(fd, gone[i].said, gone[i].len);
        else if (by_reset)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        else
            send_fpdu(fd, 1, 0, "part", 4, false, false);
        pair_for_ms(p, 5);
        close(fd);
        ok(pair_until(p, p->b.down) && p->b.error == ECONNRESET && p->b.n_recv == 0 && p->b.n_flushed == 1,
           "gone %s: ECONNRESET, the receive comes back", gone[i].when);
        ok(by_reset || strstr(p->b.reason, "middle of a message"), "and in words: %s", p->b.reason);
        side_end(&p->b);
    }
    mem_free(p, &in);
}

static void test_gone_in_setup(struct pair *p)
{
    int fd = dial(p);
    say(fd, "MPA ID Re", 9);
    pair_for_ms(p, 5);
    close(fd);
    pair_for_ms(p, 5);
    ok(!p->b.requested && !p->b.failed, "gone within its request: nobody is told");
    fd = dial(p);
    say(fd, "MPA ID Req Frame\0\1\0\0", 20);
    must(pair_until(p, p->b.requested));
    close(fd);
    ok(pair_until(p, p->b.failed) && p->b.error == ECONNRESET, "gone while the answer was considered: FAILED");
    side_end(&p->b);
    fd = dial(p);
    say(fd, "MPA ID Req Frame\0\1\0\0early", 25);
    must(pair_until(p, p->b.requested));
    ok(pair_until(p, p->b.failed) && p->b.error == EPROTO, "data before the reply: FAILED");
    side_end(&p->b);
    close(fd);
    fd = dial(p);
    say(fd, "MPA ID Req Frame\0\1\0\0", 20);
    must(pair_until(p, p->b.requested));
    pair_qp(&p->b, p->b.id, 4);
    must(ops->cm_accept(p->b.id, "", 0) == 0);
    close(fd);
    ok(pair_until(p, p->b.failed || p->b.down), "gone at the reply: told once");
    side_end(&p->b);
}

static void test_slow_stranger(struct pair *p)
{
    struct exsi_cm_options brief = {.path = EXSI_PATH_TCP, .connect_timeout_ms = 50};
    union exsi_addr addr = {.in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}}, bound;
    struct exsi_cm_id *listener;
    must(ops->cm_listen(p->b.part, &addr, 4, &brief, NULL, &listener, &bound) == 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(connect(fd, &bound.sa, sizeof bound.in) == 0);
    say(fd, "MPA", 3);
    char byte;
    ok(!hear(p, fd, &byte, 1), "a stranger who never finishes its request is sent away");
    close(fd);
    ops->cm_destroy(listener);
}

/* --- our own trouble ------------------------------------------------------------------------------- */

static void test_no_descriptors(struct pair *p)
{
    struct rlimit limit, tight;
    must(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    int fd = dial(p);
    tight = limit;
    int lowest = dup(0);
    must(lowest >= 0);
    close(lowest);
    tight.rlim_cur = (rlim_t)lowest;
    must(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    say(fd, "MPA ID Req Frame\0\1\0\0", 20);
    uint64_t calls = p->b.poller.syscalls;
    pair_for_ms(p, 60);
    calls = p->b.poller.syscalls - calls;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    ok(!p->b.requested && calls < 60, "out of descriptors: the listener rests (%llu calls)", (unsigned long long)calls);
    ok(pair_until(p, p->b.requested), "and serves again later");
    close(fd);
    (void)pair_until(p, p->b.failed);
    side_end(&p->b);
}

/* Memory of a file that somebody cuts short while it is used. */
static void test_truncated(struct pair *p, bool sending, bool crc)
{
    enum { LEN = 1 << 20 };
    struct exsi_cm_options opt = tcp_only;
    opt.crc = crc;
    int file = memfd_create("soft-test", MFD_CLOEXEC);
    must(file >= 0 && ftruncate(file, LEN) == 0);
    struct mem mapped = {.len = LEN}, plain = mem_new(p, LEN, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    mapped.at = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(mapped.at != MAP_FAILED);
    struct exsi_mem range = {mapped.at, LEN, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE, -1, 0, true};
    must(ops->reg_mr(p->dev, &range, &mapped.mr) == 0);
    pair_connect(p, &opt, 8);
    const struct mem *from = sending ? &mapped : &plain, *to = sending ? &plain : &mapped;
    uint32_t rkey;
    must(ops->key_bind(p->b.qp, to->mr, to->at, LEN, &rkey) == 0);
    must(ftruncate(file, LEN / 2) == 0);
    struct exsi_send_wr wr = wr_write(from, 0, LEN, to->at, rkey, 1);
    must(post(&p->a, &wr, 1) == 0);
    bool ended = pair_until(p, p->a.down && p->b.down);
    ok(ended && (sending ? p->a : p->b).error == EFAULT, "a file cut short while %s, CRC %s: EFAULT, no signal",
       sending ? "it is sent" : "it is received into", crc ? "on" : "off");
    side_end(&p->a);
    side_end(&p->b);
    ops->dereg_mr(p->dev, mapped.mr);
    munmap(mapped.at, LEN);
    close(file);
    mem_free(p, &plain);
}

static void test_faults(struct pair *p)
{
    struct mem out = mem_new(p, 1 << 20, 0),
               in = mem_new(p, 1 << 20, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    uint32_t rkey;
    pair_connect(p, &tcp_only, 8);
    must(ops->key_bind(p->b.qp, in.mr, in.at, in.len, &rkey) == 0);
    p->a.soft->fault.max_send = 1 << 18;
    p->a.soft->fault.delay_ns = 5000000;
    uint64_t start = exsi_now_ns();
    struct exsi_send_wr wr = wr_write(&out, 0, 1 << 20, in.at, rkey, 1);
    must(post(&p->a, &wr, 1) == 0);
    ok(pair_until(p, p->a.n_send == 1) && exsi_now_ns() - start > 15000000, "scripted delay");
    p->a.soft->fault = (struct soft_fault){.kill_after = 300000, .max_send = 65536};
    must(post(&p->a, &wr, 1) == 0);
    ok(pair_until(p, p->a.down && p->b.down) && p->a.error == ECONNRESET && p->b.error == ECONNRESET, "scripted death");
    side_end(&p->a);
    side_end(&p->b);
    mem_free(p, &out);
    mem_free(p, &in);
}

/* --- is the peer's host still there? --------------------------------------------------------------- */

static const struct exsi_cm_options watchful = {
    .path = EXSI_PATH_TCP, .connect_timeout_ms = 3000, .close_timeout_ms = 2000, .keepalive_ms = 1000};

/* A program that does not read for long, on a host that answers. */
static void test_busy_peer(struct pair *p)
{
    enum { LEN = 64 << 20 };
    struct mem out = mem_new(p, LEN, 0), in = mem_new(p, LEN, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    uint32_t rkey;
    pair_connect(p, &watchful, 8);
    must(ops->key_bind(p->b.qp, in.mr, in.at, LEN, &rkey) == 0);
    struct exsi_send_wr wr = wr_write(&out, 0, LEN, in.at, rkey, 1);
    must(post(&p->a, &wr, 1) == 0);
    uint64_t until = exsi_now_ns() + 3000000000u;
    while (exsi_now_ns() < until && !p->a.down) {
        side_run(&p->a);
        poll(NULL, 0, 10);
    }
    ok(!p->a.down && p->a.n_send == 0, "a peer that computes for three times the keep-alive is not declared dead");
    ok(pair_until(p, p->a.n_send == 1), "and takes everything afterwards");
    side_end(&p->a);
    side_end(&p->b);
    mem_free(p, &out);
    mem_free(p, &in);
}

static bool loopback(short flags)
{
    struct ifreq req = {.ifr_name = "lo", .ifr_flags = flags};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool done = fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &req) == 0;
    if (fd >= 0) close(fd);
    return done;
}

/* In a network of its own whose only link goes down: what a dead host looks like.  0, or what failed. */
static int dead_host(struct pair *p)
{
    /* A user namespace only where it takes one: it cannot be made beside the thread of a sanitizer. */
    if (unshare(geteuid() == 0 ? CLONE_NEWNET : CLONE_NEWUSER | CLONE_NEWNET) < 0 || !loopback(IFF_UP)) return 77;
    pair_open(p);
    pair_listen(p, "127.0.0.1", &watchful);
    struct mem out = mem_new(p, 4096, 0), in = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    uint32_t rkey;
    pair_connect(p, &watchful, 8);
    must(ops->key_bind(p->b.qp, in.mr, in.at, 4096, &rkey) == 0);
    if (!loopback(0)) return 77;
    struct exsi_send_wr wr = wr_write(&out, 0, 4096, in.at, rkey, 1);
    must(post(&p->a, &wr, 1) == 0);
    if (!pair_until(p, p->a.down && p->b.down)) return 1;
    if (p->a.error != ETIMEDOUT) return 2;
    return p->b.error == ETIMEDOUT ? 0 : 3;
}

static void test_dead_host(void)
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) _exit(dead_host(&pair));
    must(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        ok(true, "a dead host is noticed # SKIP needs root, or user namespaces");
    else
        ok(status == 0, "a dead host is ETIMEDOUT for who sends and for who waits (%d)", status);
}

int main(void)
{
    struct pair *p = &pair;
    test_dead_host();
    pair_open(p);
    pair_listen(p, "127.0.0.1", &tcp_only);
    test_foreign(p, 0x10, 2);
    test_foreign(p, 0x50, 2);
    test_foreign(p, 0x40, 1);
    test_foreign(p, 0x00, 1);
    test_empty_reads(p, 0x10);
    test_empty_reads(p, 0x50);
    test_breaches(p);
    test_told_off(p);
    test_gone(p);
    test_gone_in_setup(p);
    test_slow_stranger(p);
    test_no_descriptors(p);
    test_truncated(p, true, false);
    test_truncated(p, true, true);
    test_truncated(p, false, false);
    test_truncated(p, false, true);
    test_faults(p);
    test_busy_peer(p);
    pair_close(p);
    return tap_done();
}
