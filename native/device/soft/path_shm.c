// SPDX-License-Identifier: MIT OR Apache-2.0
/* The path through shared memory: life of a connection, its UNIX socket, its end.
 *
 * While both sides look at their rings no system call is made.  The UNIX socket carries what needs a
 * descriptor (memory files), the wake-up of a sleeper, and the news of death.  The wake-up is a
 * message there and not an eventfd of the peer's: a descriptor that another process shares can be made
 * blocking by it, and then a ring would be a trap; MSG_DONTWAIT is the writer's own word.
 *
 * Everything published before the socket ended counts: the rings are emptied before a verdict. */
#include <stdlib.h>
#include <unistd.h>

#include "device/soft/shm.h"

static struct shm_path *shm_of(struct soft_path *p)
{
    return exsi_container_of(p, struct shm_path, path);
}

void shm_path_wake(struct shm_path *p)
{
    /* What we published comes before our look at the flag; the sleeper sets the flag before its last
     * look at the rings (fence in the doorbell). */
    shm_fence();
    uint32_t sleep = atomic_load_explicit(&p->peer_page->sleep, memory_order_relaxed);
    if (!(sleep & 1) || sleep == p->last_rung || p->dead) return;
    p->last_rung = sleep;
    struct shm_msg m = {.magic = SHM_MAGIC, .version = SHM_VERSION, .type = SHM_MSG_WAKE};
    exsi_count(p->path.stats, wakeups, 1);
    exsi_count(p->path.stats, syscalls, 1);
    /* No room: then something lies there that wakes as well. */
    int rc = shm_send_msg(p->unix_fd, &m, NULL, 0);
    (void)rc;
}

/* --- the end --------------------------------------------------------------------------------------- */

/* Asked of our own count: the send queue may have been emptied already. */
static bool sources_out(const struct shm_path *p)
{
    return p->tx.source_mark > atomic_load_explicit(&p->tx.peer->consumed, memory_order_acquire);
}

/* From here the peer takes nothing out of our memory that would count, and nothing lands in it. */
static void stop(struct shm_path *p, uint32_t state)
{
    if (sources_out(p)) state |= SHM_STATE_WITHDRAWN;
    p->rx.stopped = true;
    p->tx.shut_sent = true;
    if (state) atomic_fetch_or_explicit(&p->tx.mine->state, state, memory_order_seq_cst);
    /* The mark before whatever the owner now does to its memory. */
    shm_fence();
}

/* Let the peer hear of it, also when it sleeps. */
static void hang_up(struct shm_path *p)
{
    if (p->unix_fd >= 0) shutdown(p->unix_fd, SHUT_RDWR);
}

void shm_path_break(struct shm_path *p, int error, const char *reason)
{
    if (p->broken_told) return;
    p->broken_told = true;
    stop(p, 0);
    hang_up(p);
    p->path.sink->broken(p->path.qp, error, reason);
}

static uint32_t terminated(enum shm_blame blame, struct soft_terminate t)
{
    return SHM_STATE_TERMINATED | (uint32_t)(t.layer & 15) << 8 | (uint32_t)(t.etype & 15) << 12 |
           (uint32_t)t.code << 16 | (uint32_t)blame << 24;
}

void shm_path_violation(struct shm_path *p, enum shm_blame blame, struct soft_terminate t, int error,
                        const char *reason)
{
    if (p->broken_told) return;
    stop(p, terminated(blame, t));
    shm_path_break(p, error, reason);
}

/* The UNIX socket ended and the rings are empty. */
static void judge(struct shm_path *p)
{
    uint32_t state = atomic_load_explicit(&p->rx.peer->state, memory_order_acquire);
    p->judged = true;
    if (state & SHM_STATE_TERMINATED) {
        switch (state >> 24) {
        case SHM_BLAME_PROTOCOL: shm_path_break(p, EPROTO, "the peer found an error in what was sent"); return;
        case SHM_BLAME_SOURCE: shm_path_break(p, EFAULT, "the peer could not read the memory to be sent"); return;
        default: break;
        }
    }
    if (p->rx.shut_seen && !p->tx.handed && !p->tx.mid && !soft_qp_tx(p->path.qp, 0)) return;
    shm_path_break(p, ECONNRESET, "the peer is gone");
}

/* --- the UNIX socket --------------------------------------------------------------------------------- */

static void ended(struct shm_path *p)
{
    if (p->dead) return;
    p->dead = true;
    /* It stays readable for ever: out of the set, or nobody could sleep any more. */
    exsi_poller_del(p->path.part->poller, &p->watch);
}

