import { resolve } from 'node:path';
import { CertificateAuthority } from '../../controller/ca.ts';
import type { RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';

const help = 'stillpoint controller revoke --help';

/** `stillpoint controller revoke --ca DIRECTORY`. */
export const controllerRevoke: RunVerb = async ({ terminal }, _, options) => {
  const [directory, hostId, serial] = [options.text('ca'), options.text('hostId'), options.text('serial')];
  if (directory === undefined) throw new CliError('USAGE', '--ca is missing', help);
  if ((hostId === undefined) === (serial === undefined))
    throw new CliError('USAGE', 'name either --host-id or --serial', help);
  using ca = await CertificateAuthority.open(resolve(directory));
  if (hostId !== undefined) ca.revokeHost(hostId.toLowerCase());
  if (serial !== undefined) ca.revoke(serial.toUpperCase().replaceAll(':', ''));
  if (terminal.json) terminal.object({ revoked: { hostId: hostId ?? null, serial: serial ?? null } });
  else
    terminal.out(
      hostId === undefined
        ? `certificate ${serial} counts no more; hosts hear of it within an hour`
        : `no certificate of host ${hostId} counts any more; its connections end within a minute`,
    );
  return 0;
};
