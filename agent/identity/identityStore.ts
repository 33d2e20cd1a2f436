import { createPrivateKey, createPublicKey, randomBytes } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isErrno, messageOf } from '../../common/errors.ts';
import { makeDirectoryDurable, removeTree, renameDurable, writeFileDurable } from '../../common/files.ts';
import { makeWholeDirectory } from '../../common/wholeDirectory.ts';
import type { CertificateRequest } from './certificateRequest.ts';
import { IdentityError } from './errors.ts';
import { checkIdentity, type Identity, type KeptIdentity } from './identity.ts';

/** Why a certificate is asked for; each has a request of its own. */
export type RequestPurpose = 'join' | 'renewal';

const generationName = /^generation-(\d{6})$/;
const temporaryName = /^\..+\.[0-9a-f]{16}\.tmp$/;
/** Nobody is at work for so long on what is still unfinished then. */
const unfinishedForMs = 3_600_000;
const revokedName = 'revoked.json';

/**
 * Keeps the identity of a host in a directory. Each one is a directory of its own, `generation-000001`, that appears
 * with everything in it by one rename; the one with the highest number counts. So key and certificate are always of one
 * piece, whatever ends the process. `pending-join` and `pending-renewal` hold the key and the request of a certificate
 * that is asked for: who asks again after a cut connection asks the same.
 */
