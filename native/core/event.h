// SPDX-License-Identifier: MIT OR Apache-2.0
/* What happened: the one record that leaves the core.  Plain values, no pointers, owns nothing. */
#ifndef EXSI_EVENT_H
#define EXSI_EVENT_H

#include "base/base.h"

/* As it crosses into Python (one batch is unpacked as "<QQQiHH": 32 bytes). */
struct exsi_event {
    uint64_t cookie; /* the poster's */
    uint64_t value;  /* bytes; accept: handle of the new socket */
    uint64_t extra;  /* recv: full length of a truncated message; send: bytes handed over on error */
    int32_t error;   /* 0 or a positive errno */
    uint16_t kind;   /* enum exsi_op_kind */
    uint16_t flags;  /* enum exsi_event_flag */
};
_Static_assert(sizeof(struct exsi_event) == 32, "Python unpacks 32 bytes");

enum exsi_event_flag {
    EXSI_EV_TRUNCATED = 1,  /* message longer than the buffer; extra is its length */
    EXSI_EV_EOR = 2,        /* a whole message */
    EXSI_EV_DIRECT = 4,     /* at least one byte came straight into the buffer */
    EXSI_EV_INDIRECT = 8,   /* at least one byte came through the ring */
    EXSI_EV_EOF = 16,       /* recv: 0 bytes because the peer ended */
    EXSI_EV_SEND_SHUT = 32, /* a cancelled send was partly out: the direction refuses further sends */
};

#endif
