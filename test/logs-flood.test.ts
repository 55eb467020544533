/**
 * A guest that floods its console, under a whole daemon, on both stand-ins: the daemon's memory and the log are bounded, whatever else is asked is answered
 * meanwhile, and neither who reads along nor who does not holds anybody back.
 *
 * NEXUS_TEST_FLOOD_MIB=<n> is the size of the flood; NEXUS_TEST_SEED=<n> makes the same again.
 */
import assert from 'node:assert/strict';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { nothingLeft, stage } from './kit/behave.ts';
import type { World } from './kit/world.ts';

const MIB = 1024 * 1024;
const FLOOD_MIB = Number(process.env.NEXUS_TEST_FLOOD_MIB ?? 48);
const GROWN_MIB = 256;
/** Two files of 4 MiB, each with what may be written in one piece. */
const LOG_BYTES = 2 * 5 * MIB;
/** Generous: others work on this machine. */
const ANSWER_MS = 60_000;

const peakMib = async (w: World): Promise<number> =>
  Number(/^VmHWM:\s+(\d+)/m.exec(await readFile(`/proc/${w.daemon().pid}/status`, 'utf8'))?.[1]) / 1024;

/** The worst that was seen. */
interface Seen {
  answer_ms: number;
  log_bytes: number;
  /** Whole lives of another VM. */
  lives: number;
}

const timed = async (seen: Seen, ask: () => Promise<unknown>): Promise<void> => {
  const from = performance.now();
  await ask();
  seen.answer_ms = Math.max(seen.answer_ms, performance.now() - from);
};

const runs = async (w: World, vm: string): Promise<void> => {
  const { stdout } = await execResult(w.client.exec.run({ vm, argv: ['echo', vm] }));
  assert.equal(stdout.toString(), `${vm}\n`);
};

/** What others want of the daemon, one after the other. */
const others = async (w: World, seen: Seen): Promise<void> => {
  await timed(seen, () => w.client.vm.list({}));
  await timed(seen, () => runs(w, 'floods'));
  await timed(seen, () => w.client.vm.create({ name: 'other', memory_mib: 64 }));
  await w.client.vm.start({ vm: 'other' });
  await timed(seen, () => runs(w, 'other'));
  await w.client.vm.stop({ vm: 'other' });
  await timed(seen, () => w.client.vm.delete({ vm: 'other' }));
  seen.lives++;
};

