import t from 'tap';
import { backendConformance } from '../../test/conformance/backend.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { FileBackend } from './fileBackend.ts';

void t.test('files', async (t) => {
  await backendConformance(t, async (st) => {
    const root = `${st.testdir()}/store`;
    await new FileBackend(root).prepare();
    return { client: () => new FileBackend(root) };
  });
});

void t.test('the simulated store', async (t) => {
  await backendConformance(t, async () => {
    const store = new ObjectStore();
    return { client: () => store.client() };
  });
});
