/** What a scrape of `/metrics` reads. No VMM is waited for longer than `usageOf` waits, and all at once. */
import type { Host, Live } from './host.ts';
import type { Reading } from './metrics.ts';
import { usageOf } from './usage.ts';

/** More than the store keeps. */
const MOST_JOBS = 10_000;

export const metricsText = (host: Host): Promise<string> => host.metrics.scrape(() => read(host));

const read = async (host: Host): Promise<Reading> => {
  const held = [...host.live.values()].filter(live => !live.gone.signal.aborted);
  const [vms, jobs, usages] = await Promise.all([
    host.store.listVms(),
    host.jobs.list({ limit: MOST_JOBS }),
    Promise.all(held.map(live => usageOfVm(host, live))),
  ]);
  return { vms, jobs, usages: usages.filter(one => one !== undefined) };
};

const usageOfVm = async (host: Host, live: Live): Promise<Reading['usages'][number] | undefined> => {
  const [usage, vm] = await Promise.all([usageOf(host, live), host.store.findVm(live.vm_id)]);
  return usage === undefined || vm === undefined ? undefined : { id: vm.id, name: vm.name, usage };
};
