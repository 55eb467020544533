/** Errors in the middle of a stream: whose are they? */
import { Fault } from '../api/fault.ts';

/**
 * Reads a stream by way of `reader`. What the stream throws comes out as it is (it may be tried again), a fault of the reader too;
 * any other error of the reader comes out as the fault that it means.
 */
export const translated = async function* <In, Out>(
  from: AsyncIterable<In>,
  reader: (from: AsyncIterable<In>) => AsyncIterable<Out>,
  meaning: (error: unknown) => Fault | undefined,
): AsyncGenerator<Out> {
  let failure: { error: unknown } | undefined;
  const source = async function* () {
    try {
      yield* from;
    } catch (error) {
      failure ??= { error };
      throw error;
    }
  };
  try {
    yield* reader(source());
  } catch (error) {
    if (failure !== undefined) throw failure.error;
    throw error instanceof Fault ? error : (meaning(error) ?? error);
  }
};
