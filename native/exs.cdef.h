// SPDX-License-Identifier: MIT OR Apache-2.0
/* What Python sees of the core: api.h without its comments, and the types and constants that it takes
 * from core/ and base/.  cffi reads this file; the C compiler checks every layout and every constant
 * against the real headers when the module is built, and a test compares the calls with api.h. */

/* base/log.h */
enum exsi_log_level { EXSI_LOG_DEBUG = 10, EXSI_LOG_INFO = 20, EXSI_LOG_WARNING = 30, EXSI_LOG_ERROR = 40 };
#define EXSI_LOG_TEXT 232
struct exsi_log_record {
    int32_t level;
    uint32_t dropped;
    uint64_t socket;
    char text[232];
};

/* core/mr.h */
enum exsi_mr_flag { EXSI_MR_READ = 1, EXSI_MR_WRITE = 2, EXSI_MR_HUGE = 4, EXSI_MR_ONE_PEER = 8 };

/* device/device.h */
enum exsi_path { EXSI_PATH_AUTO, EXSI_PATH_TCP, EXSI_PATH_SHM, EXSI_PATH_SHM_VM, EXSI_PATH_SHM_RING };

/* core/op.h */
enum exsi_op_kind {
    EXSI_OP_SEND = 1,
    EXSI_OP_RECV = 2,
    EXSI_OP_CONNECT = 3,
    EXSI_OP_ACCEPT = 4,
    EXSI_OP_SHUTDOWN = 5,
    EXSI_OP_CLOSE = 6,
    EXSI_OP_POLL = 7,
};
enum exsi_op_flag {
    EXSI_OPF_WAITALL = 1,
    EXSI_OPF_DONTWAIT = 2,
    EXSI_OPF_SHUT_WR = 4,
    EXSI_OPF_STRICT_SIZE = 8,
    EXSI_OPF_POLL_IN = 16,
    EXSI_OPF_POLL_OUT = 32,
};

/* core/eq.h */
struct exsi_event {
    uint64_t cookie;
    uint64_t value;
    uint64_t extra;
    int32_t error;
    uint16_t kind;
    uint16_t flags;
};
enum exsi_event_flag {
    EXSI_EV_TRUNCATED = 1,
    EXSI_EV_EOR = 2,
    EXSI_EV_DIRECT = 4,
    EXSI_EV_INDIRECT = 8,
    EXSI_EV_EOF = 16,
    EXSI_EV_SEND_SHUT = 32,
};

/* api.h */
typedef struct exsi_ctx exsi_ctx;
typedef struct exsi_event exsi_event;
typedef struct exsi_log_record exsi_log_record;

typedef struct {
    exsi_event event;
    uint64_t op;
    uint32_t pending;
} exsi_posted;
int exsi_open(exsi_ctx **out);
void exsi_close(exsi_ctx *ctx);
int exsi_forked(exsi_ctx *ctx);
int exsi_group_new(exsi_ctx *ctx, int threaded, uint64_t *group);
int exsi_group_free(exsi_ctx *ctx, uint64_t group);
int exsi_log_drain(exsi_ctx *ctx, struct exsi_log_record *out, int max);
void exsi_log_threshold(exsi_ctx *ctx, int level);

