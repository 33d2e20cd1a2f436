import { check } from './connection.ts';
import type { Connection } from './connection.ts';
import type { Out, Pointer } from './library.ts';
import { libvirt } from './library.ts';

/** `VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK`: libvirt's own default. There is no call that asks what it was. */
const waitForEver = -2;

/** What the guest's agent is asked for. libvirt would wait for its answer for ever. */
export function guestOperations(connection: Connection) {
  const bound = (domain: Pointer, seconds: number): void =>
    void check(
      'virDomainAgentSetResponseTimeout',
      libvirt.virDomainAgentSetResponseTimeout(domain, seconds, 0),
    );
  return {
    askGuest(uuid: string, seconds: number): void {
      connection.withMachine(uuid, (domain) => {
        bound(domain, seconds);
        try {
          const time: [Out<number | bigint>, Out<number>] = [[null], [null]];
          check('virDomainGetTime', libvirt.virDomainGetTime(domain, ...time, 0));
        } finally {
          bound(domain, waitForEver);
        }
      });
    },

    /** Leaves the bound in force: a thaw that another process asks for must not wait for ever either. */
    freezeGuest(uuid: string, seconds: number): number {
      return connection.withMachine(uuid, (domain) => {
        bound(domain, seconds);
        return check('virDomainFSFreeze', libvirt.virDomainFSFreeze(domain, null, 0, 0));
      });
    },

    thawGuest(uuid: string, seconds: number): number {
      return connection.withMachine(uuid, (domain) => {
        bound(domain, seconds);
        const thawed = check('virDomainFSThaw', libvirt.virDomainFSThaw(domain, null, 0, 0));
        bound(domain, waitForEver);
        return thawed;
      });
    },
  };
}
