import { HypervisorError } from '../errors.ts';
import { check, present } from './connection.ts';
import type { Connection } from './connection.ts';
import { libvirt, type Out, type Pointer, takeList } from './library.ts';

/** `VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL`: parents before children, so in the order in which they were made. */
const listTopological = 1 << 1;
/** `VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN` */
const xmlWithoutDomain = 1 << 1;
/** `VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY` */
const deleteMetadataOnly = 1 << 1;
/** `VIR_ERR_NO_DOMAIN_CHECKPOINT` */
const noCheckpoint = 103;

/** Checkpoints. */
export function checkpointOperations(connection: Connection) {
  return {
    checkpointNames(uuid: string): string[] {
      return connection.withMachine(uuid, (domain) =>
        forEachCheckpoint(domain, (checkpoint) => nameOf(checkpoint)),
      );
    },

    checkpointDefinitions(uuid: string): { readonly name: string; readonly xml: string }[] {
      return connection.withMachine(uuid, (domain) =>
        forEachCheckpoint(domain, (checkpoint) => ({
          name: nameOf(checkpoint),
          xml: present(
            'virDomainCheckpointGetXMLDesc',
            libvirt.virDomainCheckpointGetXMLDesc(checkpoint, xmlWithoutDomain),
          ),
        })),
      );
    },

    createCheckpoint(uuid: string, xml: string): void {
      connection.withMachine(uuid, (domain) => {
        const made = libvirt.virDomainCheckpointCreateXML(domain, xml, 0);
        libvirt.virDomainCheckpointFree(present('virDomainCheckpointCreateXML', made));
      });
    },

    deleteCheckpoint(uuid: string, name: string, metadataOnly: boolean): void {
      connection.withMachine(uuid, (domain) => {
        const checkpoint = lookUp(domain, name);
        if (checkpoint === null) return;
        try {
          const flags = metadataOnly ? deleteMetadataOnly : 0;
          check('virDomainCheckpointDelete', libvirt.virDomainCheckpointDelete(checkpoint, flags));
        } finally {
          libvirt.virDomainCheckpointFree(checkpoint);
        }
      });
    },
  };
}

function forEachCheckpoint<T>(domain: Pointer, use: (checkpoint: Pointer) => T): T[] {
  const list: Out<Pointer> = [null];
  const count = libvirt.virDomainListAllCheckpoints(domain, list, listTopological);
  const checkpoints = takeList(list, check('virDomainListAllCheckpoints', count));
  try {
    return checkpoints.map(use);
  } finally {
    for (const checkpoint of checkpoints) libvirt.virDomainCheckpointFree(checkpoint);
  }
}

function nameOf(checkpoint: Pointer): string {
  return present('virDomainCheckpointGetName', libvirt.virDomainCheckpointGetName(checkpoint));
}

function lookUp(domain: Pointer, name: string): Pointer | null {
  try {
    return present(
      'virDomainCheckpointLookupByName',
      libvirt.virDomainCheckpointLookupByName(domain, name, 0),
    );
  } catch (error) {
    if (error instanceof HypervisorError && error.libvirt?.code === noCheckpoint) return null;
    throw error;
  }
}
