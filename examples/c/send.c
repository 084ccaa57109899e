// SPDX-License-Identifier: MIT OR Apache-2.0
/* Register memory, create a queue, send, dequeue, look at the result: ES-API in one screen.
 *
 *     ./receive 7471 &
 *     ./send 127.0.0.1 7471 hello
 *
 * Build:  cc -o send send.c -I EXS/include EXS/lib/libexs.a -pthread
 * where EXS is the directory of the installed Python package. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <exs.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* One event, or the end of the program. */
static exs_event_t next_event(exs_qhandle_t qh)
{
    exs_event_t event;
    if (exs_qdequeue(qh, &event, 1, NULL) != 1) die("exs_qdequeue");
    return event;
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    static char buf[65536];
    exs_event_t event;

    if (argc != 4 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) {
        fprintf(stderr, "usage: send ADDRESS PORT TEXT\n");
        return 2;
    }
    to.sin_port = htons((unsigned short)atoi(argv[2]));
    size_t len = strlen(argv[3]);
    if (len > sizeof buf) len = sizeof buf;
    memcpy(buf, argv[3], len);

    if (exs_init(EXS_VERSION) < 0) die("exs_init");
    exs_qhandle_t qh = exs_qcreate(10);
    if (!exs_qhandle_valid(qh)) die("exs_qcreate");
    int fd = exs_socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("exs_socket");
    if (exs_connect(fd, (struct sockaddr *)&to, sizeof to, 0, qh) < 0) die("exs_connect");
    event = next_event(qh);
    if (event.exs_evt_errno != 0) {
        fprintf(stderr, "connect: %s\n", strerror(event.exs_evt_errno));
        return 1;
    }

    exs_mhandle_t mh = exs_mregister(buf, sizeof buf, EXS_ACCESS_READ);
    if (!exs_mhandle_valid(mh)) die("exs_mregister");
    if (exs_send(fd, buf, len, 0, mh, 0, qh) < 0) die("exs_send");
    event = next_event(qh);
    printf("sent: length %zu, errno %d\n", event.exs_evt_union.exs_evt_xfer.exs_evt_length, event.exs_evt_errno);

    if (exs_close(fd, 0, EXS_QHANDLE_INVALID) < 0) die("exs_close");
    exs_mderegister(mh);
    exs_qdelete(qh);
    return event.exs_evt_errno != 0;
}
