// SPDX-License-Identifier: MIT OR Apache-2.0
/* What blocks in iWARP's connection management, in threads of its own.
 *
 * The kernel connects TCP inside rdma_connect (two minutes, if nobody answers), and then waits for MPA's answer in
 * everything that would destroy the id or its queue pair (10 s in siw).  So an id that dials has a thread in the first
 * phase, which is cancelled if the id is given up: that interrupts the system call; and one that is given up in either
 * is destroyed by a thread.
 * A group that is closed does not wait for them: a last thread does, and then ends what is left of its part.
 * Invariant: an id has one thread at most, id->dial, which is joined before the id is freed: under the group's lock, or
 * when the part has no group any more. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "device/verbs/cm.h"

enum { STACK = 256 * 1024 };

struct verbs_dial {
    struct verbs_id *id;
    const struct verbs_lib *lib;
    struct rdma_cm_id *cm;
    struct ibv_qp *ibqp; /* to be destroyed with the id */
    pthread_t thread;
    struct exsi_watch watch; /* the eventfd by which the thread says that it is done */
    int fd;
    struct rdma_conn_param param;
    uint8_t private_data[UINT8_MAX];
    int rc; /* of rdma_connect; read after the thread was joined */
};

/* May end within rdma_connect.  Nothing here has an address on the stack: AddressSanitizer would take it for
 * alive when the thread is gone. */
static void *connect_main(void *arg)
{
    struct verbs_dial *d = arg;
    int rc = d->lib->rdma_connect(d->cm, &d->param) < 0 ? -errno : 0;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    d->rc = rc;
    eventfd_write(d->fd, 1);
    return NULL;
}

static void *bury_main(void *arg)
{
    struct verbs_dial *d = arg;
    if (d->ibqp) (void)d->lib->ibv_destroy_qp(d->ibqp);
    (void)d->lib->rdma_destroy_id(d->cm);
    eventfd_write(d->fd, 1);
    return NULL;
}

static void dial_free(struct verbs_dial *d)
{
    exsi_poller_del(d->id->part->poller, &d->watch);
    if (d->fd >= 0) close(d->fd);
    d->id->dial = NULL;
    free(d);
}

/* Both kinds end here. */
static void over(struct verbs_dial *d)
{
    struct verbs_id *id = d->id;
    pthread_join(d->thread, NULL);
    int rc = d->rc;
    dial_free(d);
    if (id->buried) {
        id->cm = NULL;
        if (id->grave) verbs_qp_free(id->grave);
        verbs_id_free(id);
        return;
    }
    if (rc == 0) return; /* the kernel waits for MPA's answer now */
    id->blocks = false;
    if (id->state == VERBS_ID_CALLING && !id->failed) verbs_id_unreachable(id, -rc);
}

static void on_done(struct exsi_watch *w, uint32_t events)
{
    (void)events;
    over(exsi_container_of(w, struct verbs_dial, watch));
}

/* Its signals are everybody else's. */
static int spawn(pthread_t *thread, void *(*fn)(void *), void *arg)
{
    pthread_attr_t attr;
    sigset_t all, old;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = -pthread_create(thread, &attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return rc;
}

static int dial_open(struct verbs_id *id, struct verbs_dial **out)
{
    struct verbs_dial *d = calloc(1, sizeof *d);
    if (!d) return -ENOMEM;
    d->id = id;
    d->lib = id->part->lib;
    d->cm = id->cm;
    d->watch = (struct exsi_watch){.fd = -1, .fn = on_done};
    id->dial = d;
    d->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = d->fd < 0 ? -errno : exsi_poller_add(id->part->poller, &d->watch, d->fd, EPOLLIN);
    if (rc < 0)
        dial_free(d);
    else
        *out = d;
    return rc;
}

int verbs_dial_start(struct verbs_id *id, const struct rdma_conn_param *param)
{
    struct verbs_dial *d;
    EXSI_TRY(dial_open(id, &d));
    d->param = *param;
    if (param->private_data_len) memcpy(d->private_data, param->private_data, param->private_data_len);
    d->param.private_data = d->private_data;
    int rc = spawn(&d->thread, connect_main, d);
    if (rc < 0)
        dial_free(d);
    else
        id->blocks = true;
    return rc;
}

void verbs_dial_over(struct verbs_id *id)
{
    id->blocks = false;
    if (!id->dial) return;
    /* It has returned, or is about to. */
    pthread_join(id->dial->thread, NULL);
    dial_free(id->dial);
}

void verbs_dial_bury(struct verbs_id *id)
{
    struct verbs_dial *d = id->dial;
    if (d) {
        pthread_cancel(d->thread);
        pthread_join(d->thread, NULL);
        dial_free(d);
    }
    /* Detached first: librdmacm looks at it when an event comes. */
    struct ibv_qp *ibqp = id->grave ? id->grave->ibqp : NULL;
    id->cm->qp = NULL;
    if (id->grave) verbs_async_forget(id->grave);
    int rc = dial_open(id, &d);
    if (rc == 0) {
        d->ibqp = ibqp;
        rc = spawn(&d->thread, bury_main, d);
        if (rc < 0) dial_free(d);
    }
    if (rc == 0) {
        if (id->grave) id->grave->ibqp = NULL;
        id->buried = true;
        return;
    }
    verbs_id_end(id); /* no thread to be had: it blocks */
}

/* --- ids that outlive their group ------------------------------------------------------------------------- */

static void *linger_main(void *arg)
{
    struct verbs_part *part = arg;
    struct verbs_device *vdev = part->vdev;
    struct verbs_id *id;
    while ((id = exsi_list_first(&part->ids, struct verbs_id, node))) over(id->dial);
    verbs_part_free(part);
    pthread_mutex_lock(&vdev->lock);
    vdev->lingering--;
    pthread_cond_broadcast(&vdev->left);
    pthread_mutex_unlock(&vdev->lock);
    return NULL;
}

void verbs_dial_linger(struct verbs_part *part)
{
    pthread_t thread;
    if (exsi_list_empty(&part->ids)) {
        verbs_part_free(part);
        return;
    }
    /* The poller is the group's. */
    exsi_list_for (id, &part->ids, struct verbs_id, node) exsi_poller_del(part->poller, &id->dial->watch);
    pthread_mutex_lock(&part->vdev->lock);
    part->vdev->lingering++;
    pthread_mutex_unlock(&part->vdev->lock);
    if (spawn(&thread, linger_main, part) == 0)
        pthread_detach(thread);
    else
        (void)linger_main(part); /* no thread to be had: it blocks */
}
