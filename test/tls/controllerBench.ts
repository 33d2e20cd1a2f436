import { Server } from '@grpc/grpc-js';
import type { Test } from 'tap';
import { joinController } from '../../agent/enrolment/joining.ts';
import { askForAuthority } from '../../agent/enrolment/offeredAuthority.ts';
import type { KeptIdentity } from '../../agent/identity/identity.ts';
import { IdentityStore } from '../../agent/identity/identityStore.ts';
import { newId } from '../../common/ids.ts';
import { createLogger } from '../../common/log.ts';
import type { CaOptions, CertificateAuthority } from '../../controller/ca.ts';
import { HostListener } from '../../controller/hostListener.ts';
import { openAuthority, temporaryDirectory } from './authority.ts';

/** A controller on loopback, and what it has logged. */
export interface ControllerBench {
  readonly ca: CertificateAuthority;
  /** Where the CA is. */
  readonly directory: string;
  readonly listener: HostListener;
  readonly address: string;
  readonly log: string[];
  /** Called with each line of the log when it is written. */
  onLog: (line: string) => void;
}

/** Starts a controller that is ended with the test. */
export async function startController(
  t: Test,
  options: CaOptions & { readonly server?: Server } = {},
): Promise<ControllerBench> {
  const directory = await temporaryDirectory(t, 'controller');
  const ca = await openAuthority(t, options, directory);
  const log: string[] = [];
  const nothing: ControllerBench['onLog'] = () => undefined;
  const bench = { ca, directory, log, onLog: nothing };
  const listener = await HostListener.open({
    ca,
    listen: { host: '127.0.0.1', port: 0 },
    server: options.server ?? new Server(),
    log: createLogger({
      level: 'info',
      destination: {
        write: (line) => {
          log.push(line);
          bench.onLog(line);
        },
      },
    }),
  });
  t.teardown(() => listener.close());
  return Object.assign(bench, { listener, address: `127.0.0.1:${listener.port}` });
}

/** A host that has a state directory and may join. */
export interface HostBench {
  readonly hostId: string;
  readonly store: IdentityStore;
  /** Where the store is. */
  readonly directory: string;
  /** Joins as the command does. */
  readonly join: (address: string, token: string) => Promise<KeptIdentity>;
}

export async function makeHost(t: Test, hostId: string = newId()): Promise<HostBench> {
  const directory = await temporaryDirectory(t, 'host');
  const store = new IdentityStore(directory);
  return {
    hostId,
    store,
    directory,
    join: async (address, token) => {
      const now = new Date();
      const { certificate } = await askForAuthority(address, { now });
      return joinController(store, { address, token, authority: certificate, hostId, hostName: 'h', now });
    },
  };
}
