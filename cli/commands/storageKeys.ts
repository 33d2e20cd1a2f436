import { resolve } from 'node:path';
import type { ListedSlot, RecoveredKey, RepositoryKeys, RotatedKeys } from '../../agent/repositoryKeys.ts';
import type { Secret } from '../../storage/repository/keySlot.ts';
import type { StoredSlot } from '../../storage/repository/keySlots.ts';
import { parseRecoveryKey } from '../../storage/repository/recoveryKey.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { CliError } from '../errors.ts';
import { longNameOf, type Options } from '../options.ts';
import { styled, tableLines, type Text } from '../output.ts';
import { reading } from '../session.ts';
import type { Terminal } from '../terminal.ts';

/** Of these one is done at a time. */
const changes = ['addRecovery', 'addFile', 'addPassphrase', 'recover', 'remove', 'rotate'] as const;

/** Options that go with one of them. */
const companions = {
  force: ['remove'],
  passphrase: ['recover'],
  writeOnly: ['addFile', 'recover'],
  yes: ['rotate'],
} as const;

/** Whoever has the repository can guess as long as he likes; scrypt makes each guess take 0.4 s. */
const passphraseLengthMin = 12;

/** What was done, for people and for machines. */
interface Outcome {
  readonly recoveryKey?: string;
  readonly recovered?: RecoveredKey;
  readonly rotated?: RotatedKeys;
}

/** `stillpoint storage keys NAME`. */
export const storageKeys: RunVerb = (cli, [name = ''], options) => {
  checkOptions(options);
  return reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    const { keys } = agent.repositories;
    const { recoveryKey, recovered, rotated } = await change(cli, keys, name, options);
    const slots = await keys.list(name);
    if (terminal.json) {
      terminal.object({
        storage: name,
        keys: slots.map(slotObject),
        recoveryKey: recoveryKey ?? null,
        recovered: recovered ?? null,
        rotated:
          rotated === undefined
            ? null
            : { generation: rotated.generation, closed: rotated.closed.map(slotObject) },
      });
      return 0;
    }
    if (recovered !== undefined) sayRecovered(terminal, name, recovered);
    if (rotated !== undefined) {
      terminal.out(`storage ${name} has new keys (generation ${rotated.generation})`);
      terminal.out('');
    }
    if (recoveryKey !== undefined) {
      terminal.out('the recovery key, which is shown this once:');
      terminal.out('');
      terminal.out('  ', styled('bold', recoveryKey));
      terminal.out('');
    }
    for (const line of slotLines(slots)) terminal.out(...line);
    for (const { slotId, problem } of slots)
      if (problem !== null)
        terminal.warning(
          `${problem}; as it is it opens nothing; to take it away: stillpoint storage keys ${name} --remove ${slotId}`,
        );
    return 0;
  });
};

/** @throws CliError USAGE */
function checkOptions(options: Options): void {
  const hint = 'stillpoint storage keys --help';
  if (changes.filter((option) => options.typed.includes(option)).length > 1)
    throw new CliError('USAGE', 'change one thing at a time', hint);
  for (const [option, others] of Object.entries(companions))
    if (options.flag(option) && !others.some((other) => options.typed.includes(other)))
      throw new CliError(
        'USAGE',
        `${longNameOf(option)} goes with ${others.map(longNameOf).join(' or ')}`,
        hint,
      );
}

/** Does what was asked for, or nothing. */
async function change(cli: Cli, keys: RepositoryKeys, name: string, options: Options): Promise<Outcome> {
  const { terminal } = cli;
  const file = options.text('addFile');
  const remove = options.text('remove');
  const access = options.flag('writeOnly') ? ({ access: 'write' } as const) : {};
  if (file !== undefined) await keys.addFile(name, resolve(file), access);
  if (remove !== undefined) await keys.remove(name, remove, { force: options.flag('force') });
  if (options.flag('addPassphrase')) await keys.addPassphrase(name, await newPassphrase(terminal));
  if (options.flag('addRecovery')) return { recoveryKey: await keys.addRecoveryKey(name) };
  if (options.flag('recover')) {
    const secret = await askSecret(cli, options);
    return { recovered: await keys.recover(name, secret, access) };
  }
  if (options.flag('rotate')) return rotate(cli, keys, name, options);
  return {};
}

async function rotate(cli: Cli, keys: RepositoryKeys, name: string, options: Options): Promise<Outcome> {
  const { terminal } = cli;
  const others = await keys.others(name);
  if (others.length > 0) {
    terminal.err(`these open storage ${name} no more once it has new keys:`);
    for (const line of slotLines(others)) terminal.err(...line);
    terminal.err(
      'hosts and people who need it are given a key again afterwards (--add-file, --add-passphrase); a new recovery key is printed where there is one',
    );
    await confirm(cli, options);
  }
  const rotated = await keys.rotate(name);
  const { recoveryKey } = rotated;
  return recoveryKey === null ? { rotated } : { rotated, recoveryKey };
}

/** @throws CliError USAGE */
async function newPassphrase(terminal: Terminal): Promise<string> {
  const [passphrase = '', again] = terminal.isInteractive
    ? await terminal.askSecrets('The new passphrase:', 'Once more:')
    : await terminal.askSecrets('The new passphrase:');
  if (passphrase.length < passphraseLengthMin)
    throw new CliError(
      'USAGE',
      `a passphrase has at least ${passphraseLengthMin} characters: whoever has the repository can guess as long as he likes`,
      'six words that were drawn by lot are good and can be remembered',
    );
  if (again !== undefined && again !== passphrase)
    throw new CliError('USAGE', 'the two are not the same; nothing was done');
  return passphrase;
}

async function askSecret({ terminal }: Cli, options: Options): Promise<Secret> {
  if (!options.flag('passphrase'))
    return { kind: 'recovery', key: parseRecoveryKey(await terminal.ask('The recovery key:')) };
  const [passphrase = ''] = await terminal.askSecrets('The passphrase:');
  return { kind: 'passphrase', passphrase };
}

function slotObject({ slotId, slot, problem, isOwn }: ListedSlot): unknown {
  return {
    id: slotId,
    kind: slot?.kind ?? null,
    access: slot === null ? null : accessOf(slot),
    opensHere: isOwn,
    label: slot?.label ?? null,
    createdAt: slot?.createdAt ?? null,
    problem,
  };
}

function slotLines(slots: readonly ListedSlot[]): readonly (readonly Text[])[] {
  return tableLines(
    ['ID', 'KIND', 'ACCESS', 'THIS HOST', 'LABEL', 'MADE'].map((title) => ({ title })),
    slots.map(({ slotId, slot, isOwn }): readonly Text[] =>
      slot === null
        ? [slotId, styled('red', 'unusable'), '', '', '', '']
        : [slotId, slot.kind, accessOf(slot), isOwn ? 'opens it' : '-', slot.label, slot.createdAt],
    ),
  );
}

function accessOf({ access }: NonNullable<StoredSlot['slot']>): string {
  return access === 'write' ? 'write only' : 'all';
}

function sayRecovered(
  terminal: Terminal,
  name: string,
  { keyFile, keyFileMade, slotId, lostSlotIds }: RecoveredKey,
): void {
  terminal.out(
    `storage ${name} opens again with ${keyFile}${keyFileMade ? ', which was made' : ''} (key slot ${slotId}); keep a copy of it elsewhere`,
  );
  for (const lost of lostSlotIds)
    terminal.warning(
      `the key file that this host had before still opens it; if it is lost for good, or somebody else may have it: stillpoint storage keys ${name} --remove ${lost}`,
    );
  terminal.out('');
}
