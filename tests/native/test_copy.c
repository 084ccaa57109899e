// SPDX-License-Identifier: MIT OR Apache-2.0
/* Copies of memory that may vanish, and the question which memory that is. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/copy.h"
#include "tap.h"

#define PAGE ((size_t)65536) /* a multiple of every page size we run on */

static uint8_t *map(size_t len, int flags, int fd)
{
    uint8_t *at = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);
    must(at != MAP_FAILED);
    return at;
}

static int file_of(size_t len)
{
    char path[] = "/tmp/exs-test-copy-XXXXXX";
    int fd = mkstemp(path);
    must(fd >= 0);
    unlink(path);
    must(ftruncate(fd, (off_t)len) == 0);
    return fd;
}

static void test_plain_copy(void)
{
    char a[] = "hello world", b[16];
    ok(exsi_copy(b, a, sizeof a, false) == 0 && strcmp(b, "hello world") == 0, "plain");
    ok(exsi_copy(a + 2, a, 5, false) == 0 && memcmp(a, "hehello", 7) == 0, "overlapping");
    ok(exsi_copy(NULL, NULL, 0, false) == 0 && exsi_copy(NULL, NULL, 0, true) == 0, "nothing");
}

static void test_fragile_copy_of_healthy_memory(void)
{
    size_t len = 3 * PAGE + 123;
    uint8_t *src = malloc(len), *dst = calloc(1, len);
    must(src && dst);
    for (size_t i = 0; i < len; i++) src[i] = (uint8_t)(i * 7 >> 3);
    ok(exsi_copy(dst, src, len, true) == 0 && memcmp(dst, src, len) == 0, "the bytes are the same");
    free(src);
    free(dst);
}

static void test_truncated_file_is_an_error_and_no_signal(void)
{
    static uint8_t mine[4 * PAGE];
    int fd = file_of(4 * PAGE);
    uint8_t *at = map(4 * PAGE, MAP_SHARED, fd);
    memset(at, 'x', 4 * PAGE);
    ok(exsi_copy(mine, at, sizeof mine, true) == 0 && mine[sizeof mine - 1] == 'x', "whole while the file is");
    must(ftruncate(fd, (off_t)PAGE) == 0);
    ok(exsi_copy(mine, at, sizeof mine, true) == -EFAULT, "as a source");
    ok(exsi_copy(at, mine, sizeof mine, true) == -EFAULT, "as a target");
    ok(exsi_copy(mine, at, PAGE, true) == 0, "what is left can be read");
    munmap(at, 4 * PAGE);
    close(fd);
    ok(exsi_copy(mine, at, 1, true) == -EFAULT, "not mapped at all");
}

/* What a container's filter does: process_vm_readv is refused. */
static void forbid_process_vm_readv(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(77);
}

/* In a child, since a filter cannot be taken off again: 0, 77 for "no filters here", or a number for what failed. */
static int copy_in_a_sandbox(void)
{
    static uint8_t src[3 * PAGE + 5], dst[sizeof src];
    int fd = file_of(PAGE);
    uint8_t *at = map(PAGE, MAP_SHARED, fd);
    for (size_t i = 0; i < sizeof src; i++) src[i] = (uint8_t)(i >> 2);
    forbid_process_vm_readv();
    if (exsi_copy(dst, src, sizeof src, true) != 0 || memcmp(dst, src, sizeof src) != 0) return 1;
    must(ftruncate(fd, 0) == 0);
    if (exsi_copy(dst, at, PAGE, true) != -EFAULT) return 2;
    if (exsi_copy(at, src, PAGE, true) != -EFAULT) return 3;
    return 0;
}

static void test_sandbox_that_forbids_the_system_call(void)
{
    int status;
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) _exit(copy_in_a_sandbox());
    must(waitpid(child, &status, 0) == child && WIFEXITED(status));
    ok(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77, "copies work by a pipe then (%d)", WEXITSTATUS(status));
}

static void test_anonymous_memory_is_not_fragile(void)
{
    int local = 0;
    void *heap = malloc(100), *big = malloc(1 << 20);
    uint8_t *private = map(PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1), *shared = map(PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
    ok(exsi_range_is_fragile(&local, sizeof local) == 0, "stack");
    ok(exsi_range_is_fragile(heap, 100) == 0 && exsi_range_is_fragile(big, 1 << 20) == 0, "heap");
    ok(exsi_range_is_fragile(private, PAGE) == 0, "private anonymous");
    ok(exsi_range_is_fragile(shared, PAGE) == 0, "shared anonymous");
    ok(exsi_range_is_fragile(private, 0) == 0, "nothing");
    free(heap);
    free(big);
    munmap(private, PAGE);
    munmap(shared, PAGE);
}

static void test_files_are_fragile(void)
{
    static const char constant[] = "in the program's file";
    int fd = file_of(PAGE);
    uint8_t *shared = map(PAGE, MAP_SHARED, fd), *private = map(PAGE, MAP_PRIVATE, fd);
    int ours = memfd_create("exs-region", MFD_CLOEXEC), others = memfd_create("somebody", MFD_CLOEXEC);
    must(ours >= 0 && others >= 0 && ftruncate(ours, (off_t)PAGE) == 0 && ftruncate(others, (off_t)PAGE) == 0);
    uint8_t *own = map(PAGE, MAP_SHARED, ours), *other = map(PAGE, MAP_SHARED, others);
    ok(exsi_range_is_fragile(shared, PAGE) == 1, "shared file mapping");
    ok(exsi_range_is_fragile(private, PAGE) == 1, "private file mapping");
    ok(exsi_range_is_fragile(constant, sizeof constant) == 1, "the program itself");
    ok(exsi_range_is_fragile(own, PAGE) == 0, "our own memory file");
    ok(exsi_range_is_fragile(other, PAGE) == 1, "somebody's memory file");
    munmap(shared, PAGE);
    munmap(private, PAGE);
    munmap(own, PAGE);
    munmap(other, PAGE);
    close(fd);
    close(ours);
    close(others);
}

static void test_holes_and_mixtures(void)
{
    uint8_t *at = map(4 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int fd = file_of(PAGE);
    must(mmap(at + PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == at + PAGE);
    ok(exsi_range_is_fragile(at, 4 * PAGE) == 1, "one fragile page is enough");
    ok(exsi_range_is_fragile(at, PAGE) == 0 && exsi_range_is_fragile(at + 2 * PAGE, PAGE) == 0, "neighbours are not");
    ok(exsi_range_is_fragile(at + PAGE - 1, 2) == 1, "a range of two bytes over the border");
    must(munmap(at + 2 * PAGE, PAGE) == 0);
    ok(exsi_range_is_fragile(at, 4 * PAGE) == -EFAULT, "a hole in the middle");
    ok(exsi_range_is_fragile(at + 2 * PAGE, 1) == -EFAULT, "only a hole");
    ok(exsi_range_is_fragile((void *)16, 1) == -EFAULT, "the zero page");
    ok(exsi_range_is_fragile(at, SIZE_MAX) == -EFAULT, "a range that wraps");
    munmap(at, 4 * PAGE);
    close(fd);
}

int main(void)
{
    test_plain_copy();
    test_fragile_copy_of_healthy_memory();
    test_truncated_file_is_an_error_and_no_signal();
    test_sandbox_that_forbids_the_system_call();
    test_anonymous_memory_is_not_fragile();
    test_files_are_fragile();
    test_holes_and_mixtures();
    return tap_done();
}
