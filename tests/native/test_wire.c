// SPDX-License-Identifier: MIT OR Apache-2.0
/* Our own wire format, byte by byte: what is encoded stands where docs/wire/exs.md says, and what a
 * decoder must refuse is refused with a reason. */
#include <string.h>

#include "tap.h"
#include "wire/exs_wire.h"

static const struct exsi_hello hello = {
    .version = 1,
    .min_version = 1,
    .flags = EXSI_HELLO_STREAM | EXSI_HELLO_IMMEDIATE,
    .ring_addr = 0x0102030405060708,
    .ring_rkey = 0x11121314,
    .ring_len = 0x00100000,
    .credits = 64,
    .max_adverts = 32,
    .max_transfer = 0x10000000,
    .cookie = 0x2122232425262728,
};

static const uint8_t hello_bytes[EXSI_HELLO_LEN] = {
    0x45, 0x58, 0x53, 0x31, 1, 1,  0, 5,  1,    2, 3, 4, 5,    6,    7,    8,    0x11, 0x12, 0x13, 0x14,
    0,    0x10, 0,    0,    0, 64, 0, 32, 0x10, 0, 0, 0, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
};

static const struct exsi_control control = {
    .type = EXSI_CTL_ADVERT,
    .flags = EXSI_CTLF_WAITALL | EXSI_CTLF_FIN_PROCESSED,
    .credits = 0x0102,
    .id = 0x03040506,
    .freed = 0x0708090a0b0c0d0e,
    .addr = 0x1011121314151617,
    .rkey = 0x18191a1b,
    .len = 0x1c1d1e1f,
    .ind = 0x2021222324252627,
    .seq = 0x28292a2b2c2d2e2f,
};

static const uint8_t control_bytes[EXSI_CONTROL_LEN] = {
    1,    3,    1,    2,    3,    4,    5,    6,    7,    8,    9,    10,   11,   12,   13,   14,
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
    0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f,
};

static void test_hello(void)
{
    uint8_t wire[EXSI_HELLO_LEN + 40];
    struct exsi_hello got;
    const char *why;
    memset(wire, 0xff, sizeof wire);
    exsi_hello_encode(&hello, wire);
    ok(memcmp(wire, hello_bytes, EXSI_HELLO_LEN) == 0, "hello: golden bytes");
    ok(exsi_hello_decode(wire, sizeof wire, &got, &why) == 0, "hello: what follows it is ignored");
    ok(got.ring_addr == hello.ring_addr && got.ring_rkey == hello.ring_rkey && got.ring_len == hello.ring_len &&
           got.credits == 64 && got.max_adverts == 32 && got.max_transfer == hello.max_transfer &&
           got.cookie == hello.cookie && got.flags == hello.flags,
       "hello: every field comes back");
    bool refused = true;
    for (size_t n = 0; n < EXSI_HELLO_LEN; n++) refused &= exsi_hello_decode(wire, n, &got, &why) == -EPROTO;
    ok(refused, "hello: fewer than 56 bytes are refused");
    wire[45] = 7;
    ok(exsi_hello_decode(wire, EXSI_HELLO_LEN, &got, &why) == 0, "hello: the reserved end is not looked at");
}

static bool hello_refused(const struct exsi_hello *h)
{
    uint8_t wire[EXSI_HELLO_LEN];
    struct exsi_hello got;
    const char *why = NULL;
    exsi_hello_encode(h, wire);
    return exsi_hello_decode(wire, sizeof wire, &got, &why) == -EPROTO && why;
}

static void test_hello_refusals(void)
{
    uint8_t wire[EXSI_HELLO_LEN];
    struct exsi_hello h, got;
    const char *why = NULL;
#define refuse(change, name)                                                                                           \
    h = hello;                                                                                                         \
    change;                                                                                                            \
    ok(hello_refused(&h), "hello: " name)
    refuse(h.version = 0, "version 0");
    refuse((h.version = 3, h.min_version = 2), "only newer versions");
    refuse(h.min_version = 2, "an empty range of versions");
    refuse(h.min_version = 0, "lowest version 0");
    refuse(h.flags = 0, "no socket type");
    refuse(h.flags = EXSI_HELLO_STREAM | EXSI_HELLO_SEQPACKET, "two socket types");
    refuse(h.credits = 7, "seven credits");
    refuse(h.max_adverts = 0, "no advertisements");
    refuse(h.max_transfer = 0, "no transfer");
    refuse(h.ring_len = 0, "a stream without a ring");
    refuse(h.flags = EXSI_HELLO_SEQPACKET, "a seqpacket with a ring");
    refuse(h.ring_addr = UINT64_MAX - 10, "a ring that wraps");
#undef refuse
    h = hello;
    h.version = 7;
    ok(!hello_refused(&h), "hello: a newer version that can do ours is welcome");
    memcpy(wire, hello_bytes, sizeof wire);
    wire[3] = '2';
    ok(exsi_hello_decode(wire, sizeof wire, &got, &why) == -EPROTO && why, "hello: wrong magic");
}

