// SPDX-License-Identifier: MIT OR Apache-2.0
/* Why a connection request was refused, in the private data of the refusal (docs/wire/exs.md).
 * 64 bytes: magic (4), block version (1), code (1), length of the text (1), zero (1), text (56). */
#ifndef EXSI_EXS_REJECT_H
#define EXSI_EXS_REJECT_H

#include "base/bytes.h"

#define EXSI_REJECT_MAGIC 0x45585352u
#define EXSI_REJECT_LEN   64
#define EXSI_REJECT_TEXT  56

enum exsi_reject_code {
    EXSI_REJECT_PROTOCOL = 1, /* no hello, or another version */
    EXSI_REJECT_TYPE = 2,     /* STREAM meets SEQPACKET */
    EXSI_REJECT_BUSY = 3,     /* backlog full, or no resources */
    EXSI_REJECT_PATH = 4,     /* a path that was asked for is not to be had */
    EXSI_REJECT_VERBS = 5,    /* the request offered it: dial the same address by rdma_cm */
};

struct exsi_reject {
    enum exsi_reject_code code;
    char text[EXSI_REJECT_TEXT + 1];
};

/* Text that is too long is cut. */
void exsi_reject_encode(enum exsi_reject_code code, const char *text, uint8_t out[EXSI_REJECT_LEN]);
/* -EPROTO if the data is no such block (a refusal by some other program).  Bytes that are no printable
 * ASCII come out as '?'. */
EXSI_MUST_CHECK int exsi_reject_decode(const void *data, size_t len, struct exsi_reject *out);
/* The errno of ES-API 1.11 that a connect ends with. */
int exsi_reject_errno(enum exsi_reject_code code);

#endif
