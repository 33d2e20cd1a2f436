import type { Logger } from '../../common/log.ts';
import { ReportError } from './errors.ts';
import { Outbox, type OutboxEntry } from './outbox.ts';

/**
 * Has the outbox of a host open for as long as it can be used, and opens it anew when its file was removed or is damaged.
 */
export class OutboxKeeper implements Disposable {
  readonly #path: string;
  readonly #options: Omit<ConstructorParameters<typeof Outbox>[1], 'isDamaged'>;
  readonly #log: Logger;
  readonly #onNoted: () => void;
  #outbox: Outbox | undefined;
  #isClosed = false;

  /** @param hooks.onNoted is called when something was noted */
  constructor(
    path: string,
    options: Omit<ConstructorParameters<typeof Outbox>[1], 'isDamaged'>,
    hooks: { readonly log: Logger; readonly onNoted: () => void },
  ) {
    this.#path = path;
    this.#options = options;
    this.#log = hooks.log;
    this.#onNoted = hooks.onNoted;
  }

  /** @throws ReportError OUTBOX_UNUSABLE, also after it was closed */
  get outbox(): Outbox {
    const present = this.#outbox;
    const isDamaged = present?.isDamaged ?? false;
    if (present !== undefined && !isDamaged && present.isInPlace) return present;
    if (this.#isClosed) throw new ReportError('OUTBOX_UNUSABLE', `the outbox ${this.#path} was closed`);
    present?.[Symbol.dispose]();
    this.#outbox = undefined;
    this.#outbox = new Outbox(this.#path, { ...this.#options, isDamaged });
    this.#tellOpened(this.#outbox);
    return this.#outbox;
  }

  #tellOpened({ state: { generation, reason }, backlog: { reports } }: Outbox): void {
    const about = { outbox: this.#path, generation, waiting: reports };
    if (reason === 'damaged')
      this.#log.warn(about, 'the outbox was damaged and set aside; what waited in it is lost');
    else this.#log.info(about, 'the outbox is open');
  }

  /** @throws ReportError */
  note(entry: OutboxEntry): void {
    if (entry.reports.length === 0) return;
    this.outbox.note(entry);
    this.#onNoted();
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    this.#outbox?.[Symbol.dispose]();
    this.#outbox = undefined;
  }
}
