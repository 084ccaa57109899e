// SPDX-License-Identifier: MIT OR Apache-2.0
/* The TCP option by which two hosts say that they speak SMC-R (RFC 7609 section 3.1): a BPF program of type sockops.
 *
 * TCP's options are out of a program's reach, but for BPF.  The program is attached to the control group that the
 * process is in, and is called for every TCP connection there; it acts on those alone that are in its map, so others,
 * of this process too, notice nothing.  (A group of our own would take the process, or a thread, out of the one
 * that its administrator has put it in.)  Into a SYN-ACK it writes the option only if the SYN had it.
 * It is gone with its descriptors, hence with the process, however that ends.
 *
 * It is written in BPF's own instructions, and the structures of bpf(2) are laid out here: neither a compiler for BPF
 * nor headers of a certain kernel are needed. */
#include "api/api.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* --- bpf(2) ------------------------------------------------------------------------------------ */

enum { MAP_CREATE = 0, MAP_LOOKUP = 1, MAP_UPDATE = 2, MAP_DELETE = 3, PROG_LOAD = 5, LINK_CREATE = 28 };
enum { MAP_TYPE_HASH = 1, PROG_TYPE_SOCK_OPS = 13, ATTACH_SOCK_OPS = 3 };
enum { MAX_SOCKETS = 65536 };

union bpf_request {
    struct {
        uint32_t type, key_size, value_size, max_entries, flags;
    } map;
    struct {
        uint32_t map_fd, pad;
        uint64_t key, value, flags;
    } element;
    struct {
        uint32_t type, count;
        uint64_t code, licence;
        uint32_t log_level, log_size;
        uint64_t log;
        uint32_t kernel, flags;
        char name[16];
        uint32_t ifindex, attach_type;
    } program;
    struct {
        uint32_t program_fd, target_fd, attach_type, flags;
    } link;
    uint8_t all[128];
};

static int bpf(int command, union bpf_request *request)
{
    long rc = syscall(SYS_bpf, command, request, sizeof *request);
    return rc < 0 ? -errno : (int)rc;
}

static uint64_t pointer(const void *at)
{
    return (uint64_t)(uintptr_t)at;
}

/* --- the program ---------------------------------------------------------------------------------- */

struct insn {
    uint8_t code, regs; /* destination in the low nibble, source in the high one */
    int16_t off;
    int32_t imm;
};
_Static_assert(sizeof(struct insn) == 8, "as the kernel reads it");

/* Fields of struct bpf_sock_ops. */
enum { CTX_OP = 0, CTX_ARG = 4, CTX_LOCAL_PORT = 68, CTX_FULL_SOCKET = 72, CTX_CB_FLAGS = 84, CTX_TCP_FLAGS = 212 };
enum { OP_CONNECT = 3, OP_ACTIVE = 4, OP_PASSIVE = 5, OP_STATE = 10, OP_LISTEN = 11, OP_LEN = 14, OP_WRITE = 15 };
enum { CALL_LOOKUP = 1, CALL_DELETE = 3, CALL_COOKIE = 46, CALL_CB_FLAGS = 59 };
enum { CALL_LOAD = 142, CALL_STORE = 143, CALL_RESERVE = 144 };
enum { CB_STATE = 1 << 2, CB_WRITE = 1 << 6, WITH_COOKIE = 2, STATE_CLOSE = 7, NO_PREALLOC = 1 };
enum { LOAD_FROM_SYN = 1, TCP_SYN = 2, TCP_ACK = 16, OPTION_LEN = 6 };
/* 254, 6, E2 D4 C3 D9 as two words of a little-endian stack. */
enum { OPTION_HEAD = (int)0xd4e206fe, OPTION_TAIL = 0xd9c3 };
enum { KEY_AT = -8, OPTION_AT = -16, PORT_MARK = (int)(EXSI_SMC_OPTION_PORT >> 32) };

