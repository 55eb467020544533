/**
 * Every command that README.md and docs/ show in an `sh` block is run: those of nexusctl here, in their order, against a real
 * daemon and a real guest; the others where the table below says. A command that is neither fails.
 */
import assert from 'node:assert/strict';
import { access, constants, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { type TestContext, test } from 'node:test';
import { FAULTS } from '../src/api/fault.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { type World, world } from './kit/world.ts';

const ROOT = join(import.meta.dirname, '..');

interface Shown {
  page: string;
  line: number;
  command: string;
}

/** The commands of a page, one a line; a backslash at the end joins lines, `$ ` in front and comments are left out. */
const commandsOf = (page: string, text: string): Shown[] => {
  const found: Shown[] = [];
  let [inside, pending] = [false, ''];
  text.split('\n').forEach((raw, n) => {
    if (/^\s*```/.test(raw)) inside = !inside && /^\s*```(sh|bash|shell|console)\s*$/.test(raw);
    else if (inside) {
      const line = pending + raw.trim();
      pending = line.endsWith('\\') ? `${line.slice(0, -1)} ` : '';
      const command = line.replace(/^\$ /, '');
      if (pending === '' && command !== '' && !command.startsWith('#')) found.push({ page, line: n + 1, command });
    }
  });
  return found;
};

/** What is run here: nexusctl, and curl on the daemon's own socket. */
const isCtl = (command: string): boolean => /(^|\| )nexusctl |^curl -s --unix-socket "\$NEXUS_SOCKET" /.test(command);

/** Commands that run elsewhere: which file runs them, and the words in it by which. */
const ELSEWHERE: [command: RegExp, file: string, words: string][] = [
  [/^nexusctl port box 3000:8080$/, 'test/port.test.ts', 'HTTP and WebSockets through nexusctl port'],
  [/^nexusctl port box :8080 9000$/, 'test/terminal-boot.test.ts', "'port', 'box', ':8080'"],
  [/^nexusctl attach box$/, 'test/terminal.test.ts', '$CTL attach box; '],
  [/^nexusctl attach box --session work$/, 'test/terminal-boot.test.ts', '$CTL attach box --session work '],
  [
    /^nexusctl attach box --session work --read-only$/,
    'test/terminal.test.ts',
    '$CTL attach box --session work --read-only;',
  ],
  [/^nexusctl exec -i -t box -- sh$/, 'test/terminal.test.ts', '$CTL exec -i -t box -- sh '],
  [/^nexusctl execs list box$/, 'test/exec-attach.test.ts', "'execs', 'list', 'box'"],
  [/^nexusctl execs attach box exec_\w+$/, 'test/exec-attach.test.ts', "'execs', 'attach', 'box', exec"],
  [/^nexusctl run debian:12 -- uname -a$/, 'test/run.test.ts', "'debian:12', '--', 'uname', '-a'"],
  [/^nexusctl kernel download --provider debian$/, 'test/kit/world.ts', 'kernel.download('],
  [/^nexusctl rootfs download debian 12$/, 'test/kit/world.ts', 'rootfs.download('],
  [/^nexusctl kernel download 6\.18\.9$/, 'test/assets-forms.test.ts', "'kernel', 'download', '6.18.9')"],
  [/^nexusctl rootfs download alpine 3\.21$/, 'test/assets-forms.test.ts', "'rootfs', 'download', 'alpine', '3.21')"],
  [
    /^nexusctl rootfs download --from https:\S+ --sha256 /,
    'test/assets-from.test.ts',
    "'rootfs', 'download', '--from', url, '--sha256'",
  ],
  [/^nexusctl firecracker download 1\.12\.0$/, 'test/assets-forms.test.ts', "'firecracker', 'download', '1.12.0')"],
  [/^\.\/nexus demo( --(yes|keep))*$/, 'test/nexus-script.test.ts', "nexus(['demo', '--yes', '--keep'])"],
  [/^\.\/nexus test( test\/[a-z-]+\.test\.ts)?$/, 'test/nexus-script.test.ts', "nexus(['test'"],
  [/^\.\/nexus setup( --yes)?$/, 'test/nexus-script.test.ts', "nexus(['setup'"],
  [/^\.\/nexus build$/, 'test/nexus-script.test.ts', "nexus(['build'"],
  [/^\.\/nexus daemon$/, 'test/nexus-script.test.ts', "nexus(['daemon'"],
  [/^npx tsc --noEmit$/, 'nexus', 'bin/tsc --noEmit'],
  [/^npx biome check --write src$/, 'nexus', 'bin/biome check'],
  [/^node --test test\/[a-z-]+\.test\.ts$/, 'nexus', '--test '],
  [
    /^NEXUS_TEST_FLOOD_MIB=\d+ node --test test\/logs-flood\.test\.ts$/,
    'test/logs-flood.test.ts',
    'NEXUS_TEST_FLOOD_MIB',
  ],
  [/^NEXUS_TEST_WALK=\d+ node --test test\/vm-walk\.test\.ts$/, 'test/vm-walk.test.ts', 'NEXUS_TEST_WALK'],
  [
    /^NEXUS_TEST_OUTPUT_MIB=\d+ node --test test\/exec-bad-input\.test\.ts$/,
    'test/exec-bad-input.test.ts',
    'NEXUS_TEST_OUTPUT_MIB',
  ],
  [/^npm run openapi$/, 'package.json', '"openapi": "node packaging/openapi.ts"'],
  [/^npm run bench$/, 'package.json', '"bench": "node bench/run.ts"'],
  [/^test\/bare-root\.sh \/[a-z/-]+$/, 'test/bare-root.sh', '# Usage, as root: test/bare-root.sh WORKDIR'],
];

const placeOf = (command: string) => ELSEWHERE.find(([pattern]) => pattern.test(command));

const pages = async (): Promise<Shown[]> => {
  const names = [
    'README.md',
    ...(await readdir(join(ROOT, 'docs'))).filter(n => n.endsWith('.md')).map(n => `docs/${n}`),
  ];
  const texts = await Promise.all(names.map(name => readFile(join(ROOT, name), 'utf8')));
  return names.flatMap((name, n) => commandsOf(name, texts[n] ?? ''));
};

test('docs: commands are found in sh blocks alone', () => {
  const text = [
    'text `./nexus no`',
    '```sh',
    '$ one two',
    '',
    '# a comment',
    'three \\',
    '  four',
    '```',
    '```ts',
    'const no = 1;',
    '```',
    '    indented no',
    '```console',
    'five',
    '```',
  ].join('\n');
  assert.deepEqual(
    commandsOf('p', text).map(c => c.command),
    ['one two', 'three  four', 'five'],
  );
});

test('docs: every command is nexusctl or has a place where it is run, and files that are named exist', async () => {
  for (const unknown of ['./nexus fly', 'make', 'curl example | sh', 'npm run deploy']) {
    assert.ok(placeOf(unknown) === undefined && !isCtl(unknown), `${unknown} is taken for known`);
  }
  const shown = await pages();
  assert.ok(shown.length > 15, 'the pages are not where this test looks for them');
  assert.deepEqual(
    shown.slice(0, 2).map(c => `${c.page} ${c.command}`),
    ['README.md ./nexus demo', 'README.md ./nexus test'],
  );
  for (const { page, line, command } of shown) {
    const place = placeOf(command);
    assert.ok(isCtl(command) || place !== undefined, `${page}:${line}: nothing runs '${command}'`);
    if (place !== undefined) {
      const [, file, words] = place;
      assert.ok((await readFile(join(ROOT, file), 'utf8')).includes(words), `${file} no longer runs '${command}'`);
    }
    for (const [file] of command.matchAll(/(?<![\w/])(\.\/nexus\b|test\/[a-z-]+\.(?:test\.ts|sh))/g)) {
      await access(join(ROOT, file), file.endsWith('.ts') ? constants.R_OK : constants.X_OK);
    }
  }
});

test('docs: links between pages lead to files', async () => {
  const names = [
    'README.md',
    ...(await readdir(join(ROOT, 'docs'))).filter(n => n.endsWith('.md')).map(n => `docs/${n}`),
  ];
  for (const name of names) {
    const text = await readFile(join(ROOT, name), 'utf8');
    for (const [, to = ''] of text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      await access(join(ROOT, dirname(name), to)).catch(() =>
        assert.fail(`${name} links to ${to}, which is not there`),
      );
    }
  }
});

test('docs: the exit codes are those of the contract', async () => {
  const page = await readFile(join(ROOT, 'docs/install.md'), 'utf8');
  const section = page.slice(page.indexOf('## Exit codes'));
  for (const [, exit] of Object.values(FAULTS)) assert.match(section, new RegExp(`\\b${exit} `), `exit code ${exit}`);
});

/** A folder with `nexusctl` in it, as a shell would find it. */
const binOf = async (t: TestContext): Promise<string> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-docs-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const main = join(ROOT, 'src/main.ts');
  const text = `#!/bin/sh\nexec '${process.execPath}' '${main}' nexusctl "$@"\n`;
  await writeFile(join(dir, 'nexusctl'), text, { mode: 0o755 });
  await writeFile(join(dir, 'motd.txt'), 'Welcome.\n');
  await writeFile(join(dir, 'setup.sh'), 'id -un >/root/was-set-up; echo "$STAGE" >>/root/was-set-up\n');
  return dir;
};

const OUTPUT: [command: RegExp, output: RegExp][] = [
  [/exec web -- uname -a$/, /^Linux web .* GNU\/Linux\n$/],
  [/GREETING/, /^hello from web\n$/],
  [/note/, /^13 \/root\/note\n$/],
  [/vm history/, /stopped.*\n[\s\S]*running.*\n[\s\S]*created/],
  [/--json vm list/, /^\[\]\n$/],
  [/vm inspect seen/, /\nload +\d+\.\d\d [\s\S]*\nguest disks +\/: [\d.]+ GiB of 7\.\d GiB free\n/],
  [/vm inspect seen/, /^seen: running, guest ready[\s\S]*\nimage +base: /],
  [/vm logs seen --boot 0/, /start of VM 'seen', kernel /],
  [/top --count 1/, /\nseen +running +ready /],
  [/rootfs verify debian 12/, /\nproofs:\n {2}apt\n/],
  [/kernel list --available --provider debian/, /^VERSION[^\n]*\n\S+-cloud-amd64 /],
  [/provider list/, /\nanvil +kernel +anvil +/],
  [/provider inspect anvil/, /7BD0B182881105F43DB50C6CD970B699651ABCFA/],
  [/build trigger/, /^bld_\w+\n$/],
  [/build list$/, /base-agent +5 +success/],
  [/image inspect base-agent/, /version: +5/],
  [/up .*--dry-run/, /\n4 +image +no +build 'debian-12'/],
  [/ws inspect fix-421/, /\nvm name: +fixer\n/],
  [/ws attach data fixer/, /\nposition: +1\nmount: +\/data\n/],
  [/vm inspect fixer/, /\ndata +data +\/dev\/vdb +\/data +4 GiB [\s\S]*\nspare +data +\/dev\/vdc +- /],
  [/ws update data/, /\nfile system: +at_next_start\n/],
  [/image\.yaml/, /^image: "img_\w+"\nimage_name: "debian-12-v1-\w+"\nbuild: "bld_\w+"\ntemplate: "debian-12"\n/],
  [/vm inspect quick/, /template +debian-12, version 1, tpl_/],
  [/exec ready -- sh/, /^Welcome\.\nPORT=3000test\n$/],
  [/was-set-up/, /^root\ntest\n$/],
  [
    /vm inspect ready/,
    /\ngiven +\/etc\/motd, \/srv\/app\/\.env, \$STAGE, a first-boot script\nprovisioned +all of it\n/,
  ],
  [/curl/, /\nnexus_vms\{state="running"\} 1\n/],
];

const show = async (w: World, bin: string, { page, line, command }: Shown): Promise<void> => {
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}`, NEXUS_SOCKET: w.socket };
  const said = await runAny(['sh', '-c', command], { env, cwd: bin, timeout_ms: 180_000 });
  assert.equal(said.code, 0, `${page}:${line}: ${command}\n${said.stderr}${said.stdout}`);
  for (const [pattern, output] of OUTPUT) if (pattern.test(command)) assert.match(said.stdout, output, command);
};

test('docs: what the pages show of nexusctl works, in their order', { timeout: 600_000 }, async t => {
  const shown = (await pages()).filter(one => isCtl(one.command));
  for (const [pattern] of OUTPUT)
    assert.ok(
      shown.some(one => pattern.test(one.command)),
      `${pattern} matches no command`,
    );
  const bin = await binOf(t);
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const curl = await runAny(['curl', '--version']).catch(() => undefined);
  if (curl === undefined) t.diagnostic('there is no curl: its lines are not run');
  for (const one of shown) {
    if (curl === undefined && one.command.startsWith('curl ')) continue;
    if (placeOf(one.command) === undefined) await show(w, bin, one);
    else {
      const words = one.command.split(' ').slice(1, 3);
      await run([join(bin, 'nexusctl'), ...words, '--help']);
    }
  }
  assert.deepEqual(await w.client.vm.list(), [], 'the tour tidies up');
});
