/** What a VM is given when its disk boots for the first time. */
import { z } from 'zod';
import { TimeoutMs } from './common.ts';
import { GuestPath, Mode, Owner } from './fs.ts';
import { Environment } from './template.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const MAX_FILES = 256;
const MAX_FILE = MIB;
/** All files together; a request has room for them as base64. */
const MAX_FILES_TOTAL = 4 * MIB;
const MAX_ENV = 128 * KIB;
const MAX_SCRIPT = MIB;

const FIRST_BOOT_MS = 600_000;

const utf8 = (text: string): number => new TextEncoder().encode(text).length;

export const GivenFile = z.strictObject({
  path: GuestPath.refine(path => !/\/(\.{0,2})(\/|$)/.test(path), "a path has no empty part, no '.' and no '..'"),
  content: z.string().optional().describe('a file with this text'),
  bytes_base64: z.base64().optional().describe('a file with these bytes'),
  mode: Mode.optional().describe('such as 0755; default: that of the file it replaces, else 0644'),
  uid: Owner.optional().describe('number of the owner; default: as it is, else 0'),
  gid: Owner.optional(),
});
export type GivenFile = z.infer<typeof GivenFile>;

const sizeOf = ({ content, bytes_base64 }: GivenFile): number =>
  content === undefined ? Math.floor(((bytes_base64 ?? '').replace(/=+$/, '').length * 3) / 4) : utf8(content);

/** What is wrong with a file, given the paths of those before it. */
const flaws = (file: GivenFile, before: ReadonlySet<string>): [field: keyof GivenFile, why: string][] => {
  const { path, content, bytes_base64 } = file;
  const found: [keyof GivenFile, string][] = [];
  if ((content === undefined) === (bytes_base64 === undefined))
    found.push(['content', 'a file has either content or bytes_base64']);
  if (sizeOf(file) > MAX_FILE)
    found.push([content === undefined ? 'bytes_base64' : 'content', 'it has more than 1 MiB']);
  if (before.has(path)) found.push(['path', 'it is given twice']);
  const inside = [...before].some(other => other.startsWith(`${path}/`) || path.startsWith(`${other}/`));
  if (inside) found.push(['path', 'one of two files would be a directory of the other']);
  return found;
};

const GivenFiles = z
  .array(GivenFile)
  .max(MAX_FILES)
  .superRefine((files, issues) => {
    const before = new Set<string>();
    for (const [n, file] of files.entries()) {
      for (const [field, message] of flaws(file, before))
        issues.addIssue({ code: 'custom', path: [n, field], message });
      before.add(file.path);
    }
    if (files.reduce((sum, file) => sum + sizeOf(file), 0) > MAX_FILES_TOTAL)
      issues.addIssue({ code: 'custom', message: 'all files together have more than 4 MiB' });
  });

const GivenEnv = Environment.refine(
  env => Object.entries(env).reduce((sum, [name, value]) => sum + utf8(name) + utf8(value), 0) <= MAX_ENV,
  'all variables together have more than 128 KiB',
);

const Script = z
  .string()
  .min(1)
  .refine(text => !text.includes('\0'), 'a script has no NUL')
  .refine(text => utf8(text) <= MAX_SCRIPT, 'it has more than 1 MiB');

/** Fields of `vm.create`. */
export const given = {
  files: GivenFiles.default([]).describe(
    'PATH=TEXT, PATH=@FILE with what a file here holds, or JSON; written when its disk boots for the first time',
  ),
  env: GivenEnv.default({}).describe("of all that is run in it, beneath a command's own"),
  first_boot: Script.optional().describe(
    'a script, or @FILE with one, that root runs once, when its disk boots for the first time; for sh, or what its #! names',
  ),
  first_boot_timeout_ms: TimeoutMs.default(FIRST_BOOT_MS).describe('how long the script may take'),
};
