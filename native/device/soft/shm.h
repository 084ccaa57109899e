// SPDX-License-Identifier: MIT OR Apache-2.0
/* Inside the path shm: one struct for a connection in shared memory, and what its files give each
 * other.  path_shm.c life and events, shm_ring.c the sending half, shm_pull.c the receiving half,
 * shm_map.c memory files and the messages of the UNIX socket, rendezvous.c set-up, shm_part.c what all
 * connections of a part share. */
#ifndef EXSI_SOFT_SHM_H
#define EXSI_SOFT_SHM_H

#include <sys/epoll.h>
#include <sys/types.h>

#include "device/soft/shm_layout.h"
#include "device/soft/soft.h"

#define SHM_RING_THRESHOLD 8192       /* messages below it take two copies and no system call */
#define SHM_PULL_BATCH     16         /* pieces of one process_vm_readv */
#define SHM_PULL_BUDGET    (1u << 20) /* bytes taken by one progress call of a part */
#define SHM_MAP_BUDGET     (4u << 20) /* same, by memcpy from mapped regions */
#define SHM_SLOT_BUDGET    256        /* slots taken by one progress call */
#define SHM_REGIONS        32         /* regions that a connection keeps mapped in one direction */
#define SHM_LENT           16         /* ranges lent in one direction; the oldest gives way */
#define SHM_MAX_MSG        (1u << 30)
#define SHM_MAX_FDS        2 /* descriptors that one message may bring */

/* Between two processes one side stores and then looks, and so does the other: only a full fence
 * keeps both from missing each other.  TSan does not model fences (and gcc warns of it); it does not
 * see the other process either. */
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif
static inline void shm_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/* A mapping, as long as it really is. */
struct shm_map {
    void *base; /* NULL: none */
    uint64_t bytes;
};

/* Memory of the peer, mapped here. */
struct shm_region {
    uint64_t id;
    struct shm_map map; /* no base: free entry */
    uint64_t len;
};

/* Memory of the peer that we may fill. */
struct shm_lent {
    uint32_t rkey;
    uint64_t raddr, len;
    uint8_t *at;        /* where raddr is */
    struct shm_map map; /* no base: free entry */
};

/* The sending half: we write slots and bytes, the peer writes how far it got. */
struct shm_tx {
    struct shm_slot *slots;
    uint8_t *data;
    struct shm_side *mine;       /* want, state: ours to write */
    const struct shm_side *peer; /* consumed: theirs */
    uint64_t next;               /* slots written */
    uint64_t freed;              /* checked copy of peer->consumed */
    uint64_t data_next, data_freed;
    uint64_t *data_mark;  /* per slot: data_next behind it */
    uint64_t want;        /* copy of mine->want */
    uint64_t source_mark; /* number behind the last slot that points into a source */
    uint32_t handed;      /* messages at the head of the send queue that are written entirely */
    bool mid;             /* the one behind them is written in part */
    bool stalled;         /* no room: go on when the peer has consumed */
    bool shut_wanted, shut_sent;
    struct soft_region *sent_region[SHM_REGIONS]; /* what the peer has mapped; NULL: free */
    uint32_t region_turn;
    struct shm_lent lent[SHM_LENT];
    uint32_t lent_turn;
};

/* The receiving half. */
struct shm_rx {
    const struct shm_slot *slots;
    const uint8_t *data;
    struct shm_side *mine;       /* consumed: ours to write */
    const struct shm_side *peer; /* want, state: theirs */
    uint64_t next;               /* slots taken */
    uint64_t told;               /* copy of mine->consumed */
    uint64_t data_next;
    uint64_t partial; /* bytes taken of the slot `next` */
    uint32_t msn, mo; /* current SEND: number from 1, bytes so far */
    bool in_write;    /* a WRITE has begun and not ended */
    bool stopped;     /* take nothing any more */
    bool starved;     /* the next slot waits for a receive to be posted */
    bool shut_seen;
    struct shm_region regions[SHM_REGIONS];
};

struct shm_path {
    struct soft_path path; /* first */
    struct shm_rx rx;
    struct shm_tx tx;
    uint32_t slots, data_bytes; /* private copies; the segment's are never read again */
    uint32_t ring_max;          /* longest piece that goes through the ring of bytes by choice */
    bool vm;                    /* both sides may pull */
    bool ring_only;             /* forced: no mapped regions */
    bool broken_told;
    bool dead;   /* the UNIX socket ended */
    bool judged; /* and everything before that was taken */
    pid_t pid;
    uint32_t last_rung; /* value of peer_page->sleep that was rung */
    struct shm_map page_map;
    const struct shm_page *peer_page; /* in page_map */
    int unix_fd;                      /* -1 before _join */
    struct exsi_watch watch;          /* of unix_fd, until it ended */
    struct shm_map segment;
    struct exsi_timer again; /* runs at once: wakes our own group */
};

/* What set-up knows before the peer agrees. */
struct shm_made {
    struct soft_part *part;
    struct shm_map segment;
    uint32_t slots, data_bytes;
    bool active; /* our side is 0 */
};

