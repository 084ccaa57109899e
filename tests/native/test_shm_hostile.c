// SPDX-License-Identifier: MIT OR Apache-2.0
/* The path through shared memory against a peer that lies.  The peer here is an honest side whose
 * segment and socket the test writes to behind its back.  Whatever it does: that one connection ends
 * with an error, nothing lands outside of what was advertised, nothing waits. */
#include "shm_pair.h"

static uint8_t src[1 << 20], dst[1 << 20];
static struct side a, p; /* a lies, p judges */

static void open_pair(enum exsi_path path)
{
    pair_open(&a, &p, path);
    add_key(&p, 7, dst, sizeof dst);
    memset(dst, 0xee, sizeof dst);
}

static bool untouched(void)
{
    for (size_t i = 0; i < sizeof dst; i++)
        if (dst[i] != 0xee) return false;
    return true;
}

/* The next slot of the liar, published as it stands. */
static struct shm_slot *lie(void)
{
    struct shm_tx *tx = &shm_of(&a)->tx;
    struct shm_slot *s = &tx->slots[tx->next & (shm_of(&a)->slots - 1)];
    memset(s, 0, sizeof *s);
    return s;
}

static void tell_lie(struct shm_slot *s)
{
    atomic_store(&s->seq, (uint32_t)++shm_of(&a)->tx.next);
    settle(NULL, &p);
}

static void refused(const char *what)
{
    ok(p.qp.broken == EPROTO && untouched() && !p.qp.received, "%s: %s", what, p.qp.reason);
    settle(&a, &p);
    ok(a.qp.broken == EPROTO, "%s: and the liar is told", what);
    pair_close(&a, &p);
}

static struct shm_slot tagged(uint8_t kind, uint32_t len, const void *at)
{
    return (struct shm_slot){.kind = kind, .flags = SHM_LAST, .len = len, .rkey = 7, .raddr = (uint64_t)(uintptr_t)at};
}

static void put(struct shm_slot v)
{
    struct shm_slot *s = lie();
    memcpy(s, &v, sizeof v);
    tell_lie(s);
}

/* A slot that would place 16 bytes where none may land. */
static void misplaced(struct shm_slot v, const char *kind, const char *what)
{
    open_pair(EXSI_PATH_SHM_VM);
    v.src = (uint64_t)(uintptr_t)src;
    put(v);
    ok(p.qp.broken == EPROTO && untouched(), "%s: %s", kind, what);
    pair_close(&a, &p);
}

static void places(void)
{
    static const uint8_t kinds[] = {SHM_INLINE, SHM_RING, SHM_PULL, SHM_FILLED};
    static const char *const names[] = {"inline", "ring", "pull", "filled"};
    for (size_t i = 0; i < 4; i++) {
        misplaced(tagged(kinds[i], 16, dst + sizeof dst - 15), names[i], "one byte past what was advertised");
        misplaced(tagged(kinds[i], 16, (void *)((uintptr_t)dst - 1)), names[i], "one byte before it");
        struct shm_slot v = tagged(kinds[i], 16, dst);
        v.rkey = 8;
        misplaced(v, names[i], "a key that does not exist");
        misplaced(tagged(kinds[i], 16, (void *)(uintptr_t)(UINT64_MAX - 7)), names[i], "an address that wraps");
    }
}

static void slots(void)
{
    struct shm_slot v;
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = 0});
    refused("kind 0");
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = 200, .flags = 255, .len = UINT32_MAX});
    refused("an unknown kind");

    open_pair(EXSI_PATH_AUTO);
    put(tagged(SHM_INLINE, SHM_INLINE_TAGGED + 1, dst));
    refused("more inline than a slot holds");
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = SHM_INLINE, .flags = SHM_UNTAGGED | SHM_LAST, .len = SHM_INLINE_UNTAGGED + 1});
    refused("a SEND longer than its slot");
    open_pair(EXSI_PATH_AUTO);
    put(tagged(SHM_RING, shm_of(&p)->data_bytes + 1, dst));
    refused("more than the ring holds");
    open_pair(EXSI_PATH_AUTO);
    put(tagged(SHM_RING, UINT32_MAX, dst));
    refused("4 GiB in the ring");

    open_pair(EXSI_PATH_SHM_RING);
    v = tagged(SHM_PULL, 16, dst);
    v.src = (uint64_t)(uintptr_t)src;
    put(v);
    refused("a pull where that was not agreed");
    open_pair(EXSI_PATH_SHM_VM);
    v = tagged(SHM_PULL, 0, dst);
    put(v);
    refused("a pull of nothing");
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = SHM_FILLED, .flags = SHM_UNTAGGED | SHM_LAST, .len = 16});
    refused("a SEND that claims to be there");
}

