/** Settings in the page's address, behind the #: never the prompt, never the key. Pure. */

import { FILTER_TOP_P, FILTERS, clamped, holds, rangeInWords, rangesOf, totalOf } from "./checks/ranges.js";

const VERSION = "1";
const LONGEST = 8192;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;
const WEIGHT = "w.";

/** The short names of plain numbers. */
const NUMBERS = { s: "scale", a: "amplify", t: "temperature", p: "top_p", n: "max_tokens", seed: "seed" };
const OF_BEHAVIOUR = new Set(["s", "a", "f"]);

/**
 * @param {import("./settings.js").Settings} settings
 * @param {object[]} cards
 * @returns {string} "#v=1&m=demo&w.helpful=0.7&…"
 */
export function toHash(settings, cards) {
  const words = new URLSearchParams([["v", VERSION], ["m", settings.model]]);
  const card = cards.find(({ id }) => id === settings.model);
  if (card?.eft.bounds) {
    for (const expert of Object.keys(rangesOf(card).weights)) {
      words.append(WEIGHT + expert, String(weightOf(settings, expert)));
    }
    const { filter } = settings;
    words.append("f", filter ? `${filter.kind}:${filter.top_p}` : "off");
  }
  for (const [short, name] of Object.entries(NUMBERS)) {
    if (OF_BEHAVIOUR.has(short) && !card?.eft.bounds) continue;
    if (settings[name] !== null && settings[name] !== undefined) words.append(short, String(settings[name]));
  }
  return `#${words.toString().replaceAll("%3A", ":").replaceAll("%2F", "/")}`;
}

const weightOf = ({ weights }, expert) => (Object.hasOwn(weights, expert) ? weights[expert] : 0);

/**
 * Read an address. What cannot be read is left as in `defaults`, and a notice says so.
 * @param {string} hash
 * @param {object[]} cards
 * @param {import("./settings.js").Settings} defaults
 * @returns {{settings: import("./settings.js").Settings, notices: string[]}}
 */
export function fromHash(hash, cards, defaults) {
  const text = hash.replace(/^#/, "");
  if (!text) return { settings: defaults, notices: [] };
  if (text.length > LONGEST) return ignored(defaults, `it is longer than ${LONGEST} characters`);
  const words = new URLSearchParams(text);
  if (words.get("v") !== VERSION) {
    return words.has("v") ? ignored(defaults, `it has version ${quoted(words.get("v"))}, not ${VERSION}`) : foreign(defaults);
  }
  return new Reading(words, cards, defaults).result();
}

const ignored = (settings, reason) => ({ settings, notices: [`The address was ignored: ${reason}.`] });
const foreign = (settings) => ignored(settings, "it holds no settings of this page");

/** A value from the address for a message: short, and without what would turn the text around. */
export function quoted(text) {
  const short = text.length > 40 ? `${[...text.slice(0, 40)].join("")}…` : text;
  return `“${short.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd")}”`;
}

class Reading {
  constructor(words, cards, defaults) {
    this.notices = [];
    this.card = this.cardOf(words.get("m"), cards, defaults);
    this.ranges = rangesOf(this.card);
    this.settings = { ...defaults, ...startOf(this.card, defaults), model: this.card.id };
    const seen = new Set(["v", "m"]);
    for (const [name, value] of words) {
      if (name === "v" || name === "m") continue;
      if (seen.has(name)) this.notices.push(`${quoted(name)} is in the address twice; the first one counts.`);
      else this.read(name, value);
      seen.add(name);
    }
    if (!seen.has("seed")) this.settings.seed = null;
  }

  result() {
    const { total } = this.ranges;
    if (total !== null && totalOf(this.settings) > total * (1 + 1e-9)) {
      this.notices.push(`Scale times the sum of the weights is above ${total}, which the server refuses: lower one of them.`);
    }
    return { settings: this.settings, notices: this.notices };
  }

  cardOf(model, cards, defaults) {
    const found = cards.find(({ id }) => id === model);
    if (model !== null && !found) this.notices.push(`This server has no model ${quoted(model)}.`);
    return found ?? cards.find(({ id }) => id === defaults.model);
  }

  read(name, value) {
    if (name.startsWith(WEIGHT)) return this.weight(name.slice(WEIGHT.length), value);
    if (name === "f") return this.filter(value);
    const long = Object.hasOwn(NUMBERS, name) ? NUMBERS[name] : null;
    const range = long && this.ranges[long];
    if (!range) {
      this.notices.push(`${quoted(name)} in the address means nothing here; it was ignored.`);
      return;
    }
    const number = this.number(long, value, range);
    if (number !== null) this.settings[long] = number;
  }

  weight(expert, value) {
    const ranges = this.ranges.weights;
    if (!Object.hasOwn(ranges, expert)) {
      this.notices.push(`${this.card.id} takes no weight for ${quoted(expert)}; it was ignored.`);
      return;
    }
    const number = this.number(expert, value, ranges[expert]);
    if (number !== null) this.settings.weights = { ...this.settings.weights, [expert]: number };
  }

  filter(value) {
    if (!this.ranges.scale) {
      this.notices.push(`${this.card.id} takes no filter; it was ignored.`);
      return;
    }
    const [kind, share] = value.split(":", 2);
    if (value === "off") this.settings.filter = null;
    else if (!FILTERS.includes(kind)) this.notices.push(`${quoted(value)} is no filter: off, expert:0.9 or base:0.9; it was ignored.`);
    else {
      const top_p = this.number("the filter's top-p", share ?? "", FILTER_TOP_P);
      if (top_p !== null) this.settings.filter = { kind, top_p };
    }
  }

  /** The number of a text, brought into its range; null, and a notice, if there is none in it. */
  number(name, text, range) {
    const value = NUMBER.test(text) ? Number(text) : NaN;
    if (!Number.isFinite(value)) {
      this.notices.push(`${name} in the address is ${quoted(text)}, which is no number; it was ignored.`);
      return null;
    }
    if (holds(range, value)) return value;
    const nearest = clamped(range, value);
    this.notices.push(`${name} in the address is ${value}; allowed: ${rangeInWords(range)}. It is ${nearest} now.`);
    return nearest;
  }
}

/** What a model does by itself; a plain member keeps the sliders as they are. */
function startOf({ eft }, defaults) {
  if (!eft.bounds) return { weights: { ...defaults.weights } };
  return { weights: { ...eft.weights }, scale: eft.scale, amplify: eft.amplify, filter: eft.filter };
}
