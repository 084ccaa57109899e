// SPDX-License-Identifier: MIT OR Apache-2.0
/* What two processes see of each other on the path shm (docs/wire/soft.md): the segment with a ring
 * of slots and a ring of bytes for each direction, the page that says who sleeps, and the messages of
 * the UNIX socket.  Host byte order, since both live on one host; offsets only, never pointers.
 *
 * Everything here may be rewritten by the other side at any moment.  So a reader copies a field out
 * once and checks the copy; sizes are kept in private memory after set-up and never read again. */
#ifndef EXSI_SOFT_SHM_LAYOUT_H
#define EXSI_SOFT_SHM_LAYOUT_H

#include <stdatomic.h>

#include "base/base.h"

#define SHM_MAGIC      UINT64_C(0x45585353484d3031)
#define SHM_PAGE_MAGIC UINT64_C(0x4558535041474531)
#define SHM_VERSION    1
#define SHM_HEAD_BYTES 4096

#define SHM_MIN_SLOTS 16
#define SHM_MAX_SLOTS 4096
#define SHM_MIN_DATA  1024
#define SHM_MAX_DATA  (4u << 20)

/* Where a piece of a message is, or what else a slot says. */
enum shm_kind {
    SHM_INLINE = 1, /* in the slot */
    SHM_RING = 2,   /* in the ring of bytes, at the position where the last piece ended */
    SHM_PULL = 3,   /* in the sender's memory, at src */
    SHM_MAPPED = 4, /* in the sender's region `region`, at offset src */
    SHM_FILLED = 5, /* already there: the target was lent to the sender */
    SHM_SHUT = 6,   /* no message follows */
    SHM_FORGET = 7, /* the region is not used any more */
};

enum shm_flag {
    SHM_LAST = 1,      /* the piece ends its message */
    SHM_UNTAGGED = 2,  /* of a SEND, else of a WRITE */
    SHM_SOLICITED = 4, /* of the SEND, or of the notice */
    SHM_NOTICE = 8,    /* with SHM_LAST of a WRITE: a SEND of the four bytes `word` follows it */
};

#define SHM_INLINE_TAGGED   36
#define SHM_INLINE_UNTAGGED 52

/* One piece.  seq is written last, with release: slot number n (from 0) is there when seq == n + 1. */
struct shm_slot {
    union {
        struct {
            _Atomic uint32_t seq;
            uint8_t kind, flags;
            uint16_t zero;
            uint32_t len; /* payload bytes of the piece */
            uint32_t rkey;
            uint64_t raddr;
            uint32_t word;
            uint8_t tagged[SHM_INLINE_TAGGED]; /* SHM_INLINE of a WRITE */
        };
        struct {
            uint8_t head_[32];
            uint64_t src, region; /* SHM_PULL, SHM_MAPPED; SHM_FORGET: region */
        };
        struct {
            uint8_t head__[12];
            uint8_t untagged[SHM_INLINE_UNTAGGED]; /* SHM_INLINE of a SEND */
        };
    };
};
_Static_assert(sizeof(struct shm_slot) == EXSI_CACHE_LINE, "one slot, one cache line");
_Static_assert(offsetof(struct shm_slot, tagged) == 28, "behind the word");
_Static_assert(offsetof(struct shm_slot, untagged) == 12, "behind the length");
_Static_assert(offsetof(struct shm_slot, src) == 32, "behind the word, aligned");

/* What one side writes and the other reads. */
enum shm_state {
    SHM_STATE_WITHDRAWN = 1,  /* sources that were not consumed must not be taken any more */
    SHM_STATE_TERMINATED = 2, /* layer << 8, error type << 12, code << 16, enum shm_blame << 24 */
};

enum shm_blame {
    SHM_BLAME_PROTOCOL = 0, /* what you sent broke the protocol */
    SHM_BLAME_SOURCE = 1,   /* your source could not be read */
    SHM_BLAME_MINE = 2,     /* nothing of yours: my side failed */
};

struct shm_side {
    _Alignas(EXSI_CACHE_LINE) _Atomic uint64_t consumed; /* slots of the other side that are done with */
    _Alignas(EXSI_CACHE_LINE) _Atomic uint64_t want;     /* wake me when you consumed so many; ~0: never */
    _Atomic uint32_t state;                              /* enum shm_state */
};
_Static_assert(sizeof(struct shm_side) == 2 * EXSI_CACHE_LINE, "two cache lines");

#define SHM_WANT_NOTHING UINT64_MAX

/* Side 0 is the active one.  Behind the head: slots of side 0, slots of side 1, bytes of side 0, bytes of side 1. */
struct shm_head {
    uint64_t magic;
    uint32_t version, slots, data_bytes;
    struct shm_side side[2];
};
_Static_assert(sizeof(struct shm_head) <= SHM_HEAD_BYTES, "the head has a page");

static inline uint64_t shm_segment_bytes(uint32_t slots, uint32_t data_bytes)
{
    return SHM_HEAD_BYTES + 2 * ((uint64_t)slots * sizeof(struct shm_slot) + data_bytes);
}

static inline bool shm_power_of_two(uint32_t x)
{
    return x && !(x & (x - 1));
}

/* Sizes as a peer states them, before they are used for anything. */
static inline bool shm_sizes_ok(uint32_t slots, uint32_t data_bytes)
{
    return shm_power_of_two(slots) && slots >= SHM_MIN_SLOTS && slots <= SHM_MAX_SLOTS &&
           shm_power_of_two(data_bytes) && data_bytes >= SHM_MIN_DATA && data_bytes <= SHM_MAX_DATA;
}

/* One per progress group, mapped read-only by its peers.  Odd: asleep, ring; it changes with every
 * sleep and every ring that was heard, so one ring is sent for each value. */
struct shm_page {
    uint64_t magic;
    uint32_t version;
    _Atomic uint32_t sleep;
};

#define SHM_PAGE_BYTES 4096

/* Messages of the UNIX socket (SOCK_SEQPACKET), each one struct shm_msg. */
enum shm_msg_type {
    SHM_MSG_HELLO = 1,  /* passive: tokens, sizes, probe address; descriptors: segment, group page */
    SHM_MSG_ACK = 2,    /* active: why (0: yes); descriptor (if yes): group page */
    SHM_MSG_WAKE = 3,   /* look at the rings */
    SHM_MSG_REGION = 4, /* id, len; descriptor: its memory file, to be mapped read-only */
    SHM_MSG_LEND = 5,   /* rkey, addr, len, offset; descriptor: memory file that the receiver may fill */
};

enum shm_msg_flag {
    SHM_MSG_CAN_PULL = 1,  /* I can read your memory, and will when you say so too */
    SHM_MSG_NEED_VM = 2,   /* HELLO: refuse unless you can read mine */
    SHM_MSG_RING_ONLY = 4, /* everything through the rings, please */
};

struct shm_msg {
    uint64_t magic; /* SHM_MAGIC */
    uint16_t version, type, flags, why;
    uint8_t token[16];      /* HELLO: of the active side; ACK: of the passive side */
    uint8_t peer_token[16]; /* HELLO: of the passive side, to be found at addr */
    uint64_t addr, len, offset, id;
    uint32_t rkey, slots, data_bytes, zero;
};
_Static_assert(sizeof(struct shm_msg) == 96, "no padding");

#endif
