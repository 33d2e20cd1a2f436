import type { Test } from 'tap';
import { NbdClient } from './client.ts';
import type { NbdError } from './errors.ts';
import { workDirectory } from './fixture.ts';
import { contentOf, ScriptedSource } from './scriptedSource.ts';
import { NbdServer } from './server.ts';
import type { NbdServerOptions } from './server.ts';

const answerMs = 20_000;

/** A server of ours for a test. */
export interface Served {
  readonly server: NbdServer;
  readonly socketPath: string;
  /** What it has reported. */
  readonly errors: NbdError[];
}

/** Serves until the end of the test. */
export async function serve(
  t: Test,
  sources: Readonly<Record<string, ScriptedSource>>,
  options: Partial<NbdServerOptions> = {},
): Promise<Served> {
  const errors: NbdError[] = [];
  const socketPath = `${await workDirectory(t)}/socket`;
  const exports = new Map(Object.entries(sources));
  const onError = (error: NbdError): void => void errors.push(error);
  const server = await NbdServer.listen({ socketPath, exports, onError, ...options });
  t.teardown(() => server[Symbol.asyncDispose]());
  return { server, socketPath, errors };
}

/** Our own client, of the export `vda` unless told. */
export function connectTo(
  socketPath: string,
  metaContexts: readonly string[] = [],
  exportName = 'vda',
): Promise<NbdClient> {
  return NbdClient.connect({ socketPath, exportName, answerMs, metaContexts });
}

/** A volume that is all data. */
export function dataOf(random: () => number, lengthBytes: number): ScriptedSource {
  return new ScriptedSource(contentOf(random, [{ lengthBytes, zero: false }]).content);
}

/** Waits until so many clients are left: sockets close in their own time, and nothing tells a client. */
export async function clientsLeft(server: NbdServer, count: number): Promise<void> {
  while (server.connections > count) await new Promise((resolve) => void setImmediate(resolve));
}
