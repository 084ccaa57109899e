// SPDX-License-Identifier: MIT OR Apache-2.0
/* Agreeing on shared memory: what both sides end with, for honest and for other partners.  Whatever
 * goes wrong, the two agree (both shared memory, or both not), and no descriptor is left. */
#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "shm_pair.h"

static struct side a, p;
static struct soft_block request, reply;
static char reason[EXSI_REASON_MAX];

static int open_fds(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    must(d);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static void fresh(void)
{
    side_open(&a);
    side_open(&p);
    request = reply = (struct soft_block){0};
    reason[0] = 0;
}

static struct soft_shm *offer(enum exsi_path path)
{
    struct soft_shm_ask ask = side_ask(&a, path, 1 << 20);
    return soft_shm_offer(&ask, &request, reason);
}

static struct soft_shm *answer(enum exsi_path path)
{
    struct soft_shm_ask ask = side_ask(&p, path, 1 << 20);
    return soft_shm_answer(&ask, &request, &reply, reason);
}

/* --- honest partners ---------------------------------------------------------------------------------- */

static void choices(void)
{
    static const struct {
        enum exsi_path a, p;
        const char *name; /* NULL: no shared memory */
    } cases[] = {
        {EXSI_PATH_AUTO, EXSI_PATH_AUTO, "shm-vm"},       {EXSI_PATH_SHM, EXSI_PATH_AUTO, "shm-vm"},
        {EXSI_PATH_SHM_VM, EXSI_PATH_SHM_VM, "shm-vm"},   {EXSI_PATH_SHM_RING, EXSI_PATH_AUTO, "shm-ring"},
        {EXSI_PATH_AUTO, EXSI_PATH_SHM_RING, "shm-ring"}, {EXSI_PATH_SHM_RING, EXSI_PATH_SHM_RING, "shm-ring"},
        {EXSI_PATH_SHM_RING, EXSI_PATH_SHM_VM, NULL},     {EXSI_PATH_SHM_VM, EXSI_PATH_SHM_RING, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool made = pair_open_as(&a, &p, cases[i].a, cases[i].p, 1 << 20);
        if (cases[i].name)
            ok(made && !strcmp(a.path->ops->name(a.path), cases[i].name) &&
                   !strcmp(p.path->ops->name(p.path), cases[i].name),
               "case %zu: both say %s", i, cases[i].name);
        else
            ok(!made && !a.path && !p.path && strstr(a.reason, "ptrace") && strstr(p.reason, "ptrace"),
               "case %zu: neither, and why: %s", i, a.reason);
        pair_close(&a, &p);
    }
}

static void many(void)
{
    enum { N = 100 };
    static struct soft_shm *as[N], *ps[N];
    static struct side sides[2 * N];
    fresh();
    int before = open_fds();
    /* All in flight at the same time on one part, confirmed in another order than offered. */
    for (int i = 0; i < N; i++) {
        struct soft_block rq = {0}, rp = {0};
        struct soft_shm_ask aa = side_ask(&a, EXSI_PATH_AUTO, 65536), pa = side_ask(&p, EXSI_PATH_AUTO, 65536);
        aa.arg = &sides[2 * i];
        pa.arg = &sides[2 * i + 1];
        as[i] = soft_shm_offer(&aa, &rq, reason);
        must(as[i]);
        ps[i] = soft_shm_answer(&pa, &rq, &rp, reason);
        must(ps[i]);
        soft_shm_wait(ps[i]);
    }
    for (int i = N - 1; i >= 0; i--) soft_shm_confirm(as[i], &reply);
    settle(&a, &p);
    int good = 0;
    for (int i = 0; i < 2 * N; i++) good += sides[i].done && sides[i].path;
    ok(good == 2 * N, "%d connections set up at the same time", N);
    for (int i = 0; i < 2 * N; i++) sides[i].path->ops->free(sides[i].path);
    pair_close(&a, &p);
    fresh();
    ok(open_fds() == before, "and nothing left of them");
    pair_close(&a, &p);
}

static void drops(void)
{
    fresh();
    pair_close(&a, &p);
    int before = open_fds();
    fresh();
    struct soft_shm *as = offer(EXSI_PATH_AUTO);
    soft_shm_drop(as);
    as = offer(EXSI_PATH_AUTO);
    struct soft_shm *ps = answer(EXSI_PATH_AUTO);
    soft_shm_wait(ps);
    soft_shm_drop(as);
    settle(&a, &p);
    /* Its HELLO lies in the part's listener; nobody is there to take it. */
    ok(p.done && !p.path && !a.done, "the active side gave up: the passive one stays on tcp");
    p.done = false;

    as = offer(EXSI_PATH_AUTO);
    ps = answer(EXSI_PATH_AUTO);
    soft_shm_drop(ps);
    soft_shm_confirm(as, &reply);
    settle(&a, &p);
    ok(a.done && !a.path && !p.done, "the passive side gave up: the active one stays on tcp: %s", a.reason);
    pair_close(&a, &p);
    ok(open_fds() == before, "no descriptor is left");

    fresh();
    a.part.fault.no_shm = true;
    ok(!offer(EXSI_PATH_AUTO) && *reason && !request.flags, "turned off: not offered: %s", reason);
    a.part.fault.no_shm = false;
    as = offer(EXSI_PATH_AUTO);
    p.part.fault.no_shm = true;
    ok(!answer(EXSI_PATH_AUTO) && !(reply.flags & SOFT_BLOCK_SHM) && reply.why, "nor answered: %s",
       soft_shm_why_text(reply.why));
    soft_shm_drop(as);
    pair_close(&a, &p);
}

/* --- a passive side that is not honest ------------------------------------------------------------------ */

static int dial(void)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    memcpy(un.sun_path + 1, request.name, request.name_len);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(connect(fd, (struct sockaddr *)&un,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + request.name_len)) == 0);
    return fd;
}

