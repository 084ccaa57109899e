// SPDX-License-Identifier: MIT OR Apache-2.0
/* What can be seen of SMC-R from outside, and what a connection costs: exsi_smc_connection_query, the rings of
 * exsi_smc_link_query, and the memory that the core has allocated. */
#include <malloc.h>

#include "smc_pair.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_ALLOCATOR true /* a sanitizer's, which keeps no account */
#else
#define OWN_ALLOCATOR false
#endif

/* Connections that are counted, and what one may cost beside its two rings. */
#define COUNTED 50
#define BESIDE  65536u

static struct smc smc;
static uint8_t data[65536];

static exsi_smc_connection_info look(const struct end *e)
{
    exsi_smc_connection_info info;
    memset(&info, 0xee, sizeof info);
    int i = e->side == &smc.p.server;
    must(exsi_smc_connection_query(e->side->ctx, smc.link[i], e->token, &info) == 0);
    return info;
}

static bool is_at(exsi_smc_cursor_info c, uint32_t wrap, uint32_t count)
{
    return c.wrap == wrap && c.count == count;
}

static void test_before_it_is_open(void)
{
    struct conn c;
    exsi_smc_connection_info info;
    must(smc_end_new(&smc, 0, 0, &c.a) == 0 && smc_end_new(&smc, 1, 1, &c.b) == 0);
    info = look(&c.a);
    ok(info.socket == c.a.sock && info.token == c.a.token && info.size == 16384,
       "a connection is seen when it is made");
    ok(!info.peer_token && !info.peer_size && !info.producer_flags && !info.unread, "without a peer");
    must(smc_end_open(&c.a, &c.b) == 0 && smc_end_open(&c.b, &c.a) == 0);
    info = look(&c.a);
    ok(info.peer_token == c.b.token && info.peer_size == 32768, "and with its peer's token and size once it is open");
    must(end_close(&c.a, true, 1) == 0 && end_close(&c.b, true, 2) == 0);
    (void)end_wait(&smc, &c.a, 1);
    (void)end_wait(&smc, &c.b, 2);
}

/* RFC 7609 A.4: cursors are a count of passes and an offset. */
static void test_cursors(void)
{
    struct conn c;
    exsi_smc_connection_info a, b;
    smc_connect(&smc, 0, 0, &c);
    must(end_send(&c.a, data, 16384 + 100, 0, 1) == 0);
    smc_until(&smc, look(&c.b).unread == 16384);
    a = look(&c.a);
    b = look(&c.b);
    ok(is_at(a.produced, 1, 0) && is_at(a.peer_consumed, 0, 0) && a.sent == 16384 && a.unsent == 100,
       "what was written and what waits for room (%llu)", (unsigned long long)a.unsent);
    ok(a.producer_flags == 0x80 && b.peer_producer_flags == 0x80, "the writer is blocked, and its peer knows");
    ok(is_at(b.peer_produced, 1, 0) && is_at(b.consumed, 0, 0) && b.received == 16384, "what came and was not read");
    must(end_take(&c.b, data, 16384) == 16384);
    must(!end_wait(&smc, &c.a, 1).error);
    smc_until(&smc, look(&c.b).unread == 100);
    a = look(&c.a);
    b = look(&c.b);
    ok(is_at(a.produced, 1, 100) && is_at(a.peer_consumed, 1, 0) && !a.unsent && !a.producer_flags,
       "the peer has read, and said so");
    ok(is_at(b.peer_produced, 1, 100) && is_at(b.consumed, 1, 0) && is_at(b.told, 1, 0) && b.received == 16484,
       "the same from the other side");
    must(end_take(&c.b, data, 100) == 100);
    must(end_send(&c.b, data, 1, EXSI_OPF_URGENT, 2) == 0);
    smc_until(&smc, look(&c.a).unread == 1);
    ok(look(&c.a).peer_producer_flags == 0x60, "an urgent byte is seen");
    must(end_shutdown(&c.b, SHUT_WR, 3) >= 0);
    smc_until(&smc, look(&c.a).peer_connection_flags);
    ok(look(&c.a).peer_connection_flags == 0x80 && look(&c.b).connection_flags == 0x80, "and that a side is done");
    must(end_close(&c.b, false, 4) == 0 && !end_wait(&smc, &c.b, 4).error);
    smc_until(&smc, look(&c.b).connection_flags == 0xc0);
    ok(look(&c.b).connection_flags == 0xc0 && look(&c.b).socket == c.b.sock,
       "a closed one is seen until its peer has answered");
    must(end_close(&c.a, true, 5) == 0);
    (void)end_wait(&smc, &c.a, 5);
    exsi_smc_connection_info gone;
    smc_until(&smc, exsi_smc_connection_query(c.b.side->ctx, smc.link[1], c.b.token, &gone) == -ENOENT);
    ok(exsi_smc_connection_query(c.b.side->ctx, smc.link[1], c.b.token, &gone) == -ENOENT, "and not when it is over");
}

