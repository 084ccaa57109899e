// SPDX-License-Identifier: MIT OR Apache-2.0
/* Connection ids: listeners, set-ups and connections of the soft device.  One TCP socket each; cm.c
 * owns the states, cm_mpa.c the frames of the set-up. */
#ifndef EXSI_SOFT_CM_H
#define EXSI_SOFT_CM_H

#include "device/soft/mpa.h"
#include "device/soft/qp.h"

enum soft_id_state {
    SOFT_ID_LISTENING,
    SOFT_ID_CONNECTING, /* active: TCP */
    SOFT_ID_RESOLVED,   /* active: TCP is there, the upper layer makes a queue pair */
    SOFT_ID_CALLING,    /* active: request going out, reply awaited */
    SOFT_ID_GREETING,   /* passive: request awaited */
    SOFT_ID_REQUESTED,  /* passive: the upper layer decides */
    SOFT_ID_ANSWERING,  /* passive: reply going out */
    SOFT_ID_SHARING,    /* both: shared memory is being agreed */
    SOFT_ID_AGREED,     /* both: ESTABLISHED waits to be polled */
    SOFT_ID_UP,
    SOFT_ID_DEAD, /* FAILED was queued; waits for cm_destroy */
};

struct soft_id {
    struct exsi_cm_id id;
    struct soft_part *part;
    struct exsi_list node; /* part->ids */
    struct soft_event pending;
    struct exsi_cm_event event; /* what pending announces */
    enum soft_id_state state;
    bool active;
    bool announced;          /* passive: REQUEST was polled, so the upper layer knows of it */
    bool lost;               /* shm: the TCP socket died before ESTABLISHED was polled */
    struct exsi_watch watch; /* fd; after set-up on tcp the path has it */
    int fd;
    struct exsi_timer timer;
    struct exsi_cm_options opt;
    union exsi_addr local, peer;
    struct soft_qp *qp;
    bool raw; /* raw.c's: it takes this id's outcome instead of events */

    /* listener */
    struct soft_id *listener; /* of a request, until it was announced */
    uint32_t greeting;        /* set-ups that nobody knows of yet */
    uint32_t max_greeting;

    /* set-up */
    uint8_t in[MPA_FRAME_RX];
    uint32_t in_have, in_want;
    uint8_t out[MPA_FRAME_TX];
    uint32_t out_len, out_sent;
    struct mpa_frame request; /* passive: what was asked */
    struct soft_block block, peer_block;
    bool peer_soft, crc;
    const uint8_t *upper; /* private data of the peer's upper layer, in in */
    uint32_t upper_len;
    struct soft_shm *shm;
};

static inline struct soft_id *soft_id_of(struct exsi_cm_id *id)
{
    return exsi_container_of(id, struct soft_id, id);
}

/* cm.c: the table's entries */
int soft_cm_listen(struct exsi_part *part, const union exsi_addr *addr, int backlog, const struct exsi_cm_options *opt,
                   void *user, struct exsi_cm_id **out, union exsi_addr *bound);
int soft_cm_resolve(struct exsi_part *part, const union exsi_addr *source, const union exsi_addr *peer,
                    const struct exsi_cm_options *opt, void *user, struct exsi_cm_id **out);
int soft_cm_connect(struct exsi_cm_id *id, const void *private_data, uint32_t len);
int soft_cm_accept(struct exsi_cm_id *id, const void *private_data, uint32_t len);
void soft_cm_reject(struct exsi_cm_id *id, const void *private_data, uint32_t len);
void soft_cm_disconnect(struct exsi_cm_id *id);
void soft_cm_destroy(struct exsi_cm_id *id);
int soft_cm_poll(struct exsi_part *part, struct exsi_cm_event *ev);

/* A queue pair is made on a resolved or requested id: -EINVAL if it is not that, or has one. */
EXSI_MUST_CHECK int soft_id_adopt(struct exsi_cm_id *id, struct soft_qp *qp);
/* Its queue pair went away. */
void soft_id_orphan(struct soft_id *id);
struct soft_id *soft_id_new(struct soft_part *part, const struct exsi_cm_options *opt, void *user);
/* It is no longer one of the listener's strangers. */
void soft_id_leave_listener(struct soft_id *id);
/* Closes everything without a word. */
void soft_id_free(struct soft_id *id);
/* The end of a set-up: FAILED with error (positive) and words.  An id that nobody knows of is freed. */
void soft_id_fail(struct soft_id *id, int error, const char *fmt, ...) EXSI_PRINTF(3, 4);
void soft_id_event(struct soft_id *id, enum exsi_cm_kind kind, const void *private_data, uint32_t len);
/* ESTABLISHED over the path (takes; NULL: tcp). */
void soft_id_agreed(struct soft_id *id, struct soft_path *path);

/* cm_mpa.c: the exchange of frames.  After any of them the id may have failed or be gone. */
void soft_mpa_event(struct soft_id *id, uint32_t events);
void soft_mpa_call(struct soft_id *id, const void *private_data, uint32_t len);
void soft_mpa_answer(struct soft_id *id, const void *private_data, uint32_t len);
/* A reply that rejects, on a socket that lingers: the id has none afterwards.  why: soft_block.why. */
void soft_mpa_reject(struct soft_id *id, const void *private_data, uint32_t len, uint16_t why);

/* The active side has waited long enough for shared memory: stays on tcp.  False: it may not. */
bool soft_mpa_give_up_shm(struct soft_id *id);

/* cm_tcp.c: sockets */
int soft_sock_listen(const union exsi_addr *addr, int backlog, const struct exsi_cm_options *opt,
                     union exsi_addr *bound);
int soft_sock_connect(const union exsi_addr *source, const union exsi_addr *peer, const struct exsi_cm_options *opt);
void soft_sock_tune(int fd, const struct exsi_cm_options *opt);
/* Pending error of a socket, or 0: a positive errno. */
int soft_sock_error(int fd);

/* raw.c */
EXSI_MUST_CHECK int soft_raw_open(struct soft_qp *qp, const uint8_t *gid);
void soft_raw_close(struct soft_qp *qp);
int soft_raw_query(struct exsi_qp *qp, struct exsi_raw_address *out);
int soft_raw_to_rtr(struct exsi_qp *qp, const struct exsi_raw_address *peer);
int soft_raw_to_rts(struct exsi_qp *qp);
void soft_raw_part_close(struct soft_part *part);
/* What became of an id whose raw is set. */
void soft_raw_resolved(struct soft_id *id);
void soft_raw_requested(struct soft_id *id);
void soft_raw_agreed(struct soft_id *id);
void soft_raw_failed(struct soft_id *id, int error);
/* Told to be ready to send? */
bool soft_raw_may_send(const struct soft_qp *qp);

#endif
