import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { VM_LIVE, VM_TRANSITIONS, VmState } from '../src/api/vm_state.ts';
import { type FoundVmm, plan, type WantedVm } from '../src/core/plan.ts';

const BOOT = 'this-boot';
const proc = fc.record({
  pid: fc.integer({ min: 2, max: 6 }),
  start_ticks: fc.integer({ min: 1, max: 2 }),
  boot_id: fc.constant(BOOT),
});
const vmId = fc.constantFrom('vm_a', 'vm_b', 'vm_c', 'vm_d');
const found = fc.uniqueArray(fc.record<FoundVmm>({ kind: fc.constantFrom('qemu', 'firecracker'), vm_id: vmId, proc }), {
  selector: f => f.proc.pid,
});
const run = fc.oneof(
  fc.constant(null),
  proc,
  proc.map(p => ({ ...p, boot_id: 'an-earlier-boot' })),
);
const wanted = fc.uniqueArray(fc.record<WantedVm>({ id: vmId, state: fc.constantFrom(...VmState.options), run }), {
  selector: w => w.id,
});

test('every process found is either adopted by its own VM or ended, and ends come first', () => {
  fc.assert(
    fc.property(found, wanted, fc.boolean(), (f, w, rebooted) => {
      const steps = plan(f, w, BOOT, rebooted);
      const handled = steps.filter(s => s.do !== 'write').map(s => s.proc.pid);
      assert.deepEqual([...handled].sort(), f.map(x => x.proc.pid).sort(), 'each process exactly once');
      const lastEnd = steps.findLastIndex(s => s.do === 'end');
      const firstOther = steps.findIndex(s => s.do !== 'end');
      assert.ok(firstOther === -1 || lastEnd < firstOther);
    }),
  );
});

test('after the plan no live state is left without a process, and every write is a legal transition', () => {
  fc.assert(
    fc.property(found, wanted, fc.boolean(), (f, w, rebooted) => {
      const steps = plan(f, w, BOOT, rebooted);
      for (const vm of w) {
        const mine = steps.filter(s => s.do !== 'end' && s.vm_id === vm.id);
        assert.equal(mine.length, VM_LIVE.includes(vm.state) ? 1 : 0);
        const [step] = mine;
        if (step?.do === 'write') assert.ok(VM_TRANSITIONS[vm.state].includes(step.to), `${vm.state} -> ${step.to}`);
        if (step?.do === 'adopt')
          assert.deepEqual({ ...step.proc }, { ...vm.run }, 'only the very process that was recorded');
      }
    }),
  );
});

test('two VMMs of one VM: the one that was recorded stays', () => {
  const mine = { pid: 10, start_ticks: 5, boot_id: BOOT };
  const stray = { pid: 11, start_ticks: 9, boot_id: BOOT };
  const steps = plan(
    [
      { kind: 'qemu', vm_id: 'vm_a', proc: stray },
      { kind: 'qemu', vm_id: 'vm_a', proc: mine },
    ],
    [{ id: 'vm_a', state: 'running', run: mine }],
    BOOT,
    false,
  );
  assert.deepEqual(
    steps.map(s => [s.do, s.do === 'write' ? 0 : s.proc.pid]),
    [
      ['end', 11],
      ['adopt', 10],
    ],
  );
});

test('a host that was restarted is said to be the reason', () => {
  const run = { pid: 1, start_ticks: 1, boot_id: 'old' };
  const vms: WantedVm[] = [
    { id: 'vm_a', state: 'running', run },
    { id: 'vm_b', state: 'starting', run: null },
    { id: 'vm_c', state: 'stopping', run },
    { id: 'vm_d', state: 'paused', run },
    { id: 'vm_e', state: 'stopped', run: null },
  ];
  assert.deepEqual(
    plan([], vms, BOOT, true).map(step => (step.do === 'write' ? [step.vm_id, step.to, step.why] : step.do)),
    [
      ['vm_a', 'crashed', 'The host was restarted.'],
      ['vm_b', 'failed', 'The host was restarted during the start.'],
      ['vm_c', 'stopped', 'The host was restarted during the stop.'],
      ['vm_d', 'crashed', 'The host was restarted.'],
    ],
  );
});
