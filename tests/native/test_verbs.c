// SPDX-License-Identifier: MIT OR Apache-2.0
/* Those parts of the verbs device that need no adapter: regions in protection domains, windows, asynchronous events and
 * completion queues, over a libibverbs of fake_verbs.h's own (struct verbs_lib is a table).  Queue pairs that send and
 * receive are tested in the lab. */
#include "fake_verbs.h"

/* --- regions ----------------------------------------------------------------------------------------------------- */

#define BOTH (EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE)

static void test_region_is_closed_to_peers_where_there_are_windows(void)
{
    struct fixture *f = set_up(true);
    char buf[100];
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH);
    struct exsi_dmr *dmr;
    struct ibv_mr *mr;
    atomic_store(&f->adapters[0].used, true);
    ok(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0 && fake.mrs == 1, "registered at once on the adapter in use");
    ok(fake.last_access == (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND), "for windows only");
    ok(verbs_mr_in(dmr, &f->adapters[0].domain, &mr) == 0 && fake.mrs == 1, "its registration is found again");
    verbs_mr_dereg(&f->vdev.dev, dmr);
    ok(fake.mrs == 0, "and given back");
    tear_down(f);
}

static void test_region_waits_for_an_adapter(void)
{
    struct fixture *f = set_up(false);
    char buf[100];
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH);
    struct exsi_dmr *dmr;
    struct ibv_mr *one, *two;
    fill_adapter(f, 1, false);
    ok(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0 && fake.mrs == 0, "no adapter in use: nothing is pinned");
    ok(verbs_mr_in(dmr, &f->adapters[1].domain, &two) == 0 && two->pd == &f->pds[1], "registered at first use");
    ok(fake.last_access == (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE), "without windows peers may write it");
    ok(verbs_mr_in(dmr, &f->adapters[0].domain, &one) == 0 && one != two && one->pd == &f->pds[0],
       "one for each adapter");
    verbs_mr_dereg(&f->vdev.dev, dmr);
    ok(fake.mrs == 0, "all given back");
    tear_down(f);
}

static void test_private_domain_exposes_only_the_ring(void)
{
    struct fixture *f = set_up(false);
    char buf[100], ring[100];
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH),
                    ring_mem = memory(ring, sizeof ring, BOTH | EXSI_ACCESS_ONE_PEER);
    struct verbs_domain domain;
    struct exsi_dmr *dmr, *ring_dmr;
    struct ibv_mr *mr, *again;
    atomic_store(&f->adapters[0].used, true);
    must(verbs_domain_open(&domain, &f->adapters[0]) == 0);
    ok(verbs_mr_reg(&f->vdev.dev, &ring_mem, &ring_dmr) == 0 && fake.mrs == 0, "a ring waits for its queue pair");
    ok(verbs_mr_in(ring_dmr, &domain, &mr) == 0 && mr->pd == domain.pd, "it is registered in the domain of that");
    ok(fake.last_access & IBV_ACCESS_REMOTE_WRITE, "open to the peer");
    ok(verbs_mr_in(ring_dmr, &domain, &again) == 0 && again == mr && fake.mrs == 1, "once");
    ok(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0 && fake.mrs == 2, "other memory is in the shared domain");
    ok(verbs_mr_in(dmr, &domain, &mr) == 0 && fake.last_access == IBV_ACCESS_LOCAL_WRITE,
       "in the private one: not open");
    verbs_mr_dereg(&f->vdev.dev, dmr);
    ok(fake.mrs == 1, "a region that goes leaves the domain");
    verbs_domain_close(&domain);
    ok(fake.mrs == 0 && fake.pds == 0, "a domain that goes takes its registrations along");
    verbs_mr_dereg(&f->vdev.dev, ring_dmr);
    tear_down(f);
}

static void test_limit_of_locked_memory_is_named(void)
{
    struct fixture *f = set_up(true);
    char buf[100];
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH);
    struct exsi_dmr *dmr = NULL;
    struct exsi_log_record record = {0};
    atomic_store(&f->adapters[0].used, true);
    fake.fail_reg = ENOMEM;
    ok(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == -ENOMEM && !dmr, "refused");
    ok(exsi_log_take(&f->log, &record, 1) == 1 && strstr(record.text, "100 bytes"), "a log line: %s", record.text);
    tear_down(f);
}

/* --- keys -----------------------------------------------------------------------------------------------------------
 */

