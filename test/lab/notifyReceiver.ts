import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import koffi from 'koffi';
import { eventually } from './eventually.ts';

const libc = koffi.load('libc.so.6');
const socket = libc.func('int socket(int domain, int type, int protocol)');
const bind = libc.func('int bind(int fd, const void *address, uint32_t size)');
const recv = libc.func('long recv(int fd, _Out_ uint8_t *data, size_t size, int flags)');
const close = libc.func('int close(int fd)');
const unixFamily = 1;
const datagram = 2;
const dontWait = 0x40;
const pollMs = 5;

/** One message, as its assignments. */
export type Told = Readonly<Record<string, string>>;

/** A service manager's end of the notify protocol: what is told to it. */
export class NotifyReceiver implements AsyncDisposable {
  /** For NOTIFY_SOCKET. */
  readonly name: string;
  readonly told: Told[] = [];
  readonly #descriptor: number;
  readonly #timer: NodeJS.Timeout;
  readonly #directory: string;

  private constructor(name: string, descriptor: number, directory: string) {
    this.name = name;
    this.#descriptor = descriptor;
    this.#directory = directory;
    this.#timer = setInterval(() => this.#receive(), pollMs);
  }

  /** @param kind of the socket's address */
  static async start(kind: 'path' | 'abstract' = 'path'): Promise<NotifyReceiver> {
    const directory = await mkdtemp(join(tmpdir(), 'stillpoint-notify-'));
    const path = join(directory, 'notify');
    const name = kind === 'path' ? path : `@${path}`;
    const descriptor: number = socket(unixFamily, datagram, 0);
    const address = Buffer.from(kind === 'path' ? `\u0001\0${path}\0` : `\u0001\0\0${path}`);
    if (bind(descriptor, address, address.length) !== 0) throw new Error(`cannot listen on ${name}`);
    return new NotifyReceiver(name, descriptor, directory);
  }

  #receive(): void {
    const buffer = Buffer.alloc(4096);
    for (;;) {
      const sizeBytes = Number(recv(this.#descriptor, buffer, buffer.length, dontWait));
      if (sizeBytes < 0) return;
      const lines = buffer.toString('utf8', 0, sizeBytes).split('\n').filter(Boolean);
      this.told.push(
        Object.fromEntries(lines.map((line) => [line.split('=', 1)[0] ?? '', line.replace(/^[^=]*=/, '')])),
      );
    }
  }

  /** How often something was told. */
  count(name: string): number {
    return this.told.filter((message) => message[name] !== undefined).length;
  }

  /** The value that was told last. */
  last(name: string): string | undefined {
    return this.told.findLast((message) => message[name] !== undefined)?.[name];
  }

  /** Waits until something was told. */
  async until(is: (receiver: NotifyReceiver) => boolean, timeoutMs = 20_000): Promise<void> {
    await eventually(() => is(this), { timeoutMs });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    close(this.#descriptor);
    await rm(this.#directory, { recursive: true });
  }
}
