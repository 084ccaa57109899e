// SPDX-License-Identifier: MIT OR Apache-2.0
/* Lists, byte order, cursors, ranges, the log sink, counters, random bytes. */
#include <string.h>

#include "base/base.h"
#include "base/bytes.h"
#include "base/list.h"
#include "base/log.h"
#include "base/stats.h"
#include "tap.h"

struct item {
    int value;
    struct exsi_list node;
};

static void test_list_keeps_order_and_survives_unlinking(void)
{
    struct exsi_list head;
    struct item items[5];
    int sum = 0, seen = 0;
    exsi_list_init(&head);
    ok(!exsi_list_first(&head, struct item, node), "an empty list has no first object");
    for (int i = 0; i < 5; i++) {
        items[i].value = i;
        exsi_list_append(&head, &items[i].node);
    }
    exsi_list_for (it, &head, struct item, node) sum = sum * 10 + it->value;
    ok(sum == 1234, "objects come in the order of appending");
    exsi_list_for_safe (it, &head, struct item, node) {
        seen++;
        if (it->value % 2 == 0) exsi_list_unlink(&it->node);
    }
    ok(seen == 5, "the safe loop sees all, though some are unlinked");
    exsi_list_unlink(&items[0].node);
    sum = 0;
    exsi_list_for (it, &head, struct item, node) sum = sum * 10 + it->value;
    ok(sum == 13, "unlinking twice does nothing");
}

static void test_bytes_are_big_endian(void)
{
    exsi_be32 v = exsi_put32(0x01020304);
    ok(v.b[0] == 1 && v.b[3] == 4 && exsi_get32(v) == 0x01020304, "32 bits");
    exsi_be16 h = exsi_put16(0xfffe);
    ok(h.b[0] == 0xff && h.b[1] == 0xfe && exsi_get16(h) == 0xfffe, "16 bits");
    exsi_be64 q = exsi_put64(0x0102030405060708u);
    ok(q.b[0] == 1 && q.b[7] == 8 && exsi_get64(q) == 0x0102030405060708u, "64 bits");
}

static void test_cursor_stops_at_its_end(void)
{
    uint8_t out[8];
    struct exsi_cursor c = exsi_cursor("abcdef", 6);
    ok(exsi_cursor_take(&c, out, 4) == 0 && memcmp(out, "abcd", 4) == 0, "takes what is there");
    ok(exsi_cursor_take(&c, out, 3) == -EPROTO && exsi_cursor_left(&c) == 2, "refuses more, and does not move");
    ok(exsi_cursor_take(&c, out, 2) == 0 && exsi_cursor_left(&c) == 0, "takes the rest");
    ok(exsi_cursor_take(&c, out, 0) == 0, "nothing is always there");
}

static void test_range_inside_does_not_overflow(void)
{
    ok(exsi_range_inside(0, 10, 10) && exsi_range_inside(10, 0, 10), "the edges belong to it");
    ok(!exsi_range_inside(1, 10, 10) && !exsi_range_inside(11, 0, 10), "one beyond does not");
    ok(!exsi_range_inside(UINT64_MAX, 2, 10) && !exsi_range_inside(2, UINT64_MAX, 10), "no wrapping");
}

static void test_log_drops_new_records_and_counts_them(void)
{
    static struct exsi_log log;
    static struct exsi_log_record out[EXSI_LOG_RECORDS + 8];
    char longest[2 * EXSI_LOG_TEXT];
    exsi_log_init(&log);
    exsi_log(&log, EXSI_LOG_INFO, 1, "below the threshold");
    ok(exsi_log_take(&log, out, 8) == 0, "records below the threshold are not kept");
    for (int i = 0; i < EXSI_LOG_RECORDS + 5; i++) exsi_log(&log, EXSI_LOG_ERROR, 7, "record %d", i);
    ok(exsi_log_take(&log, out, 10) == 10 && strcmp(out[9].text, "record 9") == 0, "oldest first");
    exsi_log(&log, EXSI_LOG_ERROR, 9, "after the gap");
    int n = exsi_log_take(&log, out, EXSI_LOG_RECORDS + 8);
    ok(n == EXSI_LOG_RECORDS - 9, "the ring holds no more than its size");
    ok(out[n - 1].dropped == 5 && out[n - 1].socket == 9 && out[n - 2].dropped == 0, "the gap is told where it was");
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    exsi_log(&log, EXSI_LOG_ERROR, 0, "%s", longest);
    ok(exsi_log_take(&log, out, 1) == 1 && strlen(out[0].text) == EXSI_LOG_TEXT - 1, "long text is cut");
    exsi_log_fini(&log);
}

static void test_stats_add_field_by_field(void)
{
    struct exsi_stats a = {0}, b = {0};
    exsi_count(&a, bytes_direct, 5);
    exsi_count(&b, bytes_direct, 7);
    exsi_count(&b, registrations, 1);
    exsi_stats_add(&a, &b);
    ok(atomic_load(&a.bytes_direct) == 12 && atomic_load(&a.registrations) == 1 && atomic_load(&a.syscalls) == 0,
       "each field is added to its own");
}

static void test_random_fills_everything(void)
{
    uint8_t a[600] = {0}, b[600] = {0};
    int zeros = 0;
    exsi_random(a, sizeof a);
    exsi_random(b, sizeof b);
    for (size_t i = sizeof a - 64; i < sizeof a; i++) zeros += a[i] == 0;
    ok(memcmp(a, b, sizeof a) != 0, "two fillings differ");
    ok(zeros < 16, "the end is filled as well");
}

int main(void)
{
    test_list_keeps_order_and_survives_unlinking();
    test_bytes_are_big_endian();
    test_cursor_stops_at_its_end();
    test_range_inside_does_not_overflow();
    test_log_drops_new_records_and_counts_them();
    test_stats_add_field_by_field();
    test_random_fills_everything();
    return tap_done();
}
