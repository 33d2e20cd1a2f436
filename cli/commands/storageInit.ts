import type { RunVerb } from '../cli.ts';
import { styled } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage init NAME`. */
export const storageInit: RunVerb = (cli, [name = ''], options) =>
  reading(cli, async ({ agent }) => {
    const recoveryKey = !options.typed.includes('recoveryKey');
    const made = await agent.repositories.init(name, { recoveryKey });
    const { terminal } = cli;
    if (terminal.json) {
      terminal.object({ storage: name, ...made });
      return 0;
    }
    terminal.out(styled('green', 'made '), `the repository ${name} at ${made.location}`);
    terminal.out(
      made.keyFileMade ? `its key file is ${made.keyFile}` : `it opens with the key file ${made.keyFile}`,
    );
    if (made.lockedDays !== null)
      terminal.out(`nobody can delete a backup there for ${made.lockedDays} days from its commit on`);
    if (made.recoveryKey !== null) {
      terminal.out('its recovery key, which is shown this once:');
      terminal.out('');
      terminal.out('  ', styled('bold', made.recoveryKey));
      terminal.out('');
    }
    terminal.remark(
      `without ${made.recoveryKey === null ? 'the key file' : 'the key file or the recovery key'} nobody can read what is stored there: keep a copy away from this host`,
    );
    return 0;
  });