static void order(void)
{
    struct shm_slot v = tagged(SHM_INLINE, 4, dst);
    open_pair(EXSI_PATH_AUTO);
    v.flags = 0;
    put(v);
    put((struct shm_slot){.kind = SHM_INLINE, .flags = SHM_UNTAGGED | SHM_LAST, .len = 4});
    ok(p.qp.broken == EPROTO && !p.qp.received, "a SEND in the middle of a WRITE: %s", p.qp.reason);
    pair_close(&a, &p);
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = SHM_INLINE, .flags = SHM_UNTAGGED, .len = 4});
    v.flags = SHM_LAST;
    put(v);
    refused("a WRITE in the middle of a SEND");
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = SHM_INLINE, .flags = SHM_UNTAGGED, .len = 4});
    put((struct shm_slot){.kind = SHM_SHUT});
    refused("the end in the middle of a SEND");
    open_pair(EXSI_PATH_AUTO);
    put((struct shm_slot){.kind = SHM_SHUT});
    put((struct shm_slot){.kind = SHM_INLINE, .flags = SHM_UNTAGGED | SHM_LAST, .len = 4});
    refused("something behind the end");
    open_pair(EXSI_PATH_AUTO);
    for (int i = 0; i < 6; i++) put((struct shm_slot){.kind = SHM_INLINE, .flags = SHM_UNTAGGED, .len = 52});
    ok(p.qp.broken == EPROTO && !p.qp.received, "a SEND longer than the receive: %s", p.qp.reason);
    pair_close(&a, &p);
    open_pair(EXSI_PATH_AUTO);
    p.qp.posted = 0;
    v = tagged(SHM_INLINE, 0, dst);
    v.flags |= SHM_NOTICE;
    put(v);
    refused("a notice without a receive");
}

static void indices(void)
{
    struct soft_mr mr = private_mr(src, sizeof src);
    static const uint64_t claims[] = {1000, UINT64_MAX, UINT64_MAX / 2};
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
        open_pair(EXSI_PATH_SHM_VM);
        post_write(&p, src, 100000, &mr, 1, dst);
        kick(&p);
        atomic_store(&shm_of(&a)->rx.mine->consumed, claims[i]);
        settle(NULL, &p);
        ok(p.qp.broken == EPROTO && !p.qp.completed, "consumed %llu of 1", (unsigned long long)claims[i]);
        pair_close(&a, &p);
    }
    open_pair(EXSI_PATH_SHM_VM);
    for (int i = 0; i < 4; i++) post_write(&p, src, 100000, &mr, 1, dst);
    kick(&p);
    atomic_store(&shm_of(&a)->rx.mine->consumed, 3);
    settle(NULL, &p);
    bool three = p.qp.completed == 3;
    atomic_store(&shm_of(&a)->rx.mine->consumed, 1);
    settle(NULL, &p);
    ok(three && p.qp.broken == EPROTO && p.qp.completed == 3, "consumed goes backwards");
    pair_close(&a, &p);

    open_pair(EXSI_PATH_AUTO);
    struct shm_tx *tx = &shm_of(&a)->tx;
    for (uint32_t i = 0; i < shm_of(&a)->slots; i++) atomic_store(&tx->slots[i].seq, 0x80000000u + i);
    settle(NULL, &p);
    ok(!p.qp.broken && untouched(), "slots with numbers from elsewhere are not there");
    pair_close(&a, &p);

    /* A peer that never consumes: everything else goes on. */
    open_pair(EXSI_PATH_SHM_RING);
    for (int i = 0; i < 4; i++) post_write(&p, src, sizeof src, &mr, 1, dst);
    kick(&p);
    for (int i = 0; i < 1000; i++) turn(&p);
    ok(p.qp.completed == 0 && !p.qp.broken, "a peer that never consumes stops only what is sent to it");
    put(tagged(SHM_INLINE, 4, dst));
    ok(p.qp.writes == 1, "and is still received from");
    pair_close(&a, &p);

    /* The head of the segment is not looked at again. */
    open_pair(EXSI_PATH_AUTO);
    memset(shm_of(&a)->segment.base, 0xff, offsetof(struct shm_head, side));
    post_send(&a, "x", 2);
    kick(&a);
    settle(&a, &p);
    ok(p.qp.received == 1 && !p.qp.broken, "sizes in the segment are read once");
    pair_close(&a, &p);
}

