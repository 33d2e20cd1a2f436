import { createHmac } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isErrno } from '../../common/errors.ts';
import { IdentityError } from './errors.ts';

/** What the identifier is made for; another purpose of the same machine gives another one. */
const purpose = 'stillpoint host';

/**
 * The UUID by which controllers know this host: the same after Stillpoint was installed anew, another one after the
 * system was. machine-id(5) itself is confidential, so that a keyed hash of it is shown, as that page asks for.
 *
 * @param machineIdFile another place than /etc/machine-id, for tests
 * @throws IdentityError HOST_ID_MISSING
 */
export async function readHostId(machineIdFile = '/etc/machine-id'): Promise<string> {
  const machineId = (await readMachineId(machineIdFile)).trim();
  if (!/^[0-9a-f]{32}$/.test(machineId))
    throw missing(`${machineIdFile} does not hold the 32 hexadecimal digits of a machine-id`);
  const digest = createHmac('sha256', Buffer.from(machineId, 'hex')).update(purpose).digest().subarray(0, 16);
  // Version and variant as of a random UUID (RFC 9562, 5.4).
  digest[6] = ((digest[6] ?? 0) & 0x0f) | 0x40;
  digest[8] = ((digest[8] ?? 0) & 0x3f) | 0x80;
  return digest.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

async function readMachineId(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT')) throw missing(`there is no ${file}`, error);
    throw error;
  }
}

function missing(message: string, cause?: unknown): IdentityError {
  return new IdentityError('HOST_ID_MISSING', message, {
    cause,
    hint: 'systemd-machine-id-setup makes one',
  });
}