static void test_refusals(void)
{
    exsi_smc_connection_info info;
    exsi_ctx *ctx = smc.p.client.ctx;
    ok(exsi_smc_connection_query(ctx, smc.link[0], 0, &info) == -ENOENT, "0 is no token");
    ok(exsi_smc_connection_query(ctx, smc.link[0], 77, &info) == -ENOENT, "a token that nobody has");
    ok(exsi_smc_connection_query(ctx, 12345, 77, &info) == -EBADF, "no link");
}

static size_t allocated(void)
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* Private memory in all, also what is mapped; a ring is a memory file, and not counted. */
static size_t mapped(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    must(f && fscanf(f, "%*u %*u %*u %*u %*u %lu", &pages) == 1 && fclose(f) == 0);
    return pages * 4096;
}

/* One that sends little at a time has a staging ring too, and no more than that. */
static size_t send_little(struct conn *c)
{
    /* A take from each pool, which ends what connections before these have left there. */
    must(end_send(&c[0].a, data, 1, 0, 5) == 0 && !end_wait(&smc, &c[0].a, 5).error);
    must(end_send(&c[0].b, data, 1, 0, 6) == 0 && !end_wait(&smc, &c[0].b, 6).error);
    size_t before = mapped();
    for (int i = 0; i < COUNTED; i++)
        for (int k = 0; k < 3; k++) {
            must(end_send(&c[i].a, data, 100, 0, 7) == 0 && !end_wait(&smc, &c[i].a, 7).error);
            must(end_send(&c[i].b, data, 100, 0, 8) == 0 && !end_wait(&smc, &c[i].b, 8).error);
        }
    return (mapped() - before) / (2 * (size_t)COUNTED);
}

/* Both ends are in this process: a connection is two of what is counted. */
static void test_memory(uint32_t code)
{
    static struct conn c[COUNTED];
    size_t ring = (size_t)16384 << code, before = allocated();
    exsi_smc_link_info had = smc_info(&smc, 0);
    for (int i = 0; i < COUNTED; i++) smc_connect(&smc, code, code, &c[i]);
    size_t each = (allocated() - before) / (2 * (size_t)COUNTED);
    exsi_smc_link_info has = smc_info(&smc, 0);
    ok(has.rings - had.rings == COUNTED && has.ring_bytes - had.ring_bytes == COUNTED * ring,
       "an idle connection has one ring of %zu KiB", ring >> 10);
    /* The ring is a memory file, of which malloc knows nothing. */
    ok(OWN_ALLOCATOR || ring + each <= 2 * ring + BESIDE, "and takes %zu bytes beside it", each);
    size_t more = send_little(c);
    ok(OWN_ALLOCATOR || ring + each + more <= 2 * ring + BESIDE, "and %zu more when it has sent a little", more);
    must(OWN_ALLOCATOR || more > exsi_min_u64(ring, 65536) / 2); /* it is measured */
    for (int i = 0; i < COUNTED; i++) {
        must(end_close(&c[i].a, true, 1) == 0 && end_close(&c[i].b, true, 2) == 0);
        (void)end_wait(&smc, &c[i].a, 1);
        (void)end_wait(&smc, &c[i].b, 2);
    }
    smc_until(&smc, smc_info(&smc, 0).connections + smc_info(&smc, 1).connections == 0);
}

int main(void)
{
    smc_open(&smc, false);
    test_before_it_is_open();
    test_cursors();
    test_refusals();
    for (uint32_t code = 0; code < 4; code++) test_memory(code);
    smc_close(&smc);
    return tap_done();
}
