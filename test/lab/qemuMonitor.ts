import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { createInterface, type Interface } from 'node:readline';
import * as z from 'zod';

const answerSchema = z.object({
  return: z.unknown().optional(),
  error: z.object({ desc: z.string() }).optional(),
  event: z.string().optional(),
});
const jobsSchema = z.array(z.object({ id: z.string(), status: z.string() }));

/** QEMU's machine protocol, on the socket that libvirt has while it lives: only for when it does not. */
export class QemuMonitor implements AsyncDisposable {
  readonly #socket: Socket;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#reader = createInterface({ input: socket });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  static async connect(path: string): Promise<QemuMonitor> {
    const socket = connect(path);
    await once(socket, 'connect');
    const monitor = new QemuMonitor(socket);
    await monitor.ask('qmp_capabilities');
    return monitor;
  }

  /** The block jobs that QEMU knows. */
  async jobs(): Promise<z.infer<typeof jobsSchema>> {
    return jobsSchema.parse(await this.ask('query-jobs'));
  }

  /** Sends a command and waits for its answer; events in between, and the greeting, are passed over. */
  async ask(command: string, args: object = {}): Promise<unknown> {
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    for (;;) {
      const line = await this.#lines.next();
      if (line.done === true) throw new Error(`QEMU has closed its monitor instead of answering ${command}`);
      const answer = answerSchema.parse(JSON.parse(line.value));
      if (answer.error !== undefined) throw new Error(`${command}: ${answer.error.desc}`);
      if (answer.return !== undefined) return answer.return;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#reader.close();
    this.#socket.destroy();
    await Promise.resolve();
  }
}
