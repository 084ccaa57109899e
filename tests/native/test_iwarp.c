// SPDX-License-Identifier: MIT OR Apache-2.0
/* DDP and RDMAP headers: bytes as the RFCs say, there and back, and what is refused with which words. */
#include <string.h>

#include "device/soft/iwarp.h"
#include "tap.h"

/* RFC 5044 §4.1 */
static void test_layout(void)
{
    uint8_t out[IWARP_UNTAGGED_LEN];
    struct iwarp_segment write = {.tagged = true,
                                  .last = true,
                                  .opcode = IWARP_WRITE,
                                  .payload = 1000,
                                  .stag = 0x01020304,
                                  .to = 0x1122334455667788u};
    static const uint8_t expect_write[] = {0x03, 0xf6, 0xc1, 0x40, 1,    2,    3,    4,
                                           0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};
    ok(iwarp_encode(&write, out) == 16 && memcmp(out, expect_write, 16) == 0, "RFC 5041 §4.1, §4.2: tagged, last");
    struct iwarp_segment send = {.opcode = IWARP_SEND_SE, .payload = 4, .qn = 0, .msn = 5, .mo = 6};
    static const uint8_t expect_send[] = {0, 22, 0x01, 0x45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6};
    ok(iwarp_encode(&send, out) == 20 && memcmp(out, expect_send, 20) == 0, "RFC 5041 §4.3: untagged, not last");
    uint8_t trailer[IWARP_TRAILER_MAX];
    static const uint8_t expect_trailer[] = {0, 0, 0x04, 0x03, 0x02, 0x01};
    ok(iwarp_put_trailer(22, 0x01020304, trailer) == 6 && memcmp(trailer, expect_trailer, 6) == 0,
       "two bytes of padding, and the CRC with its low byte first as in iSCSI");
    ok(iwarp_get_crc(trailer, 22) == 0x01020304, "and it is read the same way");
    ok(IWARP_MAX_TAGGED == 65521 && IWARP_MAX_UNTAGGED == 65517, "what the 16-bit length leaves for payload");
    for (uint32_t n = 16; n < 24; n++)
        if ((n + iwarp_trailer_len(n)) % 4 || iwarp_trailer_len(n) > IWARP_TRAILER_MAX) ok(false, "padding of %u", n);
}

static void test_round(void)
{
    bool same = true;
    for (uint32_t i = 0; i < 4000; i++) {
        uint8_t bytes[IWARP_UNTAGGED_LEN];
        struct iwarp_error err;
        struct iwarp_segment in = {.tagged = i & 1,
                                   .last = i & 2,
                                   .payload = (i * 7919) % 65000,
                                   .stag = i * 2654435761u},
                             out;
        in.opcode = in.tagged ? (i & 4 ? IWARP_WRITE : IWARP_READ_RESPONSE) : IWARP_SEND;
        if (in.tagged)
            in.to = (uint64_t)i << 33;
        else
            in.msn = i * 3, in.mo = i * 65537;
        iwarp_encode(&in, bytes);
        same &= iwarp_decode(bytes, &out, &err) == 0;
        if (!in.tagged) same &= iwarp_decode_rest(bytes + IWARP_TAGGED_LEN, &out, &err) == 0;
        same &= out.tagged == in.tagged && out.last == in.last && out.opcode == in.opcode &&
                out.payload == in.payload && out.stag == in.stag && out.to == in.to && out.qn == in.qn &&
                out.msn == in.msn && out.mo == in.mo;
    }
    ok(same, "4000 headers there and back");
}

struct refused {
    const char *name;
    uint8_t head[IWARP_TAGGED_LEN];
    struct iwarp_error err;
};