static inline uint64_t shm_page_up(uint64_t n)
{
    return (n + SHM_HEAD_BYTES - 1) & ~(uint64_t)(SHM_HEAD_BYTES - 1);
}

/* What a part has for all its connections. */
struct soft_shm_part {
    struct shm_page *page;
    int page_fd;
    int spare_fd; /* room in the process's table for what a peer passes; -1: lent out */
    struct exsi_watch listener;
    struct soft_part *part;
    uint8_t name[SOFT_NAME_MAX];
    uint8_t name_len;
    struct exsi_list offers;    /* soft_shm.node of the active side */
    struct exsi_list strangers; /* oldest first */
    uint32_t n_strangers;
    uint64_t gone_seen; /* soft_device.regions_gone when all paths were told last */
};

/* --- path_shm.c */
/* takes segment, also when it fails. */
EXSI_MUST_CHECK int shm_path_new(const struct shm_made *made, struct shm_path **out);
/* The peer agreed: takes unix_fd and page. */
void shm_path_join(struct shm_path *p, int unix_fd, struct shm_map page, pid_t pid, bool vm, bool ring_only);
/* Before _join, or through ops->free. */
void shm_path_free(struct shm_path *p);
/* Look at both rings; takes what it moved from *budget.  How much was done. */
int shm_path_progress(struct shm_path *p, uint64_t *budget);
/* The connection is over: stop both halves, tell the sink once. */
void shm_path_break(struct shm_path *p, int error, const char *reason);
/* Same for what the peer did wrong: tell it too. */
void shm_path_violation(struct shm_path *p, enum shm_blame blame, struct soft_terminate t, int error,
                        const char *reason);
/* Wake the peer if it sleeps; after a store that it should see. */
void shm_path_wake(struct shm_path *p);
/* Whoever sleeps in our own group wakes and goes on.  false: no memory for that. */
bool shm_path_again(struct shm_path *p);
/* Take what lies in the UNIX socket: 1 if there was a message. */
int shm_path_drain(struct shm_path *p);

/* --- shm_ring.c */
void shm_tx_kick(struct shm_path *p);
/* The peer consumed: free, complete, go on.  How much was done. */
int shm_tx_progress(struct shm_path *p);
/* Regions that ended: the peer is told to forget them.  false: no room now, once more later. */
bool shm_tx_forget_gone(struct shm_path *p);
void shm_tx_lent(struct shm_path *p, const struct shm_msg *m, int fd);

/* --- shm_pull.c */
int shm_rx_run(struct shm_path *p, uint64_t *budget);
/* Something lies there that was not taken, and could be. */
bool shm_rx_left(const struct shm_path *p);
EXSI_MUST_CHECK int shm_rx_region(struct shm_path *p, const struct shm_msg *m, int fd);
void shm_rx_forget(struct shm_region *r);

/* --- shm_map.c */
/* A memory file that can neither shrink nor grow, its pages there, mapped writable.  future_write:
 * nobody else can map it writable. */
EXSI_MUST_CHECK int shm_memfd_new(const char *name, uint64_t bytes, bool future_write, int *fd, void **map);
enum shm_need { SHM_NEED_SHARED, SHM_NEED_READ_ONLY };
/* Map a part of a peer's descriptor after a look at it: sealed, long enough, really there.  -EPROTO
 * otherwise.  The descriptor stays the caller's. */
EXSI_MUST_CHECK int shm_memfd_map(int fd, enum shm_need need, uint64_t offset, uint64_t bytes, struct shm_map *out);
void shm_unmap(struct shm_map *map);
EXSI_MUST_CHECK int shm_send_msg(int unix_fd, const struct shm_msg *m, const int *fds, int n_fds);
/* Does the next message bring descriptors?  It stays where it is.  -EAGAIN: there is none. */
EXSI_MUST_CHECK int shm_peek_fds(int unix_fd);
/* One message: its length (0: end), or -EAGAIN, -EPROTO (wrong shape; descriptors are closed), -ECONNRESET,
 * -EMFILE (the process has no room for its descriptors: they are lost). */
EXSI_MUST_CHECK int shm_recv_msg(int unix_fd, struct shm_msg *m, int fds[SHM_MAX_FDS], int *n_fds);
void shm_close_fds(int *fds, int n);

/* --- rendezvous.c */
/* Connections to the listener that have not said what they are. */
void shm_strangers_drop(struct soft_shm_part *sp);

/* --- shm_part.c */
/* The part's state in shared memory, made at first use. */
EXSI_MUST_CHECK int shm_part_get(struct soft_part *part);
/* A ring was heard: whoever still sleeps must be rung again. */
void shm_part_heard(struct soft_part *part);
/* Descriptors that cannot be received are lost for good, so one is kept free for them: give it up before a
 * message that brings one, take it back when that one is closed again. */
void shm_part_make_room(struct soft_part *part);
void shm_part_keep_room(struct soft_part *part);

#endif