static int handle(struct shm_path *p, const struct shm_msg *m, int *fds, int n_fds)
{
    switch ((enum shm_msg_type)m->type) {
    case SHM_MSG_WAKE: return n_fds ? -EPROTO : 0;
    case SHM_MSG_REGION: return n_fds == 1 ? shm_rx_region(p, m, fds[0]) : -EPROTO;
    case SHM_MSG_LEND:
        if (n_fds != 1) return -EPROTO;
        shm_tx_lent(p, m, fds[0]);
        return 0;
    case SHM_MSG_HELLO:
    case SHM_MSG_ACK: break;
    }
    return -EPROTO;
}

/* Take one message: as handle, or 0 with *end. */
static int take_msg(struct shm_path *p, bool *end)
{
    struct shm_msg m;
    int fds[SHM_MAX_FDS], n_fds;
    int rc = shm_recv_msg(p->unix_fd, &m, fds, &n_fds);
    *end = rc == 0 || rc == -ECONNRESET;
    if (*end) return 0;
    if (rc < 0) return rc;
    rc = handle(p, &m, fds, n_fds);
    shm_close_fds(fds, n_fds);
    return rc;
}

int shm_path_drain(struct shm_path *p)
{
    bool end;
    if (p->dead) return 0;
    exsi_count(p->path.stats, syscalls, 1);
    int brings = shm_peek_fds(p->unix_fd);
    if (brings == -EAGAIN) return 0;
    exsi_count(p->path.stats, syscalls, 1);
    if (brings > 0) shm_part_make_room(p->path.part);
    int rc = take_msg(p, &end);
    if (brings > 0) shm_part_keep_room(p->path.part);
    shm_part_heard(p->path.part);
    if (!end && rc >= 0) return 1;
    if (rc == -EPROTO)
        shm_path_violation(p, SHM_BLAME_PROTOCOL, soft_terminate_for(rc, true), EPROTO, "nonsense on the UNIX socket");
    else if (rc < 0)
        shm_path_violation(p, SHM_BLAME_MINE, soft_terminate_for(rc, true), -rc, "no room for memory of the peer");
    ended(p);
    return 0;
}

static void on_unix(struct exsi_watch *w, uint32_t events)
{
    struct shm_path *p = exsi_container_of(w, struct shm_path, watch);
    (void)events;
    shm_path_drain(p);
}

bool shm_path_again(struct shm_path *p)
{
    return exsi_timer_start(p->path.part->poller, &p->again, 0) == 0;
}

/* --- the table ----------------------------------------------------------------------------------------- */

int shm_path_progress(struct shm_path *p, uint64_t *budget)
{
    int work = shm_rx_run(p, budget) + shm_tx_progress(p);
    if (work) {
        /* One waiter leaves with its events while another sleeps: nobody rings for what is left here. */
        if (p->path.part->asleep && shm_rx_left(p)) (void)shm_path_again(p);
        return work;
    }
    if (!p->dead || !*budget || p->judged || p->broken_told || p->rx.starved) return 0;
    judge(p);
    return 1;
}

static const char *op_name(const struct soft_path *p)
{
    return exsi_container_of(p, const struct shm_path, path)->vm ? "shm-vm" : "shm-ring";
}

static void on_again(struct exsi_timer *t)
{
    struct shm_path *p = exsi_container_of(t, struct shm_path, again);
    if (!p->broken_told) shm_tx_kick(p);
}

static int op_start(struct soft_path *path)
{
    struct shm_path *p = shm_of(path);
    p->watch.fn = on_unix;
    EXSI_TRY(exsi_poller_add(path->part->poller, &p->watch, p->unix_fd, EPOLLIN));
    exsi_list_append(&path->part->shm_paths, &path->node);
    return 0;
}

static void op_kick(struct soft_path *path)
{
    struct shm_path *p = shm_of(path);
    if (p->judged && soft_qp_tx(path->qp, 0)) shm_path_break(p, ECONNRESET, "the peer is gone");
    shm_tx_kick(p);
}

static int op_progress(struct soft_path *path)
{
    uint64_t budget = SHM_PULL_BUDGET;
    return shm_path_progress(shm_of(path), &budget);
}

static void op_shut(struct soft_path *path)
{
    struct shm_path *p = shm_of(path);
    p->tx.shut_wanted = true;
    shm_tx_kick(p);
}

static void op_terminate(struct soft_path *path, int layer, int etype, int code)
{
    struct shm_path *p = shm_of(path);
    if (p->broken_told) return;
    p->broken_told = true; /* whoever calls this knows */
    stop(p, terminated(SHM_BLAME_PROTOCOL, (struct soft_terminate){(uint8_t)layer, (uint8_t)etype, (uint8_t)code}));
    hang_up(p);
}

static void op_abort(struct soft_path *path)
{
    struct shm_path *p = shm_of(path);
    p->broken_told = true;
    stop(p, 0);
    hang_up(p);
    exsi_poller_del(path->part->poller, &p->watch);
    exsi_list_unlink(&path->node);
}

