/**
 * What is counted and measured, as Prometheus reads it.
 *
 * INVARIANTS: series of a VM exist only while this daemon holds its VMM, so their number is bounded by what runs. One scrape is made at
 * a time, and who asks meanwhile gets the same. No VMM is waited for longer than `usageOf` waits.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import { JobState } from '../api/job.ts';
import { VmState } from '../api/vm_state.ts';
import { Joined } from '../lib/joined.ts';
import type { Host, StartTimes } from './host.ts';
import { usageOf } from './usage.ts';

/** Seconds: a microVM on KVM comes up in a part of a second, an emulated Debian in half a minute. */
const SPAWN_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
const BOOT_S = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160];

/** More than the store keeps. */
const MOST_JOBS = 10_000;

export interface Metrics {
  /** A VM has come to that state. */
  moved(to: VmState): void;
  /** A guest has rung for the first time. */
  booted(times: StartTimes): void;
  /** The text of a scrape, in Prometheus' own format. */
  text(host: Host): Promise<string>;
  readonly content_type: string;
}

const makeCounters = (registers: Registry[]) => {
  const counter = (name: string, help: string) => new Counter({ name, help, registers });
  return {
    starting: counter('nexus_vm_starts_total', 'Starts of VMs that were begun'),
    crashed: counter('nexus_vm_crashes_total', 'VMs that ended although nobody asked for it'),
    failed: counter('nexus_vm_start_failures_total', 'Starts of VMs that failed'),
    boots: counter('nexus_vm_boots_total', 'Starts of VMs whose guest has rung'),
    spawn: new Histogram({
      name: 'nexus_vm_spawn_seconds',
      help: 'From the request of a start to the spawn of the VMM',
      buckets: SPAWN_S,
      registers,
    }),
    boot: new Histogram({
      name: 'nexus_vm_boot_seconds',
      help: 'From the request of a start to the bell of the guest',
      buckets: BOOT_S,
      registers,
    }),
  };
};

const makeSeries = (registers: Registry[]) => {
  const labelNames = ['vm', 'name'] as const;
  const counter = (name: string, help: string) => new Counter({ name, help, labelNames, registers });
  return {
    cpu: counter('nexus_vm_cpu_seconds_total', 'Processor time of the VMM of a VM, the guest with it'),
    memory: new Gauge({
      name: 'nexus_vm_memory_bytes',
      help: 'Memory of the host that the VMM of a VM holds',
      labelNames,
      registers,
    }),
    read: counter('nexus_vm_disk_read_bytes_total', 'What a VM has read from its disks'),
    written: counter('nexus_vm_disk_written_bytes_total', 'What a VM has written to its disks'),
  };
};

type Series = ReturnType<typeof makeSeries>;

export const makeMetrics = (version: string): Metrics => {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const counters = makeCounters(registers);
  const series = makeSeries(registers);
  const byState = (name: string, help: string) => new Gauge({ name, help, labelNames: ['state'], registers });
  const vms = byState('nexus_vms', 'VMs by state');
  const jobs = byState('nexus_jobs', 'Jobs by state, those that ended long ago left out');
  const info = new Gauge({ name: 'nexus_info', help: 'The version of the daemon', labelNames: ['version'], registers });
  info.set({ version }, 1);
  const scrapes = new Joined<string>();
  const scrape = async (host: Host): Promise<string> => {
    const [all, work] = await Promise.all([
      host.store.listVms(),
      host.jobs.list({ limit: MOST_JOBS }),
      measure(host, series),
    ]);
    count(vms, VmState.options, all);
    count(jobs, JobState.options, work);
    return registry.metrics();
  };
  return {
    content_type: registry.contentType,
    moved: to => {
      if (to === 'starting' || to === 'crashed' || to === 'failed') counters[to].inc();
    },
    booted: ({ asked, spawned, bell }) => {
      counters.boots.inc();
      counters.spawn.observe((spawned - asked) / 1000);
      if (bell !== null) counters.boot.observe((bell - asked) / 1000);
    },
    text: host => scrapes.run('', () => scrape(host)),
  };
};

/** All states, also those that nothing is in. */
const count = (gauge: Gauge<'state'>, states: readonly string[], all: readonly { state: string }[]): void => {
  for (const state of states) gauge.set({ state }, 0);
  for (const { state } of all) gauge.inc({ state });
};

/** Asks first and then writes in one turn: a scrape never sees half of it. */
const measure = async (host: Host, series: Series): Promise<void> => {
  const held = [...host.live.values()].filter(live => !live.gone.signal.aborted);
  const found = await Promise.all(
    held.map(async live => {
      const [usage, vm] = await Promise.all([usageOf(host, live), host.store.findVm(live.vm_id)]);
      return usage === undefined || vm === undefined ? undefined : { usage, labels: { vm: vm.id, name: vm.name } };
    }),
  );
  for (const one of Object.values(series)) one.reset();
  for (const { usage, labels } of found.filter(one => one !== undefined)) {
    series.cpu.inc(labels, usage.cpu_ms / 1000);
    series.memory.set(labels, usage.memory_bytes);
    if (usage.disk_read_bytes !== null) series.read.inc(labels, usage.disk_read_bytes);
    if (usage.disk_write_bytes !== null) series.written.inc(labels, usage.disk_write_bytes);
  }
};
