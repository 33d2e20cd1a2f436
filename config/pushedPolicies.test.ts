import t from 'tap';
import { parseConfig } from './config.ts';
import { withPushed } from './hostConfig.ts';
import { policyFor } from './policy.ts';
import { parsePushed, pushedBytesMax, requireUsable } from './pushedPolicies.ts';
import type { Config } from './schema.ts';

const storages = `storages:
  local: { kind: directory, path: /l }
  vault: { kind: directory, path: /v }
`;

const keptAt = { revision: 7, setBy: 'controller:c1', setAt: '2026-11-22T10:00:00.000Z' };

/** A host with these files to which this was pushed. */
function host(text: string, document: object | null) {
  const kept = { ...keptAt, document: document === null ? null : JSON.stringify(document) };
  return withPushed(parseConfig(storages + text, '/c.yaml'), { kept, problem: null });
}

function policyOf(config: Config, machine: string): string {
  const said = policyFor(config, machine, '/c.yaml');
  return said.kind === 'excluded' ? `excluded by ${said.match}` : said.policy.name;
}

/** What a document is refused for. */
function refusal(document: unknown, text = ''): string {
  const { config } = parseConfig(storages + text, '/c.yaml');
  try {
    requireUsable(parsePushed(typeof document === 'string' ? document : JSON.stringify(document)), config);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'POLICIES_INVALID') return error.message;
    throw error;
  }
  throw new Error('it was not refused');
}

void t.test(
  'rules of the files come first, then those that were pushed, then the default of the files',
  async (t) => {
    const files = `policies: { default: {}, gold: { mode: save } }
machines: [{ match: "db-*", policy: gold }, { match: "scratch-*", exclude: true }]
`;
    const { config, pushed } = host(files, {
      policies: { gold: { mode: 'disk' }, default: { mode: 'live' } },
      machines: [
        { match: 'db-1', policy: 'default' },
        { match: 'scratch-1', policy: 'gold' },
        { match: 'web-*', policy: 'gold' },
        { match: 'old-*', exclude: true },
      ],
    });
    t.same(pushed.problems, []);
    t.equal(policyOf(config, 'db-1'), 'gold', 'the host decides about what it names');
    t.equal(policyOf(config, 'scratch-1'), 'excluded by scratch-*');
    t.equal(policyOf(config, 'web-1'), 'gold@controller');
    t.equal(policyOf(config, 'old-1'), 'excluded by old-*');
    t.equal(policyOf(config, 'other'), 'default', 'the host has one, and it stays');
    t.equal(config.policies['gold']?.mode, 'save', 'policies of files are as they were');
    t.equal(config.policies['gold@controller']?.mode, 'disk');
  },
);

void t.test('where the files have no default, the pushed one holds for the rest', async (t) => {
  const { config } = host('', { policies: { default: { schedule: '0 3 * * *' } } });
  t.equal(policyOf(config, 'any'), 'default@controller');
  t.equal(policyOf(host('', { policies: { gold: {} } }).config, 'any'), 'default');
});

void t.test('a pushed rule can name a policy of the host, with its hooks', async (t) => {
  const files = 'policies: { db: { hooks: { preBackup: { command: [/usr/bin/flush] } } } }\n';
  const { config } = host(files, { machines: [{ match: 'db-*', policy: 'db' }] });
  const said = policyFor(config, 'db-1', '/c.yaml');
  t.match(said, { policy: { name: 'db', hooks: { preBackup: { command: ['/usr/bin/flush'] } } } });
});

