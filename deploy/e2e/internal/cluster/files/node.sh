#!/bin/sh
# Makes the mount namespace of a node, then becomes the program given.
# It runs in a new mount namespace that is private to the node: all of this, and
# whatever containerd and kubelet mount later, goes when the node's last process
# has ended.
#   usage: node.sh KUBELET-DIR PROGRAM ARGS...
set -eu
kubelet=$1
shift
# Another namespace's file that stayed mounted here would outlive its deletion.
for ns in /run/netns/*; do
	umount -l "$ns" 2>/dev/null || true
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/containerd /run/kubelet
mount --bind "$kubelet" /run/kubelet
# Each node pins its own BPF objects.
mount -t bpf bpf /sys/fs/bpf
# kubelet hands mounts on to pods; the machine's own tree is no peer of this one.
mount --make-rshared /
exec "$@"
