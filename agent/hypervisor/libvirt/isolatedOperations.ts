import { closeSync, openSync, rmSync, writeSync } from 'node:fs';

import { check, present } from './connection.ts';
import type { Connection } from './connection.ts';
import { libvirt } from './library.ts';

/** libvirt sends a stream in pieces of at most 256 KiB. */
const pieceBytes = 256 * 1024;

/** Machines that libvirt forgets when they stop, and what their screens show. */
export function isolatedOperations(connection: Connection) {
  return {
    startTransient(definition: string): void {
      const domain = libvirt.virDomainCreateXML(connection.pointer, definition, 0);
      libvirt.virDomainFree(present('virDomainCreateXML', domain));
    },

    /** Writes the picture into a new file; returns its type. */
    screenshot(uuid: string, file: string): string {
      const stream = present('virStreamNew', libvirt.virStreamNew(connection.pointer, 0));
      const target = openSync(file, 'wx', 0o600);
      try {
        const mime = connection.withMachine(uuid, (domain) =>
          present('virDomainScreenshot', libvirt.virDomainScreenshot(domain, stream, 0, 0)),
        );
        const piece = Buffer.alloc(pieceBytes);
        for (;;) {
          const length = check('virStreamRecv', libvirt.virStreamRecv(stream, piece, piece.length));
          if (length === 0) break;
          writeSync(target, piece, 0, length);
        }
        check('virStreamFinish', libvirt.virStreamFinish(stream));
        return mime;
      } catch (error) {
        rmSync(file, { force: true });
        throw error;
      } finally {
        closeSync(target);
        libvirt.virStreamFree(stream);
      }
    },
  };
}
