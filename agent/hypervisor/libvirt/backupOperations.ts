import { HypervisorError } from '../errors.ts';
import { check, present } from './connection.ts';
import type { Connection } from './connection.ts';
import { libvirt } from './library.ts';

/** `VIR_ERR_NO_DOMAIN_BACKUP`: there is none. */
const noBackup = 104;

/** Pull-mode backups. */
export function backupOperations(connection: Connection) {
  return {
    beginBackup(uuid: string, backupXml: string, checkpointXml: string | null): void {
      connection.withMachine(uuid, (domain) =>
        check('virDomainBackupBegin', libvirt.virDomainBackupBegin(domain, backupXml, checkpointXml, 0)),
      );
    },

    /** The `<domainbackup>` of the backup under way. */
    backupDefinition(uuid: string): string | null {
      return connection.withMachine(uuid, (domain) => {
        try {
          return present('virDomainBackupGetXMLDesc', libvirt.virDomainBackupGetXMLDesc(domain, 0));
        } catch (error) {
          if (error instanceof HypervisorError && error.libvirt?.code === noBackup) return null;
          throw error;
        }
      });
    },
  };
}
