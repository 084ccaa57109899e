// SPDX-License-Identifier: MIT OR Apache-2.0
/* Each thing that a peer may not do: the connection ends with EPROTO, the log names the field, and every
 * operation has its one event (ES-API 2.3.9). */
#include <string.h>

#include "sim/pair.h"
#include "tap.h"

static struct pair p;

struct saying {
    struct exsi_control c; /* type 0: a notice word instead */
    uint32_t word;
};

struct crime {
    const char *name, *log;
    bool packets;
    uint32_t receive; /* bytes of a receive posted before, 0: none */
    struct saying say[12];
    int n;
    int error;  /* 0: EPROTO */
    int repeat; /* the last one so many times more */
};

#define W(kind, end, count) {.word = (uint32_t)(kind) << 30 | (uint32_t)(end) << 29 | (count)}
#define C(...)                                                                                                         \
    {                                                                                                                  \
        .c = {__VA_ARGS__}                                                                                             \
    }
#define ADVERT(i) C(.type = EXSI_CTL_ADVERT, .id = (i), .addr = 4096, .rkey = 1, .len = 8)
#define CREDIT    C(.type = EXSI_CTL_CREDIT)

static const struct crime crimes[] = {
    {"a message of no type", "unknown control message", .say = {C(.type = 12)}, .n = 1},
    {"a reserved kind of notice", "reserved kind", .say = {W(2, 0, 5)}, .n = 1},
    {"a notice of nothing", "count 0", .say = {W(1, 0, 0)}, .n = 1},
    {"credits that were not out", "credits", .say = {C(.type = EXSI_CTL_CREDIT, .credits = 9)}, .n = 1},
    {"more messages than credits", "overrun", .say = {CREDIT}, .n = 1, .repeat = 60},
    {"a FIN acknowledged that was not sent", "FIN", .say = {C(.type = EXSI_CTL_ACK, .flags = EXSI_CTLF_FIN_PROCESSED)},
     .n = 1},
    {"a reset", "reset", .say = {C(.type = EXSI_CTL_RESET, .len = 5)}, .n = 1, .error = ECONNRESET},
    {"FIN at the wrong place", "seq", .say = {C(.type = EXSI_CTL_FIN, .seq = 3)}, .n = 1},
    {"two FINs", "second FIN", .say = {C(.type = EXSI_CTL_FIN), C(.type = EXSI_CTL_FIN)}, .n = 2},
    {"data behind FIN", "behind FIN", .say = {C(.type = EXSI_CTL_FIN), W(1, 0, 4)}, .n = 2},
    {"ADVERT with id 0", "id 0", .say = {ADVERT(0)}, .n = 1},
    {"ADVERT twice", "id", .say = {ADVERT(3), ADVERT(3)}, .n = 2},
    {"an id that comes again later", "id", .say = {ADVERT(3), ADVERT(1), ADVERT(3)}, .n = 3},
    {"too many ADVERTs", "advertisements", .say = {ADVERT(1), ADVERT(2), ADVERT(3), ADVERT(4)}, .n = 4},
    {"ADVERT from the future", "seq", .say = {C(.type = EXSI_CTL_ADVERT, .id = 1, .len = 8, .seq = 1)}, .n = 1},
    {"ADVERT that wraps", "wraps", .say = {C(.type = EXSI_CTL_ADVERT, .id = 1, .addr = UINT64_MAX, .len = 8)}, .n = 1},
    {"an empty ADVERT", "len", .say = {C(.type = EXSI_CTL_ADVERT, .id = 1)}, .n = 1},
    {"ind beyond what was sent", "ind", .say = {C(.type = EXSI_CTL_ADVERT, .id = 1, .len = 8, .ind = 1)}, .n = 1},
    {"freed beyond what was sent", "freed", .say = {C(.type = EXSI_CTL_ACK, .freed = 1)}, .n = 1},
    {"too many REVOKEs", "REVOKE", .say = {C(.type = EXSI_CTL_REVOKE, .id = 1)}, .n = 1, .repeat = 12},
    {"direct data unasked", "without an advertisement", .say = {W(0, 0, 4)}, .n = 1},
    {"direct data that is too long", "count", .receive = 100, .say = {CREDIT, W(0, 0, 101)}, .n = 2},
    {"more than the ring holds", "count", .say = {CREDIT, W(1, 0, 20)}, .n = 2},
    {"more than the ring has free", "count", .say = {CREDIT, W(1, 0, 10), W(1, 0, 7)}, .n = 3},
    {"end of message on a stream", "end of message", .say = {W(1, 1, 4)}, .n = 1},
    {"LENGTH on a stream", "LENGTH", .say = {C(.type = EXSI_CTL_LENGTH, .seq = 4)}, .n = 1},
    {"RING again", "RING", .say = {C(.type = EXSI_CTL_RING, .addr = 1, .rkey = 1, .len = 16)}, .n = 1},
    {"seqpacket: indirect data", "indirect", true, 100, {CREDIT, W(1, 1, 4)}, 2, 0, 0},
    {"seqpacket: a message unasked", "without an advertisement", true, 0, {CREDIT, W(0, 1, 4)}, 2, 0, 0},
    {"seqpacket: a message too long", "count", true, 100, {CREDIT, W(0, 0, 60), W(0, 1, 41)}, 3, 0, 0},
    {"seqpacket: LENGTH twice",
     "LENGTH",
     true,
     0,
     {C(.type = EXSI_CTL_LENGTH, .seq = 4), C(.type = EXSI_CTL_LENGTH, .seq = 4)},
     2,
     0,
     0},
    {"seqpacket: LENGTH inside",
     "LENGTH",
     true,
     100,
     {CREDIT, W(0, 0, 4), C(.type = EXSI_CTL_LENGTH, .seq = 4)},
     3,
     0,
     0},
    {"seqpacket: LENGTH of what fits",
     "LENGTH",
     true,
     100,
     {CREDIT, C(.type = EXSI_CTL_LENGTH, .seq = 200), W(0, 1, 4)},
     3,
     0,
     0},
    {"seqpacket: FIN inside", "FIN", true, 100, {CREDIT, W(0, 0, 4), C(.type = EXSI_CTL_FIN)}, 3, 0, 0},
    {"seqpacket: RING", "RING", true, 0, {C(.type = EXSI_CTL_RING, .addr = 1, .rkey = 1, .len = 16)}, 1, 0, 0},
    {"seqpacket: ind", "ind", true, 0, {C(.type = EXSI_CTL_ADVERT, .id = 1, .ind = 1, .len = 8)}, 1, 0, 0},
};

