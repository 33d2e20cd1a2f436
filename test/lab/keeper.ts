/**
 * The process that a laboratory's life hangs on: `tini -s -- node keeper.ts ROOT`.
 *
 * tini is the subreaper that adopts libvirtd and QEMU and reaps them at once. The keeper makes the mount
 * namespace, starts libvirtd when a line `libvirtd` comes in, and answers each with one line of JSON. When
 * its standard input closes, which also happens when the test process is killed, or when the namespace's holder ends, it sweeps everything away.
 * It stays outside of the namespace, so that it never sweeps itself.
 */
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import type { KeeperAnswer } from './keeperAnswer.ts';
import { enterNamespace, labMarker, sweepLab } from './sweep.ts';

const [root] = process.argv.slice(2);
if (root === undefined) throw new Error('usage: keeper.ts ROOT');

/**
 * Mounts inside the namespace. All of /run is private: libvirt's sockets, the agent's, and the absence of
 * the host's D-Bus, through which systemd's machine registry would be reached. Shared propagation inside
 * lets a file system that is mounted later reach guests that run already, as on a real host. /dev/kvm is
 * hidden: guests are emulated everywhere alike, and where only root may open it, libvirt 9.0 takes its cache of QEMU's
 * capabilities for stale and probes again at every start and restore (1.4 s). swtpm keeps its log and its certificates
 * in directories of its own, which its package need not have made yet.
 */
const mounts = `set -e
for pair in run:/run lib:/var/lib/libvirt etc:/etc/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
  mount --bind "$1/\${pair%%:*}" "\${pair#*:}"
done
if [ -e /dev/kvm ]; then
  (umask 077 && touch "$1/no-kvm")
  mount --bind "$1/no-kvm" /dev/kvm
fi
if command -v swtpm >/dev/null; then
  mkdir -p "$1/swtpm-log" /var/log/swtpm /var/lib/swtpm-localca
  install -d -o tss -g root -m 0750 "$1/swtpm-ca"
  mount --bind "$1/swtpm-log" /var/log/swtpm
  mount --bind "$1/swtpm-ca" /var/lib/swtpm-localca
fi
mount -t tmpfs -o mode=0755,size=2g ram "$1/ram"
mount --make-rshared /
echo ready
exec sleep infinity`;

const holder = execa('unshare', ['-m', '--propagation', 'private', 'sh', '-c', mounts, 'sh', root], {
  reject: false,
  buffer: { stdout: false, stderr: true },
});
const mounted = await Promise.race([once(holder.stdout, 'data'), holder]);
const holderPid = holder.pid;
if (holderPid === undefined || !Array.isArray(mounted)) {
  answer({ error: `no mount namespace: ${(await holder).stderr}` });
} else if (!(await entersPrivateRun(holderPid))) {
  answer({ error: 'commands would not run inside the namespace, but on the machine itself' });
} else {
  answer({ holderPid });
  const commands = createInterface({ input: process.stdin });
  void holder.then(() => commands.close());
  for await (const line of commands) {
    if (line === 'libvirtd') answer(await startLibvirtd(holderPid));
  }
}
await sweepLab(root);
await holder;

/**
 * Whether what is entered is the laboratory: otherwise a libvirtd would be started on the machine's own
 * directories. Asked once, before anything is started, with the arguments that everything is started with.
 */
async function entersPrivateRun(pid: number): Promise<boolean> {
  const args = [...enterNamespace(pid), 'test', '-e', `/run/${labMarker(root ?? '')}`];
  return !(await execa('nsenter', args, { reject: false, timeout: 10_000 })).failed;
}

/** Returns when the daemon accepts connections (`-d` waits for that). */
async function startLibvirtd(pid: number): Promise<KeeperAnswer> {
  const daemon = ['libvirtd', '-d', '-p', '/run/libvirtd.pid', '-f', '/etc/libvirt/libvirtd.conf'];
  const result = await execa('nsenter', [...enterNamespace(pid), ...daemon], {
    reject: false,
    timeout: 60_000,
  });
  return result.failed ? { error: `libvirtd did not start: ${result.stderr}` } : { holderPid: pid };
}

function answer(value: KeeperAnswer): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
