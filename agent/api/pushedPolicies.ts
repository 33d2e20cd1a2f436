import { messageOf, StillpointError } from '../../common/errors.ts';
import { fsyncDirectory } from '../../common/files.ts';
import type { Logger } from '../../common/log.ts';
import { nothingPushed, type PushedStatus } from '../../config/config.ts';
import { type KeptPolicies, PushedFile } from '../../config/pushedFile.ts';
import { parsePushed, requireUsable } from '../../config/pushedPolicies.ts';
import type { AgentParts } from '../agent.ts';
import { type Caller, scopeOf } from './caller.ts';
import { ApiError } from './errors.ts';

/** A push. */
export interface Push {
  readonly revision: number;
  readonly document: string;
  /** Nothing is changed; what would refuse it does. */
  readonly validateOnly: boolean;
}

/** What is kept, and what the host goes by. */
export interface PushedView {
  readonly kept: KeptPolicies | null;
  readonly inForce: boolean;
  readonly problems: readonly string[];
}

/** As much of an agent as is needed. */
export interface PushTarget {
  /** What is in force now. */
  readonly parts: Pick<AgentParts, 'config' | 'configPath' | 'pushed'>;
}

export interface PushedPoliciesOptions {
  readonly agent: PushTarget;
  readonly log: Logger;
  /** Whether the host belongs to a controller now: connections end a moment after it has left. */
  readonly isJoined?: (() => Promise<boolean>) | undefined;
}

/** Takes policies that are pushed to this host, in the order of their revisions, and keeps them. */
export class PushedPolicies {
  /** Has the service go by what is kept; null where nobody follows the configuration now. Never rejects. */
  follow: (() => Promise<void>) | null = null;
  readonly #agent: PushTarget;
  readonly #log: Logger;
  readonly #isJoined: () => Promise<boolean>;
  readonly #file: PushedFile;
  #last: Promise<unknown> = Promise.resolve();

  constructor({ agent, log, isJoined = () => Promise.resolve(true) }: PushedPoliciesOptions) {
    this.#agent = agent;
    this.#log = log;
    this.#isJoined = isJoined;
    this.#file = new PushedFile(agent.parts.config.agent.stateDir);
  }

  /** Makes the place, takes away what a process that was killed has left there, and says what holds. Never rejects. */
  open(): Promise<void> {
    return this.#inTurn(async () => {
      try {
        await this.#file.makeDirectory();
        await this.#file.sweep();
      } catch (error) {
        this.#log.error({ err: error }, 'there is no place for policies that are pushed');
      }
      const { kept, problems } = this.#status();
      if (kept !== null) {
        const { revision, setBy: caller, setAt } = kept;
        this.#log.info({ revision, caller, setAt }, 'policies that were pushed are kept here');
      }
      for (const problem of problems) this.#log.warn({ problem }, 'some of what was pushed cannot be used');
    });
  }

  /** What is kept, and what of it is in force. */
  view(): Promise<PushedView> {
    return this.#inTurn(() => this.#view());
  }

  /**
   * Keeps what was pushed and has the service go by it. Nothing is changed when it throws.
   * @returns false when this very push is kept already
   * @throws ConfigError POLICIES_INVALID; ApiError POLICIES_OUTDATED, POLICIES_REVISION_REUSED, POLICIES_NOT_ACCEPTED,
   * POLICIES_NOT_KEPT
   */
  set({ revision, document, validateOnly }: Push, caller: Caller): Promise<boolean> {
    return this.#inTurn(async () => {
      const { config, configPath } = this.#agent.parts;
      if (!config.controller.acceptPolicies)
        throw new ApiError(
          'POLICIES_NOT_ACCEPTED',
          'this host takes no policies but those of its own files',
          {
            hint: `controller: { acceptPolicies: true } in ${configPath}`,
          },
        );
      await this.#requireJoined(caller);
      if (await this.#isKept(revision, document)) return false;
      requireUsable(parsePushed(document), config);
      if (validateOnly) return false;
      await this.#keep({ revision, document, setBy: scopeOf(caller), setAt: new Date().toISOString() });
      return true;
    });
  }

  /**
   * Has the service go by its files alone. The revision stays known, so that what was pushed before comes too late.
   * @returns false when this very removal is kept already
   * @throws ApiError POLICIES_OUTDATED, POLICIES_REVISION_REUSED, POLICIES_NOT_KEPT
   */
  remove(revision: number, caller: Caller): Promise<boolean> {
    return this.#inTurn(async () => {
      await this.#requireJoined(caller);
      if (await this.#isKept(revision, null)) return false;
      const setAt = new Date().toISOString();
      await this.#keep({ revision, document: null, setBy: scopeOf(caller), setAt });
      return true;
    });
  }

  /** @throws ApiError CALLER_DENIED for a controller that this host has left */
  async #requireJoined({ kind, name }: Caller): Promise<void> {
    if (kind !== 'controller' || (await this.#isJoined())) return;
    throw new ApiError(
      'CALLER_DENIED',
      `this host has left its controller: ${name} may not change its policies`,
    );
  }

  /** @throws ApiError where a later revision, or this one with something else, is kept */
  async #isKept(revision: number, document: string | null): Promise<boolean> {
    const { kept: found, problem } = await this.#file.read();
    const kept = problem === null ? found : this.#status().kept;
    if (kept === null || kept.revision < revision) return false;
    const [what, by] = [`revision ${kept.revision}`, `${kept.setBy} at ${kept.setAt}`];
    if (kept.revision > revision)
      throw new ApiError(
        'POLICIES_OUTDATED',
        `${what} is in force, set by ${by}; revision ${revision} is older`,
        {
          hint: `nothing was changed; to replace it, push with revision ${kept.revision + 1} or a greater one`,
        },
      );
    if (kept.document !== document)
      throw new ApiError('POLICIES_REVISION_REUSED', `${what} is something else, set by ${by}`, {
        hint: `nothing was changed; give each change a greater revision, the next is ${kept.revision + 1}`,
      });
    // What the service remembers of a file that is damaged is written again.
    if (problem !== null) return false;
    // Its name may not have been brought to the disk when it was written.
    await fsyncDirectory(this.#file.directory);
    return true;
  }

  /** While the file cannot be used, what the service goes by. */
  async #kept(): Promise<KeptPolicies | null> {
    const { kept, problem } = await this.#file.read();
    return problem === null ? kept : this.#status().kept;
  }

  #status(): PushedStatus {
    return this.#agent.parts.pushed ?? nothingPushed;
  }

  async #view(): Promise<PushedView> {
    const kept = await this.#kept();
    const { kept: followed, problems } = this.#status();
    const { acceptPolicies } = this.#agent.parts.config.controller;
    const isFollowed = kept !== null && followed?.revision === kept.revision;
    return { kept, inForce: isFollowed && acceptPolicies && kept.document !== null, problems };
  }

  async #keep(kept: KeptPolicies): Promise<void> {
    try {
      await this.#file.write(kept);
    } catch (error) {
      if (error instanceof StillpointError) throw error;
      throw new ApiError('POLICIES_NOT_KEPT', `the policies could not be written down: ${messageOf(error)}`, {
        cause: error,
        hint: `df -h ${this.#file.directory}; then push the same revision again`,
        retryable: true,
      });
    }
    const { revision, setBy: caller, document } = kept;
    this.#log.info(
      { revision, caller },
      document === null ? 'pushed policies are removed' : 'policies are pushed',
    );
    await this.follow?.();
  }

  /** Those who push at the same time come one after the other. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => undefined);
    return done;
  }
}
