/** A daemon in little: starts a machine on the stand-in, says its process on stdout, and waits to be killed. */
import { VmmKind } from '../../src/api/vm.ts';
import { openDriver } from './vmm.ts';

const [kind, program = '', spec = '{}'] = process.argv.slice(2);
const vmm = await openDriver(VmmKind.parse(kind), program);
const machine = await vmm.start(JSON.parse(spec), AbortSignal.timeout(20_000), async () => {});
const stream = await machine.openControl(AbortSignal.timeout(20_000));
stream.resume();
// in the middle of a transfer
const feed = () => {
  while (stream.write(Buffer.alloc(65_536, 1)));
  stream.once('drain', feed);
};
feed();
stream.once('data', () => process.stdout.write(`${JSON.stringify(machine.proc)}\n`));
setInterval(() => {}, 60_000);
