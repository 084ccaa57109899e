// SPDX-License-Identifier: MIT OR Apache-2.0
/* A link: a raw queue pair with the SMC-R engine on it, and what the program does with it.  It outlives the sockets on
 * it, and they it: closing a link ends its connections, its memory goes with the last of their sockets.
 *
 * Everything here runs under the group's lock unless it says otherwise. */
#ifndef EXSI_LINK_H
#define EXSI_LINK_H

#include "engine/smcr.h"
#include "sock/sock.h"

struct exsi_link {
    struct exsi_group *group;    /* shares: one reference */
    struct exsi_list group_node; /* group->links */
    uint64_t handle;
    struct exsi_device *dev; /* fixed: may be read without the lock */
    struct exsi_endpoint *ep;
    struct exsi_stats stats;
    struct exsi_op *wait; /* until there is a notice; NULL: nobody waits */
    struct exsi_timer grace;
    bool closed; /* by the program: goes when nothing is left of it */
};

/* A link on the device named (NULL or "": the best that has it), with the GID (16 bytes) or any.  Without any lock.
 * -EADDRNOTAVAIL: no device has the GID; -ENODEV, -EOPNOTSUPP: none has raw queue pairs. */
EXSI_MUST_CHECK int exsi_link_new(struct exsi_group *g, const char *device, const uint8_t *gid, struct exsi_link **out);
/* The link behind a handle, with one reference more; NULL.  Without any lock. */
struct exsi_link *exsi_link_get(struct exsi_ctx *ctx, uint64_t handle);
void exsi_link_put(struct exsi_link *l);

EXSI_MUST_CHECK int exsi_link_to_rtr(struct exsi_link *l, const struct exsi_raw_address *peer);
EXSI_MUST_CHECK int exsi_link_to_rts(struct exsi_link *l);
/* Take the op: it ends when there is a notice.  -EBUSY: one waits already. */
EXSI_MUST_CHECK int exsi_link_wait(struct exsi_link *l, struct exsi_op *op);
void exsi_link_cancel(struct exsi_link *l);
/* Its connections end at once; what they and the program said last gets a moment to leave. */
EXSI_MUST_CHECK int exsi_link_close(struct exsi_link *l);
/* End all links of a group, whose sockets have ended. */
void exsi_link_group_end(struct exsi_group *g);

/* A ring of size bytes.  Takes the lock itself. */
EXSI_MUST_CHECK int exsi_link_rmb_new(struct exsi_link *l, uint32_t size, struct exsi_smcr_rmb **out, uint64_t *vaddr,
                                      uint32_t *rkey, uint64_t *number);
/* A socket on the link: state CONNECTING until exsi_link_open. */
EXSI_MUST_CHECK int exsi_link_socket(struct exsi_link *l, uint64_t rmb, uint32_t token, const exsi_options *opt,
                                     struct exsi_socket **out);
EXSI_MUST_CHECK int exsi_link_open(struct exsi_socket *s, const struct exsi_smcr_peer *peer);
/* The socket leaves its link. */
void exsi_link_leave(struct exsi_socket *s);
/* Bytes of the ring, for a socket on a link: as exsi_recv_view and _release of api.h. */
EXSI_MUST_CHECK int exsi_link_view(struct exsi_socket *s, void **addr, uint64_t *len);
EXSI_MUST_CHECK int exsi_link_release(struct exsi_socket *s, uint64_t n);

#endif