typedef struct {
    char name[16], summary[96], reason[160];
    uint64_t max_msg;
    uint32_t max_inline;
    uint8_t present, has_immediate, has_key_per_range, has_read, pins_memory;
} exsi_device_info;
int exsi_devices(exsi_ctx *ctx, exsi_device_info *out, int max);
int exsi_mem_register(exsi_ctx *ctx, void *addr, size_t len, uint32_t flags, uint64_t *mr);
int exsi_mem_allocate(exsi_ctx *ctx, size_t len, uint32_t flags, uint64_t *mr, void **addr);
void exsi_mem_unmap(void *addr, size_t len);
int exsi_mem_close(exsi_ctx *ctx, uint64_t mr);
int exsi_mem_close_later(exsi_ctx *ctx, uint64_t mr);
int exsi_mem_in_use(exsi_ctx *ctx, uint64_t mr);
int exsi_eq_new(exsi_ctx *ctx, uint64_t inline_group, uint32_t depth, uint64_t *eq);
int exsi_eq_free(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_fd(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_depth(exsi_ctx *ctx, uint64_t eq, uint32_t depth);
int exsi_eq_count(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_in_flight(exsi_ctx *ctx, uint64_t eq);
int exsi_eq_drain(exsi_ctx *ctx, uint64_t eq, exsi_event *out, int max, uint32_t spin_us);
int exsi_eq_poll(exsi_ctx *ctx, uint64_t eq, exsi_event *out, int max);
int exsi_eq_kick(exsi_ctx *ctx, uint64_t eq);

enum exsi_wait { EXSI_WAIT_ADAPTIVE, EXSI_WAIT_NOTIFY, EXSI_WAIT_BUSY };
int exsi_eq_wait(exsi_ctx *ctx, uint64_t eq, exsi_event *out, int max, int least, int64_t timeout_us, int wait,
                 uint32_t spin_us);

typedef struct {
    char device[16];
    uint32_t path;
    uint32_t ring_bytes, max_adverts, max_ops;
    uint32_t keepalive_ms, close_timeout_ms, connect_timeout_ms;
    uint32_t direct_threshold, direct_hold_us;
    uint8_t strict_keys, crc, strict_size, reuse_address, reuse_port, v6_only;
} exsi_options;
void exsi_options_default(exsi_options *out);
int exsi_socket_new(exsi_ctx *ctx, uint64_t group, int family, int type, const exsi_options *opt, uint64_t *sock);
int exsi_bind(exsi_ctx *ctx, uint64_t sock, const void *addr, uint32_t len);
int exsi_listen(exsi_ctx *ctx, uint64_t sock, int backlog);
int exsi_sockname(exsi_ctx *ctx, uint64_t sock, void *addr, uint32_t *len);
int exsi_peername(exsi_ctx *ctx, uint64_t sock, void *addr, uint32_t *len);

typedef struct {
    int32_t state;
    int32_t error;
    int32_t family, type;
    char device[16], path[16];
    char reason[160];
    uint8_t readable, writable, peer_fin, send_shut;
    uint32_t ops_in_flight;
} exsi_socket_info;

enum exsi_socket_state {
    EXSI_SOCK_NEW, EXSI_SOCK_LISTENING, EXSI_SOCK_CONNECTING, EXSI_SOCK_CONNECTED, EXSI_SOCK_CLOSING,
    EXSI_SOCK_DEAD,
    EXSI_SOCK_CLOSED,
};
int exsi_socket_query(exsi_ctx *ctx, uint64_t sock, exsi_socket_info *out);
int exsi_statistics(exsi_ctx *ctx, uint64_t sock, uint64_t *out, int max);
const char *exsi_statistics_name(int i);
enum exsi_smc_option_state {
    EXSI_SMC_OPTION_WANTED = 1,
    EXSI_SMC_OPTION_ANSWERED = 2,
};
#define EXSI_SMC_OPTION_PORT 0x8000000000000000
int exsi_smc_option_attach(const char *folder, int *map_fd, int *link_fd, char *why);
int exsi_smc_option_set(int map_fd, uint64_t key, uint32_t state);
int exsi_smc_option_get(int map_fd, uint64_t key, uint32_t *state);
int exsi_connect(exsi_ctx *ctx, uint64_t sock, const void *addr, uint32_t len, uint64_t cookie, uint64_t eq,
                 exsi_posted *out);
int exsi_accept(exsi_ctx *ctx, uint64_t sock, uint64_t cookie, uint64_t eq, exsi_posted *out);
#define EXSI_COPY_MAX 4096
#define EXSI_FLAG_FRAGILE 0x100
#define EXSI_FLAG_LOOK 0x200
int exsi_send(exsi_ctx *ctx, uint64_t sock, const void *buf, size_t len, uint32_t flags, uint64_t mr,
              uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_recv(exsi_ctx *ctx, uint64_t sock, void *buf, size_t len, uint32_t flags, uint64_t mr, uint64_t cookie,
              uint64_t eq, exsi_posted *out);

typedef struct {
    void *base;
    size_t len;
    uint64_t mr;
} exsi_piece;
int exsi_sendmsg(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                 uint64_t eq, exsi_posted *out);
int exsi_recvmsg(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                 uint64_t eq, exsi_posted *out);
int exsi_send_many(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                   uint64_t eq, exsi_posted *out);
int exsi_recv_many(exsi_ctx *ctx, uint64_t sock, const exsi_piece *vec, int n, uint32_t flags, uint64_t cookie,
                   uint64_t eq, exsi_posted *out);
int exsi_send_split(exsi_ctx *ctx, uint64_t sock, void *base, size_t len, size_t piece, uint32_t flags, uint64_t mr,
                    uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_poll(exsi_ctx *ctx, uint64_t sock, uint32_t flags, uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_poll_many(exsi_ctx *ctx, const uint64_t *socks, const uint32_t *flags, int n, uint64_t cookie, uint64_t eq,
                   exsi_posted *out);
int exsi_shutdown(exsi_ctx *ctx, uint64_t sock, int how, uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_socket_close(exsi_ctx *ctx, uint64_t sock, int abort, uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_cancel(exsi_ctx *ctx, uint64_t sock, uint64_t op, exsi_posted *out);
int exsi_cancel_match(exsi_ctx *ctx, uint64_t sock, int match_cookie, uint64_t cookie);
