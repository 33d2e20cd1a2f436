import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { loadConfig, parseConfig } from './config.ts';
import { ConfigError, formatProblem } from './errors.ts';
import { keepIn, matchesName, policyFor } from './policy.ts';
import { membersOf, sourcesInto } from './storageGroups.ts';
import { configSchema } from './schema.ts';

const storage = 'storages: { local: { kind: directory, path: /backup } }\n';

function refusal(text: string): ConfigError {
  try {
    parseConfig(text, 'c.yaml');
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
  throw new Error('it was accepted');
}

const problemsOf = (text: string): readonly string[] => refusal(text).problems.map(formatProblem);

void t.test('a file with only storages is complete, and so is no file where none is needed', async (t) => {
  const { config } = parseConfig(storage, 'c.yaml');
  t.match(config, {
    agent: { libvirtUri: 'qemu:///system', ramDisk: '/dev/shm/stillpoint', maxParallelMachines: 2 },
    storages: { local: { kind: 'directory', path: '/backup', stallSeconds: 600 } },
  });
  t.match(policyFor(config, 'vm-001', 'c.yaml'), {
    kind: 'policy',
    policy: {
      name: 'default',
      mode: 'auto',
      storages: ['local'],
      retainDirectory: null,
      merge: { bandwidthBytesPerSecond: 0, includeSharedBase: false },
      deadlines: { saveSeconds: 600 },
    },
  });
  const missing = join(t.testdir({}), 'config.yaml');
  t.same((await loadConfig(missing, { optional: true })).files, []);
  await t.rejects(loadConfig(missing), { code: 'CONFIG_MISSING', hint: /kind: directory/ });
  await t.rejects(loadConfig('/proc/1/mem'), { code: 'CONFIG_UNREADABLE' });
});

void t.test('every key works in a file of its own', (t) => {
  const keys = [
    'agent: { libvirtUri: "qemu+unix:///system?socket=/x" }',
    'agent: { ramDisk: null }',
    'agent:',
    'policies: { default: { mode: save } }',
    'policies: { default: { memory: { every: 3 } } }',
    'policies: { default: { memoryMaxBytes: 1073741824 } }',
    'policies: { default: { merge: { includeSharedBase: true } } }',
    'policies: { default: { deadlines: { saveSeconds: 1 } } }',
    'policies: { default: { read: { bandwidthBytesPerSecond: 1 } } }',
    'machines: [{ match: "*", exclude: true }]',
    'machines: [{ match: "*", policy: default }]',
    '',
    '# nothing but a comment',
  ];
  for (const text of keys) t.ok(parseConfig(text, 'c.yaml').config, text);
  t.end();
});

void t.test('all problems are told at once, each with line and column', (t) => {
  const text = [
    'agent:',
    '  maxParallelMachines: lots',
    '  colour: red',
    'storages:',
    '  local: { kind: directory, path: backup }',
    'policies:',
    '  default:',
    '    merge: { bandwidthBytesPerSecond: 10MiB }',
    'machines:',
    '  - { match: "a" }',
    '  - { match: "b", policy: default, exclude: true }',
  ].join('\n');
  t.same(problemsOf(text), [
    'c.yaml:2:3: agent.maxParallelMachines: expected a whole number, without a unit',
    'c.yaml:3:3: agent.colour: there is no such key',
    'c.yaml:5:29: storages.local.path: expected an absolute path',
    'c.yaml:8:14: policies.default.merge.bandwidthBytesPerSecond: expected a whole number, without a unit',
    'c.yaml:10:5: machines.0: expected either policy or exclude: true',
    'c.yaml:11:5: machines.1: expected either policy or exclude: true',
  ]);
  t.equal(refusal(text).code, 'CONFIG_INVALID');
  t.end();
});

void t.test('what is not YAML, or would be misread, is refused with its place', (t) => {
  t.match(problemsOf('agent:\n  socket: "/x\nstorages: {}\n'), [/^c\.yaml:\d+:\d+: /]);
  t.match(problemsOf('agent: {}\nagent: {}\n'), [/^c\.yaml:2:1: .*unique/]);
  t.match(problemsOf('agent: !secret {}\n'), [/^c\.yaml:1:8: .*tag/]);
  t.match(problemsOf('- a list\n'), [/^c\.yaml:1:1: .*object/]);
  t.match(
    problemsOf(
      'a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n',
    ),
    [/c\.yaml:1:1: .*alias/i],
  );
  t.end();
});

void t.test('a repository has a place and a key file, and on S3 what a server wants to know', (t) => {
  const repository = (keys: string): string =>
    `storages:\n  vault: { kind: repository, keyFile: /k, ${keys} }\n`;
  const s3 = 'url: "s3://bucket/prefix", endpoint: "https://s3.example.net"';
  for (const keys of ['url: "file:///srv/vault"', `${s3}, credentialsFile: /c, region: eu-1`])
    t.match(parseConfig(repository(keys), 'c.yaml').config.storages['vault'], { kind: 'repository' });
  t.match(problemsOf(repository(s3)), [
    /storages\.vault\.credentialsFile: a storage of s3: needs credentialsFile/,
  ]);
  t.match(problemsOf(repository('url: "file:///srv/vault", region: eu-1')), [
    /storages\.vault\.region: a storage of file: has no region/,
  ]);
  for (const level of ['-1', '20', '1.5', 'fast'])
    t.match(
      problemsOf(repository(`url: "file:///srv/vault", compressionLevel: ${level}`)),
      [/storages\.vault\.compressionLevel: expected/],
      level,
    );
  for (const url of ['/srv/vault', 'file://host/srv', 'http://bucket'])
    t.match(problemsOf(repository(`url: "${url}"`)), [/expected file:\/\/\/PATH or s3:\/\/BUCKET/], url);
  const locked = `${s3}, credentialsFile: /c, objectLock: { days: 30 }`;
  t.match(parseConfig(repository(locked), 'c.yaml').config.storages['vault'], { objectLock: { days: 30 } });
  for (const [lock, problem] of [
    ['{ days: 0 }', /expected at least 1/],
    ['{ days: 1.5 }', /whole number of days/],
    ['{ days: 3, mode: governance }', /mode/],
  ] as const)
    t.match(problemsOf(repository(`${s3}, credentialsFile: /c, objectLock: ${lock}`)), [problem], lock);
  t.match(problemsOf(repository('url: "file:///srv/vault", objectLock: { days: 3 }')), [
    /storages\.vault\.objectLock: a storage of file: has no objectLock/,
  ]);
  t.match(problemsOf('storages: { vault: { kind: bucket } }'), [
    /expected kind: directory or kind: repository/,
  ]);
  t.match(
    problemsOf(`${repository('url: "file:///srv/vault"')}  other: { kind: directory, path: /srv/vault }\n`),
    [/storages\.other\.path: storage vault is the same place/],
  );
  t.match(problemsOf('policies: { default: { mode: fast } }'), [/expected one of auto, save, live/]);
  t.end();
});

void t.test('keep takes its rules and nothing else, and without it everything stays', (t) => {
  const policyOf = (text: string) => {
    const decision = policyFor(parseConfig(storage + text, 'c.yaml').config, 'vm-001', 'c.yaml');
    return decision.kind === 'policy' ? decision.policy : undefined;
  };
  t.equal(policyOf('')?.keep, null);
  t.equal(policyOf('policies: { default: { keep: null } }')?.keep, null);
  t.same(policyOf('policies: { default: { keep: {} } }')?.keep, {});
  const all = { last: 0, hourly: 1, daily: 2, weekly: 3, monthly: 4, yearly: 5, within: '6mo' };
  t.match(policyOf(`policies: { default: { timeZone: America/New_York, keep: ${JSON.stringify(all)} } }`), {
    keep: all,
    timeZone: 'America/New_York',
  });
  t.same(
    problemsOf(
      [
        'policies:',
        '  default:',
        '    keep:',
        '      last: -1',
        '      daily: 7d',
        '      dayly: 7',
        '      within: 14',
        '  other: { keep: { within: 2 weeks } }',
        '  third: { keep: 7 }',
      ].join('\n'),
    ),
    [
      'c.yaml:4:7: policies.default.keep.last: expected 0 or more',
      'c.yaml:5:7: policies.default.keep.daily: expected a whole number, without a unit',
      'c.yaml:6:7: policies.default.keep.dayly: there is no such key',
      'c.yaml:7:7: policies.default.keep.within: expected a span such as "36h", "14d", "8w", "6mo" or "2y"',
      'c.yaml:8:20: policies.other.keep.within: expected a span such as "36h", "14d", "8w", "6mo" or "2y"',
      'c.yaml:9:12: policies.third.keep: Invalid input: expected object, received number',
    ],
  );
  t.end();
});

void t.test('a bandwidth that would make a storage seem silent is refused', (t) => {
  const vault = (limits: string): string =>
    `storages: { v: { kind: repository, url: "file:///v", keyFile: /k, ${limits} } }\n`;
  t.match(problemsOf(vault('bandwidthBytesPerSecond: 1000')), [/expected 0 or at least 524288/]);
  t.match(problemsOf(vault('stallSeconds: 60, bandwidthBytesPerSecond: 1000000')), [
    /bandwidthBytesPerSecond: expected 0 or at least 2236963 with a stallSeconds of 60/,
  ]);
  t.ok(parseConfig(vault('bandwidthBytesPerSecond: 1000000'), 'c.yaml'));
  const local = 'storages: { l: { kind: directory, path: /l, bandwidthBytesPerSecond: 1000 } }\n';
  t.match(problemsOf(local), [/expected 0 or at least 524288/], 'of any kind');
  t.end();
});

void t.test('a policy copies from where its backups are by then to where they are not', (t) => {
  const storages = ['local', 'vault', 'cloud'].map(
    (name) => `  ${name}: { kind: directory, path: /${name} }\n`,
  );
  const text = (policy: string): string => `storages:\n${storages.join('')}policies:\n  default: ${policy}\n`;
  const rules =
    'replicate: [{ from: local, to: vault }, { from: vault, to: cloud, keep: { last: 9 } }], keep: { last: 1 }';
  const decision = policyFor(parseConfig(text(`{ ${rules} }`), 'c.yaml').config, 'm', 'c.yaml');
  if (decision.kind !== 'policy') throw new Error('no policy');
  t.same(decision.policy.storages, ['local'], 'all but those that are copied to');
  t.same(
    ['local', 'vault', 'cloud'].map((name) => keepIn(decision.policy, name)),
    [{ last: 1 }, { last: 1 }, { last: 9 }],
  );
  t.same(
    problemsOf(text('{ storages: [local], replicate: [{ from: vault, to: local }, { from: x, to: y }] }')),
    [
      'c.yaml:6:47: policies.default.replicate.0.from: no backup of this policy is in vault by then',
      'c.yaml:6:60: policies.default.replicate.0.to: the backups of this policy are in local already',
      'c.yaml:6:75: policies.default.replicate.1.from: no storage is called x',
      'c.yaml:6:84: policies.default.replicate.1.to: no storage is called y',
    ],
  );
  const grouped = `storageGroups: { main: { storages: [local, vault] } }\n`;
  const fromMember = text('{ replicate: [{ from: local, to: cloud }] }') + grouped;
  const byGroup = policyFor(parseConfig(fromMember, 'c.yaml').config, 'm', 'c.yaml');
  t.match(byGroup, { policy: { storages: ['main'] } }, 'a storage of a group may have them');
  t.ok(parseConfig(text('{ replicate: [{ from: main, to: cloud }] }') + grouped, 'c.yaml'), 'and the group');
  const oneByOne = '{ from: local, to: cloud, keep: { last: 9 } }, { from: vault, to: cloud }';
  const entries = parseConfig(text(`{ replicate: [${oneByOne}], keep: { last: 1 } }`) + grouped, 'c.yaml');
  const each = policyFor(entries.config, 'm', 'c.yaml');
  if (each.kind !== 'policy') throw new Error('no policy');
  t.same(keepIn(each.policy, 'cloud'), { last: 9 }, 'one of the entries says what is kept');
  t.same(sourcesInto(entries.config, each.policy.replicate, 'cloud'), ['local', 'vault']);
  t.match(
    problemsOf(text('{ replicate: [{ from: main, to: cloud }, { from: local, to: cloud }] }') + grouped),
    [/replicate\.1\.to: the backups of this policy are in cloud already/],
  );
  t.match(problemsOf(text('{ storages: [local], replicate: [{ from: main, to: vault }] }') + grouped), [
    /replicate\.0\.to: vault is what it is copied from/,
  ]);
  const twice = oneByOne.replace(/ }$/, ', keep: { last: 2 } }');
  t.match(problemsOf(text(`{ replicate: [${twice}] }`) + grouped), [
    /replicate\.1\.keep: what is kept in cloud is said by an entry before this one/,
  ]);
  t.match(problemsOf(text('{ storages: [main], replicate: [{ from: local, to: vault }] }') + grouped), [
    /replicate\.0\.to: the backups of this policy are in vault already/,
  ]);
  t.end();
});

