// SPDX-License-Identifier: MIT OR Apache-2.0
/* The libraries behind the device, opened when it is: one build runs with RDMA and without.  And why there is none, in
 * words: each thing that can be missing has its own sentence with its remedy.
 * Invariant: a lib table that was opened is complete. */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "device/verbs/verbs.h"

#define SYSFS_VERBS "/sys/class/infiniband_verbs"
#define DEV_FOLDER  "/dev/infiniband"
#define DEV_CM      DEV_FOLDER "/rdma_cm"

struct symbol {
    const char *name;
    size_t offset;
};

#define SYMBOL(name) {#name, offsetof(struct verbs_lib, name)},
static const struct symbol ibv_symbols[] = {VERBS_IBV_SYMBOLS(SYMBOL)};
static const struct symbol rdma_symbols[] = {VERBS_RDMA_SYMBOLS(SYMBOL)};
#undef SYMBOL

/* --- opening ---------------------------------------------------------------------------------------- */

/* Kept for ever: the providers that libibverbs loads are not made to be unloaded. */
static int open_one(const char *file, const struct symbol *symbols, size_t n, struct verbs_lib *lib, char *reason)
{
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) {
        snprintf(reason, EXSI_REASON_MAX, "the library %s is not there: install rdma-core (%.70s)", file, dlerror());
        return -ENOENT;
    }
    for (size_t i = 0; i < n; i++) {
        void *address = dlsym(handle, symbols[i].name);
        if (!address) {
            snprintf(reason, EXSI_REASON_MAX, "the library %s is too old: it has no %s", file, symbols[i].name);
            dlclose(handle);
            return -ENOENT;
        }
        memcpy((char *)lib + symbols[i].offset, &address, sizeof address);
    }
    dlclose(handle);
    return 0;
}

int verbs_lib_open(struct verbs_lib *lib, char *reason)
{
    EXSI_TRY(open_one("libibverbs.so.1", ibv_symbols, sizeof ibv_symbols / sizeof *ibv_symbols, lib, reason));
    return open_one("librdmacm.so.1", rdma_symbols, sizeof rdma_symbols / sizeof *rdma_symbols, lib, reason);
}

/* --- looking ------------------------------------------------------------------------------------------ */

/* The name of the first device's node, or nothing. */
static bool first_node(char name[IBV_SYSFS_NAME_MAX])
{
    DIR *dir = opendir(SYSFS_VERBS);
    const struct dirent *e;
    bool found = false;
    if (!dir) return false;
    while (!found && (e = readdir(dir))) {
        found = strncmp(e->d_name, "uverbs", 6) == 0;
        if (found) snprintf(name, IBV_SYSFS_NAME_MAX, "%.*s", IBV_SYSFS_NAME_MAX - 1, e->d_name);
    }
    closedir(dir);
    return found;
}

static int probe_kernel(char *reason)
{
    char name[IBV_SYSFS_NAME_MAX], path[sizeof DEV_FOLDER + IBV_SYSFS_NAME_MAX + 1];
    if (access(SYSFS_VERBS, F_OK) < 0) {
        snprintf(reason, EXSI_REASON_MAX, "this kernel has no RDMA support: the module ib_uverbs is not loaded");
        return -ENOSYS;
    }
    if (!first_node(name)) {
        snprintf(reason, EXSI_REASON_MAX,
                 "no RDMA device: no card was found, and no soft one was added (rdma link add)");
        return -ENODEV;
    }
    snprintf(path, sizeof path, DEV_FOLDER "/%s", name);
    if (access(path, F_OK) < 0) {
        snprintf(reason, EXSI_REASON_MAX,
                 "the kernel has RDMA devices, but %s is not here: a container must be given it", path);
        return -ENODEV;
    }
    return 0;
}

/* The node must open for reading and writing; who may is a matter of its mode and of the container's device rules. */
static int probe_node(const char *path, const char *what, char *reason)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return 0;
    }
    int rc = -errno;
    if (rc == -EACCES || rc == -EPERM)
        snprintf(reason, EXSI_REASON_MAX, "permission denied on %s: its mode, or the container's device rules", path);
    else
        snprintf(reason, EXSI_REASON_MAX, "%s cannot be opened (%s)%s", path, strerror(-rc), what);
    return rc;
}

/* One node that opens is enough: the others' adapters are not used. */
static int probe_adapters(const struct verbs_lib *lib, char *reason)
{
    int n = 0, rc = -ENODEV;
    struct ibv_device **list = lib->ibv_get_device_list(&n);
    if (!list || n == 0)
        snprintf(reason, EXSI_REASON_MAX, "no RDMA device that libibverbs has a driver for: install ibverbs-providers");
    for (int i = 0; list && i < n; i++) {
        char path[sizeof DEV_FOLDER + IBV_SYSFS_NAME_MAX + 1];
        snprintf(path, sizeof path, DEV_FOLDER "/%s", list[i]->dev_name);
        rc = probe_node(path, "", reason);
        if (rc == 0) break;
    }
    if (list) lib->ibv_free_device_list(list);
    return rc;
}

int verbs_lib_probe(const struct verbs_lib *lib, char *reason)
{
    EXSI_TRY(probe_kernel(reason));
    EXSI_TRY(probe_adapters(lib, reason));
    return probe_node(DEV_CM, ": is the module rdma_ucm loaded?", reason);
}
