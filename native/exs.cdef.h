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
    EXSI_OP_NOTICE = 8,
};
enum exsi_op_flag {
    EXSI_OPF_WAITALL = 1,
    EXSI_OPF_DONTWAIT = 2,
    EXSI_OPF_SHUT_WR = 4,
    EXSI_OPF_STRICT_SIZE = 8,
    EXSI_OPF_POLL_IN = 16,
    EXSI_OPF_POLL_OUT = 32,
    EXSI_OPF_URGENT = 64,
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

typedef struct {
    uint8_t gid[16], mac[6];
    uint8_t gid_index, mtu_code;
    uint32_t qpn, psn;
} exsi_smc_address;

enum exsi_smc_notice_kind { EXSI_SMC_LLC = 1, EXSI_SMC_CONNECTION_DONE = 2, EXSI_SMC_LINK_DOWN = 3 };

typedef struct {
    uint32_t kind;
    uint32_t len;
    uint32_t token;
    int32_t error;
    uint64_t socket;
    uint32_t clean;
    char reason[160];
    uint8_t bytes[8192];
} exsi_smc_notice;

typedef struct {
    char device[16], reason[160];
    uint8_t up, down;
    int32_t error;
    uint32_t connections;
    uint64_t cdc_received, cdc_sent, cdc_unknown, llc_received, llc_sent, tests_answered, tests_sent;
    uint64_t idle_ms;
    uint32_t rings;
    uint64_t ring_bytes;
} exsi_smc_link_info;

typedef struct {
    uint32_t wrap, count;
} exsi_smc_cursor_info;

typedef struct {
    uint64_t socket;
    uint32_t token, peer_token;
    uint32_t size, peer_size;
    exsi_smc_cursor_info produced, peer_consumed;
    exsi_smc_cursor_info peer_produced, consumed, told;
    uint64_t sent, received;
    uint64_t unsent;
    uint64_t unread;
    uint8_t producer_flags, peer_producer_flags;
    uint8_t connection_flags, peer_connection_flags;
    int32_t error;
} exsi_smc_connection_info;
int exsi_smc_link_new(exsi_ctx *ctx, uint64_t group, const char *device, const uint8_t *gid, uint64_t *link);
int exsi_smc_link_address(exsi_ctx *ctx, uint64_t link, exsi_smc_address *own);
int exsi_smc_link_to_rtr(exsi_ctx *ctx, uint64_t link, const exsi_smc_address *peer);
int exsi_smc_link_to_rts(exsi_ctx *ctx, uint64_t link);
int exsi_smc_link_active(exsi_ctx *ctx, uint64_t link, uint8_t version, uint32_t test_interval_ms,
                         uint32_t test_timeout_ms);
int exsi_smc_llc_send(exsi_ctx *ctx, uint64_t link, const void *msg, uint32_t len);
int exsi_smc_link_wait(exsi_ctx *ctx, uint64_t link, uint64_t cookie, uint64_t eq, exsi_posted *out);
int exsi_smc_link_cancel(exsi_ctx *ctx, uint64_t link);
int exsi_smc_link_take(exsi_ctx *ctx, uint64_t link, exsi_smc_notice *out);
int exsi_smc_link_query(exsi_ctx *ctx, uint64_t link, exsi_smc_link_info *out);
int exsi_smc_link_close(exsi_ctx *ctx, uint64_t link);
int exsi_smc_rmb_new(exsi_ctx *ctx, uint64_t link, uint32_t size_code, uint64_t *rmb, uint32_t *rkey, uint64_t *vaddr);
int exsi_smc_rmb_close(exsi_ctx *ctx, uint64_t link, uint64_t rmb);
int exsi_smc_connection_new(exsi_ctx *ctx, uint64_t link, uint64_t rmb, uint32_t own_token, const exsi_options *opt,
                            uint64_t *sock);
int exsi_smc_connection_open(exsi_ctx *ctx, uint64_t sock, uint32_t peer_rkey, uint64_t peer_vaddr, uint64_t peer_size,
                             uint32_t peer_token);
int exsi_smc_connection_abort(exsi_ctx *ctx, uint64_t sock, int error);
int exsi_smc_connection_query(exsi_ctx *ctx, uint64_t link, uint32_t own_token, exsi_smc_connection_info *out);
int exsi_recv_view(exsi_ctx *ctx, uint64_t sock, void **addr, uint64_t *len);
int exsi_recv_release(exsi_ctx *ctx, uint64_t sock, uint64_t n);