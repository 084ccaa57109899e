// SPDX-License-Identifier: MIT OR Apache-2.0
/* Small sends of SMC-R, which are copied and over at once: what shares a WRITE and a CDC message, what keeps its place,
 * and what becomes of bytes that were taken over and not written.  The peer is played by hand. */
#include "engine/smcr_flow.h"
#include "smcr_played.h"

/* The longest send that is copied, and so one that is not. */
enum { SMALL = 8192, LARGE = SMALL + 1 };

static const struct smcr_flow *flow(const struct conn *c)
{
    return c->at.flow;
}

/* What has been posted leaves; nothing arrives and nothing completes. */
static void leave(void)
{
    exsi_group_flush(group);
}

/* It sent something small, so it has memory for more: so many bytes are out and read. */
static uint32_t warm_up(struct conn *c)
{
    must(post(c, EXSI_OP_SEND, source, 1, 0, 100) == 0 && exsi_eq_len(eq) == 0);
    leave(); /* before the memory is there */
    run();
    must(event(100, 0, 1) && flow(c)->stage.size == SIZE);
    say(c, at(0), at(1), 0, 0);
    return 1;
}

/* Over within the call. */
static bool is_copied(struct conn *c, const void *from, size_t len, uint64_t cookie)
{
    return post(c, EXSI_OP_SEND, (void *)(uintptr_t)from, len, 0, cookie) == 0 && event(cookie, 0, len);
}

static void test_company(void)
{
    struct conn *c = &conns[0];
    static uint8_t mine[100];
    begin(true);
    uint32_t p = warm_up(c);
    bool good = is_copied(c, source, 10, 1);
    leave();
    ok(good && flow(c)->in_flight == 1, "a small send is over at once, and leaves at once where nothing is on the way");
    int before = n_said;
    for (uint32_t i = 0; i < 10; i++) {
        memcpy(mine, source + 10 + 100 * i, 100);
        good &= is_copied(c, mine, 100, i);
        memset(mine, 0xee, sizeof mine); /* it is the caller's again */
        leave();
    }
    ok(good && flow(c)->in_flight == 1 && flow(c)->unsent == 1000, "those that follow wait for the completion");
    run();
    ok(n_said == before + 2 && said[before].producer.count == p + 10 && last()->producer.count == p + 1010,
       "and share a WRITE and a CDC message");
    ok(memcmp(rings + p, source, 1010) == 0 && !flow(c)->unsent && c->stats.bytes_copied == 1010, "with every byte");
    good = true;
    for (uint32_t i = 0; i < 3; i++) good &= is_copied(c, source, SMALL / 2, i);
    ok(good && !flow(c)->in_flight, "nothing has left inside a call");
    leave();
    good = is_copied(c, source, 1100, 9);
    leave();
    ok(good && flow(c)->in_flight == 1, "what is little waits");
    finish("company");
}

static void test_much_does_not_wait(void)
{
    struct conn *c = &conns[0];
    begin(true);
    (void)warm_up(c);
    bool good = is_copied(c, source, 1, 1);
    leave();
    good &= is_copied(c, source, SIZE / 2 - 1, 2);
    leave();
    good &= flow(c)->in_flight == 1 && is_copied(c, source, 1, 3);
    leave();
    ok(good && flow(c)->in_flight == 2, "half a ring of company is enough");
    finish("much");
}

static void test_order(void)
{
    struct conn *c = &conns[0];
    begin(true);
    uint32_t p = warm_up(c);
    must(is_copied(c, source, 50, 1));
    must(post(c, EXSI_OP_SEND, source + 50, LARGE, 0, 2) == 0);
    must(post(c, EXSI_OP_SEND, source + 50 + LARGE, 70, 0, 3) == 0 && exsi_eq_len(eq) == 0);
    int before = n_said;
    leave();
    ok(exsi_eq_len(eq) == 0 && flow(c)->in_flight == 3, "behind a long send also a small one is over when that is");
    run();
    ok(event(2, 0, LARGE) && event(3, 0, 70) && n_said == before + 1, "they end in order, and share a CDC message");
    ok(memcmp(rings + p, source, 50 + LARGE + 70) == 0, "and lie in order");
    ok(c->stats.bytes_copied == 50 + 70, "the long one was not copied");
    say(c, at(0), at(p + 120 + LARGE), 0, 0);
    must(post(c, EXSI_OP_SEND, source, LARGE, 0, 4) == 0);
    leave();
    must(post(c, EXSI_OP_SEND, source, 10, 0, 5) == 0);
    leave();
    ok(flow(c)->in_flight >= 2 && !flow(c)->unsent, "a small one does not wait for a long one");
    run();
    must(event(4, 0, LARGE) && event(5, 0, 10));
    p += 10 + LARGE;
    /* A long one that waits for room, and small ones behind it. */
    must(post(c, EXSI_OP_SEND, source, SIZE, 0, 4) == 0);
    must(post(c, EXSI_OP_SEND, source, 30, 0, 5) == 0);
    run();
    ok(exsi_eq_len(eq) == 0 && !(exsi_engine_smcr.ready(&c->at) & EXSI_CHANGE_WRITABLE), "the peer's ring is full");
    say(c, at(0), at(p + 120 + LARGE), 0, 0);
    ok(event(4, 0, SIZE) && event(5, 0, 30) && flow(c)->unsent == 30, "room for the long one: both are over");
    say(c, at(0), at(p + 120 + LARGE + SIZE), 0, 0);
    ok(!flow(c)->unsent && last()->producer.count == (p + 150 + LARGE) % SIZE, "and for the small one");
    finish("order");
}

