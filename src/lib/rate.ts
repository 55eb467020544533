/** Says at most `burst` things in `window_ms`; the next one that passes carries how many were swallowed before it. */
export const atMost = (burst: number, window_ms: number): (() => { pass: boolean; swallowed: number }) => {
  let since = Number.NEGATIVE_INFINITY;
  let said = 0;
  let swallowed = 0;
  return () => {
    const now = performance.now();
    if (now - since >= window_ms) {
      since = now;
      said = 0;
    }
    if (said >= burst) {
      swallowed++;
      return { pass: false, swallowed };
    }
    said++;
    const before = swallowed;
    swallowed = 0;
    return { pass: true, swallowed: before };
  };
};
