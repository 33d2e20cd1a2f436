import path from 'node:path';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { type Manifest, manifestSchema } from '../../storage/manifest.ts';
import { type Lab, type LabAgent, type LabMachine, startLab } from '../lab/lab.ts';

const stored = z.looseObject({ storages: z.array(z.looseObject({ directory: z.string() })) });

/** Two guests that write in turn: the second writes number n when the first has, and the first n + 1 when the second has. */
class Turns implements AsyncDisposable {
  readonly #machines: readonly LabMachine[];
  readonly #first: readonly number[];
  #stopped = false;
  #steps = 0;
  readonly #running: Promise<void>;

  private constructor(machines: readonly LabMachine[], first: readonly number[]) {
    this.#machines = machines;
    this.#first = first;
    this.#running = this.#run();
  }

  static async start(machines: readonly LabMachine[]): Promise<Turns> {
    const first: number[] = [];
    for (const machine of machines) first.push((await machine.pauseWriter()).sequence);
    return new Turns(machines, first);
  }

  get steps(): number {
    return this.#steps;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      for (const machine of this.#machines) await machine.command('step');
      this.#steps += 1;
    }
  }

  /** How many turns each has had in what was stored of it. */
  async turnsIn(lab: Lab, images: readonly string[]): Promise<readonly number[]> {
    const turns: number[] = [];
    for (const [index, image] of images.entries())
      turns.push((await lab.readDisk(image)).highestSequence - (this.#first[index] ?? 0));
    return turns;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }
}

async function requireRunning(t: Test, machines: readonly LabMachine[]): Promise<void> {
  for (const machine of machines) {
    t.match(await machine.state(), /^running/);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
  }
}

void t.test('machines that are backed up together have one T1', async (t) => {
  await using lab = await startLab();
  const agent: LabAgent = await lab.installAgent();
  const machines = await Promise.all(
    ['sp-one', 'sp-two'].map((name) => lab.createMachine({ name, memoryMiB: 96 })),
  );
  const frozen = await lab.createMachine({ name: 'sp-frozen', memoryMiB: 96, guestAgent: true });
  for (const machine of machines) await machine.waitUntilWriting();
  const names = machines.map(({ name }) => name);

  /** Backs them up while they write in turn. @returns the manifests, and what it said */
  const backUp = async (
    t: Test,
    turns: Turns,
    ...options: readonly string[]
  ): Promise<{ readonly manifests: readonly Manifest[]; readonly stderr: string }> => {
    const before = turns.steps;
    const result = await agent.run(['backup', ...names, '--together', '--json', ...options]);
    t.equal(result.exitCode, 0, result.stderr);
    t.ok(turns.steps > before, 'they wrote meanwhile');
    const backups = objectsIn(result.stdout).map((one) => stored.parse(one));
    const manifests = backups.map((backup) => manifestSchema.parse(manifestOf(backup)));
    t.equal(new Set(manifests.map(({ pointInTime }) => pointInTime)).size, 1);
    t.equal(new Set(manifests.map(({ group }) => group?.id)).size, 1);
    t.same(manifests[0]?.group?.machines, names);
    for (const { pauseMs } of manifests) t.ok((pauseMs ?? 0) > 0, `paused ${pauseMs} ms`);
    const images = backups.map(({ storages }, index) =>
      path.join(storages[0]?.directory ?? '', manifests[index]?.volumes[0]?.file ?? ''),
    );
    const [one = 0, two = 0] = await turns.turnsIn(lab, images);
    t.ok(one - two === 0 || one - two === 1, `${one} turns of the first, ${two} of the second`);
    const pauses = manifests.map(({ pauseMs }) => pauseMs).join(' and ');
    t.comment(`${manifests[0]?.mode}: ${one} and ${two} turns, paused ${pauses} ms`);
    return { manifests, stderr: result.stderr };
  };

  await t.test('what one has written in answer to the other is in both backups, or in none', async (t) => {
    await using turns = await Turns.start(machines);
    for (const round of ['full', 'increment'])
      for (const { mode, volumes } of (await backUp(t, turns)).manifests)
        t.match({ mode, read: volumes[0]?.read }, { mode: 'disk', read: round });
  });
  await requireRunning(t, machines);

  await t.test('also with their memory, where that is asked for', async (t) => {
    await using turns = await Turns.start(machines);
    const { manifests, stderr } = await backUp(t, turns, '--mode', 'live');
    t.match(stderr, /sp-one, sp-two will stand still together until the memory .* \(192 MiB\)/);
    for (const manifest of manifests) t.match(manifest, { mode: 'live', memory: { running: true } });
  });
  await requireRunning(t, machines);

  await t.test('from which each goes on as if nothing had been', async (t) => {
    for (const name of names) {
      const result = await agent.run(['restore', `${name}@latest`, '--in-place', '--yes']);
      t.equal(result.exitCode, 0, result.stderr);
    }
    await requireRunning(t, machines);
  });

  await t.test('when one of them cannot, none is backed up', async (t) => {
    const count = (await agent.run(['list', '--json'])).stdout;
    await machines[1]?.destroy();
    const result = await agent.run(['backup', ...names, '--together']);
    t.not(result.exitCode, 0);
    t.match(result.stderr, /^GROUP_FAILED: sp-one: .*sp-two.* is off/m);
    t.equal((await agent.run(['list', '--json'])).stdout, count);
    t.match(await machines[0]?.state(), /^running/);
    await machines[1]?.start();
    await machines[1]?.waitUntilWriting();
  });

  await t.test('a guest whose agent freezes it is thawed when all have begun', async (t) => {
    await frozen.waitUntilWriting();
    const result = await agent.run(['backup', 'sp-frozen', 'sp-one', '--together', '--json']);
    t.equal(result.exitCode, 0, result.stderr);
    t.match(objectsIn(result.stdout), [{ consistency: 'filesystem' }, { consistency: 'crash' }]);
    t.notOk((await frozen.waitUntilWriting({ rounds: 5 })).frozen);
    await requireRunning(t, [frozen]);
  });

  await t.test(
    'an agent that dies while they stand still leaves them to the next one, which lets them run',
    async (t) => {
      for (const point of ['backup/begin/held', 'backup/after:begin', 'backup/snapshot/held']) {
        const mode = point.startsWith('backup/snapshot') ? 'live' : 'disk';
        const killed = await agent.run(['backup', ...names, '--together', '--mode', mode], {
          env: { STILLPOINT_TEST_CRASH_AT: point },
        });
        t.not(killed.exitCode, 0, point);
        await agent.run(['agent', '--once']);
        await requireRunning(t, machines);
        t.notMatch(await lab.virsh('domjobinfo', 'sp-one'), 'Backup');
      }
    },
  );
});

/** The fields of the manifest among those that `backup --json` prints. */
function manifestOf(backup: object): object {
  const known = ['state', 'problem', 'protected', 'storages', 'storageChoices', 'warnings'];
  return Object.fromEntries(Object.entries(backup).filter(([key]) => !known.includes(key)));
}

function objectsIn(printed: string): readonly object[] {
  const texts = printed.split('\n').filter((line) => line !== '');
  return texts.map((text) => z.looseObject({}).parse(JSON.parse(text)));
}
