/** How soon the end of a VMM that nobody asked for is noticed. */
import process from 'node:process';
import type { VmmKind } from '../src/api/vm.ts';
import { withDeadline } from '../src/lib/deadline.ts';
import type { World } from '../test/kit/world.ts';
import { type Figure, shipped, timed } from './kit.ts';

const CRASHES = 20;
const NOTICED_MS = 30_000;

/** When a client of the event stream reads that the VM has crashed. */
const crashes = (w: World, signal: AbortSignal) => {
  const seen = new Map<string, PromiseWithResolvers<void>>();
  const of = (id: string) => {
    const one = seen.get(id) ?? Promise.withResolvers<void>();
    seen.set(id, one);
    return one;
  };
  const watch = async () => {
    for await (const event of w.client.event.watch({}, { signal }))
      if (event.type === 'vm.state' && 'data' in event && event.data.state === 'crashed') of(event.subject).resolve();
  };
  watch().catch(() => {}); // aborted
  return (id: string) => withDeadline('the event of a crash', NOTICED_MS, of(id).promise);
};

/** From SIGKILL of each VMM in turn to the event. `adopted`: by a daemon that was started after them. */
export const crashNoticed = async (vmm: VmmKind, adopted: boolean): Promise<Figure> => {
  await using w = await shipped(vmm);
  for (let i = 0; i < CRASHES; i++) {
    await w.client.vm.create({ name: `crash-${i}`, memory_mib: 64 });
    await w.client.vm.start({ vm: `crash-${i}` });
  }
  if (adopted) {
    await w.kill();
    await w.start();
  }
  const samples: number[] = [];
  const abort = new AbortController();
  const noticed = crashes(w, abort.signal);
  for (const { id, pid } of await w.client.vm.list({ state: 'running' })) {
    if (pid === null) throw new Error(`VM ${id} runs without a VMM`);
    process.kill(pid, 'SIGKILL');
    samples.push(await timed(() => noticed(id)));
  }
  abort.abort();
  if (samples.length !== CRASHES) throw new Error(`${samples.length} of ${CRASHES} VMs were running`);
  return {
    name: `a crash of ${vmm} is noticed, ${adopted ? 'adopted' : 'spawned'}`,
    what: `SIGKILL of the VMM to the state 'crashed' as a client of the events reads it`,
    samples,
    unit: 'ms',
    limit: 1000,
    holds_for: 'p99',
  };
};
