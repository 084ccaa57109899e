// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counted handles: stale ones find nothing, the last user frees, and that under any number of threads. */
#include <stdatomic.h>
#include <string.h>

#include "core/table.h"
#include "tap.h"

#define THREADS 4
#define SLOTS   8
#define STEPS   60000

static void test_life(void)
{
    struct exsi_table t;
    int a = 1, b = 2;
    uint64_t ha, hb, at;
    exsi_table_init(&t, EXSI_HANDLE_SOCKET);
    must(exsi_table_add(&t, &a, &ha) == 0 && exsi_table_add(&t, &b, &hb) == 0);
    ok(ha != hb && ha != 0, "two handles");
    ok(exsi_table_get(&t, ha) == &a && exsi_table_get(&t, hb) == &b, "find their objects");
    ok(!exsi_table_get(&t, 0) && !exsi_table_get(&t, ha + 1000) && !exsi_table_get(&t, ha ^ (uint64_t)1 << 40),
       "other numbers find nothing");
    ok(!exsi_table_get(&t, (ha & ~((uint64_t)0xff << 56)) | (uint64_t)EXSI_HANDLE_EQ << 56), "nor another kind");
    ok(exsi_table_get_at(&t, (uint32_t)hb, &at) == &b && at == hb, "found by its slot");
    ok(!exsi_table_put(&t, hb) && !exsi_table_put(&t, hb), "uses are given back");
    ok(exsi_table_close(&t, ha) == 0 && exsi_table_close(&t, ha) == -EBADF, "closed once");
    ok(!exsi_table_get(&t, ha) && !exsi_table_get_at(&t, (uint32_t)ha, NULL), "then not found");
    ok(!exsi_table_put(&t, ha) && exsi_table_put(&t, ha), "the last user is told");
    must(exsi_table_add(&t, &a, &at) == 0);
    ok((uint32_t)at == (uint32_t)ha && at != ha && !exsi_table_get(&t, ha),
       "the slot comes again under another handle");
    must(exsi_table_close(&t, at) == 0 && exsi_table_put(&t, at));
    must(exsi_table_close(&t, hb) == 0 && exsi_table_put(&t, hb));
    exsi_table_fini(&t);
}

static void test_many(void)
{
    enum { N = 5000 };
    struct exsi_table t;
    static uint64_t handles[N];
    static int objects[N];
    int bad = 0;
    exsi_table_init(&t, EXSI_HANDLE_EQ);
    for (int i = 0; i < N; i++) must(exsi_table_add(&t, &objects[i], &handles[i]) == 0);
    for (int i = 0; i < N; i++) {
        bad += exsi_table_get(&t, handles[i]) != &objects[i];
        bad += exsi_table_put(&t, handles[i]);
    }
    for (int i = 0; i < N; i++) bad += exsi_table_close(&t, handles[i]) != 0 || !exsi_table_put(&t, handles[i]);
    ok(bad == 0 && t.used == 0, "%d handles", N);
    exsi_table_fini(&t);
}

struct object {
    uint64_t handle;
    atomic_int alive;
};

struct world {
    struct exsi_table t;
    _Atomic uint64_t handles[SLOTS];
    atomic_uint made, freed, wrong;
};

static void drop(struct world *w, struct object *o)
{
    if (!exsi_table_put(&w->t, o->handle)) return;
    atomic_store(&o->alive, 0);
    atomic_fetch_add(&w->freed, 1);
    free(o);
}

/* Find, look, drop; now and then close and make a new one. */
static void *work(void *arg)
{
    struct world *w = arg;
    unsigned seed = (unsigned)(uintptr_t)&seed;
    for (int i = 0; i < STEPS; i++) {
        seed = seed * 1103515245u + 12345u;
        _Atomic uint64_t *place = &w->handles[(seed >> 16) % SLOTS];
        uint64_t handle = atomic_load(place);
        struct object *o = exsi_table_get(&w->t, handle);
        if (o) {
            if (!atomic_load(&o->alive)) atomic_fetch_add(&w->wrong, 1);
            if ((seed >> 8) % 16 == 0 && exsi_table_close(&w->t, handle) == 0) drop(w, o);
            drop(w, o);
        } else if ((o = calloc(1, sizeof *o))) {
            atomic_store(&o->alive, 1);
            /* The handle goes out only after the object knows it. */
            must(exsi_table_add(&w->t, o, &o->handle) == 0);
            atomic_fetch_add(&w->made, 1);
            uint64_t mine = o->handle;
            if (!atomic_compare_exchange_strong(place, &handle, mine)) {
                must(exsi_table_close(&w->t, mine) == 0);
                drop(w, o);
            }
        }
    }
    return NULL;
}

static void test_threads(void)
{
    static struct world w;
    pthread_t threads[THREADS];
    exsi_table_init(&w.t, EXSI_HANDLE_SOCKET);
    for (int i = 0; i < THREADS; i++) must(pthread_create(&threads[i], NULL, work, &w) == 0);
    for (int i = 0; i < THREADS; i++) must(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++) {
        struct object *o = exsi_table_get(&w.t, w.handles[i]);
        if (!o) continue;
        must(exsi_table_close(&w.t, o->handle) == 0);
        drop(&w, o);
        drop(&w, o);
    }
    ok(w.wrong == 0 && w.made == w.freed && w.made > 0, "threads: %u made, %u freed, %u found dead", w.made, w.freed,
       w.wrong);
    exsi_table_fini(&w.t);
}

int main(void)
{
    test_life();
    test_many();
    test_threads();
    return tap_done();
}
