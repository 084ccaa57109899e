// SPDX-License-Identifier: MIT OR Apache-2.0
/* The STREAM engine, one rule at a time (ES-API 2.3), over the simulated device.  What no schedule may
 * break is test_engine_random's; here stands what a single, known schedule must do. */
#include <string.h>
#include <unistd.h>

#include "sim/pair.h"
#include "tap.h"

static struct pair p;
static struct exsi_engine_config cfg[2];
static struct sim_options opt;
static uint64_t op;

#define DIRECT   EXSI_EV_DIRECT
#define INDIRECT EXSI_EV_INDIRECT

static void defaults(void)
{
    pair_config(&cfg[0]);
    pair_config(&cfg[1]);
    opt = (struct sim_options){.max_msg = 1 << 30};
}

static void start(void)
{
    pair_connect(&p, &exsi_engine_stream, cfg, &opt, 7);
    pair_run(&p);
    for (int i = 0; i < 2; i++)
        for (uint32_t k = 0; k < PAIR_MEMORY; k++) p.side[i].memory[k] = (uint8_t)(i ? 0 : k * 7 + k / 256);
}

static void drop(void)
{
    struct exsi_event ev;
    for (int i = 0; i < 2; i++)
        while (pair_event(&p, i, &ev)) continue;
    pair_drop(&p);
    defaults();
}

static void stop(void)
{
    ok(sim_violation(p.sim) == NULL, "the device saw no violation");
    exsi_ep_fail(p.side[0].ep, ECONNABORTED, "the test is over");
    pair_run(&p);
    drop();
}

/* Side 0 sends from where it stands in its memory, side 1 receives at the same place. */
static int send_at(uint32_t at, uint32_t len, uint32_t flags, uint64_t cookie)
{
    return pair_post(&p, 0, EXSI_OP_SEND, p.side[0].memory + at, len, 0, flags, cookie, &op);
}
static int recv_at(uint32_t at, uint32_t len, uint32_t flags, uint64_t cookie)
{
    return pair_post(&p, 1, EXSI_OP_RECV, p.side[1].memory + at, len, 0, flags, cookie, &op);
}
static bool same(uint32_t at, uint32_t len)
{
    return memcmp(p.side[0].memory + at, p.side[1].memory + at, len) == 0;
}
#define COUNT(i, name) atomic_load(&p.side[i].stats.name)

/* ES-API S3, R1, R3, I7, I8 */
static void test_direct(void)
{
    start();
    must(recv_at(0, 1000, 0, 1) == 0 && recv_at(1000, 1000, 0, 2) == 0);
    pair_run(&p);
    ok(COUNT(1, adverts_sent) == 2 && sim_keys(p.side[1].ep->qp) == 3,
       "each receive is advertised with a key of its own");
    must(send_at(0, 1000, 0, 11) == 0 && send_at(1000, 300, 0, 12) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 1000) == DIRECT && pair_expect(&p, 1, 2, 0, 300) == DIRECT, "received, direct");
    ok(pair_expect(&p, 0, 11, 0, 1000) == 0 && pair_expect(&p, 0, 12, 0, 300) == 0, "sent, in order");
    ok(same(0, 1300) && p.side[1].memory[1300] == 0, "the bytes, and no more");
    ok(COUNT(1, bytes_copied) == 0 && COUNT(1, bytes_direct) == 1300 && COUNT(1, bytes_indirect) == 0, "nobody copied");
    ok(sim_keys(p.side[1].ep->qp) == 1, "the keys ended with their receives; the ring's lives");
    stop();
}

/* ES-API S4, R2 */
static void test_indirect(void)
{
    start();
    must(send_at(0, 5000, 0, 11) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 0, 11, 0, 5000) == 0, "a send ends while the receiver has not asked");
    ok(pair_ready(&p, 1) & EXSI_CHANGE_READABLE, "readable");
    must(recv_at(0, 2000, 0, 1) == 0 && recv_at(2000, 2000, 0, 2) == 0);
    ok(pair_expect(&p, 1, 1, 0, 2000) == INDIRECT && pair_expect(&p, 1, 2, 0, 2000) == INDIRECT,
       "at once, from the ring");
    uint8_t out[2000];
    const struct exsi_engine_ops *e = p.side[1].ep->engine;
    ok(e->take(&p.side[1].at, out, sizeof out, false) == 1000 && memcmp(out, p.side[0].memory + 4000, 1000) == 0,
       "take");
    ok(e->take(&p.side[1].at, out, sizeof out, false) == -EAGAIN, "take finds no more");
    ok(!(pair_ready(&p, 1) & EXSI_CHANGE_READABLE), "not readable");
    ok(same(0, 4000) && COUNT(1, bytes_copied) == 5000 && COUNT(1, bytes_indirect) == 5000, "copied once, and counted");
    must(recv_at(0, 10, 0, 3) == 0);
    ok(e->take(&p.side[1].at, out, sizeof out, false) == -EAGAIN, "take does not overtake a posted receive");
    stop();
}

