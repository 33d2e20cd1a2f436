import t from 'tap';
import { HypervisorError } from '../hypervisor/errors.ts';
import { type ProcessorRequirement, requiredProcessor } from '../hypervisor/processorXml.ts';
import { isProcessorRefusal } from './processor.ts';

const needed: ProcessorRequirement = { arch: 'x86_64', virtType: 'kvm', cpu: '<cpu/>' };

function failure(code: number, message: string): HypervisorError {
  return new HypervisorError('OPERATION_FAILED', message, { libvirt: { code, domain: 10 } });
}

void t.test(
  'libvirt is asked whether it offers the processor, and its text decides only where it cannot say',
  async (t) => {
    const text = "operation failed: guest CPU doesn't match specification: missing features: avx512f";
    const cases: readonly (readonly [HypervisorError, boolean | 'fails' | 'unnamed', boolean])[] = [
      [failure(91, 'whatever'), true, true],
      [failure(9, 'in other words'), false, true],
      [failure(9, text), true, false],
      [failure(9, text), 'fails', true],
      [failure(9, text), 'unnamed', true],
      [failure(9, 'Unable to read from monitor'), true, false],
      [failure(9, 'Unable to read from monitor'), 'fails', false],
      [failure(1, text), false, false],
    ];
    for (const [error, offers, expected] of cases) {
      const offersProcessor = (): Promise<boolean> =>
        offers === 'fails' || offers === 'unnamed'
          ? Promise.reject(failure(1, 'Unknown CPU model'))
          : Promise.resolve(offers);
      const requirement = (): Promise<ProcessorRequirement | null> =>
        Promise.resolve(offers === 'unnamed' ? null : needed);
      t.equal(
        await isProcessorRefusal({ offersProcessor }, error, requirement),
        expected,
        `${error.message} ${offers}`,
      );
    }
    t.notOk(
      await isProcessorRefusal({ offersProcessor: () => Promise.resolve(false) }, new Error(text), () =>
        Promise.resolve(needed),
      ),
    );
  },
);

void t.test(
  'the cookie of a save image says which processor its memory needs, before the definition',
  (t) => {
    const definition = `<domain type='kvm'><name>m</name><os><type arch='x86_64'>hvm</type></os><cpu mode='host-model'/></domain>`;
    const cookie = `<cookie><cpu mode='custom'><model>EPYC</model></cpu></cookie>`;
    t.match(requiredProcessor(definition, null), { arch: 'x86_64', virtType: 'kvm', cpu: /host-model/ });
    t.match(requiredProcessor(definition, cookie), { cpu: /EPYC/ });
    t.match(requiredProcessor(definition, '<cookie><slirpHelper/></cookie>'), { cpu: /host-model/ });
    t.equal(requiredProcessor(definition.replace(/<cpu.*host-model.\/>/, ''), null), null);
    t.end();
  },
);
