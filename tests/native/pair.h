// SPDX-License-Identifier: MIT OR Apache-2.0
/* Two contexts in one process, a server and a client, moved forward by turns: every test of the call face
 * runs in one thread, without sleeping longer than it must, and with a bound on every wait. */
#ifndef PAIR_H
#define PAIR_H

#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "api/api.h"
#include "core/mr.h"
#include "core/op.h"
#include "tap.h"

#ifndef WAIT_NS
#define WAIT_NS 8000000000u
#endif
#define MAX_EVENTS 512

struct side {
    exsi_ctx *ctx;
    uint64_t group, eq, sock;
    exsi_event events[MAX_EVENTS];
    int n_events;
};

struct pair {
    struct side server, client;
    uint64_t listener;
    exsi_options opt;
    struct sockaddr_in addr;
};

/* What a test is run over. */
struct mode {
    const char *name;
    int type;
    enum exsi_path path;
    bool threaded, crc;
};

__attribute__((unused)) static int count_fds(void)
{
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    must(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n;
}

static void side_open(struct side *s, bool threaded)
{
    memset(s, 0, sizeof *s);
    must(exsi_open(&s->ctx) == 0);
    must(exsi_group_new(s->ctx, threaded, &s->group) == 0);
    must(exsi_eq_new(s->ctx, threaded ? 0 : s->group, 256, &s->eq) == 0);
}

static void side_close(struct side *s)
{
    exsi_close(s->ctx);
}

static void side_step(struct side *s)
{
    int n = exsi_eq_drain(s->ctx, s->eq, s->events + s->n_events, MAX_EVENTS - s->n_events, 0);
    must(n >= 0);
    s->n_events += n;
}

static bool side_find(struct side *s, uint64_t cookie, exsi_event *ev)
{
    for (int i = 0; i < s->n_events; i++) {
        if (s->events[i].cookie != cookie) continue;
        *ev = s->events[i];
        memmove(&s->events[i], &s->events[i + 1], sizeof *ev * (size_t)(--s->n_events - i));
        return true;
    }
    return false;
}

static void pair_step(struct pair *p)
{
    side_step(&p->server);
    side_step(&p->client);
}

/* The event with this cookie on that side; both sides run meanwhile. */
__attribute__((unused)) static exsi_event pair_wait(struct pair *p, struct side *s, uint64_t cookie)
{
    exsi_event ev;
    uint64_t end = exsi_now_ns() + WAIT_NS;
    for (;;) {
        if (side_find(s, cookie, &ev)) return ev;
        if (exsi_now_ns() > end) {
            printf("Bail out! no event with cookie %llu on the %s side\n", (unsigned long long)cookie,
                   s == &p->server ? "server" : "client");
            exit(99);
        }
        pair_step(p);
    }
}

/* The result of a post: at once, or by its event. */
__attribute__((unused)) static exsi_event pair_result(struct pair *p, struct side *s, int rc, const exsi_posted *out,
                                                      uint64_t cookie)
{
    if (rc == 1) return out->event;
    if (rc < 0) {
        printf("# post refused: %s\n", strerror(-rc));
        return (exsi_event){.error = -rc, .kind = 0};
    }
    return pair_wait(p, s, cookie);
}

/* Let both sides run for a while: what should happen without our asking has happened then. */
__attribute__((unused)) static void pair_run(struct pair *p, unsigned ms)
{
    uint64_t end = exsi_now_ns() + (uint64_t)ms * 1000000u;
    while (exsi_now_ns() < end) pair_step(p);
}

__attribute__((unused)) static void pair_listen(struct pair *p, const struct mode *m)
{
    uint32_t len = sizeof p->addr;
    memset(p, 0, sizeof *p);
    side_open(&p->server, m->threaded);
    side_open(&p->client, m->threaded);
    exsi_options_default(&p->opt);
    p->opt.path = m->path;
    p->opt.crc = m->crc;
    p->opt.close_timeout_ms = 1500;
    p->opt.connect_timeout_ms = 4000;
    p->addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(exsi_socket_new(p->server.ctx, p->server.group, AF_INET, m->type, &p->opt, &p->listener) == 0);
    must(exsi_bind(p->server.ctx, p->listener, &p->addr, sizeof p->addr) == 0);
    must(exsi_listen(p->server.ctx, p->listener, 8) == 0);
    must(exsi_sockname(p->server.ctx, p->listener, &p->addr, &len) == 0);
    must(p->addr.sin_port != 0);
}

#define C_CONNECT 1001u
#define C_ACCEPT  1002u

__attribute__((unused)) static void pair_open(struct pair *p, const struct mode *m)
{
    pair_listen(p, m);
    must(exsi_socket_new(p->client.ctx, p->client.group, AF_INET, m->type, &p->opt, &p->client.sock) == 0);
    must(exsi_accept(p->server.ctx, p->listener, C_ACCEPT, p->server.eq, NULL) == 0);
    must(exsi_connect(p->client.ctx, p->client.sock, &p->addr, sizeof p->addr, C_CONNECT, p->client.eq, NULL) == 0);
    exsi_event c = pair_wait(p, &p->client, C_CONNECT);
    if (c.error) {
        exsi_socket_info info;
        must(exsi_socket_query(p->client.ctx, p->client.sock, &info) == 0);
        printf("# connect: %s: %s\n", strerror(c.error), info.reason);
    }
    must(c.error == 0);
    exsi_event a = pair_wait(p, &p->server, C_ACCEPT);
    must(a.error == 0);
    p->server.sock = a.value;
}

__attribute__((unused)) static void pair_close(struct pair *p)
{
    side_close(&p->client);
    side_close(&p->server);
}

__attribute__((unused)) static uint64_t pair_stat(struct side *s, const char *name)
{
    uint64_t v[64];
    int n = exsi_statistics(s->ctx, s->sock, v, 64);
    for (int i = 0; i < n; i++)
        if (strcmp(exsi_statistics_name(i), name) == 0) return v[i];
    return UINT64_MAX;
}

#endif
