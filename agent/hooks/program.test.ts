import { chmod, chown, mkdir, rename, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { eventually } from '../../test/lab/eventually.ts';
import { processStartTicks } from '../jobs/owner.ts';
import { HookPlace } from './fixture.ts';
import { type Program, runProgram } from './program.ts';
import { requireSafeProgram } from './safeProgram.ts';

function programOf(command: readonly string[], changes: Partial<Program> = {}): Program {
  return {
    command,
    environment: { PATH: '/usr/bin:/bin' },
    deadlineMs: 20_000,
    signal: new AbortController().signal,
    onStarted: () => undefined,
    ...changes,
  };
}

void t.test(
  'a program gets its arguments as they are, an environment of its own, and nothing to read',
  async (t) => {
    await using place = await HookPlace.make();
    const program = await place.program(
      'echo "$1"; echo "$MINE-$HOME"; cat; echo to the other output >&2; exit 3',
    );
    const ended = await runProgram(
      programOf([program, '$(id); "quoted" *'], { environment: { PATH: '/usr/bin:/bin', MINE: 'yes' } }),
    );
    t.match(ended, { exitCode: 3, killedBy: null, isLate: false });
    t.match(ended.output, /^\$\(id\); "quoted" \*\nyes-\n/);
    t.match(ended.output, /to the other output/);
  },
);

void t.test('of what it prints the last is kept, without secrets and control characters', async (t) => {
  await using place = await HookPlace.make();
  const program = await place.program(
    `i=0; while [ $i -lt 20000 ]; do echo "password=early$i"; i=$((i+1)); done; printf 'token=hidden\\n\\033[31mdone\\n'`,
  );
  const { output } = await runProgram(programOf([program]));
  t.ok(output.length <= 4097, `${output.length} characters`);
  t.match(output, /token=\[secret\]\n\[31mdone$/);
  t.notMatch(output, /early|hidden/);
});

for (const [how, end] of [
  ['its deadline', (): Partial<Program> => ({ deadlineMs: 300 })],
  ['an abort', (): Partial<Program> => ({ signal: AbortSignal.timeout(300) })],
] as const)
  void t.test(`${how} ends it with all that it has started, also what does not want to`, async (t) => {
    await using place = await HookPlace.make();
    const program = await place.program(
      `trap '' TERM; sleep 1000 & echo $! > '${place.file('pids')}'; echo $$ >> '${place.file('pids')}'; wait; sleep 1000`,
    );
    const ended = await runProgram(programOf([program], end()));
    t.match(ended, { exitCode: null, killedBy: 'SIGKILL', isLate: how === 'its deadline' });
    const pids = await place.lines('pids');
    t.equal(pids.length, 2);
    await eventually(() => pids.every((pid) => processStartTicks(Number(pid)) === undefined));
  });

void t.test('what a program has left behind in its group goes with its end', async (t) => {
  await using place = await HookPlace.make();
  const program = await place.program(`sleep 1000 & echo $! > '${place.file('pids')}'; exit 0`);
  t.match(await runProgram(programOf([program])), { exitCode: 0, isLate: false });
  const [pid] = await place.lines('pids');
  await eventually(() => processStartTicks(Number(pid)) === undefined);
});

void t.test('one that cannot be started, or not be written down, is told', async (t) => {
  await using place = await HookPlace.make();
  await t.rejects(runProgram(programOf(['/nowhere/at/all'])), { code: 'ENOENT' });
  const program = await place.program(`echo $$ > '${place.file('pids')}'; sleep 1000`);
  const failure = new Error('the journal is full');
  const fails = (): never => {
    throw failure;
  };
  await t.rejects(runProgram(programOf([program], { onStarted: fails })), failure);
});

void t.test('only what nobody but root can have put there is run', async (t) => {
  await using place = await HookPlace.make();
  const path = await place.program('true');
  await requireSafeProgram(path);
  const refused = (message: RegExp) => ({ code: 'HOOK_UNSAFE', message });
  for (const mode of [0o775, 0o757]) {
    await chmod(path, mode);
    await t.rejects(requireSafeProgram(path), refused(/others than root may write to .*hook-1/));
  }
  await chmod(path, 0o644);
  await t.rejects(requireSafeProgram(path), refused(/it is no program/));
  await chmod(path, 0o755);
  await chown(path, 65_534, 0);
  await t.rejects(requireSafeProgram(path), refused(/does not belong to root/));
  await chown(path, 0, 0);
  await chmod(place.directory, 0o777);
  await t.rejects(requireSafeProgram(path), refused(/others than root may write to .*sp-hooks/));
  await chmod(place.directory, 0o755);
  const below = join(place.directory, 'below');
  await mkdir(below);
  await rename(path, join(below, 'hook'));
  await symlink(below, join(place.directory, 'link'));
  await t.rejects(requireSafeProgram(join(place.directory, 'link', 'hook')), refused(/symbolic link/));
  await t.rejects(requireSafeProgram(join(below, 'gone')), refused(/cannot be looked at/));
  await t.rejects(requireSafeProgram(below), refused(/it is no program/));
});
