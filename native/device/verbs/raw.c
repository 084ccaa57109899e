// SPDX-License-Identifier: MIT OR Apache-2.0
/* Queue pairs without connection management: their attributes are set by hand, what the peer must know is carried by
 * the upper layer.  RoCE only, which is where they are needed (SMC-R).
 * Invariant: INIT from the moment they are made, so that receives can be posted before the peer is known. */
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "device/verbs/verbs.h"

enum {
    PORT = 1,
    ACK_TIMEOUT = 17,
    RNR_TIMER = 12, /* 0.64 ms, IBTA table 45 */
    RNR_RETRY = 7,  /* for ever: the peer grants no credits, so being out of receives is no fault of its */
    HOP_LIMIT = 255,
    MAX_GIDS = 64,
};

static bool is_raw_adapter(const struct verbs_adapter *a)
{
    return !a->iwarp && !atomic_load_explicit(&a->gone, memory_order_relaxed);
}

static bool is_v4(const union ibv_gid *gid)
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid->raw, prefix, sizeof prefix) == 0;
}

/* The RoCEv2 GID that is wanted; without one, that of an IPv4 address, which every network routes, or the first that is
 * RoCEv2 at all. */
static int find_gid(const struct verbs_lib *lib, const struct verbs_adapter *a, const uint8_t *wanted,
                    struct ibv_gid_entry *out)
{
    struct ibv_gid_entry entries[MAX_GIDS];
    const struct ibv_gid_entry *best = NULL;
    ssize_t n = lib->_ibv_query_gid_table(a->ctx, entries, MAX_GIDS, 0, sizeof entries[0]);
    if (n < 0) return (int)n;
    for (ssize_t i = 0; i < n; i++) {
        const struct ibv_gid_entry *e = &entries[i];
        if (e->port_num != PORT || e->gid_type != IBV_GID_TYPE_ROCE_V2) continue;
        if (wanted && memcmp(wanted, e->gid.raw, sizeof e->gid.raw) != 0) continue;
        if (!best || (is_v4(&e->gid) && !is_v4(&best->gid))) best = e;
    }
    if (!best) return -EADDRNOTAVAIL;
    *out = *best;
    return 0;
}

int verbs_raw_adapter(struct verbs_part *part, const uint8_t *gid, struct verbs_adapter **out)
{
    struct verbs_device *vdev = part->vdev;
    struct ibv_gid_entry entry;
    int n = atomic_load_explicit(&vdev->n_adapters, memory_order_acquire);
    for (int i = 0; i < n; i++) {
        struct verbs_adapter *a = vdev->adapters[i];
        if (!is_raw_adapter(a) || find_gid(part->lib, a, gid, &entry) < 0) continue;
        return verbs_adapter_of(vdev, a->ctx, out);
    }
    return gid ? -EADDRNOTAVAIL : -ENODEV;
}

int verbs_raw_open(struct verbs_qp *qp, struct ibv_qp_init_attr *init)
{
    const struct verbs_lib *lib = qp->part->lib;
    struct ibv_gid_entry entry;
    EXSI_TRY(find_gid(lib, qp->adapter, qp->attr.gid, &entry));
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = PORT, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    errno = 0;
    qp->ibqp = lib->ibv_create_qp(qp->domain->pd, init);
    if (!qp->ibqp) return errno ? -errno : -ENOMEM;
    qp->port = PORT;
    qp->gid = entry.gid;
    qp->gid_index = (uint8_t)entry.gid_index;
    qp->gid_known = true;
    exsi_random(&qp->psn, sizeof qp->psn);
    qp->psn &= 0xffffff;
    int rc = lib->ibv_modify_qp(qp->ibqp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (rc == 0) return 0;
    (void)lib->ibv_destroy_qp(qp->ibqp);
    qp->ibqp = NULL;
    return -rc;
}

/* The Ethernet address of a network device. */
static int mac_of(unsigned ifindex, uint8_t mac[6])
{
    struct ifreq req = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    int rc = if_indextoname(ifindex, req.ifr_name) && ioctl(fd, SIOCGIFHWADDR, &req) == 0 ? 0 : -errno;
    close(fd);
    if (rc == 0) memcpy(mac, req.ifr_hwaddr.sa_data, 6);
    return rc;
}

int verbs_raw_query(struct exsi_qp *eqp, struct exsi_raw_address *out)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    struct ibv_port_attr port;
    struct ibv_gid_entry entry;
    if (qp->id || !qp->ibqp) return -EINVAL;
    *out = (struct exsi_raw_address){.qpn = qp->ibqp->qp_num, .psn = qp->psn};
    EXSI_TRY(verbs_query_port(qp->adapter->ctx, PORT, &port));
    out->mtu_code = (uint8_t)port.active_mtu;
    EXSI_TRY(find_gid(qp->part->lib, qp->adapter, qp->gid.raw, &entry));
    memcpy(out->gid, entry.gid.raw, sizeof out->gid);
    out->gid_index = (uint8_t)entry.gid_index;
    return mac_of(entry.ndev_ifindex, out->mac);
}

int verbs_raw_to_rtr(struct exsi_qp *eqp, const struct exsi_raw_address *peer)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    struct exsi_raw_address own;
    EXSI_TRY(verbs_raw_query(eqp, &own));
    if (peer->mtu_code < IBV_MTU_256 || peer->mtu_code > IBV_MTU_4096) return -EINVAL;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = (enum ibv_mtu)exsi_min_u32(own.mtu_code, peer->mtu_code),
        .dest_qp_num = peer->qpn & 0xffffff,
        .rq_psn = peer->psn & 0xffffff,
        .max_dest_rd_atomic = 1,
        .min_rnr_timer = RNR_TIMER,
        .ah_attr = {.is_global = 1, .port_num = PORT, .grh = {.sgid_index = own.gid_index, .hop_limit = HOP_LIMIT}},
    };
    memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, sizeof peer->gid);
    return -qp->part->lib->ibv_modify_qp(qp->ibqp, &attr,
                                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

int verbs_raw_to_rts(struct exsi_qp *eqp)
{
    struct verbs_qp *qp = verbs_qp_of(eqp);
    if (qp->id || !qp->ibqp) return -EINVAL;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTS,
        .sq_psn = qp->psn,
        .timeout = ACK_TIMEOUT,
        .retry_cnt = VERBS_RETRY,
        .rnr_retry = RNR_RETRY,
        .max_rd_atomic = 1,
    };
    int rc = qp->part->lib->ibv_modify_qp(qp->ibqp, &attr,
                                          IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                              IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC);
    if (rc == 0) verbs_qp_up(qp);
    return -rc;
}
