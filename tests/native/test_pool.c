// SPDX-License-Identifier: MIT OR Apache-2.0
/* Blocks of registered memory: no two overlap, few registrations serve many, and none is left behind. */
#include <string.h>

#include "core/ctx.h"
#include "null_device.h"
#include "tap.h"

static struct exsi_ctx *ctx;
static struct exsi_device *dev;

static void start(void)
{
    char reason[EXSI_REASON_MAX];
    must(exsi_ctx_open(&ctx) == 0 && exsi_ctx_device(ctx, "null", &dev, reason) == 0);
}

static void stop(void)
{
    exsi_ctx_free(ctx);
    ok(atomic_load(&null_state.registered) == 0, "no registration is left");
}

static bool inside(const struct exsi_block *b, size_t len)
{
    const uint8_t *at = b->dmr->mem.addr;
    return b->addr >= at && b->addr + len <= at + b->dmr->mem.len;
}

static void test_blocks_are_apart(void)
{
    static const size_t lens[] = {1, 256, 257, 1024, 3072, 4096, 4097, 300000};
    struct exsi_block b[8][20];
    bool good = true;
    start();
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 20; k++) {
            must(exsi_pool_take(ctx, dev, lens[i], &b[i][k]) == 0);
            good &= inside(&b[i][k], lens[i]);
            memset(b[i][k].addr, 20 * i + k, lens[i]);
        }
    ok(good, "each lies in its registration");
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 20; k++)
            for (size_t n = 0; n < lens[i]; n++) good &= b[i][k].addr[n] == 20 * i + k;
    ok(good, "and none touches another");
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 20; k++) exsi_pool_give(&b[i][k]);
    ok(!b[0][0].addr, "given back: none");
    exsi_pool_give(&b[0][0]);
    stop();
}

static void test_registrations_are_few_and_bounded(void)
{
    enum { MANY = 400 };
    struct exsi_block b[MANY];
    start();
    for (int i = 0; i < MANY; i++) must(exsi_pool_take(ctx, dev, 3072, &b[i]) == 0);
    ok(atomic_load(&null_state.registered) == MANY / 16, "one serves sixteen: %d", atomic_load(&null_state.registered));
    for (int i = 0; i < MANY; i++) exsi_pool_give(&b[(i * 7) % MANY]);
    ok(atomic_load(&null_state.registered) == MANY / 16, "giving back frees nothing by itself");
    must(exsi_pool_take(ctx, dev, 3072, &b[0]) == 0);
    ok(atomic_load(&null_state.registered) == 4, "the next take does, but for a few: %d",
       atomic_load(&null_state.registered));
    uint8_t *at = b[0].addr;
    exsi_pool_give(&b[0]);
    must(exsi_pool_take(ctx, dev, 2000, &b[0]) == 0);
    ok(b[0].addr == at, "the block that was used last comes first");
    exsi_pool_give(&b[0]);
    /* A crowd of empty ones is used again before another is made. */
    for (int i = 0; i < 96; i++) must(exsi_pool_take(ctx, dev, 4096, &b[i]) == 0);
    for (int i = 0; i < 96; i++) exsi_pool_give(&b[i]);
    null_state.fail_reg = ENOMEM;
    int got = 0;
    while (got < 96 && exsi_pool_take(ctx, dev, 4096, &b[got]) == 0) got++;
    ok(got == 64, "kept: as many as four chunks hold (%d)", got);
    ok(exsi_pool_take(ctx, dev, 100000, &b[95]) == -ENOMEM, "what cannot be registered is refused");
    null_state.fail_reg = 0;
    for (int i = 0; i < got; i++) exsi_pool_give(&b[i]);
    stop();
}

struct taker {
    pthread_t thread;
    bool good;
};

static void *take_and_give(void *arg)
{
    struct taker *t = arg;
    struct exsi_block b[24];
    t->good = true;
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < 24; i++) {
            must(exsi_pool_take(ctx, dev, (size_t)(100 << (i % 5)), &b[i]) == 0);
            memcpy(b[i].addr, &t, sizeof t);
        }
        for (int i = 0; i < 24; i++) {
            t->good &= memcmp(b[i].addr, &t, sizeof t) == 0;
            exsi_pool_give(&b[i]);
        }
    }
    return NULL;
}

static void test_threads(void)
{
    struct taker t[4];
    bool good = true;
    start();
    for (int i = 0; i < 4; i++) must(pthread_create(&t[i].thread, NULL, take_and_give, &t[i]) == 0);
    for (int i = 0; i < 4; i++) {
        must(pthread_join(t[i].thread, NULL) == 0);
        good &= t[i].good;
    }
    ok(good, "a block has one owner");
    stop();
}

int main(void)
{
    test_blocks_are_apart();
    test_registrations_are_few_and_bounded();
    test_threads();
    return tap_done();
}
