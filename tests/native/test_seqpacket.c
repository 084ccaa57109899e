// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SEQPACKET engine, one rule at a time (ES-API 2.4), over the simulated device. */
#include <string.h>

#include "sim/pair.h"
#include "tap.h"

static struct pair p;
static struct exsi_engine_config cfg[2];
static struct sim_options opt;
static uint64_t op;

#define WHOLE          (EXSI_EV_DIRECT | EXSI_EV_EOR)
#define COUNT(i, name) atomic_load(&p.side[i].stats.name)

static void defaults(void)
{
    pair_config(&cfg[0]);
    pair_config(&cfg[1]);
    opt = (struct sim_options){.max_msg = 1 << 30};
}

static void start(void)
{
    pair_connect(&p, &exsi_engine_seqpacket, cfg, &opt, 7);
    pair_run(&p);
    for (int i = 0; i < 2; i++)
        for (uint32_t k = 0; k < PAIR_MEMORY; k++) p.side[i].memory[k] = (uint8_t)(i ? 0 : k * 7 + k / 256);
}

static void stop(void)
{
    struct exsi_event ev;
    ok(sim_violation(p.sim) == NULL, "the device saw no violation");
    exsi_ep_fail(p.side[0].ep, ECONNABORTED, "the test is over");
    pair_run(&p);
    for (int i = 0; i < 2; i++)
        while (pair_event(&p, i, &ev)) continue;
    pair_drop(&p);
    defaults();
}

static int send_at(uint32_t at, uint32_t len, uint32_t flags, uint64_t cookie)
{
    return pair_post(&p, 0, EXSI_OP_SEND, p.side[0].memory + at, len, 0, flags, cookie, &op);
}
static int recv_at(uint32_t at, uint32_t len, uint64_t cookie)
{
    return pair_post(&p, 1, EXSI_OP_RECV, p.side[1].memory + at, len, 0, 0, cookie, &op);
}
static bool same(uint32_t at, uint32_t len)
{
    return memcmp(p.side[0].memory + at, p.side[1].memory + at, len) == 0;
}

static void test_messages(void)
{
    start();
    must(send_at(0, 100, 0, 11) == 0);
    pair_run(&p);
    ok(pair_silent(&p, 0) && !(pair_ready(&p, 0) & EXSI_CHANGE_WRITABLE), "a send waits for a receive");
    must(recv_at(0, 500, 1) == 0 && recv_at(1000, 500, 2) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 0, 11, 0, 100) == 0 && pair_expect(&p, 1, 1, 0, 100) == WHOLE && same(0, 100),
       "then it goes out");
    ok(pair_ready(&p, 0) & EXSI_CHANGE_WRITABLE, "writable while another receive is known");
    must(send_at(1000, 500, 0, 12) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 2, 0, 500) == WHOLE && same(1000, 500), "one message, one receive");
    ok(COUNT(1, bytes_copied) == 0 && COUNT(1, bytes_direct) == 600 && sim_keys(p.side[1].ep->qp) == 0,
       "no copy, no key left");
    stop();
}

static void test_empty(void)
{
    start();
    must(recv_at(0, 10, 1) == 0 && recv_at(0, 0, 2) == 0 && recv_at(20, 10, 3) == 0);
    must(send_at(0, 0, 0, 11) == 0 && send_at(0, 0, 0, 12) == 0 && send_at(20, 10, 0, 13) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 0) == EXSI_EV_EOR && pair_expect(&p, 1, 2, 0, 0) == EXSI_EV_EOR &&
           pair_expect(&p, 1, 3, 0, 10) == WHOLE,
       "empty messages are messages");
    ok(pair_expect(&p, 0, 11, 0, 0) == 0 && pair_expect(&p, 0, 12, 0, 0) == 0 && pair_expect(&p, 0, 13, 0, 10) == 0,
       "and end in order");
    stop();
}

