// SPDX-License-Identifier: MIT OR Apache-2.0
/* Queue pairs without connection management: two ends that only know (GID, QPN, PSN) of each other.
 *
 * Nothing in these names a TCP port, so soft makes GIDs that do: fd 45 58 53, six random bytes that
 * name the part, two bytes port and four bytes IPv4 address of a listener that opens with the part's
 * first raw queue pair.  Of the two ends the one with the larger (GID, QPN) connects and names both
 * QPNs and PSNs; the other takes only what it was told to expect.  Either may be first: a call that
 * comes before its end is ready waits, within the same bound as everything here.
 * Invariant: an id with raw set is unknown to the upper layer and ends with its queue pair. */
#include <ifaddrs.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/bytes.h"
#include "device/soft/cm.h"

enum { RAW_BOUND_MS = 10000, RAW_BACKLOG = 64, QPN_MASK = 0xffffff, MTU_4096 = 5 };

static const struct exsi_cm_options raw_options = {
    .path = EXSI_PATH_AUTO, .connect_timeout_ms = RAW_BOUND_MS, .keepalive_ms = 10000, .close_timeout_ms = 2000};

/* Of a part. */
struct soft_raw {
    struct soft_id *listener;
    uint8_t gid[16], mac[6];
    uint32_t next_qpn;
};

/* Of a queue pair. */
struct soft_raw_qp {
    struct soft_qp *qp;
    uint32_t qpn, psn;
    struct exsi_raw_address peer;
    struct exsi_timer timer;
    bool rtr, rts;
};

/* --- GIDs -------------------------------------------------------------------------------------- */

struct raw_gid {
    uint8_t prefix[4], process[6];
    exsi_be16 port;
    uint8_t address[4];
};
_Static_assert(sizeof(struct raw_gid) == 16, "a GID");
static const uint8_t gid_prefix[4] = {0xfd, 0x45, 0x58, 0x53};

static int gid_to_addr(const uint8_t gid[16], union exsi_addr *out)
{
    struct raw_gid g;
    memcpy(&g, gid, sizeof g);
    if (memcmp(g.prefix, gid_prefix, sizeof gid_prefix) != 0) return -EHOSTUNREACH;
    memset(out, 0, sizeof *out);
    out->in.sin_family = AF_INET;
    out->in.sin_port = htons(exsi_get16(g.port));
    memcpy(&out->in.sin_addr, g.address, sizeof g.address);
    return 0;
}

/* An address that others can dial: the first of an interface that is up, loopback if there is none. */
static struct in_addr own_address(void)
{
    struct in_addr found = {htonl(INADDR_LOOPBACK)};
    struct ifaddrs *all;
    if (getifaddrs(&all) < 0) return found;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
        if (!(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK) continue;
        struct sockaddr_in in;
        memcpy(&in, i->ifa_addr, sizeof in);
        found = in.sin_addr;
        break;
    }
    freeifaddrs(all);
    return found;
}

static int raw_part_open(struct soft_part *part)
{
    if (part->raw) return 0;
    struct soft_raw *raw = calloc(1, sizeof *raw);
    if (!raw) return -ENOMEM;
    union exsi_addr addr = {.in = {.sin_family = AF_INET, .sin_addr = own_address()}}, bound;
    struct exsi_cm_id *id;
    int rc = soft_cm_listen(&part->part, &addr, RAW_BACKLOG, &raw_options, NULL, &id, &bound);
    if (rc < 0) {
        free(raw);
        return rc;
    }
    raw->listener = soft_id_of(id);
    raw->listener->raw = true;
    struct raw_gid g = {.port = exsi_put16(ntohs(bound.in.sin_port))};
    memcpy(g.prefix, gid_prefix, sizeof g.prefix);
    exsi_random(g.process, sizeof g.process);
    memcpy(g.address, &bound.in.sin_addr, sizeof g.address);
    memcpy(raw->gid, &g, sizeof g);
    memcpy(raw->mac, g.process, sizeof raw->mac);
    raw->mac[0] = (uint8_t)((raw->mac[0] & 0xfc) | 0x02); /* administered here, one station */
    exsi_random(&raw->next_qpn, sizeof raw->next_qpn);
    part->raw = raw;
    return 0;
}

