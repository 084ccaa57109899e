// SPDX-License-Identifier: MIT OR Apache-2.0
/* Handles: a stale one finds nothing, memory does not move. */
#include <string.h>

#include "base/slab.h"
#include "tap.h"

#define MANY 1000

static void test_stale_handle_finds_nothing(void)
{
    struct exsi_slab s;
    uint64_t first, second;
    exsi_slab_init(&s, EXSI_HANDLE_OP, 40);
    uint8_t *a = exsi_slab_take(&s, &first);
    must(a);
    memset(a, 0xff, 40);
    ok(exsi_slab_find(&s, first) == a, "a live handle finds its object");
    exsi_slab_give(&s, first);
    ok(!exsi_slab_find(&s, first), "after give it finds nothing");
    uint8_t *b = exsi_slab_take(&s, &second);
    ok(b == a && second != first, "the slot is used again under another handle");
    ok(b[0] == 0 && b[39] == 0, "and is zeroed");
    ok(!exsi_slab_find(&s, first) && exsi_slab_find(&s, second) == b, "the old handle stays dead");
    exsi_slab_fini(&s);
}

static void test_wrong_kind_and_garbage_find_nothing(void)
{
    struct exsi_slab s;
    uint64_t h;
    exsi_slab_init(&s, EXSI_HANDLE_MR, 8);
    must(exsi_slab_take(&s, &h));
    ok(h >> 56 == EXSI_HANDLE_MR, "the kind stands in the handle");
    ok(!exsi_slab_find(&s, h ^ (uint64_t)1 << 56), "another kind finds nothing");
    ok(!exsi_slab_find(&s, 0) && !exsi_slab_find(&s, UINT64_MAX), "nor do 0 and all ones");
    ok(!exsi_slab_find(&s, h + EXSI_SLAB_CHUNK) && !exsi_slab_find(&s, h + 1), "nor do slots that are not taken");
    exsi_slab_fini(&s);
    ok(!exsi_slab_find(&s, h), "nor anything in an empty slab");
}

static void test_many_objects_do_not_move(void)
{
    static uint64_t handles[MANY];
    static uint64_t *objects[MANY];
    struct exsi_slab s;
    bool kept = true, aligned = true, back = true;
    uint32_t live = 0;
    exsi_slab_init(&s, EXSI_HANDLE_SOCKET, 24);
    for (int i = 0; i < MANY; i++) {
        objects[i] = exsi_slab_take(&s, &handles[i]);
        must(objects[i]);
        *objects[i] = (uint64_t)i;
        aligned = aligned && (uintptr_t)objects[i] % 16 == 0;
    }
    for (int i = 0; i < MANY; i++)
        kept = kept && exsi_slab_find(&s, handles[i]) == objects[i] && *objects[i] == (uint64_t)i;
    ok(kept, "every handle finds its own object after the table grew");
    ok(aligned, "objects lie on 16 bytes");
    for (int i = 0; i < MANY; i += 2) exsi_slab_give(&s, handles[i]);
    for (uint32_t slot = 0; slot < s.cap; slot++) {
        uint64_t h;
        void *object = exsi_slab_at(&s, slot, &h);
        if (!object) continue;
        live++;
        back = back && exsi_slab_find(&s, h) == object;
    }
    ok(live == MANY / 2 && s.used == MANY / 2, "the walk sees exactly the live ones");
    ok(back, "and gives their handles");
    ok(!exsi_slab_at(&s, s.cap, NULL), "the walk ends at cap");
    exsi_slab_fini(&s);
}

int main(void)
{
    test_stale_handle_finds_nothing();
    test_wrong_kind_and_garbage_find_nothing();
    test_many_objects_do_not_move();
    return tap_done();
}
