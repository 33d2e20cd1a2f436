import { setTimeout as sleep } from 'node:timers/promises';

/** The three calls of libc: Node.js knows no datagrams on unix sockets. */
interface Libc {
  readonly socket: (domain: number, type: number, protocol: number) => number;
  readonly sendto: (
    descriptor: number,
    data: Buffer,
    sizeBytes: number,
    flags: number,
    address: Buffer,
    addressBytes: number,
  ) => number;
  readonly close: (descriptor: number) => number;
  readonly failure: () => string;
}

/** From the headers of Linux, the same on x86-64 and arm64. */
const unixFamily = 1;
const datagramType = 2;
const closeOnExec = 0o2000000;
/** MSG_DONTWAIT and MSG_NOSIGNAL: a manager that does not read must not hold up our event loop. */
const sendFlags = 0x40 | 0x4000;
/** Length of `sun_path`. */
const pathBytesMax = 108;

/** What passes: its queue is full, or it is being started anew (`systemctl daemon-reexec`). */
const passing: ReadonlySet<string> = new Set(['EAGAIN', 'EWOULDBLOCK', 'ENOBUFS', 'ECONNREFUSED', 'ENOENT']);
const patienceMs = 5_000;
const retryMs = 50;

async function libc(): Promise<Libc> {
  const { default: koffi } = await import('koffi');
  const library = koffi.load('libc.so.6');
  const names = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number, name]));
  return {
    socket: library.func('int socket(int domain, int type, int protocol)'),
    sendto: library.func(
      'long sendto(int fd, const void *data, size_t size, int flags, const void *address, uint32_t addressSize)',
    ),
    close: library.func('int close(int fd)'),
    failure: () => names.get(koffi.errno()) ?? `errno ${koffi.errno()}`,
  };
}

/**
 * The socket on which a service tells its manager how it is (`NOTIFY_SOCKET`, sd_notify(3)). Messages arrive in the
 * order in which they were sent.
 */
export class NotifySocket implements Disposable {
  readonly #libc: Libc;
  readonly #descriptor: number;
  readonly #address: Buffer;
  #sent: Promise<void> = Promise.resolve();

  private constructor(functions: Libc, descriptor: number, address: Buffer) {
    this.#libc = functions;
    this.#descriptor = descriptor;
    this.#address = address;
  }

  /**
   * @param name a path, or `@NAME` of an abstract socket, as systemd writes it
   * @throws Error for another kind of address; a system error when there can be no socket
   */
  static async open(name: string): Promise<NotifySocket> {
    const address = addressOf(name);
    const functions = await libc();
    const descriptor = functions.socket(unixFamily, datagramType | closeOnExec, 0);
    if (descriptor < 0) throw systemError(functions.failure(), 'socket');
    return new NotifySocket(functions, descriptor, address);
  }

  /**
   * Sends one message of one or more assignments, such as `{ READY: '1' }`. One that cannot be taken now is tried again
   * for some seconds.
   * @throws a system error when that was in vain
   */
  send(assignments: Readonly<Record<string, string>>): Promise<void> {
    const text = Object.entries(assignments)
      // A line is an assignment.
      .map(([name, value]) => `${name}=${value.replaceAll('\n', ' ')}`)
      .join('\n');
    const sent = this.#sent.then(() => this.#deliver(Buffer.from(text)));
    this.#sent = sent.catch(() => undefined);
    return sent;
  }

  async #deliver(message: Buffer): Promise<void> {
    const giveUpMs = performance.now() + patienceMs;
    for (;;) {
      const { sendto, failure } = this.#libc;
      const size = message.length;
      if (sendto(this.#descriptor, message, size, sendFlags, this.#address, this.#address.length) === size)
        return;
      const code = failure();
      if (!passing.has(code) || performance.now() > giveUpMs) throw systemError(code, 'sendto');
      await sleep(retryMs);
    }
  }

  [Symbol.dispose](): void {
    this.#libc.close(this.#descriptor);
  }
}

/** A `sockaddr_un`: an abstract name has a zero byte for its `@`, a path one behind it. */
function addressOf(name: string): Buffer {
  const path = name.startsWith('@') ? `\0${name.slice(1)}` : `${name}\0`;
  if (!/^[@/]./.test(name) || Buffer.byteLength(path) > pathBytesMax)
    throw new Error(`NOTIFY_SOCKET is "${name}", which is no path and no abstract name`);
  const family = Buffer.alloc(2);
  // Both processors that we know are little-endian.
  family.writeUInt16LE(unixFamily);
  return Buffer.concat([family, Buffer.from(path)]);
}

function systemError(code: string, call: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: ${call} on the socket of the service manager`), {
    code,
    syscall: call,
  });
}
