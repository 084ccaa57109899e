#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Process 1 of a guest, in its root folder: makes the devices, runs the job, writes its exit status, powers off.
# The job's folder is the argument: settings (shell variables), job.sh; we write up, status.
job=$1
. "$job/settings"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

mkdir -p /dev/pts /dev/shm /run /var/tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /var/tmp
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
chmod 1777 /var/tmp /dev/shm
ln -sf /proc/self/fd /dev/fd; ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout; ln -sf /proc/self/fd/2 /dev/stderr
mkdir -p /lib/modules
[ -e "/lib/modules/$(uname -r)" ] || ln -s "$modules" "/lib/modules/$(uname -r)"
hostname "exs-lab-$role"
ulimit -l unlimited
ulimit -n 1048576 2>/dev/null

# Two wires for RDMA (one for each kind of device, else rdma_cm could take either) and one to speak with the peer.
modprobe -a virtio_net ib_uverbs rdma_ucm rdma_rxe siw
ip link set lo up
ip addr replace 10.77.255.1/32 dev lo 2>/dev/null
wire=7
for nic in eth0 eth1 eth2; do
    sysctl -qw "net.ipv6.conf.$nic.accept_dad=0" 2>/dev/null
    # Before the RDMA device: with 9000, soft-RoCE runs with its largest path MTU.
    ip link set "$nic" mtu 9000 up
    ip addr add "10.7$wire.0.$role/24" dev "$nic"
    ip -6 addr add "fd7$wire::$role/64" dev "$nic" nodad
    wire=$((wire + 1))
done
rdma link add rxe0 type rxe netdev eth0
rdma link add siw0 type siw netdev eth1
[ -z "$smc" ] || modprobe -a smc smc_diag exs_lab

touch "$job/up"
setsid -c sh "$job/job.sh" <"/dev/$terminal" >"/dev/$terminal" 2>&1
echo $? >"$job/status.part"
mv "$job/status.part" "$job/status"
sync
echo o >/proc/sysrq-trigger
sleep 60
