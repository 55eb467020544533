/** What nexus-probe says of KVM: on this host, and where /dev/kvm is missing, forbidden or something else. */
import assert from 'node:assert/strict';
import { chmod, copyFile, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { after, before, type TestContext, test } from 'node:test';
import { z } from 'zod';
import { run, runAny } from '../src/lib/proc.ts';
import { agentBinaries } from './kit/agent.ts';

const Answer = z.strictObject({
  usable: z.boolean(),
  reason: z.enum(['ok', 'no-device', 'no-permission', 'no-api', 'guest-does-not-run']),
  detail: z.string().min(1),
});
type Answer = z.infer<typeof Answer>;

/** What is promised. */
const PROMISE_MS = 1000;
/** A busy machine may keep a program waiting once; not each time. */
const TRIES = 8;
/** It gives up by itself long before. */
const LIMIT_MS = 20_000;
const ROOT = process.getuid?.() === 0;

let dir: string;
const at = (name: string) => join(dir, name);
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-kvm-'));
  await chmod(dir, 0o755); // for another user
  await copyFile((await agentBinaries()).probe, at('probe'));
  await writeFile(at('forbidden'), '', { mode: 0 });
});
after(() => rm(dir, { recursive: true, force: true }));

/** Asks until an answer comes in time. */
const ask = async (t: TestContext, before: readonly string[] = []): Promise<Answer> => {
  const took: number[] = [];
  for (let i = 0; i < TRIES; i++) {
    const from = performance.now();
    const { stdout } = await run([...before, at('probe'), 'kvm'], { timeout_ms: LIMIT_MS });
    took.push(Math.round(performance.now() - from));
    const answer = Answer.parse(JSON.parse(stdout));
    assert.equal(answer.usable, answer.reason === 'ok');
    if (took.some(ms => ms < PROMISE_MS)) {
      t.diagnostic(`${answer.reason} after ${took.join(', ')} ms`);
      return answer;
    }
  }
  throw new Error(`no answer came within ${PROMISE_MS} ms: ${took.join(', ')}`);
};

/** Words for a shell that changes what is at /dev for itself and its children alone, `$0` is the directory of the test. */
const elsewhere = (script: string): string[] => {
  const user = ROOT ? [] : ['--user', '--map-root-user'];
  return ['unshare', ...user, '--mount', 'sh', '-c', `${script} && exec "$@"`, dir];
};

const tryElsewhere = async (t: TestContext, script: string): Promise<string[] | undefined> => {
  const words = elsewhere(script);
  const { code, stderr } = await runAny([...words, 'true']).catch(error => ({ code: null, stderr: String(error) }));
  if (code === 0) return words;
  t.skip(`/dev cannot be changed here: ${stderr.trim()}`);
  return undefined;
};

test('this host: an answer within a second, whatever its /dev/kvm is', { skip: process.arch !== 'x64' }, async t => {
  const { reason } = await ask(t);
  const there = await stat('/dev/kvm').then(
    () => true,
    () => false,
  );
  if (!there) assert.equal(reason, 'no-device');
});

test('no device', { skip: process.arch !== 'x64' }, async t => {
  // programs want the null device
  const bare =
    'mkdir -p "$0/dev" && mount -t tmpfs none "$0/dev" && touch "$0/dev/null" && mount --bind /dev/null "$0/dev/null"';
  const words = await tryElsewhere(t, `${bare} && mount --rbind "$0/dev" /dev`);
  if (words === undefined) return;
  assert.deepEqual(await ask(t, words), { usable: false, reason: 'no-device', detail: 'there is no /dev/kvm' });
});

test('something else in its place', { skip: process.arch !== 'x64' }, async t => {
  const words = await tryElsewhere(t, 'mount --bind /dev/null /dev/kvm');
  if (words === undefined) return;
  assert.equal((await ask(t, words)).reason, 'no-api');
});

test('a device that may not be opened', {
  skip: (!ROOT && 'root alone can be somebody else') || process.arch !== 'x64',
}, async t => {
  const words = await tryElsewhere(t, 'mount --bind "$0/forbidden" /dev/kvm');
  if (words === undefined) return;
  const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--'];
  assert.equal((await ask(t, [...words, ...nobody])).reason, 'no-permission');
});
