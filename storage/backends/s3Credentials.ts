import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { messageOf } from '../../common/errors.ts';
import { StorageError } from '../errors.ts';

/** What an S3 server knows us by. */
export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  /** Of credentials that end by themselves. */
  readonly sessionToken?: string | undefined;
}

const fileBytesMax = 64 * 1024;
const names = ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'];

/**
 * Reads a file of lines `AWS_ACCESS_KEY_ID=…`, `AWS_SECRET_ACCESS_KEY=…` and perhaps `AWS_SESSION_TOKEN=…`, which
 * nobody but its owner (us, or root) may read.
 *
 * Rejects with STORAGE_SETTINGS_INVALID, which tells a line by its number and never what stands there.
 */
export async function readS3Credentials(path: string): Promise<S3Credentials> {
  let file: FileHandle;
  try {
    // A pipe that nobody writes to must not hold us up.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw invalid(path, `it cannot be read: ${messageOf(error)}`, `ls -l ${path}`);
  }
  try {
    await assertPrivate(file, path);
    return parseS3Credentials(await file.readFile('utf8'), path);
  } finally {
    await file.close();
  }
}

/** Of the file that is open, not of its name, which could lead elsewhere by now. */
async function assertPrivate(file: FileHandle, path: string): Promise<void> {
  const status = await file.stat();
  if (!status.isFile()) throw invalid(path, 'it is no file', `ls -l ${path}`);
  if (status.size > fileBytesMax) throw invalid(path, `it is ${status.size} bytes long`, `ls -l ${path}`);
  if (status.uid !== 0 && status.uid !== process.geteuid?.())
    throw invalid(path, 'it belongs to somebody else', `chown root ${path}`);
  if ((status.mode & 0o077) !== 0) throw invalid(path, 'others may read it', `chmod 600 ${path}`);
}

/** The same of a text. @param path for the error */
export function parseS3Credentials(text: string, path: string): S3Credentials {
  const found = new Map<string, string>();
  for (const [index, line] of text.split('\n').entries()) {
    const trimmed = line.trim();
    if (trimmed === '' || trimmed.startsWith('#')) continue;
    const name = trimmed.slice(0, Math.max(0, trimmed.indexOf('=')));
    if (!names.includes(name)) throw invalid(path, `line ${index + 1} sets none of ${names.join(', ')}`);
    if (found.has(name)) throw invalid(path, `line ${index + 1} sets ${name} once more`);
    const value = trimmed.slice(name.length + 1);
    // They go into headers as they are.
    if (!/^[!-~]+$/.test(value)) throw invalid(path, `line ${index + 1} has no usable value for ${name}`);
    found.set(name, value);
  }
  const accessKeyId = found.get('AWS_ACCESS_KEY_ID');
  const secretAccessKey = found.get('AWS_SECRET_ACCESS_KEY');
  if (accessKeyId === undefined) throw invalid(path, 'AWS_ACCESS_KEY_ID is missing');
  if (secretAccessKey === undefined) throw invalid(path, 'AWS_SECRET_ACCESS_KEY is missing');
  return { accessKeyId, secretAccessKey, sessionToken: found.get('AWS_SESSION_TOKEN') };
}

function invalid(path: string, why: string, hint?: string): StorageError {
  return new StorageError('STORAGE_SETTINGS_INVALID', `the credentials in ${path} cannot be used: ${why}`, {
    hint: hint ?? `write lines AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=… into ${path}`,
  });
}
