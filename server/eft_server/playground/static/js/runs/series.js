/** A sweep: one prompt under a series of values of one setting, a few at a time. Nothing here draws. */

import { rangesOf } from "../checks/ranges.js";
import { cardOf, newSeed, subjectOf } from "../settings.js";
import { answer, idsOf, prepare } from "./answers.js";

export const AT_ONCE = 4;
export const STEPS = { min: 3, max: 11 };

const WEIGHT = "weights.";

/**
 * @typedef {{tokens: number, logprob: number|null, kl: number|null, rewards: Object<string, number|null>}} Scores
 *   logprob, kl and rewards: the mean over the tokens, in nats.
 * @typedef {{value: number, tokens: object[], finish: string|null, scores: Scores|null,
 *   state: "waiting"|"streaming"|"scoring"|"done"|"stopped"|"failed", failure?: Error}} Row
 * @typedef {{conversation: object, settings: object, what: string, hold: boolean, prompt: object, rows: Row[]}} Result
 * @typedef {{running: boolean, result: Result|null, failure: Error|null}} State
 */

/** What can be swept under a model: [id, name]. */
export function sweepable(card) {
  const { weights, scale } = rangesOf(card);
  const own = Object.keys(weights).map((expert) => [WEIGHT + expert, `weight of ${expert}`]);
  return [...own, ...(scale ? [["scale", "scale"], ["amplify", "amplify"]] : []), ["temperature", "temperature"]];
}

/** The expert whose weight is swept; null if it is something else. */
export const expertOf = (what) => (what.startsWith(WEIGHT) ? what.slice(WEIGHT.length) : null);

/** A short name: "helpful", "scale". */
export const nameOf = (what) => expertOf(what) ?? what;

/**
 * The range of what is swept: the server's bounds, as far as its total lets the other weights stay as they are.
 * @returns {{min: number, max: number}}
 */
export function rangeFor(card, settings, what, hold) {
  const ranges = rangesOf(card);
  const expert = expertOf(what);
  if (expert === null) return within(ranges[what], what === "scale" ? ranges.total / (sumOf(settings.weights) || 1) : Infinity);
  const own = ranges.weights[expert];
  if (hold) return within(own, sumOf(settings.weights));
  const others = sumOf(settings.weights) - Math.abs(settings.weights[expert] ?? 0);
  return within(own, settings.scale === 0 ? Infinity : ranges.total / Math.abs(settings.scale) - others);
}

const within = ({ min, max }, most) => ({ min, max: rounded(Math.max(min, Math.min(max, most))) });
const sumOf = (weights) => Object.values(weights).reduce((sum, weight) => sum + Math.abs(weight), 0);
const rounded = (value) => Number(value.toFixed(6));

/** Evenly spaced values, the ends among them. */
export function valuesOf({ from, to, steps }) {
  return Array.from({ length: steps }, (_, at) => rounded(from + ((to - from) * at) / (steps - 1)));
}

/** Settings with another value; with `hold` the sum of the weights stays, and the other experts share the rest as they did. */
export function settingsAt(settings, what, value, hold) {
  const expert = expertOf(what);
  if (expert === null) return { ...settings, [what]: value };
  const weights = { ...settings.weights, [expert]: value };
  if (!hold) return { ...settings, weights };
  const others = Object.keys(weights).filter((name) => name !== expert);
  const before = others.reduce((sum, name) => sum + settings.weights[name], 0);
  const rest = before + (settings.weights[expert] ?? 0) - value;
  for (const name of others) weights[name] = rounded(before ? (settings.weights[name] / before) * rest : rest / others.length);
  return { ...settings, weights };
}

/** The value that settings have. */
export const valueIn = (settings, what) => (expertOf(what) === null ? settings[what] : settings.weights[expertOf(what)]);

/**
 * @param {{api: object, cards: object[], result?: Result|null, onChange: () => void}} options
 */
export function createSeries({ api, cards, result = null, onChange }) {
  let controller = new AbortController();
  let state = { running: false, result: result && withStates(result), failure: null };
  const set = (change) => {
    state = { ...state, ...change };
    onChange();
  };
  const setRow = (at, change) => {
    const rows = state.result.rows.map((row, index) => (index === at ? { ...row, ...change } : row));
    set({ result: { ...state.result, rows } });
  };

  async function run({ settings, conversation, what, hold, values }) {
    controller.abort();
    const mine = (controller = new AbortController());
    const seeded = { ...settings, seed: settings.seed ?? newSeed() };
    set({ running: true, result: null, failure: null });
    try {
      const prompt = await prepare({ api, cards, conversation, signal: mine.signal });
      const rows = values.map((value) => ({ value, tokens: [], finish: null, scores: null, state: "waiting" }));
      set({ result: { conversation, settings: seeded, what, hold, prompt, rows } });
      const waiting = rows.keys();
      const worker = async () => {
        for (const at of waiting) await row(at, mine);
      };
      await Promise.all(Array.from({ length: AT_ONCE }, worker));
    } catch (failure) {
      if (controller === mine && failure.kind !== "stopped") set({ failure });
    }
    if (controller === mine) set({ running: false });
  }

  /** One value: its answer, then its scores. */
  async function row(at, mine) {
    const { settings, what, hold, prompt, rows } = state.result;
    const change = (next) => controller === mine && setRow(at, next);
    if (mine.signal.aborted) return change({ state: "stopped" });
    const its = settingsAt(settings, what, rows[at].value, hold);
    const { signal } = mine;
    let known = [];
    change({ state: "streaming" });
    try {
      await answer({ api, cards, settings: its, prompt, signal, onTokens: (tokens, finish) => change({ tokens: (known = tokens), finish }) });
      change({ state: "scoring" });
      const scores = known.length ? await scoresOf({ api, cards, settings: its, prompt, tokens: known, signal }) : null;
      change({ state: "done", scores });
    } catch (failure) {
      change(failure.kind === "stopped" ? { state: "stopped" } : { state: "failed", failure });
    }
  }

  return { run, stop: () => controller.abort(), get: () => state };
}

const withStates = (result) => ({ ...result, rows: result.rows.map((row) => ({ ...row, state: row.scores ? "done" : "stopped" })) });

/** @returns {Promise<Scores>} */
async function scoresOf({ api, cards, settings, prompt, tokens, signal }) {
  const { behaviour, read } = subjectOf(cardOf(cards, settings.model), settings, prompt);
  const body = { ...behaviour, ...read, completion: idsOf(tokens), top_logprobs: 0 };
  const { summary } = await api.explain(body, { signal });
  const mean = (total) => (total === null || total === undefined ? null : total / summary.tokens);
  const rewards = Object.fromEntries(Object.entries(summary.rewards ?? {}).map(([expert, total]) => [expert, mean(total)]));
  return { tokens: summary.tokens, logprob: mean(summary.logprob), kl: summary.kl ?? null, rewards };
}

/** The card that a sweep is about. */
export const cardFor = (cards, settings) => cardOf(cards, settings.model);
