// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: whatever messages a peer sends in whatever order, an engine ends the connection or goes on:
 * it breaks no assertion, gives every operation exactly one event, and reports no byte that did not fit.
 *
 * Input: options, then records of one command byte each: an operation of ours, some steps of the link, or
 * a message of the peer (raw bytes, or a control message with small fields so that they often fit). */
#include <stdlib.h>
#include <string.h>

#include "../native/sim/pair.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool holds)
{
    if (!holds) abort();
}

/* The peer's endpoint takes everything and says nothing: the input speaks for it. */
static void deaf_attr(const struct exsi_engine_config *cfg, struct exsi_ep_attr *out)
{
    (void)cfg;
    *out = (struct exsi_ep_attr){.recv_slots = 64, .recv_slot_len = EXSI_CONTROL_LEN, .send_wr = 64};
}
static void deaf_ep(struct exsi_endpoint *ep)
{
    (void)ep;
}
static void deaf_recv(struct exsi_endpoint *ep, const void *data, uint32_t len, const uint32_t *word)
{
    (void)ep, (void)data, (void)len, (void)word;
}
static void deaf_write(struct exsi_endpoint *ep, uint64_t id, int error)
{
    (void)ep, (void)id, (void)error;
}
static void deaf_key(struct exsi_endpoint *ep, uint64_t id)
{
    (void)ep, (void)id;
}
static const struct exsi_engine_ops deaf = {.name = "deaf",
                                            .ep_attr = deaf_attr,
                                            .on_up = deaf_ep,
                                            .before_flush = deaf_ep,
                                            .on_recv = deaf_recv,
                                            .on_write_done = deaf_write,
                                            .on_invalidated = deaf_key,
                                            .on_room = deaf_ep,
                                            .on_error = deaf_ep};

struct input {
    const uint8_t *at, *end;
};

static uint8_t next(struct input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

static struct {
    struct pair p;
    uint32_t posted, ended;
    uint64_t ops[64];
} f;

static void events(void)
{
    struct exsi_event ev;
    while (pair_event(&f.p, 0, &ev)) {
        f.ended++;
        require(f.ended <= f.posted && ev.value <= 64);
    }
}

static void operate(struct input *in, uint8_t what)
{
    uint8_t how = next(in);
    uint32_t i = f.posted % 64;
    struct side *s = &f.p.side[0];
    const struct exsi_engine_ops *e = s->ep->engine;
    switch (what % 6) {
    case 0:
    case 1: {
        uint32_t flags = how & 0x40 ? EXSI_OPF_WAITALL | EXSI_OPF_STRICT_SIZE : 0;
        enum exsi_op_kind kind = what & 1 ? EXSI_OP_RECV : EXSI_OP_SEND;
        if (f.posted - f.ended < 60 &&
            pair_post(&f.p, 0, kind, s->memory + 64 * i, how & 63, 0, flags, 0, &f.ops[i]) == 0)
            f.posted++;
        break;
    }
    case 2: pair_cancel(&f.p, 0, f.ops[how % 64]); break;
    case 3: e->shutdown_send(&s->at); break;
    case 4: e->shutdown_recv(&s->at); break;
    default: {
        uint8_t out[64];
        require(e->take(&s->at, out, how & 63, false) <= 63);
    }
    }
}

/* Fields near what is expected, so that many messages pass the first checks. */
static void speak(struct input *in, uint8_t what)
{
    struct exsi_endpoint *ep = f.p.side[0].ep;
    uint8_t wire[EXSI_CONTROL_LEN];
    if (ep->state >= EXSI_EP_FAILING) return;
    if (what & 0x20) {
        uint8_t kind = next(in);
        exsi_be32 w = exsi_put32((uint32_t)(kind & 7) << 29 | next(in));
        ep->engine->on_recv(ep, &w, sizeof w, NULL);
        return;
    }
    if (what & 0x10) {
        size_t n = exsi_min_u64((size_t)(in->end - in->at), sizeof wire);
        memcpy(wire, in->at, n);
        in->at += n;
        ep->engine->on_recv(ep, wire, (uint32_t)n, NULL);
        return;
    }
    struct exsi_control c = {.type = what & 15};
    c.flags = next(in) & 3;
    c.credits = next(in) & 7;
    c.id = next(in);
    c.freed = next(in);
    c.addr = next(in);
    c.rkey = next(in);
    c.len = next(in);
    c.ind = next(in);
    c.seq = next(in);
    exsi_control_encode(&c, wire);
    ep->engine->on_recv(ep, wire, sizeof wire, NULL);
}

static void connect_sides(const uint8_t opt[4])
{
    const struct exsi_engine_ops *engine = opt[0] & 1 ? &exsi_engine_seqpacket : &exsi_engine_stream;
    struct exsi_engine_config cfg = {.ring_bytes = 1 + opt[1] % 64, .max_adverts = 1 + opt[2] % 4, .recv_slots = 8};
    struct sim_options sim = {.async_percent = opt[0] & 2 ? 50 : 0, .max_msg = 1 << 20};
    struct exsi_hello h = {.version = 1,
                           .min_version = 1,
                           .flags = opt[0] & 1 ? EXSI_HELLO_SEQPACKET : EXSI_HELLO_STREAM,
                           .ring_len = opt[0] & 1 ? 0 : 1 + opt[3] % 64,
                           .ring_rkey = opt[0] & 4 ? 0 : 77,
                           .credits = 8 + opt[3] % 8,
                           .max_adverts = 1 + opt[3] % 3,
                           .max_transfer = 1 + opt[2]};
    char reason[EXSI_REASON_MAX];
    struct side *a = &f.p.side[0], *b = &f.p.side[1];
    sim_set(f.p.sim, &sim, opt[1] + 1);
    pair_make_side(&f.p, 0, engine, &cfg);
    struct exsi_ep_attr attr = {0};
    struct exsi_ep_memory memory;
    deaf_attr(&cfg, &attr);
    require(exsi_ep_memory_new(f.p.ctx, sim_device(f.p.sim), &attr, &memory) == 0);
    require(exsi_ep_new(f.p.group, sim_device(f.p.sim), &deaf, &attr, &memory, &b->stats, &b->ep) == 0);
    require(exsi_ep_make_qp(b->ep, NULL) == 0);
    require(engine->peer_hello(a->ep, &h, reason) == 0);
    sim_link(a->ep->qp, b->ep->qp);
    a->ep->active = opt[0] & 8;
    exsi_ep_up(a->ep);
    exsi_ep_up(b->ep);
}

static void drop_sides(void)
{
    struct side *a = &f.p.side[0], *b = &f.p.side[1];
    exsi_ep_fail(a->ep, ECONNABORTED, "the input is over");
    pair_run(&f.p);
    events();
    require(f.ended == f.posted && a->dead_reports == 1);
    pair_drop_side(&f.p, a);
    exsi_ep_free(b->ep);
    b->ep = NULL;
    exsi_group_reap(f.p.group);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 4 || len > 4096) return 0;
    struct input in = {data + 4, data + len};
    if (!f.p.ctx) pair_open(&f.p);
    f.posted = f.ended = 0;
    memset(f.ops, 0, sizeof f.ops);
    connect_sides(data);
    while (in.at < in.end) {
        uint8_t what = next(&in);
        if (what & 0x80)
            operate(&in, what & 0x7f);
        else if (what & 0x40)
            for (int i = what & 15; i >= 0; i--) pair_step(&f.p);
        else
            speak(&in, what);
        exsi_group_flush(f.p.group);
        events();
    }
    drop_sides();
    return 0;
}
