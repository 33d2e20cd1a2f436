import { existsSync } from 'node:fs';
import { mkdir, readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';

import { execa } from 'execa';
import t from 'tap';

import type { HypervisorError } from '../../agent/hypervisor/errors.ts';
import { LibvirtHypervisor } from '../../agent/hypervisor/libvirt/libvirtHypervisor.ts';
import { hypervisorConformance } from '../conformance/hypervisor.ts';
import { correctedDefinition } from '../conformance/hypervisorFixture.ts';
import type { HypervisorFixture } from '../conformance/hypervisorFixture.ts';
import { eventually, startLab } from '../lab/lab.ts';
import type { Lab } from '../lab/lab.ts';

/** Long enough to start a child on a machine that is busy with other tests. */
const queryMs = 4_000;
const moduleUrl = new URL('../../agent/hypervisor/libvirt/libvirtHypervisor.ts', import.meta.url);

void t.test('libvirt keeps the promises of the hypervisor port', (t) =>
  hypervisorConformance(t, libvirtFixture),
);

void t.test('libvirt in child processes', async (t) => {
  await using lab = await startLab();

  await t.test('a libvirtd that is not there is named, with what to do', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: 'qemu+unix:///system?socket=/nonexistent' });
    await t.rejects(hypervisor.machines(), {
      code: 'HYPERVISOR_UNREACHABLE',
      hint: /libvirtd/,
      retryable: true,
    });
    await t.rejects(
      hypervisor.subscribe(() => undefined),
      { code: 'HYPERVISOR_UNREACHABLE' },
    );
  });

  await t.test('children leave when they are idle, and stay while they are held', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri, idleMs: 100 });
    {
      using _warm = await hypervisor.warmUp();
      const held = hypervisor.pids;
      t.equal(held.length, 2, 'one for questions, one for long calls');
      await new Promise((resolve) => setTimeout(resolve, 300));
      t.same(hypervisor.pids, held);
    }
    await eventually(() => hypervisor.pids.length === 0);
    await hypervisor.machines();
    t.equal(hypervisor.pids.length, 1, 'and come back when needed');
  });

  await t.test('who stays ready has one child for questions, and another one when it is lost', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri, idleMs: 100 });
    {
      using _ready = await hypervisor.stayReady();
      const [first = 0] = await eventually(() => hypervisor.pids.length === 1 && hypervisor.pids);
      await new Promise((resolve) => setTimeout(resolve, 300));
      t.same(hypervisor.pids, [first], 'however long it is idle');
      process.kill(first, 'SIGKILL');
      await eventually(() => hypervisor.pids.length === 1 && !hypervisor.pids.includes(first));
    }
    await eventually(() => hypervisor.pids.length === 0);
    t.pass('and none when that is over');
  });

  await t.test(
    'who stays ready and listens to events has one child for both, except in a pause',
    async (t) => {
      await using hypervisor = new LibvirtHypervisor({ uri: lab.uri, idleMs: 100 });
      using _ready = await hypervisor.stayReady();
      const unsubscribe = await hypervisor.subscribe(() => undefined);
      const [listening = 0] = await eventually(() => hypervisor.pids.length === 1 && hypervisor.pids);
      await Promise.all([hypervisor.machines(), hypervisor.hostInfo(), hypervisor.machines()]);
      t.same(hypervisor.pids, [listening], 'it answers questions, one after the other');
      {
        using _warm = await hypervisor.warmUp();
        await hypervisor.machines();
        t.equal(hypervisor.pids.length, 3, 'events have their child to themselves');
      }
      await eventually(() => hypervisor.pids.length === 1);
      t.same(hypervisor.pids, [listening]);
      process.kill(listening, 'SIGKILL');
      await hypervisor.machines();
      t.pass('a question that meets its loss is answered all the same');
      await eventually(() => hypervisor.pids.length === 1 && !hypervisor.pids.includes(listening));
      const [again = 0] = hypervisor.pids;
      await hypervisor.machines();
      await unsubscribe();
      await eventually(() => hypervisor.pids.length === 1 && !hypervisor.pids.includes(again));
      t.pass('and who does not listen any more has one for questions');
    },
  );

  await t.test(
    'a libvirtd that was away is told to a listener whose child answers questions, too',
    async (t) => {
      await using hypervisor = new LibvirtHypervisor({ uri: lab.uri, idleMs: 100 });
      using _ready = await hypervisor.stayReady();
      const seen: string[] = [];
      await hypervisor.subscribe((event) => seen.push(event.kind));
      await eventually(() => hypervisor.pids.length === 1);
      await hypervisor.machines();
      await lab.killLibvirtd('SIGKILL');
      // It must not connect again by itself: it would not be registered for events any more.
      await t.rejects(hypervisor.machines(), { code: 'HYPERVISOR_UNREACHABLE' });
      await lab.startLibvirtd();
      await hypervisor.machines();
      await eventually(() => seen.includes('reconnected'), { timeoutMs: 30_000 });
      const { uuid } = await lab.createMachine({ name: 'sp-seen-again' }, { start: false });
      await lab.virsh('undefine', uuid);
      await eventually(() => seen.includes('lifecycle'));
      t.pass('and events come again');
    },
  );

  await t.test('a long call does not hold up questions or other machines', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri });
    const { uuid, name } = await lab.createMachine({ name: 'sp-stuck' });
    const other = await lab.createMachine({ name: 'sp-other' }, { start: false });
    const qemu = await lab.qemuPid(name);
    if (qemu === undefined) throw new Error('a started machine has a QEMU');
    process.kill(qemu, 'SIGSTOP');
    // Waits for an answer of QEMU's monitor, which does not come.
    const suspended = hypervisor.suspend(uuid);
    t.match(await hypervisor.status(other.uuid), { state: 'shut-off' });
    await hypervisor.start(other.uuid);
    await hypervisor.powerOff(other.uuid);
    process.kill(qemu, 'SIGCONT');
    await suspended;
    t.match(await hypervisor.status(uuid), { state: 'paused' });
    await hypervisor.powerOff(uuid);
  });

  await t.test('a QEMU that does not end by itself is killed', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri });
    const { uuid, name } = await lab.createMachine({ name: 'sp-deaf' });
    const qemu = await lab.qemuPid(name);
    if (qemu === undefined) throw new Error('a started machine has a QEMU');
    process.kill(qemu, 'SIGSTOP');
    await hypervisor.powerOff(uuid);
    t.match(await hypervisor.status(uuid), { state: 'shut-off' });
    t.equal(await lab.qemuPid(name), undefined);
  });

  await t.test('a save that is aborted leaves no file, and the machine runs on', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri });
    const machine = await lab.createMachine({ name: 'sp-abort', memoryMiB: 768 });
    await machine.waitUntilWriting();
    await machine.command('fill 500', 60_000);
    const definition = await correctedDefinition(hypervisor, machine.uuid);
    const file = join(lab.root, 'tmp', 'aborted.state');
    const aborter = new AbortController();
    const saving = hypervisor.save(machine.uuid, { file, definition, signal: aborter.signal });
    saving.catch(() => undefined);
    await eventually(async () => (await hypervisor.job(machine.uuid)).processedBytes > 0, { intervalMs: 2 });
    aborter.abort();
    await t.rejects(saving, { code: 'OPERATION_ABORTED' });
    await eventually(async () => (await hypervisor.status(machine.uuid)).state === 'running');
    t.notOk(existsSync(file), 'the unfinished state is gone');
    await hypervisor.powerOff(machine.uuid);
  });

  await t.test('a full file system is named, and the machine runs on', async (t) => {
    const { uuid, name } = await lab.createMachine({ name: 'sp-full' });
    const file = join(await lab.smallTmpfs(4), 'full.state');
    // Inside, because the file system is mounted only there.
    const { stdout } = await lab.run(process.execPath, [
      ...program('qemu:///system', saveProgram),
      uuid,
      file,
    ]);
    t.match(JSON.parse(stdout), {
      error: { code: 'NO_SPACE', hint: /free/ },
      status: { state: 'running', reason: 'save-canceled' },
    });
    t.notOk(existsSync(lab.outside(file)), 'the unfinished state is gone');
    await lab.virsh('destroy', name);
  });

  await t.test(
    'a hanging libvirtd ends a call with its deadline, and calls work when it goes on',
    async (t) => {
      const deadlines = { queryMs, changeMs: queryMs + 500 };
      await using hypervisor = new LibvirtHypervisor({ uri: lab.uri, deadlines });
      const { uuid } = await lab.createMachine({ name: 'sp-hang' });
      using _warm = await hypervisor.warmUp();
      const before = hypervisor.pids;
      {
        await using _stopped = await stopped(lab);
        const startMs = performance.now();
        const codes = await Promise.all([
          outcome(hypervisor.status(uuid)),
          outcome(hypervisor.machine(uuid)),
          outcome(hypervisor.suspend(uuid)),
        ]);
        const tookMs = performance.now() - startMs;
        t.same(codes, ['DEADLINE_EXCEEDED', 'DEADLINE_EXCEEDED', 'DEADLINE_EXCEEDED']);
        t.ok(tookMs < queryMs + 2_000, `all within their deadlines (${Math.round(tookMs)} ms)`);
      }
      t.match(await hypervisor.machine(uuid), { name: 'sp-hang' });
      t.notOk(
        hypervisor.pids.some((pid) => before.includes(pid)),
        'in other processes than before',
      );
      await hypervisor.powerOff(uuid);
    },
  );

  await t.test('a call without a near deadline ends too, by keepalive, when libvirtd hangs', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri, deadlines: { changeMs: 120_000 } });
    const { uuid } = await lab.createMachine({ name: 'sp-keepalive' }, { start: false });
    await hypervisor.setAutostart(uuid, false);
    await using _stopped = await stopped(lab);
    const startMs = performance.now();
    await t.rejects(hypervisor.start(uuid), { code: 'HYPERVISOR_UNREACHABLE', retryable: true });
    t.ok(performance.now() - startMs < 45_000, 'after five times five seconds and a bit');
  });

  await t.test('a libvirtd that dies in a call fails it at once, and the next call works', async (t) => {
    await using hypervisor = new LibvirtHypervisor({ uri: lab.uri });
    await hypervisor.machines();
    const libvirtd = await lab.libvirtdPid();
    process.kill(libvirtd, 'SIGSTOP');
    const call = hypervisor.machines();
    call.catch(() => undefined);
    await lab.killLibvirtd('SIGKILL');
    await t.rejects(call, { code: 'HYPERVISOR_UNREACHABLE', retryable: true });
    await lab.startLibvirtd();
    await hypervisor.machines();
  });

  await t.test('idle children do not keep the process alive, and none outlives it', async (t) => {
    const { stdout, exitCode } = await execa('node', program(lab.uri, 'print(hypervisor.pids);'), {
      timeout: 20_000,
    });
    t.equal(exitCode, 0);
    await noneLeft(parsePids(stdout));
    t.pass('the program ended and its children too');
  });

  await t.test('kill -9 of the process leaves no child, not even in the middle of a call', async (t) => {
    const child = execa('node', program(lab.uri, hangingCall), { reject: false, timeout: 60_000 });
    const output = await new Promise<string>((resolve) => {
      child.stdout.once('data', (chunk) => resolve(String(chunk)));
    });
    const pids = parsePids(output);
    t.equal(pids.length, 3, 'for events, questions and long calls');
    await using _stopped = await stopped(lab);
    child.stdin.write('go\n');
    await eventually(async () => (await Promise.all(pids.map(inSocketCall))).some(Boolean));
    child.kill('SIGKILL');
    await child;
    await noneLeft(pids);
    t.pass('all children are gone while libvirtd still hangs');
  });
});

