/** What the kernel says of a VMM's process, proc_pid_status(5) and proc_pid_stat(5). */
import assert from 'node:assert/strict';
import { constants } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import process from 'node:process';

/** The lines of a status by their names. */
const statusOf = async (path: string): Promise<Map<string, string>> => {
  const lines = (await readFile(path, 'utf8')).split('\n');
  return new Map(lines.map(line => [line.split(':')[0] ?? '', line.slice(line.indexOf(':') + 1).trim()]));
};

/** Groups beyond its own that a VMM of a root daemon may be in: that of /dev/kvm, where not all may open it. */
const kvmGroups = async (): Promise<string> => {
  const { mode, gid } = await stat('/dev/kvm');
  return (mode & 0o006) === 0o006 ? '' : String(gid);
};

/** Every thread of a running Firecracker is behind its own seccomp filter and gets no new rights; it is in a session of its own and, under a root daemon, nobody. */
export const confined = async (pid: number): Promise<string> => {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const [, , group, session] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  assert.deepEqual([group, session], [String(pid), String(pid)], 'a session of its own');
  const flags = /^flags:\s+([0-7]+)$/m.exec(await readFile(`/proc/${pid}/fdinfo/1`, 'utf8'))?.[1] ?? '';
  assert.ok((Number.parseInt(flags, 8) & constants.O_NONBLOCK) !== 0, 'a console that nobody reads holds no guest');
  const names: string[] = [];
  for (const tid of await readdir(`/proc/${pid}/task`)) {
    const status = await statusOf(`/proc/${pid}/task/${tid}/status`);
    const is = (name: string) => status.get(name) ?? '';
    names.push(is('Name'));
    assert.deepEqual([is('Seccomp'), is('NoNewPrivs')], ['2', '1'], is('Name'));
    for (const set of ['CapEff', 'CapPrm', 'CapAmb']) assert.match(is(set), /^0+$/, set);
    if (process.getuid?.() !== 0) continue;
    const [uid = '', ...uids] = is('Uid').split(/\s+/);
    assert.ok(Number(uid) > 0 && uids.every(one => one === uid), is('Uid'));
    assert.deepEqual(is('Gid').split(/\s+/), Array(4).fill(uid));
    assert.equal(is('Groups'), await kvmGroups());
  }
  assert.ok(
    names.some(name => name.startsWith('fc_vcpu')),
    names.join(' '),
  );
  return names.join(', ');
};
