/** One store for the page: a state that is replaced, never changed, and those who want to know. */

import { Component, html, useEffect, useReducer, useRef } from "../vendor/preact.js";

/**
 * @template S
 * @param {S} initial
 * @returns {{get: () => S, set: (change: Partial<S> | ((state: S) => Partial<S>)) => void,
 *            subscribe: (listener: (state: S) => void) => () => void}}
 */
export function createStore(initial) {
  let state = initial;
  const listeners = new Set();
  return {
    get: () => state,
    set(change) {
      const part = typeof change === "function" ? change(state) : change;
      if (Object.entries(part).every(([name, value]) => state[name] === value)) return;
      state = { ...state, ...part };
      for (const listener of [...listeners]) listener(state);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** What `select` takes from the store; the component is drawn again when that changes. */
export function useStore(store, select = (state) => state) {
  const [, draw] = useReducer((count) => count + 1, 0);
  const chosen = useRef(null);
  chosen.current = { select, value: select(store.get()) };
  useEffect(() => {
    const look = (state) => {
      if (chosen.current.select(state) !== chosen.current.value) draw();
    };
    look(store.get()); // It may have changed since it was drawn, with nobody listening yet.
    return store.subscribe(look);
  }, [store]);
  return chosen.current.value;
}

/**
 * A component that is drawn again only when a property is another one.
 * @param {Function} View
 * @param {(props: object) => boolean} [rests] whether it stays as it is for now, whatever has changed
 */
export function memo(View, rests = () => false) {
  return class Memo extends Component {
    shouldComponentUpdate(next) {
      if (rests(next)) return false;
      const names = Object.keys(next);
      return names.length !== Object.keys(this.props).length || names.some((name) => next[name] !== this.props[name]);
    }

    render(props) {
      return html`<${View} ...${props} />`;
    }
  };
}

/** A handler of clicks that does nothing at the second click of a double one: it was meant for the button before. */
export const unlessDouble = (act) => (event) => {
  if (event.detail < 2) act();
};
