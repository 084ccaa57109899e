// SPDX-License-Identifier: MIT OR Apache-2.0
/* Is the peer's host still there?  Asked of the transport, not of the peer's program, which may compute for long.
 *
 * On InfiniBand a WRITE of nothing completes when the far device has acknowledged it.  On iWARP a completed WRITE or
 * SEND only says that TCP has the bytes, so a READ of nothing asks.  A far device or kernel answers it, but where the
 * peer is soft its program does.  Then TCP itself knows more, if it is the kernel's (siw): a host that acknowledges
 * lives, and a WRITE of nothing makes sure that there is something to acknowledge.
 *
 * Invariant: at most one READ and one WRITE of ours are on their way; they have no place in qp->sent, since siw
 * completes a READ behind what was posted after it. */
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "device/verbs/verbs.h"

enum {
    LOOKS_PER_TIME = 2, /* looks per keepalive_ms */
    LOOKS = 3,          /* so many in a row without a sign of life are death */
};

static void to_diag(const union exsi_addr *a, __be32 addr[4], __be16 *port)
{
    if (a->sa.sa_family == AF_INET6)
        memcpy(addr, &a->in6.sin6_addr, sizeof a->in6.sin6_addr);
    else
        memcpy(addr, &a->in.sin_addr, sizeof a->in.sin_addr);
    *port = a->sa.sa_family == AF_INET6 ? a->in6.sin6_port : a->in.sin_port;
}

/* The kernel answers within the send. */
static ssize_t ask_kernel(const union exsi_addr *local, const union exsi_addr *peer, void *answer, size_t room)
{
    struct {
        struct nlmsghdr head;
        struct inet_diag_req_v2 req;
    } ask = {.head = {.nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
             .req = {.sdiag_family = (uint8_t)local->sa.sa_family,
                     .sdiag_protocol = IPPROTO_TCP,
                     .idiag_ext = 1 << (INET_DIAG_INFO - 1),
                     .idiag_states = ~0u,
                     .id = {.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}}};
    to_diag(local, ask.req.id.idiag_src, &ask.req.id.idiag_sport);
    to_diag(peer, ask.req.id.idiag_dst, &ask.req.id.idiag_dport);
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_SOCK_DIAG);
    if (fd < 0) return -1;
    ssize_t got = send(fd, &ask, sizeof ask, 0) == (ssize_t)sizeof ask ? recv(fd, answer, room, 0) : -1;
    close(fd);
    return got;
}

/* What TCP knows of the connection; false if the kernel has none of these addresses: then it is the adapter's. */
static bool tcp_state(const struct verbs_qp *qp, struct tcp_info *out)
{
    union {
        struct nlmsghdr head;
        uint8_t bytes[2048];
    } answer;
    union exsi_addr local, peer;
    verbs_id_names(qp->id, &local, &peer);
    ssize_t got = ask_kernel(&local, &peer, &answer, sizeof answer);
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct inet_diag_msg)) || answer.head.nlmsg_len > (size_t)got ||
        answer.head.nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return false;
    size_t at = NLMSG_LENGTH(sizeof(struct inet_diag_msg)), end = answer.head.nlmsg_len;
    while (at + sizeof(struct rtattr) <= end) {
        struct rtattr a;
        memcpy(&a, answer.bytes + at, sizeof a);
        if (a.rta_len < sizeof a || a.rta_len > end - at) return false;
        size_t len = a.rta_len - RTA_LENGTH(0);
        if (a.rta_type == INET_DIAG_INFO) {
            memset(out, 0, sizeof *out);
            memcpy(out, answer.bytes + at + RTA_LENGTH(0), len < sizeof *out ? len : sizeof *out);
            return true;
        }
        at += RTA_ALIGN(a.rta_len);
    }
    return false;
}

/* As soft judges its own connections (path_tcp.c): with bytes on the way a living host answers within a round trip;
 * with its window closed it answers the probes, which become rarer. */
static bool host_acknowledges(const struct verbs_qp *qp)
{
    struct tcp_info info;
    if (!qp->adapter->iwarp || !tcp_state(qp, &info)) return false;
    bool silent = info.tcpi_last_ack_recv >= qp->id->opt.keepalive_ms;
    bool asked = info.tcpi_unacked ? info.tcpi_retransmits > 1 : info.tcpi_probes > 2;
    return !silent || !asked;
}

static void look(struct exsi_timer *t)
{
    struct verbs_qp *qp = exsi_container_of(t, struct verbs_qp, alive_timer);
    if (qp->down) return;
    qp->silent = qp->heard ? 0 : qp->silent + 1;
    qp->heard = false;
    if (qp->silent >= LOOKS) {
        if (!host_acknowledges(qp)) {
            verbs_qp_fail(qp, ETIMEDOUT, "the peer's host does not answer");
            return;
        }
        if (!qp->nudge_out && !qp->shut && verbs_qp_post_nudge(qp) == 0) qp->nudge_out = true;
    }
    if (qp->silent && !qp->mark_out && !qp->shut && verbs_qp_post_mark(qp) == 0) qp->mark_out = true;
    verbs_alive_start(qp);
}

void verbs_alive_start(struct verbs_qp *qp)
{
    uint32_t ms = qp->id ? qp->id->opt.keepalive_ms : 0;
    if (!ms || qp->down) return;
    qp->alive_timer.fn = look;
    if (exsi_timer_start(qp->part->poller, &qp->alive_timer, (uint64_t)ms * 1000000u / LOOKS_PER_TIME) < 0)
        verbs_qp_fail(qp, ENOMEM, "no memory for the keep-alive timer");
}
