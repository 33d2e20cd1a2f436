#!/bin/sh
# systemdRoot.sh DIRECTORY: becomes systemd as process 1 of a root of its own: the files of this machine under an overlay
# in memory, with namespaces, control groups and network of its own. Nothing that is changed in it is seen outside, and
# nothing of this machine's guests is seen in it. Ends with it.
set -e
base=$1
group=stillpoint-${base##*/}

mount -t tmpfs -o mode=0755,size=2g tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root" "$base/groups"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
root=$base/root

# A control group of its own, before it becomes the topmost one.
mount -t cgroup2 cgroup2 "$base/groups"
mkdir "$base/groups/$group"
echo 0 >"$base/groups/$group/cgroup.procs"
umount "$base/groups"

cat >"$base/enter" <<'ENTER'
set -e
root=$1
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
  set -- $node
  mknod -m 0666 "$root/dev/$1" c "$2" "$3"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
# Of libvirt, and of what this machine mounts and starts, only what the test puts there.
for own in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
  mkdir -p "$root/$own"
  mount -t tmpfs -o mode=0755 tmpfs "$root/$own"
done
: >"$root/etc/fstab"
rm -f "$root/usr/sbin/policy-rc.d"
rm -rf "$root/etc/systemd/system" "$root/var/log/journal"
mkdir -p "$root/etc/systemd/system"
printf '[Unit]\nDescription=What a test starts\nWants=systemd-journald.service dbus.service\n' \
  >"$root/etc/systemd/system/of-a-test.target"
cd "$root"
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 container=stillpoint-test \
  /lib/systemd/systemd --system --unit=of-a-test.target --show-status=no --log-target=journal
ENTER
# The loopback of the new network is for what listens in it.
exec unshare --cgroup --net --ipc --uts --pid --mount --fork --kill-child --propagation private \
  sh -c 'ip link set lo up 2>/dev/null || true; exec sh "$0/enter" "$0/root"' "$base"