static void test_window_is_bound_to_the_range(void)
{
    struct fixture *f = set_up(true);
    char buf[100];
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH), closed = memory(buf, sizeof buf, EXSI_ACCESS_LOCAL_WRITE);
    struct exsi_dmr *dmr, *closed_dmr;
    struct fake_qp q;
    uint32_t a = 0, b = 0, c = 0;
    qp_init(f, &q, 2);
    must(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0 && verbs_mr_reg(&f->vdev.dev, &closed, &closed_dmr) == 0);
    ok(verbs_key_bind(&q.qp.qp, dmr, buf + 10, 50, &a) == 0, "bound");
    verbs_qp_flush(&q.qp.qp);
    const struct ibv_send_wr *wr = &fake.posted[0];
    ok(wr->opcode == IBV_WR_BIND_MW && wr->bind_mw.rkey == a && wr->bind_mw.bind_info.addr == (uintptr_t)buf + 10 &&
           wr->bind_mw.bind_info.length == 50,
       "for exactly the range");
    ok(wr->bind_mw.bind_info.mw_access_flags == IBV_ACCESS_REMOTE_WRITE && !(wr->send_flags & IBV_SEND_SIGNALED),
       "for writes only, without a completion");
    ok((a & 0xff) == 0xff && wr->bind_mw.mw->rkey == a, "the key counts on");
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 101, &c) == -EINVAL, "a range outside of the region");
    ok(verbs_key_bind(&q.qp.qp, dmr, buf + 100, 0, &c) == -EINVAL, "no range");
    ok(verbs_key_bind(&q.qp.qp, closed_dmr, buf, 10, &c) == -EACCES, "a region that peers may not write");
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &b) == 0 && b != a && fake.mws == 2, "a second key");
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &c) == -EAGAIN, "no third one: wait for one that ends");
    ok(verbs_key_invalidate(&q.qp.qp, a, 77) == 1, "its end takes a request");
    verbs_qp_flush(&q.qp.qp);
    ok(fake.posted[2].opcode == IBV_WR_LOCAL_INV && fake.posted[2].invalidate_rkey == a &&
           fake.posted[2].send_flags & IBV_SEND_SIGNALED,
       "whose completion tells");
    ok(verbs_key_invalidate(&q.qp.qp, a, 78) == -EINVAL, "not ended twice");
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &c) == -EAGAIN, "an ending window is not bound again");
    ok(verbs_key_ended(&q.qp, 0) == 77, "its end is told for the right request");
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &c) == 0 && c == (a & ~0xffu),
       "then it is, and the key wraps in its byte");
    ok(wr->bind_mw.mw->rkey == a, "for the provider it has its last key until the bind is handed over");
    verbs_qp_flush(&q.qp.qp);
    ok(wr->bind_mw.mw->rkey == c, "and then the new one");
    q.qp.up = false;
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &c) == -ENOTCONN, "not before the connection is there");
    verbs_mr_dereg(&f->vdev.dev, closed_dmr);
    qp_fini(&q);
    ok(fake.mws == 0, "windows go with their queue pair");
    verbs_mr_dereg(&f->vdev.dev, dmr);
    tear_down(f);
}

/* --- posting -------------------------------------------------------------------------------------------------------
 */

static struct exsi_send_wr a_send(void *data, uint32_t len)
{
    return (struct exsi_send_wr){.op = EXSI_WR_SEND, .flags = EXSI_WR_INLINE, .num_sge = 1, .sge = {{data, len, NULL}}};
}

