// SPDX-License-Identifier: MIT OR Apache-2.0
/* For LD_PRELOAD: every TCP socket over IPv4 that the program makes is one of AF_SMC, so that a program which knows
 * nothing of SMC-R uses the kernel's.  Addresses stay those of AF_INET, which AF_SMC takes. */
#include <dlfcn.h>
#include <sys/socket.h>

enum { SMC_FAMILY = 43, SMC_OVER_IPV4 = 0, KIND = 0xf };

typedef int socket_fn(int domain, int type, int protocol);

__attribute__((visibility("default"))) int socket(int domain, int type, int protocol)
{
    union {
        void *found;
        socket_fn *call;
    } next = {dlsym(RTLD_NEXT, "socket")};
    if (domain == AF_INET && (type & KIND) == SOCK_STREAM) return next.call(SMC_FAMILY, type, SMC_OVER_IPV4);
    return next.call(domain, type, protocol);
}
