import { certificateOf, checkValidity } from '../../agent/identity/identity.ts';
import { IdentityStore } from '../../agent/identity/identityStore.ts';
import { renewalDueAt } from '../../agent/identity/renewalTime.ts';
import { identityDirectory } from '../../agent/service/controllerAccess.ts';
import { errorRecord } from '../../common/errors.ts';
import type { AgentConfig } from '../../config/schema.ts';
import { type Check, fail, ok, warn } from './check.ts';

/** A service that was away for so long after a renewal was due renews it first thing. */
const overdueMs = 2 * 86_400_000;

/** Whether the host can prove to its controller who it is; nothing where there is no controller. */
export async function checkIdentityOf(
  { stateDir, listen }: Pick<AgentConfig, 'stateDir' | 'listen'>,
  now: Date,
): Promise<readonly Check[]> {
  try {
    const identity = await new IdentityStore(identityDirectory(stateDir)).current();
    if (identity === null)
      return listen === null
        ? []
        : [
            warn(
              'controller',
              `agent.listen is ${listen}, and this host has not joined a controller: nothing listens there`,
              'stillpoint agent join --help',
            ),
          ];
    checkValidity(identity, now);
    const certificate = certificateOf(identity);
    const { name, address } = identity.controller;
    const until = certificate.validToDate.toISOString();
    if (now.getTime() - renewalDueAt(certificate).getTime() > overdueMs)
      return [
        warn(
          'controller',
          `the certificate for ${name} at ${address} is valid until ${until} and should have been renewed`,
          'journalctl -u stillpoint-agent.service; is the service running, and does the controller answer?',
        ),
      ];
    return [ok('controller', `joined ${name} at ${address}; the certificate is valid until ${until}`)];
  } catch (error) {
    const { code, message, hint } = errorRecord(error);
    return [fail('controller', `${code}: ${message}`, hint ?? 'stillpoint agent join --help')];
  }
}
