// SPDX-License-Identifier: MIT OR Apache-2.0
/* Two contexts with a link between them, and connections on it: what CLC and LLC would agree on goes from hand to hand.
 * On soft, or on the device that smc_device names. */
#ifndef SMC_PAIR_H
#define SMC_PAIR_H

/* An emulated machine needs longer than one expects. */
#define WAIT_NS 60000000000u

#include "pair.h"

enum { VERSION = 2, MAX_CONNS = 256 };

/* One side of a connection. */
struct end {
    struct side *side;
    uint64_t rmb, sock, vaddr;
    uint32_t rkey, token, size;
};

struct conn {
    struct end a, b;
};

struct smc {
    struct pair p; /* a is its client, b its server */
    uint64_t link[2];
    uint32_t next_token;
};

static const char *smc_device = "soft";
__attribute__((unused)) static bool smc_small; /* counts for an emulated machine */

static struct side *smc_side(struct smc *m, int i)
{
    return i ? &m->p.server : &m->p.client;
}

static void smc_open(struct smc *m, bool threaded)
{
    exsi_smc_address addr[2];
    memset(m, 0, sizeof *m);
    m->next_token = 1000;
    for (int i = 0; i < 2; i++) {
        struct side *s = smc_side(m, i);
        side_open(s, threaded);
        int rc = exsi_smc_link_new(s->ctx, s->group, smc_device, NULL, &m->link[i]);
        if (rc < 0) printf("# link: %s\n", strerror(-rc));
        must(rc == 0);
        must(exsi_smc_link_address(s->ctx, m->link[i], &addr[i]) == 0);
    }
    for (int i = 0; i < 2; i++) must(exsi_smc_link_to_rtr(smc_side(m, i)->ctx, m->link[i], &addr[1 - i]) == 0);
    for (int i = 0; i < 2; i++) {
        must(exsi_smc_link_to_rts(smc_side(m, i)->ctx, m->link[i]) == 0);
        must(exsi_smc_link_active(smc_side(m, i)->ctx, m->link[i], VERSION, 0, 0) == 0);
    }
}

static void smc_close(struct smc *m)
{
    side_close(&m->p.client);
    side_close(&m->p.server);
}

static int smc_end_new(struct smc *m, int i, uint32_t code, struct end *e)
{
    struct side *s = smc_side(m, i);
    *e = (struct end){.side = s, .token = m->next_token++, .size = 16384u << code};
    int rc = exsi_smc_rmb_new(s->ctx, m->link[i], code, &e->rmb, &e->rkey, &e->vaddr);
    if (rc < 0) return rc;
    exsi_options opt;
    exsi_options_default(&opt);
    opt.close_timeout_ms = 1500;
    return exsi_smc_connection_new(s->ctx, m->link[i], e->rmb, e->token, &opt, &e->sock);
}

static int smc_end_open(const struct end *e, const struct end *peer)
{
    return exsi_smc_connection_open(e->side->ctx, e->sock, peer->rkey, peer->vaddr, peer->size, peer->token);
}

static void smc_connect(struct smc *m, uint32_t code_a, uint32_t code_b, struct conn *c)
{
    must(smc_end_new(m, 0, code_a, &c->a) == 0 && smc_end_new(m, 1, code_b, &c->b) == 0);
    must(smc_end_open(&c->a, &c->b) == 0 && smc_end_open(&c->b, &c->a) == 0);
}

/* --- operations, with the cookie as their name ---------------------------------------------------------------- */

static int end_send(struct end *e, const void *buf, size_t len, uint32_t flags, uint64_t cookie)
{
    return exsi_send(e->side->ctx, e->sock, buf, len, flags, 0, cookie, e->side->eq, NULL);
}

__attribute__((unused)) static int end_recv(struct end *e, void *buf, size_t len, uint32_t flags, uint64_t cookie)
{
    return exsi_recv(e->side->ctx, e->sock, buf, len, flags, 0, cookie, e->side->eq, NULL);
}

static exsi_event end_wait(struct smc *m, struct end *e, uint64_t cookie)
{
    return pair_wait(&m->p, e->side, cookie);
}

/* Bytes taken without waiting, or -errno. */
__attribute__((unused)) static int64_t end_take(struct end *e, void *buf, size_t len)
{
    exsi_posted out;
    int rc = exsi_recv(e->side->ctx, e->sock, buf, len, EXSI_OPF_DONTWAIT, 0, 1, 0, &out);
    return rc < 0 ? rc : (int64_t)out.event.value;
}

__attribute__((unused)) static exsi_socket_info end_info(struct end *e)
{
    exsi_socket_info info = {0};
    must(exsi_socket_query(e->side->ctx, e->sock, &info) == 0);
    return info;
}

static int end_shutdown(struct end *e, int how, uint64_t cookie)
{
    return exsi_shutdown(e->side->ctx, e->sock, how, cookie, e->side->eq, NULL);
}

/* cookie 0: without an event. */
static int end_close(struct end *e, bool abort, uint64_t cookie)
{
    return exsi_socket_close(e->side->ctx, e->sock, abort, cookie, cookie ? e->side->eq : 0, NULL);
}

/* Run both sides until it holds, within a bound. */
#define smc_until(m, cond)                                                                                             \
    do {                                                                                                               \
        uint64_t until_ = exsi_now_ns() + WAIT_NS;                                                                     \
        while (!(cond) && exsi_now_ns() < until_) pair_step(&(m)->p);                                                  \
    } while (0)

/* The next notice of the link on that side. */
__attribute__((unused)) static bool smc_notice(struct smc *m, int i, exsi_smc_notice *out)
{
    uint64_t end = exsi_now_ns() + WAIT_NS;
    while (exsi_now_ns() < end) {
        int rc = exsi_smc_link_take(smc_side(m, i)->ctx, m->link[i], out);
        must(rc >= 0);
        if (rc == 1) return true;
        pair_step(&m->p);
    }
    return false;
}

static exsi_smc_link_info smc_info(struct smc *m, int i)
{
    exsi_smc_link_info info = {0};
    must(exsi_smc_link_query(smc_side(m, i)->ctx, m->link[i], &info) == 0);
    return info;
}

__attribute__((unused)) static void fill(uint8_t *at, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        at[i] = (uint8_t)(seed >> 56);
    }
}

#endif
