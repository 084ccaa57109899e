// SPDX-License-Identifier: MIT OR Apache-2.0
/* Shared memory between two real processes: traffic with both sides asleep most of the time, and what
 * is left when one of them is killed, stopped, or loses the right to be read. */
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "shm_pair.h"

#define BIG (1u << 20)

static struct side me;
static uint8_t src[BIG], *shared; /* shared: seen by both, for the test's own words */
static uint8_t dst[BIG];

enum { WORD_STEP = 0, WORD_RESULT = 1 };

static _Atomic uint32_t *word(int i)
{
    return (_Atomic uint32_t *)(void *)(shared + 64 * i);
}

static void step_to(uint32_t n)
{
    atomic_store(word(WORD_STEP), n);
}

/* The other side said it is at step n (20 s at most). */
static bool at_step(uint32_t n)
{
    for (int i = 0; i < 20000; i++) {
        if (atomic_load(word(WORD_STEP)) >= n) return true;
        usleep(1000);
    }
    return false;
}

/* Sleep as a progress group does.  false: two seconds without a ring although there was something. */
static bool doze(void)
{
    struct pollfd pf = {.fd = exsi_poller_fd(&me.poller), .events = POLLIN};
    soft_shm_part_doorbell(&me.part, true);
    bool woken = turn(&me) > 0 || poll(&pf, 1, 2000) == 1;
    soft_shm_part_doorbell(&me.part, false);
    return woken;
}

/* Both sides go through the set-up; the block travels in a pipe, as it does in the MPA request. */
static pid_t meet(enum exsi_path path, void (*child_main)(void))
{
    int up[2], down[2];
    struct soft_block request = {0}, reply = {0};
    char reason[EXSI_REASON_MAX];
    must(pipe2(up, O_CLOEXEC) == 0 && pipe2(down, O_CLOEXEC) == 0);
    memset(shared, 0, 4096);
    fflush(stdout);
    pid_t pid = fork();
    must(pid >= 0);
    side_open(&me);
    struct soft_shm_ask ask = side_ask(&me, path, BIG);
    if (pid == 0) {
        alarm(60);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct soft_shm *shm = soft_shm_offer(&ask, &request, reason);
        must(shm && write(up[1], &request, sizeof request) == (ssize_t)sizeof request);
        must(read(down[0], &reply, sizeof reply) == (ssize_t)sizeof reply);
        soft_shm_confirm(shm, &reply);
    } else {
        must(read(up[0], &request, sizeof request) == (ssize_t)sizeof request);
        struct soft_shm *shm = soft_shm_answer(&ask, &request, &reply, reason);
        must(shm && write(down[1], &reply, sizeof reply) == (ssize_t)sizeof reply);
        soft_shm_wait(shm);
    }
    for (int i = 0; i < 5000 && !me.done; i++) {
        turn(&me);
        usleep(500);
    }
    must(me.path);
    side_adopt(&me);
    add_key(&me, 7, dst, sizeof dst);
    close(up[0]);
    close(up[1]);
    close(down[0]);
    close(down[1]);
    /* Each needs the address of the other's target: the same, since one is the other's copy. */
    if (pid == 0) {
        child_main();
        side_close(&me);
        _exit(0);
    }
    return pid;
}

