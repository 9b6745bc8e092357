/**
 * The session as a JSON file, out and in: settings, conversation, tree, comparison, sweep. The key is not part of it, and
 * explanations are not: they can be asked for again. Pure.
 */

import { FILTERS, FILTER_TOP_P, holds, rangeInWords, rangesOf } from "./checks/ranges.js";
import { Misfit, flag, list, nullable, number, object, oneOf, optional, record, shown, text, whole } from "./checks/shapes.js";

export const FORMAT = "eft-playground";
export const VERSION = 1;

/** The largest file that is read, in bytes. */
export const LARGEST = 40_000_000;

const MOST_TOKENS = 1_000_000;
const MOST_NODES = 100_000;
const LONGEST_TEXT = 10_000_000;

/**
 * @typedef {{settings: object, conversation: {mode: "chat"|"text", system: string, draft: string}, tree: object,
 *   compare: object|null, sweep: object|null}} State
 */

/**
 * @param {State} state
 * @param {object[]} cards
 * @param {Date} now
 * @returns {string} the file
 */
export function exportSession({ settings, conversation, tree, compare = null, sweep = null }, cards, now = new Date()) {
  const session = {
    format: FORMAT,
    version: VERSION,
    saved_at: now.toISOString(),
    server: serverOf(cards),
    settings,
    conversation,
    tree,
    compare,
    sweep,
  };
  return `${JSON.stringify(session, kept)}\n`;
}

/** What can be asked for again, or was of the moment, is left out. */
function kept(name, value) {
  if (value instanceof Error) return undefined;
  const ofToken = name === "explained" && typeof this.id === "number" && "text" in this;
  return ofToken || (name === "failure" && this.kind === "piece") ? undefined : value;
}

/** A file's name, such as "eft-demo-2026-11-29T16-00-32.json". */
export function fileName(cards, now = new Date()) {
  const family = serverOf(cards).model.replace(/[^\w.-]+/g, "-");
  return `eft-${family}-${now.toISOString().slice(0, 19).replaceAll(":", "-")}.json`;
}

/** The family that a session belongs to: its name, and its members, which share the token ids. */
function serverOf(cards) {
  const family = cards.find(({ eft }) => eft.kind === "composite");
  const members = cards.filter(({ eft }) => eft.kind === "member").map(({ id }) => id.slice(id.indexOf("/") + 1));
  return { model: family.id, members };
}

/**
 * Read a file, all of it, before anything is changed.
 * @param {string} file
 * @param {object[]} cards
 * @returns {State & {saved_at: string}}
 * @throws {Misfit} the message says in words what is wrong
 */
export function importSession(file, cards) {
  if (new Blob([file]).size > LARGEST) throw new Misfit("The file", `is too large; allowed: up to ${LARGEST / 1e6} MB`);
  const data = parsed(file);
  object({ format: oneOf(FORMAT), version: oneOf(VERSION) })(data, "");
  const session = SESSION(data, "");
  checkServer(session.server, serverOf(cards));
  session.settings = possible(session.settings, "settings", cards);
  if (session.compare) session.compare.b = possible(session.compare.b, "compare.b", cards);
  for (const [path, settings] of earlier(session)) known(settings, path, cards);
  checkTree(session.tree);
  const { server, format, version, ...state } = session;
  return state;
}

function parsed(file) {
  let data;
  try {
    data = JSON.parse(file);
  } catch {
    throw new Misfit("The file", "is no JSON: it may be cut off, or another kind of file");
  }
  if (typeof data !== "object" || data === null || !Object.hasOwn(data, "format")) {
    throw new Misfit("The file", "is no session of this page: it has no “format”");
  }
  return data;
}

const name = text(200);
const words = text(LONGEST_TEXT);
const id = whole(0, 2 ** 31 - 1);
const ids = list(id, MOST_TOKENS);
const prompts = nullable(record(ids, 100));
const finish = nullable(text(40));

const TOKEN = object({
  id,
  text: text(10_000),
  logprob: nullable(number(-Infinity, 0.001)),
  bytes: optional(nullable(list(whole(0, 255), 10_000))),
  special: optional(flag),
});
const tokens = list(TOKEN, MOST_TOKENS);

const SETTINGS = object({
  model: name,
  weights: record(number(), 100),
  scale: number(),
  amplify: number(),
  filter: nullable(object({ kind: oneOf(...FILTERS), top_p: number(FILTER_TOP_P.min, FILTER_TOP_P.max) })),
  temperature: number(),
  top_p: number(),
  max_tokens: whole(1, Number.MAX_SAFE_INTEGER),
  seed: nullable(whole(0, Number.MAX_SAFE_INTEGER)),
});

const MESSAGES = list(object({ role: oneOf("system", "user", "assistant"), content: words }), 10_000);

const PROMPT = object({
  id: whole(1, MOST_NODES),
  kind: oneOf("prompt"),
  parent: nullable(whole(1, MOST_NODES)),
  mode: oneOf("chat", "text"),
  messages: MESSAGES,
  text: words,
  ids,
  prompts,
});

const PIECE = object({
  id: whole(1, MOST_NODES),
  kind: oneOf("piece"),
  parent: whole(1, MOST_NODES),
  at: whole(0, MOST_TOKENS),
  tokens,
  settings: SETTINGS,
  origin: text(40),
  state: oneOf("streaming", "done", "stopped", "failed"),
  finish,
});

function NODE(value, path) {
  if (value?.kind === "prompt") return PROMPT(value, path);
  const { state, ...piece } = PIECE(value, path);
  return { ...piece, failure: null, state: state === "streaming" ? "stopped" : state };
}

