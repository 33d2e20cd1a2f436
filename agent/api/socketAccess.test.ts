import t from 'tap';
import { admit } from './socketAccess.ts';

const peer = { pid: 42, uid: 1000, gid: 1000, groups: [27, 1000] };

void t.test('root, the service’s own user and members of the group are let in', async (t) => {
  t.same(admit({ ...peer, uid: 0 }, { ownUid: 500, gid: null }), {
    kind: 'socket',
    name: 'uid 0',
    isPrivileged: true,
    pid: 42,
  });
  t.match(admit({ ...peer, uid: 500 }, { ownUid: 500, gid: null }), { name: 'uid 500', isPrivileged: true });
  const member = admit(peer, { ownUid: 0, gid: 27 });
  t.match(member, { name: 'uid 1000', isPrivileged: false }, 'by one of its other groups');
  t.same(admit({ ...peer, groups: [] }, { ownUid: 0, gid: 1000 }).name, 'uid 1000', 'by its own group');
});

void t.test('everybody else is refused, also where no group is named', async (t) => {
  t.throws(() => admit(peer, { ownUid: 0, gid: 28 }), { code: 'CALLER_DENIED' });
  t.throws(() => admit({ ...peer, gid: 0, groups: [0] }, { ownUid: 0, gid: null }), {
    code: 'CALLER_DENIED',
  });
});