void t.test('names that lead nowhere are refused where they stand', (t) => {
  t.same(
    problemsOf(
      `${storage}policies:\n  p: { storages: [local, vault] }\nmachines:\n  - { match: "*", policy: gold }\n`,
    ),
    [
      'c.yaml:3:26: policies.p.storages.1: no storage is called vault; there is local',
      'c.yaml:5:19: machines.0.policy: no policy is called gold; there is default, p',
    ],
  );
  t.end();
});

void t.test('a time zone that does not exist, and a schedule that means nothing, are refused', (t) => {
  t.match(problemsOf('policies: { p: { timeZone: Europe/Atlantis, schedule: "often" } }'), [
    /time zone/,
    /cron/,
  ]);
  t.end();
});

void t.test(
  'a schedule is a line of cron or more about it, and what is wrong with it is told where it stands',
  (t) => {
    const scheduleOf = (text: string) => {
      const policies = `policies: { default: { schedule: ${text} } }`;
      const decision = policyFor(parseConfig(storage + policies, 'c.yaml').config, 'vm-001', 'c.yaml');
      return decision.kind === 'policy' ? decision.policy.schedule : undefined;
    };
    const defaults = {
      jitterSeconds: 0,
      windows: [],
      blackouts: [],
      retries: { count: 2, firstDelaySeconds: 300, factor: 3, maxDelaySeconds: 3600 },
    };
    t.same(scheduleOf('"0 2 * * *"'), { ...defaults, cron: '0 2 * * *' });
    t.same(scheduleOf('"@daily"'), { ...defaults, cron: '@daily' });
    t.same(scheduleOf('{ every: 4h, retries: { count: 0 } }'), {
      ...defaults,
      every: '4h',
      retries: { ...defaults.retries, count: 0 },
    });
    const none = policyFor(parseConfig(storage, 'c.yaml').config, 'vm-001', 'c.yaml');
    t.equal(none.kind === 'policy' && none.policy.schedule, null, 'none unless told');
    t.match(
      problemsOf(
        [
          'policies:',
          '  a: { schedule: "0 25 * * *" }',
          '  b: { schedule: 7 }',
          '  c:',
          '    schedule:',
          '      cron: "0 2 * *"',
          '      windows: ["22-06"]',
          '      blackouts: ["2026-02-30"]',
          '      jitter: 5',
          '      retries: { factor: 0.5 }',
          '  d: { schedule: { every: 4 } }',
          '  e: { schedule: { every: 5m } }',
          '  f: { schedule: { every: 4h, cron: "@daily" } }',
          '  g: { schedule: {} }',
        ].join('\n'),
      ),
      [
        /^c\.yaml:2:8: policies\.a\.schedule: hour "25": "25" is not allowed \(allowed: 0 to 23;/,
        /^c\.yaml:3:8: policies\.b\.schedule: expected the five fields of cron.* or \{ every/,
        /^c\.yaml:6:7: policies\.c\.schedule\.cron: expected the five fields/,
        /^c\.yaml:7:17: policies\.c\.schedule\.windows\.0: expected times such as/,
        /^c\.yaml:8:19: policies\.c\.schedule\.blackouts\.0: there is no day 2026-02-30/,
        /^c\.yaml:9:7: policies\.c\.schedule\.jitter: there is no such key/,
        /^c\.yaml:10:18: policies\.c\.schedule\.retries\.factor: expected 1 or more/,
        /^c\.yaml:11:20: policies\.d\.schedule\.every: expected an interval/,
        /^c\.yaml:12:20: policies\.e\.schedule\.every: expected an interval/,
        /^c\.yaml:13:8: policies\.f\.schedule: expected either cron or every/,
        /^c\.yaml:14:8: policies\.g\.schedule: expected either cron or every/,
      ],
    );
    t.end();
  },
);

void t.test('drop-ins are merged in the order of their names, and problems name their file', async (t) => {
  const directory = t.testdir({
    '10-storages.yaml': storage,
    '20-more.yaml':
      'storages: { second: { kind: directory, path: /second } }\nmachines: [{ match: "web-*", exclude: true }]\n',
    '30-change.yaml':
      'storages: { local: { kind: directory, path: /other } }\nmachines: [{ match: "*", policy: default }]\nagent:\n',
    'README.txt': 'not read',
  });
  const { config, files } = await loadConfig(directory);
  t.equal(files.length, 3);
  t.same(config.storages, {
    local: {
      kind: 'directory',
      path: '/other',
      bandwidthBytesPerSecond: 0,
      stallSeconds: 600,
      warnPercent: 85,
    },
    second: {
      kind: 'directory',
      path: '/second',
      bandwidthBytesPerSecond: 0,
      stallSeconds: 600,
      warnPercent: 85,
    },
  });
  t.same(
    config.machines.map(({ match }) => match),
    ['web-*', '*'],
  );
  await writeFile(
    join(directory, '30-change.yaml'),
    'agent: { socket: x }\nmachines:\n  - { match: a, policy: gold }\n',
  );
  await writeFile(join(directory, '40-wrong.yaml'), 'machines: { match: b }\n');
  const first = await loadConfig(directory).catch((error: unknown) => error);
  t.ok(first instanceof ConfigError);
  if (first instanceof ConfigError)
    t.match(first.problems, [
      { file: /30-change/, line: 1 },
      { file: /40-wrong/, line: 1 },
    ]);
  await writeFile(join(directory, '40-wrong.yaml'), 'agent: { socket: /x/s }\n');
  const second = await loadConfig(directory).catch((error: unknown) => error);
  t.match(second, { problems: [{ file: /30-change/, line: 3, column: 17, key: 'machines.1.policy' }] });
});

void t.test('drop-ins beside a file come after it, and do without it at the place by default', async (t) => {
  const directory = t.testdir({
    'config.yaml': `${storage}policies: { default: { mode: save } }\n`,
    'config.d': { '10-mode.yaml': 'policies: { default: { mode: disk } }\n', 'off.yaml.disabled': 'x: 1\n' },
    'lonely.d': { '10.yaml': storage },
  });
  const { config, files } = await loadConfig(join(directory, 'config.yaml'));
  t.match(config.policies, { default: { mode: 'disk' } });
  t.same(files, [join(directory, 'config.yaml'), join(directory, 'config.d', '10-mode.yaml')]);
  const lonely = join(directory, 'lonely.yaml');
  t.equal((await loadConfig(lonely, { optional: true })).files.length, 1);
  await t.rejects(loadConfig(lonely), { code: 'CONFIG_MISSING' }, 'a file that was named must be there');
  await writeFile(join(directory, 'config.d', '20-wrong.yaml'), 'policies: { default: { mode: fast } }\n');
  const refused = await loadConfig(join(directory, 'config.yaml')).catch((error: unknown) => error);
  t.match(refused, { problems: [{ file: /20-wrong/, line: 1, column: 24 }] });
});

void t.test('the socket is in no directory that others use, which the service would open to them', (t) => {
  const parsed = (path: string) => parseConfig(`${storage}agent: { socket: "${path}" }\n`, 'c.yaml').config;
  for (const path of ['/root/a.sock', '/run/a.sock', '/run/x/../a.sock', '/a.sock', '/tmp/a.sock'])
    t.throws(() => parsed(path), { message: /for Stillpoint alone/ }, path);
  t.equal(parsed('/run/stillpoint-2/a.sock').agent.socket, '/run/stillpoint-2/a.sock');
  t.end();
});

void t.test('a hook is a program by its absolute path, with its arguments', (t) => {
  const hook = (keys: string): string => `${storage}policies: { default: { hooks: { ${keys} } } }\n`;
  const { hooks } =
    parseConfig(hook('preBackup: { command: [/x/y, -a] }'), 'c.yaml').config.policies['default'] ?? {};
  t.same(hooks, { preBackup: { command: ['/x/y', '-a'], deadlineSeconds: 60, whenItFails: 'abort' } });
  t.match(problemsOf(hook('preBackup: { command: [flush] }')), [
    /expected the absolute path of a program first/,
  ]);
  t.match(problemsOf(hook('postBackup: { command: /x/y }')), [/hooks\.postBackup\.command: /]);
  t.match(problemsOf(hook('onFailure: { command: [/x], whenItFails: abort }')), [/there is no such key/]);
  t.match(problemsOf(hook('postBackup: { command: [] }')), [/expected a program and its arguments/]);
  t.end();
});

void t.test('every S3 storage has the backup address, unless it has one of its own', (t) => {
  const s3 = (name: string, keys = ''): string =>
    `  ${name}: { kind: repository, url: "s3://${name}", endpoint: "https://h", credentialsFile: /c, keyFile: /k${keys} }\n`;
  const text = `agent: { backupAddress: 192.0.2.1 }\n${storage.replace('{ local: ', '\n  local: ').replace(' }\n', '\n')}${s3('near')}${s3('far', ', localAddress: "2001:db8::1"')}`;
  const { storages } = parseConfig(text, 'c.yaml').config;
  t.match(storages, { near: { localAddress: '192.0.2.1' }, far: { localAddress: '2001:db8::1' } });
  t.notOk(JSON.stringify(storages['local']).includes('192.0.2.1'));
  t.match(problemsOf(`${storage}agent: { backupAddress: here }\n`), [/expected an IP address of this host/]);
  t.end();
});

void t.test('the first rule that fits a machine decides, and its policy counts as a whole', (t) => {
  const { config } = parseConfig(
    `${storage}policies:\n  default: { retainDirectory: /retain }\n  gold: { mode: save }\nmachines:\n  - { match: "web-?", policy: gold }\n  - { match: "web-*", exclude: true }\n`,
    'c.yaml',
  );
  t.match(policyFor(config, 'web-1', 'c'), {
    policy: { name: 'gold', mode: 'save', retainDirectory: null },
  });
  t.same(policyFor(config, 'web-12', 'c'), { kind: 'excluded', match: 'web-*' });
  t.match(policyFor(config, 'db', 'c'), {
    policy: { name: 'default', mode: 'auto', retainDirectory: '/retain' },
  });
  const none = parseConfig('', 'c.yaml').config;
  t.throws(() => policyFor(none, 'db', '/etc/x.yaml'), {
    code: 'NO_STORAGE',
    hint: /\/etc\/x\.yaml:\nstorages:/,
  });
  t.ok(matchesName('a.b*', 'a.b+c'));
  for (const [pattern, name] of [
    ['a.b', 'axb'],
    ['web', 'web-1'],
    ['[a]', 'a'],
    ['a?', 'a'],
  ] as const)
    t.notOk(matchesName(pattern, name), `${pattern} ${name}`);
  t.end();
});

void t.test('the examples load, and the complete one says the defaults', async (t) => {
  const at = (name: string): string => join(import.meta.dirname, name);
  const minimal = await loadConfig(at('minimal.yaml'));
  const complete = await loadConfig(at('stillpoint.yaml'));
  t.same(complete.config.agent, minimal.config.agent);
  t.same(complete.config.storages, minimal.config.storages);
  const { keep: everything, ...defaults } =
    parseConfig(`${storage}policies: { default: {} }`, 'c.yaml').config.policies['default'] ?? {};
  t.equal(everything, null);
  const { storages, schedule, timeZone, keep, ...rest } = complete.config.policies['default'] ?? {};
  t.same(rest, defaults);
  t.same([storages, schedule, timeZone, keep].includes(undefined), false);
});

const three = `storages:
  fast: { kind: directory, path: /a }
  standby: { kind: directory, path: /b }
  far: { kind: directory, path: /c }
`;

void t.test('backups go to one storage of each group, and to every storage that is in none', (t) => {
  const text = `${three}storageGroups: { main: { storages: [fast, standby] } }\n`;
  const { config } = parseConfig(text, 'c.yaml');
  t.match(policyFor(config, 'vm', 'c.yaml'), { policy: { storages: ['main', 'far'] } });
  t.same([membersOf(config, 'main'), membersOf(config, 'far')], [['fast', 'standby'], ['far']]);
  const named = parseConfig(`${text}policies: { default: { storages: [far, main] } }`, 'c.yaml');
  t.match(policyFor(named.config, 'vm', 'c.yaml'), { policy: { storages: ['far', 'main'] } });
  t.end();
});

void t.test('a storage group has a name of its own, and storages that are there, each once', (t) => {
  const groups = (text: string) => problemsOf(`${three}storageGroups: { ${text} }\n`).join('\n');
  t.match(groups('fast: { storages: [far] }'), /storageGroups\.fast: a storage is called fast, too/);
  t.match(groups('main: { storages: [fast, gone] }'), /main\.storages\.1: no storage is called gone/);
  t.match(groups('main: { storages: [fast, fast] }'), /main\.storages\.1: fast is in the group already/);
  t.match(groups('main: { storages: [] }'), /name at least one storage/);
  t.match(
    groups('main: { storages: [fast] }, other: { storages: [main] }'),
    /other\.storages\.0: no storage is called main/,
  );
  t.end();
});

void t.test('a quota is bytes, or a size with its unit', (t) => {
  const withQuota = (quota: string) => `storages: { a: { kind: directory, path: /a, quota: ${quota} } }`;
  const quotaOf = (quota: string) => parseConfig(withQuota(quota), 'c.yaml').config.storages['a']?.quota;
  t.same(['1000', '2 TiB', '500GB'].map(quotaOf), [1000, 2 * 1024 ** 4, 5e11]);
  t.equal(parseConfig(storage, 'c.yaml').config.storages['local']?.warnPercent, 85);
  for (const quota of ['0', '-5', '5G', '1.5', 'much'])
    t.match(problemsOf(withQuota(quota)), [/storages\.a\.quota: .*/], quota);
  t.match(problemsOf(withQuota('much')), [/expected bytes, or a size such as "500 GiB"/]);
  t.end();
});

void t.test('the complete example names every key that there is', async (t) => {
  const text = await readFile(join(import.meta.dirname, 'stillpoint.yaml'), 'utf8');
  const keys = keysIn(z.toJSONSchema(configSchema, { io: 'input' }));
  t.ok(keys.has('storages') && keys.has('stallSeconds') && keys.has('within'), 'of every depth');
  t.same(
    [...keys].filter((key) => !new RegExp(String.raw`\b${key}:`).test(text)),
    [],
  );
});

/** Every name of a property in a JSON schema, of whatever depth. */
function keysIn(schema: unknown): ReadonlySet<string> {
  const keys = new Set<string>();
  const visit = (node: unknown): void => {
    if (typeof node !== 'object' || node === null) return;
    if ('properties' in node && typeof node.properties === 'object' && node.properties !== null)
      for (const key of Object.keys(node.properties)) keys.add(key);
    for (const child of Object.values(node)) visit(child);
  };
  visit(schema);
  return keys;
}

void t.test('the published JSON schema is the one that the code uses', async (t) => {
  const published: unknown = JSON.parse(await readFile(join(import.meta.dirname, 'schema.json'), 'utf8'));
  t.same(published, z.toJSONSchema(configSchema, { io: 'input' }), 'node scripts/schema.ts writes it anew');
});
