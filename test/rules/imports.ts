/** Who may import whom: the walls between the rooms, cycles, re-exports, packages. Each rule gives a line a breach. */
import { builtinModules } from 'node:module';
import { posix } from 'node:path';
import type { Tree } from './tree.ts';

export interface Import {
  /** The text between the quotes. */
  from: string;
  /** `import type` and `export type`: gone when the program runs. */
  type_only: boolean;
  reexport: boolean;
}

/** Every import of a file, of types too: static ones stand at the beginning of a line, dynamic ones anywhere. */
export const importsOf = (text: string): Import[] => {
  const found: Import[] = [];
  for (const m of text.matchAll(/^(import|export)\b([^'"`;]*?)\bfrom\s*['"]([^'"]+)['"]/gm))
    found.push({ from: m[3] ?? '', type_only: /^\s+type\b/.test(m[2] ?? ''), reexport: m[1] === 'export' });
  for (const m of text.matchAll(/^import\s*['"]([^'"]+)['"]|\bimport\s*\(\s*['"]([^'"]+)['"]/gm))
    found.push({ from: m[1] ?? m[2] ?? '', type_only: false, reexport: false });
  return found;
};

/** `src/vmm/qmp.ts` is in the room vmm, `src/main.ts` in main, `web/app.tsx` in web. */
export const roomOf = (path: string): string => {
  const [top = '', second = ''] = path.split('/');
  return top === 'src' ? second.replace(/\.tsx?$/, '') : top;
};

/** The file that an import of `path` names, from the root; undefined for a package or a builtin. */
const target = (path: string, from: string): string | undefined =>
  from.startsWith('.') ? posix.join(posix.dirname(path), from) : undefined;

export const packageOf = (from: string): string =>
  from
    .split('/')
    .slice(0, from.startsWith('@') ? 2 : 1)
    .join('/');

export const WORKSHOPS = ['store', 'assets', 'images', 'disk', 'vmm', 'net', 'guest'];
const workshop = (room: string): [string, string[]] => [room, ['api', 'lib']];

/** What each room may import besides itself. */
const MAY: Record<string, string[]> = {
  ...Object.fromEntries(WORKSHOPS.map(workshop)),
  lib: [],
  api: [],
  core: ['api', 'lib', ...WORKSHOPS],
  daemon: ['api', 'lib', 'core'],
  client: ['api'],
  cli: ['api', 'lib', 'client'],
  anvil: ['api', 'lib', 'assets', 'vmm'],
  web: ['api', 'client'],
  main: ['cli', 'daemon', 'anvil'],
};
/** Single files that may do more: the one that makes the Host out of the workshops. */
const MAY_ALSO: Record<string, string[]> = { 'src/daemon/boot.ts': WORKSHOPS };

/** A breach for each import that leads into a room which its own room may not know. */
export const walls = (tree: Tree): string[] => {
  const breaches: string[] = [];
  for (const [path, text] of tree) {
    const room = roomOf(path);
    const may = MAY[room];
    if (may === undefined) {
      breaches.push(`${path}: '${room}' is no room; the rooms are ${Object.keys(MAY).join(', ')}`);
      continue;
    }
    for (const { from } of importsOf(text)) {
      const file = target(path, from);
      if (file === undefined) {
        if (room === 'api' && from !== 'zod') breaches.push(`${path}: imports ${from}, but api imports zod only`);
        continue;
      }
      const to = roomOf(file);
      if (to === room || may.includes(to) || MAY_ALSO[path]?.includes(to)) continue;
      breaches.push(`${path}: imports ${file}, but ${room} may know ${may.join(', ') || 'no other room'} only`);
    }
  }
  return breaches;
};

/** An import whose target is computed passes every wall unseen. */
export const hiddenImports = (tree: Tree): string[] =>
  [...tree].flatMap(([path, text]) =>
    [...text.matchAll(/(?<!\.)\bimport\s*\(\s*(?!['"])([^)]{0,40})/g)].map(
      m => `${path}: import(${m[1]}…) names no file; say it as a literal`,
    ),
  );

/** Each cycle once, as the chain of its files. */
export const cycles = (tree: Tree): string[] => {
  const done = new Set<string>();
  const found: string[] = [];
  const visit = (path: string, chain: string[]): void => {
    const at = chain.indexOf(path);
    if (at >= 0)
      found.push(`${[...chain.slice(at), path].join(' -> ')}: a cycle; move what both need into a third file`);
    if (at >= 0 || done.has(path)) return;
    const text = tree.get(path);
    if (text === undefined) return;
    for (const { from } of importsOf(text)) {
      const file = target(path, from);
      if (file !== undefined) visit(file, [...chain, path]);
    }
    done.add(path);
  };
  for (const path of tree.keys()) visit(path, []);
  return found;
};

/** An import of ours that leads to no file. */
export const deadEnds = (tree: Tree): string[] =>
  [...tree].flatMap(([path, text]) =>
    importsOf(text).flatMap(({ from }) => {
      const file = target(path, from);
      if (file === undefined || tree.has(file) || !/\.tsx?$/.test(file)) return [];
      return [`${path}: imports ${file}, which is not there`];
    }),
  );

export const indexFiles = (tree: Tree): string[] =>
  [...tree.keys()]
    .filter(path => /(^|\/)index\.(ts|tsx|js|mjs)$/.test(path))
    .map(path => `${path}: name the file after what is in it; importers name the file they mean`);

export const reexports = (tree: Tree): string[] =>
  [...tree].flatMap(([path, text]) =>
    importsOf(text)
      .filter(i => i.reexport)
      .map(i => `${path}: passes on ${i.from}; let the importer import it from there`),
  );

const BUILTINS = new Set(builtinModules.filter(name => !name.startsWith('_') && !name.startsWith('node:')));

export const bareBuiltins = (tree: Tree): string[] =>
  [...tree].flatMap(([path, text]) =>
    importsOf(text)
      .filter(i => BUILTINS.has(i.from))
      .map(i => `${path}: write node:${i.from}`),
  );

/** SQL outside the store: the packages that speak it, and the template tag. */
export const strayedSql = (tree: Tree): string[] =>
  [...tree].flatMap(([path, text]) => {
    if (path.startsWith('src/store/')) return [];
    const speaks = importsOf(text).filter(i => packageOf(i.from) === 'kysely' || i.from === 'node:sqlite');
    const breaches = speaks.map(i => `${path}: imports ${i.from}; only src/store knows SQL`);
    if (/\bsql\s*`/.test(text)) breaches.push(`${path}: writes SQL; only src/store knows it`);
    return breaches;
  });

/** lib/proc.ts spawns for all; vmm starts VMMs; `nexusctl` starts the demo's daemon. */
const SPAWNERS = [/^src\/lib\/proc\.ts$/, /^src\/vmm\//, /^src\/cli\/daemon\.ts$/];

export const strayedSpawns = (tree: Tree): string[] =>
  [...tree].flatMap(([path, text]) => {
    if (SPAWNERS.some(pattern => pattern.test(path))) return [];
    const spawns = importsOf(text).some(i => /^(node:)?(child_process|cluster)$/.test(i.from) && !i.type_only);
    return spawns ? [`${path}: spawns by itself; use src/lib/proc.ts`] : [];
  });

/** Packages that are imported and not declared, or declared and not imported. `tree` is what runs at the user's. */
export const packagesAmiss = (tree: Tree, declared: string[]): string[] => {
  const used = new Map<string, string>();
  for (const [path, text] of tree)
    for (const { from, type_only } of importsOf(text))
      if (!from.startsWith('.') && !from.startsWith('node:') && !type_only) used.set(packageOf(from), path);
  const missing = [...used].filter(([name]) => !declared.includes(name) && !BUILTINS.has(name));
  return [
    ...missing.map(([name, path]) => `${path}: imports ${name}, which package.json has not among its dependencies`),
    ...declared.filter(name => !used.has(name)).map(name => `package.json: nothing in src imports ${name}; remove it`),
  ];
};
