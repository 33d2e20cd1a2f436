import t from 'tap';
import type { RestoreSpec } from '../../proto/generated/stillpoint/v1/agent.ts';
import { restoreWishOf } from './restoreWish.ts';

function spec(fields: Partial<RestoreSpec> = {}): RestoreSpec {
  return {
    backup: 'm@latest',
    storage: '',
    target: { $case: 'newMachine', value: { name: 'n', directory: '' } },
    start: 0,
    volumes: [],
    instant: false,
    networks: {},
    ...fields,
  };
}

void t.test('a message asks for what the command line can ask for', (t) => {
  t.match(restoreWishOf(spec()), { backup: 'm@latest', storage: undefined, request: { as: 'n' } });
  t.match(restoreWishOf(spec({ target: { $case: 'inPlace', value: {} }, start: 2, volumes: ['vda'] })), {
    request: { inPlace: true, start: 'boot', volumes: ['vda'] },
  });
  t.match(restoreWishOf(spec({ target: { $case: 'files', value: { directory: '/srv/../srv/x' } } })), {
    request: { to: '/srv/x' },
  });
  t.equal(
    JSON.stringify(restoreWishOf(spec({ networks: { b: '1', a: '2' } }))),
    JSON.stringify(restoreWishOf(spec({ networks: { a: '2', b: '1' } }))),
    'the same request is the same',
  );
  t.end();
});

void t.test('what makes no sense is refused before anything is looked at', (t) => {
  const wrong: readonly (readonly [string, Partial<RestoreSpec> | undefined])[] = [
    ['nothing', undefined],
    ['no backup', { backup: '' }],
    ['no target: nothing is replaced by default', { target: undefined }],
    ['no name', { target: { $case: 'newMachine', value: { name: '', directory: '' } } }],
    ['a relative path', { target: { $case: 'files', value: { directory: 'srv' } } }],
    ['no path', { target: { $case: 'files', value: { directory: '' } } }],
    ['a NUL byte', { target: { $case: 'files', value: { directory: '/srv\0' } } }],
    ['too many volumes', { volumes: Array.from({ length: 300 }, (_, at) => `vd${at}`) }],
    ['a network without a name', { networks: { br0: '' } }],
  ];
  for (const [name, fields] of wrong)
    t.throws(
      () => restoreWishOf(fields === undefined ? undefined : spec(fields)),
      { code: 'REQUEST_INVALID' },
      name,
    );
  t.end();
});