static void test_control(void)
{
    uint8_t wire[EXSI_CONTROL_LEN + 1] = {0};
    struct exsi_control got;
    const char *why;
    exsi_control_encode(&control, wire);
    ok(memcmp(wire, control_bytes, EXSI_CONTROL_LEN) == 0, "control: golden bytes");
    ok(exsi_control_decode(wire, EXSI_CONTROL_LEN, &got, &why) == 0 && got.type == control.type &&
           got.flags == control.flags && got.credits == control.credits && got.id == control.id &&
           got.freed == control.freed && got.addr == control.addr && got.rkey == control.rkey &&
           got.len == control.len && got.ind == control.ind && got.seq == control.seq,
       "control: every field comes back");
    bool refused = true;
    for (size_t n = 0; n <= sizeof wire; n++)
        if (n != EXSI_CONTROL_LEN) refused &= exsi_control_decode(wire, n, &got, &why) == -EPROTO;
    ok(refused, "control: any other length is refused");
    wire[1] = 0xff;
    ok(exsi_control_decode(wire, EXSI_CONTROL_LEN, &got, &why) == 0 && got.flags == 3,
       "control: unknown flags are ignored");
    int accepted = 0;
    for (int type = 0; type < 256; type++) {
        wire[0] = (uint8_t)type;
        accepted += exsi_control_decode(wire, EXSI_CONTROL_LEN, &got, &why) == 0;
    }
    ok(accepted == EXSI_CTL_RING, "control: the eleven types and no other");
}

static bool control_refused(uint8_t type, void (*change)(struct exsi_control *c))
{
    uint8_t wire[EXSI_CONTROL_LEN];
    struct exsi_control c = control, got;
    const char *why = NULL;
    c.type = type;
    change(&c);
    exsi_control_encode(&c, wire);
    return exsi_control_decode(wire, sizeof wire, &got, &why) == -EPROTO && why;
}

static void no_id(struct exsi_control *c)
{
    c->id = 0;
}
static void no_key(struct exsi_control *c)
{
    c->rkey = 0;
}
static void no_len(struct exsi_control *c)
{
    c->len = 0;
}
static void no_seq(struct exsi_control *c)
{
    c->seq = 0;
}
static void wrap(struct exsi_control *c)
{
    c->addr = UINT64_MAX - 5;
}

static void test_control_refusals(void)
{
    ok(control_refused(EXSI_CTL_ADVERT, no_id), "ADVERT: id 0");
    ok(control_refused(EXSI_CTL_ADVERT, wrap), "ADVERT: wraps");
    ok(!control_refused(EXSI_CTL_ADVERT, no_len), "ADVERT: may be empty (seqpacket)");
    ok(control_refused(EXSI_CTL_REVOKE, no_id), "REVOKE: id 0");
    ok(control_refused(EXSI_CTL_REVOKED, no_id), "REVOKED: id 0");
    ok(control_refused(EXSI_CTL_RING, no_key), "RING: no key");
    ok(control_refused(EXSI_CTL_RING, no_len), "RING: empty");
    ok(control_refused(EXSI_CTL_RING, wrap), "RING: wraps");
    ok(control_refused(EXSI_CTL_LENGTH, no_seq), "LENGTH: 0");
}

static void test_word(void)
{
    enum exsi_word_kind kind;
    bool end;
    uint32_t count;
    const char *why = NULL;
    ok(exsi_word(EXSI_WORD_INDIRECT, false, 5) == 0x40000005, "word: indirect");
    ok(exsi_word(EXSI_WORD_DIRECT, true, 0) == 0x20000000, "word: end of an empty message");
    ok(exsi_word_decode(exsi_word(EXSI_WORD_INDIRECT, true, EXSI_WORD_MAX_COUNT), &kind, &end, &count, &why) == 0 &&
           kind == EXSI_WORD_INDIRECT && end && count == EXSI_WORD_MAX_COUNT,
       "word: every field comes back");
    ok(exsi_word_decode(0, &kind, &end, &count, &why) == -EPROTO && why, "word: count 0 without end");
    ok(exsi_word_decode(0x80000001, &kind, &end, &count, &why) == -EPROTO, "word: kind 2");
    ok(exsi_word_decode(0xc0000001, &kind, &end, &count, &why) == -EPROTO, "word: kind 3");
}

int main(void)
{
    test_hello();
    test_hello_refusals();
    test_control();
    test_control_refusals();
    test_word();
    return tap_done();
}