/* The ring of the peer and the staging ring end at different places. */
static void test_wrap(void)
{
    struct conn *c = &conns[0];
    begin(true);
    uint64_t pos = warm_up(c);
    bool good = true;
    for (uint32_t i = 0; i < 3000 && good; i++) {
        uint32_t n = 1 + i * 37 % 700, at_ring = (uint32_t)(pos % SIZE),
                 first = SIZE - at_ring < n ? SIZE - at_ring : n;
        good = is_copied(c, source + i, n, i);
        if (i % 3 == 0) run();
        if (i % 7 == 0) {
            run();
            say(c, at(0), at(pos + n), 0, 0);
            good &=
                memcmp(rings + at_ring, source + i, first) == 0 && memcmp(rings, source + i + first, n - first) == 0;
        }
        pos += n;
    }
    run();
    ok(good && flow(c)->written == pos && !flow(c)->unsent, "%llu bytes, many times around both rings",
       (unsigned long long)pos);
    finish("wrap");
}

static void test_backpressure(void)
{
    struct conn *c = &conns[0];
    begin(true);
    uint32_t p = warm_up(c);
    must(post(c, EXSI_OP_SEND, source, SIZE, 0, 1) == 0);
    run();
    must(event(1, 0, SIZE));
    ok(exsi_engine_smcr.ready(&c->at) & EXSI_CHANGE_WRITABLE, "the peer's ring is full; a small send would not wait");
    bool good = is_copied(c, source, SMALL, 2) && is_copied(c, source + SMALL, SMALL, 3);
    run();
    ok(good && !(exsi_engine_smcr.ready(&c->at) & EXSI_CHANGE_WRITABLE), "until the staging ring is full too");
    must(post(c, EXSI_OP_SEND, source, 20, 0, 4) == 0 && post(c, EXSI_OP_SEND, source, 30, 0, 5) == 0);
    run();
    struct exsi_smcr_state s;
    must(exsi_smcr_look(exsi_smcr_of(ep), c->token, &s) == 0);
    ok(exsi_eq_len(eq) == 0 && s.unsent == SIZE + 50 && s.producer_flags == EXSI_SMC_WRITER_BLOCKED,
       "then sends wait, and all of it counts as unsent");
    struct exsi_op *op = exsi_list_first(&flow(c)->sends, struct exsi_op, node);
    exsi_engine_smcr.cancel(&c->at, op);
    ok(event(4, ECANCELED, 0) && flow(c)->unsent == SIZE + 30, "one that was not copied can be withdrawn");
    say(c, at(0), at(p + SIZE), 0, 0);
    ok(event(5, 0, 30) && memcmp(rings + p, source, SIZE - p) == 0 && last()->producer_flags,
       "room: what was copied goes");
    ok(exsi_engine_smcr.ready(&c->at) & EXSI_CHANGE_WRITABLE, "and others can be");
    say(c, at(0), at(p + 2 * SIZE), 0, 0);
    ok(!flow(c)->unsent && memcmp(rings + p, source, 30) == 0, "in order");
    finish("backpressure");
}

static void test_end_mark(void)
{
    struct conn *c = &conns[0];
    begin(true);
    uint32_t p = warm_up(c);
    must(is_copied(c, source, 10, 1));
    leave();
    must(is_copied(c, source, 20, 2));
    exsi_engine_smcr.shutdown_send(&c->at);
    leave();
    ok(!(exsi_engine_smcr.ready(&c->at) & EXSI_CHANGE_FIN_SENT), "the end mark waits for what was copied");
    run();
    ok(last()->connection_flags == EXSI_SMC_SENDING_DONE && last()->producer.count == p + 30 &&
           said[n_said - 2].connection_flags == 0,
       "and goes with the last of it");
    ok(post(c, EXSI_OP_SEND, source, 1, 0, 3) == -EPIPE, "nothing behind it");

    c = &conns[1];
    p = warm_up(c);
    must(is_copied(c, source, 10, 1));
    leave();
    must(post(c, EXSI_OP_SEND, source, 20, EXSI_OPF_SHUT_WR, 2) == 0 && event(2, 0, 20));
    exsi_engine_smcr.shutdown_recv(&c->at);
    run();
    ok(last()->connection_flags == EXSI_SMC_CLOSED && last()->producer.count == p + 30,
       "a send that carries it, and a close");
    finish("end mark");
}

