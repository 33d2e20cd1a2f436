import { randomBytes } from 'node:crypto';
import t from 'tap';
import { testStage, testTime } from './repositoryFixture.ts';

void t.test(
  'a key slot that cannot be read is not removed either when there is no other way in',
  async (t) => {
    const { store, repository } = await testStage();
    const [name = ''] = store.names('keys/');
    const slotId = name.slice('keys/'.length);
    const slot = store.bytesOf(name).toString();
    const contents = { newer: slot.replace('"formatVersion":1', '"formatVersion":2'), damaged: 'rubbish' };
    for (const [what, text] of Object.entries(contents)) {
      store.objects.delete(name);
      await store.client().create(name, [Buffer.from(text)]);
      t.match(await repository.slots.list(), [{ slotId, slot: null }], what);
      await t.rejects(repository.slots.remove(slotId), { code: 'KEY_SLOT_LAST' }, what);
      const other = { kind: 'recovery', key: randomBytes(32) } as const;
      const added = await repository.slots.add(other, { label: 'printed', createdAt: testTime });
      await t.rejects(repository.slots.remove(added), { code: 'KEY_SLOT_LAST' }, what);
      await repository.slots.remove(slotId);
      t.same(store.names('keys/'), [`keys/${added}`], what);
      store.objects.delete(`keys/${added}`);
    }
  },
);
