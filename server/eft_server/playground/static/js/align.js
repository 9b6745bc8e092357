/** Two answers beside each other: where they first differ, and which of their words belong together. Pure. */

import { diffArrays } from "../vendor/diff/array.js";

/** Beyond so many changed words two texts have no more in common than chance; what differs is then one run. */
const MOST_CHANGES = 1200;

const PARTIAL = "\ufffd";
const WORD_END = /[\p{L}\p{M}\p{N}_]$/u;
const WORD_START = /^[\p{L}\p{M}\p{N}_'’]/u;
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}]/u;

/**
 * @typedef {{id: number, text: string, special?: boolean}} Token
 * @typedef {{same: boolean, a: [number, number], b: [number, number]}} Run
 *   A stretch of both lists, [first, stop): of the same words, or of those that stand in each other's place.
 */

/**
 * The index of the first token that differs, by its id; of two lists of which one begins the other, the shorter one's
 * length.
 * @param {Token[]} a
 * @param {Token[]} b
 * @returns {number|null} null if they are the same
 */
export function firstDifference(a, b) {
  const shorter = Math.min(a.length, b.length);
  for (let at = 0; at < shorter; at += 1) if (a[at].id !== b[at].id) return at;
  return a.length === b.length ? null : shorter;
}

/**
 * Align two lists of tokens by their words.
 * @param {Token[]} a
 * @param {Token[]} b
 * @returns {Run[]} they cover both lists, in order; neighbours differ in `same`
 */
export function align(a, b) {
  const [mine, theirs] = [wordsOf(a), wordsOf(b)];
  const keys = [mine, theirs].map((words) => words.map((word) => word.key));
  const changes = diffArrays(...keys, { maxEditLength: MOST_CHANGES });
  return changes ? runsOf(changes, mine, theirs) : unrelated(a, b);
}

/** The tokens of each side that stand in no run of the same words. */
export function differing(runs) {
  const sides = { a: new Set(), b: new Set() };
  for (const run of runs) {
    if (run.same) continue;
    for (const side of ["a", "b"]) for (let at = run[side][0]; at < run[side][1]; at += 1) sides[side].add(at);
  }
  return sides;
}

/**
 * Where a token's counterpart is on the other side: its place in a run of the same words, else the run's beginning.
 * @param {Run[]} runs
 * @param {"a"|"b"} side the side of the token
 * @param {number} index
 * @returns {{run: Run, index: number}|null}
 */
export function counterpart(runs, side, index) {
  const other = side === "a" ? "b" : "a";
  const run = runs.find(({ [side]: [first, stop] }) => index >= first && index < stop);
  if (!run) return null;
  const [first, stop] = run[other];
  const share = (index - run[side][0]) / (run[side][1] - run[side][0]);
  return { run, index: run.same ? Math.min(stop - 1, first + Math.floor(share * (stop - first))) : first };
}

/**
 * @param {Token[]} tokens
 * @returns {{key: string, first: number, stop: number}[]} words with the tokens that they are made of
 */
export function wordsOf(tokens) {
  const words = [];
  tokens.forEach((token, at) => {
    const before = tokens[at - 1];
    if (before && joins(before, token)) {
      const word = words.at(-1);
      word.key += keyOf(token);
      word.stop = at + 1;
    } else words.push({ key: keyOf(token), first: at, stop: at + 1 });
  });
  return words;
}

const isOdd = ({ special, text }) => Boolean(special) || text.includes(PARTIAL);

/** What is compared: the text, and the id of a token whose text does not tell it from others. */
const keyOf = (token) => (isOdd(token) ? `\u0000${token.id}\u0000` : token.text);

function joins(before, token) {
  if (before.special || token.special) return false;
  if (isOdd(before) || isOdd(token)) return isOdd(before) && isOdd(token);
  if (!WORD_END.test(before.text) || !WORD_START.test(token.text)) return false;
  return !UNSPACED.test(before.text) && !UNSPACED.test(token.text);
}

function unrelated(a, b) {
  const first = firstDifference(a, b);
  const runs = [{ same: true, a: [0, first], b: [0, first] }, { same: false, a: [first, a.length], b: [first, b.length] }];
  return runs.filter(({ a: [from, to], b: [start, stop] }) => to > from || stop > start);
}

function runsOf(changes, mine, theirs) {
  const at = { a: 0, b: 0 };
  const runs = [];
  const words = { a: mine, b: theirs };
  const take = (side, count) => {
    const first = words[side][at[side]]?.first ?? words[side].at(-1)?.stop ?? 0;
    at[side] += count;
    return [first, count ? words[side][at[side] - 1].stop : first];
  };
  for (const { added, removed, count } of changes) {
    const same = !added && !removed;
    const next = { same, a: take("a", added ? 0 : count), b: take("b", removed ? 0 : count) };
    const last = runs.at(-1);
    if (last && !same && !last.same) {
      last.a[1] = next.a[1];
      last.b[1] = next.b[1];
    } else runs.push(next);
  }
  return runs;
}
