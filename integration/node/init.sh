#!/bin/bash
# First process of a node, in namespaces of its own and in the node's top cgroups: makes the
# node's mounts, pivots into them, says its pid on the outside, and reaps from then on.
set -euo pipefail

rootfs=$1 node_dir=$2 hostname=$3
root=$node_dir/root
read -r host_pid _ </proc/self/stat

mkdir "$root" "$node_dir/upper" "$node_dir/work"
mount -t overlay overlay \
    -o "lowerdir=$rootfs,upperdir=$node_dir/upper,workdir=$node_dir/work" "$root"

# On the disk itself: an overlay cannot lie on another, and a node's state never does.
for dir in var/lib/containerd var/lib/kubelet var/lib/grit var/log mnt; do
    mkdir -p "$node_dir/state/$dir" "$root/$dir"
    mount --bind "$node_dir/state/$dir" "$root/$dir"
done
mkdir -m 0700 "$root/mnt/grit-agent"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs "$root/run"
mount -t tmpfs -o nosuid,mode=0755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev tmpfs "$root/dev/shm"
mount -t mqueue -o nosuid,nodev,noexec mqueue "$root/dev/mqueue"
for device in null zero full random urandom tty; do
    cp -a "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# The machine's hierarchies, each seen from the node's own cgroup down. Version 2 keeps processes
# out of a cgroup that has others below it, so the node's own go one further down.
mapfile -t hierarchies < <(grep " /sys/fs/cgroup" /proc/mounts)
for hierarchy in "${hierarchies[@]}"; do
    read -r _ target kind options _ <<<"$hierarchy"
    if [[ $kind == tmpfs ]]; then
        mount -t tmpfs -o mode=0755 tmpfs "$root$target"
        find "$target" -maxdepth 1 -type l -exec cp -P -t "$root$target" {} +
        continue
    fi
    if [[ $kind == cgroup2 ]]; then
        options=rw
    fi
    mkdir -p "$root$target"
    mount -t "$kind" -o "$options" "$kind" "$root$target"
    mkdir "$root$target/system"
    echo 0 >"$root$target/system/cgroup.procs"
done

hostname "$hostname"
echo "$hostname" >"$root/etc/hostname"
echo "127.0.0.1 localhost $hostname" >"$root/etc/hosts"
ip link set lo up

cd "$root"
pivot_root . mnt
umount -l mnt
mount --make-rshared /
echo "$host_pid"
exec >/dev/null
exec catatonit -P
