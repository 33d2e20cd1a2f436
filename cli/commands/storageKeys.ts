import { resolve } from 'node:path';
import type { RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import type { RecoveredKey } from '../../agent/repositories.ts';
import { styled, type Text } from '../output.ts';
import type { Terminal } from '../terminal.ts';
import { reading } from '../session.ts';

/** `stillpoint storage keys NAME`. */
export const storageKeys: RunVerb = (cli, [name = ''], options) => {
  const wanted = ['addRecovery', 'addFile', 'recover', 'remove'].filter((option) =>
    options.typed.includes(option),
  );
  if (wanted.length > 1)
    throw new CliError('USAGE', 'add or remove one at a time', 'stillpoint storage keys --help');
  if (options.flag('force') && !options.typed.includes('remove'))
    throw new CliError('USAGE', '--force goes with --remove', 'stillpoint storage keys --help');
  return reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    const { repositories } = agent;
    const file = options.text('addFile');
    const remove = options.text('remove');
    const recovered = options.flag('recover')
      ? await repositories.recover(name, await terminal.ask('The recovery key:'))
      : null;
    const recoveryKey = options.flag('addRecovery') ? await repositories.addRecoveryKey(name) : null;
    if (file !== undefined) await repositories.addKeyFile(name, resolve(file));
    if (remove !== undefined) await repositories.removeKey(name, remove, { force: options.flag('force') });
    const slots = await repositories.keys(name);
    if (terminal.json) {
      const keys = slots.map(({ slotId, slot, problem }) => ({
        id: slotId,
        kind: slot?.kind ?? null,
        label: slot?.label ?? null,
        createdAt: slot?.createdAt ?? null,
        problem,
      }));
      terminal.object({ storage: name, keys, recoveryKey, recovered });
      return 0;
    }
    if (recovered !== null) sayRecovered(terminal, name, recovered);
    if (recoveryKey !== null) {
      terminal.out('the recovery key, which is shown this once:');
      terminal.out('');
      terminal.out('  ', styled('bold', recoveryKey));
      terminal.out('');
    }
    terminal.table(
      [{ title: 'ID' }, { title: 'KIND' }, { title: 'LABEL' }, { title: 'MADE' }],
      slots.map(({ slotId, slot }): readonly Text[] =>
        slot === null
          ? [slotId, styled('red', 'unusable'), '', '']
          : [slotId, slot.kind, slot.label, slot.createdAt],
      ),
    );
    for (const { slotId, problem } of slots)
      if (problem !== null)
        terminal.warning(
          `${problem}; as it is it opens nothing; to take it away: stillpoint storage keys ${name} --remove ${slotId}`,
        );
    return 0;
  });
};

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
