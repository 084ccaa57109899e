// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the SMC-R engine asks of the device, seen between the two: receives before anything else, which sends are
 * solicited, whose memory is when whose again; and its half minute of patience, with a clock that is put forward. */
#include "smcr_played.h"

#define SECOND 1000000000u

/* --- between the engine and the device ---------------------------------------------------------------------------- */

static const struct exsi_device_ops *behind;
static struct exsi_device_ops between;
static struct exsi_device_entry entry;

/* Of the engine's queue pair. */
static struct {
    int receives, sends, solicited, writes, solicited_writes, others;
    int writes_done; /* completions that the engine was given */
} seen;

static int see_send(struct exsi_qp *qp, const struct exsi_send_wr *wr, int n)
{
    for (int i = 0; i < n && qp != peer; i++) {
        bool solicited = wr[i].flags & EXSI_WR_SOLICITED;
        seen.sends += wr[i].op == EXSI_WR_SEND;
        seen.solicited += wr[i].op == EXSI_WR_SEND && solicited;
        seen.writes += wr[i].op == EXSI_WR_WRITE;
        seen.solicited_writes += wr[i].op == EXSI_WR_WRITE && solicited;
        seen.others += wr[i].op != EXSI_WR_SEND && wr[i].op != EXSI_WR_WRITE;
    }
    return behind->post_send(qp, wr, n);
}

static int see_recv(struct exsi_qp *qp, const struct exsi_recv_wr *wr, int n)
{
    if (qp != peer) seen.receives += n;
    return behind->post_recv(qp, wr, n);
}

static int see_completions(struct exsi_part *part, struct exsi_wc *wc, int max)
{
    int n = behind->poll_cq(part, wc, max);
    for (int i = 0; i < n; i++) seen.writes_done += wc[i].qp != peer && wc[i].op == EXSI_WC_WRITE;
    return n;
}

static void step_between(void)
{
    behind = sim_device(sim)->ops;
    between = *behind;
    between.post_send = see_send;
    between.post_recv = see_recv;
    between.poll_cq = see_completions;
    entry = *ctx->devices[0].entry;
    entry.ops = sim_device(sim)->ops = &between;
    ctx->devices[0].entry = &entry;
}

static void start(bool up)
{
    memset(&seen, 0, sizeof seen);
    peer = NULL;
    begin(up);
}

/* Everything that was posted reaches the peer, and the engine is not told. */
static void arrive_unseen(void)
{
    exsi_group_flush(group);
    while (sim_in_flight(ep->qp) && sim_step(sim)) continue;
}

/* An LLC message; one of more than 44 bytes lies in a block. */
static void send_llc(uint32_t len)
{
    static const uint8_t message[64] = {0x22, 44, 0, 0, 1, 2, 3};
    struct exsi_block block = {0};
    if (len > EXSI_SMC_MESSAGE_LEN) {
        must(exsi_pool_take(ctx, sim_device(sim), len, &block) == 0);
        memcpy(block.addr, message, len);
    }
    must(exsi_smcr_llc_send(exsi_smcr_of(ep), message, len, &block) == 0);
}

/* --- the tests ---------------------------------------------------------------------------------------------------- */

static void test_receives_come_first(void)
{
    start(false);
    ok(ep->state == EXSI_EP_READY && seen.receives >= 48 && !seen.sends && !seen.writes,
       "point 40: a queue pair is there with its receives (%d), before it has a peer", seen.receives);
    finish("receives");
}

static void test_solicited(void)
{
    uint8_t ask[EXSI_SMC_MESSAGE_LEN] = {0x27, 44};
    start(true);
    must(post(&conns[0], EXSI_OP_SEND, source, 5000, 0, 1) == 0);
    must(post(&conns[1], EXSI_OP_SEND, source, 1, EXSI_OPF_URGENT, 2) == 0);
    run();
    int data = seen.sends;
    say(&conns[0], at(0), at(0), EXSI_SMC_UPDATE_REQUESTED, 0);
    int update = seen.sends;
    send_llc(44);
    send_llc(60);
    run();
    int llc = seen.sends;
    peer_send(ask, sizeof ask);
    run();
    int answer = seen.sends;
    exsi_smcr_of(ep)->test_due = true;
    exsi_ep_touch(ep);
    run();
    int test = seen.sends;
    exsi_engine_smcr.shutdown_send(&conns[0].at);
    exsi_engine_smcr.abort(&conns[1].at, ECONNABORTED, "to see it");
    run();
    ok(data >= 2 && update > data && llc == update + 2 && answer == llc + 1 && test == answer + 1 &&
           seen.sends == test + 2,
       "CDC for data, updates and ends, LLC long and short, TEST_LINK and its answer: %d in all", seen.sends);
    ok(seen.solicited == seen.sends, "point 42: each of these SENDs is solicited");
    ok(seen.writes >= 2 && !seen.solicited_writes && !seen.others, "no WRITE is, and there is nothing else");
    finish("solicited");
}

