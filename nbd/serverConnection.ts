import type { Socket } from 'node:net';
import { messageOf } from '../common/errors.ts';
import { ByteWindow } from './byteWindow.ts';
import type { CachedVolume } from './cachedVolume.ts';
import { NbdError, protocolError } from './errors.ts';
import { Inbox } from './inbox.ts';
import * as protocol from './protocol.ts';
import { Replies } from './replies.ts';
import { Sequence } from './sequence.ts';
import { ServedReads } from './servedReads.ts';
import type { ServerLimits } from './serverLimits.ts';
import { allocationId, negotiateAsServer } from './serverNegotiation.ts';
import type { Agreement, Asking } from './serverNegotiation.ts';
import { decodeRequest } from './serverProtocol.ts';
import type { ClientRequest } from './serverProtocol.ts';
import { describeStatus } from './servedStatus.ts';

/** Answers to options that a client does not take: then it is not asked for further ones. */
const unsentBytesMax = 64 * 1024;

export interface ServerConnectionOptions {
  readonly volumes: ReadonlyMap<string, CachedVolume>;
  readonly limits: ServerLimits;
  /** Called once at most for a client that breaks the protocol or takes too long. */
  readonly onClientError: (error: NbdError) => void;
  /** Called by every request that a source has failed. */
  readonly onSourceError: (error: unknown) => void;
}

/** What requests need once an export is open. */
interface Opened {
  readonly agreement: Agreement;
  readonly replies: Replies;
  readonly reads: ServedReads;
}

/**
 * One client: negotiates, then takes requests as long as not too many are open, and answers them in any order. What
 * it does not take yet stays in the socket, so that the client waits.
 */
export class ServerConnection {
  /** Resolves when nothing is left of it. Never rejects. */
  readonly closed: Promise<void>;
  readonly #options: ServerConnectionOptions;
  readonly #socket: Socket;
  readonly #inbox = new Inbox();
  readonly #window: ByteWindow;
  readonly #deadline: NodeJS.Timeout;
  readonly #negotiation: Asking<Agreement | null>;
  /** What the negotiation waits for. */
  #wantedBytes = 0;
  #opened: Opened | undefined;
  /** What is left of a payload that nobody wants. */
  #dropBytes = 0;
  #openRequests = 0;
  /** The client has taken its leave. */
  #isLeaving = false;
  #isOver = false;

