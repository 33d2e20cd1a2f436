import { once } from 'node:events';
import { connect } from 'node:net';
import { resolve } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import type { Cli } from '../cli.ts';
import { CliError } from '../errors.ts';
import { readConfig } from '../session.ts';
import type { AgentClient } from './agentClient.ts';

/** What this program needs of a service. */
const apiLevelMin = 1;

/**
 * The service of this host, if there is one that works by the configuration of this command; `null` where a command does
 * its work itself.
 * @throws CliError SERVICE_UNREACHABLE, SERVICE_INCOMPATIBLE; ConfigError
 */
export async function connectToService(cli: Cli): Promise<AgentClient | null> {
  if (cli.standalone === true) return null;
  const { config } = await readConfig(cli);
  if (!(await isAnswered(config.agent.socket))) return null;
  // It takes a while to load, and most commands are typed where no service runs.
  const module = await import('./agentClient.ts');
  const client = new module.AgentClient(config.agent.socket);
  try {
    if (await isOurs(client, cli)) return client;
  } catch (error) {
    client[Symbol.dispose]();
    throw error;
  }
  client[Symbol.dispose]();
  return null;
}

/** With another configuration it would do something else than what was typed. */
async function isOurs(client: AgentClient, cli: Cli): Promise<boolean> {
  const { host } = await client.hello();
  if ((host?.apiLevel ?? 0) >= apiLevelMin) return host?.configPath === resolve(cli.configPath);
  throw new CliError(
    'SERVICE_INCOMPATIBLE',
    `the service of this host is of version ${host?.agentVersion ?? 'none'}, which is too old for this command`,
    'systemctl restart stillpoint-agent; or the same command with --standalone',
  );
}

/** Whether somebody listens. @throws CliError SERVICE_UNREACHABLE for who may not ask */
async function isAnswered(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, 'connect');
    return true;
  } catch (error) {
    if (!isErrno(error, 'EACCES')) return false;
    throw new CliError(
      'SERVICE_UNREACHABLE',
      `this user may not speak with the service of this host (${path})`,
      'as root, or as a member of the group that agent.socketGroup names (after a new login)',
    );
  } finally {
    socket.destroy();
  }
}