static void test_memory_until_completion(void)
{
    static uint8_t copy[2000];
    uint8_t *mine = source + 5000;
    struct conn *c = &conns[0];
    start(true);
    must(post(c, EXSI_OP_SEND, source, 16000, 0, 1) == 0);
    run();
    must(event(1, 0, 16000));
    say(c, at(0), at(16000), 0, 0);
    memcpy(copy, mine, sizeof copy);
    int before = seen.writes_done;
    must(post(c, EXSI_OP_SEND, mine, sizeof copy, 0, 2) == 0);
    arrive_unseen();
    ok(memcmp(rings + 16000, copy, 384) == 0 && memcmp(rings, copy + 384, 1616) == 0 && exsi_eq_len(eq) == 0,
       "point 81: the peer has it all, in two WRITEs, and the buffer is not its owner's again");
    ok(memcmp(mine, copy, sizeof copy) == 0, "nor did anybody else write there");
    struct exsi_wc wc;
    bool early = false;
    while (sim_step(sim)) continue;
    while (dev_ops()->poll_cq(ep->part, &wc, 1) == 1) {
        if (wc.qp == peer)
            peer_received(&wc);
        else
            exsi_ep_completion(ep, &wc);
        early |= exsi_eq_len(eq) && seen.writes_done < before + 2;
    }
    ok(!early && event(2, 0, sizeof copy), "but with the completion of the second WRITE it is");
    finish("a buffer of the program");
}

static void test_memory_of_what_is_aborted(void)
{
    struct conn *c = &conns[0];
    struct exsi_event ev;
    start(true);
    must(post(c, EXSI_OP_SEND, source, 3000, 0, 1) == 0);
    exsi_group_flush(group);
    exsi_engine_smcr.abort(&c->at, ECONNABORTED, "to see it");
    exsi_group_flush(group);
    ok(exsi_eq_len(eq) == 0, "an abort does not give back what the device still reads");
    run();
    ok(exsi_eq_take(eq, &ev, 1) == 1 && ev.cookie == 1, "the completion does");
    finish("a buffer of what is aborted");
}

static void test_memory_of_messages(void)
{
    start(true);
    n_other = 0;
    send_llc(60);
    send_llc(60);
    arrive_unseen();
    ok(!exsi_list_empty(&ep->blocks) && exsi_smcr_of(ep)->n_llc_out == 1,
       "points 67, 81: the block of a long message stays until its completion, and the next one waits");
    run();
    ok(exsi_list_empty(&ep->blocks) && n_other == 2, "then both are out");
    finish("blocks");
}

/* --- half a minute ------------------------------------------------------------------------------------------------ */

/* So long nothing came, and then the timer runs out. */
static void be_silent(uint64_t time_ns)
{
    struct exsi_smcr *l = exsi_smcr_of(ep);
    l->heard_ns -= time_ns;
    l->asked_ns -= time_ns;
    exsi_timer_stop(&group->poller, &l->test_timer);
    l->test_timer.fn(&l->test_timer);
    run();
}

static bool due_within(uint64_t time_ns)
{
    const struct exsi_timer *t = &exsi_smcr_of(ep)->test_timer;
    return exsi_timer_running(t) && t->deadline_ns <= exsi_now_ns() + time_ns;
}

static void test_silence(void)
{
    uint8_t answer[EXSI_SMC_MESSAGE_LEN] = {0x27, 44, 0, 0x80};
    start(true);
    n_other = 0;
    must(exsi_smcr_active(exsi_smcr_of(ep), 2, 30000, 2000) == 0);
    ok(due_within(30ull * SECOND) && !due_within(29ull * SECOND), "point 54: the first look is after 30 s");
    be_silent(29ull * SECOND);
    ok(n_other == 0 && due_within(SECOND), "29 s of silence: nobody is asked");
    be_silent(SECOND);
    ok(n_other == 1 && other[0] == 0x27 && other[3] == 0 && due_within(2ull * SECOND),
       "30 s: TEST_LINK, and 2 s for it");
    peer_send(answer, sizeof answer);
    run();
    ok(due_within(30ull * SECOND) && !due_within(29ull * SECOND), "answered: 30 s again");
    be_silent(30ull * SECOND);
    ok(n_other == 2 && ep->state == EXSI_EP_UP, "asked again");
    be_silent(2ull * SECOND);
    ok(ep->error == ETIMEDOUT && conns[0].at.error == ECONNABORTED && conns[1].at.error == ECONNABORTED,
       "2 s more: the link is down, its connections are aborted");
    finish("silence");
}

int main(void)
{
    played_open();
    step_between();
    test_receives_come_first();
    test_solicited();
    test_memory_until_completion();
    test_memory_of_what_is_aborted();
    test_memory_of_messages();
    test_silence();
    played_close();
    return tap_done();
}
