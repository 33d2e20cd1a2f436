import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';

import t, { type Test } from 'tap';

import type { CertificateAuthority } from '../../controller/ca.ts';
import { openStub } from '../../controller/stub.ts';
import type {
  BackupReport,
  HostReport,
  JobReport,
  MachineReport,
  Report,
  StorageReport,
} from '../../proto/generated/stillpoint/v1/report.ts';
import { createLogger } from '../../common/log.ts';
import type { Storage } from '../../storage/storage.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { enrolHost, openAuthority } from '../../test/tls/authority.ts';
import { Agent } from '../agent.ts';
import { IdentityStore } from '../identity/identityStore.ts';
import { ServiceFigures } from '../observe/serviceFigures.ts';
import { identityDirectory } from './controllerAccess.ts';
import { reportToController } from './reporting.ts';

t.teardown(removeSharedImages);

/** What a receiver has, by kind. */
class Told {
  readonly hosts: HostReport[] = [];
  readonly machines: MachineReport[] = [];
  readonly storages: StorageReport[] = [];
  readonly jobs: JobReport[] = [];
  readonly backups: BackupReport[] = [];

  forget(): void {
    for (const each of [this.hosts, this.machines, this.storages, this.jobs, this.backups]) each.length = 0;
  }

  take(body: Report['body']): void {
    if (body?.$case === 'host') this.hosts.push(body.value);
    if (body?.$case === 'machine') this.machines.push(body.value);
    if (body?.$case === 'storage') this.storages.push(body.value);
    if (body?.$case === 'job') this.jobs.push(body.value);
    if (body?.$case === 'backup') this.backups.push(body.value);
  }
}

/** A simulated host whose service reports to a receiver. */
async function reportingHost(test: Test, options: { readonly ca?: CertificateAuthority } = {}) {
  const site = await Site.create({
    targets: ['vda'],
    storages: ['near', 'far'],
    policy: { mode: 'disk', storages: ['near'] },
  });
  test.teardown(() => site[Symbol.asyncDispose]());
  const living = site.openAgent();
  const told = new Told();
  const openReceiver = (directory: string, listen: string) =>
    openStub({ ...options, directory, listen, onReport: ({ report: { body } }) => told.take(body) });
  const directory = test.testdir({ first: {}, second: {} });
  let stub = await openReceiver(join(directory, 'first'), '127.0.0.1:0');
  test.teardown(() => stub[Symbol.asyncDispose]());
  /** The receiver is another one from now on, at the same address. */
  const loseReports = async (): Promise<void> => {
    const { address: listen } = stub;
    await stub[Symbol.asyncDispose]();
    told.forget();
    stub = await openReceiver(join(directory, 'second'), listen);
  };
  // With a CA the host has no controller until it joins.
  const address = options.ca === undefined ? stub.address : null;
  const { parts } = living.agent;
  const controller = { ...parts.config.controller, address, outboxMaxBytes: 1024 * 1024 };
  const agent = new Agent({ ...parts, config: { ...parts.config, controller } });
  const said: string[] = [];
  const destination = new Writable({
    write: (line: Buffer, _, done) => {
      said.push(String(line));
      done();
    },
  });
  const log = createLogger({ destination, level: 'info' });
  let stop = new AbortController();
  let service: Promise<void> | undefined;
  const figures = new ServiceFigures();
  const start = (): void => {
    stop = new AbortController();
    service = reportToController(agent, { log, signal: stop.signal, figures, targetEveryMs: 20 });
  };
  const end = async (): Promise<void> => {
    stop.abort();
    await service;
  };
  test.teardown(end);
  const backUp = async () => agent.run(await agent.createBackup({ machine: site.uuid }));
  const outboxFile = join(site.directory, 'state', 'outbox.sqlite');
  const stateDir = join(site.directory, 'state');
  return {
    site,
    living,
    agent,
    said,
    told,
    start,
    end,
    backUp,
    outboxFile,
    loseReports,
    figures,
    receiverAddress: stub.address,
    stateDir,
  };
}

void t.test('the host, its machines, storages and backups are told, and their deletion', async (t) => {
  const host = await reportingHost(t);
  host.start();
  await eventually(() => host.told.machines.length > 0 && host.told.storages.length === 2);
  t.match(host.told.machines, [{ uuid: host.site.uuid, name: 'm', present: true, state: 'running' }]);
  t.equal(host.told.hosts.length, 1);
  t.equal((await host.backUp()).state, 'finished');
  await eventually(() => host.told.backups.length === 1, { timeoutMs: 30_000 });
  const job = host.told.jobs.findLast(({ ended }) => ended);
  t.match(job, { state: 'finished', machineName: 'm', needsOperator: false });
  t.match(host.told.backups, [{ backupId: job?.backupId, change: 1, storage: 'near', mode: 'disk' }]);
  await host.agent.deleteBackup(await host.agent.findBackup('m@latest', undefined));
  await host.end();
  host.start();
  await eventually(() => host.told.backups.length === 2, { timeoutMs: 30_000 });
  t.match(host.told.backups[1], { backupId: job?.backupId, change: 4 });
});

