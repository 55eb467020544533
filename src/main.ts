#!/usr/bin/env node
/** One program, two names: `nexusd` and `nexusctl`, by the name it was called with or by its first word. */
import { basename } from 'node:path';
import process from 'node:process';

const NAMES = ['nexusd', 'nexusctl'] as const;
type Name = (typeof NAMES)[number];

const nameOf = (word: string | undefined): Name | undefined => NAMES.find(name => name === word);

const [, script, ...words] = process.argv;
const first = nameOf(words[0]);
const name = first ?? nameOf(basename(script ?? '').replace(/\.m?js$/, '')) ?? 'nexusctl';
const argv = first === undefined ? words : words.slice(1);

const run = async (): Promise<number> => {
  if (name === 'nexusd') return (await import('./daemon/main.ts')).main(argv);
  return (await import('./cli/main.ts')).main(argv);
};

const code = await run();
// a daemon that has let go of its directory may not linger beside the next one
if (name === 'nexusd') process.exit(code);
process.exitCode = code;