static int end_of(pid_t pid)
{
    int status;
    must(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* --- traffic ------------------------------------------------------------------------------------------ */

static uint32_t size_of_message(uint32_t i)
{
    static const uint32_t sizes[] = {1, 36, 64, 1000, 8191, 8192, 20000, 65536, 100000, 300000};
    return sizes[(i * 2654435761u >> 16) % 10];
}

#define MESSAGES 4000

/* Message i goes when message i - 1 of the other side was seen, which went when it had seen i - 2 of ours: so three
 * parts of source and target are enough. */
static void chat(bool first)
{
    struct soft_mr mr = private_mr(src, sizeof src);
    uint32_t sent = 0, seen = 0, bad = 0, lost = 0;
    (void)first;
    while ((seen < MESSAGES || sent < MESSAGES || me.qp.len) && !me.qp.broken && lost < 3) {
        if (sent < MESSAGES && sent <= seen) {
            uint32_t slot = sent % 3, len = size_of_message(sent);
            memset(src + slot * 300000, (int)(sent * 7 + 1) & 255, len);
            post_write(&me, src + slot * 300000, len, &mr, 7, dst + slot * 300000);
            post_send(&me, &sent, sizeof sent);
            kick(&me);
            sent++;
        }
        int n = turn(&me);
        for (; seen < me.qp.received; seen++) {
            uint32_t i, len = size_of_message(seen), slot = seen % 3;
            memcpy(&i, me.qp.recv[seen % FAKE_RECV], sizeof i);
            bad += i != seen;
            const uint8_t *at = dst + slot * 300000, want = (uint8_t)(seen * 7 + 1);
            bad += at[0] != want || at[len / 2] != want || at[len - 1] != want;
            me.qp.posted++;
        }
        if (!n && sent > seen) lost += !doze();
        if (!n && sent == MESSAGES && seen == MESSAGES && me.qp.len) lost += !doze();
    }
    atomic_store(word(WORD_RESULT) + (first ? 0 : 1), bad + lost * 1000 + (me.qp.broken ? 1000000 : 0) + 1);
}

static void chat_child(void)
{
    chat(true);
    me.path->ops->shut(me.path);
    for (int i = 0; i < 5000 && !me.qp.closed; i++) {
        turn(&me);
        usleep(1000);
    }
}

static void traffic(enum exsi_path path, const char *name)
{
    pid_t pid = meet(path, chat_child);
    chat(false);
    uint32_t mine = atomic_load(word(WORD_RESULT) + 1);
    me.path->ops->shut(me.path);
    for (int i = 0; i < 5000 && !me.qp.closed; i++) {
        turn(&me);
        usleep(1000);
    }
    int end = end_of(pid);
    ok(mine == 1 && atomic_load(word(WORD_RESULT)) == 1 && end == 0,
       "%s: %d messages each way between sleepers: nothing lost (%u, %u, %d)", name, MESSAGES, mine - 1,
       atomic_load(word(WORD_RESULT)) - 1, end);
    ok(me.qp.closed && !me.qp.broken, "%s: and an orderly end", name);
    side_close(&me);
}

/* --- killed --------------------------------------------------------------------------------------------- */

static void endless(void)
{
    struct soft_mr mr = private_mr(src, sizeof src);
    memset(src, 5, sizeof src);
    for (;;) {
        while (me.qp.len < 8) post_write(&me, src, BIG, &mr, 7, dst);
        kick(&me);
        turn(&me);
        step_to(1);
    }
}

static void killed(enum exsi_path path, const char *name)
{
    pid_t pid = meet(path, endless);
    uint64_t before = 0;
    while (me.qp.writes < 20 && !me.qp.broken) turn(&me);
    before = me.qp.writes;
    must(kill(pid, SIGKILL) == 0);
    bool woken = true;
    for (int i = 0; i < 200 && !me.qp.broken && woken; i++)
        if (!turn(&me)) woken = doze();
    ok(me.qp.broken == ECONNRESET && before >= 20, "%s: killed in the middle: %s", name, me.qp.reason);
    ok(end_of(pid) == 1000 + SIGKILL, "%s: it was", name);
    post_send(&me, "x", 2);
    kick(&me);
    ok(me.qp.completed == 0, "%s: nothing is sent to the dead", name);
    side_close(&me);
}

/* Killed between two messages: what it published comes first. */
static void says_and_waits(void)
{
    for (uint32_t i = 0; i < 10; i++) post_send(&me, &i, sizeof i);
    kick(&me);
    step_to(1);
    for (;;) pause();
}

static void last_words(void)
{
    pid_t pid = meet(EXSI_PATH_AUTO, says_and_waits);
    must(at_step(1));
    must(kill(pid, SIGKILL) == 0);
    must(end_of(pid) == 1000 + SIGKILL);
    settle(&me, NULL);
    ok(me.qp.received == 10 && me.qp.broken == ECONNRESET, "what was published before death is received");
    side_close(&me);
}

/* --- stopped -------------------------------------------------------------------------------------------- */

/* The sender is stopped in mid-transfer; we abort, use the buffer, and let it go on. */
static void stopped_sender(enum exsi_path path, const char *name)
{
    pid_t pid = meet(path, endless);
    while (me.qp.writes < 5 && !me.qp.broken) turn(&me);
    must(kill(pid, SIGSTOP) == 0);
    int status;
    must(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    turn(&me); /* perhaps in the middle of a message */
    me.path->ops->abort(me.path);
    uint64_t writes = me.qp.writes, bytes = me.qp.write_bytes;
    memset(dst, 0x5a, sizeof dst);
    must(kill(pid, SIGCONT) == 0);
    for (int i = 0; i < 50; i++) {
        turn(&me);
        usleep(1000);
    }
    bool same = true;
    for (uint32_t i = 0; i < BIG; i++) same &= dst[i] == 0x5a;
    ok(same && me.qp.writes == writes && me.qp.write_bytes == bytes, "%s: not a byte changes after abort", name);
    must(kill(pid, SIGKILL) == 0);
    (void)end_of(pid);
    side_close(&me);
}

/* The target is stopped; we abort and use the source; what it takes afterwards must not count. */
static void count_writes(void)
{
    step_to(1);
    while (!me.qp.broken) turn(&me);
    atomic_store(word(WORD_RESULT), (uint32_t)me.qp.writes + 1);
    step_to(2);
}

static void stopped_target(void)
{
    struct soft_mr mr = private_mr(src, sizeof src);
    pid_t pid = meet(EXSI_PATH_SHM_VM, count_writes);
    must(at_step(1));
    must(kill(pid, SIGSTOP) == 0);
    int status;
    must(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    for (int i = 0; i < 8; i++) post_write(&me, src, BIG, &mr, 7, dst);
    kick(&me);
    turn(&me);
    me.path->ops->abort(me.path);
    memset(src, 0xff, sizeof src);
    must(kill(pid, SIGCONT) == 0);
    must(at_step(2));
    ok(atomic_load(word(WORD_RESULT)) == 1, "a withdrawn source is not taken by a target that was stopped");
    (void)end_of(pid);
    side_close(&me);
}

/* --- rights that go away ------------------------------------------------------------------------------------ */

static void hides(void)
{
    struct soft_mr mr = private_mr(src, sizeof src);
    post_write(&me, src, BIG, &mr, 7, dst);
    kick(&me);
    while (me.qp.len) turn(&me);
    must(prctl(PR_SET_DUMPABLE, 0) == 0);
    post_write(&me, src, BIG, &mr, 7, dst);
    kick(&me);
    while (!me.qp.broken) turn(&me);
    atomic_store(word(WORD_RESULT), (uint32_t)me.qp.broken);
    step_to(2);
}

static void no_right(void)
{
    fflush(stdout);
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        alarm(60);
        if (geteuid() == 0 && (setgid(65534) || setuid(65534))) _exit(77);
        must(prctl(PR_SET_DUMPABLE, 1) == 0);
        pid_t child = meet(EXSI_PATH_SHM_VM, hides);
        while (!me.qp.broken) turn(&me);
        must(at_step(2));
        int told = (int)atomic_load(word(WORD_RESULT));
        (void)end_of(child);
        _exit(me.qp.writes == 1 && me.qp.broken == ECONNRESET && told == EFAULT ? 0 : 1);
    }
    int end = end_of(pid);
    if (end == 77)
        ok(true, "a peer that may not be read any more # SKIP needs root, to become another user");
    else
        ok(end == 0, "a peer that may not be read any more ends its connection");
}

int main(void)
{
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(shared != MAP_FAILED);
    traffic(EXSI_PATH_SHM_VM, "shm-vm");
    traffic(EXSI_PATH_SHM_RING, "shm-ring");
    killed(EXSI_PATH_SHM_VM, "shm-vm");
    killed(EXSI_PATH_SHM_RING, "shm-ring");
    last_words();
    stopped_sender(EXSI_PATH_SHM_VM, "shm-vm");
    stopped_sender(EXSI_PATH_SHM_RING, "shm-ring");
    stopped_target();
    no_right();
    return tap_done();
}