static void test_what_is_posted_goes_out_in_one_call(void)
{
    struct fixture *f = set_up(true);
    char buf[100];
    uint32_t word = 1, key;
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH);
    struct exsi_dmr *dmr;
    struct fake_qp q;
    qp_init(f, &q, 4);
    must(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0);
    struct exsi_send_wr wr = a_send(&word, sizeof word);
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &key) == 0 && verbs_qp_post_send(&q.qp.qp, &wr, 1) == 0, "two posts");
    word = 2;
    ok(fake.post_calls == 0, "nothing went out");
    verbs_qp_flush(&q.qp.qp);
    ok(fake.post_calls == 1 && fake.n_posted == 2 && fake.posted[0].opcode == IBV_WR_BIND_MW &&
           fake.posted[1].opcode == IBV_WR_SEND,
       "both in one call, in order");
    uint32_t seen;
    memcpy(&seen, (const void *)(uintptr_t)fake.posted[1].sg_list[0].addr, sizeof seen);
    ok(seen == 1 && fake.posted[1].send_flags & IBV_SEND_INLINE, "with the bytes as they were when it was posted");
    verbs_qp_flush(&q.qp.qp);
    ok(fake.post_calls == 1, "nothing is handed over twice");
    for (int i = 0; i < VERBS_WAITING + 1; i++) must(verbs_qp_post_send(&q.qp.qp, &wr, 1) == 0);
    ok(fake.post_calls == 2 && fake.n_posted == 2 + VERBS_WAITING, "many are handed over when no more can wait");
    verbs_qp_down(&q.qp, ECONNABORTED);
    ok(fake.post_calls == 3, "what waits goes out before the end");
    ok(verbs_qp_post_send(&q.qp.qp, &wr, 1) == 0, "behind it a post is taken");
    verbs_qp_flush(&q.qp.qp);
    ok(fake.post_calls == 3, "and comes back without going out");
    exsi_list_unlink(&q.qp.down_node);
    qp_fini(&q);
    verbs_mr_dereg(&f->vdev.dev, dmr);
    tear_down(f);
}

static void test_short_writes_travel_in_the_request(void)
{
    struct fixture *f = set_up(true);
    static const struct {
        uint32_t len;
        bool fragile, read, inlined;
        const char *what;
    } cases[] = {{VERBS_INLINE, false, false, true, "a short WRITE"},
                 {VERBS_INLINE + 1, false, false, false, "a longer one is fetched"},
                 {8, true, false, false, "memory that may go away is left to the adapter"},
                 {8, false, true, false, "a READ carries nothing"}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char buf[100];
        struct exsi_mem mem = memory(buf, sizeof buf, BOTH);
        struct exsi_dmr *dmr;
        struct fake_qp q;
        mem.fragile = cases[i].fragile;
        f->adapters[0].max_msg = 1 << 20;
        fake.n_posted = 0;
        qp_init(f, &q, 0);
        must(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0);
        struct exsi_send_wr wr = {
            .op = cases[i].read ? EXSI_WR_READ : EXSI_WR_WRITE, .num_sge = 1, .sge = {{buf, cases[i].len, dmr}}};
        must(verbs_qp_post_send(&q.qp.qp, &wr, 1) == 0);
        verbs_qp_flush(&q.qp.qp);
        ok(!(fake.posted[0].send_flags & IBV_SEND_INLINE) == !cases[i].inlined &&
               fake.posted[0].sg_list[0].addr == (uintptr_t)buf,
           "%s", cases[i].what);
        qp_fini(&q);
        verbs_mr_dereg(&f->vdev.dev, dmr);
    }
    tear_down(f);
}

static void test_without_windows_the_key_is_the_regions(void)
{
    struct fixture *f = set_up(false);
    char buf[100];
    struct exsi_mem mem = memory(buf, sizeof buf, BOTH);
    struct exsi_dmr *dmr;
    struct ibv_mr *mr;
    struct fake_qp q;
    uint32_t a = 0, b = 0;
    qp_init(f, &q, 0);
    must(verbs_mr_reg(&f->vdev.dev, &mem, &dmr) == 0 && verbs_mr_in(dmr, q.qp.domain, &mr) == 0);
    ok(verbs_key_bind(&q.qp.qp, dmr, buf, 10, &a) == 0 && verbs_key_bind(&q.qp.qp, dmr, buf + 10, 10, &b) == 0 &&
           a == b && a == mr->rkey,
       "one key for all of it");
    ok(verbs_key_invalidate(&q.qp.qp, a, 1) == 0 && fake.n_posted == 0, "which ends for nobody");
    qp_fini(&q);
    verbs_mr_dereg(&f->vdev.dev, dmr);
    tear_down(f);
}

/* --- asynchronous events ------------------------------------------------------------------------------------------ */

static void happen(struct fixture *f, struct ibv_async_event ev)
{
    fake.events[fake.n_events++] = ev;
    must(write(f->async_write, "x", 1) == 1);
    exsi_poller_run(&f->poller); /* reads it, and wakes the part */
    exsi_poller_run(&f->poller);
}