/* RFC 5040 §4.1, §4.2, RFC 5041 §5.3 */
static void test_refused(void)
{
    static const struct refused all[] = {
        {"DDP version of a tagged segment", {0, 14, 0xc2, 0x40}, {1, 1, 4}},
        {"DDP version of an untagged segment", {0, 18, 0x40, 0x43}, {1, 2, 6}},
        {"RDMAP version", {0, 14, 0xc1, 0x80}, {0, 2, 5}},
        {"a tagged FPDU shorter than its header", {0, 13, 0xc1, 0x40}, {2, 0, 3}},
        {"an untagged FPDU shorter than its header", {0, 17, 0x41, 0x43}, {2, 0, 3}},
        {"a tagged SEND", {0, 14, 0xc1, 0x43}, {0, 2, 6}},
        {"an untagged WRITE", {0, 18, 0x41, 0x40}, {0, 2, 6}},
        {"an opcode that is not defined", {0, 18, 0x41, 0x4c}, {0, 2, 6}},
        {"a SEND on queue 1", {0, 18, 0x41, 0x43, 0, 0, 0, 0, 0, 0, 0, 1}, {1, 2, 1}},
        {"a read request on queue 0", {0, 18, 0x41, 0x41}, {1, 2, 1}},
        {"a Terminate on queue 0", {0, 18, 0x41, 0x47}, {1, 2, 1}},
        {"an offset that wraps", {0, 22, 0xc1, 0x40, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 250}, {1, 1, 3}},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct iwarp_segment seg;
        struct iwarp_error err = {9, 9, 9};
        int rc = iwarp_decode(all[i].head, &seg, &err);
        ok(rc == -EPROTO && memcmp(&err, &all[i].err, sizeof err) == 0, "%s: %s (%u %u %u)", all[i].name,
           iwarp_error_text(&err), err.layer, err.etype, err.code);
    }
    struct iwarp_segment seg = {.payload = 16};
    struct iwarp_error err;
    static const uint8_t rest[4] = {0xff, 0xff, 0xff, 0xf0};
    ok(iwarp_decode_rest(rest, &seg, &err) == -EPROTO && err.code == IWARP_U_MO, "a message offset that wraps");
}

static void test_terminate(void)
{
    uint8_t out[IWARP_TERMINATE_MAX];
    struct iwarp_error err = {IWARP_LAYER_DDP, IWARP_DDP_TAGGED, IWARP_T_BOUNDS}, back;
    static const uint8_t header[16] = {0x03, 0xf6, 0xc1, 0x40, 1, 2, 3, 4};
    static const uint8_t expect[] = {0x11, 0x01, 0xc0, 0x00, 0x03, 0xf6, 0xc1, 0x40, 1, 2, 3, 4};
    ok(iwarp_terminate_encode(&err, header, 16, out) == 20 && memcmp(out, expect, sizeof expect) == 0,
       "RFC 5040 §4.8: control word, segment length, DDP header");
    ok(iwarp_terminate_decode(out, 20, &back) == 0 && memcmp(&err, &back, sizeof err) == 0, "and back");
    ok(iwarp_terminate_encode(&err, NULL, 0, out) == 4 && out[2] == 0, "without a header");
    ok(iwarp_terminate_decode(out, 3, &back) == -EPROTO, "too short");
    static const struct {
        uint8_t word[4];
        struct iwarp_error is;
        const char *name;
    } words[] = {
        {{0x12, 2}, {1, 2, 2}, "layer, then type"},
        {{0x21, 2}, {1, 2, 2}, "type, then layer, where only that makes sense"},
        {{0x02, 3}, {2, 0, 3}, "the same for MPA"},
        {{0x20, 2}, {2, 0, 2}, "a CRC error stays one"},
        {{0x10, 0}, {1, 0, 0}, "what makes sense both ways is taken as it stands"},
        {{0x3f, 7}, {3, 15, 7}, "and so is what makes none"},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        ok(iwarp_terminate_decode(words[i].word, 4, &back) == 0 && memcmp(&words[i].is, &back, sizeof back) == 0,
           "control word %02x %02x: %s", words[i].word[0], words[i].word[1], words[i].name);
    ok(iwarp_error_errno(&err) == -EPROTO, "a violation is EPROTO");
    err = (struct iwarp_error){IWARP_LAYER_RDMAP, IWARP_RDMAP_LOCAL, 0};
    ok(iwarp_error_errno(&err) == -ECONNRESET, "the peer's own trouble is ECONNRESET");
    bool text = true;
    for (uint32_t i = 0; i < 1u << 16; i++) {
        err = (struct iwarp_error){(uint8_t)(i & 15), (uint8_t)(i >> 4 & 15), (uint8_t)(i >> 8)};
        text &= iwarp_error_text(&err) != NULL && iwarp_error_errno(&err) < 0;
    }
    ok(text, "every code has words");
}

int main(void)
{
    test_layout();
    test_round();
    test_refused();
    test_terminate();
    return tap_done();
}
