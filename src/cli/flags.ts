/** Flags and positionals of a command, from the fields of its operation. */
import { readFileSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Field, Row } from '../api/derive.ts';
import { Fault } from '../api/fault.ts';
import { formatBytes, formatMs, parseBytes, parseMs } from '../lib/size.ts';
import { overlay } from './overlay.ts';
import { MAYBE_PATHS, PATHS, SCRIPTS, SHORT } from './words.ts';

const MIB = 1024 * 1024;

/** The daemon takes less. */
const MAX_TEXT = MIB;

const textOf = (file: string): string => {
  try {
    if (statSync(file).size > MAX_TEXT) throw new Error(`${file} is larger than 1 MiB`);
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
};

/** Text to a value of the field's kind. Throws what commander shows as an error of usage. */
const fromText = (field: Field, text: string): unknown => {
  if (SCRIPTS.includes(field.name)) return text.startsWith('@') ? textOf(text.slice(1)) : text;
  if (MAYBE_PATHS.includes(field.name)) return /^\.{1,2}\//.test(text) ? resolve(text) : text;
  if (PATHS.includes(field.name)) return /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : resolve(text);
  if (field.kind !== 'integer' && field.kind !== 'number') return text;
  const whole = field.kind === 'integer';
  if (!(whole ? /^-?\d{1,16}$/ : /^-?\d{1,16}(\.\d{1,16})?$/).test(text)) {
    throw new InvalidArgumentError(whole ? 'It must be a whole number.' : 'It must be a number.');
  }
  return Number(text);
};

/** Fields whose name ends in a unit also have a flag without it, which takes human text. */
const HUMAN: Record<string, { placeholder: string; parse: (text: string) => number; show: (value: number) => string }> =
  {
    _bytes: {
      placeholder: '<size>',
      parse: text => {
        const bytes = parseBytes(text);
        if (bytes === undefined) throw new InvalidArgumentError('It must be a size such as 512M or 8G.');
        return bytes;
      },
      show: formatBytes,
    },
    _mib: {
      placeholder: '<size>',
      parse: text => {
        const bytes = parseBytes(text);
        if (bytes === undefined || /^[\d.\s]+$/.test(text)) {
          throw new InvalidArgumentError('It must be a size with its unit, such as 512M or 2G.');
        }
        if (bytes % MIB !== 0) throw new InvalidArgumentError('It must be a whole number of MiB.');
        return bytes / MIB;
      },
      show: value => formatBytes(value * MIB),
    },
    _ms: {
      placeholder: '<time>',
      parse: text => {
        const ms = parseMs(text);
        if (ms === undefined) throw new InvalidArgumentError('It must be a time such as 90s or 10m.');
        return ms;
      },
      show: formatMs,
    },
  };

const unitOf = (name: string): string | undefined => Object.keys(HUMAN).find(unit => name.endsWith(unit));
export const kebab = (name: string): string => name.replaceAll('_', '-');
const capitals = (name: string): string => name.replaceAll('_', '-').toUpperCase();

const aboutOf = (field: Field): string => {
  const about = field.about ?? '';
  const { default: value } = field;
  const plain = typeof value === 'string' || typeof value === 'number';
  if (!plain || about.includes('default')) return about;
  const unit = unitOf(field.name);
  const shown = unit !== undefined && typeof value === 'number' ? HUMAN[unit]?.show(value) : String(value);
  return `${about}${about === '' ? '' : ' '}(default: ${shown})`;
};

const pair = (text: string, before: unknown): Record<string, string> => {
  const at = text.indexOf('=');
  if (at < 1) throw new InvalidArgumentError('It must be KEY=VALUE.');
  const map: Record<string, string> = Object.create(null);
  return Object.assign(map, before, { [text.slice(0, at)]: text.slice(at + 1) });
};

/** JSON, or `@` and the name of a file that holds it. */
const objects = (text: string): unknown => {
  try {
    return JSON.parse(text.startsWith('@') ? readFileSync(text.slice(1), 'utf8') : text);
  } catch (error) {
    throw new InvalidArgumentError(`It must be JSON, or @FILE: ${error instanceof Error ? error.message : error}.`);
  }
};

/** A flag that is given once for each of several things has the name of one of them: tags is --tag. */
const flagName = ({ name, kind }: Pick<Field, 'name' | 'kind'>): string => {
  const several = kind === 'map' || kind === 'list' || FILE_LISTS[name] !== undefined;
  return kebab(several && name.endsWith('s') ? name.slice(0, -1) : name);
};

/** Lists of files, which have a form of their own on the command line; and what to do with one that is too large. */
const FILE_LISTS: Record<string, string> = {
  overlays: ': name it as host_file, which the daemon reads',
  files: ': nexusctl cp copies it',
};

const optionsOf = (field: Field): Option[] => {
  const short = SHORT[field.name] === undefined ? '' : `-${SHORT[field.name]}, `;
  const flag = `${short}--${flagName(field)}`;
  const about = aboutOf(field);
  switch (field.kind) {
    case 'boolean':
      return [new Option(field.default === true ? `--no-${kebab(field.name)}` : flag, about)];
    case 'choice':
      return [new Option(`${flag} <${field.name}>`, about).choices(field.choices ?? [])];
    case 'list':
      return [
        new Option(`${flag} <${field.name}>`, `${about} (repeatable)`).argParser((text, before: unknown) =>
          Array.isArray(before) ? [...before, text] : [text],
        ),
      ];
    case 'map':
      return [new Option(`${flag} <KEY=VALUE>`, `${about} (repeatable)`).argParser(pair)];
    case 'json': {
      const larger = FILE_LISTS[field.name];
      const added = (text: string, before: unknown) => [
        ...(Array.isArray(before) ? before : []),
        overlay(text, larger ?? ''),
      ];
      if (larger !== undefined)
        return [new Option(`${flag} <PATH=TEXT|PATH=@FILE|JSON>`, `${about} (repeatable)`).argParser(added)];
      return [new Option(`${flag} <JSON|@FILE>`, about).argParser(objects)];
    }
    default: {
      const exact = new Option(`${flag} <${field.name}>`, about).argParser(text => fromText(field, text));
      const unit = unitOf(field.name);
      const human = unit === undefined ? undefined : HUMAN[unit];
      if (unit === undefined || human === undefined) return [exact];
      const stem = kebab(field.name.slice(0, -unit.length));
      exact.hideHelp().conflicts(camel(stem));
      return [new Option(`--${stem} ${human.placeholder}`, about).argParser(human.parse), exact];
    }
  }
};

/** commander's name of a flag: --memory-mib is memoryMib. */
export const camel = (flag: string): string => flag.replaceAll(/-(\w)/g, (_, letter: string) => letter.toUpperCase());

/** The name of something new is a positional, and a flag for those who like it better. */
const NAME = 'name';

/** Positionals without the `...` that marks a rest. */
const argNames = (row: Row): string[] => row.args.map(arg => arg.replace('...', ''));

const fieldOf = (row: Row, name: string): Field => {
  const field = row.fields.find(f => f.name === name);
  if (field === undefined) throw new Error(`${row.name} has no field ${name}`);
  return field;
};

/** Adds the positionals and flags of an operation to its command. A positional that may be left out is a flag, too. */
export const addInputs = (command: Command, row: Row, skip: readonly string[] = []): void => {
  for (const arg of row.args) {
    const field = fieldOf(row, arg.replace('...', ''));
    const shown = arg.endsWith('...') ? `${capitals(field.name)}...` : capitals(field.name);
    const about = field.kind === 'choice' ? `one of ${field.choices?.join(', ')}` : (field.about ?? '');
    const by_flag = field.name === NAME ? ' (or with --name)' : '';
    command.argument(field.required && by_flag === '' ? `<${shown}>` : `[${shown}]`, `${about}${by_flag}`);
  }
  const names = argNames(row);
  for (const field of row.fields) {
    if (skip.includes(field.name) || (names.includes(field.name) && field.required && field.name !== NAME)) continue;
    for (const option of optionsOf(field)) {
      if (names.includes(field.name)) option.hideHelp();
      if (field.required && field.name !== NAME && unitOf(field.name) === undefined) option.makeOptionMandatory();
      command.addOption(option);
    }
  }
};

/** What was typed, as the input of the operation. Fields that were not given are left to the daemon's defaults. */
export const inputOf = (
  row: Row,
  positionals: readonly unknown[],
  options: Record<string, unknown>,
): Record<string, unknown> => {
  const input: Record<string, unknown> = {};
  argNames(row).forEach((name, i) => {
    const value = positionals[i];
    const empty = value === undefined || (Array.isArray(value) && value.length === 0);
    if (!empty) input[name] = typeof value === 'string' ? fromText(fieldOf(row, name), value) : value;
  });
  for (const { name, kind } of row.fields) {
    if (name in input) {
      if (options[camel(flagName({ name, kind }))] === undefined) continue;
      throw new Fault('invalid', `--${flagName({ name, kind })} and ${capitals(name)} are the same: give one of them.`);
    }
    const unit = unitOf(name);
    const human = unit === undefined ? undefined : options[camel(kebab(name.slice(0, -unit.length)))];
    const value = options[camel(flagName({ name, kind }))] ?? human;
    if (value === undefined) continue;
    if (kind === 'boolean' && value === row.fields.find(f => f.name === name)?.default) continue;
    input[name] = value;
  }
  if (row.fields.some(f => f.name === NAME && f.required) && input[NAME] === undefined)
    throw new Fault('invalid', `${capitals(NAME)} is missing: what is it to be called?`);
  return input;
};
