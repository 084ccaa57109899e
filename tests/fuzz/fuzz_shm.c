// SPDX-License-Identifier: MIT OR Apache-2.0
/* Invariant: whatever a peer writes into the shared segment or says on the UNIX socket, nothing lands
 * outside of the range behind a key and of the posted receives, no message completes that was not
 * sent whole, a broken connection stays silent, and every call returns.
 *
 * Input: a byte that chooses set-up (odd) or data (even), then commands of one byte with their
 * operands; an operand that the input is too short for is filled with zeros. */
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../native/shm_pair.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { WINDOW = 16384, GUARD = 256 };

static struct {
    uint8_t before[GUARD], window[WINDOW], after[GUARD];
} target;

static struct side a, p;
static uint8_t src[65536];

struct input {
    const uint8_t *at, *end;
};

static void require(bool holds)
{
    if (!holds) abort();
}

static void take(struct input *in, void *out, size_t len)
{
    size_t n = exsi_min_u64(len, (uint64_t)(in->end - in->at));
    memset(out, 0, len);
    memcpy(out, in->at, n);
    in->at += n;
}

static bool guards_whole(void)
{
    for (int i = 0; i < GUARD; i++)
        if (target.before[i] != 0xa5 || target.after[i] != 0xa5) return false;
    return true;
}

static struct soft_mr region;

/* A message with none, one or two descriptors, good and bad ones. */
static void say(struct input *in, int fd)
{
    struct shm_msg m;
    uint8_t how;
    take(in, &how, 1);
    take(in, &m, sizeof m);
    if (how & 1) m.magic = SHM_MAGIC;
    if (how & 2) m.version = SHM_VERSION;
    if (how & 4) m.len %= 2 * 65536;
    int fds[2] = {how & 8 ? region.dmr.mem.memfd : 0, how & 16 ? region.dmr.mem.memfd : fd};
    int rc = shm_send_msg(fd, &m, fds, (how >> 5) % 3);
    (void)rc;
}

static void put_slot(struct input *in)
{
    struct shm_path *liar = shm_of(&a);
    struct shm_slot v, *s = &liar->tx.slots[liar->tx.next & (liar->slots - 1)];
    uint8_t how;
    take(in, &how, 1);
    take(in, &v, sizeof v);
    if (how & 1) v.rkey = 7;
    if (how & 2) v.raddr = (uint64_t)(uintptr_t)target.window + v.raddr % (2 * WINDOW) - WINDOW / 2;
    if (how & 4) v.len %= 2 * WINDOW;
    if (how & 8) v.src = (uint64_t)(uintptr_t)src + v.src % sizeof src;
    if (how & 16) v.region = 1;
    if (how & 32) v.kind %= 9;
    memcpy(s, &v, sizeof v);
    if (!(how & 64)) atomic_store(&s->seq, (uint32_t)++liar->tx.next);
}

static void send_something(struct input *in)
{
    static struct soft_mr mr;
    uint16_t n;
    take(in, &n, sizeof n);
    mr = private_mr(src, sizeof src);
    if (p.qp.len + 2 > FAKE_TX) return;
    post_write(&p, src, n, &mr, 7, target.window);
    post_send(&p, src, n % 64);
    kick(&p);
}

static void command(struct input *in)
{
    uint8_t what;
    uint64_t number;
    struct shm_path *liar = shm_of(&a);
    take(in, &what, 1);
    switch (what % 8) {
    case 0:
    case 1: put_slot(in); break;
    case 2: say(in, liar->unix_fd); break;
    case 3:
        take(in, &number, sizeof number);
        atomic_store(&liar->rx.mine->consumed, number);
        break;
    case 4:
        take(in, &number, sizeof number);
        atomic_store(&liar->rx.mine->want, number);
        atomic_store(&liar->rx.mine->state, (uint32_t)number);
        break;
    case 5: send_something(in); break;
    case 6: take(in, liar->tx.data, 256); break;
    case 7: settle(NULL, &p); break;
    }
}

static void fuzz_data(struct input *in)
{
    must(pair_open_as(&a, &p, EXSI_PATH_AUTO, EXSI_PATH_AUTO, 65536));
    add_key(&p, 7, target.window, WINDOW);
    p.qp.posted = 8;
    while (in->at < in->end) {
        uint64_t writes = p.qp.writes, received = p.qp.received;
        bool over = p.qp.broken != 0;
        command(in);
        turn(&p);
        require(!over || (p.qp.writes == writes && p.qp.received == received));
        require(p.qp.received <= p.qp.posted);
    }
    settle(NULL, &p);
    pair_close(&a, &p);
}

/* A passive side that says what it likes to an honest active one. */
static void fuzz_setup(struct input *in)
{
    struct soft_block request = {0}, reply = {0};
    char reason[EXSI_REASON_MAX];
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    side_open(&a);
    struct soft_shm_ask ask = side_ask(&a, EXSI_PATH_AUTO, 65536);
    struct soft_shm *shm = soft_shm_offer(&ask, &request, reason);
    must(shm);
    memcpy(un.sun_path + 1, request.name, request.name_len);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(connect(fd, (struct sockaddr *)&un,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + request.name_len)) == 0);
    /* Behind a right beginning the input decides. */
    struct shm_msg m = {.magic = SHM_MAGIC, .version = SHM_VERSION, .type = SHM_MSG_HELLO};
    uint8_t how;
    take(in, &how, 1);
    take(in, &m.flags, sizeof m - offsetof(struct shm_msg, flags));
    if (how & 1) memcpy(m.token, request.token, sizeof m.token);
    if (how & 2) m.slots = 64, m.data_bytes = 4096;
    if (how & 4) m.addr = (uint64_t)(uintptr_t)src;
    take(in, region.dmr.mem.addr, sizeof(struct shm_head));
    struct shm_head *h = region.dmr.mem.addr;
    if (how & 8) h->magic = how & 64 ? SHM_PAGE_MAGIC : SHM_MAGIC, h->version = SHM_VERSION;
    int fds[2] = {region.dmr.mem.memfd, region.dmr.mem.memfd};
    int rc = shm_send_msg(fd, &m, fds, (how >> 4) % 3);
    (void)rc;
    while (in->at < in->end) say(in, fd);
    soft_shm_confirm(shm, &reply);
    settle(&a, NULL);
    if (!a.done) soft_shm_drop(shm);
    if (a.path) side_adopt(&a);
    settle(&a, NULL);
    close(fd);
    settle(&a, NULL);
    side_close(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {data, data + len};
    uint8_t which;
    signal(SIGPIPE, SIG_IGN);
    if (!region.dmr.mem.addr) region = shared_mr(65536, false, 1);
    memset(&target, 0xa5, sizeof target);
    take(&in, &which, 1);
    if (which & 1)
        fuzz_setup(&in);
    else
        fuzz_data(&in);
    require(guards_whole());
    return 0;
}
