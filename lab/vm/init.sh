#!/bin/sh
# The first process of the machine: it readies what a node has, runs the tests
# on the second serial line and powers off. The first line is the kernel's.
export PATH=/usr/sbin:/usr/bin:/busybox HOME=/root TMPDIR=/tmp
/usr/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security 2>/dev/null
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ln -s /proc/self/fd /dev/fd
ip link set lo up
modprobe nf_conntrack # every node has it, and its settings
modprobe tun # and its device file
ulimit -n 65536
sh /tests/script >/dev/ttyS1 2>&1 </dev/null
sync
poweroff -f
