// SPDX-License-Identifier: MIT OR Apache-2.0
/* "auto" takes verbs where both ends have it, and soft in every other case.  The device called verbs is soft again, one
 * port higher, and can be told to be missing, to fail, or never to answer. */
#include "pair.h"

#include <ifaddrs.h>
#include <net/if.h>

#include "device/device.h"

extern const struct exsi_device_ops exsi_soft_ops;

static struct {
    struct exsi_device_ops ops;
    struct exsi_device_entry entries[2];
    int absent, fail_listen, fail_resolve, deaf, tried;
} verbs;

static int verbs_open(struct exsi_log *log, struct exsi_device **out, char *reason)
{
    verbs.tried++;
    if (verbs.absent) return -ENODEV;
    int rc = exsi_soft_ops.open(log, out, reason);
    if (rc == 0) (*out)->ops = &verbs.ops;
    return rc;
}

static union exsi_addr shifted(const union exsi_addr *a, int by)
{
    union exsi_addr to = *a;
    to.in.sin_port = htons((uint16_t)(ntohs(a->in.sin_port) + by));
    return to;
}

static int verbs_listen(struct exsi_part *part, const union exsi_addr *addr, int backlog,
                        const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out, union exsi_addr *bound)
{
    union exsi_addr at = shifted(addr, 1);
    if (verbs.fail_listen) return -EADDRINUSE;
    return exsi_soft_ops.cm_listen(part, &at, backlog, opt, user, out, bound);
}

static int verbs_resolve(struct exsi_part *part, const union exsi_addr *source, const union exsi_addr *peer,
                         const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out)
{
    union exsi_addr at = shifted(peer, 1);
    if (verbs.fail_resolve) return -ENODEV;
    /* An address for documentation: no answer, or an error at once; both must lead back. */
    if (verbs.deaf) at.in.sin_addr.s_addr = htonl(0xc0000201);
    return exsi_soft_ops.cm_resolve(part, source, &at, opt, user, out);
}

const struct exsi_device_entry *exsi_device_registry(int *n)
{
    verbs.ops = exsi_soft_ops;
    verbs.ops.name = "verbs";
    verbs.ops.open = verbs_open;
    verbs.ops.cm_listen = verbs_listen;
    verbs.ops.cm_resolve = verbs_resolve;
    verbs.entries[0] = (struct exsi_device_entry){.name = "verbs", .summary = "soft, renamed", .ops = &verbs.ops};
    verbs.entries[1] = (struct exsi_device_entry){.name = "soft", .summary = "soft", .ops = &exsi_soft_ops};
    *n = 2;
    return verbs.entries;
}

/* Of this host, but not loopback; 0: it has none. */
static uint32_t own_address(void)
{
    struct ifaddrs *all, *a;
    uint32_t found = 0;
    must(getifaddrs(&all) == 0);
    for (a = all; a && !found; a = a->ifa_next)
        if (a->ifa_addr && a->ifa_addr->sa_family == AF_INET && a->ifa_flags & IFF_UP && !(a->ifa_flags & IFF_LOOPBACK))
            found = ((struct sockaddr_in *)(void *)a->ifa_addr)->sin_addr.s_addr;
    freeifaddrs(all);
    return found;
}

struct ends {
    const char *server, *client; /* their devices, as options */
    uint32_t address;
    int path;
};

static void listen_there(struct pair *p, const struct ends *e)
{
    uint32_t len = sizeof p->addr;
    memset(p, 0, sizeof *p);
    side_open(&p->server, false);
    side_open(&p->client, false);
    exsi_options_default(&p->opt);
    snprintf(p->opt.device, sizeof p->opt.device, "%s", e->server);
    p->addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = e->address};
    must(exsi_socket_new(p->server.ctx, p->server.group, AF_INET, SOCK_STREAM, &p->opt, &p->listener) == 0);
    must(exsi_bind(p->server.ctx, p->listener, &p->addr, sizeof p->addr) == 0);
    must(exsi_listen(p->server.ctx, p->listener, 8) == 0);
    must(exsi_sockname(p->server.ctx, p->listener, &p->addr, &len) == 0);
    must(exsi_accept(p->server.ctx, p->listener, C_ACCEPT, p->server.eq, NULL) == 0);
}

