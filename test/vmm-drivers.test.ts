/** Which VMM starts a VM, as the host changes under a daemon that goes on. */
import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { silentLog } from '../src/lib/log.ts';
import { plainStep } from '../src/lib/step.ts';
import { openVmms } from '../src/vmm/drivers.ts';
import { openStandin } from './kit/standin.ts';
import { fault } from './standin/vmm.ts';

test('a VMM that is installed later and a KVM that is mended are found without a new daemon', async t => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-drivers-'));
  t.after(() => rm(dir, { recursive: true }));
  const at = (name: string) => join(dir, name);
  await using fc = await openStandin('firecracker');
  await using qemu = await openStandin('qemu');
  const kvm = (usable: boolean) => {
    const reason = usable ? 'ok' : 'guest-does-not-run';
    return writeFile(at('kvm'), JSON.stringify({ usable, reason, detail: usable ? '' : 'it did not end in time' }));
  };
  await writeFile(at('probe'), `#!/bin/sh\n[ $1 = kvm ] && cat ${at('kvm')} || echo '{"khz":null}'\n`);
  await chmod(at('probe'), 0o755);
  await kvm(false);
  const programs = { firecracker: at('firecracker'), qemu: at('qemu') };
  const vmms = await openVmms({ probe: at('probe'), ...programs, log: silentLog(), step: plainStep });
  await assert.rejects(vmms.choose(null), (error: unknown) => {
    assert.ok(error instanceof Fault && error.hint?.includes('apt-get install'));
    return fault('host', /there is no Firecracker: .*; there is no QEMU: /)(error);
  });
  await symlink(qemu.program, programs.qemu);
  assert.equal((await vmms.choose(null)).kind, 'qemu');
  assert.equal(vmms.of('qemu').facts().accel, 'tcg');
  await symlink(fc.program, programs.firecracker);
  assert.equal((await vmms.choose(null)).kind, 'qemu', 'there is no KVM');
  await assert.rejects(vmms.choose('firecracker'), fault('host', /Firecracker needs KVM: it did not end in time/));
  await kvm(true);
  assert.equal((await vmms.choose('firecracker')).kind, 'firecracker');
  assert.equal((await vmms.choose(null)).kind, 'firecracker');
  assert.deepEqual([vmms.of('qemu').facts().accel, vmms.host.kvm.usable], ['kvm', true]);
});
