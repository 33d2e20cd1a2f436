import { certificatesIn } from '../../common/tls/material.ts';
import { version } from '../../common/version.ts';
import { IdentityError } from '../identity/errors.ts';
import { checkIdentity, checkValidity, type Identity, type KeptIdentity } from '../identity/identity.ts';
import type { IdentityStore } from '../identity/identityStore.ts';
import { hostCredentials, joiningCredentials } from './controllerChannel.ts';
import { EnrolmentClient, type Issued } from './enrolmentClient.ts';

/** What a host joins a controller with. */
export interface JoinRequest {
  /** `HOST:PORT` */
  readonly address: string;
  readonly token: string;
  /** The CA of the controller, PEM: somebody has said that it is the right one. */
  readonly authority: string;
  readonly hostId: string;
  readonly hostName: string;
  readonly now: Date;
}

/**
 * Joins a controller. What is in force before is replaced by the last step, in one piece; after a failure it is as it
 * was, and the same call with the same token goes on where this one was cut.
 *
 * @throws EnrolmentError, IdentityError
 */
export async function joinController(store: IdentityStore, request: JoinRequest): Promise<KeptIdentity> {
  const { address, token, authority, hostId, hostName, now } = request;
  const before = await store.generation();
  const pending = await store.pending('join', hostId);
  using client = new EnrolmentClient(address, joiningCredentials(authority));
  const host = { hostId, name: hostName, agentVersion: version };
  const issued = await client.enrol(token, pending.request, host);
  const identity = identityFrom(issued, pending.key, { hostId, address });
  const [pinned] = certificatesIn(authority);
  if (!certificatesIn(issued.authorities).some(({ raw }) => pinned?.raw.equals(raw) === true))
    throw new IdentityError(
      'CERTIFICATE_INVALID',
      'the controller gives out another CA than the one that was accepted',
    );
  checkValidity(identity, now);
  return store.adopt(identity, before);
}

/**
 * Gets the next certificate for a new key, and puts both into force.
 *
 * @throws EnrolmentError, IdentityError
 */
export async function renewIdentity(
  store: IdentityStore,
  identity: KeptIdentity,
  now: Date,
): Promise<KeptIdentity> {
  const { hostId, controller, generation } = identity;
  const pending = await store.pending('renewal', hostId);
  using client = new EnrolmentClient(
    controller.address,
    hostCredentials(identity, await knownRevoked(store)),
  );
  const issued = await client.renew(pending.request);
  const next = identityFrom(issued, pending.key, { hostId, address: controller.address });
  checkValidity(next, now);
  return store.adopt(next, generation);
}

/** Serial numbers of the certificates of controllers that are revoked. Throws EnrolmentError. */
export async function askForRevoked(
  store: Pick<IdentityStore, 'revoked'>,
  identity: KeptIdentity,
): Promise<readonly string[]> {
  const credentials = hostCredentials(identity, await knownRevoked(store));
  using client = new EnrolmentClient(identity.controller.address, credentials);
  // Awaited here: the end of this function closes the client.
  return await client.listRevoked();
}

/** A list that cannot be read must not keep the host from the one that replaces it, nor its certificate from renewal. */
async function knownRevoked(store: Pick<IdentityStore, 'revoked'>): Promise<ReadonlySet<string>> {
  try {
    return await store.revoked();
  } catch (error) {
    if (error instanceof IdentityError && error.code === 'REVOCATIONS_DAMAGED') return new Set();
    throw error;
  }
}

function identityFrom(
  { certificate, authorities, controllerName }: Issued,
  key: string,
  { hostId, address }: { readonly hostId: string; readonly address: string },
): Identity {
  const identity = {
    key,
    certificate,
    authorities,
    hostId,
    controller: { name: controllerName, address },
  };
  checkIdentity(identity);
  return identity;
}
