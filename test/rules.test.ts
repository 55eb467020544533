/**
 * The project's rules, checked. Each rule is first shown a small tree that breaks it and one that keeps it, so that none of
 * them passes because it sees nothing; then the project itself.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { OP_NAMES } from '../src/api/ops.ts';
import {
  bareBuiltins,
  cycles,
  deadEnds,
  hiddenImports,
  importsOf,
  indexFiles,
  packagesAmiss,
  reexports,
  strayedSpawns,
  strayedSql,
  WORKSHOPS,
  walls,
} from './rules/imports.ts';
import {
  goModules,
  hostPackages,
  longFiles,
  packageHosts,
  undocumented,
  undone,
  unexplained,
  untested,
} from './rules/text.ts';
import { only, readTree, type Tree } from './rules/tree.ts';

/** Files of more than 300 lines, each with the reason why it is not split. */
const LONG_FILES: Record<string, string> = {};

const project = await readTree(join(import.meta.dirname, '..'));
const ours = only(project, /^(src|web)\/.*\.tsx?$/);
const scripts = only(project, /^(src|web|test|bench|packaging)\/.*\.(tsx?|mjs)$/);

const tree = (files: Record<string, string>): Tree => new Map(Object.entries(files));
const imports = (path: string, ...from: string[]) =>
  tree({ [path]: from.map((f, n) => `import { a${n} } from '${f}';\n`).join('') });

/** The breaches that a rule must see: as many as patterns, in their order. */
const sees = (found: string[], ...patterns: RegExp[]) => {
  assert.equal(found.length, patterns.length, found.join('\n'));
  patterns.forEach((pattern, n) => {
    assert.match(found[n] ?? '', pattern);
  });
};
const none = (found: string[]) => assert.equal(found.length, 0, `\n${found.join('\n')}\n`);

test('imports are found in every form', () => {
  const text = [
    "import a from 'a';",
    "import type { B } from './b.ts';",
    "import {\n  c,\n  type D,\n} from '../c.ts';",
    "import 'e';",
    "const f = await import('./f.ts');",
    "let g: import('./g.ts').G;",
    "export type { H } from './h.ts';",
    "export * from './i.ts';",
    "// import j from 'j' is only talked about",
    "export const k = () => Array.from('k');",
  ].join('\n');
  assert.deepEqual(
    importsOf(text)
      .map(i => i.from)
      .sort(),
    ['../c.ts', './b.ts', './f.ts', './g.ts', './h.ts', './i.ts', 'a', 'e'],
  );
  assert.deepEqual(
    importsOf(text)
      .filter(i => i.type_only)
      .map(i => i.from),
    ['./b.ts', './h.ts'],
  );
  assert.ok(ours.size > 30, 'the project is not where these tests look for it');
});