const place = nullable(whole(1, MOST_NODES));

const TREE = object({
  nodes: record(NODE, MOST_NODES),
  current: place,
  past: list(place, MOST_NODES),
  future: list(place, MOST_NODES),
  next: whole(1, MOST_NODES + 1),
});

const CONVERSATION = object({ mode: oneOf("chat", "text"), system: words, draft: words });
const ASKED = object({ mode: oneOf("chat", "text"), messages: MESSAGES, prompt: words });
const PREPARED = object({ ids, prompts });
const ANSWER = object({ settings: SETTINGS, tokens, finish });

const COMPARE = object({
  b: SETTINGS,
  result: nullable(object({ conversation: ASKED, prompt: PREPARED, a: ANSWER, b: ANSWER })),
});

const SCORES = object({
  tokens: whole(0, MOST_TOKENS),
  logprob: nullable(number()),
  kl: nullable(number()),
  rewards: record(nullable(number()), 100),
});

const SWEEP = object({
  what: name,
  hold: flag,
  from: nullable(number()),
  to: nullable(number()),
  steps: whole(2, 100),
  result: nullable(
    object({
      conversation: ASKED,
      settings: SETTINGS,
      what: name,
      hold: flag,
      prompt: PREPARED,
      rows: list(object({ value: number(), tokens, finish, scores: nullable(SCORES) }), 100),
    }),
  ),
});

const SESSION = object({
  format: oneOf(FORMAT),
  version: oneOf(VERSION),
  saved_at: text(40),
  server: object({ model: name, members: list(name, 100) }),
  settings: SETTINGS,
  conversation: CONVERSATION,
  tree: TREE,
  compare: nullable(COMPARE),
  sweep: nullable(SWEEP),
});

/** Token ids mean something only for the members that they come from. */
function checkServer(theirs, ours) {
  const own = new Set(ours.members);
  if (theirs.members.length === own.size && theirs.members.every((member) => own.has(member))) return;
  throw new Misfit(
    "server.members",
    `are ${theirs.members.map(shown).join(", ") || "none"}: the session comes from another family than this server's ` +
      `(${ours.members.join(", ")}), and its token ids would mean other words`,
  );
}

/** The settings that answers were made with, which are only looked at, or taken up again. */
function* earlier({ tree, compare, sweep }) {
  for (const { id: node, settings } of Object.values(tree.nodes)) if (settings) yield [`tree.nodes.${node}.settings`, settings];
  for (const side of ["a", "b"]) if (compare?.result) yield [`compare.result.${side}.settings`, compare.result[side].settings];
  if (sweep?.result) yield ["sweep.result.settings", sweep.result.settings];
}

function known(settings, path, cards) {
  const card = cards.find((each) => each.id === settings.model);
  if (!card) throw new Misfit(`${path}.model`, `is ${shown(settings.model)}; this server has ${cards.map((each) => each.id).join(", ")}`);
  const experts = Object.keys(rangesOf(cards.find(({ eft }) => eft.kind === "composite")).weights);
  for (const expert of Object.keys(settings.weights)) {
    if (!experts.includes(expert)) throw new Misfit(`${path}.weights`, `has ${shown(expert)}; this server's experts are ${experts.join(", ")}`);
  }
}

/** The settings that the page goes on with have to be possible on this server; an expert that is not named counts 0. */
function possible(settings, path, cards) {
  known(settings, path, cards);
  const ranges = rangesOf(cards.find(({ eft }) => eft.kind === "composite"));
  for (const [expert, weight] of Object.entries(settings.weights)) check(`${path}.weights.${expert}`, weight, ranges.weights[expert]);
  for (const field of ["scale", "amplify", "temperature", "top_p"]) check(`${path}.${field}`, settings[field], ranges[field]);
  const none = Object.fromEntries(Object.keys(ranges.weights).map((expert) => [expert, 0]));
  return { ...settings, weights: { ...none, ...settings.weights } };
}

function check(path, value, range) {
  if (!holds(range, value)) throw new Misfit(path, `is ${shown(value)}; allowed here: ${rangeInWords(range)}`);
}

/** A tree in which every place exists, and parents come before what follows them. */
function checkTree({ nodes, current, past, future, next }) {
  for (const [key, node] of Object.entries(nodes)) checkNode(nodes, key, node, next);
  const places = [["current", current], ...past.map((at) => ["past", at]), ...future.map((at) => ["future", at])];
  for (const [where, at] of places) {
    if (at !== null && !Object.hasOwn(nodes, at)) throw new Misfit(`tree.${where}`, `names node ${at}, which is not there`);
  }
}

function checkNode(nodes, key, node, next) {
  const path = `tree.nodes.${key}`;
  if (String(node.id) !== key) throw new Misfit(`${path}.id`, `is ${node.id}; expected ${key}`);
  if (node.id >= next) throw new Misfit("tree.next", `is ${next}; expected more than ${node.id}`);
  if (node.parent === null) return;
  const parent = Object.hasOwn(nodes, node.parent) ? nodes[node.parent] : null;
  if (!parent || node.parent >= node.id) throw new Misfit(`${path}.parent`, `is ${node.parent}; expected an earlier node`);
  if (node.kind === "prompt") {
    if (parent.kind !== "piece") throw new Misfit(`${path}.parent`, `is ${node.parent}, a prompt; expected an answer`);
    return;
  }
  const most = parent.kind === "piece" ? parent.tokens.length : 0;
  if (node.at > most) throw new Misfit(`${path}.at`, `is ${node.at}; that answer has ${most} tokens`);
}