struct hello {
    struct shm_msg m;
    struct soft_mr segment, page;
    int fds[2];
    int n_fds;
};

static void hello_make(struct hello *h)
{
    uint64_t bytes = shm_page_up(shm_segment_bytes(64, 8192));
    memset(h, 0, sizeof *h);
    h->segment = shared_mr(bytes, false, 0);
    h->page = shared_mr(SHM_PAGE_BYTES, true, 0);
    struct shm_head *head = h->segment.dmr.mem.addr;
    head->magic = SHM_MAGIC;
    head->version = SHM_VERSION;
    head->slots = 64;
    head->data_bytes = 8192;
    struct shm_page *page = h->page.dmr.mem.addr;
    page->magic = SHM_PAGE_MAGIC;
    page->version = SHM_VERSION;
    h->m = (struct shm_msg){
        .magic = SHM_MAGIC, .version = SHM_VERSION, .type = SHM_MSG_HELLO, .slots = 64, .data_bytes = 8192};
    memcpy(h->m.token, request.token, sizeof h->m.token);
    h->fds[0] = h->segment.dmr.mem.memfd;
    h->fds[1] = h->page.dmr.mem.memfd;
    h->n_fds = 2;
}

static void one_hello(void (*spoil)(struct hello *), const char *what, bool taken)
{
    struct hello h;
    struct shm_msg said = {0};
    int fds[SHM_MAX_FDS], n_fds = 0;
    fresh();
    struct soft_shm *as = offer(EXSI_PATH_AUTO);
    must(as);
    hello_make(&h);
    if (spoil) spoil(&h);
    int fd = dial();
    must(shm_send_msg(fd, &h.m, h.fds, h.n_fds) == 0);
    soft_shm_confirm(as, &reply);
    settle(&a, NULL);
    int rc = shm_recv_msg(fd, &said, fds, &n_fds);
    if (rc > 0) shm_close_fds(fds, n_fds);
    ok(a.done && !!a.path == taken && rc > 0 && said.type == SHM_MSG_ACK && !said.why == taken, "%s: %s", what,
       taken ? "taken" : a.reason);
    close(fd);
    shared_mr_end(&h.segment);
    shared_mr_end(&h.page);
    pair_close(&a, &p);
}