/* The advertisement and the indirect data cross: it is void at both ends, and nothing says so.  ES-API S1, 2.3.4, I4 */
static void test_void(void)
{
    start();
    must(send_at(0, 100, 0, 11) == 0);
    must(recv_at(0, 200, 0, 1) == 0 && recv_at(200, 200, 0, 2) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 100) == INDIRECT, "the first receive takes the ring's bytes");
    ok(COUNT(0, adverts_void) == 2, "both crossing advertisements were dropped");
    ok(COUNT(1, adverts_sent) == 3, "the second receive was advertised anew");
    must(send_at(100, 200, 0, 12) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 2, 0, 200) == DIRECT && memcmp(p.side[1].memory + 200, p.side[0].memory + 100, 200) == 0,
       "and filled directly");
    stop();
}

/* ES-API 2.3.7 */
static void test_waitall(void)
{
    start();
    must(recv_at(0, 1000, EXSI_OPF_WAITALL, 1) == 0 && recv_at(1000, 100, 0, 2) == 0);
    pair_run(&p);
    must(send_at(0, 300, 0, 11) == 0 && send_at(300, 300, 0, 12) == 0);
    pair_run(&p);
    ok(pair_silent(&p, 1), "waitall waits");
    must(send_at(600, 450, 0, 13) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 1000) == DIRECT, "three sends fill one receive");
    ok(pair_expect(&p, 1, 2, 0, 50) == DIRECT && same(0, 1050), "the rest goes into the next");
    stop();
}

static void test_waitall_switches(void)
{
    cfg[1].ring_bytes = 64;
    start();
    must(send_at(0, 30, 0, 11) == 0);
    must(recv_at(0, 100, EXSI_OPF_WAITALL, 1) == 0);
    pair_run(&p);
    must(send_at(30, 50, 0, 12) == 0);
    pair_run(&p);
    ok(pair_silent(&p, 1), "indirect and direct bytes so far");
    must(send_at(80, 20, 0, 13) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 100) == (DIRECT | INDIRECT) && same(0, 100), "both ways into one receive");
    stop();
}

static void test_empty(void)
{
    start();
    must(send_at(0, 0, 0, 11) == 0);
    ok(pair_expect(&p, 0, 11, 0, 0) == 0, "an empty send ends at once");
    must(recv_at(0, 0, 0, 1) == 0);
    ok(pair_expect(&p, 1, 1, 0, 0) == 0, "so does an empty receive");
    must(send_at(0, 10, 0, 12) == 0 && send_at(10, 0, 0, 13) == 0);
    ok(pair_silent(&p, 0), "behind another send it waits");
    must(recv_at(0, 5, 0, 2) == 0 && recv_at(5, 0, 0, 3) == 0 && recv_at(5, 5, 0, 4) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 0, 12, 0, 10) == 0 && pair_expect(&p, 0, 13, 0, 0) == 0, "sends end in order");
    ok(pair_expect(&p, 1, 2, 0, 5) >= 0 && pair_expect(&p, 1, 3, 0, 0) == 0 && pair_expect(&p, 1, 4, 0, 5) >= 0,
       "receives end in order");
    stop();
}

/* ES-API S5, SETTLE, I6 */
static void test_small_ring(void)
{
    cfg[1].ring_bytes = 7;
    start();
    must(send_at(0, 100, 0, 11) == 0);
    pair_run(&p);
    ok(pair_silent(&p, 0), "a full ring holds the send back");
    ok(!(pair_ready(&p, 0) & EXSI_CHANGE_WRITABLE), "not writable");
    for (uint32_t i = 0; i < 10; i++) {
        must(recv_at(10 * i, 10, EXSI_OPF_WAITALL, i) == 0);
        pair_run(&p);
    }
    bool all = true;
    for (uint32_t i = 0; i < 10; i++) all &= pair_expect(&p, 1, i, 0, 10) >= 0;
    ok(all && same(0, 100), "through a ring of 7 bytes, many times round");
    ok(pair_expect(&p, 0, 11, 0, 100) == 0, "sent");
    ok(pair_ready(&p, 0) & EXSI_CHANGE_WRITABLE, "writable again");
    stop();
}

