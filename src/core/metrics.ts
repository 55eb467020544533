/**
 * What is counted and measured, as Prometheus reads it.
 *
 * INVARIANTS: series of a VM are those of the last reading and no other, so their number is bounded by what it holds. One scrape is made
 * at a time, and who asks meanwhile gets the same.
 */
import { readdirSync } from 'node:fs';
import process from 'node:process';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { JobState } from '../api/job.ts';
import type { VmUsage } from '../api/vm_inspect.ts';
import { VmState } from '../api/vm_state.ts';
import { Joined } from '../lib/joined.ts';

/** Seconds: a microVM on KVM comes up in a part of a second, an emulated Debian in half a minute. */
const SPAWN_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
const BOOT_S = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160];

/** What is at the moment of a scrape. */
export interface Reading {
  vms: readonly { state: string }[];
  jobs: readonly { state: string }[];
  usages: readonly { id: string; name: string; usage: VmUsage }[];
}

export interface Metrics {
  /** A VM has come to that state. */
  moved(to: VmState): void;
  /** A guest has rung for the first time. */
  booted(times: { spawn_ms: number; bell_ms: number }): void;
  /** The text of a scrape, in Prometheus' own format. */
  scrape(read: () => Promise<Reading>): Promise<string>;
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

/** Of the daemon itself, under the names that all exporters use. The library's own set wakes the process a hundred times a second. */
const watchSelf = (registers: Registry[]): void => {
  const gauge = (name: string, help: string, value: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  const started_s = Math.round(Date.now() / 1000 - process.uptime());
  gauge('process_start_time_seconds', 'When the daemon was started, since the epoch', () => started_s);
  gauge('process_resident_memory_bytes', 'Memory of the daemon', () => process.memoryUsage.rss());
  gauge('process_heap_bytes', 'What the daemon has on its heap', () => process.memoryUsage().heapUsed);
  gauge('process_open_fds', 'Open descriptors of the daemon', () => readdirSync('/proc/self/fd').length - 1); // its own
  new Counter({
    name: 'process_cpu_seconds_total',
    help: 'Processor time of the daemon',
    registers,
    collect() {
      const { user, system } = process.cpuUsage();
      this.reset();
      this.inc((user + system) / 1e6);
    },
  });
};

type Series = ReturnType<typeof makeSeries>;

export const makeMetrics = (version: string): Metrics => {
  const registry = new Registry();
  const registers = [registry];
  watchSelf(registers);
  const counters = makeCounters(registers);
  const series = makeSeries(registers);
  const byState = (name: string, help: string) => new Gauge({ name, help, labelNames: ['state'], registers });
  const vms = byState('nexus_vms', 'VMs by state');
  const jobs = byState('nexus_jobs', 'Jobs by state, those that ended long ago left out');
  const info = new Gauge({ name: 'nexus_info', help: 'The version of the daemon', labelNames: ['version'], registers });
  info.set({ version }, 1);
  const scrapes = new Joined<string>();
  const scrape = async (read: () => Promise<Reading>): Promise<string> => {
    const reading = await read();
    count(vms, VmState.options, reading.vms);
    count(jobs, JobState.options, reading.jobs);
    measure(series, reading.usages);
    return registry.metrics();
  };
  return {
    content_type: registry.contentType,
    moved: to => {
      if (to === 'starting' || to === 'crashed' || to === 'failed') counters[to].inc();
    },
    booted: ({ spawn_ms, bell_ms }) => {
      counters.boots.inc();
      counters.spawn.observe(spawn_ms / 1000);
      counters.boot.observe(bell_ms / 1000);
    },
    scrape: read => scrapes.run('', () => scrape(read)),
  };
};

/** All states, also those that nothing is in. */
const count = (gauge: Gauge<'state'>, states: readonly string[], all: readonly { state: string }[]): void => {
  for (const state of states) gauge.set({ state }, 0);
  for (const { state } of all) gauge.inc({ state });
};

const measure = (series: Series, usages: Reading['usages']): void => {
  for (const one of Object.values(series)) one.reset();
  for (const { id, name, usage } of usages) {
    const labels = { vm: id, name };
    series.cpu.inc(labels, usage.cpu_ms / 1000);
    series.memory.set(labels, usage.memory_bytes);
    if (usage.disk_read_bytes !== null) series.read.inc(labels, usage.disk_read_bytes);
    if (usage.disk_write_bytes !== null) series.written.inc(labels, usage.disk_write_bytes);
  }
};
