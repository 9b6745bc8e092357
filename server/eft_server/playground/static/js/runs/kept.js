/** What runs behind a view (a comparison, a series), with its result kept where the page keeps it. */

import { useEffect, useMemo, useReducer, useRef } from "../../vendor/preact.js";

/**
 * @template R
 * @param {{create: (options: {result: object|null, onChange: () => void}) => R, result: object|null,
 *   keep: (change: {result: object|null}) => void, busy: (state: object) => boolean, over: any[]}} options
 *   result: as it is kept; another one from outside replaces what is shown. over: what a new run is needed for.
 * @returns {R}
 */
export function useRun({ create, result, keep, busy, over }) {
  const [, draw] = useReducer((count) => count + 1, 0);
  const seen = useRef({ given: result, kept: result, version: 0 });
  const { given, kept, version } = seen.current;
  if (result !== given) seen.current = { given: result, kept: result, version: result === kept ? version : version + 1 };
  const run = useMemo(() => create({ result, onChange: draw }), [...over, seen.current.version]);
  const latest = useRef(null);
  latest.current = () => {
    const now = run.get().result;
    if (now === seen.current.kept) return;
    seen.current.kept = now;
    keep({ result: now });
  };
  useEffect(() => void (busy(run.get()) || latest.current()));
  useEffect(
    () => () => {
      run.stop();
      if (run.get().result) latest.current();
    },
    [run],
  );
  return run;
}