/* ES-API 2.4 */
static void test_truncation(void)
{
    struct exsi_event ev;
    start();
    must(recv_at(0, 60, 1) == 0 && recv_at(100, 60, 2) == 0);
    must(send_at(0, 100, 0, 11) == 0 && send_at(100, 60, 0, 12) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 0, 11, 0, 100) == 0, "the sender of a cut message is told its full length");
    must(pair_event(&p, 1, &ev));
    ok(ev.error == 0 && ev.value == 60 && ev.extra == 100 && ev.flags == (WHOLE | EXSI_EV_TRUNCATED) && same(0, 60) &&
           p.side[1].memory[60] == 0,
       "the receiver what is missing");
    ok(pair_expect(&p, 1, 2, 0, 60) == WHOLE && same(100, 60), "the next message is whole");
    must(recv_at(0, 60, 3) == 0);
    must(send_at(0, 100, EXSI_OPF_STRICT_SIZE, 13) == 0 && send_at(0, 60, EXSI_OPF_STRICT_SIZE, 14) == 0);
    pair_run(&p);
    (void)pair_event(&p, 0, &ev);
    ok(pair_expect(&p, 0, 13, EMSGSIZE, 0) == 0 && pair_expect(&p, 0, 14, 0, 60) == 0,
       "strict: not sent, receive kept");
    ok(pair_expect(&p, 1, 3, 0, 60) == WHOLE, "for the next one");
    must(recv_at(0, 0, 4) == 0 && send_at(0, 5, 0, 15) == 0);
    pair_run(&p);
    must(pair_event(&p, 1, &ev));
    ok(ev.value == 0 && ev.extra == 5 && ev.flags == (EXSI_EV_EOR | EXSI_EV_TRUNCATED), "into an empty receive");
    stop();
}

static void test_segments(void)
{
    opt.max_msg = 32;
    start();
    must(recv_at(0, 1000, 1) == 0 && recv_at(2000, 50, 2) == 0 && recv_at(3000, 1000, 3) == 0);
    must(pair_post(&p, 0, EXSI_OP_SEND, p.side[0].memory, 700, 333, 0, 11, &op) == 0);
    must(send_at(2000, 100, 0, 12) == 0 && send_at(3000, 64, 0, 13) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 700) == WHOLE && same(0, 700), "a long message in segments, from two pieces");
    ok(pair_expect(&p, 1, 2, 0, 50) == (WHOLE | EXSI_EV_TRUNCATED) && same(2000, 50), "cut, in segments");
    ok(pair_expect(&p, 1, 3, 0, 64) == WHOLE && same(3000, 64), "exactly two segments");
    stop();
}

/* REVOKE meets a message that has begun: it is answered behind the last segment, and too late. */
static void test_revoke_begun(void)
{
    opt.max_msg = 10;
    cfg[0].recv_slots = cfg[1].recv_slots = 8;
    start();
    must(recv_at(0, 1000, 1) == 0);
    uint64_t first = op;
    must(recv_at(1000, 1000, 2) == 0);
    pair_run(&p);
    must(send_at(0, 300, 0, 11) == 0 && send_at(1000, 20, 0, 12) == 0);
    ok(pair_silent(&p, 0), "credits for a part of the message only");
    pair_cancel(&p, 1, first);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 300) == WHOLE && same(0, 300), "the message that had begun is not broken off");
    ok(pair_expect(&p, 1, 2, 0, 20) == WHOLE && same(1000, 20), "and the next fills the next receive");
    stop();
}

static void test_cancel(void)
{
    start();
    must(send_at(0, 10, 0, 11) == 0);
    pair_cancel(&p, 0, op);
    ok(pair_expect(&p, 0, 11, ECANCELED, 0) == 0, "a send without a receive ends at once");
    must(recv_at(0, 10, 1) == 0);
    uint64_t first = op;
    must(recv_at(100, 10, 2) == 0);
    pair_run(&p);
    pair_cancel(&p, 1, first);
    ok(pair_silent(&p, 1), "an advertised receive waits for REVOKED");
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, ECANCELED, 0) == 0, "then it ends");
    must(send_at(100, 10, 0, 12) == 0);
    pair_run(&p);
    ok(pair_expect(&p, 1, 2, 0, 10) == WHOLE && same(100, 10), "the message goes into the one behind it");
    stop();
}

