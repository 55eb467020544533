/** One suite for every VMM: on the stand-ins and on real QEMU here, on real Firecracker in test/lab. */
import { type BareOptions, bareMachine } from './kit/machine.ts';
import { killedSuite, machineSuite, SLOW } from './kit/machine_suite.ts';

const STANDINS: Record<string, BareOptions> = {
  'stand-in for Firecracker': { vmm: 'firecracker', program: 'standin' },
  'stand-in for QEMU': { vmm: 'qemu', program: 'standin' },
};
for (const [name, options] of Object.entries(STANDINS)) {
  machineSuite(name, () => bareMachine(options));
  killedSuite(name, () => bareMachine(options));
}
machineSuite('QEMU', () => bareMachine(SLOW), { slow: true });
