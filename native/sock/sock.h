// SPDX-License-Identifier: MIT OR Apache-2.0
/* Sockets: states, options, and the way from a name to a connected endpoint and back.
 * socket.c owns struct exsi_socket and its posts, conn.c what connection management says,
 * progress.c the one function that moves a group.  Under the group's lock. */
#ifndef EXSI_SOCK_H
#define EXSI_SOCK_H

#include "api.h"
#include "core/endpoint.h"
#include "engine/engine.h"

struct exsi_socket {
    struct exsi_attach attach;            /* first: changed() finds the socket from it */
    struct exsi_group *group;
    uint64_t handle;
    int family, type;
    enum exsi_socket_state state;
    exsi_options opt;
    struct exsi_stats stats;
    struct exsi_endpoint *ep;
    struct exsi_device *dev;
    const struct exsi_engine_ops *engine;
    union exsi_addr local, peer;
    bool bound, send_shut, recv_shut, closing, aborted, ready_to_free;
    char reason[EXSI_REASON_MAX];
    /* listener */
    struct exsi_cm_id *listener;
    int backlog;
    struct exsi_list pending;             /* sockets connected or in set-up, not accepted yet */
    struct exsi_list pending_node;
    uint32_t n_pending;
    bool established;
    struct exsi_socket *parent;
    struct exsi_list accepts;             /* EXSI_OP_ACCEPT, armed in order */
    /* single operations */
    struct exsi_op *connect_op, *close_op;
    struct exsi_list polls, shutdowns;
    uint32_t sends, recvs;                /* in flight, against opt.max_ops */
    struct exsi_timer timer;              /* close and cancel bound */
    uint64_t conn_cookie;
    struct exsi_cm_id *cm;                /* before the endpoint owns it */
};

#endif
