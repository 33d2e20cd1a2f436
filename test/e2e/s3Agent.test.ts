import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { type AgentResult, type LabAgent, startLab } from '../lab/lab.ts';
import { Radosgw } from '../lab/radosgw.ts';

/*
 * A repository in a bucket of a real S3 server, from its making to its collection. The laboratory has mounts of its
 * own, not a network: what runs in it reaches the server on the host's loopback.
 */

const backupSchema = z.looseObject({
  id: z.string(),
  volumes: z.array(z.looseObject({ read: z.string() })),
});

function requireDone(test: Test, result: AgentResult): AgentResult {
  test.equal(result.exitCode, 0, `${result.stdout}\n${result.stderr}`);
  return result;
}

void t.test('a machine is kept in a bucket, and comes back out of it', async (t) => {
  const [server, lab] = await Promise.all([Radosgw.start(), startLab()]);
  t.teardown(() => Promise.all([server.stop(), lab.stop()]));
  await server.createBucket('backups');
  const { accessKeyId, secretAccessKey } = server.credentials;
  const credentialsFile = path.join(lab.root, 's3.credentials');
  const credentials = `AWS_ACCESS_KEY_ID=${accessKeyId}\nAWS_SECRET_ACCESS_KEY=${secretAccessKey}\n`;
  await writeFile(credentialsFile, credentials, { mode: 0o600 });
  const agent: LabAgent = await lab.installAgent({
    storages: {
      bucket: {
        kind: 'repository',
        url: 's3://backups/hosts/lab',
        endpoint: server.endpoint,
        credentialsFile,
        keyFile: path.join(lab.root, 'bucket.key'),
      },
    },
  });
  const machine = await lab.createMachine({
    name: 'sp-s3',
    memoryMiB: 96,
    volumes: [{ target: 'vda', prefillMiB: 8 }],
  });

  requireDone(t, await agent.run(['storage', 'init', 'bucket', '--json']));
  const backUp = async (): Promise<z.infer<typeof backupSchema>> => {
    await machine.waitUntilWriting({ rounds: 10 });
    const args = ['backup', 'sp-s3', '--mode', 'disk', '--json'];
    return backupSchema.parse(requireDone(t, await agent.run(args)).json());
  };
  const full = await backUp();
  const increment = await backUp();
  t.same(
    [full, increment].map(({ volumes }) => volumes.map(({ read }) => read)),
    [['full'], ['increment']],
  );

  for (const { id } of [full, increment]) requireDone(t, await agent.run(['verify', id, '--data', '--json']));
  requireDone(t, await agent.run(['delete', full.id, '--yes', '--json']));
  const collected = requireDone(t, await agent.run(['storage', 'gc', 'bucket', '--json']));
  t.match(collected.json(), { waitingFor: [] });
  t.match(requireDone(t, await agent.run(['storage', 'show', 'bucket', '--json'])).json(), {
    backups: 1,
    repository: { openSessions: 0 },
  });
  t.match(requireDone(t, await agent.run(['storage', 'check', 'bucket', '--data', '--json'])).json(), {
    ok: true,
    damagedPacks: [],
  });

  await machine.waitUntilWriting({ rounds: 5 });
  const how = ['--storage', 'bucket', '--in-place', '--yes', '--json'];
  requireDone(t, await agent.run(['restore', increment.id, ...how]));
  await machine.waitUntilWriting({ rounds: 5 });
  t.match(
    await machine.verifyFromInside(),
    { missing: 0, torn: 0, readErrors: 0 },
    'what the guest wrote before',
  );
});
