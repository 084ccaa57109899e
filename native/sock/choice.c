// SPDX-License-Identifier: MIT OR Apache-2.0
/* Which device carries a connection: the one that was asked for, or with "auto" the best that both ends have.
 *
 * With "auto" everybody meets on soft, which is always there.  A listener listens on verbs too, on the same address and
 * port, if that can be had; a dialling socket that has verbs says so in its hello, and such a listener refuses it with
 * "dial verbs".  It does, within a bound of its own, and comes back to soft if that fails, saying nothing any more.  So
 * no connection waits for a network that is not there, and none changes its device after data moved.
 *
 * Invariant: socket->better is set only while "auto" may still move the connection there. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "sock/sock.h"

#define MEETING "soft"
#define BETTER  "verbs"
/* rdma_cm alone may need a minute to see that nobody answers. */
#define MOVE_MS 3000u

static bool is_auto(const struct exsi_socket *s)
{
    return !s->opt.device[0] || strcmp(s->opt.device, "auto") == 0;
}

/* A path was asked for, or the address never leaves this host: soft. */
static bool stays(const struct exsi_socket *s, const union exsi_addr *a)
{
    if (!is_auto(s) || s->opt.path != EXSI_PATH_AUTO) return true;
    if (a->sa.sa_family == AF_INET) return ntohl(a->in.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return IN6_IS_ADDR_LOOPBACK(&a->in6.sin6_addr);
}

static int use(struct exsi_socket *s, struct exsi_device *dev, struct exsi_part **part)
{
    EXSI_TRY(exsi_group_part(s->group, dev, part));
    /* Release: posts read it without the group's lock (xfer.c). */
    atomic_store_explicit(&s->dev, dev, memory_order_release);
    return 0;
}

void exsi_choice_open(struct exsi_socket *s, const union exsi_addr *peer, struct exsi_devices *out)
{
    struct exsi_ctx *ctx = s->group->ctx;
    const char *name = is_auto(s) ? MEETING : s->opt.device;
    union exsi_addr at;
    *out = (struct exsi_devices){0};
    out->rc = exsi_ctx_device(ctx, name, &out->first, out->reason);
    if (out->rc < 0) return;
    if (peer) {
        at = *peer;
    } else {
        exsi_group_lock(s->group);
        at = s->local;
        exsi_group_unlock(s->group);
        at.sa.sa_family = (sa_family_t)s->family;
    }
    if (!stays(s, &at)) out->better = exsi_ctx_device_once(ctx, BETTER);
}

int exsi_choice_first(struct exsi_socket *s, const struct exsi_devices *devices, struct exsi_part **part)
{
    if (devices->rc < 0) {
        memcpy(s->reason, devices->reason, sizeof s->reason);
        return devices->rc;
    }
    return use(s, devices->first, part);
}

/* --- dialling -------------------------------------------------------------------------------------- */

static int resolve(struct exsi_socket *s, struct exsi_device *dev, struct exsi_part *part, uint32_t most_ms)
{
    struct exsi_cm_options opt = exsi_conn_options(s);
    if (!opt.connect_timeout_ms || opt.connect_timeout_ms > most_ms) opt.connect_timeout_ms = most_ms;
    return dev->ops->cm_resolve(part, s->bound ? &s->local : NULL, &s->target, &opt, s, &s->cm);
}

int exsi_choice_dial(struct exsi_socket *s, const union exsi_addr *peer, const struct exsi_devices *devices)
{
    struct exsi_part *part;
    EXSI_TRY(exsi_choice_first(s, devices, &part));
    s->target = *peer;
    s->better = devices->better;
    return resolve(s, devices->first, part, s->opt.connect_timeout_ms);
}

bool exsi_choice_offered(const struct exsi_socket *s)
{
    return s->better && !s->moving;
}

static int redial(struct exsi_socket *s, struct exsi_device *dev, uint32_t most_ms)
{
    struct exsi_part *part;
    exsi_conn_teardown(s);
    s->reason[0] = '\0';
    EXSI_TRY(use(s, dev, &part));
    return resolve(s, dev, part, most_ms);
}

static int come_back(struct exsi_socket *s)
{
    struct exsi_device *dev;
    exsi_log(&s->group->ctx->log, EXSI_LOG_INFO, s->handle, BETTER " did not reach the peer, so it is " MEETING ": %s",
             s->reason);
    s->better = NULL;
    s->moving = false;
    /* It is where we began, so it is open. */
    EXSI_TRY(exsi_ctx_device(s->group->ctx, MEETING, &dev, s->reason));
    return redial(s, dev, s->opt.connect_timeout_ms);
}

bool exsi_choice_move(struct exsi_socket *s)
{
    if (!exsi_choice_offered(s)) return false;
    s->moving = true;
    return redial(s, s->better, MOVE_MS) == 0 || come_back(s) == 0;
}

bool exsi_choice_retry(struct exsi_socket *s)
{
    return s->moving && come_back(s) == 0;
}

void exsi_choice_settled(struct exsi_socket *s)
{
    s->better = NULL;
    s->moving = false;
}

/* --- listening ----------------------------------------------------------------------------------------- */

void exsi_choice_listen(struct exsi_socket *s, struct exsi_device *dev)
{
    struct exsi_part *part;
    union exsi_addr bound;
    if (!dev || stays(s, &s->local)) return;
    struct exsi_cm_options opt = exsi_conn_options(s);
    int rc = exsi_group_part(s->group, dev, &part);
    if (rc == 0) rc = dev->ops->cm_listen(part, &s->local, s->backlog, &opt, s, &s->also, &bound);
    if (rc == 0)
        s->also_dev = dev;
    else
        exsi_log(&s->group->ctx->log, EXSI_LOG_INFO, s->handle, "not listening on " BETTER " too: %s", strerror(-rc));
}

void exsi_choice_unlisten(struct exsi_socket *s)
{
    if (s->also) s->also_dev->ops->cm_destroy(s->also);
    s->also = NULL;
}

struct exsi_device *exsi_choice_of(const struct exsi_socket *listener, const struct exsi_cm_event *ev)
{
    if (listener->also && ev->listener == listener->also) return listener->also_dev;
    return atomic_load_explicit(&listener->dev, memory_order_relaxed);
}