static void test_take_wakes_sender(void)
{
    uint8_t out[3];
    cfg[1].ring_bytes = 8;
    start();
    must(send_at(0, 40, 0, 11) == 0);
    pair_run(&p);
    uint32_t got = 0;
    for (int i = 0; i < 60 && got < 40; i++) {
        int64_t n = p.side[1].ep->engine->take(&p.side[1].at, out, sizeof out, false);
        if (n > 0 && memcmp(out, p.side[0].memory + got, (size_t)n) == 0) got += (uint32_t)n;
        pair_run(&p);
    }
    ok(got == 40, "reading by take alone, the sender is told of space");
    ok(pair_expect(&p, 0, 11, 0, 40) == 0, "and ends");
    stop();
}

static void test_threshold(void)
{
    cfg[1].direct_threshold = 100;
    start();
    must(recv_at(0, 99, 0, 1) == 0 && recv_at(100, 1000, 0, 2) == 0);
    pair_run(&p);
    ok(COUNT(1, adverts_sent) == 0, "a short receive is not advertised, and holds back the one behind it");
    must(send_at(0, 99, 0, 11) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 99) == INDIRECT, "it is served from the ring");
    ok(COUNT(1, adverts_sent) == 1, "then the long one is advertised");
    must(send_at(100, 1000, 0, 12) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 2, 0, 1000) == DIRECT && same(100, 1000), "and filled directly");
    stop();
}

/* ES-API 2.3.6, R5 */
static void test_cancel_recv(void)
{
    start();
    cfg[1].direct_threshold = 0;
    must(recv_at(0, 100, 0, 1) == 0);
    uint64_t first = op;
    pair_run(&p);
    pair_cancel(&p, 1, first);
    ok(pair_silent(&p, 1) && sim_keys(p.side[1].ep->qp) == 2, "an advertised receive is not given back before REVOKED");
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, ECANCELED, 0) == 0 && sim_keys(p.side[1].ep->qp) == 1, "then it is");

    must(recv_at(0, 100, 0, 2) == 0);
    pair_run(&p);
    must(send_at(0, 100, 0, 11) == 0);
    pair_cancel(&p, 1, op);
    pair_run(&p);
    struct exsi_event ev;
    must(pair_event(&p, 0, &ev) && pair_event(&p, 1, &ev));
    ok(ev.cookie == 2 && ev.error == 0 && ev.value == 100 && same(0, 100), "too late: the data was on its way");

    must(recv_at(0, 100, EXSI_OPF_WAITALL, 3) == 0);
    first = op;
    must(recv_at(100, 100, 0, 4) == 0);
    pair_run(&p);
    must(send_at(0, 40, 0, 12) == 0);
    pair_run(&p);
    pair_cancel(&p, 1, first);
    pair_run(&p);
    ok(pair_expect(&p, 1, 3, 0, 40) == DIRECT, "a partly filled waitall keeps its bytes: errno 0");
    must(send_at(40, 10, 0, 13) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 4, 0, 10) == DIRECT && memcmp(p.side[1].memory + 100, p.side[0].memory + 40, 10) == 0,
       "the next receive goes on");
    stop();
}

static void test_cancel_unadvertised(void)
{
    cfg[1].direct_threshold = 1000;
    start();
    must(recv_at(0, 100, 0, 1) == 0);
    pair_cancel(&p, 1, op);
    ok(pair_expect(&p, 1, 1, ECANCELED, 0) == 0, "a receive that was never advertised ends at once");
    stop();
}