void t.test('what reaches beyond backups cannot be pushed, and the answer says why', async (t) => {
  const command = ['/bin/sh'];
  const cases: readonly (readonly [object, RegExp])[] = [
    [
      { policies: { a: { hooks: { preBackup: { command } } } } },
      /policies\.a\.hooks: .* run programs as root/,
    ],
    [{ policies: { a: { retainDirectory: '/etc' } } }, /policies\.a\.retainDirectory: .* a path of the host/],
    [{ storages: { s: { kind: 'directory', path: '/s' } } }, /storages: it cannot be pushed/],
    [{ storageGroups: { s: { storages: ['local'] } } }, /storageGroups: it cannot be pushed/],
    [{ agent: { listen: '0.0.0.0:1' } }, /agent: it cannot be pushed/],
    [{ controller: { address: 'x:1' } }, /controller: it cannot be pushed/],
    [{ templates: [{ name: 'x', image: '/etc/shadow' }] }, /templates: it cannot be pushed/],
    [{ hostBackups: { keep: null } }, /hostBackups: it cannot be pushed/],
    [{ metrics: { listen: '0.0.0.0:1' } }, /metrics: it cannot be pushed/],
    [{ alerts: { webhooks: [] } }, /alerts: it cannot be pushed/],
  ];
  for (const [document, expected] of cases) t.match(refusal(document), expected);
});

void t.test('everything that is wrong is named by its path', async (t) => {
  const cases: readonly (readonly [unknown, RegExp])[] = [
    ['{', /it is no JSON/],
    ['[]', /expected object/],
    ['null', /expected object/],
    [{ policies: { 'a b': {} } }, /policies\.a b: expected a name of letters/],
    [{ policies: { 'a@controller': {} } }, /expected a name of letters/],
    [{ policies: { a: { mode: 'fast' } } }, /policies\.a\.mode: expected one of auto/],
    [{ policies: { a: { schedule: { cron: '0 0 30 2 *' } } } }, /policies\.a\.schedule\.cron: /],
    [{ policies: { a: { keep: { last: -1 } } } }, /policies\.a\.keep\.last: expected 0 or more/],
    [{ policies: { a: { nonsense: 1 } } }, /policies\.a\.nonsense: there is no such key/],
    [{ policies: { a: { storages: ['cloud'] } } }, /policies\.a\.storages\.0: no storage is called cloud/],
    [
      { policies: { a: { replicate: [{ from: 'local', to: 'cloud' }] } } },
      /policies\.a\.replicate\.0\.to: no storage is called cloud/,
    ],
    [{ machines: [{ match: 'x', policy: 'gone' }] }, /machines\.0\.policy: no policy is called gone/],
    [
      { machines: [{ match: 'x', policy: '__proto__' }] },
      /machines\.0\.policy: no policy is called __proto__/,
    ],
    [{ machines: [{ match: 'x' }] }, /machines\.0: expected either policy or exclude/],
    ['{"policies":{"__proto__":{"bad":1}},"machines":[]}', /nothing can be called __proto__/],
    [
      { machines: Array.from({ length: 10_001 }, () => ({ match: 'x', exclude: true })) },
      /10000 rules or less/,
    ],
    [' '.repeat(pushedBytesMax + 1), /larger than 1048576 bytes/],
    ['['.repeat(500_000), /it is no JSON/],
    [
      `{"policies":{"a":{"keep":${'['.repeat(400_000)}${']'.repeat(400_000)}}}}`,
      /policies\.a\.keep: .*expected object/,
    ],
  ];
  for (const [document, expected] of cases) t.match(refusal(document), expected);
  const two = refusal({ policies: { a: { mode: 'fast' }, b: { keep: 1 } } });
  t.match(two, /policies\.a\.mode: .*; policies\.b\.keep: /, 'all of it at once');
  const many = {
    policies: Object.fromEntries(Array.from({ length: 50 }, (_, at) => [`p${at}`, { mode: 1 }])),
  };
  t.match(refusal(many), /and 40 more$/, 'but in bounds');
});

