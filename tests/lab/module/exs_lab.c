// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * For the lab's guests only: lets the kernel's own SMC-R speak over soft-RoCE as it is in Linux 6.1.
 *
 * Owns two probes on the module rdma_rxe and nothing else.  rxe leaves one answer out and takes one flag wrongly, and
 * SMC-R trips over both; we put each right at the function's border, so neither module is changed.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <rdma/ib_verbs.h>

/* Without a current state SMC takes every link for one that cannot send: nobody else fills it in. */
static int state_asked(struct kretprobe_instance *call, struct pt_regs *regs)
{
    struct ib_qp_attr **asked = (struct ib_qp_attr **)call->data;

    *asked = (struct ib_qp_attr *)regs_get_kernel_argument(regs, 1);
    return 0;
}

static int state_answered(struct kretprobe_instance *call, struct pt_regs *regs)
{
    struct ib_qp_attr *attr = *(struct ib_qp_attr **)call->data;

    if (attr && regs_return_value(regs) == 0) attr->cur_qp_state = attr->qp_state;
    return 0;
}

/* SMC asks with the mask of both kinds of event, which rxe compares with each kind: it would never tell of any. */
static int events_asked(struct kprobe *probe, struct pt_regs *regs)
{
    if ((regs->si & IB_CQ_SOLICITED_MASK) == IB_CQ_SOLICITED_MASK) regs->si &= ~(unsigned long)IB_CQ_SOLICITED;
    return 0;
}

static struct kretprobe state = {
    .kp.symbol_name = "rxe_query_qp",
    .entry_handler = state_asked,
    .handler = state_answered,
    .data_size = sizeof(struct ib_qp_attr *),
    .maxactive = 32,
};

static struct kprobe events = {
    .symbol_name = "rxe_req_notify_cq",
    .pre_handler = events_asked,
};

static int __init exs_lab_init(void)
{
    int rc = register_kretprobe(&state);

    if (rc) return rc;
    rc = register_kprobe(&events);
    if (rc) unregister_kretprobe(&state);
    return rc;
}

static void __exit exs_lab_exit(void)
{
    unregister_kprobe(&events);
    unregister_kretprobe(&state);
}

module_init(exs_lab_init);
module_exit(exs_lab_exit);
MODULE_DESCRIPTION("Lets SMC-R use soft-RoCE, in the guests of the lab of exs");
MODULE_LICENSE("Dual MIT/GPL");
