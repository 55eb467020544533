/** What VMs use: on a terminal a table that is redrawn in its place, elsewhere plain lines. */
import process from 'node:process';
import type { VmLoad, VmTopMessage } from '../api/vm_inspect.ts';
import { formatBytes, formatMs } from '../lib/size.ts';
import { type Cli, out } from './cli.ts';
import { aligned, cell, json, timeText } from './show.ts';

const HEAD = ['NAME', 'STATE', 'GUEST', 'CPU', 'MEMORY', 'READ', 'WRITTEN', 'UP'];

const rate = (value: number | null): string => (value === null ? '-' : `${formatBytes(value)}/s`);

const row = (vm: VmLoad): string[] => [
  vm.name,
  vm.state,
  cell('', vm.guest),
  vm.cpu_percent === null ? '-' : `${vm.cpu_percent.toFixed(1)} %`,
  cell('memory_bytes', vm.memory_bytes),
  rate(vm.disk_read_rate_bytes),
  rate(vm.disk_write_rate_bytes),
  vm.uptime_ms === null ? '-' : formatMs(vm.uptime_ms),
];

const lines = ({ vms }: VmTopMessage): string[] =>
  vms.length === 0
    ? ['No VM runs.']
    : aligned([HEAD, ...vms.map(row)])
        .trimEnd()
        .split('\n');

const summary = ({ vms, at_ms }: VmTopMessage): string => {
  const sum = (of: (vm: VmLoad) => number | null) => vms.reduce((all, vm) => all + (of(vm) ?? 0), 0);
  const cpu = sum(vm => vm.cpu_percent).toFixed(1);
  return `${timeText(at_ms)}  ${vms.length} VMs  CPU ${cpu} %  memory ${formatBytes(sum(vm => vm.memory_bytes))}`;
};

/** No line may wrap, and the first may not leave the screen: both would move what is drawn over. */
const drawing = (sample: VmTopMessage, columns: number, rows: number): string[] => {
  const all = [summary(sample), '', ...lines(sample)];
  const room = Math.max(4, rows - 1);
  const fit = all.length <= room ? all : [...all.slice(0, room - 1), `… ${all.length - room + 1} more`];
  return fit.map(line => line.slice(0, Math.max(20, columns - 1)));
};

export const showTop = async (cli: Cli, samples: AsyncIterable<VmTopMessage>): Promise<void> => {
  const { stdout } = process;
  let drawn = 0;
  for await (const sample of samples) {
    if (cli.json) out(json(sample, 0));
    else if (stdout.isTTY === true) {
      const picture = drawing(sample, stdout.columns ?? 80, stdout.rows ?? 24);
      // up to the first line of the last drawing; each line is cleared behind its text, and what is left below at the end
      out(`${drawn === 0 ? '' : `\u001b[${drawn}F`}${picture.map(line => `${line}\u001b[K\n`).join('')}\u001b[J`);
      drawn = picture.length;
    } else out(`${timeText(sample.at_ms)}\n${lines(sample).join('\n')}\n\n`);
  }
};
