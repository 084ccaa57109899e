// SPDX-License-Identifier: MIT OR Apache-2.0
/* Memory is registered and freed, and devices are opened, without any group's lock, since that may block and
 * would stall every socket of the group.  A device in front of soft looks at the locks on every such call. */
#include "pair.h"

#include <stdatomic.h>

#include "core/group.h"

extern const struct exsi_device_ops exsi_soft_ops;

static struct {
    struct exsi_device_ops ops;
    struct exsi_device_entry entry;
    exsi_ctx *ctx[2];
    atomic_int registered, freed, locked, fail, opened, fail_open;
} front;

/* Alone in the process: a lock that is taken, we have taken. */
static bool any_locked(exsi_ctx *ctx)
{
    if (!ctx) return false;
    bool locked = pthread_mutex_trylock(&ctx->lock) != 0;
    if (!locked) pthread_mutex_unlock(&ctx->lock);
    for (uint32_t i = 0; i < ctx->groups.cap; i++) {
        struct exsi_group *g = exsi_table_get_at(&ctx->groups, i, NULL);
        if (!g) continue;
        if (pthread_mutex_trylock(&g->lock) == 0)
            pthread_mutex_unlock(&g->lock);
        else
            locked = true;
        exsi_group_put(g);
    }
    return locked;
}

static void look(void)
{
    if (any_locked(front.ctx[0]) || any_locked(front.ctx[1])) atomic_fetch_add(&front.locked, 1);
}

static int front_reg(struct exsi_device *dev, const struct exsi_mem *mem, struct exsi_dmr **out)
{
    look();
    atomic_fetch_add(&front.registered, 1);
    if (atomic_load(&front.fail)) return -ENOMEM;
    return exsi_soft_ops.reg_mr(dev, mem, out);
}

static void front_dereg(struct exsi_device *dev, struct exsi_dmr *mr)
{
    look();
    atomic_fetch_add(&front.freed, 1);
    exsi_soft_ops.dereg_mr(dev, mr);
}

static int front_open(struct exsi_log *log, struct exsi_device **out, char *reason)
{
    look();
    atomic_fetch_add(&front.opened, 1);
    if (atomic_load(&front.fail_open)) return -ENODEV;
    int rc = exsi_soft_ops.open(log, out, reason);
    if (rc == 0) (*out)->ops = &front.ops;
    return rc;
}

const struct exsi_device_entry *exsi_device_registry(int *n)
{
    front.ops = exsi_soft_ops;
    front.ops.open = front_open;
    front.ops.reg_mr = front_reg;
    front.ops.dereg_mr = front_dereg;
    front.entry = (struct exsi_device_entry){.name = "soft", .summary = "soft, watched", .ops = &front.ops};
    *n = 1;
    return &front.entry;
}

static char big[2][1 << 20], small[2][4096];

/* Every way in which a transfer finds its memory, in both directions.  ES-API 1.7 */
static void transfers(struct pair *p, int type)
{
    exsi_posted out;
    struct side *a = &p->client, *b = &p->server;
    /* Not registered: a region for the call, a copy. */
    must(exsi_recv(b->ctx, b->sock, big[1], sizeof big[1], EXSI_OPF_WAITALL, 0, 1, b->eq, NULL) == 0);
    must(exsi_send(a->ctx, a->sock, big[0], sizeof big[0], 0, 0, 2, a->eq, NULL) == 0);
    ok(pair_wait(p, b, 1).value == sizeof big[1] && pair_wait(p, a, 2).error == 0, "large");
    must(exsi_recv(b->ctx, b->sock, small[1], sizeof small[1], EXSI_OPF_WAITALL, 0, 3, b->eq, NULL) == 0);
    ok(pair_result(p, a, exsi_send(a->ctx, a->sock, small[0], sizeof small[0], 0, 0, 4, a->eq, &out), &out, 4).error ==
           0,
       "small");
    ok(pair_wait(p, b, 3).value == sizeof small[1], "and received");
    /* In pieces: message mode goes through memory made for the call. */
    exsi_piece in[2] = {{.base = big[1], .len = 5000}, {.base = small[1], .len = 3000}};
    exsi_piece from[2] = {{.base = big[0], .len = 6000}, {.base = small[0], .len = 2000}};
    must(exsi_recvmsg(b->ctx, b->sock, in, 2, EXSI_OPF_WAITALL, 5, b->eq, NULL) == 0);
    must(exsi_sendmsg(a->ctx, a->sock, from, 2, 0, 6, a->eq, NULL) == 0);
    ok(pair_wait(p, b, 5).value == 8000 && pair_wait(p, a, 6).error == 0, "in pieces");
    /* Batches of memory that nobody registered. */
    exsi_piece many[3] = {{big[0], 200000, 0}, {big[0] + 200000, 100, 0}, {big[0] + 300000, 70000, 0}};
    exsi_piece room[3] = {{big[1], 200000, 0}, {big[1] + 200000, 100, 0}, {big[1] + 300000, 70000, 0}};
    must(exsi_recv_many(b->ctx, b->sock, room, 3, EXSI_OPF_WAITALL, 10, b->eq, NULL) == 3);
    must(exsi_send_many(a->ctx, a->sock, many, 3, 0, 20, a->eq, NULL) == 3);
    bool whole = true;
    for (int i = 0; i < 3; i++) {
        whole &= pair_wait(p, b, 10 + (uint64_t)i).value == many[i].len;
        whole &= pair_wait(p, a, 20 + (uint64_t)i).value == many[i].len;
    }
    ok(whole, "a batch of type %d", type);
}

