// SPDX-License-Identifier: MIT OR Apache-2.0
/* MPA set-up frames and soft's block: bytes as the RFCs and docs/wire/soft.md say, and what is refused. */
#include <string.h>

#include "device/soft/mpa.h"
#include "tap.h"

static void test_layout(void)
{
    uint8_t out[MPA_FRAME_TX];
    struct mpa_frame f = {.crc = true, .revision = 2, .enhanced = true, .ird = 1, .ord = 0x3fff};
    uint32_t len = mpa_encode(&f, "abc", 3, NULL, out);
    /* RFC 5044 §7.1.1 and RFC 6581 §6, byte by byte. */
    static const uint8_t expect[] = "MPA ID Req Frame\x50\x02\x00\x07\x00\x01\x3f\xff"
                                    "abc";
    ok(len == 27 && memcmp(out, expect, 27) == 0, "request of revision 2 with read depths");
    f = (struct mpa_frame){.reply = true, .reject = true, .markers = true, .revision = 1};
    len = mpa_encode(&f, NULL, 0, NULL, out);
    ok(len == 20 && memcmp(out, "MPA ID Rep Frame\xa0\x01\x00\x00", 20) == 0, "rejecting reply of revision 1");
    struct soft_block block = {0};
    uint8_t upper[MPA_UPPER_MAX] = {0};
    f = (struct mpa_frame){.revision = 2, .enhanced = true, .ird = 1, .ord = 1};
    ok(mpa_encode(&f, upper, sizeof upper, &block, out) == MPA_FRAME_TX,
       "the longest frame has 256 bytes of private data");
}

static int decode(bool reply, const void *frame, struct mpa_frame *f, uint32_t *rest)
{
    const char *why = NULL;
    uint8_t head[MPA_HEADER_LEN];
    memcpy(head, frame, sizeof head);
    int rc = mpa_decode_header(reply, head, f, rest, &why);
    if ((rc == 0) != (why == NULL)) return -EINVAL;
    return rc;
}

/* RFC 5044 §7.1.1, RFC 6581 §6, §9.1 */
static void test_decode(void)
{
    struct mpa_frame f;
    uint32_t rest;
    const uint8_t *private_data;
    const char *why;
    ok(decode(false, "MPA ID Req Frame\x50\x02\x00\x07", &f, &rest) == 0 && rest == 7 && f.crc && f.enhanced &&
           !f.markers,
       "header of a request");
    ok(mpa_decode_rest(&f,
                       (const uint8_t *)"\x80\x01\x3f\xff"
                                        "abc",
                       7, &private_data, &why) == 0 &&
           f.ird == 1 && f.ord == 0x3fff && f.peer_to_peer && f.private_len == 3 && memcmp(private_data, "abc", 3) == 0,
       "depths and private data");
    ok(decode(true, "MPA ID Rep Frame\xa0\x01\x00\x00", &f, &rest) == 0 && f.reject && f.markers && !f.enhanced,
       "header of a reply");
    ok(decode(false, "MPA ID Req Frame\x10\x01\x00\x00", &f, &rest) == 0 && !f.enhanced,
       "revision 1 has no read depths, whatever the reserved bit says");
    ok(decode(false, "MPA ID Rep Frame\x00\x01\x00\x00", &f, &rest) == -EPROTO, "a reply is no request");
    ok(decode(true, "MPA ID Req Frame\x00\x01\x00\x00", &f, &rest) == -EPROTO, "a request is no reply");
    ok(decode(false, "MPA ID Req Frame\x20\x01\x00\x00", &f, &rest) == -EPROTO, "a request cannot reject");
    ok(decode(false, "MPA ID Req Frame\x00\x00\x00\x00", &f, &rest) == -EPROTO, "revision 0");
    ok(decode(false, "MPA ID Req Frame\x00\x03\x00\x00", &f, &rest) == -EPROTO, "revision 3");
    ok(decode(false, "MPA ID Req Frame\x00\x01\x02\x00", &f, &rest) == 0 && rest == 512, "512 bytes of private data");
    ok(decode(false, "MPA ID Req Frame\x00\x01\x02\x01", &f, &rest) == -EPROTO, "513 bytes of private data");
    ok(decode(false, "MPA ID Req Frame\x10\x02\x00\x03", &f, &rest) == -EPROTO, "read depths that do not fit");
    ok(mpa_key_matches(false, (const uint8_t *)"MPA I", 5) && !mpa_key_matches(false, (const uint8_t *)"MPB", 3) &&
           mpa_key_matches(true, (const uint8_t *)"", 0),
       "the beginning of a key");
}

