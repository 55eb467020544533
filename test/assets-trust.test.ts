/** Whom a download trusts: the keys that come with Nexus, where a token goes, and who hears the end of what several wait for. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { readKey } from 'openpgp';
import { Fault } from '../src/api/fault.ts';
import type { Provider } from '../src/api/provider.ts';
import { ANVIL_KEYS } from '../src/assets/anvil_keys.ts';
import { SHIPPED } from '../src/assets/shipped.ts';
import { Downloads } from '../src/core/downloads.ts';
import { newId } from '../src/core/ids.ts';
import type { JobContext } from '../src/core/jobs.ts';
import { tokenFor } from '../src/core/token.ts';
import { run } from '../src/lib/proc.ts';
import { world } from './kit/world.ts';

test("Anvil's keys as they come with Nexus: readable, themselves, expired when they are said to be, and pinned so", async () => {
  const known = await Promise.all(
    ANVIL_KEYS.map(async ({ fingerprint, armored }) => {
      const key = await readKey({ armoredKey: armored });
      const ends = await key.getExpirationTime();
      const day = ends instanceof Date ? ends.toISOString().slice(0, 10) : 'never';
      assert.equal(key.getFingerprint().toUpperCase(), fingerprint);
      assert.ok(!key.isPrivate() && key.revocationSignatures.length === 0);
      return [fingerprint, day];
    }),
  );
  assert.deepEqual(known, [
    ['7BD0B182881105F43DB50C6CD970B699651ABCFA', '2026-03-01'],
    ['E82434375CA5F694CAC039777D8B48AB75C5BCE7', '2027-03-09'],
  ]);
  await using w = await world({});
  const { keys, shipped } = await w.client.provider.inspect({ provider: 'anvil' });
  assert.deepEqual([keys, shipped], [ANVIL_KEYS, true]);
  assert.deepEqual(
    keys.map(key => key.allow_expired),
    [true, true],
  );
});

const shippedAnvil = (config: Provider['config']): Provider => {
  const anvil = SHIPPED.find(row => row.name === 'anvil');
  if (anvil === undefined) throw new Error('no Anvil');
  const { since: _since, ...body } = anvil;
  const times = { created_at_ms: 1, updated_at_ms: 1 };
  return { ...body, id: newId('prv'), shipped: false, ...times, config: { ...body.config, ...config } };
};

test("the environment's token goes to GitHub's API, or to the one origin that the environment names", async () => {
  const ask = async (api: string, url: string, github_api?: string): Promise<string | undefined> =>
    (await tokenFor({ github_token: 'sesame', github_api }, shippedAnvil({ api })))(new URL(url));
  const GITHUB = 'https://api.github.com';
  const MINE = 'https://git.example.org:8443';
  assert.equal(await ask(GITHUB, `${GITHUB}/repos/x`), 'sesame');
  assert.equal(await ask(GITHUB, `${MINE}/x`), undefined, 'not the API of the row');
  for (const api of [MINE, 'http://api.github.com', `${GITHUB}:8443`, `${GITHUB}.example.org`, 'nonsense'])
    assert.equal(await ask(api, `${URL.canParse(api) ? api : GITHUB}/repos/x`), undefined, api);
  assert.equal(await ask(`${MINE}/api/v3`, `${MINE}/api/v3/repos/x`, MINE), 'sesame');
  assert.equal(await ask(GITHUB, `${GITHUB}/repos/x`, MINE), undefined, 'it is of another API then');
});

test('a token file is a regular file, for the origin of its row; nothing waits for a pipe', {
  timeout: 20_000,
}, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-token-'));
  try {
    const api = 'https://git.example.org';
    const host = { github_token: 'sesame', github_api: undefined };
    const from = (token_file: string) => tokenFor(host, shippedAnvil({ api, token_file }));
    const [good, link, pipe] = [join(dir, 'token'), join(dir, 'link'), join(dir, 'pipe')];
    await writeFile(good, 'open\n');
    await symlink(good, link);
    await run(['mkfifo', pipe]);
    for (const path of [good, link]) {
      const token = await from(path);
      assert.deepEqual([token(new URL(`${api}/x`)), token(new URL('https://api.github.com/x'))], ['open', undefined]);
    }
    for (const path of [pipe, dir, '/dev/zero'])
      await assert.rejects(from(path), (e: Fault) => e.code === 'host' && /it is no regular file/.test(e.message));
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});

const waiter = (): { job: JobContext; leave: () => void } => {
  const abort = new AbortController();
  const job = { job_id: newId('job'), signal: abort.signal, progress: () => {}, log: () => {} };
  return { job, leave: () => abort.abort(new Fault('canceled', 'It was canceled.')) };
};

test('who joins a download in whatever turn the last other one leaves gets what he waits for', async () => {
  for (let turns = 0; turns < 12; turns++) {
    const downloads = new Downloads();
    const go = Promise.withResolvers<string>();
    const work = ({ signal }: JobContext): Promise<string> =>
      new Promise((resolve, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason), { once: true });
        go.promise.then(resolve, reject);
      });
    const [first, second] = [waiter(), waiter()];
    const left = assert.rejects(downloads.run('key', first.job, work), /It was canceled/);
    await new Promise(resolve => setImmediate(resolve));
    first.leave();
    for (let n = 0; n < turns; n++) await Promise.resolve();
    const got = downloads.run('key', second.job, work);
    setImmediate(() => go.resolve('done'));
    assert.equal(await got, 'done', `${turns} turns`);
    await left;
  }
});

test('who cancels too late is told what landed; who cancels in time, that it was canceled', async () => {
  for (const late of [true, false]) {
    const downloads = new Downloads();
    const { job, leave } = waiter();
    const work = ({ signal }: JobContext): Promise<string> =>
      new Promise((resolve, reject) => {
        signal.addEventListener('abort', () => setImmediate(() => (late ? resolve('landed') : reject(signal.reason))));
      });
    const got = downloads.run('key', job, work);
    setImmediate(leave);
    if (late) assert.equal(await got, 'landed');
    else await assert.rejects(got, /It was canceled/);
  }
});