/* On the stack only whole words are written: without CAP_PERFMON, Linux 6.1 lets no half of one be changed. */
#define REGS(dst, src)         (uint8_t)((src) << 4 | (dst))
#define MOV(dst, src)          {0xbf, REGS(dst, src), 0, 0}
#define MOVI(dst, value)       {0xb7, REGS(dst, 0), 0, value}
#define ADDI(dst, value)       {0x07, REGS(dst, 0), 0, value}
#define ORI(dst, value)        {0x47, REGS(dst, 0), 0, value}
#define ANDI(dst, value)       {0x57, REGS(dst, 0), 0, value}
#define OR(dst, src)           {0x4f, REGS(dst, src), 0, 0}
#define LOAD32(dst, src, at)   {0x61, REGS(dst, src), at, 0}
#define STORE32(dst, at, src)  {0x63, REGS(dst, src), at, 0}
#define STORE64(dst, at, src)  {0x7b, REGS(dst, src), at, 0}
#define CALL(number)           {0x85, 0, 0, number}
#define EXIT                   {0x95, 0, 0, 0}
#define JUMP_EQ(dst, imm)      {0x15, REGS(dst, 0), 0, imm}
#define JUMP_NE(dst, imm)      {0x55, REGS(dst, 0), 0, imm}
#define JUMP_SET(dst, imm)     {0x45, REGS(dst, 0), 0, imm}
#define JUMP_SLT(dst, imm)     {0xc5, REGS(dst, 0), 0, imm}
#define JUMP_SGE(dst, imm)     {0x75, REGS(dst, 0), 0, imm}
#define LEAVE                  MOVI(0, 1), EXIT
#define WIDE(dst, src, low)    {0x18, REGS(dst, src), 0, low} /* the first half of it */
#define WIDE_HIGH(high)        {0, 0, 0, high}
#define MAP_FD(dst, fd)        WIDE(dst, 1, fd), WIDE_HIGH(0)
#define MOVI64(dst, low, high) WIDE(dst, 0, low), WIDE_HIGH(high)
#define OPTION_ON_STACK        MOVI64(2, OPTION_HEAD, OPTION_TAIL), STORE64(10, OPTION_AT, 2)
#define OPTION_ARGUMENTS       MOV(1, 6), MOV(2, 10), ADDI(2, OPTION_AT), MOVI(3, OPTION_LEN)

enum { MAX_INSNS = 128 };

struct code {
    struct insn at[MAX_INSNS];
    int n;
};

static void add(struct code *c, const struct insn *what, size_t n)
{
    for (size_t i = 0; i < n; i++) c->at[c->n++] = what[i];
}
#define ADD(c, ...)                                                                                                    \
    do {                                                                                                               \
        const struct insn these[] = {__VA_ARGS__};                                                                     \
        add(c, these, sizeof these / sizeof these[0]);                                                                 \
    } while (0)

/* Behind a jump that skips it: what the jump's condition does not hold for. */
static void skip(struct code *c, struct insn jump, const struct code *block)
{
    jump.off = (int16_t)block->n;
    add(c, &jump, 1);
    add(c, block->at, (size_t)block->n);
}

/* Only for one operation; a block that does not leave goes on behind. */
static void on(struct code *c, int op, const struct code *block)
{
    skip(c, (struct insn)JUMP_NE(7, op), block);
}

/* r6: the context, r7: the operation, r8: what the map has for the socket, or 0.
 * A SYN-ACK is of a request, and what was just accepted is new: nobody knows their cookies, and the listener is found
 * by the port. */
static void find_socket(struct code *c, int map_fd)
{
    struct code by_port = {.n = 0};
    ADD(&by_port, LOAD32(2, 6, CTX_LOCAL_PORT), MOVI64(3, 0, PORT_MARK), OR(3, 2), STORE64(10, KEY_AT, 3));
    ADD(c, MOV(6, 1), LOAD32(7, 6, CTX_OP));
    ADD(c, MOV(1, 6), CALL(CALL_COOKIE), STORE64(10, KEY_AT, 0), LOAD32(2, 6, CTX_FULL_SOCKET));
    skip(c, (struct insn)JUMP_NE(2, 0), &by_port);
    on(c, OP_PASSIVE, &by_port);
    ADD(c, MAP_FD(1, map_fd), MOV(2, 10), ADDI(2, KEY_AT), CALL(CALL_LOOKUP), MOV(8, 0));
}

