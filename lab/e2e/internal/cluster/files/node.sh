#!/bin/sh
# Makes the mount namespace of a node, then becomes the program given.
# It runs in a new mount namespace that is private to the node: all of this, and
# whatever containerd and kubelet mount later, goes when the node's last process
# has ended.
#   usage: node.sh FOLDER MOUNT-POINTS PROGRAM ARGS...
# Each mount point gets a folder of the node's own, below FOLDER.
set -eu
folder=$1
points=$2
shift 2
# Another namespace's file that stayed mounted here would outlive its deletion.
for ns in /run/netns/*; do
	umount -l "$ns" 2>/dev/null || true
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/containerd
for point in $points; do
	mkdir -p "$folder$point"
	mount --bind "$folder$point" "$point"
done
# Each node pins its own BPF objects.
mount -t bpf bpf /sys/fs/bpf
# kubelet hands mounts on to pods; the machine's own tree is no peer of this one.
mount --make-rshared /
exec "$@"
