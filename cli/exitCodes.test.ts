import { readdir, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import t from 'tap';
import { combinedExitCode, exitCodeOf, exitCodeOfJob, exitCodes } from './exitCodes.ts';

const root = resolve(import.meta.dirname, '..');

/** Every code in every `type …ErrorCode = 'A' | 'B'` and every `StillpointError<'A'>` of the product. */
async function codesInSources(): Promise<ReadonlyMap<string, string>> {
  const codes = new Map<string, string>();
  for (const directory of ['agent', 'cli', 'common', 'config', 'controller', 'nbd', 'storage']) {
    for (const name of await readdir(join(root, directory), { recursive: true })) {
      if (!name.endsWith('.ts') || name.endsWith('.test.ts')) continue;
      const source = await readFile(join(root, directory, name), 'utf8');
      const text = source.replaceAll(/\/\*[^]*?\*\/|\/\/.*/g, '');
      const unions = text.matchAll(/type \w+ErrorCode =([^;]*);|extends StillpointError<('[^>]*)>/g);
      for (const [, union = '', literal = ''] of unions) {
        for (const [, code = ''] of `${union}${literal}`.matchAll(/'([A-Z_]+)'/g)) codes.set(code, name);
      }
    }
  }
  return codes;
}

void t.test('every error code of the product has an exit code, and no other has', async (t) => {
  const codes = await codesInSources();
  t.ok(codes.size > 60, `${codes.size} codes were found`);
  t.same(Object.keys(exitCodes).toSorted(), [...codes.keys()].toSorted());
});

void t.test('the exit code tells what to do next', async (t) => {
  const samples = {
    CONFIG_INVALID: 2,
    MACHINE_NOT_FOUND: 4,
    BACKUP_NOT_FOUND: 4,
    BACKUP_DAMAGED: 5,
    STORAGE_FULL: 6,
    MACHINE_BUSY: 7,
    VOLUME_RAW: 8,
    MACHINE_OFF: 8,
    UNFINISHED_JOB: 9,
    CANCELLED: 130,
    INTERNAL_ERROR: 1,
    FROM_ANOTHER_VERSION: 1,
    toString: 1,
  };
  for (const [code, exit] of Object.entries(samples)) t.equal(exitCodeOf(code), exit, code);
});

void t.test('a job that was left with work needs an operator, however it failed', async (t) => {
  const error = { code: 'STORAGE_FULL', message: '', retryable: false };
  t.equal(exitCodeOfJob({ state: 'failed', holdsMachine: true, error }), 9);
  t.equal(exitCodeOfJob({ state: 'failed', holdsMachine: false, error }), 6);
  t.equal(exitCodeOfJob({ state: 'failed', holdsMachine: false, error: null }), 1);
  t.equal(exitCodeOfJob({ state: 'cancelled', holdsMachine: false, error: null }), 130);
  t.equal(exitCodeOfJob({ state: 'finished', holdsMachine: false, error: null }), 0);
});

void t.test('several machines: partly done is 3, unfinished and cancelled work show through', async (t) => {
  t.equal(combinedExitCode([]), 0);
  t.equal(combinedExitCode([0, 0]), 0);
  t.equal(combinedExitCode([8]), 8);
  t.equal(combinedExitCode([0, 8]), 3);
  t.equal(combinedExitCode([8, 8]), 8);
  t.equal(combinedExitCode([8, 4]), 1);
  t.equal(combinedExitCode([0, 130, 4]), 130);
  t.equal(combinedExitCode([0, 130, 9]), 9);
});
