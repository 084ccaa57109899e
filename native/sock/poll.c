// SPDX-License-Identifier: MIT OR Apache-2.0
/* Readiness answered by an event: one operation over one or more sockets of a group, over when the first
 * of them is ready (ES-API 1.8, exs_poll).
 *
 * Invariant: a set lives exactly as long as its operation; every entry of it is in the polls list of its
 * socket, and a socket ends the sets it is in before it closes. */
#include "sock/sock.h"

#include <stdlib.h>

struct exsi_poll_entry {
    struct exsi_list node; /* socket->polls */
    struct exsi_poll_set *set;
    uint32_t flags;
};

struct exsi_poll_set {
    struct exsi_op *op;
    uint32_t n;
    struct exsi_poll_entry entries[];
};

int exsi_poll_start(struct exsi_socket *const *socks, const uint32_t *flags, uint32_t n, struct exsi_op *op)
{
    struct exsi_poll_set *set = calloc(1, sizeof *set + n * sizeof set->entries[0]);
    if (!set) return -ENOMEM;
    set->op = op;
    set->n = n;
    for (uint32_t i = 0; i < n; i++) {
        set->entries[i] = (struct exsi_poll_entry){.set = set, .flags = flags[i]};
        exsi_list_append(&socks[i]->polls, &set->entries[i].node);
        exsi_sock_changed(&socks[i]->attach, 0);
    }
    op->poll_set = set;
    return 0;
}

void exsi_poll_end(struct exsi_op *op, int error, uint32_t bits)
{
    struct exsi_poll_set *set = op->poll_set;
    for (uint32_t i = 0; i < set->n; i++) exsi_list_unlink(&set->entries[i].node);
    op->poll_set = NULL;
    free(set);
    exsi_op_finish(op, error, bits);
}

static uint32_t bits_of(const struct exsi_poll_entry *e, uint32_t ready)
{
    uint32_t bits = 0;
    if (ready & EXSI_CHANGE_READABLE) bits |= e->flags & EXSI_OPF_POLL_IN;
    if (ready & EXSI_CHANGE_WRITABLE) bits |= e->flags & EXSI_OPF_POLL_OUT;
    return bits;
}

void exsi_poll_look(struct exsi_socket *s, uint32_t ready)
{
    /* Ending a set takes all its entries out of the list, so the walk starts again. */
    struct exsi_poll_entry *e = exsi_list_first(&s->polls, struct exsi_poll_entry, node);
    while (e) {
        uint32_t bits = bits_of(e, ready);
        if (bits) {
            e->set->op->extra = (uint64_t)(e - e->set->entries);
            exsi_poll_end(e->set->op, 0, bits);
            e = exsi_list_first(&s->polls, struct exsi_poll_entry, node);
        } else {
            e = exsi_list_after(&s->polls, e, struct exsi_poll_entry, node);
        }
    }
}

void exsi_poll_end_all(struct exsi_socket *s, int error)
{
    struct exsi_poll_entry *e;
    while ((e = exsi_list_first(&s->polls, struct exsi_poll_entry, node))) exsi_poll_end(e->set->op, error, 0);
}
