/**
 * The tree of everything that was asked and answered. Pure: every function gives a new tree, and nothing is removed.
 *
 * A *prompt* is a question, or the text of plain mode; a *piece* is tokens behind a prompt or behind the first `at` tokens
 * of another piece. An answer is the way from a prompt down to a piece.
 */

/**
 * @typedef {{id: number, kind: "prompt", parent: number|null, mode: "chat"|"text", messages: object[], text: string,
 *   ids: number[], prompts: object|null}} Prompt
 *   parent: the piece that it follows.
 * @typedef {{id: number, kind: "piece", parent: number, at: number, tokens: object[], settings: object, origin: string,
 *   state: "streaming"|"done"|"stopped"|"failed", finish: string|null, failure: object|null}} Piece
 * @typedef {{nodes: Object<number, Prompt|Piece>, current: number|null, past: (number|null)[],
 *   future: (number|null)[], next: number}} Tree
 */

/** @returns {Tree} */
export const emptyTree = () => ({ nodes: {}, current: null, past: [], future: [], next: 1 });

/** A prompt behind the piece `parent`, or at the root; it becomes the current node. */
export function addPrompt(tree, prompt) {
  return added(tree, [{ messages: [], text: "", prompts: null, ...prompt, kind: "prompt" }]);
}

/** `count` pieces that go on behind `at` tokens of the answer that ends in node `parent`; the first becomes current. */
export function addPieces(tree, parent, at, count, piece) {
  const fork = forkAt(tree, parent, at);
  const rest = { state: "streaming", finish: null, failure: null, tokens: [], origin: "answer" };
  return added(
    tree,
    Array.from({ length: count }, () => ({ ...rest, ...piece, ...fork, kind: "piece" })),
  );
}

function added(tree, nodes) {
  const placed = nodes.map((node, index) => ({ ...node, id: tree.next + index }));
  const all = { ...tree.nodes, ...Object.fromEntries(placed.map((node) => [node.id, node])) };
  const grown = goTo({ ...tree, nodes: all, next: tree.next + nodes.length }, placed[0].id);
  return { tree: grown, ids: placed.map((node) => node.id) };
}

/** The node and the place in it where an answer has `at` tokens. */
function forkAt(tree, id, at) {
  let node = tree.nodes[id];
  while (node.kind === "piece") {
    const before = startOf(tree, node.id);
    if (at > before) return { parent: node.id, at: at - before };
    node = tree.nodes[node.parent];
  }
  return { parent: node.id, at: 0 };
}

/** How many tokens of the answer stand before a piece's own. */
export function startOf(tree, id) {
  let count = 0;
  for (let node = tree.nodes[id]; node.kind === "piece"; node = tree.nodes[node.parent]) count += node.at;
  return count;
}

/** Tokens behind those of a piece. */
export function append(tree, id, tokens) {
  const piece = tree.nodes[id];
  return changed(tree, id, { tokens: [...piece.tokens, ...tokens] });
}

/** Other properties of a node. */
export function changed(tree, id, change) {
  return { ...tree, nodes: { ...tree.nodes, [id]: { ...tree.nodes[id], ...change } } };
}

/** Explanations of tokens of a piece, from its token `first` on. */
export function explained(tree, id, first, items) {
  const tokens = [...tree.nodes[id].tokens];
  items.forEach((item, index) => {
    const at = first + index;
    if (tokens[at]?.id !== item.id) return;
    const { text, bytes, special, logprob } = item;
    tokens[at] = { ...tokens[at], text, bytes, special, logprob, explained: item };
  });
  return changed(tree, id, { tokens });
}

/** How many explained tokens are kept. With eight alternatives, one takes about 10 kB. */
const MOST_EXPLAINED = 10_000;

/** Without the explanations of the oldest pieces that are not in sight, if there are too many: they can be asked for again. */
export function lightened(tree, most = MOST_EXPLAINED) {
  const inSight = new Set();
  for (let node = tree.nodes[tree.current]; node; node = tree.nodes[node.parent]) inSight.add(node.id);
  const counts = Object.values(tree.nodes).map(({ tokens = [] }) => tokens.filter(({ explained: known }) => known).length);
  let surplus = counts.reduce((sum, count) => sum + count, 0) - most;
  let lighter = tree;
  Object.values(tree.nodes).forEach((node, at) => {
    if (surplus <= 0 || !counts[at] || inSight.has(node.id)) return;
    surplus -= counts[at];
    lighter = changed(lighter, node.id, { tokens: node.tokens.map(({ explained: _, ...token }) => token) });
  });
  return lighter;
}

/** Another current node; the one before can be gone back to. */
export function goTo(tree, id) {
  if (id === tree.current) return tree;
  return { ...tree, current: id, past: [...tree.past, tree.current], future: [] };
}

export function undo(tree) {
  if (!tree.past.length) return tree;
  const past = tree.past.slice(0, -1);
  return { ...tree, current: tree.past.at(-1), past, future: [tree.current, ...tree.future] };
}

export function redo(tree) {
  if (!tree.future.length) return tree;
  const [current, ...future] = tree.future;
  return { ...tree, current, past: [...tree.past, tree.current], future };
}

/** The prompt that a node's answer belongs to: itself, or the one above it. */
export function promptOf(tree, id) {
  let node = tree.nodes[id];
  while (node && node.kind !== "prompt") node = tree.nodes[node.parent];
  return node ?? null;
}

/**
 * The answer that ends in a node.
 * @returns {{tokens: object[], owners: {id: number, at: number}[]}} owners: each token's piece, and its place there.
 */
export function answerOf(tree, id) {
  const parts = [];
  let end = Infinity;
  for (let node = tree.nodes[id]; node?.kind === "piece"; node = tree.nodes[node.parent]) {
    const tokens = node.tokens.slice(0, end);
    parts.unshift({ tokens, owners: tokens.map((_, at) => ({ id: node.id, at })) });
    end = node.at;
  }
  return { tokens: parts.flatMap((part) => part.tokens), owners: parts.flatMap((part) => part.owners) };
}

/** The turns on the way from the root to a node: each prompt, and the last node of its answer if it has one. */
export function turnsOf(tree, id = tree.current) {
  const turns = [];
  let end = null;
  for (let node = tree.nodes[id]; node; node = tree.nodes[node.parent]) {
    if (node.kind === "piece") end ??= node.id;
    else {
      turns.unshift({ prompt: node, end });
      end = null;
    }
  }
  return turns;
}

/** All answers to a prompt, by the nodes that they end in, in the order in which they came. */
export function versionsOf(tree, promptId) {
  return Object.values(tree.nodes)
    .filter((node) => node.kind === "piece" && promptOf(tree, node.id).id === promptId)
    .map((node) => node.id);
}

/** The prompts in a prompt's place: other questions behind the same answer. */
export function promptsBeside(tree, promptId) {
  const { parent } = tree.nodes[promptId];
  return Object.values(tree.nodes)
    .filter((node) => node.kind === "prompt" && node.parent === parent)
    .map((node) => node.id);
}

/** The version of the answer before (-1) or after (1) a node, or the prompt beside it; null at either end. */
export function sibling(tree, id, step) {
  const node = tree.nodes[id];
  if (!node) return null;
  const ring = node.kind === "prompt" ? promptsBeside(tree, id) : versionsOf(tree, promptOf(tree, id).id);
  return ring[ring.indexOf(id) + step] ?? null;
}

/** The nodes below one. */
export const childrenOf = (tree, id) => Object.values(tree.nodes).filter((node) => node.parent === id);
