// SPDX-License-Identifier: MIT OR Apache-2.0
/* The soft device against an iWARP that is not ours: the kernel's, through librdmacm and libibverbs alone.  Needs an
 * adapter of that kind (the lab has one); its address is the argument.  Both live in this process, and each waits for
 * nothing: the kernel moves the adapter's bytes. */
#include <errno.h>
#include <fcntl.h>
#include <rdma/rdma_cma.h>
#include <sys/mman.h>

#include "soft_pair.h"

enum { DEPTH = 64 };

static struct pair pair;
static const char *host;

/* --- the adapter -------------------------------------------------------------------------------------- */

struct adapter {
    struct rdma_event_channel *channel;
    struct rdma_cm_id *listener, *id;
    struct ibv_pd *pd;
    struct ibv_cq *cq;
    bool address, route, requested, up, down, failed, fatal;
    int status; /* of failed */
    uint8_t private_data[256];
    uint32_t private_len;
    struct ibv_wc wc[1024];
    int n_wc, n_recv, n_send, n_flushed, n_error;
};

static struct adapter peer;

static void adapter_event(struct adapter *s, struct rdma_cm_event *ev)
{
    switch (ev->event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED: s->address = true; break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED: s->route = true; break;
    case RDMA_CM_EVENT_CONNECT_REQUEST:
        s->requested = true;
        s->id = ev->id;
        break;
    case RDMA_CM_EVENT_ESTABLISHED: s->up = true; break;
    case RDMA_CM_EVENT_DISCONNECTED: s->down = true; break;
    case RDMA_CM_EVENT_TIMEWAIT_EXIT: break;
    default:
        s->failed = true;
        s->status = ev->status;
        break;
    }
    s->private_len = ev->param.conn.private_data_len;
    if (s->private_len) memcpy(s->private_data, ev->param.conn.private_data, s->private_len);
}

static int adapter_run(struct adapter *s)
{
    struct rdma_cm_event *ev;
    int did = 0, n;
    while (rdma_get_cm_event(s->channel, &ev) == 0) {
        adapter_event(s, ev);
        rdma_ack_cm_event(ev);
        did++;
    }
    while (s->cq && (n = ibv_poll_cq(s->cq, 16, s->wc + s->n_wc)) > 0) {
        for (int i = 0; i < n; i++) {
            const struct ibv_wc *wc = &s->wc[s->n_wc++];
            if (wc->status == IBV_WC_WR_FLUSH_ERR)
                s->n_flushed++;
            else if (wc->status != IBV_WC_SUCCESS)
                s->n_error++;
            else if (wc->opcode & IBV_WC_RECV)
                s->n_recv++;
            else
                s->n_send++;
        }
        must(s->n_wc < 1000);
        did += n;
    }
    return did;
}

static void pass(void)
{
    if (side_run(&pair.a) + adapter_run(&peer)) return;
    poll(NULL, 0, 1);
}

#define until(cond)                                                                                                    \
    __extension__({                                                                                                    \
        uint64_t limit_ = exsi_now_ns() + PAIR_BOUND_NS;                                                               \
        bool held_;                                                                                                    \
        while (!(held_ = (cond)) && exsi_now_ns() < limit_) pass();                                                    \
        held_;                                                                                                         \
    })

static void for_ms(uint32_t ms)
{
    uint64_t limit = exsi_now_ns() + ms * 1000000ull;
    while (exsi_now_ns() < limit) pass();
}

static void adapter_open(struct adapter *s)
{
    *s = (struct adapter){0};
    s->channel = rdma_create_event_channel();
    must(s->channel);
    must(fcntl(s->channel->fd, F_SETFL, O_NONBLOCK) == 0);
}

static void adapter_qp(struct adapter *s)
{
    s->pd = ibv_alloc_pd(s->id->verbs);
    s->cq = ibv_create_cq(s->id->verbs, 512, NULL, NULL, 0);
    must(s->pd && s->cq);
    struct ibv_qp_init_attr attr = {
        .send_cq = s->cq,
        .recv_cq = s->cq,
        .qp_type = IBV_QPT_RC,
        .sq_sig_all = 1,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 2, .max_recv_sge = 1}};
    must(rdma_create_qp(s->id, s->pd, &attr) == 0);
}

