// SPDX-License-Identifier: MIT OR Apache-2.0
/* The oracle of the random engine test: what was sent, what was received, and whether the two agree.
 * A direction is a list of sends, each with bytes of its own, and the log of what receives delivered.
 * A byte stream is checked as one array, messages one by one; both only when a connection is over, for
 * only then is known how much of a cancelled send counts. */
#ifndef MODEL_H
#define MODEL_H

#include "pair.h"

#define SLOTS       24
#define SLOT_BYTES  192
#define SLOT_STRIDE 256
#define MAX_SENDS   4096

struct slot {
    bool busy, cancelled;
    uint64_t op;
    uint32_t index; /* of the send, or of the receive */
    uint32_t len, flags;
    uint8_t *base;
};

struct sent {
    uint32_t len;
    uint32_t counts;   /* bytes of it that are in the stream; messages: 1 or 0 */
    bool over, failed; /* failed: by the end of the connection, anything up to len may have arrived */
};

struct message {
    uint32_t len, full, at; /* at: of its bytes in the log */
};

struct direction {
    struct sent sends[MAX_SENDS];
    uint32_t n_sends;
    uint8_t *log;
    uint32_t log_len, log_cap;
    struct message *messages;
    uint32_t n_messages;
    uint32_t last_ok; /* index + 1 of the last send that ended well */
    bool receiver_shut;
    uint32_t shut_at; /* log_len then */
};

struct model {
    struct pair *pair;
    bool packets;
    struct direction dir[2]; /* dir[i]: side i sends */
    struct slot send[2][SLOTS], recv[2][SLOTS];
    uint32_t n_recvs[2], last_recv[2];
    uint32_t busy_sends[2], busy_recvs[2];
    bool send_shut[2], recv_shut[2], over;
    uint64_t events;
    char wrong[200]; /* first disagreement, or empty */
};

#define wrong(m, ...)                                                                                                  \
    do {                                                                                                               \
        if (!(m)->wrong[0]) snprintf((m)->wrong, sizeof(m)->wrong, __VA_ARGS__);                                       \
    } while (0)

void model_start(struct model *m, struct pair *p, bool packets);
void model_post_send(struct model *m, int side, uint32_t len, uint32_t split, uint32_t flags);
void model_post_recv(struct model *m, int side, uint32_t len, uint32_t split, uint32_t flags);
void model_cancel(struct model *m, int side, bool recv, uint32_t slot);
void model_take(struct model *m, int side, uint32_t len);
void model_shut_send(struct model *m, int side);
void model_shut_recv(struct model *m, int side);
/* Fetch and judge every event that is there. */
void model_events(struct model *m);
/* The connection is over: does what arrived agree with what was sent?  whole: nothing may be missing. */
void model_compare(struct model *m, bool whole);
void model_end(struct model *m);

#endif