static void test_urgent(void)
{
    struct conn *c = &conns[0];
    begin(true);
    uint32_t p = warm_up(c);
    must(is_copied(c, source, 10, 1));
    leave();
    must(is_copied(c, source + 10, 20, 2));
    must(post(c, EXSI_OP_SEND, source + 30, 5, EXSI_OPF_URGENT, 3) == 0);
    must(post(c, EXSI_OP_SEND, source + 35, 40, 0, 4) == 0 && exsi_eq_len(eq) == 0);
    run();
    ok(event(3, 0, 5) && event(4, 0, 40) && last()->producer.count == p + 35 &&
           last()->producer_flags == (EXSI_SMC_URGENT_PENDING | EXSI_SMC_URGENT_PRESENT),
       "the message points behind the urgent byte, with what was copied before it and nothing behind it");
    say(c, at(0), at(p + 34), 0, 0);
    ok(last()->producer.count == p + 35 && flow(c)->unsent == 40, "which waits until it was read");
    say(c, at(0), at(p + 35), 0, 0);
    ok(last()->producer.count == p + 75 && memcmp(rings + p, source, 75) == 0, "and then goes");
    finish("urgent");
}

/* --- bytes that go nowhere --------------------------------------------------------------------------------- */

static void fill_both(struct conn *c)
{
    (void)warm_up(c);
    must(is_copied(c, source, 10, 1));
    leave();
    must(is_copied(c, source, 20, 2) && flow(c)->in_flight == 1 && flow(c)->unsent == 20);
}

static void test_lost(void)
{
    begin(true);
    fill_both(&conns[0]);
    exsi_engine_smcr.abort(&conns[0].at, EHOSTDOWN, "the test");
    ok(!flow(&conns[0])->unsent && !(exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_DEAD),
       "an abort drops what was copied, and waits for the WRITE that reads there");
    ok(post(&conns[0], EXSI_OP_SEND, source, 1, 0, 3) == -EHOSTDOWN, "the next send is told");
    run();
    ok(exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_DEAD, "then it is over");
    (void)warm_up(&conns[1]);
    must(post(&conns[1], EXSI_OP_SEND, source, SIZE, 0, 4) == 0);
    run();
    must(event(4, 0, SIZE) && is_copied(&conns[1], source, 5, 5) && flow(&conns[1])->unsent == 5);
    say(&conns[1], at(0), at(0), 0, EXSI_SMC_CLOSED);
    ok(post(&conns[1], EXSI_OP_SEND, source, 1, 0, 6) == -EPIPE && !flow(&conns[1])->unsent,
       "so is a send to a peer that has closed");
    finish("aborted");

    begin(true);
    (void)warm_up(&conns[1]);
    fill_both(&conns[0]);
    must(post(&conns[0], EXSI_OP_SEND, source, LARGE, 0, 3) == 0);
    must(post(&conns[0], EXSI_OP_SEND, source, 30, 0, 4) == 0);
    exsi_ep_fail(ep, ECONNABORTED, "the test ends the link");
    while (exsi_eq_len(eq) == 0) run();
    ok(event(3, ECONNABORTED, 0) && event(4, ECONNABORTED, 0), "a link that is lost ends those that were not copied");
    ok(post(&conns[1], EXSI_OP_SEND, source, 1, 0, 5) == -ECONNABORTED, "who sends next is told");
    finish("lost");
}

/* The memory may come when the connection is gone. */
static void test_late_memory(void)
{
    begin(true);
    must(post(&conns[0], EXSI_OP_SEND, source, 1, 0, 1) == 0);
    ok(flow(&conns[0])->stage.errand, "the first small send asks for memory and goes without");
    exsi_engine_smcr.abort(&conns[0].at, ECONNABORTED, "the test");
    exsi_group_flush(group);
    finish("late memory");
}

int main(void)
{
    played_open();
    test_company();
    test_much_does_not_wait();
    test_order();
    test_wrap();
    test_backpressure();
    test_end_mark();
    test_urgent();
    test_lost();
    test_late_memory();
    played_close();
    return tap_done();
}
