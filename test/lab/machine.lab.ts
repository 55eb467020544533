/** The machine's own suite on real Firecracker. One boot: that takes its time here. */
import { bareMachine } from '../kit/machine.ts';
import { machineSuite, SLOW } from '../kit/machine_suite.ts';

const make = () => bareMachine({ vmm: 'firecracker', memory_mib: 256, ...SLOW });
machineSuite('Firecracker', make, { cuts: 2, slow: true });
