import { loadConfig } from '../config/config.ts';
import { endProcess } from '../common/endProcess.ts';
import { errorRecord } from '../common/errors.ts';
import { NbdServer } from '../nbd/server.ts';
import { openRepository } from './storages.ts';

/*
 * A process that serves one stream of a repository over NBD until it is told to end: what a machine runs on during an
 * instant restore. It outlives the agent that has started it. Arguments: socket, name of the export, configuration,
 * storage, root of the stream, uid and gid that may connect. Says `ready` when it listens; errors go to stderr.
 */

async function serve(): Promise<void> {
  const [socketPath = '', exportName = '', configFile = '', storage = '', root = '', uid = '', gid = ''] =
    process.argv.slice(2);
  const { config } = await loadConfig(configFile, { optional: false });
  const settings = config.storages[storage];
  if (settings?.kind !== 'repository') throw new Error(`${configFile} has no repository ${storage}`);
  const repository = await openRepository(storage, settings);
  const stream = await repository.openStream(await repository.contentOf(root));
  const ended = Promise.withResolvers<void>();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => ended.resolve());
  await using _server = await NbdServer.listen({
    socketPath,
    owner: { uid: Number(uid), gid: Number(gid) },
    exports: new Map([[exportName, stream]]),
    onError: (error) => process.stderr.write(`${error.code}: ${error.message}\n`),
  });
  process.stdout.end('ready\n');
  await ended.promise;
}

// Whoever has started it may be gone by then.
process.stdout.on('error', () => undefined);
try {
  await serve();
  endProcess(0);
} catch (error) {
  const { code, message } = errorRecord(error);
  process.stderr.write(`${code}: ${message}\n`);
  endProcess(1);
}
