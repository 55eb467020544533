/** Writes docs/openapi.json from the contract. A test fails if the file is not what this writes. */
import { writeFile } from 'node:fs/promises';
import { openapiText } from '../src/daemon/openapi.ts';

await writeFile(new URL('../docs/openapi.json', import.meta.url), openapiText());
