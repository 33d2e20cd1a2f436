import t from 'tap';

import { defaultUserOf } from './capabilitiesXml.ts';

function capabilities(secmodels: string): string {
  return `<capabilities><host><uuid>u</uuid>${secmodels}</host></capabilities>`;
}

void t.test('the user of new machines is the base label of the DAC driver', async (t) => {
  const dac = `<secmodel><model>dac</model><doi>0</doi><baselabel type='qemu'>+1:+2</baselabel><baselabel type='kvm'>+64055:+109</baselabel></secmodel>`;
  t.same(defaultUserOf(capabilities(`<secmodel><model>apparmor</model><doi>0</doi></secmodel>${dac}`)), {
    uid: 64055,
    gid: 109,
  });
  t.equal(defaultUserOf(capabilities('<secmodel><model>none</model><doi>0</doi></secmodel>')), undefined);
  t.equal(defaultUserOf(capabilities('')), undefined);
});