/* Whether a line that was logged since the last question has this text. */
static bool logged(struct fixture *f, const char *text)
{
    struct exsi_log_record lines[EXSI_LOG_RECORDS];
    bool found = false;
    int n = exsi_log_take(&f->log, lines, EXSI_LOG_RECORDS);
    for (int i = 0; i < n; i++) found |= strstr(lines[i].text, text) != NULL;
    return found;
}

static void open_seat(struct fixture *f)
{
    f->log.threshold = EXSI_LOG_INFO;
    struct verbs_seat *seat;
    must(verbs_seat_open(&f->part, &f->adapters[0], &seat) == 0 && seat->channel);
}

static void test_events_strike_the_queue_pair_that_they_name(void)
{
    struct fixture *f = set_up(true);
    struct fake_qp one, two, three;
    struct ibv_qp stranger = {0};
    open_seat(f);
    qp_init(f, &one, 0);
    qp_init(f, &two, 0);
    qp_init(f, &three, 0);
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_QP_FATAL, .element.qp = &stranger});
    ok(!one.qp.down && !two.qp.down && fake.acked == 1, "somebody else's queue pair: acknowledged, nothing else");
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_QP_FATAL, .element.qp = &two.ib});
    ok(two.qp.down && two.qp.error == EIO && !one.qp.down, "the device's failure: EIO, only there");
    ok(logged(f, "connection lost: fake reports that the queue pair failed"), "with a log line");
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_QP_ACCESS_ERR, .element.qp = &one.ib});
    ok(one.qp.down && one.qp.error == EPROTO && one.qp.reason[0], "the peer's fault: EPROTO (%s)", one.qp.reason);
    ok(logged(f, "queue pair 0x0"), "whose line names the queue pair");
    ok(!three.qp.down && fake.acked == 3, "the third lives");
    f->adapters[0].gone = false;
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_DEVICE_FATAL});
    ok(three.qp.down && three.qp.error == ENODEV && f->adapters[0].gone, "the device is gone: ENODEV for all");
    ok(logged(f, "fake was removed or failed"), "and it is logged");
    qp_fini(&one);
    qp_fini(&two);
    qp_fini(&three);
    tear_down(f);
}

static void test_address_that_goes_ends_its_connections(void)
{
    struct fixture *f = set_up(true);
    struct fake_qp here, there;
    open_seat(f);
    fake.gid.raw[15] = 7;
    qp_init(f, &here, 0);
    qp_init(f, &there, 0);
    here.qp.gid_index = there.qp.gid_index = 3;
    here.qp.gid_known = there.qp.gid_known = true;
    here.qp.gid.raw[15] = 7;
    there.qp.gid.raw[15] = 8;
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_GID_CHANGE, .element.port_num = 1});
    ok(!here.qp.down, "the address is still there");
    ok(there.qp.down && there.qp.error == EADDRNOTAVAIL, "another stands in its place");
    ok(logged(f, "the address of this end is gone from fake"), "and it is logged");
    qp_fini(&here);
    qp_fini(&there);
    tear_down(f);
}

/* What SMC-R makes its links of. */
static void test_raw_queue_pair_allows_writes_only(void)
{
    struct fixture *f = set_up(false);
    struct fake_qp q;
    char buf[100];
    struct exsi_mem ring = memory(buf, sizeof buf, EXSI_ACCESS_LOCAL_WRITE | EXSI_ACCESS_REMOTE_WRITE);
    struct exsi_dmr *dmr;
    struct ibv_mr *mr;
    open_seat(f);
    qp_init(f, &q, 0);
    struct ibv_qp_init_attr init = {.qp_context = &q.ib};
    must(verbs_raw_open(&q.qp, &init) == 0);
    ok(fake.attr.qp_state == IBV_QPS_INIT && fake.attr_mask & IBV_QP_ACCESS_FLAGS &&
           fake.attr.qp_access_flags == IBV_ACCESS_REMOTE_WRITE,
       "point 39: a raw queue pair lets its peer write, not read");
    must(verbs_mr_reg(&f->vdev.dev, &ring, &dmr) == 0 && verbs_mr_in(dmr, &f->adapters[0].domain, &mr) == 0);
    ok(fake.last_access == (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE), "and so does a ring");
    verbs_mr_dereg(&f->vdev.dev, dmr);
    qp_fini(&q);
    tear_down(f);
}

static void run_for(struct fixture *f, unsigned ms)
{
    uint64_t end = exsi_now_ns() + (uint64_t)ms * 1000000;
    while (exsi_now_ns() < end) {
        exsi_poller_run(&f->poller);
        usleep(5000);
    }
}

