// SPDX-License-Identifier: MIT OR Apache-2.0
/* Path tcp: iWARP over one TCP socket.  path_tcp.c owns the life and the sending half, path_tcp_rx.c
 * the receiving half.
 *
 * Sending: FPDUs are framed ahead into a ring and gathered, headers and user memory, into one sendmsg.
 * Receiving: an FPDU's length is known from its header, so one recvmsg takes the rest of the payload
 * into its target and, behind it, padding, CRC and the first 16 bytes of the next FPDU into scratch:
 * one call per FPDU.  Those 16 bytes are a whole tagged header and never payload. */
#ifndef EXSI_SOFT_TCP_H
#define EXSI_SOFT_TCP_H

#include "device/soft/iwarp.h"
#include "device/soft/qp.h"

enum {
    TCP_FRAMES = 32, /* FPDUs gathered into one sendmsg */
    TCP_IOVS = 64,
    TCP_BUDGET = 1 << 20, /* bytes per direction and call: others want their turn */
    TCP_SMALL = 256,      /* untagged payload up to this is taken together with its header */
    TCP_SCRATCH = 4 + TCP_SMALL + IWARP_TRAILER_MAX + IWARP_TAGGED_LEN,
};

/* One FPDU on its way out.  A small one is complete in bytes; else header and trailer are, and the
 * payload stays where the user has it. */
struct tcp_frame {
    struct soft_tx *tx;
    uint32_t off, len; /* payload: this part of the message; len 0 when it is in bytes */
    uint8_t head_len, tail_len;
    bool ends; /* its message is out with it */
    uint8_t bytes[IWARP_UNTAGGED_LEN + SOFT_MAX_INLINE + IWARP_TRAILER_MAX];
};

enum tcp_rx_state {
    TCP_RX_HEAD,  /* 16 bytes of a header */
    TCP_RX_SMALL, /* all the rest of a small untagged FPDU, into scratch */
    TCP_RX_REST,  /* the message offset of a large untagged one */
    TCP_RX_BODY,  /* payload into its target, trailer into scratch */
};

struct soft_tcp {
    struct soft_path path;
    struct exsi_watch watch;
    struct exsi_timer pause; /* scripted delay */
    bool paused;
    int fd; /* -1: stopped for good */
    bool crc, peer_soft, responder;
    struct exsi_timer watchdog; /* runs while bytes may be unacknowledged */
    uint32_t linger_ms, keepalive_ms;
    uint32_t max_tagged, max_untagged; /* payload of one FPDU we send */

    /* sending */
    struct tcp_frame frames[TCP_FRAMES];
    uint32_t frame_head, frame_len;
    uint32_t frame_sent; /* bytes of the first frame that are out */
    uint32_t framed;     /* messages from the head of the send queue that are framed to their end */
    uint32_t tx_msn;
    bool blocked; /* the socket is full: wait for EPOLLOUT */
    bool shut, fin_sent;
    bool answer_due; /* an empty read wants its response, for this sink */
    uint32_t answer_stag;
    uint64_t answer_to;

    /* receiving */
    enum tcp_rx_state rx;
    bool heard;       /* a first FPDU came: a responder may send */
    bool mid_message; /* the last FPDU did not end its message */
    bool starved;     /* a SEND waits for a receive to be posted: nothing is read */
    uint32_t reads;   /* read requests that came */
    bool peer_fin;
    uint8_t head[IWARP_UNTAGGED_LEN];
    uint32_t head_have;
    struct iwarp_segment seg;
    uint8_t *dst;
    bool fragile;
    uint32_t placed;
    uint32_t rx_crc;
    uint8_t scratch[TCP_SCRATCH];
    uint32_t scratch_have;
};

static inline struct soft_tcp *soft_tcp_of(struct soft_path *p)
{
    return exsi_container_of(p, struct soft_tcp, path);
}

/* CRC over bytes of the user's, who may have mapped them from a file: 0, or -EFAULT. */
EXSI_MUST_CHECK int soft_tcp_crc(uint32_t *crc, const uint8_t *data, size_t len, bool fragile);
/* Refuse what the peer did: Terminate (with the header of the FPDU if with_header), then broken. */
void soft_tcp_refuse(struct soft_tcp *t, struct iwarp_error err, bool with_header, int error);
/* The connection is gone: no Terminate, then broken. */
void soft_tcp_broken(struct soft_tcp *t, int error, const char *reason);
/* Push what can be sent. */
void soft_tcp_send(struct soft_tcp *t);
/* path_tcp_rx.c: a receive was posted for the SEND that waits. */
void soft_tcp_fed(struct soft_tcp *t);
/* Read until the socket is empty or the budget used up. */
void soft_tcp_receive(struct soft_tcp *t);
/* Read all that is there: the connection was reset, so it is bounded. */
void soft_tcp_drain(struct soft_tcp *t);

#endif
