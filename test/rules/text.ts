/** What may stand in files, and how much of it. Each rule gives a line a breach. */
import type { Tree } from './tree.ts';

const MAX_LINES = 300;
const lines = (text: string): number => text.split('\n').length - (text.endsWith('\n') ? 1 : 0);

/** Files that are too long and not named, and names that are not needed any more. */
export const longFiles = (tree: Tree, named: Record<string, string>): string[] => {
  const long = new Map([...tree].map(([path, text]) => [path, lines(text)] as const).filter(([, n]) => n > MAX_LINES));
  const loud = [...long].filter(([path]) => !named[path]);
  return [
    ...loud.map(
      ([path, n]) => `${path}: ${n} lines; split it by what it does, or name it in test/rules.test.ts with a reason`,
    ),
    ...Object.keys(named)
      .filter(path => !long.has(path))
      .map(path => `${path}: has ${MAX_LINES} lines or fewer, or is gone; take it off the list in test/rules.test.ts`),
  ];
};

/** The first cell of each row of the tables under a heading, with the rest of the row. */
const rows = (doc: string, heading: string): Map<string, string> => {
  const section = doc.split(/^## /m).find(part => part.startsWith(`${heading}\n`)) ?? '';
  const found = [...section.matchAll(/^\| `([^`]+)` \|(.*)\|\s*$/gm)];
  return new Map(found.map(m => [m[1] ?? '', (m[2] ?? '').replaceAll('|', '').trim()]));
};

/** Modules that a go.mod requires by itself. */
export const goModules = (mod: string): string[] =>
  [...mod.matchAll(/^(?:require\s+|\t)([\w.-]+\.[\w./-]+) v\S+(.*)$/gm)]
    .filter(m => !(m[2] ?? '').includes('// indirect'))
    .map(m => m[1] ?? '');

/** Dependencies without a row under `heading`, rows without a reason, rows of what is no dependency. */
export const undocumented = (doc: string, heading: string, names: string[]): string[] => {
  const documented = rows(doc, heading);
  const file = 'docs/dependencies.md';
  return [
    ...names.filter(name => !documented.has(name)).map(name => `${file}: '${heading}' has no row for \`${name}\``),
    ...[...documented].filter(([, why]) => why.length < 10).map(([name]) => `${file}: \`${name}\` has no reason`),
    ...[...documented.keys()]
      .filter(name => !names.includes(name))
      .map(name => `${file}: \`${name}\` is no dependency`),
  ];
};

/** The packages that `./nexus` installs: the pairs package=program of its lists. */
export const hostPackages = (script: string): string[] => {
  const lists = [...script.matchAll(/(?:DEMO|TEST)_PACKAGES=(["'])([^"']*)\1/g)].map(m => m[2] ?? '');
  return [...new Set([...lists.join(' ').matchAll(/(?<=^|\s)([a-z0-9][a-z0-9+.-]*)=/g)].map(m => m[1] ?? ''))];
};

/** Host programs that have no row. */
export const unexplained = (doc: string, names: string[]): string[] => {
  const documented = rows(doc, 'Host programs');
  return names
    .filter(name => !documented.has(name))
    .map(name => `docs/dependencies.md: 'Host programs' has no row for \`${name}\`, which ./nexus installs`);
};

/** Operations that no test names: as `'vm.start'`, or as a call of the client, `.vm.start(`. */
export const untested = (tests: Tree, names: readonly string[]): string[] => {
  const text = [...tests.values()].join('\n');
  return names
    .filter(name => !text.includes(`'${name}'`) && !text.includes(`.${name}(`))
    .map(name => `${name}: no test calls it`);
};

/** The words are put together here, so that this file does not hold them. */
const UNDONE = new RegExp(`\\b(${['TO', 'FIX'].map((a, n) => a + ['DO', 'ME'][n]).join('|')})\\b`);
const HOSTS = [
  'regis' + 'try\\.[a-z0-9-]+\\.[a-z]{2,}',
  'deb\\.deb' + 'ian',
  'proxy\\.gol' + 'ang',
  'py' + 'pi\\.org',
  'npm' + 'js',
];
const HOST = new RegExp(HOSTS.join('|'), 'i');

const grep = (tree: Tree, pattern: RegExp, why: string): string[] =>
  [...tree].flatMap(([path, text]) =>
    text.split('\n').flatMap((line, n) => {
      const word = pattern.exec(line)?.[0];
      return word === undefined ? [] : [`${path}:${n + 1}: ${word}: ${why}`];
    }),
  );

export const undone = (tree: Tree): string[] => grep(tree, UNDONE, 'do it, or open an issue');

export const packageHosts = (tree: Tree): string[] =>
  grep(tree, HOST, "the host's own package clients know where packages come from");
