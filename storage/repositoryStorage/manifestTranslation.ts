import { formatPointInTime } from '../../common/time.ts';
import { artifactNames } from '../directory/names.ts';
import { isFileExtra, type Manifest } from '../manifest.ts';
import type { BackupManifest, ContentReference } from '../repository/backupManifest.ts';

/*
 * The agent describes a backup by files with digests, a repository by streams with roots. A stream's root takes the
 * place of the digest; the names of the files are what they are called once they are copied out.
 */

/** What the agent knows a stored backup by. */
export function toManifest(stored: BackupManifest): Manifest {
  const { requires: _requires, volumes, memory, definition, extras, ...common } = stored;
  const names = artifactNames(stored.machine.name, formatPointInTime(new Date(stored.pointInTime)));
  return {
    ...common,
    volumes: volumes.map(({ content, ...volume }) => ({
      ...volume,
      file: names.volume(volume.target, volume.format),
      sha256: content.root,
    })),
    ...(memory === undefined
      ? {}
      : {
          memory: {
            file: names.memory,
            sizeBytes: memory.content.sizeBytes,
            sha256: memory.content.root,
            running: memory.running,
          },
        }),
    definition: {
      file: names.definition,
      sha256: definition.content.root,
      autostart: definition.autostart,
    },
    extras: extras.map(({ content, ...extra }) => {
      const stream = { sizeBytes: content.sizeBytes, sha256: content.root };
      if (!('source' in extra)) return { ...extra, ...stream, file: names.extra(extra.kind, extra.name) };
      const file = extra.kind === 'nvram' ? names.nvram : names.extra(extra.kind, extra.source);
      return { ...extra, ...stream, file };
    }),
  };
}

/**
 * The manifest that a repository keeps.
 * @param contentOf finds the stream that a root belongs to
 */
export async function toBackupManifest(
  manifest: Manifest,
  contentOf: (root: string) => Promise<ContentReference>,
): Promise<BackupManifest> {
  const { volumes, memory, definition, extras, ...common } = manifest;
  const stored: BackupManifest['volumes'] = [];
  for (const { file: _file, sha256, ...volume } of volumes)
    stored.push({ ...volume, content: await contentOf(sha256) });
  const others: BackupManifest['extras'] = [];
  for (const extra of extras) {
    const content = await contentOf(extra.sha256);
    if (isFileExtra(extra)) others.push({ kind: extra.kind, source: extra.source, content });
    else others.push({ kind: extra.kind, name: extra.name, content });
  }
  return {
    ...common,
    requires: [],
    volumes: stored,
    ...(memory === undefined
      ? {}
      : { memory: { content: await contentOf(memory.sha256), running: memory.running } }),
    definition: { content: await contentOf(definition.sha256), autostart: definition.autostart },
    extras: others,
  };
}