static void test_block(void)
{
    struct soft_block in = {.flags = SOFT_BLOCK_SHM | SOFT_BLOCK_RAW,
                            .why = 7,
                            .probe_addr = 0x1122334455667788u,
                            .pid_hint = 99,
                            .name_len = SOFT_NAME_MAX,
                            .raw_src_qpn = 1,
                            .raw_dst_qpn = 2,
                            .raw_src_psn = 3,
                            .raw_dst_psn = 0xffffff},
                      out;
    for (int i = 0; i < SOFT_TOKEN_LEN; i++) in.token[i] = (uint8_t)(i + 1);
    for (int i = 0; i < SOFT_NAME_MAX; i++) in.name[i] = (uint8_t)(200 + i);
    uint8_t bytes[300] = "upper layer";
    uint32_t upper;
    soft_block_encode(&in, bytes + 56);
    ok(soft_block_decode(bytes, 56 + SOFT_BLOCK_LEN, &out, &upper) && upper == 56, "found behind 56 bytes");
    ok(out.flags == in.flags && out.why == 7 && out.probe_addr == in.probe_addr && out.pid_hint == 99 &&
           out.name_len == SOFT_NAME_MAX && memcmp(out.token, in.token, SOFT_TOKEN_LEN) == 0 &&
           memcmp(out.name, in.name, SOFT_NAME_MAX) == 0 && out.raw_src_qpn == 1 && out.raw_dst_qpn == 2 &&
           out.raw_src_psn == 3 && out.raw_dst_psn == 0xffffff,
       "every field comes back");
    ok(!soft_block_decode(bytes, 56 + SOFT_BLOCK_LEN - 1, &out, &upper) && upper == 56 + SOFT_BLOCK_LEN - 1,
       "cut short: no block, all is the upper layer's");
    ok(!soft_block_decode(bytes + 60, SOFT_BLOCK_LEN - 4, &out, &upper), "not there at all");
    bytes[56 + SOFT_BLOCK_LEN - 8] = 1; /* length 360: longer than what came */
    ok(!soft_block_decode(bytes, 56 + SOFT_BLOCK_LEN, &out, &upper), "longer than the private data");
    soft_block_encode(&in, bytes + 56);
    bytes[56 + 35] = SOFT_NAME_MAX + 1;
    ok(!soft_block_decode(bytes, 56 + SOFT_BLOCK_LEN, &out, &upper), "a name longer than its field");
    soft_block_encode(&in, bytes + 56);
    bytes[56 + SOFT_BLOCK_LEN - 1] ^= 1;
    ok(!soft_block_decode(bytes, 56 + SOFT_BLOCK_LEN, &out, &upper), "another magic");
    soft_block_encode(&in, bytes + 56);
    bytes[56 + SOFT_BLOCK_LEN - 6] = 9; /* version */
    bytes[56 + SOFT_BLOCK_LEN - 7] += 16;
    ok(soft_block_decode(bytes, 56 + SOFT_BLOCK_LEN, &out, &upper) && upper == 40 && out.pid_hint == 99,
       "a later version may be longer in front");
}

static void test_quote(void)
{
    char out[MPA_QUOTE_MAX];
    mpa_quote((const uint8_t *)"HTTP/1.1 400 Bad Request", 24, out);
    ok(strcmp(out, "\"HTTP/1.1 400 Bad\"") == 0, "text is quoted as it is");
    uint8_t nasty[16];
    memset(nasty, 0xff, sizeof nasty);
    mpa_quote(nasty, sizeof nasty, out);
    ok(strlen(out) == 66, "bytes are quoted in hexadecimal, and fit");
    mpa_quote((const uint8_t *)"a\"\\\n", 4, out);
    ok(strcmp(out, "\"a\\x22\\x5c\\x0a\"") == 0, "quotes cannot be closed from inside");
}

int main(void)
{
    test_layout();
    test_decode();
    test_block();
    test_quote();
    return tap_done();
}