export class IdentityStore {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** The number of the identity in force; 0 before the first one. It is not looked whether it can be used. */
  async generation(): Promise<number> {
    return Math.max(0, ...(await this.#names()).map(numberOf));
  }

  /**
   * The identity in force, `null` before the host has joined.
   * @throws IdentityError IDENTITY_DAMAGED
   */
  async current(): Promise<KeptIdentity | null> {
    for (;;) {
      const generation = await this.generation();
      if (generation === 0) return null;
      try {
        return await this.#read(generation);
      } catch (error) {
        // Another process may have put the next one in its place meanwhile.
        if ((await this.generation()) === generation) throw error;
      }
    }
  }

  /** The key and the request with which a certificate is asked for: those that were used already, or new ones. */
  async pending(purpose: RequestPurpose, hostId: string): Promise<CertificateRequest> {
    await makeDirectoryDurable(this.#directory, 0o700);
    const path = this.#pendingPath(purpose);
    const kept = await readPending(path);
    if (kept !== null) return kept;
    // What encodes it is needed a few times a year.
    const { makeCertificateRequest } = await import('./certificateRequest.ts');
    const made = makeCertificateRequest(hostId);
    await makeWholeDirectory(
      path,
      new Map<string, string | Uint8Array>([
        ['key.pem', made.key],
        ['request.der', made.request],
      ]),
    );
    return made;
  }

  /**
   * Puts an identity into force.
   * @param after the generation that it follows, as it was when the certificate was asked for
   * @throws IdentityError CERTIFICATE_INVALID before anything is changed; IDENTITY_REPLACED when there is a later one
   */
  async adopt(identity: Identity, after: number): Promise<KeptIdentity> {
    checkIdentity(identity);
    const generation = after + 1;
    const { key, certificate, authorities, hostId, controller } = identity;
    const files = new Map([
      ['key.pem', key],
      ['certificate.pem', certificate],
      ['authorities.pem', authorities],
      ['controller.json', `${JSON.stringify({ hostId, controller }, null, 2)}\n`],
    ]);
    await makeDirectoryDurable(this.#directory, 0o700);
    try {
      if ((await this.generation()) !== after) throw replaced();
      await makeWholeDirectory(this.#path(generation), files);
    } catch (error) {
      if (isErrno(error, 'ENOTEMPTY') || isErrno(error, 'EEXIST')) throw replaced(error);
      throw error;
    }
    return { ...identity, generation };
  }

  /** Removes earlier identities, requests that were answered, and what processes that died have left. */
  async sweep(): Promise<void> {
    const current = await this.current();
    for (const name of await this.#names()) {
      const path = join(this.#directory, name);
      const isOld = current !== null && generationName.test(name) && numberOf(name) < current.generation;
      const isAnswered =
        current !== null && name.startsWith('pending-') && isSameKey(await readPending(path), current);
      if (isOld || isAnswered || (temporaryName.test(name) && (await isForgotten(path))))
        await removeTree(path, { root: this.#directory });
    }
  }

  /**
   * Removes everything: the host belongs to no controller any more. The identity in force goes after all others, in one
   * piece, so that whatever ends the process the host has it still, or has none.
   */
  async leave(): Promise<void> {
    const generation = await this.generation();
    const remove = async (names: readonly string[]): Promise<void> => {
      for (const name of names) await removeTree(join(this.#directory, name), { root: this.#directory });
    };
    const isCurrent = (name: string): boolean => generation > 0 && numberOf(name) === generation;
    await remove((await this.#names()).filter((name) => !isCurrent(name) && name !== revokedName));
    if (generation > 0) {
      const left = join(this.#directory, `.left.${randomBytes(8).toString('hex')}.tmp`);
      await renameDurable(this.#path(generation), left);
    }
    // Who was not let in any more is forgotten when nobody is let in.
    await remove(await this.#names());
  }

  /**
   * Serial numbers of certificates of controllers that are not accepted any more.
   * @throws IdentityError REVOCATIONS_DAMAGED
   */
  async revoked(): Promise<ReadonlySet<string>> {
    const path = join(this.#directory, revokedName);
    try {
      const serials: unknown = JSON.parse(await readFile(path, 'utf8'));
      if (Array.isArray(serials)) return new Set(serials.map(String));
      throw new SyntaxError('it is no list');
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return new Set();
      throw new IdentityError('REVOCATIONS_DAMAGED', `${path} cannot be used: ${messageOf(error)}`, {
        cause: error,
        retryable: true,
        hint: 'the service replaces it by what its controller says, as soon as that answers: systemctl status stillpoint-agent',
      });
    }
  }

  /** Keeps what the controller has said last about them. */
  async keepRevoked(serials: Iterable<string>): Promise<void> {
    await writeFileDurable(join(this.#directory, revokedName), `${JSON.stringify([...serials])}\n`);
  }

  async #names(): Promise<readonly string[]> {
    try {
      return await readdir(this.#directory);
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return [];
      throw error;
    }
  }

  async #read(generation: number): Promise<KeptIdentity> {
    const path = this.#path(generation);
    const text = (name: string): Promise<string> => readFile(join(path, name), 'utf8');
    try {
      const { mode } = await stat(join(path, 'key.pem'));
      if ((mode & 0o077) !== 0) throw new Error('others than its owner can read key.pem');
      const identity = {
        key: await text('key.pem'),
        certificate: await text('certificate.pem'),
        authorities: await text('authorities.pem'),
        ...parseController(await text('controller.json')),
        generation,
      };
      checkIdentity(identity);
      return identity;
    } catch (error) {
      throw damaged(path, error);
    }
  }

  #path(generation: number): string {
    return join(this.#directory, `generation-${String(generation).padStart(6, '0')}`);
  }

  #pendingPath(purpose: RequestPurpose): string {
    return join(this.#directory, `pending-${purpose}`);
  }
}

function numberOf(name: string): number {
  return Number(generationName.exec(name)?.[1] ?? 0);
}

async function readPending(path: string): Promise<CertificateRequest | null> {
  try {
    return {
      key: await readFile(join(path, 'key.pem'), 'utf8'),
      request: new Uint8Array(await readFile(join(path, 'request.der'))),
    };
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}

function isSameKey(pending: CertificateRequest | null, { key }: Identity): boolean {
  return pending !== null && createPublicKey(pending.key).equals(createPublicKey(createPrivateKey(key)));
}

async function isForgotten(path: string): Promise<boolean> {
  return Date.now() - (await stat(path)).mtimeMs > unfinishedForMs;
}

function parseController(text: string): Pick<Identity, 'hostId' | 'controller'> {
  const value: unknown = JSON.parse(text);
  const { hostId, controller } = fieldsOf(value);
  const { name, address } = fieldsOf(controller);
  if (typeof hostId !== 'string' || typeof name !== 'string' || typeof address !== 'string')
    throw new SyntaxError('controller.json lacks hostId, controller.name or controller.address');
  return { hostId, controller: { name, address } };
}

function fieldsOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? { ...value } : {};
}

function damaged(path: string, cause: unknown): IdentityError {
  return new IdentityError('IDENTITY_DAMAGED', `${path} cannot be used: ${messageOf(cause)}`, {
    cause,
    hint: 'restore it, or join again with a new token: stillpoint agent join --help',
  });
}

function replaced(cause?: unknown): IdentityError {
  return new IdentityError('IDENTITY_REPLACED', 'another process has replaced the identity meanwhile', {
    cause,
    retryable: true,
    hint: 'look at it with stillpoint doctor; nothing was changed by this one',
  });
}
