import t from 'tap';
import { withoutLifelong } from './lifelong.ts';
import { configSchema } from './schema.ts';

const present = configSchema.parse({
  storages: { local: { kind: 'directory', path: '/one' } },
  agent: { maxParallelMachines: 1 },
});

void t.test('policies, storages and rules are taken over, and the number of jobs', (t) => {
  const wanted = configSchema.parse({
    storages: { local: { kind: 'directory', path: '/two' } },
    policies: { default: { mode: 'save' } },
    machines: [{ match: 'a', exclude: true }],
    agent: { maxParallelMachines: 3, ramDisk: null },
  });
  const { config, kept } = withoutLifelong(present, wanted);
  t.match(config, wanted);
  t.same(kept, []);
  t.end();
});

void t.test('what was opened at the start stays, and is told by its key', (t) => {
  const agent = { libvirtUri: 'test:///default', stateDir: '/s', socket: '/r/s', maxParallelMachines: 2 };
  const wanted = configSchema.parse({ storages: present.storages, agent });
  const { config, kept } = withoutLifelong(present, wanted);
  t.same(kept, ['agent.libvirtUri', 'agent.stateDir', 'agent.socket']);
  t.match(config, { ...present, agent: { ...present.agent, maxParallelMachines: 2 } });
  t.end();
});

void t.test('what a controller may say is followed, whom the host tells is not', (t) => {
  const controller = { address: 'other:1', acceptPolicies: false, keepAtLeast: { last: 2 } };
  const { config, kept } = withoutLifelong(present, configSchema.parse({ ...present, controller }));
  t.match(config.controller, { address: null, acceptPolicies: false, keepAtLeast: { last: 2 } });
  t.same(kept, ['controller.address']);
  t.end();
});
