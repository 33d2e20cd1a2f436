import t from 'tap';
import { RepositoryError } from '../../storage/repository/errors.ts';
import { abandonPartials } from './abandonPartials.ts';

void t.test('nothing is said to stay in a repository that was not made yet', async (t) => {
  const told: string[] = [];
  const facts = { backupId: 'b', machine: { uuid: 'u', name: 'm' }, settings: { storages: ['vault'] } };
  const context = { jobId: 'j', facts, warn: (message: string) => told.push(message) };
  const failing = (code: 'REPOSITORY_NOT_FOUND' | 'KEY_WRONG') => () => {
    throw new RepositoryError(code, 'no');
  };
  await abandonPartials(failing('REPOSITORY_NOT_FOUND'), context);
  t.same(told, []);
  await abandonPartials(failing('KEY_WRONG'), context);
  t.match(told, [/gathered in storage vault/]);
});