static void s_sizes(struct hello *h)
{
    h->m.slots = 1u << 30;
}
static void s_slots(struct hello *h)
{
    h->m.slots = 63;
}
static void s_data(struct hello *h)
{
    h->m.data_bytes = 0;
}
static void s_short(struct hello *h)
{
    h->m.data_bytes = 65536;
}
static void s_other(struct hello *h)
{
    ((struct shm_head *)h->segment.dmr.mem.addr)->slots = 32;
}
static void s_magic(struct hello *h)
{
    ((struct shm_head *)h->segment.dmr.mem.addr)->magic++;
}
static void s_version(struct hello *h)
{
    ((struct shm_head *)h->segment.dmr.mem.addr)->version++;
}
static void s_page_magic(struct hello *h)
{
    ((struct shm_page *)h->page.dmr.mem.addr)->magic++;
}
static void s_page_write(struct hello *h)
{
    h->fds[1] = h->segment.dmr.mem.memfd;
}
static void s_segment_sealed(struct hello *h)
{
    h->fds[0] = h->page.dmr.mem.memfd;
}
static void s_one(struct hello *h)
{
    h->n_fds = 1;
}
static void s_none(struct hello *h)
{
    h->n_fds = 0;
}
static void s_null(struct hello *h)
{
    h->fds[0] = 0;
}
static int unsealed_fd = -1;
static void s_unsealed(struct hello *h)
{
    h->fds[0] = unsealed_fd;
}

static void hellos(void)
{
    fresh();
    pair_close(&a, &p);
    int before = open_fds();
    unsealed_fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(unsealed_fd >= 0 && ftruncate(unsealed_fd, 1 << 20) == 0);
    one_hello(NULL, "a good HELLO", true);
    one_hello(s_sizes, "2^30 slots", false);
    one_hello(s_slots, "63 slots", false);
    one_hello(s_data, "no bytes", false);
    one_hello(s_short, "a segment shorter than its sizes", false);
    one_hello(s_other, "other sizes in the segment", false);
    one_hello(s_magic, "a wrong magic", false);
    one_hello(s_version, "another version", false);
    one_hello(s_page_magic, "a page of something else", false);
    one_hello(s_page_write, "a page that is not sealed against writing", false);
    one_hello(s_segment_sealed, "a segment that is the page", false);
    one_hello(s_one, "one descriptor", false);
    one_hello(s_none, "no descriptor", false);
    one_hello(s_null, "a descriptor that is no memory file", false);
    one_hello(s_unsealed, "a segment that is not sealed", false);
    close(unsealed_fd);
    ok(open_fds() == before, "no descriptor is left of all these");
}

static void strangers(void)
{
    struct shm_msg junk = {.magic = SHM_MAGIC, .version = SHM_VERSION, .type = SHM_MSG_HELLO};
    int mute[64], fds[SHM_MAX_FDS], n_fds;
    fresh();
    pair_close(&a, &p);
    int before = open_fds();
    fresh();
    struct soft_shm *as = offer(EXSI_PATH_AUTO);
    /* Somebody without the token, somebody who talks nonsense, many who say nothing. */
    int fd = dial();
    must(shm_send_msg(fd, &junk, NULL, 0) == 0);
    int http = dial();
    must(send(http, "GET /", 5, 0) == 5);
    for (int i = 0; i < 64; i++) mute[i] = dial();
    settle(&a, NULL);
    struct pollfd pf = {.fd = fd, .events = POLLIN};
    ok(poll(&pf, 1, 0) == 1 && shm_recv_msg(fd, &junk, fds, &n_fds) <= 0, "without the token: hung up on");
    ok(!a.done, "and nobody is bothered");
    struct soft_shm *ps = answer(EXSI_PATH_AUTO);
    must(ps);
    soft_shm_wait(ps);
    soft_shm_confirm(as, &reply);
    settle(&a, &p);
    ok(a.path && p.path, "who says nothing keeps nobody out");
    side_adopt(&a);
    side_adopt(&p);
    pair_close(&a, &p);
    close(fd);
    close(http);
    for (int i = 0; i < 64; i++) close(mute[i]);
    ok(open_fds() == before, "no descriptor is left");
}

/* --- an active side that is not honest -------------------------------------------------------------------- */

static int listener_as_active(void)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    request.flags = SOFT_BLOCK_SHM;
    request.name_len = (uint8_t)snprintf((char *)request.name, sizeof request.name, "exs-test-%d", getpid());
    memcpy(un.sun_path + 1, request.name, request.name_len);
    must(bind(fd, (struct sockaddr *)&un, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + request.name_len)) ==
         0);
    must(listen(fd, 4) == 0);
    return fd;
}