static void op_resume(struct soft_path *path)
{
    struct shm_path *p = shm_of(path);
    p->rx.starved = false;
    /* Nobody rings for what is left, nor for the end of a peer that is gone. */
    if (op_progress(path) && (p->dead || path->part->asleep)) (void)shm_path_again(p);
}

static void op_lend(struct soft_path *path, uint32_t rkey, const struct soft_mr *mr, uint64_t raddr, size_t len)
{
    struct shm_path *p = shm_of(path);
    const struct exsi_mem *mem = &mr->dmr.mem;
    if (mem->memfd < 0 || p->dead || p->broken_told) return;
    struct shm_msg m = {.magic = SHM_MAGIC,
                        .version = SHM_VERSION,
                        .type = SHM_MSG_LEND,
                        .rkey = rkey,
                        .addr = raddr,
                        .len = len,
                        .offset = mem->memfd_offset + (raddr - (uint64_t)(uintptr_t)mem->addr)};
    int fd = mem->memfd;
    exsi_count(path->stats, syscalls, 1);
    /* Not sent: then the ring or a pull serves, as with any other memory. */
    int rc = shm_send_msg(p->unix_fd, &m, &fd, 1);
    (void)rc;
}

static void op_free(struct soft_path *path)
{
    shm_path_free(shm_of(path));
}

static const struct soft_path_ops shm_ops = {
    .family = "shm",
    .name = op_name,
    .start = op_start,
    .kick = op_kick,
    .progress = op_progress,
    .resume = op_resume,
    .shut = op_shut,
    .terminate = op_terminate,
    .abort = op_abort,
    .free = op_free,
    .lend = op_lend,
};

/* --- life ------------------------------------------------------------------------------------------------ */

static void lay_out(struct shm_path *p, bool active)
{
    struct shm_head *h = p->segment.base;
    uint8_t *at = (uint8_t *)p->segment.base + SHM_HEAD_BYTES;
    uint64_t slot_bytes = (uint64_t)p->slots * sizeof(struct shm_slot);
    struct shm_slot *slots[2] = {(struct shm_slot *)(void *)at, (struct shm_slot *)(void *)(at + slot_bytes)};
    uint8_t *data[2] = {at + 2 * slot_bytes, at + 2 * slot_bytes + p->data_bytes};
    int me = active ? 0 : 1, they = !me;
    p->tx.slots = slots[me];
    p->tx.data = data[me];
    p->rx.slots = slots[they];
    p->rx.data = data[they];
    p->tx.mine = p->rx.mine = &h->side[me];
    p->tx.peer = p->rx.peer = &h->side[they];
}

int shm_path_new(const struct shm_made *made, struct shm_path **out)
{
    struct shm_path *p = calloc(1, sizeof *p);
    uint64_t *marks = calloc(made->slots, sizeof *marks);
    if (!p || !marks) {
        free(p);
        free(marks);
        struct shm_map map = made->segment;
        shm_unmap(&map);
        return -ENOMEM;
    }
    p->path = (struct soft_path){.ops = &shm_ops, .part = made->part, .max_msg = SHM_MAX_MSG};
    exsi_list_init(&p->path.node);
    p->segment = made->segment;
    p->slots = made->slots;
    p->data_bytes = made->data_bytes;
    p->ring_max = exsi_min_u32(SHM_RING_THRESHOLD - 1, p->data_bytes / 2);
    p->watch.fd = p->unix_fd = -1;
    p->again.fn = on_again;
    p->tx.data_mark = marks;
    p->rx.msn = 1;
    lay_out(p, made->active);
    p->tx.want = SHM_WANT_NOTHING;
    atomic_store_explicit(&p->tx.mine->want, SHM_WANT_NOTHING, memory_order_relaxed);
    *out = p;
    return 0;
}

void shm_path_join(struct shm_path *p, int unix_fd, struct shm_map page, pid_t pid, bool vm, bool ring_only)
{
    p->unix_fd = unix_fd;
    p->page_map = page;
    p->peer_page = page.base;
    p->pid = pid;
    p->vm = vm;
    p->ring_only = ring_only;
}

void shm_path_free(struct shm_path *p)
{
    exsi_list_unlink(&p->path.node);
    exsi_poller_del(p->path.part->poller, &p->watch);
    exsi_timer_stop(p->path.part->poller, &p->again);
    if (p->unix_fd >= 0) close(p->unix_fd);
    for (int i = 0; i < SHM_REGIONS; i++) {
        shm_rx_forget(&p->rx.regions[i]);
        soft_region_put(p->tx.sent_region[i]);
    }
    for (int i = 0; i < SHM_LENT; i++) shm_unmap(&p->tx.lent[i].map);
    shm_unmap(&p->page_map);
    shm_unmap(&p->segment);
    free(p->tx.data_mark);
    free(p);
}