/* Be asked no more when options are written: a connection carries this one in its first segment only. */
static void stop_writing(struct code *c)
{
    ADD(c, LOAD32(2, 6, CTX_CB_FLAGS), ANDI(2, ~CB_WRITE), MOV(1, 6), CALL(CALL_CB_FLAGS), LEAVE);
}

/* Before a connect, and when a listener begins: be asked. */
static void start(struct code *c, int flags)
{
    ADD(c, LOAD32(2, 6, CTX_CB_FLAGS), ORI(2, flags), MOV(1, 6), CALL(CALL_CB_FLAGS), LEAVE);
}

/* A socket that had connected, or tried to, is closed: whoever did not ask for the answer never will. */
static void forget_closed(struct code *c, int map_fd)
{
    struct code leave = {.n = 0};
    ADD(&leave, LEAVE);
    ADD(c, LOAD32(2, 6, CTX_ARG + 4));
    skip(c, (struct insn)JUMP_EQ(2, STATE_CLOSE), &leave);
    ADD(c, MAP_FD(1, map_fd), MOV(2, 10), ADDI(2, KEY_AT), CALL(CALL_DELETE), LEAVE);
}

/* The SYN-ACK has come: note whether it has the option. */
static void note_answer(struct code *c)
{
    struct code found = {.n = 0};
    ADD(c, OPTION_ON_STACK, OPTION_ARGUMENTS, MOVI(4, 0), CALL(CALL_LOAD));
    ADD(&found, LOAD32(2, 8, 0), ORI(2, EXSI_SMC_OPTION_ANSWERED), STORE32(8, 0, 2));
    skip(c, (struct insn)JUMP_SLT(0, 0), &found);
    stop_writing(c);
}

/* Leave, unless the segment has SYN, and if it has ACK too the peer's SYN had the option.  With a SYN cookie the
 * listener forgets the peer's SYN, so it could not know that it had agreed. */
static void check_segment(struct code *c)
{
    struct code leave = {.n = 0}, look = {.n = 0};
    ADD(&leave, LEAVE);
    ADD(c, LOAD32(9, 6, CTX_TCP_FLAGS));
    skip(c, (struct insn)JUMP_SET(9, TCP_SYN), &leave);
    ADD(&look, LOAD32(2, 6, CTX_ARG));
    skip(&look, (struct insn)JUMP_NE(2, WITH_COOKIE), &leave);
    ADD(&look, OPTION_ON_STACK, OPTION_ARGUMENTS, MOVI(4, LOAD_FROM_SYN), CALL(CALL_LOAD));
    skip(&look, (struct insn)JUMP_SGE(0, 0), &leave);
    ADD(c, ANDI(9, TCP_ACK));
    skip(c, (struct insn)JUMP_EQ(9, 0), &look);
}

static void assemble(struct code *c, int map_fd)
{
    struct code leave = {.n = 0}, stop = {.n = 0}, dial = {.n = 0}, listen = {.n = 0}, note = {.n = 0}, gone = {.n = 0};
    struct code len = {.n = 0}, write = {.n = 0};
    ADD(&leave, LEAVE);
    stop_writing(&stop);
    start(&dial, CB_WRITE | CB_STATE);
    start(&listen, CB_WRITE);
    note_answer(&note);
    forget_closed(&gone, map_fd);
    ADD(&len, MOV(1, 6), MOVI(2, OPTION_LEN), MOVI(3, 0), CALL(CALL_RESERVE), LEAVE);
    ADD(&write, OPTION_ON_STACK, OPTION_ARGUMENTS, MOVI(4, 0), CALL(CALL_STORE), LEAVE);

    find_socket(c, map_fd);
    skip(c, (struct insn)JUMP_NE(8, 0), &leave);
    on(c, OP_PASSIVE, &stop); /* it has its listener's flags */
    on(c, OP_CONNECT, &dial);
    on(c, OP_LISTEN, &listen);
    on(c, OP_ACTIVE, &note);
    on(c, OP_STATE, &gone);
    check_segment(c);
    on(c, OP_LEN, &len);
    on(c, OP_WRITE, &write);
    ADD(c, LEAVE);
}