/** Asks for two blocking calls once told to. */
const hangingCall = `
  print(hypervisor.pids);
  process.stdin.once('data', () => {
    void hypervisor.machines();
    void hypervisor.start('00000000-0000-4000-8000-000000000000');
  });
`;

/** Saves a machine and tells how that ended. */
const saveProgram = `
  const [uuid, file] = process.argv.slice(1);
  const definition = (await hypervisor.definition(uuid, 'migratable')).replaceAll('<backingStore/>', '');
  const error = await hypervisor.save(uuid, { file, definition }).catch(({ code, hint }) => ({ code, hint }));
  print({ error, status: await hypervisor.status(uuid) });
`;

/** Arguments for Node.js to run a program that has children for everything. */
function program(uri: string, body: string): string[] {
  const text = `
    import { LibvirtHypervisor } from ${JSON.stringify(moduleUrl.href)};
    const print = (value) => console.log(JSON.stringify(value));
    const hypervisor = new LibvirtHypervisor({ uri: ${JSON.stringify(uri)} });
    await hypervisor.subscribe(() => undefined);
    await hypervisor.warmUp();
    ${body}
  `;
  return ['--input-type=module', '--eval', text];
}

function parsePids(output: string): number[] {
  const pids: number[] = JSON.parse(output);
  return pids;
}

