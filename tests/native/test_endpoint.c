// SPDX-License-Identifier: MIT OR Apache-2.0
/* The endpoint by itself, under an engine that only takes notes: receives come back before the engine
 * sees a message, the account of the send queue, room, and the order of the end. */
#include <string.h>

#include "sim/pair.h"
#include "tap.h"

static struct pair p;

struct notes {
    uint32_t up, recvs, words, writes, failed_writes, rooms, errors, invalidated;
    uint64_t last_write;
    bool ordered;
    uint32_t last_len;
    uint8_t last[EXSI_CONTROL_LEN];
    bool answer; /* answer every message with one */
    bool fill;   /* on room: fill the queue again */
};

static struct notes notes[2];

static struct notes *of(const struct exsi_endpoint *ep)
{
    return &notes[ep == p.side[1].ep];
}

static void ep_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out)
{
    *out = (struct exsi_ep_attr){.recv_slots = cfg->recv_slots, .recv_slot_len = EXSI_CONTROL_LEN, .send_wr = 16};
}
static int ep_open(struct exsi_endpoint *ep, const struct exsi_engine_config *cfg)
{
    return (void)ep, (void)cfg, 0;
}
static void ep_close(struct exsi_endpoint *ep)
{
    (void)ep;
}
static void on_up(struct exsi_endpoint *ep)
{
    of(ep)->up++;
}

static void on_recv(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word)
{
    struct notes *n = of(ep);
    n->recvs++;
    n->words += word != NULL;
    n->last_len = len;
    memcpy(n->last, data, len);
    if (n->answer && exsi_ep_room(ep, 1)) must(exsi_ep_send(ep, "ok", 2, false) == 0);
}
static void on_write_done(struct exsi_endpoint *ep, uint64_t id, int error)
{
    struct notes *n = of(ep);
    n->writes += error == 0;
    n->failed_writes += error != 0;
    n->ordered &= id == n->last_write + 1;
    n->last_write = id;
}
static void on_invalidated(struct exsi_endpoint *ep, uint64_t id)
{
    (void)id;
    of(ep)->invalidated++;
}
static void on_room(struct exsi_endpoint *ep)
{
    of(ep)->rooms++;
    while (of(ep)->fill && exsi_ep_room(ep, 1)) must(exsi_ep_send(ep, "more", 4, false) == 0);
}
static void on_error(struct exsi_endpoint *ep)
{
    of(ep)->errors++;
    must(ep->state == EXSI_EP_DEAD);
}
static int attach(struct exsi_attach *at)
{
    at->flow = at->ep;
    return 0;
}
static void detach(struct exsi_attach *at)
{
    at->flow = NULL;
}

static void on_flush(struct exsi_endpoint *ep)
{
    (void)ep;
}

static const struct exsi_engine_ops engine = {
    .before_flush = on_flush,
    .name = "notes",
    .ep_attr = ep_attr,
    .ep_open = ep_open,
    .ep_close = ep_close,
    .on_up = on_up,
    .on_recv = on_recv,
    .on_write_done = on_write_done,
    .on_invalidated = on_invalidated,
    .on_room = on_room,
    .on_error = on_error,
    .attach = attach,
    .detach = detach,
};

static void start(bool immediate, uint32_t slots)
{
    struct sim_options opt = {.immediate = immediate, .max_msg = 1 << 20, .async_percent = 100};
    struct exsi_engine_config cfg = {.recv_slots = slots};
    memset(notes, 0, sizeof notes);
    notes[0].ordered = notes[1].ordered = true;
    sim_set(p.sim, &opt, 5);
    for (int i = 0; i < 2; i++) {
        pair_make_side(&p, i, &engine, &cfg);
        p.side[i].ep->immediate = immediate;
    }
    sim_link(p.side[0].ep->qp, p.side[1].ep->qp);
    exsi_ep_up(p.side[0].ep);
    exsi_ep_up(p.side[1].ep);
    exsi_ep_up(p.side[1].ep);
}

static void test_messages(void)
{
    start(false, 16);
    struct exsi_endpoint *ep = p.side[0].ep;
    ok(notes[0].up == 1 && notes[1].up == 1, "on_up, once");
    must(exsi_ep_send(ep, "hello", 5, true) == 0);
    ok(!exsi_list_empty(&ep->dirty_node), "a post makes the endpoint dirty");
    pair_run(&p);
    ok(exsi_list_empty(&ep->dirty_node) && notes[1].recvs == 1 && notes[1].last_len == 5 &&
           !memcmp(notes[1].last, "hello", 5),
       "a message arrives as a copy");
    uint8_t large[128] = {0};
    ok(exsi_ep_send(ep, large, sizeof large, false) == -EMSGSIZE && ep->state == EXSI_EP_UP,
       "longer than what is copied: refused");
    pair_drop(&p);
}

/* Eight receives, and a thousand messages each way that cross: each slot is posted again before the engine answers. */
static void test_repost(void)
{
    start(false, 8);
    notes[1].answer = true;
    for (int i = 0; i < 1000; i++) {
        must(exsi_ep_send(p.side[0].ep, "x", 1, false) == 0);
        pair_run(&p);
    }
    ok(notes[1].recvs == 1000 && notes[0].recvs == 1000 && !sim_violation(p.sim), "slots come back at once");
    ok(p.side[0].ep->sq_used < 16 / 4, "unsignalled sends are retired by every fourth of the queue");
    pair_drop(&p);
}