/* ES-API 1.9, 1.12, S6 */
static void test_cancel_send(void)
{
    cfg[1].ring_bytes = 50;
    start();
    must(send_at(0, 100, 0, 11) == 0);
    uint64_t half = op;
    must(send_at(100, 10, 0, 12) == 0);
    uint64_t queued = op;
    must(send_at(110, 10, 0, 13) == 0);
    pair_run(&p);
    pair_cancel(&p, 0, queued);
    ok(pair_expect(&p, 0, 12, ECANCELED, 0) == 0, "a send that is not out ends at once");
    pair_cancel(&p, 0, half);
    struct exsi_event ev;
    must(pair_event(&p, 0, &ev));
    ok(ev.cookie == 11 && ev.error == ECANCELED && ev.value == 50 && ev.extra == 50 && ev.flags == EXSI_EV_SEND_SHUT,
       "half out: ECANCELED, what went out, direction shut");
    ok(pair_expect(&p, 0, 13, EPIPE, 0) == 0, "what stood behind it fails");
    ok(send_at(0, 1, 0, 14) == -EPIPE, "further sends are refused");
    ok(pair_ready(&p, 0) & EXSI_CHANGE_WRITABLE, "and nobody need wait to hear it");
    must(recv_at(0, 100, 0, 1) == 0);
    ok(pair_expect(&p, 1, 1, 0, 50) == INDIRECT && same(0, 50), "the bytes that went out arrive");
    p.side[0].ep->engine->shutdown_send(&p.side[0].at);
    exsi_group_flush(p.group);
    pair_run(&p);
    must(recv_at(0, 100, 0, 2) == 0);
    ok(pair_expect(&p, 1, 2, 0, 0) == EXSI_EV_EOF, "and FIN can follow");
    stop();
}

/* ES-API S2, R4, I14 */
static void test_fin(void)
{
    start();
    must(recv_at(0, 100, EXSI_OPF_WAITALL, 1) == 0 && recv_at(100, 100, 0, 2) == 0);
    must(send_at(0, 60, EXSI_OPF_SHUT_WR, 11) == 0);
    ok(send_at(0, 1, 0, 12) == -EPIPE, "no send behind a FIN");
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 60) >= 0, "waitall ends short at the end of the stream");
    ok(pair_expect(&p, 1, 2, 0, 0) == EXSI_EV_EOF, "the next is the end of the stream");
    must(recv_at(0, 100, 0, 3) == 0);
    ok(pair_expect(&p, 1, 3, 0, 0) == EXSI_EV_EOF, "and stays so");
    ok(p.side[1].changed & EXSI_CHANGE_PEER_FIN, "PEER_FIN");
    ok((p.side[0].changed & (EXSI_CHANGE_FIN_SENT | EXSI_CHANGE_FIN_ACKED)) ==
           (EXSI_CHANGE_FIN_SENT | EXSI_CHANGE_FIN_ACKED),
       "FIN_SENT and FIN_ACKED");
    must(pair_post(&p, 1, EXSI_OP_SEND, p.side[1].memory, 50, 0, 0, 21, &op) == 0);
    must(pair_post(&p, 0, EXSI_OP_RECV, p.side[0].memory + 1000, 50, 0, 0, 22, &op) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 21, 0, 50) == 0, "the other direction goes on");
    stop();
}

static void test_clean_end(void)
{
    start();
    must(send_at(0, 60, EXSI_OPF_SHUT_WR, 11) == 0);
    p.side[1].ep->engine->shutdown_send(&p.side[1].at);
    exsi_group_flush(p.group);
    pair_run(&p);
    pair_disconnect(&p);
    pair_run(&p);
    ok(p.side[0].at.error == 0 && p.side[1].at.error == 0 && p.side[1].dead_reports == 1,
       "an end in order is no error");
    must(recv_at(0, 40, 0, 1) == 0 && recv_at(40, 40, 0, 2) == 0 && recv_at(80, 40, 0, 3) == 0);
    ok(pair_expect(&p, 1, 1, 0, 40) == INDIRECT && pair_expect(&p, 1, 2, 0, 20) == INDIRECT && same(0, 60),
       "what lay in the ring can still be received");
    ok(pair_expect(&p, 1, 3, 0, 0) == EXSI_EV_EOF, "then the end");
    ok(pair_post(&p, 1, EXSI_OP_SEND, p.side[1].memory, 5, 0, 0, 4, &op) == -EPIPE, "a send is EPIPE");
    drop();
}

