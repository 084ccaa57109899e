// SPDX-License-Identifier: MIT OR Apache-2.0
/* The SMC-R engine against a peer that is played by hand: what its CDC messages say and when, and what a peer may say
 * that keeps no rule.  On the simulated device, where a WRITE outside of its key is a violation. */
#include "smcr_played.h"

/* The connection that the peer spoilt has ended with EPROTO, and only that one. */
static bool only_first_ended(const char *why)
{
    bool told = last()->connection_flags & EXSI_SMC_ABORT && last()->token == 0x900;
    bool dead = exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_DEAD && conns[0].at.error == EPROTO;
    bool named = logged(why);
    must(post(&conns[1], EXSI_OP_SEND, source, 10, 0, 99) == 0);
    run();
    return told && dead && named && event(99, 0, 10) && !conns[1].at.error && ep->state == EXSI_EP_UP;
}

/* --- what it says ---------------------------------------------------------------------------------------------------
 */

static void test_sequence(void)
{
    begin(true);
    bool good = true;
    uint64_t sent = 0;
    for (int i = 0; i < 66000 && good; i++) {
        must(post(&conns[0], EXSI_OP_SEND, source, 1, 0, 1) == 0);
        run();
        good = event(1, 0, 1) && last()->seq == (uint16_t)(i + 1) && last()->producer.count == ++sent % SIZE;
        if (sent % 8000 == 0) say(&conns[0], at(0), at(sent), 0, 0);
    }
    ok(good && n_said == 66000, "point 68: numbers from 1 on, one more each, through 65535 to 0");
    finish("numbers");
}

static void test_blocked(void)
{
    struct conn *c = &conns[0];
    begin(true);
    must(post(c, EXSI_OP_SEND, source, 100, 0, 1) == 0);
    run();
    ok(event(1, 0, 100) && !(last()->producer_flags & EXSI_SMC_WRITER_BLOCKED), "point 73: room left: not blocked");
    must(post(c, EXSI_OP_SEND, source, SIZE - 100, 0, 2) == 0);
    run();
    ok(event(2, 0, SIZE - 100) && last()->producer_flags == EXSI_SMC_WRITER_BLOCKED && last()->producer.wrap == 1 &&
           last()->producer.count == 0,
       "as much as there was room: blocked");
    must(post(c, EXSI_OP_SEND, source, 50, 0, 3) == 0);
    int before = n_said;
    run();
    /* It is over nevertheless: a small send was copied, as on a socket of the kernel (test_smcr_stage.c). */
    ok(n_said == before && event(3, 0, 50), "a full ring: nothing to say, nothing written");
    say(c, at(0), at(4000), 0, 0);
    ok(last()->producer_flags == 0 && last()->producer.count == 50 && memcmp(rings, source, 50) == 0,
       "room again: written, cleared");
    say(c, at(0), at(SIZE + 50), 0, 0);
    must(post(c, EXSI_OP_SEND, source, SIZE - 1, 0, 4) == 0);
    run();
    ok(event(4, 0, SIZE - 1) && last()->producer.wrap == 2 && last()->producer.count == 49 &&
           memcmp(rings + 50, source, SIZE - 50) == 0 && memcmp(rings, source + SIZE - 50, 49) == 0,
       "point 72: across the end in two WRITEs");
    finish("a full ring");
}

static void test_updates(void)
{
    static uint8_t in[SIZE];
    struct conn *c = &conns[0];
    begin(true);
    peer_write(c, 0, 3000);
    say(c, at(3000), at(0), 0, 0);
    must(post(c, EXSI_OP_RECV, in, 3000, 0, 1) == 0);
    run();
    ok(event(1, 0, 3000) && memcmp(in, source, 3000) == 0 && n_said == 0,
       "points 75, 84: read, and the writer has room: nobody is told");
    say(c, at(3000), at(0), EXSI_SMC_UPDATE_REQUESTED, 0);
    ok(n_said == 1 && last()->consumer.count == 3000 && last()->token == 0x900, "point 76: asked, and told");
    say(c, at(3000), at(0), EXSI_SMC_UPDATE_REQUESTED, 0);
    ok(n_said == 2, "also when nothing has changed");
    peer_write(c, 3000, SIZE - 3000);
    peer_write(c, 0, 3000);
    say(c, at(3000 + SIZE), at(0), EXSI_SMC_WRITER_BLOCKED, 0);
    must(post(c, EXSI_OP_RECV, in, 2304, 0, 2) == 0);
    run();
    ok(event(2, 0, 2304) && n_said == 2, "below the limit nobody is told");
    must(post(c, EXSI_OP_RECV, in, 1, 0, 3) == 0);
    run();
    ok(event(3, 0, 1) && n_said == 3 && last()->consumer.count == 5305, "above it a blocked writer is");
    finish("updates");
}

