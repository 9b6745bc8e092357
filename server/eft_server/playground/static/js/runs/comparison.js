/** A comparison: two answers at once, then what each setting makes of the other's text. Nothing here draws. */

import { explanationBody } from "../explain.js";
import { behaviourOf, cardOf, expertsOf, familyOf, isMember, newSeed, subjectOf } from "../settings.js";
import { answer, idsOf, prepare } from "./answers.js";

/** How many tokens are explained at once. */
export const SPAN = 64;
const ALTERNATIVES = 5;

/** What was asked about a result, for as long as there is one: a view that is opened again asks nothing again. */
const memory = new WeakMap();

/**
 * @typedef {{settings: object, tokens: object[], finish: string|null}} Answer
 * @typedef {{conversation: object, prompt: object, a: Answer, b: Answer}} Result
 * @typedef {{phase: "idle"|"streaming"|"scoring"|"done", result: Result|null,
 *   failures: {a?: Error, b?: Error, both?: Error}, scores: Scores|null, looked: Object<string, object[]>}} State
 *   looked: explanations by "ab": of A's text under B's settings, with holes where none was asked for.
 * @typedef {{under: Object<string, {logprobs: (number|null)[], total: number|null}>,
 *   rewards: {a: object, b: object}}} Scores
 *   under: by "ab": A's text under B's settings.
 */

/**
 * @param {{api: object, cards: object[], result?: Result|null, onChange: () => void}} options
 *   result: one from before, to look at again.
 */
export function createComparison({ api, cards, result = null, onChange }) {
  let controller = new AbortController();
  let state = { phase: result ? "done" : "idle", result, failures: {}, scores: null, looked: {}, ...memory.get(result) };
  const asked = new Map();
  const set = (change) => {
    state = { ...state, ...change };
    if (state.result) memory.set(state.result, { scores: state.scores, looked: state.looked });
    onChange();
  };
  const fail = (where, failure) => set({ failures: { ...state.failures, [where]: failure } });

  async function run(a, b, conversation) {
    stop();
    const mine = (controller = new AbortController());
    const seed = a.seed ?? newSeed();
    const [mineA, mineB] = [a, b].map((settings) => ({ settings: { ...settings, seed }, tokens: [], finish: null }));
    asked.clear();
    set({ phase: "streaming", result: null, failures: {}, scores: null, looked: {} });
    try {
      const prompt = await prepare({ api, cards, conversation, signal: mine.signal });
      set({ result: { conversation, prompt, a: mineA, b: mineB } });
      await Promise.all(["a", "b"].map((side) => stream(side, mine.signal)));
    } catch (failure) {
      if (controller === mine) fail("both", failure);
    }
    if (controller === mine) await rate();
  }

  async function stream(side, signal) {
    const { prompt, [side]: start } = state.result;
    const onTokens = (tokens, finish) => {
      if (controller.signal === signal) set({ result: { ...state.result, [side]: { ...start, tokens, finish } } });
    };
    try {
      await answer({ api, cards, settings: start.settings, prompt, signal, onTokens });
    } catch (failure) {
      if (controller.signal === signal) fail(side, failure);
    }
  }

  /** Stop what is under way; what has come stays. */
  function stop() {
    controller.abort();
  }

  /** Ask what either setting makes of both texts. */
  async function rate() {
    if (controller.signal.aborted && state.phase === "done") return;
    if (!state.result?.a.tokens.length && !state.result?.b.tokens.length) return set({ phase: "done" });
    const mine = (controller = new AbortController());
    set({ phase: "scoring" });
    try {
      const scores = await scoresOf({ api, cards, result: state.result, signal: mine.signal });
      if (controller === mine) set({ scores });
    } catch (failure) {
      if (controller === mine && failure.kind !== "stopped") fail("both", failure);
    }
    if (controller === mine) set({ phase: "done" });
  }

  /**
   * Explain the tokens around one, of a side's text under a side's settings; asked for once.
   * @returns {Promise<void>}
   */
  function look(text, under, index) {
    const { tokens } = state.result[text];
    const first = Math.floor(index / SPAN) * SPAN;
    const name = `${text}${under} ${first}`;
    const known = state.looked[text + under]?.[index];
    if (known || state.phase === "streaming" || index >= tokens.length) return Promise.resolve();
    if (!asked.has(name)) asked.set(name, explain(text, under, [first, Math.min(first + SPAN, tokens.length)], name));
    return asked.get(name);
  }

  async function explain(text, under, span, name) {
    const { result } = state;
    const { settings } = result[under];
    const body = explanationBody(cardOf(cards, settings.model), settings, result.prompt, idsOf(result[text].tokens), span);
    try {
      const { tokens } = await api.explain({ ...body, top_logprobs: ALTERNATIVES });
      if (state.result !== result) return;
      const known = [...(state.looked[`${text}${under}`] ?? [])];
      tokens.forEach((token, at) => (known[span[0] + at] = token));
      set({ looked: { ...state.looked, [`${text}${under}`]: known } });
    } catch (failure) {
      asked.delete(name);
      if (state.result === result) fail("both", failure);
    }
  }

  if (result && !state.scores) queueMicrotask(rate);
  return { run, stop, look, rate, get: () => state };
}

/** @returns {Promise<Scores>} */
async function scoresOf({ api, cards, result, signal }) {
  const texts = ["a", "b"].filter((side) => result[side].tokens.length);
  const completions = texts.map((side) => idsOf(result[side].tokens));
  const under = (settings, members) => {
    const { behaviour, read } = subjectOf(cardOf(cards, settings.model), settings, result.prompt);
    const items = completions.map((completion) => ({ ...read, completion }));
    return api.score({ ...behaviour, items, members }, { signal });
  };
  const plain = (side) => isMember(cardOf(cards, result[side].settings.model));
  const requests = ["a", "b"].map((side) => under(result[side].settings, !plain(side)));
  if (plain("a") && plain("b")) requests.push(under(familySettings(cards), true));
  const [byA, byB, byFamily] = await Promise.all(requests);
  const scores = { under: {}, rewards: { a: {}, b: {} } };
  texts.forEach((text, at) => {
    scores.under[`${text}a`] = byA.data[at].composite;
    scores.under[`${text}b`] = byB.data[at].composite;
    const { rewards } = (byFamily ?? (plain("a") ? byB : byA)).data[at];
    scores.rewards[text] = Object.fromEntries(expertsOf(cards).map((expert) => [expert, rewards?.[expert]?.total ?? null]));
  });
  return scores;
}

function familySettings(cards) {
  const family = familyOf(cards);
  return { model: family.id, ...behaviourOf(family) };
}
