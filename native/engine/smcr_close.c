// SPDX-License-Identifier: MIT OR Apache-2.0
/* How an SMC-R connection ends (RFC 7609; the states of its table are the two sets of flags, said and heard).
 *
 *   shutdown   done, behind all data
 *   close      closed, behind all data; abort if something lay unread
 *   abort      at once
 * Each side says closed or abort once, and the flags stay set in whatever it says later.  A connection is finished
 * when both have; one that ended by an error waits a moment for the peer's word, because its ring may not be
 * given to another while the peer still writes there.
 *
 * Invariant: behind closed or abort nothing is written to the peer's ring; a flow is freed only while nothing of it is
 * in flight. */
#include "engine/smcr_flow.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* --- what is said ------------------------------------------------------------------------------------------- */

uint8_t smcr_end_flags(const struct smcr_flow *f)
{
    uint8_t flags = 0;
    if (f->said & SMCR_FINAL) return 0;
    if (f->abort) return EXSI_SMC_ABORT;
    if (f->over || !f->fin_wanted || f->unposted || smcr_staged(f)) return 0;
    if (f->recv_shut)
        flags = f->unread ? EXSI_SMC_ABORT : EXSI_SMC_CLOSED;
    else
        flags = EXSI_SMC_SENDING_DONE;
    return flags & ~f->said;
}

void smcr_shutdown_send(struct exsi_attach *at)
{
    struct smcr_flow *f = smcr_flow_of(at);
    f->fin_wanted = f->shut_asked = true;
    smcr_want(f);
}

/* --- what is heard -------------------------------------------------------------------------------------------- */

void smcr_heard(struct smcr_flow *f, uint8_t flags)
{
    f->heard |= flags;
    if (flags & EXSI_SMC_ABORT) {
        smcr_end(f, ECONNRESET, "the peer aborted the connection");
        return;
    }
    /* It reads no more either: what was not sent has nowhere to go. */
    if (flags & EXSI_SMC_CLOSED) {
        smcr_cut_sends(f);
        smcr_want(f);
    }
    smcr_settle(f);
}

/* --- the end for an error ---------------------------------------------------------------------------------------- */

/* Its operations end; those whose bytes are on the way when these have left. */
static void end_operations(struct smcr_flow *f)
{
    bool all = smcr_is_eof(f) && !smcr_arrived(f);
    smcr_cut_sends(f);
    smcr_end_recvs(f, all ? 0 : f->error);
}

void smcr_end(struct smcr_flow *f, int error, const char *why)
{
    if (f->over) return;
    f->over = f->spoilt = true;
    f->error = error;
    snprintf(f->reason, sizeof f->reason, "%s", why);
    if (f->at) {
        f->at->error = error;
        f->at->reason = f->reason;
    }
    exsi_log(&f->link->ep->group->ctx->log, error == EPROTO ? EXSI_LOG_WARNING : EXSI_LOG_DEBUG, f->socket,
             "connection ends: %s (errno %d)", why, error);
    f->abort = f->open && !(f->said & SMCR_FINAL);
    end_operations(f);
    smcr_want(f);
    smcr_step(f);
}

void smcr_violation(struct smcr_flow *f, const char *fmt, ...)
{
    char text[EXSI_REASON_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    smcr_end(f, EPROTO, text);
}

void smcr_abort(struct exsi_attach *at, int error, const char *why)
{
    smcr_end(smcr_flow_of(at), error, why);
}

/* --- the end of everything ---------------------------------------------------------------------------------------- */

static bool is_finished(const struct smcr_flow *f)
{
    return (f->said & SMCR_FINAL) && (f->heard & SMCR_FINAL);
}

void smcr_disconnect(struct exsi_attach *at)
{
    struct smcr_flow *f = smcr_flow_of(at);
    f->left = true;
    smcr_step(f);
}

void smcr_step(struct smcr_flow *f)
{
    if ((f->over || f->left) && !f->in_flight && !f->dead) {
        smcr_retire_sends(f);
        f->dead = true;
    }
    if (f->at) {
        smcr_report(f);
        return;
    }
    /* The peer's word is awaited, but not where there is none to come. */
    bool waits = f->open && !f->link->dead && !is_finished(f);
    if (waits && exsi_now_ns() < f->leave_ns) return;
    smcr_release(f);
}

static void wait_for_peer(struct smcr_flow *f)
{
    struct exsi_smcr *l = f->link;
    f->leave_ns = exsi_now_ns() + SMCR_LEAVE_NS;
    if (exsi_timer_running(&l->leave_timer)) return;
    if (exsi_timer_start(&l->ep->group->poller, &l->leave_timer, SMCR_LEAVE_NS) < 0) f->leave_ns = 0;
}

void smcr_leave_over(struct exsi_timer *t)
{
    struct exsi_smcr *l = exsi_container_of(t, struct exsi_smcr, leave_timer);
    uint64_t now = exsi_now_ns(), next = 0;
    exsi_list_for_safe (f, &l->flows, struct smcr_flow, node) {
        if (f->at) continue;
        if (f->leave_ns <= now)
            smcr_step(f);
        else if (!next || f->leave_ns < next)
            next = f->leave_ns;
    }
    if (next && exsi_timer_start(&l->ep->group->poller, t, next - now) < 0)
        exsi_ep_fail(l->ep, ENOMEM, "no memory for a timer");
}

void smcr_detach(struct exsi_attach *at)
{
    struct smcr_flow *f = smcr_flow_of(at);
    assert(exsi_list_empty(&f->sends) && exsi_list_empty(&f->recvs) && !f->in_flight);
    at->flow = NULL;
    at->reason = NULL;
    f->at = NULL;
    f->lent = 0;
    f->over = f->dead = true;
    if (f->open && !f->link->dead) wait_for_peer(f);
    smcr_step(f);
}

void smcr_link_lost(struct smcr_flow *f)
{
    f->in_flight = 0;
    exsi_list_unlink(&f->ready_node);
    exsi_list_for (op, &f->sends, struct exsi_op, node) op->e.send.in_flight = 0;
    if (!f->over && !is_finished(f)) {
        f->error = ECONNABORTED;
        if (f->at) f->at->error = ECONNABORTED;
        if (f->at) f->at->reason = f->link->ep->reason;
    }
    f->over = true;
    f->abort = false;
    end_operations(f);
    smcr_step(f);
}

/* --- what the socket is told -----------------------------------------------------------------------------------------
 */

uint32_t smcr_ready(struct smcr_flow *f)
{
    uint32_t bits = 0;
    uint8_t end = f->fin_wanted && f->recv_shut ? SMCR_FINAL : SMCR_FINAL | EXSI_SMC_SENDING_DONE;
    if (smcr_is_readable(f)) bits |= EXSI_CHANGE_READABLE;
    if (smcr_is_writable(f)) bits |= EXSI_CHANGE_WRITABLE;
    if (smcr_is_eof(f)) bits |= EXSI_CHANGE_PEER_FIN;
    if (f->said & end) bits |= EXSI_CHANGE_FIN_SENT;
    if (is_finished(f)) bits |= EXSI_CHANGE_FIN_ACKED;
    if (f->dead) bits |= EXSI_CHANGE_DEAD;
    return bits;
}

void smcr_report(struct smcr_flow *f)
{
    if (!f->at || !f->at->changed) return;
    uint32_t bits = smcr_ready(f), fresh = bits & ~f->seen;
    f->seen = bits;
    if (fresh) f->at->changed(f->at, fresh);
}
