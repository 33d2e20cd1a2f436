import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import * as z from 'zod';
import { eventually } from '../lab/eventually.ts';
import { SystemdRoot } from '../lab/systemdRoot.ts';

const repository = join(import.meta.dirname, '../..');
const agentUnit = 'stillpoint-agent.service';
const packageFile = '/stillpoint.deb';

/** So many seconds of reading: an upgrade comes in the middle of it, also where much else goes on. */
const imageMiB = 16;
const configuration = `storages:
  local: { kind: directory, path: /var/lib/libvirt/backups }
policies:
  default:
    mode: offline
    schedule: { every: 1d, retries: { count: 5, firstDelaySeconds: 1 } }
    read: { bandwidthBytesPerSecond: ${1024 * 1024} }
`;
const machine = `<domain type='qemu'><name>off</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/off.raw'/><target dev='vda' bus='virtio'/></disk></devices></domain>`;

const jobsSchema = z.object({
  jobs: z.array(z.looseObject({ state: z.string(), error: z.looseObject({ code: z.string() }).nullable() })),
});

async function makePackage(to: string): Promise<string> {
  const command = ['node', join(repository, 'scripts/package.ts'), '--quick', to];
  const { stdout } = await execa(join(repository, 'scripts/with-node'), command, { timeout: 300_000 });
  return stdout.trim();
}

async function digestOf(file: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(file))
    .digest('hex');
}