async function outcome(call: Promise<unknown>): Promise<string> {
  return call.then(
    () => 'answered',
    (error: HypervisorError) => error.code,
  );
}

async function noneLeft(pids: readonly number[]): Promise<void> {
  await eventually(async () => {
    const running = new Set(await readdir('/proc'));
    return !pids.some((pid) => running.has(String(pid)));
  });
}

/** Whether the main thread of a process waits in a poll of libvirt and not in Node.js's own event loop. */
async function inSocketCall(pid: number): Promise<boolean> {
  return (await readFile(`/proc/${pid}/wchan`, 'utf8')).includes('poll_schedule');
}

async function libvirtFixture(): Promise<HypervisorFixture> {
  const lab = await startLab();
  const hypervisor = new LibvirtHypervisor({ uri: lab.uri, deadlines: { queryMs } });
  const stateDir = join(lab.root, 'states');
  await mkdir(stateDir);
  let count = 0;
  return {
    hypervisor,
    stateDir,
    createMachine: async ({ volumes, running, guestAgent }) => {
      const specs = volumes.map(({ target, backing }) =>
        backing === undefined
          ? { target, prefillMiB: 8 }
          : { target, backing: { path: backing, format: 'qcow2' as const } },
      );
      const name = `sp-conformance-${(count += 1)}`;
      const machine = await lab.createMachine({ name, volumes: specs, guestAgent }, { start: running });
      if (running && guestAgent === true)
        await eventually(async () => /guest_agent.0' state='connected'/.test(await machine.xml()));
      return { uuid: machine.uuid, name, imagePath: (target) => machine.imagePath(target) };
    },
    externally: {
      stall: { deadlineMs: queryMs, begin: () => stopped(lab) },
      restartHypervisor: async () => {
        await lab.killLibvirtd('SIGKILL');
        await lab.startLibvirtd();
      },
      killQemu: (name) => lab.killQemu(name),
    },
    [Symbol.asyncDispose]: async () => {
      await hypervisor[Symbol.asyncDispose]();
      await lab.stop();
    },
  };
}

/** libvirtd neither answers nor dies until disposed. */
async function stopped(lab: Lab): Promise<AsyncDisposable> {
  const pid = await lab.libvirtdPid();
  process.kill(pid, 'SIGSTOP');
  return {
    [Symbol.asyncDispose]: () => {
      process.kill(pid, 'SIGCONT');
      return Promise.resolve();
    },
  };
}