static void test_port_has_time_to_come_back(void)
{
    struct fixture *f = set_up(true);
    struct fake_qp q, other;
    open_seat(f);
    qp_init(f, &q, 0);
    qp_init(f, &other, 0);
    other.qp.port = 2;
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_PORT_ERR, .element.port_num = 1});
    run_for(f, 200);
    ok(!q.qp.down, "a port that went down a moment ago ends nothing");
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_PORT_ACTIVE, .element.port_num = 1});
    run_for(f, 2200);
    ok(!q.qp.down, "nor does one that came back");
    ok(logged(f, "verbs: fake: "), "both are logged");
    happen(f, (struct ibv_async_event){.event_type = IBV_EVENT_PORT_ERR, .element.port_num = 1});
    run_for(f, 2200);
    ok(q.qp.down && q.qp.error == ENETDOWN, "one that stays away does: ENETDOWN");
    ok(logged(f, "connection lost: port 1 of fake is down"), "and it is logged");
    ok(!other.qp.down, "not on the other port");
    qp_fini(&q);
    qp_fini(&other);
    tear_down(f);
}

/* --- completion queues ----------------------------------------------------------------------------------------------
 */

static void test_queues_have_room_for_everything(void)
{
    struct fixture *f = set_up(true);
    struct verbs_seat *seat;
    struct verbs_cq *a, *b, *c;
    struct exsi_wc wc[4];
    open_seat(f);
    must(verbs_seat_open(&f->part, &f->adapters[0], &seat) == 0);
    ok(verbs_cq_get(seat, 600, &a) == 0 && verbs_cq_get(seat, 400, &b) == 0 && a == b, "two share a queue");
    ok(verbs_cq_get(seat, 400, &b) == 0 && b != a && b->cap == 2 * a->cap, "a third gets a new one, twice as large");
    ok(verbs_cq_get(seat, 5000, &c) == -ENOBUFS, "more than a queue can have");
    verbs_cq_put(a, 600);
    ok(verbs_cq_get(seat, 600, &c) == 0 && c != a, "room is not free while entries may linger there");
    ok(verbs_poll_cq(&f->part.part, wc, 4) == 0 && a->reserved == 400, "it is once the queue was seen empty");
    tear_down(f);
}

static void test_completion_of_the_past_is_dropped(void)
{
    struct fixture *f = set_up(true);
    struct verbs_seat *seat;
    struct verbs_cq *cq;
    struct exsi_wc wc[4];
    struct fake_qp q;
    open_seat(f);
    must(verbs_seat_open(&f->part, &f->adapters[0], &seat) == 0 && verbs_cq_get(seat, 10, &cq) == 0);
    qp_init(f, &q, 0);
    uint64_t old = q.qp.wr_base;
    qp_fini(&q);
    qp_init(f, &q, 0);
    ok(q.qp.wr_base != old, "a slot that is used again has another generation");
    fake.done[0] = (struct ibv_wc){.wr_id = old | VERBS_WR_RECV};
    fake.done[1] = (struct ibv_wc){.wr_id = UINT64_MAX};
    fake.n_done = 2;
    ok(verbs_poll_cq(&f->part.part, wc, 4) == 0, "completions of queue pairs that are gone are nobody's");
    qp_fini(&q);
    tear_down(f);
}

static void test_sleeping_part_is_woken_by_every_completion(void)
{
    struct fixture *f = set_up(true);
    struct verbs_seat *seat;
    struct verbs_cq *cq;
    open_seat(f);
    must(verbs_seat_open(&f->part, &f->adapters[0], &seat) == 0 && verbs_cq_get(seat, 10, &cq) == 0);
    ok(fake.notified == 0, "awake: nothing is armed");
    verbs_part_doorbell(&f->part.part, true);
    verbs_part_doorbell(&f->part.part, true);
    ok(fake.notified == 1, "asleep: armed, once");
    fake.fired = cq->cq;
    must(write(seat->channel->refcnt, "x", 1) == 1);
    exsi_poller_run(&f->poller);
    ok(fake.notified == 2 && fake.acked == 1, "fired while asleep: armed again before it is polled");
    verbs_part_doorbell(&f->part.part, false);
    must(write(seat->channel->refcnt, "x", 1) == 1);
    exsi_poller_run(&f->poller);
    ok(fake.notified == 2 && !cq->armed, "fired while awake: not armed");
    verbs_part_doorbell(&f->part.part, true);
    ok(fake.notified == 3, "until the next sleep");
    tear_down(f);
}

