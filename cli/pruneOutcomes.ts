import type { PruneDecision, PruneListener, Pruning } from '../agent/pruning.ts';
import { type ErrorRecord, errorRecord } from '../common/errors.ts';
import type { BackupEntry } from '../storage/storage.ts';
import type { Cli } from './cli.ts';
import { combinedExitCode, type ExitCode, exitCodeOf } from './exitCodes.ts';

/** What became of one backup of a plan. */
export interface PruneOutcome {
  readonly removed: boolean;
  readonly error: ErrorRecord | null;
  /** What keeps it after all. */
  readonly reasons?: readonly string[];
}

/** Tells what becomes of each backup, and remembers with which code to end. */
export class PruneOutcomes implements PruneListener {
  readonly byEntry = new Map<BackupEntry, PruneOutcome>();
  readonly #cli: Cli;
  readonly #codes: ExitCode[] = [];
  /** Of machines and storages that were given up as a whole. */
  readonly #worse: ExitCode[] = [];

  constructor(cli: Cli) {
    this.#cli = cli;
  }

  removed(pruning: Pruning, entry: BackupEntry): void {
    this.#codes.push(0);
    this.#note(pruning, entry, { removed: true, error: null });
    if (!this.#cli.terminal.json) this.#cli.terminal.out('removed ', nameOf(pruning, entry));
  }

  keptAfterAll(pruning: Pruning, { entry, reasons }: PruneDecision): void {
    this.#note(pruning, entry, { removed: false, error: null, reasons });
    this.#cli.terminal.remark(`kept after all: ${nameOf(pruning, entry)}: ${reasons.join(', ')}`);
  }

  failed(pruning: Pruning, entry: BackupEntry | null, error: unknown): void {
    const record = errorRecord(error);
    const code = exitCodeOf(record.code);
    if (entry === null) {
      this.#worse.push(code);
      for (const decision of pruning.decisions) {
        if (!decision.keep && this.#outcomeOf(pruning, decision.entry) === undefined)
          this.#note(pruning, decision.entry, { removed: false, error: record });
      }
      this.#cli.terminal.record(record, `${pruning.machine.name} in ${pruning.storage}`);
      return;
    }
    this.#codes.push(code);
    this.#note(pruning, entry, { removed: false, error: record });
    this.#cli.terminal.record(record, nameOf(pruning, entry));
  }

  /** Damage first, then a storage that is away, then as for several machines. */
  exitCode(unreachable: ExitCode): ExitCode {
    const worse = [...this.#worse, ...(unreachable === 0 ? [] : [unreachable])];
    for (const code of [5, 6] as const) if (worse.includes(code)) return code;
    return combinedExitCode([...worse, ...this.#codes]);
  }

  #note(pruning: Pruning, entry: BackupEntry, outcome: PruneOutcome): void {
    this.byEntry.set(plannedEntry(pruning, entry), outcome);
  }

  #outcomeOf(pruning: Pruning, entry: BackupEntry): PruneOutcome | undefined {
    return this.byEntry.get(plannedEntry(pruning, entry));
  }
}

/** The entry of the plan that a later look at the storage found again. */
function plannedEntry(pruning: Pruning, entry: BackupEntry): BackupEntry {
  return pruning.decisions.find((decision) => decision.entry.directory === entry.directory)?.entry ?? entry;
}

function nameOf(pruning: Pruning, entry: BackupEntry): string {
  return `${pruning.machine.name} at ${entry.pointInTime} from ${entry.storage}`;
}
