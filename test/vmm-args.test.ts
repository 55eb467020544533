import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { vmOf } from '../src/vmm/find.ts';
import { configuration, firecrackerArgv, kernelCmdline as firecrackerCmdline } from '../src/vmm/firecracker_config.ts';
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

test('limits of a disk become a throttle of its own, under which the disk is the same', () => {
  const args = qemuArgs({ ...spec, disk_rate_bytes: 1_000_000, disk_rate_ops: 50 }, tcg, fds);
  const groups = after(args, '-object').filter(text => text.startsWith('{'));
  assert.deepEqual(
    groups.map(text => JSON.parse(text)),
    [0, 1].map(n => ({
      'qom-type': 'throttle-group',
      id: `limit${n}`,
      limits: { 'bps-total': 1_000_000, 'iops-total': 50 },
    })),
  );
  const [node] = after(args, '-blockdev').map(text => JSON.parse(text));
  assert.deepEqual([node.driver, node['node-name'], node['throttle-group']], ['throttle', 'disk0', 'limit0']);
  const [plain] = after(qemuArgs(spec, tcg, fds), '-blockdev').map(text => JSON.parse(text));
  assert.deepEqual({ ...node.file, 'node-name': 'disk0' }, plain);
  const some = after(qemuArgs({ ...spec, disk_rate_ops: 5 }, tcg, fds), '-object').find(text => text.startsWith('{'));
  assert.deepEqual(JSON.parse(some ?? '{}').limits, { 'iops-total': 5 });
});

test('a VMM is known by its arguments, whatever stands before them', () => {
  const args = qemuArgs(spec, tcg, fds);
  const vm = { kind: 'qemu', vm_id: 'vm_01abc' };
  assert.deepEqual(vmOf(['qemu-system-x86_64', ...args, '']), vm);
  assert.deepEqual(vmOf(['setpriv', '--reuid=5', '--', 'qemu-system-x86_64', ...args, '']), vm);
  assert.equal(vmOf(['qemu-system-x86_64', '-name', 'vm_01abc', '']), undefined);
  assert.equal(vmOf(['qemu-system-x86_64', '-name', 'other', '-qmp', 'x', '']), undefined);
  assert.equal(vmOf(['bash', '']), undefined);
  const other = { kind: 'firecracker', vm_id: 'vm_01abc' };
  const argv = firecrackerArgv(spec, '/opt/firecracker');
  assert.deepEqual(vmOf([...argv, '']), other);
  assert.deepEqual(vmOf(['/opt/firecracker', '--id', 'vm-01abc', '--api-sock', 'api.sock', '']), other);
  assert.equal(vmOf(['firecracker', '--id', 'vm-01abc', '']), undefined);
  assert.equal(vmOf(['firecracker', '--id', 'other', '--api-sock', 'api.sock', '']), undefined);
});

test('Firecracker is configured in order, its disks honour flushes, its command line leaves it room', () => {
  const puts = configuration({ ...spec, disk_rate_bytes: 1_000_000, disk_rate_ops: 50, vsock_cid: 7 }, fds);
  const body = (path: string) => puts.find(put => put.path === path)?.body;
  assert.deepEqual(
    puts.map(put => put.path),
    ['/machine-config', '/boot-source', '/drives/disk0', '/drives/disk1', '/entropy', '/vsock'],
  );
  const rate_limiter = {
    bandwidth: { size: 1_000_000, refill_time: 1000 },
    ops: { size: 50, refill_time: 1000 },
  };
  const base = { io_engine: 'Sync', rate_limiter };
  assert.deepEqual(
    [body('/drives/disk0'), body('/drives/disk1')],
    [
      {
        drive_id: 'disk0',
        path_on_host: '/proc/self/fd/5',
        is_root_device: true,
        is_read_only: false,
        cache_type: 'Writeback',
        ...base,
      },
      {
        drive_id: 'disk1',
        path_on_host: '/proc/self/fd/6',
        is_root_device: false,
        is_read_only: true,
        cache_type: 'Unsafe',
        ...base,
      },
    ],
  );
  assert.deepEqual(body('/vsock'), { guest_cid: 7, uds_path: 'v.sock' });
  const line = firecrackerCmdline(spec);
  assert.match(line, /^console=ttyS0 reboot=k .* nexus\.transport=vsock nexus\.root=\/dev\/vda$/);
  const words = (length: number) => ({
    ...spec,
    cmdline: ['x'.repeat(length - line.length + spec.cmdline.join(' ').length)],
  });
  assert.equal(firecrackerCmdline(words(1983)).length, 1983);
  assert.throws(() => firecrackerCmdline(words(1984)), Fault);
});