  constructor(socket: Socket, options: ServerConnectionOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#window = new ByteWindow(options.limits.heldBytes);
    const { volumes, limits } = options;
    const ended = Promise.withResolvers<void>();
    this.closed = ended.promise;
    socket.on('data', (bytes: Buffer) => {
      this.#inbox.push(bytes);
      this.#goOn();
    });
    socket.on('drain', () => this.#goOn());
    // A client that goes without a word has taken its leave, too: nobody is left to hear of it.
    socket.on('error', () => this.end());
    socket.on('end', () => this.end());
    socket.on('close', () => {
      this.end();
      ended.resolve();
    });
    this.#deadline = setTimeout(() => this.#drop(this.#late()), limits.handshakeMs);
    const send = (bytes: Buffer): void => void socket.write(bytes);
    this.#negotiation = negotiateAsServer({ volumes, optionsMax: limits.options, send });
    this.#advance(this.#negotiation.next());
  }

  /** Ends it at once; requests that are open stay unanswered, so that a client that reconnects asks again. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#deadline);
    this.#window.close();
    this.#socket.destroy();
  }

  /** Works on what has come, and lets more come if there is room for it. */
  #goOn(): void {
    if (this.#isOver) return;
    // Replies that are ready at once leave together.
    this.#socket.cork();
    try {
      while (this.#step());
    } catch (error) {
      this.#drop(error instanceof NbdError ? error : protocolError(messageOf(error)));
    }
    this.#socket.uncork();
    if (this.#isOver || this.#isLeaving) return;
    if (this.#isFull() && !this.#socket.isPaused()) this.#socket.pause();
    else if (!this.#isFull() && this.#socket.isPaused()) this.#socket.resume();
  }

  #isFull(): boolean {
    return this.#opened === undefined
      ? this.#socket.writableLength > unsentBytesMax
      : this.#openRequests >= this.#options.limits.requests;
  }

  /** One option or request; `false` if there is none, or no room for one. */
  #step(): boolean {
    if (this.#isOver || this.#isLeaving || this.#isFull()) return false;
    if (this.#opened === undefined) return this.#haggle();
    this.#dropBytes -= this.#inbox.skip(this.#dropBytes);
    if (this.#dropBytes > 0) return false;
    const header = this.#inbox.take(protocol.requestBytes);
    if (header === undefined) return false;
    this.#perform(decodeRequest(header), this.#opened);
    return true;
  }

  #haggle(): boolean {
    const bytes = this.#inbox.take(this.#wantedBytes);
    if (bytes === undefined) return false;
    this.#advance(this.#negotiation.next(bytes));
    return true;
  }

  #advance({ done, value }: IteratorResult<number, Agreement | null>): void {
    if (done !== true) this.#wantedBytes = value;
    else if (value === null) this.#leave();
    else this.#open(value);
  }

  #open(agreement: Agreement): void {
    clearTimeout(this.#deadline);
    const { volume, structured, withAllocation } = agreement;
    const { heldBytes: heldBytesMax, readAheadBytes } = this.#options.limits;
    const replies = new Replies(this.#socket, structured);
    const aheadBlocks = Math.floor(readAheadBytes / volume.blockBytes);
    const sequence = new Sequence(aheadBlocks, (block) => volume.nextDataBlock(block));
    const report = (error: unknown): void => this.#report(error);
    const reads = new ServedReads({ volume, replies, window: this.#window, sequence, heldBytesMax, report });
    this.#opened = { agreement, replies, reads };
    // It will be asked for, and reads profit from it. Where it fails, who asks hears of it.
    if (withAllocation) volume.loadMap().catch(() => {});
  }

  #perform(request: ClientRequest, { agreement, replies, reads }: Opened): void {
    const { commands, errnos, payloadBytesMax } = protocol;
    const { command, lengthBytes } = request;
    if (command === commands.disconnect) return this.#leave();
    this.#openRequests += 1;
    const sent = (): void => this.#answered();
    const refuse = (errno: number, text: string): void => replies.refuse(request, errno, text, sent);
    switch (command) {
      case commands.write:
        // Their bytes come in any case; to throw away more than anybody may send is not worth it.
        if (lengthBytes > payloadBytesMax) throw protocolError(`a write of ${lengthBytes} bytes`);
        this.#dropBytes = lengthBytes;
        return refuse(errnos.EPERM, 'the export is read-only');
      case commands.trim:
      case commands.writeZeroes:
        return refuse(errnos.EPERM, 'the export is read-only');
      case commands.flush:
        // Nothing is written, so everything that was written is durable.
        return replies.finish(request, sent);
      case commands.read:
      case commands.blockStatus: {
        const problem = problemOf(request, agreement);
        if (problem !== undefined) return refuse(...problem);
        if (command === commands.read) return reads.serve(request, sent);
        return void this.#tellStatus(request, { agreement, replies }, sent);
      }
      default:
        return refuse(errnos.EINVAL, 'the command is not known');
    }
  }

  async #tellStatus(
    request: ClientRequest,
    { agreement, replies }: Pick<Opened, 'agreement' | 'replies'>,
    sent: () => void,
  ): Promise<void> {
    const { volume } = agreement;
    try {
      const map = volume.map ?? (await volume.loadMap());
      replies.status(request, allocationId, describeStatus(map, request), sent);
    } catch (error) {
      this.#report(error);
      replies.refuse(request, protocol.errnos.EIO, 'the map of the volume cannot be read', sent);
    }
  }

  #answered(): void {
    this.#openRequests -= 1;
    if (this.#isLeaving) this.#leave();
    else if (this.#socket.isPaused()) this.#goOn();
  }

  /** The client has said goodbye: what it still waits for comes first. */
  #leave(): void {
    this.#isLeaving = true;
    this.#socket.pause();
    if (this.#openRequests > 0 || this.#isOver) return;
    clearTimeout(this.#deadline);
    // Without waiting for the other end of it: who has said goodbye must not keep a place.
    this.#socket.destroySoon();
  }

  #report(error: unknown): void {
    if (!this.#isOver) this.#options.onSourceError(error);
  }

  #drop(error: NbdError): void {
    if (this.#isOver) return;
    this.end();
    this.#options.onClientError(error);
  }

  #late(): NbdError {
    return new NbdError('NBD_TIMEOUT', `no export opened within ${this.#options.limits.handshakeMs} ms`);
  }
}

/** Why a read or a status request cannot be answered, as error number and text. */
function problemOf(request: ClientRequest, agreement: Agreement): readonly [number, string] | undefined {
  const { commandFlags, commands, errnos, payloadBytesMax } = protocol;
  const { command, flags, offsetBytes, lengthBytes } = request;
  const { volume, structured, withAllocation } = agreement;
  const isRead = command === commands.read;
  const known = isRead ? (structured ? commandFlags.dontFragment : 0) : commandFlags.requestOne;
  if ((flags & ~known) !== 0) return [errnos.EINVAL, 'a flag that the command does not have'];
  if (!isRead && !withAllocation) return [errnos.EINVAL, 'no context was agreed upon'];
  if (offsetBytes + lengthBytes > volume.sizeBytes) return [errnos.EINVAL, 'beyond the end of the export'];
  if (!isRead) return lengthBytes === 0 ? [errnos.EINVAL, 'no range'] : undefined;
  if (lengthBytes <= payloadBytesMax) return undefined;
  const isWhole = (flags & commandFlags.dontFragment) !== 0;
  return [isWhole ? errnos.EOVERFLOW : errnos.EINVAL, 'more than a read may ask for'];
}
