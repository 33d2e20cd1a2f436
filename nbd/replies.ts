import type { Socket } from 'node:net';
import * as encoding from './serverProtocol.ts';
import type { ClientRequest } from './serverProtocol.ts';

/** Called when a reply has left this process, or never will. */
export type Sent = () => void;

/**
 * Writes replies to a client in the form that was agreed upon. Data go to the socket as they lie in the cache, behind
 * their header; what is written in one go leaves in one system call (the connection corks).
 */
export class Replies {
  readonly structured: boolean;
  readonly #socket: Socket;

  constructor(socket: Socket, structured: boolean) {
    this.#socket = socket;
    this.structured = structured;
  }

  /**
   * Data of a read. Without structured replies it must be all of them.
   *
   * @param pieces buffers that nobody writes to any more, which together are the stretch
   */
  data(
    request: ClientRequest,
    stretch: { readonly offsetBytes: number; readonly lengthBytes: number; readonly done: boolean },
    pieces: readonly Buffer[],
    sent: Sent,
  ): void {
    const start = this.structured
      ? encoding.encodeDataStart(request, stretch)
      : encoding.encodeSimpleReply(request, 0);
    this.#together(() => {
      this.#socket.write(start);
      const last = pieces.length - 1;
      for (const [index, piece] of pieces.entries()) {
        if (index < last) this.#socket.write(piece);
        else this.#socket.write(piece, sent);
      }
    });
  }

  /** Says that a stretch of a read is zero; only with structured replies. */
  hole(
    request: ClientRequest,
    stretch: { readonly offsetBytes: number; readonly lengthBytes: number; readonly done: boolean },
    sent?: Sent,
  ): void {
    this.#socket.write(encoding.encodeHole(request, stretch), sent);
  }

  /** The whole answer to a status request. */
  status(
    request: ClientRequest,
    contextId: number,
    descriptors: readonly { readonly lengthBytes: number; readonly flags: number }[],
    sent: Sent,
  ): void {
    this.#socket.write(encoding.encodeStatus(request, contextId, descriptors), sent);
  }

  /** Success without anything further. */
  finish(request: ClientRequest, sent: Sent): void {
    const reply = this.structured ? encoding.encodeNone(request) : encoding.encodeSimpleReply(request, 0);
    this.#socket.write(reply, sent);
  }

  /** Refuses a request. @param text for people, where the form has room for it */
  refuse(request: ClientRequest, errno: number, text: string, sent: Sent): void {
    const reply = this.structured
      ? encoding.encodeRefusal(request, errno, text)
      : encoding.encodeSimpleReply(request, errno);
    this.#socket.write(reply, sent);
  }

  #together(write: () => void): void {
    this.#socket.cork();
    write();
    this.#socket.uncork();
  }
}
