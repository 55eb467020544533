/** Fills `{name}` in the stages of a pipeline. */
import { Fault } from '../api/fault.ts';
import type { Pipeline, Stage } from '../api/pipeline.ts';
import { plain } from '../lib/text.ts';

type Vars = Readonly<Record<string, string>>;

/** Replaces every `{name}`; a name that nobody knows is `invalid`. */
export const fill = (template: string, vars: Vars): string =>
  template.replace(/\{([^{}]*)\}/g, (_, name: string) => {
    const value = Object.hasOwn(vars, name) ? vars[name] : undefined;
    if (value === undefined)
      throw new Fault('invalid', `Cannot fill '${plain(template)}': nothing is known as {${plain(name)}}.`, {
        hint: `Known are: ${Object.keys(vars).join(', ')}.`,
      });
    return value;
  });

/** A value may not lead elsewhere than its template does. */
const fillUrl = (template: string, vars: Vars): string => {
  const url = fill(template, vars);
  if (/(^|[/\\])\.\.?([/\\?#]|$)/.test(url) || /[\s\p{Cc}]/u.test(url))
    throw new Fault('invalid', `Cannot use '${plain(url)}' as a URL.`);
  return url;
};

const fillStage = (stage: Stage, vars: Vars): Stage => {
  switch (stage.stage) {
    case 'http':
      return { ...stage, url: fillUrl(stage.url, vars) };
    case 'file':
      return { ...stage, path: fill(stage.path, vars) };
    case 'apt':
      return {
        ...stage,
        ...(stage.package === undefined ? {} : { package: fill(stage.package, vars) }),
        ...(stage.suite === undefined ? {} : { suite: fill(stage.suite, vars) }),
      };
    case 'sha256': {
      const { expect } = stage;
      return 'hash' in expect
        ? { ...stage, expect: { hash: fill(expect.hash, vars) } }
        : { ...stage, expect: { url: fillUrl(expect.url, vars), name: fill(expect.name, vars) } };
    }
    case 'pgp':
      return {
        ...stage,
        ...(stage.document === undefined ? {} : { document: fillUrl(stage.document, vars) }),
        ...(stage.signature === undefined ? {} : { signature: fillUrl(stage.signature, vars) }),
      };
    case 'member': {
      const beside = Object.entries(stage.beside).map(([file, name]) => [file, fill(name, vars)] as const);
      return { ...stage, name: fill(stage.name, vars), beside: Object.fromEntries(beside) };
    }
    default:
      return stage;
  }
};

export const fillStages = (pipeline: Pipeline, vars: Vars): Stage[] => pipeline.map(stage => fillStage(stage, vars));