/* More pieces than go under one lock, and a refusal in the middle of them. */
static void test_long_batch(struct pair *p)
{
    struct side *a = &p->client, *b = &p->server;
    uint32_t pieces = 150, got = 0;
    must(exsi_recv(b->ctx, b->sock, big[1], 150 * 5000, EXSI_OPF_WAITALL, 0, 1, b->eq, NULL) == 0);
    int n = exsi_send_split(a->ctx, a->sock, big[0], 150 * 5000, 5000, 0, 0, 100, a->eq, NULL);
    ok(n == (int)pieces, "a batch longer than one lock holds: %d", n);
    ok(pair_wait(p, b, 1).value == 150 * 5000, "arrives whole");
    for (uint32_t i = 0; i < pieces; i++) got += pair_wait(p, a, 100 + i).value == 5000;
    ok(got == pieces, "every piece has its event");
    n = exsi_send_split(a->ctx, a->sock, big[0], sizeof big[0], 1024, 0, 0, 2000, a->eq, NULL);
    ok(n == 256, "as many as the queue has slots: %d", n);
    must(exsi_recv(b->ctx, b->sock, big[1], 256 * 1024, EXSI_OPF_WAITALL, 0, 3, b->eq, NULL) == 0);
    ok(pair_wait(p, b, 3).value == 256 * 1024, "and those arrive");
    for (uint32_t i = 0; i < 256; i++) (void)pair_wait(p, a, 2000 + i);
}

static void run(int type, enum exsi_path path)
{
    struct pair p;
    struct mode m = {.type = type, .path = path};
    atomic_store(&front.registered, 0);
    atomic_store(&front.freed, 0);
    pair_listen(&p, &m);
    front.ctx[0] = p.server.ctx;
    front.ctx[1] = p.client.ctx;
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, type, &p.opt, &p.client.sock) == 0);
    must(exsi_accept(p.server.ctx, p.listener, C_ACCEPT, p.server.eq, NULL) == 0);
    must(exsi_connect(p.client.ctx, p.client.sock, &p.addr, sizeof p.addr, C_CONNECT, p.client.eq, NULL) == 0);
    must(pair_wait(&p, &p.client, C_CONNECT).error == 0);
    p.server.sock = pair_wait(&p, &p.server, C_ACCEPT).value;
    int before = atomic_load(&front.registered);
    ok(before >= (type == SOCK_STREAM ? 4 : 2), "slots and rings were registered (%d)", before);
    transfers(&p, type);
    ok(atomic_load(&front.registered) > before, "and memory for single calls");
    if (type == SOCK_STREAM) test_long_batch(&p);
    must(exsi_socket_close(p.client.ctx, p.client.sock, 0, 7, p.client.eq, NULL) == 0);
    must(exsi_socket_close(p.server.ctx, p.server.sock, 0, 8, p.server.eq, NULL) == 0);
    (void)pair_wait(&p, &p.client, 7);
    (void)pair_wait(&p, &p.server, 8);
    pair_run(&p, 50);
    front.ctx[1] = NULL;
    side_close(&p.client);
    front.ctx[0] = NULL;
    side_close(&p.server);
    ok(atomic_load(&front.registered) == atomic_load(&front.freed), "all of it is freed");
    ok(atomic_load(&front.locked) == 0, "none of it under a lock");
}

