import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { vmOf } from '../src/vmm/find.ts';
import type { MachineSpec } from '../src/vmm/machine.ts';
import { kernelCmdline, qemuArgs } from '../src/vmm/qemu_args.ts';

const spec: MachineSpec = {
  id: 'vm_01abc',
  dir: '/run/vm_01abc',
  vcpus: 2,
  memory_mib: 1024,
  kernel: '/k',
  initrd: '/i',
  cmdline: ['nexus.root=/dev/vda'],
  disks: [
    { id: 'ws_1', path: '/a,b', read_only: false },
    { id: 'ws_2', path: '/c', read_only: true },
  ],
  disk_rate_bytes: null,
  disk_rate_ops: null,
  vsock_cid: 3,
  uid: null,
};
const tcg = { accel: 'tcg', tsc_khz: 2_500_000 } as const;
const fds = { kernel: 3, initrd: 4, disks: [5, 6] };
const after = (args: string[], name: string): string[] => args.filter((_, i) => args[i - 1] === name);

test('an emulated guest is given the rate of the TSC, another one is not', () => {
  const base = 'console=ttyS0 reboot=t panic=-1 quiet';
  const emulated = `${base} tsc_early_khz=2500000 tsc=reliable no_timer_check nexus.transport=serial nexus.root=/dev/vda`;
  assert.equal(kernelCmdline(spec, tcg), emulated);
  assert.equal(kernelCmdline(spec, { ...tcg, accel: 'kvm' }), `${base} nexus.transport=serial nexus.root=/dev/vda`);
  const unknown = kernelCmdline(spec, { ...tcg, tsc_khz: null });
  assert.equal(unknown, `${base} tsc=reliable no_timer_check nexus.transport=serial nexus.root=/dev/vda`);
});

test('a command line that the kernel would cut or misread is refused', () => {
  for (const word of ['x'.repeat(2000), 'nexus.hostname=ü', 'a\nb']) {
    assert.throws(() => kernelCmdline({ ...spec, cmdline: [word] }, tcg), Fault, word.slice(0, 20));
  }
});

test('disks are passed by descriptor, in order, locked, and honour flushes', () => {
  const args = qemuArgs(spec, tcg, fds);
  assert.deepEqual(after(args, '-add-fd'), ['fd=5,set=1', 'fd=6,set=2']);
  const nodes = after(args, '-blockdev').map(text => JSON.parse(text));
  assert.deepEqual(
    nodes.map(node => [node['node-name'], node.file.filename, node['read-only'], node.file['read-only']]),
    [
      ['disk0', '/dev/fdset/1', false, false],
      ['disk1', '/dev/fdset/2', true, true],
    ],
  );
  for (const node of nodes) {
    assert.equal(node.file.locking, 'on');
    assert.deepEqual(node.cache, { direct: false, 'no-flush': false });
    assert.deepEqual(node.file.cache, { direct: false, 'no-flush': false });
  }
  assert.ok(!args.join(' ').includes('/a,b'), 'the path of a disk is among the arguments');
  assert.deepEqual(after(args, '-kernel'), ['/proc/self/fd/3']);
});

test('a VMM is known by its arguments, whatever stands before them', () => {
  const args = qemuArgs(spec, tcg, fds);
  const vm = { kind: 'qemu', vm_id: 'vm_01abc' };
  assert.deepEqual(vmOf(['qemu-system-x86_64', ...args, '']), vm);
  assert.deepEqual(vmOf(['setpriv', '--reuid=5', '--', 'qemu-system-x86_64', ...args, '']), vm);
  assert.equal(vmOf(['qemu-system-x86_64', '-name', 'vm_01abc', '']), undefined);
  assert.equal(vmOf(['qemu-system-x86_64', '-name', 'other', '-qmp', 'x', '']), undefined);
  assert.equal(vmOf(['bash', '']), undefined);
});
