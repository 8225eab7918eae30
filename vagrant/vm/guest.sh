#!/bin/sh
# Process 1 of the emulated machine: what a Debian host has mounted, a disk for what tests write, then the tests.
#   guest.sh TREE JOB      (host's root as lower, writes vanish)
set -eu
tree=$1 job=$2
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null || true
# Idmapped mounts need a file system that has them: an overlay has not, and the host's has not over virtio-fs.
mkdir -p /run/tree /run/disk
mount --bind "$tree" /run/tree
mount -t ext4 /dev/vda /run/disk
mkdir -p /run/disk/tmp /run/disk/var-tmp /run/disk/changes /var/lib/ambit-changes
chmod 1777 /run/disk/tmp /run/disk/var-tmp
chmod 711 /run/disk/changes
mount --bind /run/disk/tmp /tmp
mount --bind /run/disk/var-tmp /var/tmp
# What cells write over a workspace is an upper layer, which cannot lie on an overlay either.
mount --bind /run/disk/changes /var/lib/ambit-changes
if [ ! -e "$tree/package.json" ]; then
  mkdir -p "$tree"
  mount --bind /run/tree "$tree"
fi
ip link set lo up
hostname guest
cd "$tree"
cp -r build/vm/js/src build/vm/js/test .
status=0
node vagrant/vm/guest.mjs "$job" || status=$?
echo "guest: tests ended with $status"
sync
echo o >/proc/sysrq-trigger
sleep 60
