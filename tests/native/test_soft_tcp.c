// SPDX-License-Identifier: MIT OR Apache-2.0
/* Path tcp through the device table: data both ways at every boundary, violations, the end. */
#include <fcntl.h>

#include "soft_pair.h"

static const struct exsi_cm_options tcp_only = {
    .path = EXSI_PATH_TCP, .connect_timeout_ms = 5000, .close_timeout_ms = 3000};

enum { BIG = 8 << 20 };

static void disconnect(struct pair *p)
{
    ops->cm_disconnect(p->a.id);
    ops->cm_disconnect(p->b.id);
    ok(pair_until(p, p->a.down && p->b.down) && p->a.error == 0 && p->b.error == 0, "both end in order");
    side_end(&p->a);
    side_end(&p->b);
}

static void test_connect(struct pair *p, const char *host)
{
    pair_listen(p, host, &tcp_only);
    pair_connect(p, &tcp_only, 64);
    struct exsi_qp_info info;
    ops->qp_query(p->a.qp, &info);
    ok(strcmp(info.path, "tcp") == 0 && info.max_msg >= BIG, "%s: path is tcp", host);
    ok(p->b.private_len == 5 && memcmp(p->b.private_data, "hello", 5) == 0, "%s: private data of the request", host);
    ok(p->a.private_len == 7 && memcmp(p->a.private_data, "welcome", 7) == 0, "%s: private data of the reply", host);
    disconnect(p);
    ops->cm_destroy(p->b.listener);
    p->b.listener = NULL;
}

/* RFC 5040 §4.6, §5.5 */
static void test_send(struct pair *p)
{
    pair_connect(p, &tcp_only, 64);
    struct mem out = mem_new(p, 1 << 18, 0), in = mem_new(p, 1 << 18, EXSI_ACCESS_LOCAL_WRITE);
    static const uint32_t sizes[] = {0, 1, 3, 4, 63, 256, 257, 4096, 65517, 65518, 131034, 131035, 200001};
    struct side *from = &p->a, *to = &p->b;
    for (int way = 0; way < 2; way++) {
        bool same = true;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            mem_fill(&out, (uint32_t)i + 1);
            memset(in.at, 0, in.len);
            int before = to->n_recv;
            post_recv(to, &in, 0, sizes[i], i);
            struct exsi_send_wr wr = wr_send(&out, 0, sizes[i], i);
            must(post(from, &wr, 1) == 0);
            same &= pair_until(p, to->n_recv == before + 1);
            same &= to->wc[to->n_wc - 1].byte_len == sizes[i] && to->wc[to->n_wc - 1].wr_id == i;
            same &= memcmp(in.at, out.at, sizes[i]) == 0;
        }
        ok(same, "SEND of every size, %s", way ? "back" : "forth");
        from = &p->b;
        to = &p->a;
    }
    disconnect(p);
    mem_free(p, &out);
    mem_free(p, &in);
}

/* WRITE, then a SEND that tells of it, in one post: what lies there when the SEND arrives? */
static bool write_and_tell(struct pair *p, struct side *from, struct side *to, const struct mem *out,
                           const struct mem *in, uint32_t len, uint32_t rkey)
{
    uint8_t word[4] = {1, 2, 3, 4};
    struct exsi_send_wr wr[2] = {wr_write(out, 0, len, in->at, rkey, 7), {.wr_id = 8, .op = EXSI_WR_SEND}};
    wr[1].flags = EXSI_WR_INLINE;
    wr[1].num_sge = 1;
    wr[1].sge[0] = (struct exsi_sge){word, 4, NULL};
    int recvs = to->n_recv, sends = from->n_send;
    must(post(from, wr, 2) == 0);
    memset(word, 0xee, sizeof word); /* inline: copied when it was posted */
    if (!pair_until(p, to->n_recv == recvs + 1 && from->n_send == sends + 1)) return false;
    return memcmp(in->at, out->at, len) == 0;
}

