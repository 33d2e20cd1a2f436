import { join } from 'node:path';
import { isFileExtra, type Manifest, type ManifestExtra } from '../storage/manifest.ts';
import { isTemplate } from '../storage/template.ts';

/**
 * What to type on a bad day, without Stillpoint: `cp`, `qemu-img` and `virsh` alone. Every path is quoted for the
 * shell, for it may come from a manifest that somebody else has written.
 */
export function restoreByHand(directory: string, manifest: Manifest): readonly string[] {
  const from = (file: string): string => quote(join(directory, file));
  const name = quote(manifest.machine.name);
  if (isTemplate(manifest)) return templateByHand(from, manifest);
  const lines = ['# the machine must be off, and its present images kept aside', `virsh destroy ${name}`];
  for (const volume of manifest.volumes) {
    const source = quote(volume.source);
    const { uid, gid, mode } = volume.owner;
    if (volume.kind !== undefined) {
      lines.push(
        `# ${volume.target} was a ${volume.kind} volume; onto a device as large (-O as the machine opens it):`,
        `qemu-img convert -n -f qcow2 -O raw ${from(volume.file)} ${source}`,
      );
      continue;
    }
    const { format } = volume;
    // Of other formats nothing can be checked.
    if (format === 'qcow2') lines.push(`qemu-img check ${from(volume.file)}`);
    lines.push(
      `mv ${source} ${quote(`${volume.source}.before-restore`)}`,
      `cp --sparse=always ${from(volume.file)} ${source}`,
    );
    if (format === 'qcow2')
      lines.push(
        `# where ${from(manifest.definition.file)} says type='raw' for ${volume.target}, instead of cp:`,
        `#   qemu-img convert -f qcow2 -O raw ${from(volume.file)} ${source}`,
      );
    lines.push(`chown ${uid}:${gid} ${source}; chmod ${mode.toString(8)} ${source}`);
  }
  for (const extra of manifest.extras) lines.push(...extraByHand(extra, from(extra.file)));
  lines.push(
    '# the stored definition carries no secrets: passwords must be entered again',
    `virsh define ${from(manifest.definition.file)}`,
  );
  if (manifest.memory === undefined) {
    lines.push(`virsh start ${name}`);
    return lines;
  }
  const state = from(manifest.memory.file);
  return [
    ...lines,
    '# on at the very instant; only once, and only on the images just copied: never again after the machine ran',
    `virsh restore --paused ${state}`,
    `virsh domblklist ${name}`,
    `virsh resume ${name}`,
    '# or cold, without the memory',
    `virsh start ${name}`,
  ];
}

/** A kernel or firmware that is there may be another machine's too: it stays. */
function extraByHand(extra: ManifestExtra, from: string): readonly string[] {
  if (isFileExtra(extra)) {
    const replace = extra.kind === 'nvram' || extra.kind === 'tpm' ? '' : ' -n';
    return [`cp${replace} ${from} ${quote(extra.source)}`];
  }
  const name = quote(extra.name);
  if (extra.kind === 'network') return [`virsh net-info ${name} || virsh net-define ${from}`];
  if (extra.kind === 'pool') return [`virsh pool-info ${name} || virsh pool-define ${from}`];
  return [];
}

/** Of a template there is the image, which is qcow2 in the storage whatever it was. */
function templateByHand(from: (file: string) => string, manifest: Manifest): readonly string[] {
  return [
    '# a template: no machine runs it, and images that stand on it need exactly its content',
    ...manifest.volumes.flatMap((volume) => [
      `cp --sparse=always ${from(volume.file)} ${quote(volume.source)}`,
      `# where ${from(manifest.definition.file)} says type='raw': qemu-img convert -f qcow2 -O raw, instead of cp`,
    ]),
  ];
}

/** A word for the shell. Control characters in it are shown harmless by whoever prints it. */
export function quote(word: string): string {
  return /^[A-Za-z0-9_./:@%+=~-]+$/.test(word) && !word.startsWith('-')
    ? word
    : `'${word.replaceAll("'", String.raw`'\''`)}'`;
}
