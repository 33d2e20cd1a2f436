import { basename } from 'node:path';
import t from 'tap';
import { exists } from '../common/files.ts';
import { removeSharedImages, Site } from '../test/sim/site.ts';
import { printPlan, printRestored } from './restoreView.ts';
import type { Text } from './output.ts';

t.teardown(removeSharedImages);

/** Keeps what is printed, without its styles. */
class Page {
  text = '';

  readonly out = (...parts: readonly Text[]): void => {
    this.text += `${parts.map((part) => (typeof part === 'string' ? part : part.text)).join('')}\n`;
  };
}

async function backedUp(): Promise<Site> {
  const site = await Site.create({ targets: ['vda'] });
  const { agent } = site.openAgent();
  await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
  return site;
}

void t.test('a restore of files names the definition that it writes, before and after', async (t) => {
  await using site = await backedUp();
  const { agent, journal } = site.openAgent();
  const plan = await agent.planRestore({ backup: 'm@latest', to: site.filesDirectory });
  const page = new Page();
  printPlan(page.out, plan);
  const [, definition = ''] = /^ {2}definition: (.*)$/m.exec(page.text) ?? [];
  t.equal(basename(definition), 'm.xml');
  const job = await agent.run(agent.createRestore(plan));
  t.match(job, { state: 'finished' });
  t.ok(await exists(definition));
  const result = new Page();
  printRestored(result.out, plan, job, journal.steps(job.id));
  t.ok(result.text.includes(`files in ${plan.volumes[0]?.image}, ${definition}`), result.text);
});

void t.test('an instant restore says until when its storage is needed, and since when it runs', async (t) => {
  await using site = await backedUp();
  const { agent, journal } = site.openAgent();
  const plan = await agent.planRestore({ backup: 'm@latest', inPlace: true, instant: true });
  const page = new Page();
  printPlan(page.out, plan);
  t.match(page.text, /at once: the machine runs .* storage near must stay reachable$/m);
  const job = await agent.run(agent.createRestore(plan));
  t.match(job, { state: 'finished' });
  const result = new Page();
  printRestored(result.out, plan, job, journal.steps(job.id));
  t.match(
    result.text,
    /^it runs since \S+Z, .* after the restore began; .* storage near is needed no more$/m,
  );
});