static void sources(void)
{
    open_pair(EXSI_PATH_SHM_VM);
    struct shm_slot v = tagged(SHM_PULL, 4096, dst);
    v.src = 4096;
    put(v);
    ok(p.qp.broken == ECONNRESET && untouched(), "a source that is not mapped: %s", p.qp.reason);
    settle(&a, &p);
    ok(a.qp.broken == EFAULT, "whose owner hears EFAULT");
    pair_close(&a, &p);

    open_pair(EXSI_PATH_SHM_VM);
    v = tagged(SHM_PULL, 4096, dst);
    v.src = UINT64_MAX - 4095;
    put(v);
    ok(p.qp.broken && untouched(), "a source at the end of the world: %s", p.qp.reason);
    pair_close(&a, &p);

    /* Half of it is there: the half arrives, the message does not. */
    uint8_t *half = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(mprotect(half + 4096, 4096, PROT_NONE) == 0);
    open_pair(EXSI_PATH_SHM_VM);
    struct soft_mr mr = private_mr(half, 8192);
    post_write(&a, half, 8192, &mr, 7, dst);
    post_send(&a, "done", 4);
    kick(&a);
    settle(&a, &p);
    ok(p.qp.writes == 0 && p.qp.received == 0 && p.qp.broken == ECONNRESET && a.qp.broken == EFAULT,
       "a source of which half is gone");
    pair_close(&a, &p);
    munmap(half, 8192);
}

static void cut_files(void)
{
    /* The target is a mapped file that was cut: ours, so EFAULT here. */
    int fd = memfd_create("cut", MFD_CLOEXEC);
    must(fd >= 0 && ftruncate(fd, 65536) == 0);
    uint8_t *cut = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    static const uint32_t lens[] = {16, 4096, 65536};
    struct soft_mr srcmr = private_mr(src, sizeof src);
    must(ftruncate(fd, 0) == 0);
    for (size_t i = 0; i < 3; i++) {
        open_pair(EXSI_PATH_SHM_VM);
        p.qp.keys[1] = (struct fake_key){9, cut, 65536, true};
        post_write(&a, src, lens[i], &srcmr, 9, cut);
        kick(&a);
        settle(&a, &p);
        ok(p.qp.broken == EFAULT && a.qp.broken == ECONNRESET && !p.qp.writes, "a target that was cut, %u bytes",
           lens[i]);
        pair_close(&a, &p);
    }
    /* And the source is one: EFAULT at the sender, whichever way its bytes take. */
    for (size_t i = 0; i < 3; i++) {
        open_pair(EXSI_PATH_SHM_VM);
        struct soft_mr cutmr = private_mr(cut, 65536);
        cutmr.dmr.mem.fragile = true;
        post_write(&a, cut, lens[i], &cutmr, 7, dst);
        kick(&a);
        settle(&a, &p);
        ok(a.qp.broken == EFAULT && p.qp.broken == ECONNRESET && !p.qp.writes, "a source that was cut, %u bytes",
           lens[i]);
        pair_close(&a, &p);
    }
    munmap(cut, 65536);
    close(fd);
}

/* --- the UNIX socket ------------------------------------------------------------------------------- */

static struct shm_msg message(uint16_t type)
{
    return (struct shm_msg){.magic = SHM_MAGIC, .version = SHM_VERSION, .type = type};
}

