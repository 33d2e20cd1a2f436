import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { S3 } from '@aws-sdk/client-s3';
import { type RadosgwAnswer, radosgwAnswer } from './radosgwAnswer.ts';
import { labPrefix } from './sweep.ts';

const keeperFile = path.join(import.meta.dirname, 'radosgwKeeper.ts');

/** A real S3 server of its own: Ceph's radosgw on loopback, with objects in memory. Gone after `stop`, or with us. */
export class Radosgw implements AsyncDisposable {
  /** Everything of it is below this directory. */
  readonly root: string;
  readonly endpoint: string;
  readonly dnsName: string;
  readonly credentials: { readonly accessKeyId: string; readonly secretAccessKey: string };
  readonly #stop: () => Promise<void>;

  private constructor(
    root: string,
    answer: Exclude<RadosgwAnswer, { error: string }>,
    stop: () => Promise<void>,
  ) {
    this.root = root;
    this.endpoint = answer.endpoint;
    this.dnsName = answer.dnsName;
    const { accessKeyId, secretAccessKey } = answer;
    this.credentials = { accessKeyId, secretAccessKey };
    this.#stop = stop;
  }

  /** Takes about ten seconds. */
  static async start(): Promise<Radosgw> {
    const root = await mkdtemp(path.join(process.env['STILLPOINT_LAB_ROOT'] ?? tmpdir(), labPrefix));
    // In a session of its own: an interrupt from the terminal must not reach it before it has cleaned up.
    const keeper = spawn(process.execPath, [keeperFile, root], {
      stdio: ['pipe', 'pipe', 'inherit'],
      detached: true,
    });
    // The keeper has removed it, unless it was killed: then nobody else does.
    const ended = once(keeper, 'exit').then(() => rm(root, { recursive: true, force: true }));
    const stop = async (): Promise<void> => {
      keeper.stdin.end();
      await ended;
    };
    const line = await createInterface({ input: keeper.stdout })[Symbol.asyncIterator]().next();
    if (line.done === true) throw new Error('the keeper of the radosgw has ended');
    const answer = radosgwAnswer.parse(JSON.parse(line.value));
    if (!('error' in answer)) return new Radosgw(root, answer, stop);
    await stop();
    throw new Error(`radosgw did not start: ${answer.error}; npm run setup installs what it needs`);
  }

  /** @param options.objectLock its objects can be locked, and have versions */
  async createBucket(name: string, options: { readonly objectLock?: boolean } = {}): Promise<void> {
    const { endpoint, credentials } = this;
    const s3 = new S3({ endpoint, credentials, region: 'us-east-1', forcePathStyle: true });
    await s3.createBucket({ Bucket: name, ObjectLockEnabledForBucket: options.objectLock ?? false });
    s3.destroy();
  }

  async stop(): Promise<void> {
    await this.#stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
