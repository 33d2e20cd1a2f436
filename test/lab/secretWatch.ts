import { readFile } from 'node:fs/promises';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { keepSecret, noteSaid } from '../secrets.ts';
import type { BackgroundRun, RunResult } from './libvirtd.ts';

/** Where secrets of a storage are. */
const storageSchema = z.looseObject({
  keyFile: z.string().optional(),
  credentialsFile: z.string().optional(),
});
const recoveryKey = /\b(?:[0-9A-Z]{4}-){13}[0-9A-Z]{4}\b/g;

/** Watches over what the programs of an agent say; it knows the secrets of its storages by their files. */
export class SecretWatch {
  #files: readonly string[] = [];

  /** Takes note of the storages of a configuration. */
  configure(storages: Readonly<Record<string, unknown>>): void {
    this.#files = Object.values(storages).flatMap((storage) => {
      const { keyFile, credentialsFile } = storageSchema.safeParse(storage).data ?? {};
      return [keyFile, credentialsFile].filter((file) => file !== undefined);
    });
  }

  /** The same run, whose result is there only when no secret shows in it. Its `done` may reject with SecretShown. */
  over(run: BackgroundRun, args: readonly string[]): BackgroundRun {
    const done = run.done.then(async (result) => {
      await this.#note(args, result);
      return result;
    });
    return { ...run, done, kill9: () => run.kill9().then(() => done) };
  }

  async #note(args: readonly string[], { stdout, stderr }: RunResult): Promise<void> {
    for (const file of this.#files) await keepSecretsOf(file);
    // They are printed once, by who makes them.
    const makesKeys = args[0] === 'storage' && (args[1] === 'init' || args[1] === 'keys');
    if (makesKeys) for (const [key] of stdout.matchAll(recoveryKey)) keepSecret('recovery key', key);
    const shows = makesKeys ? 'recovery key' : undefined;
    noteSaid(`stdout of ${args.join(' ')}`, stdout, { shows });
    noteSaid(`stderr of ${args.join(' ')}`, stderr);
  }
}

async function keepSecretsOf(file: string): Promise<void> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    // A storage that is not made yet has none, and some tests lose theirs.
    if (isErrno(error, 'ENOENT') || isErrno(error, 'EISDIR') || isErrno(error, 'ENOTDIR')) return;
    throw error;
  }
  const [, s3Secret] = /^AWS_SECRET_ACCESS_KEY=(.+)$/m.exec(text) ?? [];
  if (s3Secret !== undefined) keepSecret('S3 secret', s3Secret);
  const [key] = /^[0-9a-f]{64}/.exec(text) ?? [];
  if (key !== undefined) keepSecret('repository key', key);
}
