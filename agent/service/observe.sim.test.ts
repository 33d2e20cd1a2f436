import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { createLogger } from '../../common/log.ts';
import { nothingPushed } from '../../config/config.ts';
import { configSchema } from '../../config/schema.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { noteSaid } from '../../test/secrets.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { Agent } from '../agent.ts';
import { ServiceFigures } from '../observe/serviceFigures.ts';
import { Receiver } from '../observe/webhookFixture.ts';
import { observe } from './observe.ts';

t.teardown(removeSharedImages);

const addressSchema = z.object({ host: z.string(), port: z.number() });

/** A part of the service that lets others watch a site, until it is disposed of. */
class Observed implements AsyncDisposable {
  readonly lines: Record<string, unknown>[] = [];
  readonly #stop = new AbortController();
  readonly #ended: Promise<void>;

  constructor(site: Site, settings: object) {
    const { agent } = site.openAgent();
    const config = configSchema.parse({ ...agent.parts.config, ...settings });
    const destination = {
      write: (line: string): void => {
        noteSaid('a log', line);
        this.lines.push(JSON.parse(line));
      },
    };
    this.#ended = observe({
      agent: new Agent({ ...agent.parts, config }),
      loaded: { config, files: [], pushed: nothingPushed },
      configPath: '/etc/stillpoint/config.yaml',
      log: createLogger({ destination }),
      signal: this.#stop.signal,
      figures: new ServiceFigures(),
    });
  }

  /** Where the metrics are told. */
  async address(): Promise<string> {
    const line = await eventually(() => this.lines.find(({ msg }) => msg === 'metrics are told here'));
    const { host, port } = addressSchema.parse(line);
    return `http://${host}:${port}/metrics`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#ended;
  }
}

async function backUp(site: Site): Promise<void> {
  const { agent } = site.openAgent();
  await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
}

void t.test(
  'the first scrape after a start is right, and the service answers as long as it runs',
  async (t) => {
    await using site = await Site.create();
    await backUp(site);
    let address: string;
    {
      await using observed = new Observed(site, { metrics: { listen: '127.0.0.1:0' } });
      address = await observed.address();
      const response = await fetch(address);
      t.equal(response.status, 200);
      t.match(response.headers.get('content-type'), /^text\/plain; version=0\.0\.4/);
      const text = await response.text();
      t.match(text, /^stillpoint_backup_last_timestamp_seconds\{machine="m",storage="near"\} 1\d{9}/m);
      t.match(text, /^stillpoint_start_timestamp_seconds 1\d{9}/m, 'it is known as the service');
      t.match(text, /^stillpoint_scratch_free_bytes\{path=".*state"\} \d+/m);
    }
    await t.rejects(fetch(address), 'and no longer');
  },
);

void t.test('a textfile is whole, and readable by the collector', async (t) => {
  await using site = await Site.create();
  const textfile = join(site.directory, 'stillpoint.prom');
  await using _observed = new Observed(site, { metrics: { textfile } });
  const text = await eventually(() => readFile(textfile, 'utf8'));
  t.match(text, /^stillpoint_up 1$/m);
  t.ok(text.endsWith('\n'));
});

void t.test('what is wrong at the start of the service is told to a webhook', async (t) => {
  await using receiver = await Receiver.start();
  await using site = await Site.create();
  const { agent, journal } = site.openAgent();
  const job = await agent.createBackup({ machine: 'm', mode: 'disk' });
  const error = { code: 'NO_SPACE', message: 'there is no room', retryable: true };
  journal.end(job.id, { state: 'failed', error, holdsMachine: true });
  await using observed = new Observed(site, { alerts: { webhooks: [{ url: receiver.url }] } });
  await receiver.until(1);
  t.match(receiver.received[0]?.body, {
    event: 'job-parked',
    jobId: job.id,
    machine: { name: 'm', uuid: site.uuid },
    message: /there is no room/,
    hint: /stillpoint job retry/,
  });
  t.match(
    observed.lines.find(({ alert }) => alert !== undefined),
    { jobId: job.id, machine: 'm', machineUuid: site.uuid },
  );
});

void t.test('where nothing is configured nothing is asked of libvirt or of storages', async (t) => {
  await using site = await Site.create();
  const asked: string[] = [];
  const { agent } = site.openAgent((moment) => void asked.push(moment));
  const stop = new AbortController();
  const { config } = agent.parts;
  const log = createLogger({ level: 'silent' });
  const loaded = { config, files: [], pushed: nothingPushed };
  await observe({ agent, loaded, configPath: '/c.yaml', log, signal: stop.signal });
  t.same(asked, []);
  t.ok(agent.parts.journal.serviceOwner(), 'but status sees that the service runs');
});