static void test_death(void)
{
    start();
    must(send_at(0, 60, 0, 11) == 0);
    pair_run(&p);
    must(send_at(60, 100000, 0, 12) == 0);
    pair_run(&p);
    must(pair_post(&p, 0, EXSI_OP_RECV, p.side[0].memory, 50, 0, 0, 13, &op) == 0);
    exsi_ep_fail(p.side[1].ep, ECONNABORTED, "killed by the test");
    pair_run(&p);
    ok(pair_expect(&p, 0, 11, 0, 60) == 0, "what was over stays so");
    struct exsi_event ev;
    must(pair_event(&p, 0, &ev));
    ok(ev.cookie == 12 && ev.error == ECONNRESET && ev.value == ev.extra && ev.value == 65536 - 60,
       "the peer's death ends a send, and says how much was handed over");
    ok(pair_expect(&p, 0, 13, ECONNRESET, 0) == 0, "and a receive");
    ok(p.side[0].at.error == ECONNRESET && p.side[1].at.error == ECONNABORTED, "each side knows its own reason");
    must(recv_at(0, 65536, EXSI_OPF_WAITALL, 1) == 0);
    ok(pair_expect(&p, 1, 1, 0, 65536) == INDIRECT && same(0, 65536), "what had arrived is not lost");
    must(recv_at(0, 10, 0, 2) == 0);
    ok(pair_expect(&p, 1, 2, ECONNABORTED, 0) == 0, "then the error");
    drop();
}

static void test_shut_recv(void)
{
    start();
    must(recv_at(0, 100, 0, 1) == 0);
    pair_run(&p);
    p.side[1].ep->engine->shutdown_recv(&p.side[1].at);
    exsi_group_flush(p.group);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 0) == EXSI_EV_EOF, "a pending receive ends with 0");
    must(send_at(0, 200000, 0, 11) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 0, 11, 0, 200000) == 0, "what comes later is swallowed, and acknowledged");
    must(recv_at(0, 100, 0, 2) == 0);
    ok(pair_expect(&p, 1, 2, 0, 0) == EXSI_EV_EOF, "later receives end at once");
    stop();
}

/* ES-API 2.2 */
static void test_late_ring(void)
{
    opt.late_bind = true;
    start();
    must(send_at(0, 500, 0, 11) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 0, 11, 0, 500) == 0, "RING comes first where keys need a connected queue pair");
    must(pair_post(&p, 1, EXSI_OP_SEND, p.side[1].memory, 50, 0, 0, 21, &op) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 21, 0, 50) == 0, "from both sides");
    stop();
}

/* ES-API 2.3.9 */
static void test_region_keys(void)
{
    opt.region_keys = true;
    opt.immediate = true;
    start();
    must(recv_at(0, 100, 0, 1) == 0);
    pair_run(&p);
    must(send_at(0, 100, 0, 11) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 100) == DIRECT && same(0, 100), "a region's own key, immediate data");
    stop();
    opt.region_keys = true;
    cfg[1].strict_keys = true;
    start();
    must(recv_at(0, 100, 0, 1) == 0);
    pair_run(&p);
    must(send_at(0, 100, 0, 11) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 100) == INDIRECT && COUNT(1, adverts_sent) == 0, "strict_keys: only through the ring");
    stop();
}

/* The event comes when the key has ended, not before.  ES-API 2.3.9, I5 */
static void test_async_key(void)
{
    opt.async_percent = 100;
    start();
    must(recv_at(0, 100, 0, 1) == 0 && recv_at(100, 100, 0, 2) == 0);
    pair_run(&p);
    must(send_at(0, 100, 0, 11) == 0);
    while (!p.side[1].stats.bytes_direct) {
        must(sim_in_flight(p.side[0].ep->qp) || pair_silent(&p, 1));
        pair_step(&p);
        if (!pair_silent(&p, 1)) break;
    }
    ok(pair_silent(&p, 1), "the data is there, the key is not ended: no event yet");
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 100) == DIRECT && sim_keys(p.side[1].ep->qp) == 2, "the key ended, the event came");
    stop();
}

static void test_pieces(void)
{
    opt.max_msg = 64;
    cfg[0].max_transfer = 50;
    start();
    must(pair_post(&p, 1, EXSI_OP_RECV, p.side[1].memory, 1000, 333, EXSI_OPF_WAITALL, 1, &op) == 0);
    must(recv_at(1000, 500, EXSI_OPF_WAITALL, 2) == 0);
    pair_run(&p);
    ok(COUNT(1, adverts_sent) == 1, "a receive in two pieces is advertised piece by piece, the next waits");
    must(pair_post(&p, 0, EXSI_OP_SEND, p.side[0].memory, 1500, 700, 0, 11, &op) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 1000) >= 0 && pair_expect(&p, 1, 2, 0, 500) >= 0 && same(0, 1500), "all arrives");
    ok(pair_expect(&p, 0, 11, 0, 1500) == 0, "in transfers of at most 50 bytes");
    stop();
}