enum ack { ACK_GOOD, ACK_NO, ACK_TOKEN, ACK_TYPE, ACK_NO_PAGE, ACK_BAD_PAGE, ACK_TWO, ACK_SHORT, ACK_CLOSE };

static void one_ack(enum ack how, const char *what)
{
    struct shm_msg m;
    int fds[SHM_MAX_FDS], n_fds = 0;
    struct hello own;
    fresh();
    hello_make(&own);
    int lfd = listener_as_active();
    struct soft_shm *ps = answer(EXSI_PATH_AUTO);
    must(ps && (reply.flags & SOFT_BLOCK_SHM));
    soft_shm_wait(ps);
    int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC);
    must(fd >= 0 && shm_recv_msg(fd, &m, fds, &n_fds) > 0 && n_fds == 2 && m.type == SHM_MSG_HELLO);
    int n = 1, page[2] = {own.fds[1], own.fds[1]};
    struct shm_msg ack = {.magic = SHM_MAGIC, .version = SHM_VERSION, .type = SHM_MSG_ACK};
    memcpy(ack.token, m.peer_token, sizeof ack.token);
    if (how == ACK_NO) ack.why = 3, n = 0;
    if (how == ACK_TOKEN) ack.token[3] ^= 1;
    if (how == ACK_TYPE) ack.type = SHM_MSG_WAKE;
    if (how == ACK_NO_PAGE) n = 0;
    if (how == ACK_BAD_PAGE) page[0] = own.fds[0];
    if (how == ACK_TWO) n = 2;
    if (how == ACK_SHORT)
        must(send(fd, &ack, 20, 0) == 20);
    else if (how != ACK_CLOSE)
        must(shm_send_msg(fd, &ack, page, n) == 0);
    if (how == ACK_CLOSE) close(fd);
    settle(NULL, &p);
    ok(p.done && !!p.path == (how == ACK_GOOD), "%s: %s", what, p.path ? "shared memory" : p.reason);
    shm_close_fds(fds, n_fds);
    if (how != ACK_CLOSE) close(fd);
    close(lfd);
    shared_mr_end(&own.segment);
    shared_mr_end(&own.page);
    pair_close(&a, &p);
}

static void acks(void)
{
    fresh();
    pair_close(&a, &p);
    int before = open_fds();
    one_ack(ACK_GOOD, "a good ACK");
    one_ack(ACK_NO, "a no");
    one_ack(ACK_TOKEN, "a wrong token");
    one_ack(ACK_TYPE, "another message");
    one_ack(ACK_NO_PAGE, "an ACK without a page");
    one_ack(ACK_BAD_PAGE, "an ACK with a wrong page");
    one_ack(ACK_TWO, "an ACK with two pages");
    one_ack(ACK_SHORT, "half an ACK");
    one_ack(ACK_CLOSE, "no ACK");
    ok(open_fds() == before, "no descriptor is left of all these");

    fresh();
    request.flags = SOFT_BLOCK_SHM;
    request.name_len = (uint8_t)snprintf((char *)request.name, sizeof request.name, "exs-nobody");
    ok(!answer(EXSI_PATH_AUTO) && reply.why, "a name that nobody has: %s", reason);
    request.name_len = 0;
    ok(!answer(EXSI_PATH_AUTO) && reply.why, "no name: %s", reason);
    request.name_len = 255;
    ok(!answer(EXSI_PATH_AUTO) && reply.why, "a name that is too long: %s", reason);
    pair_close(&a, &p);

    /* A request from another process whose probe address is nonsense: the ring then. */
    fresh();
    struct soft_shm *as = offer(EXSI_PATH_AUTO);
    request.probe_addr = 64;
    struct soft_shm *ps = answer(EXSI_PATH_AUTO);
    must(ps);
    soft_shm_wait(ps);
    soft_shm_confirm(as, &reply);
    settle(&a, &p);
    ok(a.path && p.path && !strcmp(p.path->ops->name(p.path), "shm-ring") &&
           !strcmp(a.path->ops->name(a.path), "shm-ring"),
       "memory that cannot be read: both take the ring");
    side_adopt(&a);
    side_adopt(&p);
    pair_close(&a, &p);
}

