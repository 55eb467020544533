import process from 'node:process';

/** Acts on these signals, which end nothing meanwhile, until it is disposed of. */
export const onSignals = <N extends NodeJS.Signals>(names: readonly N[], act: (name: N) => void): Disposable => {
  const undo = names.map(name => {
    const listener = () => act(name);
    process.on(name, listener);
    return () => process.off(name, listener);
  });
  return {
    [Symbol.dispose]: () => {
      for (const off of undo) off();
    },
  };
};