void t.test('the package, on a root with a systemd of its own', async (t) => {
  const work = await mkdtemp(join(tmpdir(), 'stillpoint-package-test-'));
  t.teardown(() => rm(work, { recursive: true }));
  const file = await makePackage(work);

  await t.test('the same sources make the same bytes', async (t) => {
    const first = await digestOf(file);
    t.equal(await digestOf(await makePackage(join(work, 'again'))), first);
  });

  await t.test('everything in it is of root, nothing can be written by others or takes rights', async (t) => {
    const { stdout } = await execa('dpkg-deb', ['--contents', file]);
    const lines = stdout.split('\n');
    t.ok(lines.length > 100, `${lines.length} files`);
    for (const line of lines) {
      t.match(line, /^[-dl]\S+ root\/root /);
      // Links have no modes.
      if (!line.startsWith('l')) t.notMatch(line.slice(0, 10), /[sStT]|^.{5}w|^.{8}w/, line);
    }
    const own = lines.filter((line) => /\.\/(etc|var\/lib)\/stillpoint\/$/.test(line));
    t.same(
      own.map((line) => line.slice(0, 10)),
      ['drwx------', 'drwx------'],
    );
  });

  await using root = await SystemdRoot.start();
  // The manual's index of the whole machine would be made anew each time.
  const dpkg = (...how: readonly string[]) => root.run('dpkg', ['--no-triggers', ...how]);
  const install = () => dpkg('-i', packageFile);
  const jobs = async () =>
    jobsSchema.parse(JSON.parse((await root.run('stillpoint', ['jobs', '--json'])).stdout)).jobs;
  const untilJob = async (state: string): Promise<void> => {
    await eventually(async () => (await jobs())[0]?.state === state, { timeoutMs: 180_000, intervalMs: 200 });
  };
  const isActive = async (): Promise<string> =>
    (await root.run('systemctl', ['is-active', agentUnit])).stdout;

  await t.test('installed, the service runs as soon as it has said that it is ready', async (t) => {
    await root.copyIn(file, packageFile);
    const installed = await install();
    t.equal(installed.exitCode, 0, `${installed.stdout}${installed.stderr}`);
    t.equal(await isActive(), 'active', await root.must('journalctl', '--no-pager', '-u', agentUnit));
    await eventually(async () => (await root.property(agentUnit, 'StatusText')) === 'idle');
    for (const unit of ['stillpoint-repair.service', agentUnit])
      t.equal((await root.must('systemctl', 'is-enabled', unit)).trim(), 'enabled');
    t.match(await root.must('stillpoint', '--version'), /^\d+\.\d+\.\d+$/m);
    await root.must('gzip', '-t', '/usr/share/man/man1/stillpoint-backup.1.gz');
    await root.must('bash', '-n', '/usr/share/bash-completion/completions/stillpoint');
  });

  await t.test(
    'systemd has nothing to say against the units, and its figure is that of docs/SYSTEMD.md',
    async (t) => {
      const units = ['stillpoint-agent', 'stillpoint-repair'].map(
        (name) => `/usr/lib/systemd/system/${name}.service`,
      );
      const { exitCode, stderr } = await root.run('systemd-analyze', ['verify', '--man=no', ...units]);
      t.equal(exitCode, 0, stderr);
      t.notMatch(stderr, /stillpoint/);
      const { stdout } = await root.run('systemd-analyze', ['security', '--no-pager', agentUnit]);
      const [, figure] = /Overall exposure level for \S+: ([0-9.]+)/.exec(stdout) ?? [];
      const page = await readFile(join(repository, 'docs/SYSTEMD.md'), 'utf8');
      t.match(page, `exposure level of ${figure}`);
    },
  );

  await t.test('a service that stands still is started anew by its watchdog', async (t) => {
    await root.write(`/run/systemd/system/${agentUnit}.d/watchdog.conf`, '[Service]\nWatchdogSec=2s\n');
    await root.must('systemctl', 'daemon-reload');
    await root.must('systemctl', 'restart', agentUnit);
    const before = await root.property(agentUnit, 'MainPID');
    await root.must('kill', '-STOP', before);
    await eventually(
      async () => (await root.property(agentUnit, 'MainPID')) !== before && (await isActive()) === 'active',
      { timeoutMs: 60_000, intervalMs: 200 },
    );
    t.equal(await root.property(agentUnit, 'NRestarts'), '1');
    t.match(await root.must('journalctl', '--no-pager', '-u', agentUnit), /Watchdog timeout/);
    await root.must('rm', '-r', `/run/systemd/system/${agentUnit}.d`);
    await root.must('systemctl', 'daemon-reload');
  });

  await t.test(
    'a package that is upgraded under a running job gives the job up first, and does it again',
    async (t) => {
      await root.must('systemctl', 'start', 'libvirtd.service');
      // Not on the overlay, where files and directories seem to be on two file systems.
      await root.must('mkdir', '-p', '/var/lib/libvirt/images', '/var/lib/libvirt/backups');
      await root.must(
        'dd',
        'if=/dev/urandom',
        'of=/var/lib/libvirt/images/off.raw',
        'bs=1M',
        `count=${imageMiB}`,
      );
      await root.write('/var/lib/off.xml', machine);
      await root.must('virsh', '-c', 'qemu:///system', 'define', '/var/lib/off.xml');
      await root.write('/etc/stillpoint/config.yaml', configuration);
      await root.must('systemctl', 'restart', agentUnit);
      await untilJob('retaining');
      const before = await root.property(agentUnit, 'MainPID');
      t.match(await root.property(agentUnit, 'StatusText'), /off retaining|idle/);
      const upgraded = await install();
      t.equal(upgraded.exitCode, 0, `${upgraded.stdout}${upgraded.stderr}`);
      t.match((await jobs()).at(-1), { state: 'failed', error: { code: 'AGENT_STOPPED' } });
      t.equal(await root.property(agentUnit, 'Result'), 'success', 'it ended by itself');
      t.equal(await isActive(), 'active');
      t.not(await root.property(agentUnit, 'MainPID'), before);
      await untilJob('finished');
    },
  );

  await t.test(
    'a command at work keeps its program: the upgrade is refused, and the service runs on',
    async (t) => {
      const command = [
        '--unit=by-hand',
        '--collect',
        'stillpoint',
        'backup',
        'off',
        '--mode',
        'offline',
        '--reread',
        // Otherwise the service does it.
        '--standalone',
      ];
      await root.must('systemd-run', ...command);
      await untilJob('retaining');
      for (const how of ['-i', '-r']) {
        const refused = await dpkg(how, how === '-i' ? packageFile : 'stillpoint');
        t.not(refused.exitCode, 0);
        t.match(refused.stderr, /STILLPOINT_AT_WORK[^]*process \d+: .*backup off/);
        t.equal(await isActive(), 'active');
      }
      await untilJob('finished');
      const upgraded = await install();
      t.equal(upgraded.exitCode, 0, upgraded.stderr);
    },
  );

  await t.test('removed, it leaves backups, keys and journal; purged, backups and keys', async (t) => {
    const removed = await dpkg('-r', 'stillpoint');
    t.equal(removed.exitCode, 0, removed.stderr);
    t.equal(await isActive(), 'inactive');
    await root.must('test', '-e', '/var/lib/stillpoint/journal.sqlite');
    t.not((await root.run('test', ['-e', '/usr/lib/stillpoint'])).exitCode, 0);
    const purged = await dpkg('-P', 'stillpoint');
    t.equal(purged.exitCode, 0, purged.stderr);
    for (const gone of ['/var/lib/stillpoint', '/var/cache/stillpoint'])
      t.not((await root.run('test', ['-e', gone])).exitCode, 0, gone);
    for (const kept of ['/etc/stillpoint/config.yaml', '/var/lib/libvirt/backups/off'])
      await root.must('test', '-e', kept);
    t.match(await root.must('find', '/etc/systemd', '-name', 'stillpoint*'), /^\s*$/);
  });
});
