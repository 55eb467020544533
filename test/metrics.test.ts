/** What Prometheus reads. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { killVmm, rejects, stage, until } from './kit/behave.ts';
import { ask } from './kit/door.ts';
import type { World } from './kit/world.ts';

/** Series by name and labels; each line is one of the format's, or the test fails. */
const scrape = async (w: World): Promise<Map<string, number>> => {
  const { status, headers, text } = await ask(w.socket, { path: '/metrics' });
  assert.equal(status, 200);
  assert.match(headers['content-type'] ?? '', /^text\/plain; version=0\.0\.4/);
  const series = new Map<string, number>();
  for (const line of text.split('\n')) {
    if (line === '' || line.startsWith('# HELP ') || line.startsWith('# TYPE ')) continue;
    const found = /^([a-z_:][a-z0-9_:]*(?:\{[^}]*\})?) (\S+)$/i.exec(line);
    assert.ok(found?.[1] !== undefined && !series.has(found[1]), line);
    series.set(found[1], Number(found[2] === '+Inf' ? Number.POSITIVE_INFINITY : found[2]));
    assert.ok(!Number.isNaN(series.get(found[1])), line);
  }
  return series;
};

const ofVms = (series: Map<string, number>, name: string) =>
  [...series].filter(([key]) => key.includes(`name="${name}"`)).map(([key]) => key.split('{')[0]);

test('what happens to VMs is counted, what they use is measured, and a deleted one vanishes', async () => {
  await using s = await stage();
  const { w } = s;
  const empty = await scrape(w);
  assert.equal(empty.get('nexus_vms{state="running"}'), 0);
  assert.equal(empty.get('nexus_vm_starts_total'), 0);
  assert.ok((empty.get('process_resident_memory_bytes') ?? 0) > 1024 ** 2);
  assert.ok((empty.get('process_cpu_seconds_total') ?? 0) > 0);
  assert.ok((empty.get('process_open_fds') ?? 0) > 5);
  assert.ok([...empty.keys()].some(key => key.startsWith('nexus_info{version="')));
  assert.ok(empty.has('nexus_jobs{state="running"}'));

  const create = (name: string) => w.client.vm.create({ name, memory_mib: 64 });
  const { id } = await create('counted');
  await create('idle');
  await w.client.vm.start({ vm: id });
  const running = await scrape(w);
  assert.equal(running.get('nexus_vms{state="running"}'), 1);
  assert.equal(running.get('nexus_vms{state="created"}'), 1);
  assert.equal(running.get('nexus_vm_boots_total'), 1);
  for (const name of ['spawn', 'boot']) {
    assert.equal(running.get(`nexus_vm_${name}_seconds_count`), 1);
    const seconds = running.get(`nexus_vm_${name}_seconds_sum`) ?? 0;
    assert.ok(seconds > 0 && seconds < 60, `${name} in ${seconds} s`);
  }
  const labels = `{vm="${id}",name="counted"}`;
  assert.ok((running.get(`nexus_vm_memory_bytes${labels}`) ?? 0) > 1024 ** 2);
  assert.ok((running.get(`nexus_vm_cpu_seconds_total${labels}`) ?? 0) > 0);
  assert.equal(running.get(`nexus_vm_disk_read_bytes_total${labels}`), 1000);
  assert.equal(running.get(`nexus_vm_disk_written_bytes_total${labels}`), 500);
  assert.deepEqual(ofVms(running, 'idle'), []);

  assert.ok(await killVmm(w, id));
  await until(w, id, 'crashed');
  await s.behave({ DIE: 1 });
  await rejects(w.client.vm.start({ vm: id }), 'vmm');
  await s.behave();
  const after = await scrape(w);
  assert.deepEqual(
    ['starts', 'boots', 'crashes', 'start_failures'].map(what => after.get(`nexus_vm_${what}_total`)),
    [2, 1, 1, 1],
  );
  assert.equal(after.get('nexus_vms{state="failed"}'), 1);
  assert.deepEqual(ofVms(after, 'counted'), []);
  await w.client.vm.start({ vm: id });
  assert.equal(ofVms(await scrape(w), 'counted').length, 4);
  await w.client.vm.delete({ vm: id });
  assert.deepEqual(ofVms(await scrape(w), 'counted'), []);
  await w.client.vm.delete({ vm: 'idle' });
});

test('a scrape with many VMs is quick, and one that hangs costs its deadline', { timeout: 120_000 }, async () => {
  await using s = await stage();
  const { w } = s;
  const names = Array.from({ length: 12 }, (_, i) => `m${i}`);
  for (const name of names) await w.client.vm.create({ name, memory_mib: 64 });
  await s.behave({ STALL: 'query-blockstats' });
  await w.client.vm.start({ vm: 'm0' });
  await s.behave();
  await Promise.all(names.slice(1).map(vm => w.client.vm.start({ vm, timeout_ms: 60_000 })));
  const began = performance.now();
  const [first] = await Promise.all(Array.from({ length: 5 }, () => scrape(w)));
  const took = performance.now() - began;
  assert.ok(took < 10_000, `${took} ms`);
  assert.equal([...(first?.keys() ?? [])].filter(key => key.startsWith('nexus_vm_memory_bytes{')).length, 12);
  assert.equal([...(first?.keys() ?? [])].filter(key => key.startsWith('nexus_vm_disk_read')).length, 11);
  await Promise.all(names.map(vm => w.client.vm.delete({ vm })));
  await poll('no series of VMs', 5000, async () => ofVms(await scrape(w), 'm0').length === 0 || undefined);
});