static void write_to(int from, uint64_t id, uint32_t at, uint32_t len, uint32_t rkey)
{
    struct side *a = &p.side[from], *b = &p.side[1 - from];
    must(exsi_ep_write(a->ep, id, a->memory + at, len, a->dmr, (uint64_t)(uintptr_t)b->memory + at, rkey,
                       0x40000000 | len) == 0);
}

static void test_writes(bool immediate)
{
    uint32_t rkey, cost;
    start(immediate, 64);
    must(exsi_ep_key_bind(p.side[1].ep, p.side[1].dmr, p.side[1].memory, 4096, &rkey) == 0);
    struct exsi_endpoint *ep = p.side[0].ep;
    memset(p.side[0].memory, 0x5a, 4096);
    memset(p.side[1].memory, 0, 4096);
    cost = exsi_ep_write_cost(ep);
    ok(cost == (immediate ? 1 : 2), "a WRITE with its notice costs %u", cost);
    uint32_t n = 0;
    for (; exsi_ep_room(ep, cost); n++) write_to(0, n + 1, n * 10, 10, rkey);
    ok(n == 16 / cost && ep->sq_used == n * cost, "as many as the queue holds");
    ok(notes[0].rooms == 0 && ep->room_wanted, "on_room is owed");
    pair_run(&p);
    ok(notes[0].writes == n && notes[0].ordered && notes[0].rooms > 0, "each completes, in order, and room comes back");
    ok(notes[1].recvs == n && notes[1].words == (immediate ? n : 0), "a notice each, %s",
       immediate ? "as immediate data" : "as a message");
    ok(p.side[1].memory[0] == 0x5a && p.side[1].memory[10 * n - 1] == 0x5a && !p.side[1].memory[10 * n], "the bytes");
    for (int i = 0; i < 50; i++) {
        must(exsi_ep_room(ep, cost));
        must(exsi_ep_write(ep, 0, NULL, 0, NULL, 0, 0, 0x20000000) == 0);
        pair_run(&p);
    }
    ok(notes[0].writes == n && notes[1].recvs == n + 50, "a notice alone has no completion of its own");
    must(exsi_ep_write_silent(ep, n + 1, p.side[0].memory, 10, p.side[0].dmr, (uint64_t)(uintptr_t)p.side[1].memory,
                              rkey) == 0);
    pair_run(&p);
    ok(notes[0].writes == n + 1 && notes[1].recvs == n + 50, "a silent WRITE has no notice");
    ok(exsi_ep_key_invalidate(p.side[1].ep, rkey, 3) == 1, "a key takes its time to end");
    pair_run(&p);
    ok(notes[1].invalidated == 1 && sim_keys(p.side[1].ep->qp) == 0, "and the engine is told");
    pair_drop(&p);
}

static void test_flood(void)
{
    start(false, 64);
    notes[0].fill = true;
    while (exsi_ep_room(p.side[0].ep, 1)) must(exsi_ep_send(p.side[0].ep, "fill", 4, false) == 0);
    for (int i = 0; i < 2000; i++) pair_step(&p);
    ok(notes[1].recvs > 200 && !sim_violation(p.sim), "on_room keeps a full queue going: %u messages", notes[1].recvs);
    pair_drop(&p);
}

static void test_end(void)
{
    uint32_t rkey;
    start(false, 16);
    must(exsi_ep_key_bind(p.side[1].ep, p.side[1].dmr, p.side[1].memory, 4096, &rkey) == 0);
    struct exsi_endpoint *ep = p.side[0].ep;
    write_to(0, 1, 0, 10, rkey);
    write_to(0, 2, 10, 10, rkey);
    must(exsi_ep_send(ep, "late", 4, false) == 0);
    exsi_ep_fail(ep, EIO, "because %d", 1);
    exsi_ep_fail(ep, EPROTO, "this comes second");
    ok(ep->error == EIO && ep->state == EXSI_EP_FAILING && notes[0].errors == 0,
       "the first error counts, the end is not there yet");
    ok(exsi_ep_send(ep, "no", 2, false) == -EPIPE, "nothing can be posted any more");
    pair_run(&p);
    ok(notes[0].failed_writes == 2 && notes[0].errors == 1 && ep->state == EXSI_EP_DEAD,
       "writes are flushed, then on_error, once");
    ok(notes[1].errors == 1 && p.side[1].ep->error == ECONNRESET, "the peer sees a reset");
    exsi_ep_disconnected(ep, EIO);
    ok(notes[0].errors == 1, "and never again");
    pair_drop(&p);

    start(false, 16);
    write_to(0, 1, 0, 10, 12345);
    pair_run(&p);
    ok(p.side[0].ep->error == EPROTO && notes[0].errors == 1,
       "a write behind a wrong key ends the connection with EPROTO");
    pair_drop(&p);

    start(false, 16);
    must(exsi_ep_send(p.side[0].ep, "last words", 10, false) == 0);
    exsi_group_flush(p.group);
    pair_disconnect(&p);
    pair_run(&p);
    ok(notes[1].recvs == 1 && p.side[0].ep->error == 0 && p.side[1].ep->error == 0 && notes[1].errors == 1,
       "an end in order: no error, and nothing is lost");
    pair_drop(&p);
}

int main(void)
{
    pair_open(&p);
    test_messages();
    test_repost();
    test_writes(false);
    test_writes(true);
    test_flood();
    test_end();
    pair_close(&p);
    return tap_done();
}