/* --- loading --------------------------------------------------------------------------------------- */

static int fail(char *why, int rc, const char *what)
{
    const char *hint = rc == -EPERM ? ": needs CAP_BPF and CAP_NET_ADMIN" : "";
    snprintf(why, EXSI_REASON_MAX, "%s: %s%s", what, strerror(-rc), hint);
    return rc;
}

static int create_map(void)
{
    union bpf_request r = {0};
    r.map.type = MAP_TYPE_HASH;
    r.map.key_size = sizeof(uint64_t);
    r.map.value_size = sizeof(uint32_t);
    r.map.max_entries = MAX_SOCKETS;
    r.map.flags = NO_PREALLOC; /* a process has few of them, rarely thousands */
    return bpf(MAP_CREATE, &r);
}

static int load_program(int map_fd)
{
    static const char licence[] = "Dual MIT/GPL"; /* what the kernel knows; ours is MIT or Apache-2.0 */
    struct code c = {.n = 0};
    union bpf_request r = {0};
    assemble(&c, map_fd);
    r.program.type = PROG_TYPE_SOCK_OPS;
    r.program.count = (uint32_t)c.n;
    r.program.code = pointer(c.at);
    r.program.licence = pointer(licence);
    r.program.attach_type = ATTACH_SOCK_OPS;
    memcpy(r.program.name, "exs_smc_option", sizeof "exs_smc_option");
    return bpf(PROG_LOAD, &r);
}

static int create_link(int program_fd, int group_fd)
{
    union bpf_request r = {0};
    r.link.program_fd = (uint32_t)program_fd;
    r.link.target_fd = (uint32_t)group_fd;
    r.link.attach_type = ATTACH_SOCK_OPS;
    return bpf(LINK_CREATE, &r);
}

int exsi_smc_option_attach(const char *folder, int *map_fd, int *link_fd, char *why)
{
    int rc, map, program, group;
    why[0] = '\0';
    group = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (group < 0) return fail(why, -errno, folder);
    rc = map = create_map();
    if (rc < 0) {
        fail(why, rc, "a BPF map");
        goto close_group;
    }
    rc = program = load_program(map);
    if (rc < 0) {
        /* The verifier's word is EACCES; for a want of capabilities it is EPERM. */
        fail(why, rc,
             rc == -EACCES ? "this kernel takes no such BPF program for TCP options" : "a BPF program for TCP options");
        goto close_map;
    }
    rc = *link_fd = create_link(program, group);
    if (rc < 0) fail(why, rc, "attaching a BPF program to the control group");
    close(program); /* the link holds it */
    *map_fd = map;
    if (rc >= 0) {
        close(group);
        return 0;
    }
close_map:
    close(map);
close_group:
    close(group);
    return rc;
}

int exsi_smc_option_set(int map_fd, uint64_t key, uint32_t state)
{
    union bpf_request r = {0};
    r.element.map_fd = (uint32_t)map_fd;
    r.element.key = pointer(&key);
    r.element.value = state ? pointer(&state) : 0;
    int rc = bpf(state ? MAP_UPDATE : MAP_DELETE, &r);
    return !state && rc == -ENOENT ? 0 : rc;
}

int exsi_smc_option_get(int map_fd, uint64_t key, uint32_t *state)
{
    union bpf_request r = {0};
    r.element.map_fd = (uint32_t)map_fd;
    r.element.key = pointer(&key);
    r.element.value = pointer(state);
    return bpf(MAP_LOOKUP, &r);
}