static void talk(struct pair *p)
{
    static char out[100000], in[sizeof out];
    memset(out, 'x', sizeof out);
    must(exsi_recv(p->server.ctx, p->server.sock, in, sizeof in, EXSI_OPF_WAITALL, 0, 1, p->server.eq, NULL) == 0);
    must(exsi_send(p->client.ctx, p->client.sock, out, sizeof out, 0, 0, 2, p->client.eq, NULL) == 0);
    must(pair_wait(p, &p->server, 1).value == sizeof in);
    must(pair_wait(p, &p->client, 2).error == 0 && memcmp(in, out, sizeof in) == 0);
}

static const char *device_of(struct side *s, exsi_socket_info *info)
{
    must(exsi_socket_query(s->ctx, s->sock, info) == 0);
    return info->device;
}

static void expect(const struct ends *e, const char *device, const char *what)
{
    struct pair p;
    exsi_socket_info a, b;
    listen_there(&p, e);
    snprintf(p.opt.device, sizeof p.opt.device, "%s", e->client);
    p.opt.path = (uint32_t)e->path;
    must(exsi_socket_new(p.client.ctx, p.client.group, AF_INET, SOCK_STREAM, &p.opt, &p.client.sock) == 0);
    must(exsi_connect(p.client.ctx, p.client.sock, &p.addr, sizeof p.addr, C_CONNECT, p.client.eq, NULL) == 0);
    exsi_event c = pair_wait(&p, &p.client, C_CONNECT);
    ok(c.error == 0, "%s: connected", what);
    exsi_event accepted = pair_wait(&p, &p.server, C_ACCEPT);
    must(accepted.error == 0);
    p.server.sock = accepted.value;
    const char *mine = device_of(&p.client, &a), *theirs = device_of(&p.server, &b);
    ok(strcmp(mine, device) == 0 && strcmp(theirs, device) == 0, "%s: %s and %s", what, mine, theirs);
    talk(&p);
    pair_close(&p);
    verbs.absent = verbs.fail_listen = verbs.fail_resolve = verbs.deaf = 0;
}

static void test_best_that_both_have(uint32_t here)
{
    const struct ends both = {"auto", "auto", here, EXSI_PATH_AUTO};
    expect(&both, "verbs", "both have verbs");
    expect(&(struct ends){"soft", "auto", here, EXSI_PATH_AUTO}, "soft", "the listener is on soft");
    expect(&(struct ends){"auto", "soft", here, EXSI_PATH_AUTO}, "soft", "soft was asked for");
    expect(&(struct ends){"auto", "auto", here, EXSI_PATH_TCP}, "soft", "a path was asked for");
    verbs.fail_listen = 1;
    expect(&both, "soft", "the listener cannot listen there");
    verbs.fail_resolve = 1;
    expect(&both, "soft", "verbs does not lead there");
    verbs.deaf = 1;
    expect(&both, "soft", "nobody answers there");
}

static void test_soft_where_there_is_no_choice(void)
{
    const struct ends loop = {"auto", "auto", htonl(INADDR_LOOPBACK), EXSI_PATH_AUTO};
    verbs.tried = 0;
    expect(&loop, "soft", "loopback");
    ok(verbs.tried == 0, "verbs was not even opened");
}

static void test_missing_device_is_looked_for_once(uint32_t here)
{
    verbs.tried = 0;
    verbs.absent = 1;
    expect(&(struct ends){"auto", "auto", here, EXSI_PATH_AUTO}, "soft", "nobody has verbs");
    ok(verbs.tried == 2, "each side looked once");
}

int main(void)
{
    uint32_t here = own_address();
    test_soft_where_there_is_no_choice();
    if (here) {
        test_best_that_both_have(here);
        test_missing_device_is_looked_for_once(here);
    } else {
        ok(true, "the rest # SKIP verbs is not tried on loopback, and this host has no other address");
    }
    return tap_done();
}
