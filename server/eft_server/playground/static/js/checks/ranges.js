/** What values a setting may have: the server's bounds where it has any, OpenAI's and vLLM's otherwise. Pure. */

/**
 * @typedef {{min: number, max: number, integer?: boolean, above?: boolean}} Range
 *   above: min itself is not allowed.
 */

/** The highest whole number that a page can hold exactly. */
const SAFE = Number.MAX_SAFE_INTEGER;

const SAMPLING = { temperature: { min: 0, max: 2 }, top_p: { min: 0, max: 1, above: true } };

/** The range of a filter's top_p. */
export const FILTER_TOP_P = { min: 0, max: 1 };

export const FILTERS = ["expert", "base"];

/**
 * The ranges of a model's settings; a plain member has no weights, scale and amplify.
 * @param {object} card an entry of GET /v1/models
 * @returns {{weights: Object<string, Range>, scale: Range|null, amplify: Range|null, total: number|null,
 *   temperature: Range, top_p: Range, max_tokens: Range, seed: Range}}
 */
export function rangesOf(card) {
  const bounds = card.eft.bounds;
  return {
    weights: bounds?.weights ?? {},
    scale: bounds?.scale ?? null,
    amplify: bounds?.amplify ?? null,
    total: bounds?.total ?? null,
    ...SAMPLING,
    max_tokens: { min: 1, max: card.max_model_len, integer: true },
    seed: { min: 0, max: SAFE, integer: true },
  };
}

/** Whether a value is a number that a range holds. */
export function holds(range, value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return false;
  if (range.integer && !Number.isSafeInteger(value)) return false;
  return value <= range.max && (range.above ? value > range.min : value >= range.min);
}

/** The nearest value that a range holds, of a finite number. */
export function clamped(range, value) {
  const whole = range.integer ? Math.round(value) : value;
  const least = range.above ? Math.min(0.01, range.max) : range.min;
  if (range.above && whole > range.min && whole < least) return whole;
  return Math.min(range.max, Math.max(least, whole));
}

/** "0 to 2", "above 0, up to 1", "a whole number from 1 to 511". */
export function rangeInWords({ min, max, integer, above }) {
  if (above) return `above ${min}, up to ${max}`;
  if (max === SAFE) return `a whole number from ${min} on`;
  return `${integer ? "a whole number from " : ""}${min} to ${max}`;
}

/** scale times the sum of |weights|, which the server bounds by `total`. */
export function totalOf({ weights, scale }) {
  const sum = Object.values(weights).reduce((all, weight) => all + Math.abs(weight), 0);
  return Math.abs(scale) * sum;
}