/* --- other processes ------------------------------------------------------------------------------------------ */

/* The child is the active side, as somebody else; the parent answers.  Needs root. */
static void other_process(int (*become)(void), const char *what, bool want_shm, const char *want)
{
    int up[2], down[2];
    must(pipe2(up, O_CLOEXEC) == 0 && pipe2(down, O_CLOEXEC) == 0);
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        char c;
        alarm(20);
        if (become() != 0) _exit(77);
        fresh();
        struct soft_shm *as = offer(EXSI_PATH_AUTO);
        if (!as || write(up[1], &request, sizeof request) != (ssize_t)sizeof request) _exit(1);
        if (read(down[0], &c, 1) != 1) _exit(2);
        if (c) {
            soft_shm_confirm(as, &reply);
            for (int i = 0; i < 1000 && !a.done; i++) {
                turn(&a);
                usleep(1000);
            }
            if (!a.path) _exit(3);
            side_adopt(&a);
            post_send(&a, "hello", 6);
            kick(&a);
            for (int i = 0; i < 5000 && !a.qp.broken; i++) {
                turn(&a);
                usleep(1000);
            }
        }
        _exit(0);
    }
    close(up[1]);
    close(down[0]);
    fresh();
    if (read(up[0], &request, sizeof request) != (ssize_t)sizeof request) {
        ok(true, "%s # SKIP needs root, or user namespaces", what);
    } else {
        struct soft_shm *ps = answer(EXSI_PATH_AUTO);
        char c = ps ? 1 : 0;
        must(write(down[1], &c, 1) == 1);
        if (ps) soft_shm_wait(ps);
        for (int i = 0; ps && i < 5000 && !p.done; i++) {
            turn(&p);
            usleep(1000);
        }
        if (p.path) side_adopt(&p);
        for (int i = 0; p.path && i < 5000 && !p.qp.received; i++) {
            turn(&p);
            usleep(1000);
        }
        ok(!!p.path == want_shm && (want_shm ? p.qp.received == 1 && !strcmp(p.path->ops->name(p.path), want)
                                             : strstr(reason, want) != NULL),
           "%s: %s", what, want_shm ? (p.path ? p.path->ops->name(p.path) : p.reason) : reason);
    }
    pair_close(&a, &p);
    close(up[0]);
    close(down[1]);
    int status;
    must(waitpid(pid, &status, 0) == pid);
}

static int become_same(void)
{
    return 0;
}
static int become_nobody(void)
{
    return setgid(65534) || setuid(65534);
}
static int become_elsewhere(void)
{
    return unshare(CLONE_NEWNET);
}

/* In a pid namespace of its own: the parent of that child waits for it. */
static int become_pid(void)
{
    if (unshare(CLONE_NEWPID)) return -1;
    pid_t pid = fork();
    if (pid < 0) return -1;
    if (pid == 0) {
        alarm(20);
        return 0;
    }
    int status;
    waitpid(pid, &status, 0);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

static void killed(void)
{
    int up[2];
    must(pipe2(up, O_CLOEXEC) == 0);
    fresh();
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        alarm(20);
        fresh();
        must(offer(EXSI_PATH_AUTO));
        must(write(up[1], &request, sizeof request) == (ssize_t)sizeof request);
        for (;;) pause();
    }
    must(read(up[0], &request, sizeof request) == (ssize_t)sizeof request);
    struct soft_shm *ps = answer(EXSI_PATH_AUTO);
    must(ps);
    soft_shm_wait(ps);
    must(kill(pid, SIGKILL) == 0);
    int status;
    must(waitpid(pid, &status, 0) == pid);
    settle(NULL, &p);
    ok(p.done && !p.path, "killed in the middle of it: %s", p.reason);
    pair_close(&a, &p);
    close(up[0]);
    close(up[1]);
}

int main(void)
{
    choices();
    many();
    drops();
    hellos();
    strangers();
    acks();
    other_process(become_same, "another process", true, "shm-vm");
    other_process(become_nobody, "another user", false, "user");
    other_process(become_elsewhere, "another network namespace", false, "namespace");
    other_process(become_pid, "a pid namespace below ours", true, "shm-ring");
    killed();
    return tap_done();
}