void soft_raw_part_close(struct soft_part *part)
{
    /* Its listener is one of the part's ids and ends with them. */
    free(part->raw);
    part->raw = NULL;
}

/* --- queue pairs ------------------------------------------------------------------------------- */

static void raw_late(struct exsi_timer *t)
{
    struct soft_raw_qp *raw = exsi_container_of(t, struct soft_raw_qp, timer);
    static const char reason[] = "the other end of a raw queue pair did not come";
    exsi_log(raw->qp->part->log, EXSI_LOG_INFO, raw->qp->log_id, "%s", reason);
    soft_qp_down(raw->qp, ETIMEDOUT, reason);
}

static struct soft_qp *find_qpn(struct soft_part *part, uint32_t qpn)
{
    exsi_list_for (qp, &part->qps, struct soft_qp, node) {
        if (qp->raw && qp->raw->qpn == qpn) return qp;
    }
    return NULL;
}

int soft_raw_open(struct soft_qp *qp, const uint8_t *gid)
{
    struct soft_part *part = qp->part;
    EXSI_TRY(raw_part_open(part));
    if (gid && memcmp(gid, part->raw->gid, sizeof part->raw->gid) != 0) return -EADDRNOTAVAIL;
    struct soft_raw_qp *raw = calloc(1, sizeof *raw);
    if (!raw) return -ENOMEM;
    do raw->qpn = part->raw->next_qpn++ & QPN_MASK;
    while (raw->qpn < 2 || find_qpn(part, raw->qpn)); /* 0 and 1 have a meaning in InfiniBand */
    exsi_random(&raw->psn, sizeof raw->psn);
    raw->psn &= QPN_MASK;
    raw->qp = qp;
    raw->timer.fn = raw_late;
    qp->raw = raw;
    return 0;
}

void soft_raw_close(struct soft_qp *qp)
{
    exsi_timer_stop(qp->part->poller, &qp->raw->timer);
    if (qp->id) soft_id_free(qp->id);
    free(qp->raw);
    qp->raw = NULL;
}

bool soft_raw_may_send(const struct soft_qp *qp)
{
    return qp->raw->rts;
}

int soft_raw_query(struct exsi_qp *eqp, struct exsi_raw_address *out)
{
    const struct soft_qp *qp = soft_qp_of(eqp);
    if (!qp->raw) return -EOPNOTSUPP;
    *out = (struct exsi_raw_address){.mtu_code = MTU_4096, .qpn = qp->raw->qpn, .psn = qp->raw->psn};
    memcpy(out->gid, qp->part->raw->gid, sizeof out->gid);
    memcpy(out->mac, qp->part->raw->mac, sizeof out->mac);
    return 0;
}

/* --- the call ---------------------------------------------------------------------------------- */

static int raw_call(struct soft_qp *qp)
{
    const struct soft_raw_qp *raw = qp->raw;
    union exsi_addr addr;
    EXSI_TRY(gid_to_addr(raw->peer.gid, &addr));
    struct soft_id *id = soft_id_new(qp->part, &raw_options, NULL);
    if (!id) return -ENOMEM;
    id->raw = id->active = true;
    id->qp = qp;
    qp->id = id;
    id->peer = addr;
    id->state = SOFT_ID_CONNECTING;
    id->block = (struct soft_block){.flags = SOFT_BLOCK_RAW,
                                    .raw_src_qpn = raw->qpn,
                                    .raw_src_psn = raw->psn,
                                    .raw_dst_qpn = raw->peer.qpn,
                                    .raw_dst_psn = raw->peer.psn};
    int rc = id->fd = soft_sock_connect(NULL, &addr, &raw_options);
    if (rc >= 0) rc = exsi_poller_add(qp->part->poller, &id->watch, id->fd, EPOLLOUT);
    if (rc < 0) soft_id_free(id);
    return rc < 0 ? rc : 0;
}

