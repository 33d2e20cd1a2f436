import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { joinController } from '../../agent/enrolment/joining.ts';
import { EnrolmentError } from '../../agent/enrolment/errors.ts';
import {
  askForAuthority,
  isSameFingerprint,
  type OfferedAuthority,
} from '../../agent/enrolment/offeredAuthority.ts';
import { readHostId } from '../../agent/identity/hostId.ts';
import { IdentityError } from '../../agent/identity/errors.ts';
import { certificateOf, type Identity } from '../../agent/identity/identity.ts';
import { IdentityStore } from '../../agent/identity/identityStore.ts';
import { identityDirectory } from '../../agent/service/controllerAccess.ts';
import { messageOf } from '../../common/errors.ts';
import { certificatesIn } from '../../common/tls/material.ts';
import { PushedFile } from '../../config/pushedFile.ts';
import { parseHostPort } from '../../common/hostPort.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { CliError } from '../errors.ts';
import type { Options } from '../options.ts';
import { styled } from '../output.ts';
import { readConfig } from '../session.ts';

const help = 'stillpoint agent join --help';

/** `stillpoint agent join ADDRESS`. */
export const agentJoin: RunVerb = async (cli, [address = ''], options) => {
  checkAddress(address);
  const { config } = await readConfig(cli);
  const token = await readToken(cli, options);
  const store = new IdentityStore(identityDirectory(config.agent.stateDir));
  const hostId = await readHostId();
  const now = new Date();
  const before = await earlierIdentity(store);
  const authority = await askForAuthority(address, { now });
  await accept(cli, options, authority, { address, replaces: (await store.generation()) > 0 });
  const identity = await joinController(store, {
    address,
    token,
    authority: authority.certificate,
    hostId,
    hostName: hostname(),
    now,
  });
  const { controller } = identity;
  // Policies are of one controller: another one begins anew.
  const isOther = before !== null && !isSameAuthority(before, authority.certificate);
  const dropped = isOther ? await new PushedFile(config.agent.stateDir).removeControllers() : null;
  const { validToDate, serialNumber } = certificateOf(identity);
  const { terminal } = cli;
  if (terminal.json) {
    const certificate = { serial: serialNumber, validTo: validToDate.toISOString() };
    terminal.object({ controller, hostId, certificate, caFingerprint: authority.fingerprint });
    return 0;
  }
  terminal.out(styled('green', 'joined '), styled('bold', controller.name), ` at ${controller.address}`);
  terminal.out(`  this host is ${hostId}`);
  terminal.out(`  its certificate is valid until ${validToDate.toISOString()}; the service renews it`);
  if (dropped !== null)
    terminal.remark('what the controller before has pushed is removed: stillpoint policies');
  if (config.agent.listen === null)
    terminal.remark('the controller cannot call this host: agent.listen is not set in the configuration');
  return 0;
};

/** What was in force before; null where there was nothing that can be used. */
async function earlierIdentity(store: IdentityStore): Promise<Identity | null> {
  try {
    return await store.current();
  } catch (error) {
    if (error instanceof IdentityError && error.code === 'IDENTITY_DAMAGED') return null;
    throw error;
  }
}

function isSameAuthority({ authorities }: Identity, certificate: string): boolean {
  const [accepted] = certificatesIn(certificate);
  return certificatesIn(authorities).some(({ raw }) => accepted?.raw.equals(raw) === true);
}

function checkAddress(address: string): void {
  try {
    parseHostPort(address);
  } catch (error) {
    throw new CliError('USAGE', `${address} is no address: ${messageOf(error)}`, help);
  }
}

/** The token never stands in the arguments: every user of the host can read those of every process. */
async function readToken(cli: Cli, options: Options): Promise<string> {
  const file = options.text('tokenFile');
  if ((file === undefined) !== options.flag('tokenStdin'))
    throw new CliError('USAGE', 'the token comes with either --token-file or --token-stdin', help);
  const token = file === undefined ? await cli.terminal.ask('The token:') : await readTokenFile(file);
  if (/^[A-Za-z0-9_-]{1,256}$/.test(token)) return token;
  throw new CliError(
    'USAGE',
    `${file ?? 'stdin'} holds no token; one is a word of letters, digits, - and _`,
    help,
  );
}

async function readTokenFile(file: string): Promise<string> {
  try {
    return (await readFile(file, 'utf8')).trim();
  } catch (error) {
    throw new CliError('USAGE', `the token cannot be read: ${messageOf(error)}`, help);
  }
}

/**
 * Lets the operator say that this CA is the one that is meant, unless its fingerprint says so.
 * @throws EnrolmentError CONTROLLER_UNTRUSTED; CliError NOT_CONFIRMED
 */
async function accept(
  cli: Cli,
  options: Options,
  { fingerprint, controllerName }: OfferedAuthority,
  { address, replaces }: { readonly address: string; readonly replaces: boolean },
): Promise<void> {
  const wanted = options.text('caFingerprint');
  if (wanted !== undefined && !isSameFingerprint(wanted, fingerprint))
    throw new EnrolmentError(
      'CONTROLLER_UNTRUSTED',
      `the CA of ${address} has the fingerprint ${fingerprint}, not the one that was given`,
      {
        hint: 'nothing was sent; somebody else may answer there, or the fingerprint is that of another controller',
      },
    );
  const { terminal } = cli;
  if (wanted === undefined) {
    terminal.err(
      `${address} is the controller `,
      styled('bold', controllerName),
      ', by a CA with the fingerprint',
    );
    terminal.err('  ', styled('bold', fingerprint));
    terminal.err(
      'compare it with what the controller shows: whoever has that CA can back up and restore here',
    );
  }
  if (replaces) terminal.err('this host has joined a controller before; that certificate will be replaced');
  if (wanted === undefined || replaces) await confirm(cli, options);
}