static void judge(const struct crime *c, bool immediate)
{
    struct exsi_engine_config cfg[2];
    struct sim_options opt = {.max_msg = 1 << 20, .immediate = immediate};
    uint64_t op;
    for (int i = 0; i < 2; i++)
        cfg[i] = (struct exsi_engine_config){.ring_bytes = 16, .max_adverts = 3, .recv_slots = 8};
    pair_connect(&p, c->packets ? &exsi_engine_seqpacket : &exsi_engine_stream, cfg, &opt, 3);
    /* Side 1 is the victim; what side 0 really sends is not delivered.  It has not been spoken to: the
     * words of the crime are the first that it hears. */
    struct side *v = &p.side[1];
    if (c->receive) must(pair_post(&p, 1, EXSI_OP_RECV, v->memory, c->receive, 0, EXSI_OPF_WAITALL, 1, &op) == 0);
    for (int i = 0; i < c->n + c->repeat && v->ep->state < EXSI_EP_FAILING; i++) {
        const struct saying *s = &c->say[i < c->n ? i : c->n - 1];
        if (s->c.type == 0)
            pair_say_word(&p, 1, s->word);
        else
            pair_say(&p, 1, &s->c);
    }
    int error = v->ep->error;
    bool named = pair_logged(&p, c->log) > 0;
    pair_run(&p);
    (void)pair_logged(&p, "");
    struct exsi_event ev;
    int events = 0;
    while (pair_event(&p, 1, &ev)) events++;
    ok(error == (c->error ? c->error : EPROTO) && named && events == (c->receive != 0) && v->dead_reports == 1, "%s%s",
       c->name, immediate ? ", immediate data" : "");
    pair_drop(&p);
}

/* A hello of another kind never gets that far: test_wire and test_stream. */
static void test_immediate_unasked(void)
{
    struct exsi_engine_config cfg[2];
    struct sim_options opt = {.max_msg = 1 << 20};
    uint32_t word = 5;
    pair_config(&cfg[0]);
    pair_config(&cfg[1]);
    pair_connect(&p, &exsi_engine_stream, cfg, &opt, 3);
    p.side[1].ep->engine->on_recv(p.side[1].ep, NULL, 0, &word);
    ok(p.side[1].ep->error == EPROTO && pair_logged(&p, "immediate") > 0, "immediate data that was not agreed on");
    pair_run(&p);
    pair_drop(&p);
}

/* What looks odd and is allowed. */
static void test_innocent(void)
{
    struct exsi_engine_config cfg[2];
    struct sim_options opt = {.max_msg = 1 << 20};
    pair_config(&cfg[0]);
    pair_config(&cfg[1]);
    pair_connect(&p, &exsi_engine_stream, cfg, &opt, 3);
    struct exsi_control says[] = {{.type = EXSI_CTL_REVOKE, .id = 77},
                                  {.type = EXSI_CTL_REVOKED, .id = 78},
                                  {.type = EXSI_CTL_PING, .seq = 9},
                                  {.type = EXSI_CTL_PONG},
                                  {.type = EXSI_CTL_ACK},
                                  {.type = EXSI_CTL_CREDIT}};
    for (size_t i = 0; i < sizeof says / sizeof *says; i++) pair_say(&p, 1, &says[i]);
    ok(p.side[1].ep->error == 0, "unknown ids in REVOKE and REVOKED, PING, PONG, an ACK of nothing");
    ok(sim_in_flight(p.side[1].ep->qp) == 2, "REVOKE and PING are answered");
    exsi_ep_fail(p.side[1].ep, ECONNABORTED, "the test is over");
    pair_run(&p);
    pair_drop(&p);
}

int main(void)
{
    pair_open(&p);
    p.ctx->log.threshold = EXSI_LOG_WARNING;
    for (size_t i = 0; i < sizeof crimes / sizeof *crimes; i++) judge(&crimes[i], i % 2);
    test_immediate_unasked();
    test_innocent();
    pair_close(&p);
    return tap_done();
}