/* --- what outlives its group ----------------------------------------------------------------------------------------
 */

/* An id that dials, and its queue pair, both given up: the kernel keeps them. */
static void give_up_a_dial(struct fixture *f, struct exsi_part *part, struct ibv_qp *ib)
{
    union exsi_addr peer = {.in = {.sin_family = AF_INET}};
    struct exsi_cm_options opt = {.path = EXSI_PATH_AUTO};
    struct exsi_cm_id *eid;
    struct verbs_qp *qp = calloc(1, sizeof *qp);
    must(qp && verbs_cm_resolve(part, NULL, &peer, &opt, NULL, &eid) == 0);
    struct verbs_id *id = verbs_id_of(eid);
    qp->part = verbs_part_of(part);
    qp->adapter = id->adapter = &f->adapters[0];
    qp->id = id;
    qp->ibqp = ib;
    exsi_list_init(&qp->part_node);
    exsi_list_init(&qp->down_node);
    verbs_async_watch(qp);
    id->qp = qp;
    id->blocks = true;
    verbs_qp_destroy(&qp->qp);
    verbs_cm_destroy(eid);
}

static void test_group_does_not_wait_for_the_kernel(void)
{
    struct fixture *f = set_up(false);
    struct exsi_poller poller;
    struct exsi_part *part;
    struct ibv_qp ib[2] = {0};
    must(exsi_poller_init(&poller) == 0);
    fake.qps = 2;
    must(verbs_part_open(&f->vdev.dev, &poller, &part) == 0);
    give_up_a_dial(f, part, &ib[0]);
    give_up_a_dial(f, part, &ib[1]);
    verbs_part_close(part);
    exsi_poller_fini(&poller);
    pthread_mutex_lock(&f->vdev.lock);
    ok(f->vdev.lingering == 1 && atomic_load(&fake.ids) == 2, "the group is closed while the kernel keeps two ids");
    must(sem_post(&fake.kernel) == 0 && sem_post(&fake.kernel) == 0);
    while (f->vdev.lingering) pthread_cond_wait(&f->vdev.left, &f->vdev.lock);
    pthread_mutex_unlock(&f->vdev.lock);
    ok(atomic_load(&fake.ids) == 0 && fake.qps == 0 && fake.channels == 0, "and goes whole once it gives them back");
    tear_down(f);
}

static void test_status_is_an_errno(void)
{
    ok(verbs_status_errno(IBV_WC_SUCCESS) == 0 && verbs_status_errno(IBV_WC_WR_FLUSH_ERR) == ECANCELED, "none, flush");
    ok(verbs_status_errno(IBV_WC_RETRY_EXC_ERR) == ETIMEDOUT &&
           verbs_status_errno(IBV_WC_RNR_RETRY_EXC_ERR) == ETIMEDOUT,
       "retries");
    ok(verbs_status_errno(IBV_WC_REM_ACCESS_ERR) == EPROTO && verbs_status_errno(IBV_WC_REM_INV_REQ_ERR) == EPROTO &&
           verbs_status_errno(IBV_WC_LOC_LEN_ERR) == EPROTO,
       "rules");
    ok(verbs_status_errno(IBV_WC_LOC_PROT_ERR) == EFAULT && verbs_status_errno(IBV_WC_GENERAL_ERR) == EIO, "faults");
}

int main(void)
{
    test_region_is_closed_to_peers_where_there_are_windows();
    test_region_waits_for_an_adapter();
    test_private_domain_exposes_only_the_ring();
    test_limit_of_locked_memory_is_named();
    test_window_is_bound_to_the_range();
    test_what_is_posted_goes_out_in_one_call();
    test_short_writes_travel_in_the_request();
    test_without_windows_the_key_is_the_regions();
    test_events_strike_the_queue_pair_that_they_name();
    test_address_that_goes_ends_its_connections();
    test_raw_queue_pair_allows_writes_only();
    test_port_has_time_to_come_back();
    test_queues_have_room_for_everything();
    test_completion_of_the_past_is_dropped();
    test_sleeping_part_is_woken_by_every_completion();
    test_group_does_not_wait_for_the_kernel();
    test_status_is_an_errno();
    return tap_done();
}