static void adapter_close(struct adapter *s)
{
    if (s->id && s->id->qp) rdma_destroy_qp(s->id);
    if (s->id) rdma_destroy_id(s->id);
    if (s->listener) rdma_destroy_id(s->listener);
    if (s->cq) ibv_destroy_cq(s->cq);
    if (s->pd) ibv_dealloc_pd(s->pd);
    rdma_destroy_event_channel(s->channel);
}

static struct sockaddr_in address_of(uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    must(inet_pton(AF_INET, host, &a.sin_addr) == 1);
    return a;
}

struct room {
    uint8_t *at;
    size_t len;
    struct ibv_mr *mr;
};

static struct room room_new(struct adapter *s, size_t len)
{
    struct room r = {.len = len};
    r.at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(r.at != MAP_FAILED);
    r.mr = ibv_reg_mr(s->pd, r.at, len, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
    must(r.mr);
    return r;
}

static void room_free(struct room *r)
{
    ibv_dereg_mr(r->mr);
    munmap(r->at, r->len);
}

static void room_fill(struct room *r, uint32_t seed)
{
    struct mem m = {.at = r->at, .len = r->len};
    mem_fill(&m, seed);
}

static int adapter_post(struct adapter *s, enum ibv_wr_opcode op, const struct room *r, uint32_t off, uint32_t len,
                        const void *to, uint32_t rkey)
{
    struct ibv_sge sge = {(uintptr_t)r->at + off, len, r->mr->lkey};
    struct ibv_send_wr wr = {.opcode = op, .sg_list = &sge, .num_sge = len ? 1 : 0, .send_flags = IBV_SEND_SIGNALED},
                       *bad;
    wr.wr.rdma.remote_addr = (uintptr_t)to;
    wr.wr.rdma.rkey = rkey;
    return ibv_post_send(s->id->qp, &wr, &bad);
}

static void adapter_recv(struct adapter *s, const struct room *r, uint32_t off, uint32_t len)
{
    struct ibv_sge sge = {(uintptr_t)r->at + off, len, r->mr->lkey};
    struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
    must(ibv_post_recv(s->id->qp, &wr, &bad) == 0);
}

/* --- connections ---------------------------------------------------------------------------------------- */

static struct exsi_cm_options options(bool crc)
{
    return (struct exsi_cm_options){
        .path = EXSI_PATH_AUTO, .connect_timeout_ms = 5000, .close_timeout_ms = 5000, .crc = crc};
}

static void soft_dials(uint16_t port, bool crc)
{
    struct sockaddr_in a = address_of(0);
    struct exsi_cm_options opt = options(crc);
    union exsi_addr to = {.in = address_of(port)};
    adapter_open(&peer);
    must(rdma_create_id(peer.channel, &peer.listener, NULL, RDMA_PS_TCP) == 0);
    a.sin_port = htons(port);
    must(rdma_bind_addr(peer.listener, (struct sockaddr *)&a) == 0 && rdma_listen(peer.listener, 4) == 0);
    must(ops->cm_resolve(pair.a.part, NULL, &to, &opt, NULL, &pair.a.id) == 0);
    must(until(pair.a.resolved));
    pair_qp(&pair.a, pair.a.id, DEPTH);
    must(ops->cm_connect(pair.a.id, "from soft", 9) == 0);
    must(until(peer.requested || pair.a.failed));
    if (pair.a.failed) printf("# %s\n", pair.a.reason);
    must(!pair.a.failed);
}

static void adapter_dials(uint16_t port, bool crc)
{
    struct exsi_cm_options opt = options(crc);
    union exsi_addr at = {.in = address_of(port)}, bound;
    struct sockaddr_in to = address_of(port);
    struct rdma_conn_param param = {
        .private_data = "from siw", .private_data_len = 8, .initiator_depth = 1, .responder_resources = 1};
    adapter_open(&peer);
    opt.reuse_address = true;
    must(ops->cm_listen(pair.a.part, &at, 4, &opt, NULL, &pair.a.listener, &bound) == 0);
    must(rdma_create_id(peer.channel, &peer.id, NULL, RDMA_PS_TCP) == 0);
    must(rdma_resolve_addr(peer.id, NULL, (struct sockaddr *)&to, 2000) == 0 && until(peer.address));
    must(rdma_resolve_route(peer.id, 2000) == 0 && until(peer.route));
    adapter_qp(&peer);
    must(rdma_connect(peer.id, &param) == 0);
    must(until(pair.a.requested || peer.failed));
    must(pair.a.requested);
}

static void connected(bool soft_active, uint16_t port, bool crc)
{
    struct rdma_conn_param param = {
        .private_data = "yes", .private_data_len = 3, .initiator_depth = 1, .responder_resources = 1};
    if (soft_active) {
        soft_dials(port, crc);
        ok(peer.private_len >= 9 && memcmp(peer.private_data, "from soft", 9) == 0, "the request's private data");
        adapter_qp(&peer);
        must(rdma_accept(peer.id, &param) == 0);
        ok(until(pair.a.up) && pair.a.private_len == 3 && memcmp(pair.a.private_data, "yes", 3) == 0,
           "soft is connected, with the reply's private data");
    } else {
        adapter_dials(port, crc);
        ok(pair.a.private_len == 8 && memcmp(pair.a.private_data, "from siw", 8) == 0, "the request's private data");
        pair_qp(&pair.a, pair.a.id, DEPTH);
        must(ops->cm_accept(pair.a.id, "yes", 3) == 0);
        ok(until(peer.up || peer.failed) && peer.up && peer.private_len >= 3 &&
               memcmp(peer.private_data, "yes", 3) == 0,
           "siw is connected, with the reply's private data");
    }
}

static void over(void)
{
    side_end(&pair.a);
    if (pair.a.listener) ops->cm_destroy(pair.a.listener);
    pair.a.listener = NULL;
    adapter_close(&peer);
}

/* --- what goes over them ------------------------------------------------------------------------------------ */

static const uint32_t sizes[] = {0, 1, 3, 4, 5, 64, 1000, 1460, 8192, 65521, 65536, 300001, 4u << 20, 64u << 20};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void move_to_siw(uint32_t len)
{
    struct mem out = mem_new(&pair, len + 100, 0);
    struct room in = room_new(&peer, len + 100);
    int sent = pair.a.n_send, got = peer.n_recv;
    mem_fill(&out, len);
    adapter_recv(&peer, &in, len, 100);
    struct exsi_send_wr wr[2] = {wr_write(&out, 0, len, in.at, in.mr->rkey, 1), wr_send(&out, len, 20, 2)};
    must(post(&pair.a, wr, 2) == 0);
    /* What was sent may be overwritten as soon as the completion is there. */
    bool done = until(pair.a.n_send == sent + 2);
    uint32_t seed = len;
    memset(out.at, 0xee, out.len);
    done = done && until(peer.n_recv == got + 1);
    mem_fill(&out, seed);
    ok(done && memcmp(out.at, in.at, len + 20) == 0, "WRITE of %u bytes and SEND to siw", len);
    mem_free(&pair, &out);
    room_free(&in);
}

static void move_to_soft(uint32_t len)
{
    struct mem in = mem_new(&pair, len + 100, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct room out = room_new(&peer, len + 100);
    int sent = peer.n_send, got = pair.a.n_recv;
    uint32_t rkey;
    room_fill(&out, len + 7);
    must(ops->key_bind(pair.a.qp, in.mr, in.at, len + 1, &rkey) == 0);
    post_recv(&pair.a, &in, len, 100, 1);
    must(adapter_post(&peer, IBV_WR_RDMA_WRITE, &out, 0, len, in.at, rkey) == 0);
    must(adapter_post(&peer, IBV_WR_SEND, &out, len, 20, NULL, 0) == 0);
    bool done = until(pair.a.n_recv == got + 1) && until(peer.n_send == sent + 2);
    ok(done && memcmp(out.at, in.at, len + 20) == 0, "WRITE of %u bytes and SEND to soft", len);
    must(ops->key_invalidate(pair.a.qp, rkey, 0) == 0);
    mem_free(&pair, &in);
    room_free(&out);
}

static void sends(void)
{
    static const uint32_t lens[] = {0, 1, 2, 3, 17, 1400, 8952, 40000};
    struct mem a = mem_new(&pair, 40000, EXSI_ACCESS_LOCAL_WRITE), c = mem_new(&pair, 40000, EXSI_ACCESS_LOCAL_WRITE);
    struct room b = room_new(&peer, 40000);
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        int there = peer.n_recv, back = pair.a.n_recv;
        mem_fill(&a, lens[i] + 1);
        adapter_recv(&peer, &b, 0, 40000);
        post_recv(&pair.a, &c, 0, 40000, 9);
        struct exsi_send_wr wr = wr_send(&a, 0, lens[i], 8);
        must(post(&pair.a, &wr, 1) == 0);
        bool good = until(peer.n_recv == there + 1) && memcmp(a.at, b.at, lens[i]) == 0;
        good = good && adapter_post(&peer, IBV_WR_SEND, &b, 0, lens[i], NULL, 0) == 0;
        good = good && until(pair.a.n_recv == back + 1) && memcmp(a.at, c.at, lens[i]) == 0;
        ok(good && pair.a.wc[pair.a.n_wc - 1].error == 0, "SENDs of %u bytes there and back", lens[i]);
    }
    mem_free(&pair, &a);
    mem_free(&pair, &c);
    room_free(&b);
}

/* Nobody may read soft's memory; to read nothing is how siw asks whether soft is there. */
static void test_empty_read(void)
{
    struct room in = room_new(&peer, 4096);
    bool good = true;
    for (int i = 0; i < 3; i++) {
        int before = peer.n_send;
        good = good && adapter_post(&peer, IBV_WR_RDMA_READ, &in, 0, 0, NULL, 0) == 0;
        good = good && until(peer.n_send > before || pair.a.down);
    }
    ok(good && !pair.a.down && peer.n_error == 0, "siw reads nothing, three times");
    room_free(&in);
}

static void test_transfers(bool soft_active, bool crc, uint16_t port)
{
    printf("# %s dials, CRC %s\n", soft_active ? "soft" : "siw", crc ? "on" : "off");
    connected(soft_active, port, crc);
    /* RFC 5044 §7.1.2: a responder waits for the initiator's first FPDU; so the initiator begins. */
    for (int i = 0; i < N_SIZES; i++) {
        if (soft_active) {
            move_to_siw(sizes[i]);
            move_to_soft(sizes[i]);
        } else {
            move_to_soft(sizes[i]);
            move_to_siw(sizes[i]);
        }
        if (pair.a.down || peer.down) {
            printf("# over: soft %d %s, siw %d\n", pair.a.error, pair.a.reason, peer.down);
            break;
        }
    }
    sends();
    test_empty_read();
    if (soft_active) {
        ops->cm_disconnect(pair.a.id);
        ok(until(peer.down), "siw hears that soft ends");
        rdma_disconnect(peer.id);
        ok(until(pair.a.down) && pair.a.error == 0, "and soft ends in order %s", pair.a.reason);
    } else {
        rdma_disconnect(peer.id);
        ok(until(pair.a.down) && pair.a.error == 0, "soft ends in order when siw ends %s", pair.a.reason);
        ok(until(peer.down), "and siw hears of it");
    }
    for_ms(20);
    over();
}

/* --- what is forbidden, and ends without order ---------------------------------------------------------------- */

enum offence { BAD_KEY, BEYOND, NO_RECEIVE, TOO_LONG, READ, GONE, N_OFFENCES };

static const struct {
    const char *name;
    int error;              /* of soft, when siw offends */
    const char *own, *told; /* soft's reason then, and when soft offends */
} offences[N_OFFENCES] = {
    [BAD_KEY] = {"a key of nobody", EPROTO, "invalid key", "invalid key"},
    [BEYOND] = {"a WRITE across the end of its range", EPROTO, "outside of the range", "outside of the range"},
    [NO_RECEIVE] = {"a SEND for which nothing is posted", EPROTO, "no receive posted", "no receive posted"},
    [TOO_LONG] = {"a SEND longer than the receive", EPROTO, "longer than the receive", "DDP"},
    [READ] = {"a READ", EPROTO, "operation not expected", NULL},
    [GONE] = {"a queue pair that is destroyed", 0, "", NULL}, /* iWARP knows no word for it: TCP ends, in order */
};

static void siw_offends(enum offence what, uint16_t port)
{
    connected(false, port, true);
    struct mem in = mem_new(&pair, 8192, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct room out = room_new(&peer, 8192);
    uint32_t rkey;
    must(ops->key_bind(pair.a.qp, in.mr, in.at, 4096, &rkey) == 0);
    adapter_recv(&peer, &out, 0, 100);
    if (what != NO_RECEIVE) post_recv(&pair.a, &in, 4096, 100, 1);
    int rc = 0;
    switch (what) {
    case BAD_KEY: rc = adapter_post(&peer, IBV_WR_RDMA_WRITE, &out, 0, 100, in.at, rkey ^ 0x100); break;
    case BEYOND: rc = adapter_post(&peer, IBV_WR_RDMA_WRITE, &out, 0, 200, in.at + 4000, rkey); break;
    case NO_RECEIVE: rc = adapter_post(&peer, IBV_WR_SEND, &out, 0, 100, NULL, 0); break;
    case TOO_LONG: rc = adapter_post(&peer, IBV_WR_SEND, &out, 0, 101, NULL, 0); break;
    case READ: rc = adapter_post(&peer, IBV_WR_RDMA_READ, &out, 0, 100, in.at, rkey); break;
    default: rdma_destroy_qp(peer.id); break;
    }
    must(rc == 0);
    ok(until(pair.a.down) && pair.a.error == offences[what].error && strstr(pair.a.reason, offences[what].own),
       "siw: %s: %s", offences[what].name, pair.a.reason);
    if (what != GONE) ok(until(peer.down && peer.n_flushed + peer.n_error > 0), "and siw is told");
    bool clean = true;
    for (int i = 0; i < 8192; i++) clean = clean && in.at[i] == 0;
    ok(clean && pair.a.n_recv == 0, "and nothing has landed");
    if (what == GONE) peer.id->qp = NULL;
    room_free(&out);
    side_end(&pair.a);
    mem_free(&pair, &in);
    over();
}

static void soft_offends(enum offence what, uint16_t port)
{
    connected(true, port, true);
    struct mem out = mem_new(&pair, 8192, EXSI_ACCESS_LOCAL_WRITE);
    struct room in = room_new(&peer, 4096);
    post_recv(&pair.a, &out, 0, 100, 1);
    if (what != NO_RECEIVE) adapter_recv(&peer, &in, 0, 100);
    struct exsi_send_wr wr = wr_write(&out, 0, 200, in.at, in.mr->rkey, 1);
    switch (what) {
    case BAD_KEY: wr.rkey ^= 0x100; break;
    case BEYOND: wr.raddr += 4000; break;
    case NO_RECEIVE: wr = wr_send(&out, 0, 100, 1); break;
    default: wr = wr_send(&out, 0, 101, 1); break;
    }
    must(post(&pair.a, &wr, 1) == 0);
    ok(until(pair.a.down) && pair.a.error == EPROTO && strstr(pair.a.reason, "Terminate") &&
           strstr(pair.a.reason, offences[what].told),
       "soft: %s: %s", offences[what].name, pair.a.reason);
    ok(until(peer.down) && pair.a.n_flushed == 1, "and the receive comes back");
    side_end(&pair.a);
    mem_free(&pair, &out);
    room_free(&in);
    over();
}

int main(int argc, char **argv)
{
    host = argc > 1 ? argv[1] : getenv("EXS_IWARP");
    if (!host) {
        ok(true, "soft against the kernel's iWARP # SKIP no verbs device");
        return tap_done();
    }
    char reason[EXSI_REASON_MAX];
    exsi_log_init(&pair.log);
    must(ops->open(&pair.log, &pair.dev, reason) == 0);
    side_open(&pair, &pair.a);
    test_transfers(true, false, 7101);
    test_transfers(true, true, 7102);
    test_transfers(false, false, 7103);
    test_transfers(false, true, 7104);
    for (int i = 0; i < N_OFFENCES; i++) siw_offends((enum offence)i, (uint16_t)(7110 + i));
    for (int i = 0; i <= TOO_LONG; i++) soft_offends((enum offence)i, (uint16_t)(7120 + i));
    side_close(&pair.a);
    ops->close(pair.dev);
    return tap_done();
}