void soft_raw_resolved(struct soft_id *id)
{
    soft_mpa_call(id, NULL, 0);
}

static bool expected(const struct soft_raw_qp *raw, const struct soft_block *b)
{
    return b->raw_src_qpn == raw->peer.qpn && b->raw_src_psn == raw->peer.psn && b->raw_dst_qpn == raw->qpn &&
           b->raw_dst_psn == raw->psn;
}

static void raw_refuse(struct soft_id *id)
{
    exsi_log(id->part->log, EXSI_LOG_INFO, 0, "refused a call to a raw queue pair that nobody announced");
    soft_mpa_reject(id, NULL, 0, 0);
    soft_id_free(id);
}

static void raw_take(struct soft_qp *qp, struct soft_id *id)
{
    if (!expected(qp->raw, &id->peer_block) || qp->id || qp->state != SOFT_QP_INIT) {
        raw_refuse(id);
        return;
    }
    id->qp = qp;
    qp->id = id;
    soft_mpa_answer(id, NULL, 0);
}

void soft_raw_requested(struct soft_id *id)
{
    struct soft_qp *qp = NULL;
    if (id->peer_soft && id->peer_block.flags & SOFT_BLOCK_RAW) qp = find_qpn(id->part, id->peer_block.raw_dst_qpn);
    if (!qp) {
        raw_refuse(id);
    } else if (qp->raw->rtr) {
        raw_take(qp, id);
    } else {
        /* Its end was not told yet whom to expect; soft_raw_to_rtr comes back to it. */
        exsi_poller_mod(id->part->poller, &id->watch, EPOLLIN | EPOLLRDHUP);
        if (exsi_timer_start(id->part->poller, &id->timer, RAW_BOUND_MS * 1000000ull) < 0) raw_refuse(id);
    }
}

void soft_raw_agreed(struct soft_id *id)
{
    struct soft_qp *qp = id->qp;
    exsi_timer_stop(qp->part->poller, &qp->raw->timer);
    soft_id_leave_listener(id);
    id->state = SOFT_ID_UP;
    soft_qp_start(qp);
}

void soft_raw_failed(struct soft_id *id, int error)
{
    struct soft_qp *qp = id->qp;
    soft_id_free(id);
    if (!qp) return;
    exsi_timer_stop(qp->part->poller, &qp->raw->timer);
    soft_qp_down(qp, error, NULL);
}

int soft_raw_to_rtr(struct exsi_qp *eqp, const struct exsi_raw_address *peer)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    struct soft_part *part = qp->part;
    if (!qp->raw) return -EOPNOTSUPP;
    if (qp->raw->rtr || qp->state != SOFT_QP_INIT) return -EINVAL;
    union exsi_addr addr;
    EXSI_TRY(gid_to_addr(peer->gid, &addr));
    int order = memcmp(part->raw->gid, peer->gid, sizeof peer->gid);
    if (order == 0 && qp->raw->qpn == peer->qpn) return -EINVAL; /* itself */
    qp->raw->peer = *peer;
    bool calls = order > 0 || (order == 0 && qp->raw->qpn > peer->qpn);
    EXSI_TRY(exsi_timer_start(part->poller, &qp->raw->timer, RAW_BOUND_MS * 1000000ull));
    if (calls) {
        int rc = raw_call(qp);
        if (rc < 0) exsi_timer_stop(part->poller, &qp->raw->timer);
        qp->raw->rtr = rc == 0;
        return rc;
    }
    qp->raw->rtr = true;
    exsi_list_for_safe (id, &part->ids, struct soft_id, node) {
        if (id->raw && id->state == SOFT_ID_REQUESTED && !id->qp && id->peer_block.raw_dst_qpn == qp->raw->qpn)
            raw_take(qp, id);
    }
    return 0;
}

int soft_raw_to_rts(struct exsi_qp *eqp)
{
    struct soft_qp *qp = soft_qp_of(eqp);
    if (!qp->raw) return -EOPNOTSUPP;
    if (!qp->raw->rtr) return -EINVAL;
    qp->raw->rts = true;
    return 0;
}
