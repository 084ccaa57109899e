// SPDX-License-Identifier: MIT OR Apache-2.0
#include "device/soft/cm.h"

int soft_raw_open(struct soft_qp *qp)
{
    (void)qp;
    return -EOPNOTSUPP;
}
void soft_raw_close(struct soft_qp *qp) { (void)qp; }
int soft_raw_query(struct exsi_qp *qp, struct exsi_raw_address *out)
{
    (void)qp;
    (void)out;
    return -EOPNOTSUPP;
}
int soft_raw_to_rtr(struct exsi_qp *qp, const struct exsi_raw_address *peer)
{
    (void)qp;
    (void)peer;
    return -EOPNOTSUPP;
}
int soft_raw_to_rts(struct exsi_qp *qp)
{
    (void)qp;
    return -EOPNOTSUPP;
}
void soft_raw_part_close(struct soft_part *part) { (void)part; }
void soft_raw_failed(struct soft_id *id, int error, const char *reason)
{
    (void)id;
    (void)error;
    (void)reason;
}
void soft_raw_resolved(struct soft_id *id) { (void)id; }
void soft_raw_requested(struct soft_id *id) { (void)id; }
void soft_raw_agreed(struct soft_id *id) { (void)id; }
struct soft_qp *soft_raw_qp_of(struct soft_id *id) { return id->qp; }
