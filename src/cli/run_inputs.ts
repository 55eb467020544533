/** What `nexusctl run` takes. */
import type { Field, Row } from '../api/derive.ts';

export const OF_EXEC = ['argv', 'cwd', 'env', 'user', 'timeout_ms'];
export const OF_VM = ['vcpus', 'memory_mib', 'root_size_bytes', 'kernel', 'vmm'];
const IMAGE: Field = {
  name: 'image',
  kind: 'text',
  required: true,
  about: 'name or ID of an image, or a template, or a root file system such as debian:12',
};

/** What may be said of command and VM, in the words of the operations that take it. */
export const runInputs = (exec: Row, create: Row): Row => {
  const of = (row: Row, names: readonly string[]) => row.fields.filter(field => names.includes(field.name));
  const fields = [IMAGE, ...of(exec, OF_EXEC), ...of(create, OF_VM)];
  return {
    ...exec,
    name: 'run',
    summary: 'Run a command in a VM that is made for it',
    fields,
    args: ['image', 'argv...'],
  };
};