/* The memory cannot be had, or nobody wants it any more when it comes. */
static void test_failures(void)
{
    struct pair p;
    struct mode m = {.type = SOCK_STREAM};
    uint64_t sock;
    pair_listen(&p, &m);
    front.ctx[0] = p.server.ctx;
    front.ctx[1] = p.client.ctx;
    must(exsi_accept(p.server.ctx, p.listener, C_ACCEPT, p.server.eq, NULL) == 0);
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, SOCK_STREAM, &p.opt, &sock) == 0);
    atomic_store(&front.fail, 1);
    must(exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 50, p.client.eq, NULL) >= 0);
    ok(pair_wait(&p, &p.client, 50).error == ENOMEM, "a connect without memory fails with ENOMEM");
    atomic_store(&front.fail, 0);
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, SOCK_STREAM, &p.opt, &sock) == 0);
    must(exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 51, p.client.eq, NULL) == 0);
    must(exsi_socket_close(p.client.ctx, sock, 1, 0, 0, NULL) == 0);
    ok(pair_wait(&p, &p.client, 51).error == ECONNABORTED, "one that is aborted meanwhile");
    /* The side that is connected to has none: the other one is told, and the listener goes on. */
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, SOCK_STREAM, &p.opt, &sock) == 0);
    must(exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 52, p.client.eq, NULL) == 0);
    side_step(&p.client);
    atomic_store(&front.fail, 1);
    for (int i = 0; i < 50; i++) side_step(&p.server);
    atomic_store(&front.fail, 0);
    ok(pair_wait(&p, &p.client, 52).error != 0, "a peer without memory ends the connect");
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, SOCK_STREAM, &p.opt, &sock) == 0);
    must(exsi_connect(p.client.ctx, sock, &p.addr, sizeof p.addr, 53, p.client.eq, NULL) == 0);
    ok(pair_wait(&p, &p.client, 53).error == 0 && pair_wait(&p, &p.server, C_ACCEPT).error == 0,
       "and the next comes in");
    front.ctx[0] = front.ctx[1] = NULL;
    pair_close(&p);
    ok(atomic_load(&front.locked) == 0, "nothing under a lock");
}

/* By whichever call needs the device first; one that fails is tried again by the next. */
static void test_stream_openers(bool connects)
{
    struct side a;
    uint64_t sock, group, other;
    exsi_options opt;
    exsi_socket_info info;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(1)};
    side_open(&a, false);
    exsi_options_default(&opt);
    front.ctx[0] = a.ctx;
    atomic_store(&front.opened, 0);
    must(exsi_group_new(a.ctx, false, &group) == 0);
    must(exsi_socket_new(a.ctx, a.group, AF_INET, SOCK_STREAM, &opt, &sock) == 0);
    must(exsi_socket_new(a.ctx, group, AF_INET, SOCK_STREAM, &opt, &other) == 0);
    atomic_store(&front.fail_open, 1);
    int rc = connects ? exsi_connect(a.ctx, sock, &at, sizeof at, 1, a.eq, NULL) : exsi_listen(a.ctx, sock, 1);
    ok(rc == -EOPNOTSUPP, "a device that does not open: %d", rc);
    must(exsi_socket_query(a.ctx, sock, &info) == 0);
    ok(strstr(info.reason, "soft: open failed"), "the socket says why: %s", info.reason);
    atomic_store(&front.fail_open, 0);
    rc = connects ? exsi_connect(a.ctx, sock, &at, sizeof at, 2, a.eq, NULL) : exsi_listen(a.ctx, sock, 1);
    ok(rc == 0 && exsi_listen(a.ctx, other, 1) == 0, "and then does");
    ok(atomic_load(&front.opened) == 2, "once for all groups");
    ok(atomic_load(&front.locked) == 0, "without a lock");
    front.ctx[0] = NULL;
    side_close(&a);
}

int main(void)
{
    test_stream_openers(false);
    test_stream_openers(true);
    for (int path = EXSI_PATH_AUTO; path <= EXSI_PATH_TCP; path++) {
        run(SOCK_STREAM, (enum exsi_path)path);
        run(SOCK_SEQPACKET, (enum exsi_path)path);
    }
    test_failures();
    return tap_done();
}
