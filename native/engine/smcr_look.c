// SPDX-License-Identifier: MIT OR Apache-2.0
/* What can be seen of a link and its connections from outside: a copy, which changes nothing. */
#include "engine/smcr_flow.h"

int exsi_smcr_look(const struct exsi_smcr *l, uint32_t token, struct exsi_smcr_state *out)
{
    const struct smcr_flow *f = token ? smcr_find(l, token) : NULL;
    if (!f) return -ENOENT;
    *out = (struct exsi_smcr_state){
        .socket = f->socket,
        .token = f->token,
        .size = f->rmb->size,
        .peer = {.addr = f->peer_addr, .rkey = f->peer_rkey, .size = f->peer_size, .token = f->peer_token},
        .put = f->put,
        .freed = f->freed,
        .came = f->came,
        .taken = f->taken,
        .told = f->told,
        .sent = f->written,
        .received = f->received,
        .unsent = f->unsent,
        .unread = smcr_arrived(f),
        .producer_flags = f->open ? smcr_producer_flags(f) : 0,
        .peer_producer_flags = f->peer_flags,
        .connection_flags = f->said,
        .peer_connection_flags = f->heard,
        .error = f->error,
    };
    return 0;
}

uint64_t exsi_smcr_rings(const struct exsi_smcr *l, uint32_t *n)
{
    uint64_t bytes = 0;
    *n = 0;
    exsi_list_for (rmb, &l->rmbs, const struct exsi_smcr_rmb, node) {
        bytes += rmb->size;
        ++*n;
    }
    return bytes;
}
