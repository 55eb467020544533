/** A daemon in little: starts a machine on the stand-in, says its process on stdout, and waits to be killed. */
import { silentLog } from '../../src/lib/log.ts';
import { gatherHostFacts } from '../../src/vmm/host_facts.ts';
import { openQemu } from '../../src/vmm/qemu.ts';
import { PROBE, STANDIN, STANDIN_PATH } from './vmm.ts';

const spec = JSON.parse(process.argv[2] ?? '{}');
const host = await gatherHostFacts(PROBE, silentLog());
const vmm = await openQemu({ host, program: STANDIN, log: silentLog(), env: { PATH: STANDIN_PATH } });
const machine = await vmm.start(spec, AbortSignal.timeout(20_000), async () => {});
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
