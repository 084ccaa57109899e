// SPDX-License-Identifier: MIT OR Apache-2.0
/* The memory of a connection that is being made.  Registering it may block while pages are pinned, so the
 * connection waits, without the group's lock, between RESOLVED or REQUEST and its endpoint.  Whoever leaves the
 * lock makes the memory, takes the lock again and goes on.
 *
 * Invariant: socket->setup is set while the memory is made and the connection still wanted; the connection id is
 * the socket's meanwhile, and an end of the connection only forgets the set-up. */
#include <stdlib.h>

#include "sock/sock.h"

struct exsi_setup {
    struct exsi_errand errand;
    struct exsi_socket *s; /* shares: one reference */
    struct exsi_device *dev;
    struct exsi_ep_attr attr;
    bool has_hello;
    struct exsi_hello hello; /* of the peer that wants in */
};

static void run(struct exsi_errand *e, struct exsi_group *g)
{
    struct exsi_setup *u = exsi_container_of(e, struct exsi_setup, errand);
    struct exsi_ep_memory memory;
    int rc = exsi_ep_memory_new(g->ctx, u->dev, &u->attr, &memory);
    exsi_group_lock(g);
    if (u->s->setup == u) {
        u->s->setup = NULL;
        exsi_conn_go_on(u->s, rc, &u->attr, &memory, u->has_hello ? &u->hello : NULL);
        exsi_settle(g);
    } else {
        exsi_ep_memory_drop(g, &memory);
    }
    /* Not exsi_group_unlock: what was noted now is for the caller, who looks again. */
    pthread_mutex_unlock(&g->lock);
    exsi_sock_put(u->s);
    free(u);
}

int exsi_setup_start(struct exsi_socket *s, const struct exsi_ep_attr *attr, const struct exsi_hello *hello)
{
    struct exsi_setup *u = calloc(1, sizeof *u);
    if (!u) return -ENOMEM;
    u->s = exsi_sock_get(s->group->ctx, s->handle);
    assert(u->s == s);
    u->dev = atomic_load_explicit(&s->dev, memory_order_relaxed);
    u->attr = *attr;
    u->has_hello = hello != NULL;
    if (hello) u->hello = *hello;
    u->errand.run = run;
    s->setup = u;
    exsi_group_errand(s->group, &u->errand);
    return 0;
}