void t.test(
  'a policy whose storage the host takes away is not used; its machines are not pruned',
  async (t) => {
    const document = {
      policies: { 'to.vault': { storages: ['vault'], keep: { last: 1 } }, near: { storages: ['local'] } },
      machines: [
        { match: 'v-*', policy: 'to.vault' },
        { match: '*', policy: 'near' },
      ],
    };
    const kept = { ...keptAt, document: JSON.stringify(document) };
    const files = `storages: { local: { kind: directory, path: /l } }
policies: { default: { schedule: "0 4 * * *", keep: { last: 2 } } }
machines: [{ match: "named-*", policy: default }]
`;
    const { config, pushed } = withPushed(parseConfig(files, '/c.yaml'), { kept, problem: null });
    t.match(pushed.problems, [/policies\.to\.vault\.storages\.0: no storage is called vault/]);
    t.match(policyFor(config, 'v-1', '/c.yaml'), {
      policy: { name: 'default@stand-in', keep: null, schedule: { cron: '0 4 * * *' }, storages: ['local'] },
    });
    t.equal(policyOf(config, 'web-1'), 'near@controller', 'the others go on');
    t.match(policyFor(config, 'named-1', '/c.yaml'), { policy: { name: 'default', keep: { last: 2 } } });
  },
);

void t.test('what cannot be read stops no policy of the files, and prunes nothing by a guess', async (t) => {
  const files =
    'policies: { default: { keep: { last: 2 } } }\nmachines: [{ match: "n-*", policy: default }]\n';
  const local = parseConfig(storages + files, '/c.yaml');
  const { config, pushed } = withPushed(local, { kept: null, problem: 'it is damaged' });
  t.same(pushed, { kept: null, problems: ['it is damaged'] });
  t.match(policyFor(config, 'n-1', '/c.yaml'), { policy: { name: 'default', keep: { last: 2 } } });
  t.match(policyFor(config, 'x', '/c.yaml'), { policy: { name: 'default@stand-in', keep: null } });
  const newer = { ...keptAt, document: '{"policies":{"a":{"keyOfALaterVersion":1}}}' };
  const unread = withPushed(local, { kept: newer, problem: null });
  t.match(unread.pushed.problems, [/keyOfALaterVersion/]);
  t.match(policyFor(unread.config, 'x', '/c.yaml'), { policy: { name: 'default@stand-in' } });
});

void t.test('what was read before it was damaged still holds, and that is told', async (t) => {
  const document = { policies: { default: { mode: 'disk' } } };
  const before = { ...keptAt, document: JSON.stringify(document) };
  const local = parseConfig(storages, '/c.yaml');
  const { config, pushed } = withPushed(local, { kept: null, problem: 'it is damaged' }, before);
  t.equal(policyOf(config, 'x'), 'default@controller');
  t.same(pushed, { kept: before, problems: ['it is damaged'] });
});

void t.test('what was taken away, and what is not accepted, counts for nothing', async (t) => {
  const document = { policies: { default: {} } };
  for (const { config, pushed } of [
    host('', null),
    host('controller: { acceptPolicies: false }\n', document),
  ]) {
    t.equal(policyOf(config, 'x'), 'default');
    t.same(pushed.problems, []);
    t.equal(pushed.kept?.revision, 7);
  }
});

void t.test('the host says what pruning leaves in any case', async (t) => {
  const files =
    'controller: { keepAtLeast: { last: 3, within: 30d } }\npolicies: { own: { keep: { last: 1 } } }\n';
  const replicate = [{ from: 'local', to: 'vault', keep: { within: '2mo' } }];
  const { config } = host(files, {
    policies: {
      few: { keep: { last: 1, daily: 7 }, storages: ['local'], replicate },
      all: { keep: null },
    },
  });
  const keepOf = (name: string): unknown => config.policies[name]?.keep;
  t.same(keepOf('few@controller'), { last: 3, daily: 7, within: '30d' });
  t.same(config.policies['few@controller']?.replicate[0]?.keep, { last: 3, within: '2mo' });
  t.equal(keepOf('all@controller'), null, 'more than that is as it was');
  t.same(keepOf('own'), { last: 1 }, 'and the policies of the files are');
});
