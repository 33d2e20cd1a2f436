import { IdentityError } from '../../agent/identity/errors.ts';
import type { KeptIdentity } from '../../agent/identity/identity.ts';
import { IdentityStore } from '../../agent/identity/identityStore.ts';
import { identityDirectory } from '../../agent/service/controllerAccess.ts';
import { PushedFile } from '../../config/pushedFile.ts';
import type { RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { styled } from '../output.ts';
import { readConfig } from '../session.ts';

/** `stillpoint agent leave`. Typed again after it was cut short it does what is left. */
export const agentLeave: RunVerb = async (cli, _, options) => {
  const { config } = await readConfig(cli);
  const { stateDir } = config.agent;
  const store = new IdentityStore(identityDirectory(stateDir));
  const { terminal } = cli;
  const joined = await joinedTo(store);
  const hasJoined = (await store.generation()) > 0;
  const name = joined?.controller.name ?? 'a controller that cannot be read';
  if (hasJoined) {
    terminal.err('this host leaves ', styled('bold', name), ': its key and certificates are removed,');
    terminal.err('and so is what that has pushed; schedules go by the files of this host');
    await confirm(cli, options);
  }
  // The identity first: from then on the service takes no push of a controller.
  await store.leave();
  const removed = await new PushedFile(stateDir).removeControllers();
  const revision = removed?.kept?.revision ?? null;
  if (terminal.json) {
    const controller = joined?.controller ?? null;
    terminal.object({
      left: hasJoined,
      controller,
      hostId: joined?.hostId ?? null,
      removedRevision: revision,
    });
    return 0;
  }
  terminal.out(hasJoined ? `left ${name}` : 'this host has joined no controller');
  if (removed !== null) terminal.out('  what was pushed is removed: stillpoint policies');
  if (joined !== null)
    terminal.remark(
      `connections end within a minute; on the controller: stillpoint controller revoke --host-id ${joined.hostId}`,
    );
  return 0;
};

/** null: nobody, or it cannot be read, which keeps nobody from leaving. */
async function joinedTo(store: IdentityStore): Promise<KeptIdentity | null> {
  try {
    return await store.current();
  } catch (error) {
    if (error instanceof IdentityError && error.code === 'IDENTITY_DAMAGED') return null;
    throw error;
  }
}
