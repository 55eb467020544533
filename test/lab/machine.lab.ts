/** The machine's own suite on real Firecracker. */
import { bareMachine } from '../kit/machine.ts';
import { killedSuite, machineSuite } from '../kit/machine_suite.ts';

const make = () => bareMachine({ vmm: 'firecracker', memory_mib: 256 });
machineSuite('Firecracker', make);
killedSuite('Firecracker', make);