static void test_end(void)
{
    uint8_t byte;
    start();
    must(recv_at(0, 10, 1) == 0 && recv_at(10, 10, 2) == 0);
    must(send_at(0, 10, EXSI_OPF_SHUT_WR, 11) == 0);
    ok(send_at(0, 10, 0, 12) == -EPIPE, "no send behind a FIN");
    const struct exsi_engine_ops *e = p.side[1].ep->engine;
    ok(e->take(&p.side[1].at, &byte, 1, false) == -EAGAIN, "take never finds a message");
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 10) == WHOLE && pair_expect(&p, 1, 2, 0, 0) == EXSI_EV_EOF, "message, then the end");
    ok(e->take(&p.side[1].at, &byte, 1, false) == 0, "take reports the end");
    ok(p.side[0].changed & EXSI_CHANGE_FIN_ACKED, "the FIN was acknowledged");
    stop();
}

static void test_shut_recv(void)
{
    start();
    must(recv_at(0, 10, 1) == 0);
    pair_run(&p);
    p.side[1].ep->engine->shutdown_recv(&p.side[1].at);
    exsi_group_flush(p.group);
    pair_run(&p);
    ok(pair_expect(&p, 1, 1, 0, 0) == EXSI_EV_EOF, "a pending receive ends with 0");
    for (uint32_t i = 0; i < 20; i++) must(send_at(0, 100 * (i % 2), 0, 20 + i) == 0);
    pair_run(&p);
    bool all = true;
    for (uint32_t i = 0; i < 20; i++) all &= pair_expect(&p, 0, 20 + i, 0, 100 * (i % 2)) == 0;
    ok(all, "messages that nobody wants do not hold up their sender");
    must(recv_at(0, 10, 2) == 0);
    ok(pair_expect(&p, 1, 2, 0, 0) == EXSI_EV_EOF, "later receives end at once");
    stop();
}

static void test_limits(void)
{
    cfg[0].max_adverts = 2;
    cfg[0].recv_slots = cfg[1].recv_slots = 8;
    start();
    for (uint32_t i = 0; i < 20; i++) must(recv_at(i * 100, 100, i) == 0);
    pair_run(&p);
    ok(COUNT(1, adverts_sent) == 2, "no more advertisements than the peer remembers");
    for (uint32_t i = 0; i < 20; i++) must(send_at(i * 100, 100, 0, 50 + i) == 0);
    pair_run(&p);
    bool all = true;
    for (uint32_t i = 0; i < 20; i++) all &= pair_expect(&p, 1, i, 0, 100) == WHOLE;
    ok(all && same(0, 2000), "all of it arrives");
    stop();
    opt.max_keys = 1;
    start();
    for (uint32_t i = 0; i < 5; i++) must(recv_at(i * 100, 100, i) == 0 && send_at(i * 100, 100, 0, 50 + i) == 0);
    pair_run(&p);
    all = true;
    for (uint32_t i = 0; i < 5; i++) all &= pair_expect(&p, 1, i, 0, 100) == WHOLE;
    ok(all, "with one key at a time");
    stop();
}

static void test_strict_keys(void)
{
    struct exsi_ep_attr attr = {0};
    struct exsi_ep_memory memory;
    struct exsi_endpoint *ep;
    opt.region_keys = true;
    cfg[0].strict_keys = true;
    sim_set(p.sim, &opt, 1);
    exsi_engine_seqpacket.ep_attr(&cfg[0], &attr);
    must(exsi_ep_memory_new(p.ctx, sim_device(p.sim), &attr, &memory) == 0);
    must(exsi_ep_new(p.group, sim_device(p.sim), &exsi_engine_seqpacket, &attr, &memory, &p.side[0].stats, &ep) == 0);
    must(exsi_ep_make_qp(ep, NULL) == 0);
    ok(exsi_ep_open_engine(ep, &cfg[0]) == -EOPNOTSUPP, "strict_keys refuses a device without keys per range");
    ok(strstr(ep->reason, "strict_keys"), "and says so: %s", ep->reason);
    exsi_ep_free(ep);
    exsi_group_reap(p.group);
    defaults();
}

int main(void)
{
    pair_open(&p);
    defaults();
    test_messages();
    test_empty();
    test_truncation();
    test_segments();
    test_revoke_begun();
    test_cancel();
    test_end();
    test_shut_recv();
    test_limits();
    test_strict_keys();
    pair_close(&p);
    return tap_done();
}
