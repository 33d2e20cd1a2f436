import { randomUUID } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { startLab } from '../lab/lab.ts';
import { keepSecret } from '../secrets.ts';

const answer = z.object({
  items: z.array(
    z.object({ kind: z.string(), name: z.string(), file: z.string(), autostart: z.boolean().optional() }),
  ),
  storages: z.array(z.object({ name: z.string(), directory: z.string() })),
});
const secretUuid = randomUUID();
const secretValue = keepSecret('libvirt secret', 'a-value-that-nobody-may-see');
const password = keepSecret('VNC password', 'vncpass1');

const definitions = {
  network: `<network><name>sp-net</name><bridge name='spbr0'/><ip address='192.0.2.1' netmask='255.255.255.0'/></network>`,
  pool: (directory: string) =>
    `<pool type='dir'><name>sp-pool</name><target><path>${directory}</path></target></pool>`,
  nwfilter: `<filter name='sp-filter' chain='root'><rule action='drop' direction='in' priority='500'><tcp dstportstart='25'/></rule></filter>`,
  secret: `<secret ephemeral='no' private='no'><uuid>${secretUuid}</uuid><usage type='volume'><volume>/srv/sp</volume></usage></secret>`,
};

void t.test(
  'backup --host holds every definition and no secret, and virsh can define them again',
  async (t) => {
    await using lab = await startLab();
    const agent = await lab.installAgent();
    const define = async (command: string, xml: string): Promise<void> => {
      const file = path.join(lab.root, 'tmp', `${command}.xml`);
      await writeFile(file, xml);
      await lab.virsh(command, file);
    };
    await lab.createMachine(
      { name: 'sp-host', extraDevicesXml: `<graphics type='vnc' port='-1' passwd='${password}'/>` },
      { start: false },
    );
    await define('net-define', definitions.network);
    await define('pool-define', definitions.pool(path.join(lab.root, 'tmp')));
    await lab.virsh('pool-autostart', 'sp-pool');
    await define('nwfilter-define', definitions.nwfilter);
    await define('secret-define', definitions.secret);
    const encoded = Buffer.from(secretValue).toString('base64');
    await lab.virsh('secret-set-value', secretUuid, encoded);
    t.equal((await lab.virsh('secret-get-value', secretUuid)).trim(), encoded, 'libvirt would tell it');

    const result = await agent.run(['backup', '--host', '--json']);
    t.equal(result.exitCode, 0, result.stderr);
    const { items, storages } = answer.parse(result.json());
    let directory = storages[0]?.directory ?? '';
    const fileOf = (kind: string, name: string): string =>
      path.join(directory, items.find((item) => item.kind === kind && item.name === name)?.file ?? 'missing');

    await t.test('everything is there', async (t) => {
      t.match(items, [{ kind: 'machine', name: 'sp-host', autostart: false }]);
      t.match(await readFile(fileOf('network', 'sp-net'), 'utf8'), /spbr0/);
      t.match(await readFile(fileOf('nwfilter', 'sp-filter'), 'utf8'), /dstportstart='25'/);
      t.match(await readFile(fileOf('secret', secretUuid), 'utf8'), /\/srv\/sp/);
      t.match(await readFile(fileOf('configuration', 'stillpoint'), 'utf8'), /storages:\n {2}local:/);
      t.equal(items.find(({ kind }) => kind === 'pool')?.autostart, true);
    });

    await t.test('no secret is in any file', async (t) => {
      for (const name of await readdir(directory)) {
        const text = await readFile(path.join(directory, name), 'utf8');
        for (const secret of [secretValue, encoded, password])
          t.notOk(text.includes(secret), `${name} does not hold ${secret}`);
      }
      t.notMatch(`${result.stdout}${result.stderr}`, secretValue);
    });

    await t.test(
      'it is listed, is no backup of a machine, and is damaged when a byte of it is',
      async (t) => {
        const listed = await agent.run(['list', '--host']);
        t.equal(listed.exitCode, 0, listed.stderr);
        t.match(listed.stdout, /network 1, pool 1/);
        t.match((await agent.run(['list', '--json'])).json(), { backups: [] });
        t.equal((await agent.run(['backup', '--host', 'sp-host'])).exitCode, 2);
      },
    );

    await t.test('after they are gone, virsh defines them again from the files', async (t) => {
      await lab.virsh('net-undefine', 'sp-net');
      await lab.virsh('pool-undefine', 'sp-pool');
      await lab.virsh('nwfilter-undefine', 'sp-filter');
      await lab.virsh('secret-undefine', secretUuid);
      await lab.virsh('undefine', 'sp-host');
      await lab.virsh('net-define', fileOf('network', 'sp-net'));
      await lab.virsh('pool-define', fileOf('pool', 'sp-pool'));
      await lab.virsh('nwfilter-define', fileOf('nwfilter', 'sp-filter'));
      await lab.virsh('secret-define', fileOf('secret', secretUuid));
      await lab.virsh('define', fileOf('machine', 'sp-host'));
      t.match(await lab.virsh('net-list', '--all', '--name'), /sp-net/);
      t.match(await lab.virsh('list', '--all', '--name'), /sp-host/);
    });

    await t.test('it is shown, restored as files, and pruned by the rules for hosts', async (t) => {
      const host = z.object({ host: z.object({ name: z.string() }), id: z.string() }).parse(result.json());
      const reference = `${host.host.name}@latest`;
      t.match((await agent.run(['show', '--host', reference])).stdout, /network +sp-net/);
      const to = path.join(lab.root, 'tmp/restored');
      t.equal((await agent.run(['restore', '--host', reference])).exitCode, 2);
      t.equal((await agent.run(['restore', '--host', reference, '--to', to])).exitCode, 0);
      for (const { file } of items)
        t.equal(
          await readFile(path.join(to, file), 'utf8'),
          await readFile(path.join(directory, file), 'utf8'),
        );
      t.equal(
        (await agent.run(['restore', '--host', reference, '--to', to])).exitCode,
        1,
        'nothing is overwritten',
      );
      const second = answer.parse((await agent.run(['backup', '--host', '--json'])).json()).storages[0]
        ?.directory;
      t.match((await agent.run(['prune', '--host', '--yes'])).stdout, /removed 0 of 2/);
      await agent.configure({ rest: { hostBackups: { keep: { last: 1 } } } });
      t.match((await agent.run(['prune', '--host', '--dry-run'])).stdout, /no rule keeps it/);
      t.match((await agent.run(['prune', '--host', '--yes'])).stdout, /removed 1 of 2/);
      t.same(await readdir(path.dirname(directory)), [path.basename(second ?? '')], 'the newest stays');
      t.equal((await agent.run(['delete', '--host', host.id, '--yes'])).exitCode, 4, 'the other one is gone');
      directory = second ?? '';
    });

    await t.test('a file that was changed shows', async (t) => {
      await writeFile(fileOf('network', 'sp-net'), definitions.network);
      const listed = await agent.run(['list', '--host']);
      t.equal(listed.exitCode, 5);
      t.match(listed.stdout, /network-.*was damaged or changed/);
    });
  },
);