static int open_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void message_refused(struct shm_msg m, const int *fds, int n, const char *what)
{
    open_pair(EXSI_PATH_AUTO);
    int before = open_fds();
    must(shm_send_msg(shm_of(&a)->unix_fd, &m, fds, n) == 0);
    settle(NULL, &p);
    ok(p.qp.broken == EPROTO && open_fds() == before, "%s: refused, no descriptor kept", what);
    pair_close(&a, &p);
}

static void region_refused(int fd, uint64_t offset, uint64_t len, const char *what)
{
    struct shm_msg m = message(SHM_MSG_REGION);
    m.id = 77;
    m.offset = offset;
    m.len = len;
    message_refused(m, &fd, 1, what);
}

static void regions(void)
{
    struct soft_mr good = shared_mr(65536, true, 1), writable = shared_mr(65536, false, 2);
    region_refused(writable.dmr.mem.memfd, 0, 65536, "a region that may still be written by others");
    region_refused(good.dmr.mem.memfd, 0, 65537, "a region longer than its file");
    region_refused(good.dmr.mem.memfd, 65536, 4096, "a region behind the end of its file");
    region_refused(good.dmr.mem.memfd, UINT64_MAX - 4095, 8192, "a region that wraps");
    region_refused(good.dmr.mem.memfd, 0, 0, "a region of nothing");
    region_refused(good.dmr.mem.memfd, 100, 4096, "a region at a crooked offset");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    region_refused(null, 0, 4096, "a region that is /dev/null");
    int plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(ftruncate(plain, 65536) == 0);
    region_refused(plain, 0, 65536, "a region that is not sealed");
    must(fcntl(plain, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
    region_refused(plain, 0, 65536, "a region with holes");
    int pipes[2];
    must(pipe2(pipes, O_CLOEXEC) == 0);
    region_refused(pipes[0], 0, 4096, "a region that is a pipe");
    close(null);
    close(plain);
    close(pipes[0]);
    close(pipes[1]);
    shared_mr_end(&good);
    shared_mr_end(&writable);
}

static void messages(void)
{
    struct soft_mr good = shared_mr(65536, true, 1);
    int two[2] = {good.dmr.mem.memfd, good.dmr.mem.memfd};
    struct shm_msg m = message(SHM_MSG_REGION);
    m.id = 1;
    m.len = 65536;
    message_refused(m, two, 2, "a region with two descriptors");
    message_refused(m, NULL, 0, "a region without one");
    message_refused(message(SHM_MSG_WAKE), two, 1, "a wake-up with a descriptor");
    message_refused(message(99), NULL, 0, "an unknown message");
    message_refused(message(SHM_MSG_HELLO), NULL, 0, "a second HELLO");
    struct shm_msg bad = message(SHM_MSG_WAKE);
    bad.magic ^= 1;
    message_refused(bad, NULL, 0, "a wrong magic");
    bad = message(SHM_MSG_WAKE);
    bad.version++;
    message_refused(bad, NULL, 0, "a wrong version");
    shared_mr_end(&good);

    open_pair(EXSI_PATH_AUTO);
    must(send(shm_of(&a)->unix_fd, "GET / HTTP/1.1", 14, 0) == 14);
    settle(NULL, &p);
    ok(p.qp.broken == EPROTO, "somebody speaks HTTP");
    pair_close(&a, &p);
}

/* More descriptors than there is room for. */
static void flood(void)
{
    struct soft_mr good = shared_mr(65536, true, 1);
    int many[40];
    struct shm_msg m = message(SHM_MSG_REGION);
    m.id = 1;
    m.len = 65536;
    open_pair(EXSI_PATH_AUTO);
    int before = open_fds();
    for (int i = 0; i < 40; i++) many[i] = good.dmr.mem.memfd;
    union {
        char space[CMSG_SPACE(sizeof many)];
        struct cmsghdr align;
    } ctl;
    struct iovec iov = {&m, sizeof m};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof ctl};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof many)};
    memcpy(CMSG_DATA(c), many, sizeof many);
    must(sendmsg(shm_of(&a)->unix_fd, &msg, 0) > 0);
    settle(NULL, &p);
    ok(p.qp.broken == EPROTO && open_fds() == before, "a flood of descriptors is refused and closed");
    pair_close(&a, &p);
    shared_mr_end(&good);
}