static void test_urgent_in(void)
{
    static uint8_t in[1000];
    struct conn *c = &conns[0];
    begin(true);
    say(c, at(0), at(0), EXSI_SMC_URGENT_PENDING, 0);
    peer_write(c, 0, 10);
    say(c, at(10), at(0), EXSI_SMC_URGENT_PENDING | EXSI_SMC_URGENT_PRESENT, 0);
    must(post(c, EXSI_OP_RECV, in, 9, 0, 1) == 0);
    run();
    ok(event(1, 0, 9) && n_said == 0, "before the urgent byte nobody is told");
    must(post(c, EXSI_OP_RECV, in, 100, 0, 2) == 0);
    run();
    ok(event(2, 0, 1) && in[0] == source[9] && n_said == 1 && last()->consumer.count == 10,
       "point 82: it comes in its place, and its sender is told at once");
    finish("urgent data from the peer");
}

static void test_urgent_out(void)
{
    struct conn *c = &conns[0];
    begin(true);
    must(post(c, EXSI_OP_SEND, source, 100, EXSI_OPF_URGENT, 1) == 0);
    must(post(c, EXSI_OP_SEND, source, 50, 0, 2) == 0);
    run();
    ok(event(1, 0, 100) && n_said == 1 && last()->producer.count == 100 &&
           last()->producer_flags == (EXSI_SMC_URGENT_PENDING | EXSI_SMC_URGENT_PRESENT),
       "point 83: the message behind the urgent byte says so");
    say(c, at(0), at(99), 0, 0);
    ok(exsi_eq_len(eq) == 0, "and nothing follows");
    say(c, at(0), at(100), 0, 0);
    ok(event(2, 0, 50) && last()->producer.count == 150 && last()->producer_flags == 0, "until it was read");
    must(post(c, EXSI_OP_SEND, source, SIZE, EXSI_OPF_URGENT, 3) == 0);
    run();
    ok(last()->producer_flags & EXSI_SMC_URGENT_PENDING && !(last()->producer_flags & EXSI_SMC_URGENT_PRESENT),
       "a part of urgent data: it is pending");
    say(c, at(0), at(150), 0, 0);
    ok(event(3, 0, SIZE) && last()->producer_flags & EXSI_SMC_URGENT_PRESENT, "and then present");
    finish("urgent data of ours");
}

/* --- ends
 * -------------------------------------------------------------------------------------------------------------- */

static void test_close_flags(void)
{
    static uint8_t in[100];
    begin(true);
    exsi_engine_smcr.shutdown_send(&conns[0].at);
    exsi_engine_smcr.shutdown_recv(&conns[0].at);
    run();
    ok(n_said == 1 && last()->connection_flags == EXSI_SMC_CLOSED, "point 85: a close says closed");
    ok(!(exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_FIN_ACKED), "and waits for the peer's");
    say(&conns[0], at(0), at(0), 0, EXSI_SMC_CLOSED);
    ok(exsi_engine_smcr.ready(&conns[0].at) & EXSI_CHANGE_FIN_ACKED, "which ends it");

    exsi_engine_smcr.shutdown_send(&conns[1].at);
    run();
    ok(last()->connection_flags == EXSI_SMC_SENDING_DONE, "point 86: a half close says done");
    peer_write(&conns[1], 0, 50);
    say(&conns[1], at(50), at(0), 0, 0);
    must(post(&conns[1], EXSI_OP_RECV, in, 100, 0, 1) == 0);
    run();
    ok(event(1, 0, 50), "data still comes");
    exsi_engine_smcr.shutdown_recv(&conns[1].at);
    run();
    ok(last()->connection_flags == (EXSI_SMC_SENDING_DONE | EXSI_SMC_CLOSED), "then closed, with done still set");
    finish("closes");
}

static void test_abort_flags(void)
{
    begin(true);
    peer_write(&conns[0], 0, 50);
    say(&conns[0], at(50), at(0), 0, 0);
    exsi_engine_smcr.shutdown_send(&conns[0].at);
    exsi_engine_smcr.shutdown_recv(&conns[0].at);
    run();
    ok(last()->connection_flags == EXSI_SMC_ABORT, "point 87: closed with unread data: abort");
    say(&conns[1], at(0), at(0), 0, EXSI_SMC_ABORT);
    ok(conns[1].at.error == ECONNRESET && last()->connection_flags == EXSI_SMC_ABORT && last()->token == 0x901,
       "the peer's abort is answered");
    finish("aborts");
}

