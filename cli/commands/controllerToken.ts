import { X509Certificate } from 'node:crypto';
import { resolve } from 'node:path';
import { isUuid } from '../../common/ids.ts';
import { CertificateAuthority } from '../../controller/ca.ts';
import type { RunVerb } from '../cli.ts';
import { parseDuration } from '../duration.ts';
import { CliError } from '../errors.ts';
import { styled } from '../output.ts';

const help = 'stillpoint controller token --help';

/** `stillpoint controller token --ca DIRECTORY`. */
export const controllerToken: RunVerb = async ({ terminal }, _, options) => {
  const directory = options.text('ca');
  if (directory === undefined) throw new CliError('USAGE', '--ca is missing', help);
  const hostId = options.text('hostId');
  if (hostId !== undefined && !isUuid(hostId)) throw new CliError('USAGE', `${hostId} is no UUID`, help);
  const validMs = parseDuration(options.text('valid') ?? '1h', '--valid', help);
  using ca = await CertificateAuthority.open(resolve(directory));
  const token = ca.issueToken({ hostId: hostId?.toLowerCase(), validMs });
  const caFingerprint = new X509Certificate(ca.certificate).fingerprint256;
  const expiresAt = new Date(Date.now() + validMs).toISOString();
  if (terminal.json) {
    terminal.object({ token, expiresAt, caFingerprint });
    return 0;
  }
  terminal.out('the token, which is shown this once:');
  terminal.out('');
  terminal.out('  ', styled('bold', token));
  terminal.out('');
  terminal.out(`it can be used until ${expiresAt}; on the host:`);
  terminal.out(`  stillpoint agent join HOST:PORT --token-stdin --ca-fingerprint ${caFingerprint}`);
  return 0;
};