/* Slots that point into regions. */
static void mapped_slots(void)
{
    struct soft_mr good = shared_mr(65536, true, 1);
    struct shm_msg m;
    static const struct {
        uint64_t region, src;
        uint32_t len;
        const char *what;
    } lies[] = {{5, 0, 16, "a region nobody sent"},
                {77, 65536 - 15, 16, "one byte behind the region"},
                {77, UINT64_MAX - 7, 16, "an offset that wraps"},
                {77, 0, UINT32_MAX, "more than the region"}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        open_pair(EXSI_PATH_AUTO);
        m = message(SHM_MSG_REGION);
        m.id = 77;
        m.len = 65536;
        must(shm_send_msg(shm_of(&a)->unix_fd, &m, &good.dmr.mem.memfd, 1) == 0);
        struct shm_slot v = tagged(SHM_MAPPED, lies[i].len, dst);
        v.src = lies[i].src;
        v.region = lies[i].region;
        put(v);
        refused(lies[i].what);
    }
    open_pair(EXSI_PATH_AUTO);
    m = message(SHM_MSG_REGION);
    m.len = 65536;
    for (uint64_t i = 1; i <= SHM_REGIONS; i++) {
        m.id = i;
        must(shm_send_msg(shm_of(&a)->unix_fd, &m, &good.dmr.mem.memfd, 1) == 0);
        turn(&p);
    }
    ok(!p.qp.broken, "as many regions as a connection may have");
    m.id = SHM_REGIONS + 1;
    must(shm_send_msg(shm_of(&a)->unix_fd, &m, &good.dmr.mem.memfd, 1) == 0);
    settle(NULL, &p);
    ok(p.qp.broken == EPROTO, "one more is refused");
    pair_close(&a, &p);
    shared_mr_end(&good);
}

/* Lent memory that is no good is not filled; everything else goes on. */
static void lent_files(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(ftruncate(plain, 65536) == 0);
    must(fcntl(plain, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
    open_pair(EXSI_PATH_AUTO);
    struct shm_msg m = message(SHM_MSG_LEND);
    m.rkey = 7;
    m.addr = (uint64_t)(uintptr_t)dst;
    m.len = sizeof dst;
    must(shm_send_msg(shm_of(&p)->unix_fd, &m, &null, 1) == 0);
    must(shm_send_msg(shm_of(&p)->unix_fd, &m, &plain, 1) == 0);
    settle(&a, &p);
    struct soft_mr mr = private_mr(src, sizeof src);
    memset(src, 0xee, sizeof src);
    post_write(&a, src, 5000, &mr, 7, dst);
    kick(&a);
    settle(&a, &p);
    ok(p.qp.writes == 1 && !a.qp.broken, "lent memory that cannot be used is not used");
    pair_close(&a, &p);
    close(null);
    close(plain);
}

/* Wake-ups without end: each is read, none starves the rest. */
static void noise(void)
{
    open_pair(EXSI_PATH_AUTO);
    struct shm_msg m = message(SHM_MSG_WAKE);
    int sent = 0;
    while (sent < 10000 && shm_send_msg(shm_of(&a)->unix_fd, &m, NULL, 0) == 0) sent++;
    ok(sent > 0 && sent < 10000, "a socket that is not read fills up after %d", sent);
    post_send(&a, "x", 2);
    kick(&a);
    turn(&p);
    ok(p.qp.received == 1, "data comes through the noise");
    soft_shm_part_doorbell(&p.part, true);
    post_send(&a, "x", 2);
    kick(&a);
    ok(!a.qp.broken, "a ring that does not fit is not needed");
    settle(&a, &p);
    ok(p.qp.received == 2, "since the sleeper has something to read");
    pair_close(&a, &p);
}

int main(void)
{
    places();
    slots();
    order();
    indices();
    sources();
    cut_files();
    regions();
    messages();
    flood();
    mapped_slots();
    lent_files();
    noise();
    return tap_done();
}
