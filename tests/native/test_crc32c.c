// SPDX-License-Identifier: MIT OR Apache-2.0
/* CRC32C: the vectors of RFC 3720 B.4, and the fast one against the table. */
#include <string.h>

#include "base/crc32c.h"
#include "tap.h"

static void test_known_values(void)
{
    uint8_t data[32];
    memset(data, 0, sizeof data);
    ok(exsi_crc32c(0, data, 32) == 0x8a9136aa, "32 bytes of zero");
    memset(data, 0xff, sizeof data);
    ok(exsi_crc32c(0, data, 32) == 0x62a8ab43, "32 bytes of ones");
    for (uint8_t i = 0; i < 32; i++) data[i] = i;
    ok(exsi_crc32c(0, data, 32) == 0x46dd794e, "32 incrementing bytes");
    ok(exsi_crc32c(0, "123456789", 9) == 0xe3069283, "the check value");
    ok(exsi_crc32c_soft(0, "123456789", 9) == 0xe3069283, "the check value by the table");
    ok(exsi_crc32c(0, data, 0) == 0, "nothing");
}

static void test_fast_equals_table_at_every_length_and_offset(void)
{
    uint8_t data[200];
    bool same = true;
    uint32_t x = 1;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)((x = x * 1103515245u + 12345u) >> 16);
    for (size_t off = 0; off < 9; off++)
        for (size_t len = 0; len + off <= sizeof data; len++)
            same =
                same && exsi_crc32c((uint32_t)len, data + off, len) == exsi_crc32c_soft((uint32_t)len, data + off, len);
    ok(same, "fast and table agree");
}

static void test_pieces_equal_the_whole(void)
{
    const char text[] = "the quick brown fox jumps over the lazy dog, and does so again";
    uint32_t whole = exsi_crc32c(0, text, sizeof text);
    bool same = true;
    for (size_t cut = 0; cut <= sizeof text; cut++)
        same = same && exsi_crc32c(exsi_crc32c(0, text, cut), text + cut, sizeof text - cut) == whole;
    ok(same, "split at every byte");
}

int main(void)
{
    test_known_values();
    test_fast_equals_table_at_every_length_and_offset();
    test_pieces_equal_the_whole();
    return tap_done();
}
