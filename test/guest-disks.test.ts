/** What a guest may answer when it is to grow a file system, and what it may say of its disks. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { FACTS, rig, ring, speaker } from './kit/rig.ts';

const answers: [name: string, status: number, body: string, code: string, message: RegExp][] = [
  [
    'an agent that is older',
    404,
    '{"code":"not_found","detail":"the agent does not know this request"}',
    'unsupported',
    /agent is older than this daemon/,
  ],
  [
    'a disk that is not mounted',
    409,
    '{"code":"conflict","detail":"the disk is not mounted"}',
    'bad_state',
    /not mounted/,
  ],
  [
    'a kernel that refuses',
    500,
    '{"code":"internal","detail":"read-only \\u001b[31mfile system"}',
    'guest',
    /read-only \S*file system\.$/,
  ],
  ['no reason at all', 500, 'x', 'guest', /gave no reason/],
  ['an answer that is none', 200, '{"path":7}', 'guest', /'path' is not as agreed/],
  ['a path without end', 200, JSON.stringify({ path: 'x'.repeat(5000) }), 'guest', /'path' is not as agreed/],
];

test('a guest that does not grow a file system says why, in a code that can be told apart', async t => {
  for (const [name, status, body, code, message] of answers)
    await t.test(name, async () => {
      await using r = await rig(
        speaker((stream, headers) => {
          assert.equal(headers[':path'], '/v1/disks/grow');
          stream.respond({ ':status': status });
          stream.end(body);
        }),
      );
      assert.equal(await ring(r), 204);
      await assert.rejects(r.guest.growDisk('vdb', 1024, AbortSignal.timeout(20_000)), (error: unknown) => {
        assert.ok(error instanceof Error && 'code' in error && error.code === code, String(error));
        assert.match(error.message, message);
        assert.match(error.message, /^Cannot (grow the file system on \/dev\/vdb|read what was grown): [^\u001b\n]*$/);
        return true;
      });
    });
});

test('problems that a guest tells are bounded, cleaned and kept; an older agent tells none', async () => {
  await using r = await rig(speaker(stream => stream.respond({ ':status': 204 }, { endStream: true })));
  const { problems: _, ...older } = FACTS;
  assert.equal(await ring(r, older), 204);
  await poll('the facts', 10_000, () => r.guest.facts ?? undefined);
  assert.deepEqual(r.guest.facts?.problems, []);
  assert.equal(await ring(r, { ...FACTS, problems: ['/dev/vdb \u001b[31mis gone'] }), 204);
  await poll('the problem', 10_000, () => (r.guest.facts?.problems.length === 1 ? true : undefined));
  assert.doesNotMatch(r.guest.facts?.problems[0] ?? '', /\u001b/);
  for (const problems of [['x'.repeat(2000)], Array.from({ length: 65 }, () => 'x'), 'x', [1]])
    assert.notEqual(await ring(r, { ...FACTS, problems }), 204);
});