/* RFC 5040 §4.3, RFC 5041 §5.2, §5.4 */
static void test_write(struct pair *p, const struct exsi_cm_options *opt, const char *what, uint32_t most)
{
    pair_connect(p, opt, 64);
    struct mem out = mem_new(p, BIG, 0), in = mem_new(p, BIG + 1, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct mem slot = mem_new(p, 64, EXSI_ACCESS_LOCAL_WRITE);
    static const uint32_t sizes[] = {1,     2,     15,    4095,   4096,    65519,   65520,   65521,
                                     65522, 65535, 65536, 131042, 1000003, 1 << 20, 5000001, BIG};
    struct side *from = &p->a, *to = &p->b;
    for (int way = 0; way < 2; way++) {
        bool same = true;
        uint64_t moved = 0;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes && sizes[i] <= most; i++) {
            uint32_t rkey, len = sizes[i];
            mem_fill(&out, (uint32_t)i + 100);
            memset(in.at, 0, in.len);
            must(ops->key_bind(to->qp, in.mr, in.at, len, &rkey) == 0);
            post_recv(to, &slot, 0, 4, i);
            same &= write_and_tell(p, from, to, &out, &in, len, rkey) && in.at[len] == 0;
            same &= memcmp(slot.at, "\1\2\3\4", 4) == 0;
            same &= ops->key_invalidate(to->qp, rkey, 0) == 0;
            moved += len + 4;
        }
        ok(same, "%s: WRITE of every size, then its notice, %s", what, way ? "back" : "forth");
        ok(atomic_load(&to->stats.bytes_copied) == 0 && atomic_load(&to->stats.bytes_device) >= moved,
           "%s: nothing copied", what);
        from = &p->b;
        to = &p->a;
    }
    disconnect(p);
    mem_free(p, &out);
    mem_free(p, &in);
    mem_free(p, &slot);
}