for (const vmm of ['qemu', 'firecracker'] as const) {
  test(`a flood on the console of ${vmm}`, { timeout: 240_000 + FLOOD_MIB * 3000 }, async t => {
    const seed = Number(process.env.NEXUS_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
    t.diagnostic(`NEXUS_TEST_SEED=${seed}`);
    await using s = await stage(vmm);
    const { w } = s;
    const { id } = await w.client.vm.create({ name: 'floods', memory_mib: 64 });
    await s.behave({ FLOOD_MIB, FLOOD_SEED: seed }, id);
    const before = await peakMib(w);
    const began = performance.now();
    await w.client.vm.start({ vm: id });
    const lazy = w.client.vm.logs({ vm: id, follow: true }); // it reads nothing beyond its first line
    await lazy.next();
    const along = Array.fromAsync(w.client.vm.logs({ vm: id, follow: true }), item => item.type);
    along.catch(() => {}); // heard below
    const log = join(w.data_dir, 'vms', id, 'console.log');
    const sizeOf = async (path: string) => (await stat(path).catch(() => undefined))?.size ?? 0;
    const seen: Seen = { answer_ms: 0, log_bytes: 0, lives: 0 };
    const look = async () => {
      const sizes = await Promise.all([log, `${log}.1`].map(sizeOf));
      seen.log_bytes = Math.max(seen.log_bytes, (sizes[0] ?? 0) + (sizes[1] ?? 0));
      const tail = await Array.fromAsync(w.client.vm.logs({ vm: id, tail: 1 }));
      for (const item of tail) assert.ok(item.type !== 'line' || !/[\u0000-\u0008\u001b\u001e]/.test(item.line));
      return tail.some(item => item.type === 'line' && item.line === 'the flood is over');
    };
    let over = false;
    const watched = poll('the end of the flood', 200_000 + FLOOD_MIB * 3000, async () => (await look()) || undefined, {
      every_ms: 200,
    }).finally(() => {
      over = true;
    });
    watched.catch(() => {}); // heard below
    do await others(w, seen);
    while (!over);
    await watched;
    const s_all = ((performance.now() - began) / 1000).toFixed(1);
    const grown = (await peakMib(w)) - before;
    t.diagnostic(
      `${FLOOD_MIB} MiB in ${s_all} s; the daemon grew by ${grown.toFixed(0)} MiB, the log to ${(seen.log_bytes / MIB).toFixed(1)} MiB; ` +
        `an answer took ${seen.answer_ms.toFixed(0)} ms at most; ${seen.lives} lives of another VM meanwhile`,
    );
    assert.ok(seen.answer_ms < ANSWER_MS, `an answer took ${seen.answer_ms} ms`);
    assert.ok(grown < GROWN_MIB, `the daemon grew by ${grown} MiB`);
    assert.ok(seen.log_bytes < LOG_BYTES, `the log took ${seen.log_bytes} bytes`);
    const whole = w.client.vm.logs({ vm: id, boot: 0 });
    assert.deepEqual((await whole.next()).value, {
      type: 'gap',
      detail: 'the beginning of this boot was rotated away',
    });
    await whole.return();
    assert.equal((await w.client.vm.get({ vm: id })).guest, 'ready');
    await lazy.return();
    await w.client.vm.delete({ vm: id });
    assert.equal((await along).at(-1), 'end', 'who read along learns of the end');
    await nothingLeft(w);
  });
}

/** The numbers of whole lines, in their order. */
const numbersIn = (lines: readonly string[]): number[] =>
  lines.flatMap(line => /^line (\d+) \.+$/.exec(line)?.[1] ?? []).map(Number);
/** Where the next number is not the next one. */
const jumps = (numbers: readonly number[]): [from: number, to: number][] =>
  numbers.flatMap((n, i): [number, number][] => {
    const last = numbers[i - 1];
    return last === undefined || n === last + 1 ? [] : [[last, n]];
  });
const GAP = /^--- (\S+Z) to (\S+Z): no daemon was there; /;
const KEPT_BYTES = 64 * 1024;

for (const vmm of ['qemu', 'firecracker'] as const) {
  test(`${vmm}: the daemon is killed while the console is written: every line is there, or a marked gap`, {
    timeout: 120_000,
  }, async t => {
    await using s = await stage(vmm);
    const { w } = s;
    const bytes = { little: 16, much: 1000 }; // of each line, one each ms: little is kept for seconds, much is not
    for (const [name, COUNT] of Object.entries(bytes)) {
      const { id } = await s.create(name);
      await s.behave({ COUNT }, id);
      await w.client.vm.start({ vm: id });
    }
    const last = async (vm: string) => {
      const tail = await Array.fromAsync(w.client.vm.logs({ vm, tail: 5 }));
      return numbersIn(tail.map(item => (item.type === 'line' ? item.line : ''))).at(-1) ?? 0;
    };
    for (const vm of Object.keys(bytes))
      await poll(`lines of ${vm}`, 20_000, async () => (await last(vm)) > 20 || undefined);
    const killed_ms = Date.now();
    await w.kill();
    await sleep(1000);
    await w.start();
    const back_ms = Date.now();
    for (const [vm, size] of Object.entries(bytes)) {
      assert.equal((await w.client.vm.wait({ vm })).guest, 'ready');
      const then = await last(vm);
      await poll(`more lines of ${vm}`, 20_000, async () => (await last(vm)) > then + 100 || undefined);
      const items = await Array.fromAsync(w.client.vm.logs({ vm, boot: 0 }));
      const gaps = items.flatMap((item, i) => (item.type === 'gap' ? [{ i, detail: item.detail }] : []));
      const [gap = assert.fail('no gap is marked')] = gaps;
      assert.equal(gaps.length, 1);
      const [, since = '', until = ''] = GAP.exec(gap.detail) ?? assert.fail(gap.detail);
      assert.ok(Date.parse(since) <= killed_ms + 100 && Date.parse(since) > killed_ms - 20_000, gap.detail);
      assert.ok(Date.parse(until) > killed_ms && Date.parse(until) <= back_ms, gap.detail);
      const text = items.map(item => (item.type === 'line' ? item.line : ''));
      const [before, after] = [numbersIn(text.slice(0, gap.i)), numbersIn(text.slice(gap.i))];
      t.diagnostic(
        `${vm}: to ${before.at(-1)}, gap, ${after[0]} to ${after.at(-1)}; jumps ${JSON.stringify(jumps(after))}`,
      );
      assert.equal(before[0], 1);
      assert.deepEqual(jumps(before), [], 'a line is missing before the gap');
      assert.ok((after[0] ?? 0) > (before.at(-1) ?? 0), 'a line is there twice');
      const beyond = jumps(after);
      if (vmm === 'qemu') assert.deepEqual(beyond, [], 'a line is missing, and its writer waits');
      else
        assert.ok(
          beyond.length === 1 || (vm === 'little' && beyond.length === 0),
          'one place, where the pipe was full',
        );
      for (const [from] of beyond) {
        const kept = (from - (after[0] ?? 0) + 1) * size;
        assert.ok(kept > KEPT_BYTES * 0.75 && kept <= KEPT_BYTES * 1.25, `${kept} bytes were kept`);
      }
    }
    await s.clear();
  });
}
