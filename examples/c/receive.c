// SPDX-License-Identifier: MIT OR Apache-2.0
/* The other end of send.c: accept one connection, print what comes, until the end of it.
 * Calls without a queue block, like those of ordinary sockets. */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include <exs.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t at_len = sizeof at;
    static char buf[65536];
    ssize_t n;

    if (argc != 2) {
        fprintf(stderr, "usage: receive PORT\n");
        return 2;
    }
    at.sin_port = htons((unsigned short)atoi(argv[1]));

    if (exs_init(EXS_VERSION) < 0) die("exs_init");
    int listener = exs_socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0) die("exs_socket");
    if (exs_bind(listener, (struct sockaddr *)&at, sizeof at) < 0) die("exs_bind");
    if (exs_listen(listener, 8) < 0) die("exs_listen");
    if (exs_getsockname(listener, (struct sockaddr *)&at, &at_len) < 0) die("exs_getsockname");
    printf("listening on port %u\n", ntohs(at.sin_port));
    fflush(stdout);

    int fd = exs_accept(listener, NULL, 0, 0, 0, EXS_QHANDLE_INVALID);
    if (fd < 0) die("exs_accept");
    exs_mhandle_t mh = exs_mregister(buf, sizeof buf, EXS_ACCESS_WRITE);
    if (!exs_mhandle_valid(mh)) die("exs_mregister");
    while ((n = exs_recv(fd, buf, sizeof buf, 0, mh, 0, EXS_QHANDLE_INVALID)) > 0) {
        printf("received: length %zd: %.*s\n", n, (int)n, buf);
        fflush(stdout);
    }
    if (n < 0) die("exs_recv");
    printf("end of data\n");
    exs_close(fd, 0, EXS_QHANDLE_INVALID);
    exs_close(listener, 0, EXS_QHANDLE_INVALID);
    exs_mderegister(mh);
    return 0;
}