static void test_data_behind_done(void)
{
    static uint8_t in[100];
    begin(true);
    peer_write(&conns[0], 0, 20);
    say(&conns[0], at(10), at(0), 0, EXSI_SMC_SENDING_DONE);
    say(&conns[0], at(20), at(0), 0, EXSI_SMC_SENDING_DONE);
    must(post(&conns[0], EXSI_OP_RECV, in, 100, EXSI_OPF_WAITALL, 1) == 0);
    run();
    ok(event(1, 0, 10), "what comes behind done does not count");
    finish("data behind done");
}

/* --- a peer that keeps no rule
 * -------------------------------------------------------------------------------------------- */

static void test_ignored(void)
{
    static uint8_t in[100];
    struct conn *c = &conns[0], stranger = {.token = 0x777};
    begin(true);
    say(&stranger, at(50), at(0), 0, EXSI_SMC_ABORT);
    ok(exsi_smcr_of(ep)->strays == 1, "point 79: an unknown token is nobody's");
    peer_write(c, 0, 50);
    say(c, at(50), at(0), 0, 0);
    c->seq = 65000;
    say(c, at(70), at(0), 0, EXSI_SMC_ABORT);
    ok(!c->at.error, "point 69: an old number says nothing");
    c->seq = 1;
    say(c, at(20), at(0), 0, 0);
    say(c, (struct exsi_smc_cursor){65535, 100}, (struct exsi_smc_cursor){65535, 5}, 0, 0);
    must(post(c, EXSI_OP_RECV, in, 100, 0, 1) == 0);
    run();
    ok(event(1, 0, 50) && !c->at.error, "point 80: cursors that go backwards are ignored");
    peer_send("\xfe\x2c", 2);
    peer_send("", 0);
    run();
    ok(ep->state == EXSI_EP_UP, "point 97: a message that is cut says nothing");
    finish("what is ignored");
}

static void test_violation(const char *name, struct exsi_smc_cursor producer, struct exsi_smc_cursor consumer,
                           const char *why)
{
    static uint8_t in[100];
    begin(true);
    must(post(&conns[0], EXSI_OP_SEND, source, 100, 0, 1) == 0);
    run();
    must(event(1, 0, 100) && post(&conns[0], EXSI_OP_RECV, in, 100, 0, 2) == 0);
    (void)logged("");
    say(&conns[0], producer, consumer, 0, 0);
    ok(event(2, EPROTO, 0) && only_first_ended(why), "%s ends its connection and nothing else", name);
    finish(name);
}

static void test_validation(void)
{
    begin(true);
    say(&conns[0], at(0), at(0), 0, 0);
    conns[0].seq = 0;
    say(&conns[0], (struct exsi_smc_cursor){9, 99}, (struct exsi_smc_cursor){9, 99}, EXSI_SMC_FAILOVER_VALIDATION, 0);
    ok(!conns[0].at.error, "a validation of what arrived changes nothing");
    (void)logged("");
    conns[0].seq = 5;
    say(&conns[0], at(0), at(0), EXSI_SMC_FAILOVER_VALIDATION, 0);
    ok(only_first_ended("sequence number"), "one of what did not ends the connection");
    finish("failover validation");
}

static void test_before_rts(void)
{
    uint8_t ask[EXSI_SMC_MESSAGE_LEN] = {0x07, 44};
    memset(ask + 4, 0x5a, 16);
    begin(false);
    peer_send(ask, sizeof ask);
    must(post(&conns[0], EXSI_OP_SEND, source, 100, 0, 1) == 0);
    run();
    ok(n_other == 0 && n_said == 0, "point 41: before RTS nothing is sent");
    exsi_ep_up(ep);
    run();
    ask[3] = 0x80;
    ok(n_other == 1 && memcmp(other, ask, sizeof ask) == 0 && event(1, 0, 100),
       "point 53: then the test is answered, its 16 bytes echoed, and data goes");
    finish("before RTS");
}

int main(void)
{
    played_open();
    test_sequence();
    test_blocked();
    test_updates();
    test_urgent_in();
    test_urgent_out();
    test_close_flags();
    test_abort_flags();
    test_data_behind_done();
    test_ignored();
    test_violation("a producer outside of the ring", (struct exsi_smc_cursor){0, SIZE}, at(0), "producer cursor");
    test_violation("a producer beyond the free part", at(SIZE + 1), at(0), "producer cursor");
    test_violation("a consumer beyond what was written", at(0), at(101), "consumer cursor");
    test_violation("a consumer outside of the ring", at(0), (struct exsi_smc_cursor){0, 0xffffffff}, "consumer cursor");
    test_validation();
    test_before_rts();
    played_close();
    return tap_done();
}