/* Both send without limit and neither takes its turn: it must not stall. */
static void test_both_ways(struct pair *p)
{
    enum { ROUNDS = 24, DEPTH = 8 };
    pair_connect(p, &tcp_only, 64);
    struct side *side[2] = {&p->a, &p->b};
    struct mem out[2], in[2];
    uint32_t rkey[2];
    int posted[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        out[i] = mem_new(p, BIG, 0);
        in[i] = mem_new(p, BIG, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
        mem_fill(&out[i], (uint32_t)i + 5);
        must(ops->key_bind(side[i]->qp, in[i].mr, in[i].at, BIG, &rkey[i]) == 0);
    }
    uint64_t until = exsi_now_ns() + PAIR_BOUND_NS;
    while ((p->a.n_send < ROUNDS || p->b.n_send < ROUNDS) && exsi_now_ns() < until) {
        for (int i = 0; i < 2; i++) {
            while (posted[i] < ROUNDS && posted[i] - side[i]->n_send < DEPTH) {
                struct exsi_send_wr wr = wr_write(&out[i], 0, BIG, in[1 - i].at, rkey[1 - i], (uint64_t)posted[i]);
                must(post(side[i], &wr, 1) == 0);
                posted[i]++;
            }
        }
        pair_pass(p);
    }
    ok(p->a.n_send == ROUNDS && p->b.n_send == ROUNDS, "both send %d x 8 MiB at the same time", ROUNDS);
    disconnect(p);
    ok(memcmp(in[0].at, out[1].at, BIG) == 0 && memcmp(in[1].at, out[0].at, BIG) == 0, "and it is what was sent");
    for (int i = 0; i < 2; i++) {
        mem_free(p, &out[i]);
        mem_free(p, &in[i]);
    }
}

/* --- violations: Terminate, and that connection only ---------------------------------------------- */

struct violation {
    const char *name;
    int kind;
};

static struct exsi_send_wr violate(struct pair *p, int kind, const struct mem *out, const struct mem *in,
                                   const struct mem *closed, uint32_t *rkey)
{
    must(ops->key_bind(p->b.qp, in->mr, in->at + 100, 1000, rkey) == 0);
    switch (kind) {
    case 0: return wr_write(out, 0, 8, in->at + 100, *rkey ^ 0x1000, 1);
    case 1: return wr_write(out, 0, 8, in->at + 99, *rkey, 1);
    case 2: return wr_write(out, 0, 8, in->at + 1093, *rkey, 1);
    case 3: return wr_write(out, 0, 200000, in->at + 100, *rkey, 1);
    case 4: must(ops->key_invalidate(p->b.qp, *rkey, 0) == 0); return wr_write(out, 0, 8, in->at + 100, *rkey, 1);
    case 5:
        must(ops->key_bind(p->b.qp, closed->mr, closed->at, 100, rkey) == 0);
        return wr_write(out, 0, 8, closed->at, *rkey, 1);
    case 6: return wr_write(out, 0, 8, (void *)(uintptr_t)(UINT64_MAX - 3), *rkey, 1);
    case 7: return wr_send(out, 0, 65, 1);
    default: return wr_send(out, 0, 2, 1);
    }
}

/* RFC 5041 §7.1, §7.2, RFC 5040 §5.4 */
static void test_violations(struct pair *p)
{
    static const struct violation all[] = {
        {"a key that does not exist", 0}, {"a write before the range", 1},       {"a write behind the range", 2},
        {"a write longer than it", 3},    {"a key that has ended", 4},           {"memory not for writing", 5},
        {"an address that wraps", 6},     {"a SEND longer than the receive", 7}, {"a SEND without a receive", 8},
    };
    struct mem out = mem_new(p, 1 << 18, 0),
               in = mem_new(p, 1 << 18, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct mem closed = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    mem_fill(&out, 3);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        uint32_t rkey;
        pair_connect(p, &tcp_only, 16);
        memset(in.at, 0, in.len);
        memset(closed.at, 0, closed.len);
        bool no_recv = all[i].kind == 8;
        if (!no_recv) post_recv(&p->b, &in, 4096, 64, 50);
        post_recv(&p->a, &in, 0, 64, 60);
        struct exsi_send_wr wr = violate(p, all[i].kind, &out, &in, &closed, &rkey);
        must(post(&p->a, &wr, 1) == 0);
        ok(pair_until(p, p->a.down && p->b.down), "%s ends the connection", all[i].name);
        ok(p->a.error == EPROTO && p->b.error == EPROTO, "%s: both say EPROTO (%d, %d)", all[i].name, p->a.error,
           p->b.error);
        bool clean = true;
        for (size_t k = 0; k < in.len; k++) clean &= in.at[k] == 0;
        for (size_t k = 0; k < closed.len; k++) clean &= closed.at[k] == 0;
        ok(clean, "%s: no byte landed", all[i].name);
        ok(p->b.n_recv == 0 && p->b.n_flushed == !no_recv && p->a.n_flushed == 1, "%s: receives are flushed",
           all[i].name);
        side_end(&p->a);
        side_end(&p->b);
    }
    pair_connect(p, &tcp_only, 16);
    ok(p->a.up, "the listener is as before");
    disconnect(p);
    mem_free(p, &out);
    mem_free(p, &in);
    mem_free(p, &closed);
}

/* --- ends ------------------------------------------------------------------------------------------ */

static void test_abort(struct pair *p)
{
    struct mem out = mem_new(p, BIG, 0), in = mem_new(p, BIG, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    uint32_t rkey;
    pair_connect(p, &tcp_only, 16);
    must(ops->key_bind(p->b.qp, in.mr, in.at, BIG, &rkey) == 0);
    post_recv(&p->b, &in, 0, 64, 1);
    post_recv(&p->a, &in, 0, 64, 2);
    struct exsi_send_wr wr = wr_write(&out, 0, BIG, in.at, rkey, 3);
    must(post(&p->a, &wr, 1) == 0);
    ops->qp_abort(p->a.qp);
    ok(pair_until(p, p->a.down && p->b.down), "abort ends both");
    ok(p->a.error == ECONNABORTED && p->b.error == ECONNRESET, "the one ECONNABORTED, the other ECONNRESET");
    ok(p->a.n_flushed == 2 && p->b.n_flushed == 1, "every request came back");
    ok(ops->post_send(p->a.qp, &wr, 1) == -ENOTCONN, "nothing can be posted afterwards");
    side_end(&p->a);
    side_end(&p->b);

    pair_connect(p, &tcp_only, 16);
    wr = wr_write(&out, 0, BIG, in.at, 1, 3);
    must(post(&p->a, &wr, 1) == 0);
    ops->qp_destroy(p->a.qp);
    p->a.qp = NULL;
    ops->cm_destroy(p->a.id);
    p->a.id = NULL;
    ok(pair_until(p, p->b.down) && p->b.error != 0, "destroyed in the middle: the peer sees an error");
    side_end(&p->a);
    side_end(&p->b);
    mem_free(p, &out);
    mem_free(p, &in);
}

/* RFC 5044 §7.2 */
static void test_disconnect(struct pair *p)
{
    struct mem out = mem_new(p, BIG, 0), in = mem_new(p, BIG, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    uint32_t rkey;
    pair_connect(p, &tcp_only, 16);
    must(ops->key_bind(p->b.qp, in.mr, in.at, BIG, &rkey) == 0);
    mem_fill(&out, 9);
    struct exsi_send_wr wr = wr_write(&out, 0, BIG, in.at, rkey, 3);
    must(post(&p->a, &wr, 1) == 0);
    ops->cm_disconnect(p->a.id);
    ok(ops->post_send(p->a.qp, &wr, 1) == -EPIPE, "no sends after disconnect");
    ok(pair_until(p, p->a.down && p->b.down) && p->a.error == 0 && p->b.error == 0,
       "one side's disconnect ends both in order");
    ok(memcmp(in.at, out.at, BIG) == 0 && p->a.n_send == 1, "after everything posted was out");
    side_end(&p->a);
    side_end(&p->b);

    struct exsi_cm_options brief = tcp_only;
    brief.close_timeout_ms = 50;
    pair_connect(p, &brief, 16);
    ops->cm_disconnect(p->a.id);
    uint64_t until = exsi_now_ns() + PAIR_BOUND_NS;
    while (!p->a.down && exsi_now_ns() < until) side_run(&p->a); /* b does nothing */
    ok(p->a.down && p->a.error == ETIMEDOUT, "a peer that does not close is not waited for");
    side_end(&p->a);
    pair_for_ms(p, 20);
    side_end(&p->b);
    mem_free(p, &out);
    mem_free(p, &in);
}

static void test_queue_limits(struct pair *p)
{
    struct mem out = mem_new(p, 4096, 0);
    pair_connect(p, &tcp_only, 16);
    struct exsi_send_wr wr[20];
    for (int i = 0; i < 20; i++) wr[i] = wr_send(&out, 0, 4, (uint64_t)i);
    ok(ops->post_send(p->a.qp, wr, 17) == -ENOMEM, "more than the queue holds: none is taken");
    ok(ops->post_send(p->a.qp, wr, 16) == 0 && ops->post_send(p->a.qp, wr, 1) == -ENOMEM, "exactly what it holds");
    struct exsi_send_wr bad = wr_send(&out, 4000, 97, 1);
    ok(ops->post_send(p->b.qp, &bad, 1) == -EINVAL, "a piece outside of its region");
    bad = wr_send(&out, 0, 65, 1);
    bad.flags |= EXSI_WR_INLINE;
    ok(ops->post_send(p->b.qp, &bad, 1) == -EINVAL, "more inline than allowed");
    bad = wr_send(&out, 0, 4, 1);
    bad.op = EXSI_WR_READ;
    ok(ops->post_send(p->b.qp, &bad, 1) == -EOPNOTSUPP, "READ is refused");
    bad.op = EXSI_WR_WRITE_IMM;
    ok(ops->post_send(p->b.qp, &bad, 1) == -EOPNOTSUPP, "immediate data is refused");
    uint32_t rkey;
    ok(ops->key_bind(p->b.qp, out.mr, out.at, 4097, &rkey) == -EINVAL, "a key cannot reach outside of its region");
    ok(ops->key_invalidate(p->b.qp, 12345, 0) == -EINVAL, "a key that is not there cannot end");
    side_end(&p->a);
    side_end(&p->b);
    mem_free(p, &out);
}

/* --- CRC ------------------------------------------------------------------------------------------- */

/* RFC 5044 §4.4 */
static void test_crc(struct pair *p)
{
    struct exsi_cm_options crc = tcp_only;
    crc.crc = true;
    struct mem out = mem_new(p, 1 << 20, 0),
               in = mem_new(p, 1 << 20, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    static const uint64_t spoil[] = {1, 2, 3};
    for (int i = 0; i < 3; i++) {
        uint32_t rkey;
        pair_connect(p, &crc, 16);
        must(ops->key_bind(p->b.qp, in.mr, in.at, in.len, &rkey) == 0);
        post_recv(&p->b, &in, 0, 1 << 16, 1);
        post_recv(&p->b, &in, 0, 1 << 16, 2);
        p->a.soft->fault.corrupt_crc_at = spoil[i];
        p->a.soft->fault.sent_fpdus = 0;
        struct exsi_send_wr wr[3] = {wr_send(&out, 0, 10, 1), wr_write(&out, 0, 4096, in.at, rkey, 2),
                                     wr_send(&out, 0, 5000, 3)};
        must(post(&p->a, wr, 3) == 0);
        ok(pair_until(p, p->a.down && p->b.down) && p->b.error == EPROTO && p->a.error == EPROTO,
           "CRC of FPDU %d spoilt ends the connection", i + 1);
        ok(strcmp(p->b.reason, "MPA: CRC mismatch") == 0 && strstr(p->a.reason, "Terminate: MPA: CRC mismatch"),
           "and both say so: %s", p->a.reason);
        ok(p->b.n_recv == (i == 0 ? 0 : 1), "and there is no completion for it");
        side_end(&p->a);
        side_end(&p->b);
    }
    mem_free(p, &out);
    mem_free(p, &in);
}

/* --- set-up ---------------------------------------------------------------------------------------- */

static int dial_plain(const union exsi_addr *addr)
{
    int fd = socket(addr->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0 && connect(fd, &addr->sa, exsi_addr_len(addr)) == 0);
    return fd;
}

static bool closed_by_peer(struct pair *p, int fd)
{
    char byte;
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    return pair_until(p, poll(&pfd, 1, 0) > 0) && recv(fd, &byte, 1, MSG_DONTWAIT) <= 0;
}

static void test_garbage(struct pair *p)
{
    static const char *const garbage[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02",
                                          "MPA ID Rep Frame\0\2\0\0",          "MPA ID Req Frame\0\7\0\0",
                                          "MPA ID Req Frame\0\2\xff\xff",      "MPA ID Req Frame\x10\2\0\2ab"};
    static const size_t len[] = {26, 4, 20, 20, 20, 22};
    for (size_t i = 0; i < sizeof len / sizeof *len; i++) {
        int fd = dial_plain(&p->b.addr);
        must(send(fd, garbage[i], len[i], 0) == (ssize_t)len[i]);
        ok(closed_by_peer(p, fd) && !p->b.requested && !p->b.failed, "garbage %zu: closed, nobody told", i);
        close(fd);
    }
    int fd = dial_plain(&p->b.addr);
    must(send(fd, "MPA ID Req Frame\x80\2\0\0", 20, 0) == 20);
    char reply[64];
    ssize_t n = -1;
    (void)pair_until(p, (n = recv(fd, reply, sizeof reply, MSG_DONTWAIT)) > 0);
    ok(n >= 20 && memcmp(reply, "MPA ID Rep Frame", 16) == 0 && reply[16] & 0x20, "markers are refused by a reply");
    close(fd);
    pair_for_ms(p, 5);
    side_end(&p->b);
}

/* A listener that is no exs: what does the active side say? */
static void test_not_exs(struct pair *p)
{
    static const char answer[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    union exsi_addr addr = {.in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof addr.in;
    int lfd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(lfd >= 0 && bind(lfd, &addr.sa, len) == 0 && listen(lfd, 4) == 0 && getsockname(lfd, &addr.sa, &len) == 0);
    must(ops->cm_resolve(p->a.part, NULL, &addr, &tcp_only, NULL, &p->a.id) == 0);
    must(pair_until(p, p->a.resolved));
    pair_qp(&p->a, p->a.id, 16);
    must(ops->cm_connect(p->a.id, "x", 1) == 0);
    int fd = accept(lfd, NULL, NULL);
    must(fd >= 0 && send(fd, answer, sizeof answer - 1, 0) > 0);
    ok(pair_until(p, p->a.failed) && p->a.error == EPROTO, "an HTTP server is EPROTO");
    ok(strstr(p->a.reason, "HTTP/1.1 400 Bad") != NULL, "and is quoted: %s", p->a.reason);
    side_end(&p->a);
    close(fd);
    struct exsi_cm_options brief = tcp_only;
    brief.connect_timeout_ms = 60;
    must(ops->cm_resolve(p->a.part, NULL, &addr, &brief, NULL, &p->a.id) == 0);
    must(pair_until(p, p->a.resolved));
    pair_qp(&p->a, p->a.id, 16);
    must(ops->cm_connect(p->a.id, "x", 1) == 0);
    ok(pair_until(p, p->a.failed) && p->a.error == ETIMEDOUT, "a server that is silent is ETIMEDOUT");
    side_end(&p->a);
    close(lfd);
    must(ops->cm_resolve(p->a.part, NULL, &addr, &tcp_only, NULL, &p->a.id) == 0);
    ok(pair_until(p, p->a.failed) && p->a.error == ECONNREFUSED, "no server is ECONNREFUSED");
    side_end(&p->a);
}

static void test_reject(struct pair *p)
{
    must(ops->cm_resolve(p->a.part, NULL, &p->b.addr, &tcp_only, NULL, &p->a.id) == 0);
    must(pair_until(p, p->a.resolved));
    pair_qp(&p->a, p->a.id, 16);
    must(ops->cm_connect(p->a.id, "x", 1) == 0);
    must(pair_until(p, p->b.requested));
    ops->cm_reject(p->b.id, "no room", 7);
    p->b.id = NULL;
    ok(pair_until(p, p->a.failed) && p->a.error == ECONNREFUSED, "a refusal is ECONNREFUSED");
    ok(p->a.private_len == 7 && memcmp(p->a.private_data, "no room", 7) == 0, "with its private data");
    side_end(&p->a);
    side_end(&p->b);
}

/* --- under cruel schedules ------------------------------------------------------------------------- */

static struct pair pair;

static void test_cruel(struct pair *p, uint32_t out_cap, uint32_t in_cap, bool crc)
{
    struct exsi_cm_options opt = tcp_only;
    opt.crc = crc;
    struct mem out = mem_new(p, 70000, 0), in = mem_new(p, 70000, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct mem msg = mem_new(p, 4096, EXSI_ACCESS_LOCAL_WRITE);
    uint32_t rkey;
    pair_connect(p, &opt, 64);
    must(ops->key_bind(p->b.qp, in.mr, in.at, in.len, &rkey) == 0);
    p->a.soft->fault.max_send = out_cap;
    p->b.soft->fault.max_recv = in_cap;
    mem_fill(&out, out_cap + in_cap);
    for (uint32_t i = 0; i < 8; i++) post_recv(&p->b, &msg, i * 512, 512, i);
    struct exsi_send_wr wr[12];
    int n = 0;
    for (uint32_t i = 0; i < 4; i++) {
        wr[n++] = wr_write(&out, i * 300, 300, in.at + i * 300, rkey, i);
        wr[n++] = wr_send(&out, i * 7, 5 + i, 10 + i);
        wr[n++] = wr_send(&out, i * 11, 400 + i, 20 + i);
    }
    wr[0] = wr_write(&out, 0, 70000, in.at, rkey, 0);
    must(post(&p->a, wr, n) == 0);
    bool same = pair_until(p, p->b.n_recv == 8 && p->a.n_send == 12) && memcmp(in.at, out.at, 70000) == 0;
    for (uint32_t i = 0; i < 4 && same; i++) {
        same &= memcmp(msg.at + 2 * i * 512, out.at + i * 7, 5 + i) == 0;
        same &= memcmp(msg.at + (2 * i + 1) * 512, out.at + i * 11, 400 + i) == 0;
        same &= p->b.wc[2 * i].byte_len == 5 + i && p->b.wc[2 * i + 1].byte_len == 400 + i;
    }
    ok(same, "%u bytes per send, %u per receive, CRC %s", out_cap, in_cap, crc ? "on" : "off");
    disconnect(p);
    mem_free(p, &out);
    mem_free(p, &in);
    mem_free(p, &msg);
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* A part that is closed while everything lives frees everything: the sanitizers look. */
static void test_close_alive(void)
{
    struct pair *p = &pair;
    pair_open(p);
    pair_listen(p, "127.0.0.1", &tcp_only);
    pair_connect(p, &tcp_only, 16);
    struct mem out = mem_new(p, 1 << 22, 0);
    struct exsi_send_wr wr = wr_write(&out, 0, 1 << 22, NULL, 1, 1);
    must(post(&p->a, &wr, 1) == 0);
    struct exsi_cm_id *other;
    must(ops->cm_resolve(p->a.part, NULL, &p->b.addr, &tcp_only, NULL, &other) == 0);
    int fd = dial_plain(&p->b.addr);
    for (int i = 0; i < 3; i++) side_run(&p->b);
    ops->part_close(p->a.part);
    ops->part_close(p->b.part);
    exsi_poller_fini(&p->a.poller);
    exsi_poller_fini(&p->b.poller);
    close(fd);
    mem_free(p, &out);
    ops->close(p->dev);
    exsi_log_fini(&p->log);
    ok(true, "closed while everything was alive");
}

int main(void)
{
    struct pair *p = &pair;
    pair_open(p);
    test_connect(p, "127.0.0.1");
    test_connect(p, "::1");
    pair_listen(p, "127.0.0.1", &tcp_only);
    test_send(p);
    struct exsi_cm_options crc = tcp_only;
    crc.crc = true;
    test_write(p, &tcp_only, "plain", BIG);
    test_write(p, &crc, "CRC on", 1 << 20);
    test_both_ways(p);
    test_violations(p);
    test_abort(p);
    test_disconnect(p);
    test_queue_limits(p);
    test_crc(p);
    test_garbage(p);
    test_not_exs(p);
    test_reject(p);
    test_cruel(p, 1, 0, false);
    test_cruel(p, 0, 1, true);
    test_cruel(p, 1, 1, true);
    test_cruel(p, 7, 5, false);
    test_cruel(p, 13, 17, true);
    pair_close(p);
    int before = count_fds();
    test_close_alive();
    ok(count_fds() == before, "no descriptor is left");
    return tap_done();
}