/* ES-API 2.3.5, I13 */
static void test_credits(void)
{
    cfg[0].recv_slots = cfg[1].recv_slots = 8;
    cfg[1].max_adverts = 1;
    start();
    bool sent = true;
    for (uint32_t i = 0; i < 20; i++) sent &= send_at(i * 10, 10, 0, i) == 0;
    ok(sent && COUNT(0, credit_stalls) > 0, "eight credits, of which two are kept: sends wait");
    pair_run(&p);
    bool all = true;
    for (uint32_t i = 0; i < 20; i++) all &= pair_expect(&p, 0, i, 0, 10) == 0;
    ok(all, "and go on when CREDIT comes");
    stop();
}

/* A receive that is advertised, a send of twice its length: did the rest wait?  The peer takes it from the ring. */
static bool hold_in_vain(uint32_t cookie)
{
    uint64_t before = COUNT(1, bytes_indirect);
    must(recv_at(0, 1000, 0, cookie) == 0);
    pair_run(&p);
    must(send_at(0, 2000, 0, cookie + 1) == 0);
    pair_run(&p);
    bool held = COUNT(1, bytes_indirect) == before;
    if (held) {
        usleep(6000);
        exsi_poller_run(&p.group->poller);
        pair_run(&p);
    }
    must(recv_at(0, 1000, 0, cookie + 2) == 0);
    pair_run(&p);
    must(pair_expect(&p, 1, cookie, 0, 1000) == DIRECT && pair_expect(&p, 1, cookie + 2, 0, 1000) == INDIRECT);
    return held;
}

static void test_hold(void)
{
    cfg[0].direct_hold_us = 5000;
    cfg[0].direct_threshold = 100;
    start();
    must(recv_at(0, 1000, 0, 1) == 0);
    pair_run(&p);
    must(send_at(0, 2000, 0, 11) == 0);
    pair_run(&p);
    ok(COUNT(1, bytes_indirect) == 0, "a long send that was served directly waits for the next receive");
    must(recv_at(1000, 1000, 0, 2) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 1000) == DIRECT && pair_expect(&p, 1, 2, 0, 1000) == DIRECT, "and has it all direct");
    must(send_at(0, 500, 0, 12) == 0);
    pair_run(&p);
    usleep(6000);
    exsi_poller_run(&p.group->poller);
    pair_run(&p);
    ok(COUNT(1, bytes_indirect) == 500, "but not for ever");
    must(recv_at(0, 1000, 0, 3) == 0);
    ok(pair_expect(&p, 1, 3, 0, 500) == INDIRECT, "what was sent through the ring arrives");
    /* The one above was in vain; so is the first here, and then two are left out. */
    bool held[5];
    for (uint32_t i = 0; i < 5; i++) held[i] = hold_in_vain(20 + 10 * i);
    ok(held[0] && !held[1] && !held[2] && held[3] && !held[4], "waits in vain become rare");
    stop();
}

static void test_wrong_peer(void)
{
    char reason[EXSI_REASON_MAX] = "";
    start();
    struct exsi_endpoint *ep = p.side[0].ep;
    struct exsi_hello h;
    ep->engine->hello(ep, &h);
    ok(h.credits == 64 && h.max_adverts == 32 && h.ring_len == 1 << 16 && h.ring_rkey, "hello says what we have");
    h.flags = EXSI_HELLO_SEQPACKET;
    ok(ep->engine->peer_hello(ep, &h, reason) == -EPROTO && reason[0], "a SEQPACKET peer is refused");
    h.flags = EXSI_HELLO_STREAM;
    h.version = 2;
    ok(ep->engine->peer_hello(ep, &h, reason) == -EPROTO, "a reply may not choose a newer version");
    stop();
}

int main(void)
{
    pair_open(&p);
    defaults();
    test_direct();
    test_indirect();
    test_void();
    test_waitall();
    test_waitall_switches();
    test_empty();
    test_small_ring();
    test_take_wakes_sender();
    test_threshold();
    test_cancel_recv();
    test_cancel_unadvertised();
    test_cancel_send();
    test_fin();
    test_clean_end();
    test_death();
    test_shut_recv();
    test_late_ring();
    test_region_keys();
    test_async_key();
    test_pieces();
    test_credits();
    test_hold();
    test_wrong_peer();
    pair_close(&p);
    return tap_done();
}
