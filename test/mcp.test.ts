/** `nexusctl mcp` as an agent sees it: lines of JSON-RPC to a process, and what they do in a daemon. */
import assert from 'node:assert/strict';
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { test } from 'node:test';
import { OP_NAMES, ops } from '../src/api/ops.ts';
import { withDeadline } from '../src/lib/deadline.ts';
import { world } from './kit/world.ts';

const MAIN = join(import.meta.dirname, '../src/main.ts');

interface Answer {
  id: number;
  result?: {
    tools?: {
      name: string;
      description: string;
      inputSchema: { type: string };
      annotations: { readOnlyHint: boolean };
    }[];
    content?: { text: string }[];
    isError?: boolean;
    serverInfo?: { name: string };
  };
  error?: { message: string };
}

/** A client of the protocol, its process, and its end. */
const openMcp = async (socket: string) => {
  const argv = [MAIN, 'nexusctl', 'mcp', '--socket', socket];
  const child: ChildProcessByStdio<Writable, Readable, null> = spawn(process.execPath, argv, {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const ended = once(child, 'close');
  const waiting = new Map<number, (answer: Answer) => void>();
  createInterface({ input: child.stdout }).on('line', line => {
    const answer: Answer = JSON.parse(line); // whatever is not the protocol fails here
    waiting.get(answer.id)?.(answer);
  });
  let last = 0;
  const send = (message: object) => child.stdin.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
  const ask = async (method: string, params: object = {}): Promise<Answer> => {
    const id = ++last;
    const { promise, resolve } = Promise.withResolvers<Answer>();
    waiting.set(id, resolve);
    send({ id, method, params });
    return await withDeadline(`the answer to ${method}`, 60_000, promise);
  };
  const call = async (name: string, args: object = {}) => {
    const { result } = await ask('tools/call', { name, arguments: args });
    const text = result?.content?.[0]?.text ?? '';
    return { failed: result?.isError === true, text };
  };
  const clientInfo = { name: 'test', version: '1' };
  const hello = await ask('initialize', { protocolVersion: '2025-06-18', capabilities: {}, clientInfo });
  send({ method: 'notifications/initialized' });
  const close = async () => {
    child.stdin.end();
    await withDeadline('the end of nexusctl mcp', 20_000, ended);
    return child.exitCode;
  };
  return { hello, ask, call, close, [Symbol.asyncDispose]: async () => void (await close()) };
};

test('the tools of an agent are the operations that the contract marks, and work', { timeout: 180_000 }, async () => {
  await using w = await world({ seed: 'booted' });
  await using mcp = await openMcp(join(w.data_dir, 'nexusd.sock'));
  assert.equal(mcp.hello.result?.serverInfo?.name, 'nexus');

  const tools = (await mcp.ask('tools/list')).result?.tools ?? [];
  const marked = OP_NAMES.filter(name => ops[name].tool === true).map(name => name.replace('.', '_'));
  assert.deepEqual(tools.map(tool => tool.name).sort(), [...marked].sort());
  for (const tool of tools) {
    assert.match(tool.name, /^[a-z_]+$/);
    assert.ok(tool.description.length > 5 && tool.inputSchema.type === 'object', tool.name);
  }
  for (const noun of ['kernel', 'rootfs', 'firecracker'])
    for (const verb of ['download', 'list', 'available', 'inspect', 'verify', 'remove', 'set_default'])
      assert.ok(marked.includes(`${noun}_${verb}`), `${noun} ${verb}`);
  for (const verb of ['list', 'inspect', 'create', 'update', 'set_default', 'remove'])
    assert.ok(marked.includes(`provider_${verb}`), `provider ${verb}`);
  assert.equal(tools.find(tool => tool.name === 'vm_list')?.annotations.readOnlyHint, true);
  assert.deepEqual(tools.find(tool => tool.name === 'fs_remove')?.annotations, { readOnlyHint: false });

  const [kernel] = JSON.parse((await mcp.call('kernel_list')).text);
  const rows = async (tool: string): Promise<Record<string, unknown>[]> => JSON.parse((await mcp.call(tool)).text);
  assert.deepEqual(
    (await rows('rootfs_list')).map(row => row.distro),
    ['debian'],
  );
  assert.deepEqual(await rows('firecracker_list'), []);
  assert.ok((await rows('provider_list')).some(row => row.kind === 'kernel' && row.name === 'debian'));
  const refusals = [
    ['kernel_download', { provider: 'nobody' }, 'not_found', /no provider 'nobody'/],
    ['firecracker_download', { from: 'http://127.0.0.1/firecracker' }, 'invalid', /only https URLs are/],
  ] as const;
  for (const [tool, args, code, why] of refusals) {
    const { failed, text } = await mcp.call(tool, args);
    assert.deepEqual([failed, JSON.parse(text).code], [true, code], tool);
    assert.match(JSON.parse(text).detail, why);
  }
  const lost = { from: '/no/such/file', distro: 'debian', version: '12' };
  const { id } = JSON.parse((await mcp.call('rootfs_download', lost)).text);
  const job = JSON.parse((await mcp.call('job_wait', { job: id })).text);
  assert.equal(job.state, 'failed');
  assert.match(job.error.detail, /no such file/);
  const verified = JSON.parse((await mcp.call('kernel_verify', { kernel: kernel.id })).text);
  assert.equal(verified.id, kernel.id);

  assert.equal(JSON.parse((await mcp.call('vm_create', { name: 'web', memory_mib: 64 })).text).name, 'web');
  assert.equal(JSON.parse((await mcp.call('vm_start', { vm: 'web' })).text).state, 'running');
  assert.equal((await w.client.vm.get({ vm: 'web' })).guest, 'ready');
  const again = await mcp.call('vm_start', { vm: 'web' });
  assert.equal(again.failed, true);
  assert.equal(JSON.parse(again.text).code, 'bad_state');
  assert.equal((await mcp.call('vm_delete', { vm: 'web' })).failed, false);
  assert.deepEqual(await w.client.vm.list(), []);

  const none = await mcp.call('kernel_inspect', { kernel: 'no-such' });
  assert.deepEqual([none.failed, JSON.parse(none.text).code], [true, 'not_found']);
  const unknown = await mcp.call('vm_list', { colour: 'red' });
  assert.equal(unknown.failed, true);
  assert.match(unknown.text, /colour/);
  assert.ok((await mcp.ask('tools/call', { name: 'exec_run', arguments: {} })).error, 'a stream is no tool');

  await w.stop();
  const gone = await mcp.call('vm_list');
  assert.deepEqual([gone.failed, JSON.parse(gone.text).code], [true, 'unreachable']);
  assert.match(JSON.parse(gone.text).hint, /Start the daemon with nexusd/);
  await w.start();
  assert.equal((await mcp.call('vm_list')).failed, false, 'it finds the next daemon');
  assert.equal(await mcp.close(), 0);
});
