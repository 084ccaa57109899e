// SPDX-License-Identifier: MIT OR Apache-2.0
/* The records and constants that cross the face of the core (api/api.h) and that sockets work with.
 * Plain values; what each call makes of them stands there. */
#ifndef EXSI_SOCK_TYPES_H
#define EXSI_SOCK_TYPES_H

#include "core/eq.h"

typedef struct exsi_ctx exsi_ctx;
typedef struct exsi_event exsi_event;
typedef struct exsi_log_record exsi_log_record;

typedef struct {
    exsi_event event; /* valid when the post returned 1 */
    uint64_t op;      /* handle for exsi_cancel; valid when it returned 0 */
    uint32_t pending; /* events that now lie in the queue: drain, no signal was sent for them */
} exsi_posted;

enum exsi_wait { EXSI_WAIT_ADAPTIVE, EXSI_WAIT_NOTIFY, EXSI_WAIT_BUSY };

typedef struct {
    char device[16];                           /* "auto", "soft", "verbs" */
    uint32_t path;                             /* enum exsi_path */
    uint32_t ring_bytes, max_adverts, max_ops; /* max_ops: per direction in flight (queue_depth) */
    uint32_t keepalive_ms, close_timeout_ms, connect_timeout_ms;
    uint32_t direct_threshold, direct_hold_us;
    uint8_t strict_keys, crc, strict_size, reuse_address, reuse_port, v6_only;
} exsi_options;

typedef struct {
    int32_t state; /* enum exsi_socket_state */
    int32_t error; /* first error of the connection, positive */
    int32_t family, type;
    char device[16], path[16];
    char reason[160]; /* of the error, in words; may be empty */
    uint8_t readable, writable, peer_fin, send_shut;
    uint32_t ops_in_flight;
} exsi_socket_info;

enum exsi_socket_state {
    EXSI_SOCK_NEW,
    EXSI_SOCK_LISTENING,
    EXSI_SOCK_CONNECTING,
    EXSI_SOCK_CONNECTED,
    EXSI_SOCK_CLOSING,
    EXSI_SOCK_DEAD, /* connection over, not closed */
    EXSI_SOCK_CLOSED,
};

#define EXSI_COPY_MAX     4096
#define EXSI_FLAG_FRAGILE 0x100
#define EXSI_FLAG_LOOK    0x200

typedef struct {
    void *base;
    size_t len;
    uint64_t mr;
} exsi_piece;

#endif