test('lib and api: lib knows nothing of ours, api zod alone', () => {
  sees(walls(imports('src/lib/a.ts', '../api/fault.ts')), /lib may know no other room only/);
  sees(walls(imports('src/api/a.ts', '../lib/text.ts')), /api may know no other room only/);
  sees(walls(imports('src/api/a.ts', 'zod', 'node:fs')), /imports node:fs, but api imports zod only/);
  none(walls(imports('src/lib/a.ts', 'pino', 'node:fs', './b.ts')));
  none(walls(only(ours, /^src\/(lib|api)\//)));
});

test('the workshops know api and lib, and never each other', () => {
  for (const room of WORKSHOPS) {
    const other = room === 'store' ? 'disk' : 'store';
    sees(walls(imports(`src/${room}/a.ts`, `../${other}/b.ts`)), new RegExp(`${room} may know api, lib only`));
    sees(walls(tree({ [`src/${room}/a.ts`]: `import type { B } from '../core/b.ts';` })), /may know/);
    sees(walls(tree({ [`src/${room}/a.ts`]: `let b: import('../core/b.ts').B;` })), /may know/);
    none(walls(imports(`src/${room}/a.ts`, '../api/vm.ts', '../lib/proc.ts', './b.ts', 'zod')));
  }
  none(walls(only(ours, new RegExp(`^src/(${WORKSHOPS.join('|')})/`))));
});

test('only core combines workshops, only daemon knows core; daemon/boot.ts makes the Host', () => {
  sees(walls(imports('src/core/a.ts', '../daemon/http.ts')), /core may know/);
  sees(walls(imports('src/daemon/http.ts', '../store/open.ts')), /daemon may know api, lib, core only/);
  none(walls(imports('src/daemon/boot.ts', '../store/open.ts', '../core/host.ts')));
  none(walls(imports('src/core/a.ts', '../store/store.ts', '../vmm/find.ts')));
  none(walls(only(ours, /^src\/(core|daemon)\//)));
});

test('cli, client, web, anvil and main keep to their side of the wall', () => {
  sees(walls(imports('src/cli/a.ts', '../core/a.ts')), /cli may know api, lib, client only/);
  sees(walls(imports('src/client/a.ts', '../lib/a.ts')), /client may know api only/);
  sees(walls(imports('web/a.tsx', '../src/lib/a.ts')), /web may know api, client only/);
  sees(walls(imports('src/anvil/a.ts', '../core/a.ts')), /anvil may know/);
  sees(walls(tree({ 'src/main.ts': "await import('./core/a.ts')" })), /main may know cli, daemon, anvil only/);
  none(walls(imports('web/deep/a.tsx', '../../src/api/vm.ts', '../b.ts')));
  none(walls(only(ours, /^(src\/(cli|client|anvil)\/|src\/main\.ts|web\/)/)));
});

test('every file is in a room', () => {
  sees(walls(tree({ 'src/helpers/a.ts': '' })), /'helpers' is no room/);
  none(walls(ours).filter(breach => breach.includes('is no room')));
});

test('no import names its file in a way that a reader cannot follow', () => {
  sees(hiddenImports(tree({ 'src/a.ts': 'await import(name)' })), /import\(name…\) names no file/);
  none(hiddenImports(tree({ 'src/a.ts': "await import('./b.ts')" })));
  none(hiddenImports(tree({ 'src/a.ts': 'await nexus.fs.import(args)' })));
  none(hiddenImports(ours));
});

test('every import of ours leads to a file', () => {
  sees(deadEnds(imports('src/lib/a.ts', './gone.ts')), /imports src\/lib\/gone.ts, which is not there/);
  none(deadEnds(ours));
});

test('no import cycles, not even of types', () => {
  const loop = tree({
    'src/core/a.ts': "import './b.ts';",
    'src/core/b.ts': "import type { C } from './c.ts';",
    'src/core/c.ts': "export * from './a.ts';",
  });
  sees(cycles(loop), /^src\/core\/a.ts -> src\/core\/b.ts -> src\/core\/c.ts -> src\/core\/a.ts: a cycle/);
  sees(cycles(imports('src/core/a.ts', './a.ts')), /a.ts -> src\/core\/a.ts/);
  none(
    cycles(tree({ 'src/a.ts': "import './b.ts';\nimport './c.ts';", 'src/b.ts': "import './c.ts';", 'src/c.ts': '' })),
  );
  none(cycles(ours));
});

test('no index files', () => {
  sees(indexFiles(tree({ 'src/core/index.ts': '' })), /name the file after what is in it/);
  none(indexFiles(tree({ 'src/core/indexes.ts': '' })));
  none(indexFiles(only(scripts, /^(?!web\/)/)));
});

test('no re-exports', () => {
  sees(reexports(tree({ 'src/a.ts': "export { b } from './b.ts';" })), /passes on .\/b.ts/);
  none(reexports(tree({ 'src/a.ts': "export const b = 'from';" })));
  none(reexports(ours));
});

test('a file of more than 300 lines is named with a reason, and only while it is that long', () => {
  const long = tree({ 'src/long.ts': 'x\n'.repeat(301), 'src/short.ts': 'x\n'.repeat(300) });
  sees(longFiles(long, {}), /^src\/long.ts: 301 lines/);
  sees(longFiles(long, { 'src/long.ts': '' }), /^src\/long.ts: 301 lines/);
  sees(longFiles(long, { 'src/long.ts': 'one table', 'src/short.ts': 'was long' }), /^src\/short.ts: .* take it off/);
  none(longFiles(long, { 'src/long.ts': 'one table' }));
  none(longFiles(only(project, /^(src|web)\/.*\.tsx?$|^agent\/(?!.*_test\.go$).*\.go$/), LONG_FILES));
});

test('Node builtins are imported with node:', () => {
  sees(bareBuiltins(imports('src/a.ts', 'fs', 'fs/promises', 'node:net')), /write node:fs/, /write node:fs\/promises/);
  none(bareBuiltins(scripts));
});

test('only the store knows SQL', () => {
  sees(strayedSql(imports('src/core/a.ts', 'kysely')), /only src\/store knows SQL/);
  sees(strayedSql(imports('src/core/a.ts', 'node:sqlite')), /only src\/store knows SQL/);
  sees(strayedSql(tree({ 'src/core/a.ts': ['await ', 'sql', '`delete from vms`'].join('') })), /writes SQL/);
  none(strayedSql(imports('src/store/a.ts', 'kysely')));
  none(strayedSql(ours));
});

test('processes are spawned in lib/proc.ts and vmm only', () => {
  sees(strayedSpawns(imports('src/images/a.ts', 'node:child_process')), /use src\/lib\/proc.ts/);
  sees(strayedSpawns(imports('src/cli/demo.ts', 'child_process')), /use src\/lib\/proc.ts/);
  none(strayedSpawns(imports('src/vmm/qemu.ts', 'node:child_process')));
  none(strayedSpawns(imports('src/lib/proc.ts', 'node:child_process')));
  none(strayedSpawns(tree({ 'src/guest/a.ts': "import type { ChildProcess } from 'node:child_process';" })));
  none(strayedSpawns(ours));
});

const text = (path: string): string => project.get(path) ?? assert.fail(`${path} is not there`);
const manifest = (): { dependencies: Record<string, string>; devDependencies: Record<string, string> } =>
  JSON.parse(text('package.json'));

test('what src imports is a dependency, and the other way round', () => {
  sees(packagesAmiss(imports('src/a.ts', 'zod/mini', '@a/b/c'), ['zod']), /imports @a\/b, which package.json has not/);
  sees(packagesAmiss(imports('src/a.ts', 'zod'), ['zod', 'left']), /nothing in src imports left/);
  none(packagesAmiss(only(ours, /^src\//), Object.keys(manifest().dependencies)));
});

test('every dependency has its reason in docs/dependencies.md', () => {
  const doc =
    '## npm packages\n\n| `a` | a good reason |\n| `b` | |\n| `c` | a good reason |\n\n## other\n| `d` | text |\n';
  sees(undocumented(doc, 'npm packages', ['a', 'b', 'd']), /no row for `d`/, /`b` has no reason/, /`c` is no dep/);
  sees(undocumented(doc, 'no such part', ['a']), /no row for `a`/);
  const mod =
    'module m.org/x\n\ngo 1.23\n\nrequire m.org/a v1.0.0\n\nrequire (\n\tm.org/b/v2 v2.1.0\n\tm.org/c v0.1.0 // indirect\n)\n';
  assert.deepEqual(goModules(mod), ['m.org/a', 'm.org/b/v2']);
  const { dependencies, devDependencies } = manifest();
  none(undocumented(text('docs/dependencies.md'), 'npm packages at run time', Object.keys(dependencies)));
  none(undocumented(text('docs/dependencies.md'), 'npm packages in development', Object.keys(devDependencies)));
  none(undocumented(text('docs/dependencies.md'), 'Go modules', goModules(text('agent/go.mod'))));
});

test('every package that ./nexus installs has its reason', () => {
  const script = "DEMO_PACKAGES='a=a b-c=/usr/b\nd=d'\nTEST_PACKAGES=\"e=e $DEMO_PACKAGES\"\nOTHER='f=f'";
  assert.deepEqual(hostPackages(script), ['a', 'b-c', 'd', 'e']);
  sees(unexplained('## Host programs\n| `a` | why |\n| `e` | why |\n', ['a', 'd', 'e']), /no row for `d`, which/);
  assert.ok(hostPackages(text('nexus')).length > 5, 'the lists of packages are not where this test looks for them');
  none(unexplained(text('docs/dependencies.md'), hostPackages(text('nexus'))));
});

test('every operation is called by a test', () => {
  const tests = tree({ 'test/a.test.ts': "await nexus.vm.begin({});\ncall('vm.end')" });
  sees(untested(tests, ['vm.begin', 'vm.end', 'vm.begi', 'm.end']), /^vm.begi: no test/, /^m.end: no test/);
  assert.ok(OP_NAMES.length > 20, 'the operation table is not where this test looks for it');
  none(untested(only(project, /^test\/(?!rules).*\.ts$/), OP_NAMES));
});

test('nothing in the sources is left for later', () => {
  sees(undone(tree({ 'src/a.ts': `// one\n// ${'TO'}${'DO'}: two` })), /^src\/a.ts:2: /);
  sees(undone(tree({ 'src/a.ts': `// ${'FIX'}${'ME'} now` })), /^src\/a.ts:1: /);
  none(undone(tree({ 'src/a.ts': '// todos are fine to talk about' })));
  none(undone(only(project, /^(src|web|agent)\//)));
});

test('no file names the host of a package archive', () => {
  const named = ['https://registry', '.npm', 'js.org/x'].join('');
  for (const host of [
    named,
    ['deb.', 'debian.org'].join(''),
    ['proxy.', 'golang.org'].join(''),
    ['py', 'pi.org'].join(''),
  ])
    sees(packageHosts(tree({ 'docs/a.md': `fetch ${host}` })), /^docs\/a.md:1: /);
  none(packageHosts(tree({ 'docs/a.md': 'The npm registry. It has packages; registry.get(name) finds one.' })));
  none(packageHosts(project));
});
