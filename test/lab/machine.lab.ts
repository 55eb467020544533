/** The machine's own suite on real Firecracker. */
import { bareMachine } from '../kit/machine.ts';
import { killedSuite, machineSuite, SLOW, slowDiskSuite } from '../kit/machine_suite.ts';

const make = (change = {}) => bareMachine({ vmm: 'firecracker', memory_mib: 256, ...change });
machineSuite('Firecracker', () => make());
killedSuite('Firecracker', () => make());
slowDiskSuite('Firecracker', () => make(SLOW));
