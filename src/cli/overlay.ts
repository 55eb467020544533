/** A file as it is typed, of a template or for a VM: PATH=TEXT, PATH=@FILE with what a file here holds, or the JSON object of the API. */
import { readFileSync, statSync } from 'node:fs';
import { InvalidArgumentError } from 'commander';

/** The daemon takes less; a mistake is to be told before it is all in memory. */
const MAX_FILE = 4 * 1024 * 1024;

const ofFile = (path: string, file: string, larger: string): unknown => {
  try {
    const { size, mode } = statSync(file);
    if (size > MAX_FILE) throw new Error(`${file} is larger than 4 MiB${larger}`);
    const runs = (mode & 0o100) === 0 ? {} : { mode: '0755' };
    return { path, bytes_base64: readFileSync(file).toString('base64'), ...runs };
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
};

/** `larger`: what to do with a file that is too large. */
export const overlay = (text: string, larger: string): unknown => {
  if (text.startsWith('{')) {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new InvalidArgumentError(`It is no JSON: ${error instanceof Error ? error.message : error}.`);
    }
  }
  const at = text.indexOf('=');
  if (at < 1) throw new InvalidArgumentError('It must be PATH=TEXT, PATH=@FILE, or a JSON object.');
  const [path, value] = [text.slice(0, at), text.slice(at + 1)];
  return value.startsWith('@') ? ofFile(path, value.slice(1), larger) : { path, content: value };
};