void t.test('a controller that has lost what it had stored is told anew what there is', async (t) => {
  const host = await reportingHost(t);
  host.start();
  t.equal((await host.backUp()).state, 'finished');
  await eventually(() => host.told.backups.length === 1, { timeoutMs: 30_000 });
  const [backup] = host.told.backups;
  // What waits for its acknowledgement is sent to the other one too, besides what is told anew.
  await eventually(() => host.figures.outbox?.()?.waiting === 0, { timeoutMs: 30_000 });
  await host.end();
  await host.loseReports();
  host.start();
  await eventually(() => host.told.backups.length === 1 && host.told.machines.length > 0, {
    timeoutMs: 30_000,
  });
  t.match(host.told.backups, [{ backupId: backup?.backupId, change: 1, mode: 'disk' }]);
  t.match(host.told.jobs.at(-1), { state: 'finished', ended: true, backupId: backup?.backupId });
  t.ok(host.said.some((line) => line.includes('told everything anew')));
});

void t.test(
  'an outbox that cannot be written fails no backup, and what happened is told afterwards',
  async (t) => {
    const host = await reportingHost(t);
    await mkdir(host.outboxFile);
    host.start();
    t.equal((await host.backUp()).state, 'finished');
    await eventually(() => host.said.some((line) => line.includes('OUTBOX_UNUSABLE')));
    await rm(host.outboxFile, { recursive: true });
    await eventually(() => host.told.jobs.some(({ ended }) => ended), { timeoutMs: 30_000 });
  },
);

void t.test(
  'a storage that hangs keeps no job from being told, and not the service from ending',
  async (t) => {
    const host = await reportingHost(t);
    const far = host.living.storages.get('far');
    const hanging: Storage = Object.assign(Object.create(far ?? null), {
      check: () => new Promise(() => undefined),
    });
    t.equal((await host.backUp()).state, 'finished');
    host.living.storages.set('far', hanging);
    host.start();
    await eventually(() => host.told.jobs.some(({ ended }) => ended), { timeoutMs: 30_000 });
    await host.end();
    t.pass('it ends');
  },
);

void t.test('of two services on one journal one reports', async (t) => {
  const host = await reportingHost(t);
  host.agent.parts.journal.claimService = () => false;
  host.start();
  t.equal((await host.backUp()).state, 'finished');
  await eventually(() => host.said.some((line) => line.includes('the outbox is open')));
  t.same(host.told.jobs, []);
});

void t.test('a host that joins while its service runs reports from then on, until it leaves', async (t) => {
  const ca = await openAuthority(t);
  const host = await reportingHost(t, { ca });
  host.start();
  t.equal((await host.backUp()).state, 'finished');
  t.equal(host.figures.outbox, null);
  const directory = identityDirectory(host.stateDir);
  const identity = enrolHost(ca);
  const joinOnce = async (): Promise<void> => {
    await new IdentityStore(directory).adopt(
      { ...identity, controller: { name: ca.name, address: host.receiverAddress } },
      0,
    );
  };
  await joinOnce();
  await eventually(() => host.told.jobs.some(({ ended }) => ended), { timeoutMs: 30_000 });
  t.not(host.figures.outbox?.(), null);
  await rm(directory, { recursive: true });
  await eventually(() => host.figures.outbox === null);
  const count = host.told.jobs.length;
  t.equal((await host.backUp()).state, 'finished');
  await joinOnce();
  await eventually(() => host.told.jobs.slice(count).some(({ ended }) => ended), { timeoutMs: 30_000 });
  await host.end();
  t.equal(host.figures.outbox, null);
});

void t.test('what fails unforeseen ends no service, and is tried again', async (t) => {
  const host = await reportingHost(t);
  let failures = 0;
  let told: ServiceFigures['outbox'] = null;
  Object.defineProperty(host.figures, 'outbox', {
    get: () => told,
    set: (value: typeof told) => {
      told = value;
      if (value !== null && (failures += 1) < 3) throw new Error('unforeseen');
    },
  });
  host.start();
  await eventually(() => host.told.hosts.length > 0, { timeoutMs: 30_000 });
  t.equal(failures, 3);
  t.ok(host.said.some((line) => line.includes('unforeseen')));
});
