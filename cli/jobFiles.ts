import { exists } from '../common/files.ts';

/** A file that a backup job uses or has made. */
export interface JobFile {
  readonly role: 'image' | 'frozen' | 'overlay' | 'scratch' | 'memory' | 'nvram' | 'stored';
  /** Of an image, overlay, …: the volume's target. */
  readonly target: string | null;
  /** Of what is stored: where. */
  readonly storage: string | null;
  /** Of what is stored: its name in the backup. */
  readonly path: string;
  readonly sizeBytes: number | null;
  /** `null`: not looked at. */
  readonly present: boolean | null;
}

/** What the facts of a backup job, of whatever mode, say of files. */
interface FactsOfFiles {
  readonly plan?:
    | {
        readonly volumes: readonly {
          readonly target: string;
          readonly image: string;
          readonly frozen?: string;
          readonly overlay?: string;
          readonly scratch?: string | null;
        }[];
        readonly stateFile?: string;
        readonly stowedStateFile?: string | null;
        readonly nvram: { readonly source: string } | null;
      }
    | undefined;
  readonly retained?:
    | Readonly<Record<string, Readonly<Record<string, { readonly sizeBytes: number }>>>>
    | undefined;
}

/** The files of a backup job: those of the machine, those that it works with and whether they are there, and what it has stored. */
export async function filesOfBackup({ plan, retained }: FactsOfFiles): Promise<readonly JobFile[]> {
  const files: JobFile[] = [];
  const add = async (
    role: JobFile['role'],
    target: string | null,
    path: string | null | undefined,
  ): Promise<void> => {
    if (path === null || path === undefined) return;
    files.push({ role, target, storage: null, path, sizeBytes: null, present: await exists(path) });
  };
  for (const { target, image, frozen, overlay, scratch } of plan?.volumes ?? []) {
    await add('image', target, image);
    await add('frozen', target, frozen);
    await add('overlay', target, overlay);
    await add('scratch', target, scratch);
  }
  await add('memory', null, plan?.stateFile);
  await add('memory', null, plan?.stowedStateFile);
  await add('nvram', null, plan?.nvram?.source);
  for (const [storage, stored] of Object.entries(retained ?? {}))
    for (const [path, { sizeBytes }] of Object.entries(stored))
      files.push({ role: 'stored', target: null, storage, path, sizeBytes, present: null });
  return files;
}
