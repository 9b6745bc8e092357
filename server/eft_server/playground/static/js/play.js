/** What one can do: ask, steer, continue, stop, go back. Everything changes the store; nothing draws. */

import { continuationOf, createExplainer } from "./explain.js";
import { cardOf, completionOf, newSeed } from "./settings.js";
import { plainText } from "./tokens.js";
import {
  addPieces,
  addPrompt,
  answerOf,
  append,
  changed,
  goTo,
  promptOf,
  redo,
  sibling,
  turnsOf,
  undo,
  versionsOf,
} from "./tree.js";

const DRAW_EVERY_MS = 60;

/** The messages of a conversation up to a node: what an assistant said is read as text. */
export function messagesOf(tree, id, system) {
  const said = turnsOf(tree, id).flatMap(({ prompt, end }) => {
    const question = prompt.messages.at(-1);
    const answer = end === null ? [] : [{ role: "assistant", content: plainText(answerOf(tree, end).tokens) }];
    return question ? [question, ...answer] : [];
  });
  return [...(system.trim() ? [{ role: "system", content: system }] : []), ...said];
}

/** What the views beside the chat ask: the draft if there is one, otherwise the last question. */
export function conversationOf({ tree, mode, system, draft }) {
  if (mode === "text") {
    const last = promptOf(tree, tree.current);
    return { mode, messages: [], prompt: draft || (last?.mode === "text" ? last.text : "") };
  }
  const messages = messagesOf(tree, tree.current, system);
  if (draft.trim()) messages.push({ role: "user", content: draft });
  else while (messages.at(-1)?.role === "assistant") messages.pop();
  return { mode, messages, prompt: "" };
}

/**
 * @param {{store: object, api: object}} options
 *   store: {cards, settings, mode, system, draft, tree, look, running, explaining, trouble}.
 */
export function createPlay({ store, api }) {
  let controller = null;
  let session = 0;
  const setTree = (change) => store.set(({ tree }) => ({ tree: change(tree) }));
  const explainer = createExplainer({ store, api, onFailure: (failure) => notExplained(failure) });

  /** That tokens are not explained is said, unless something worse is being said already. */
  function notExplained(failure) {
    if (store.get().trouble) return;
    store.set({ trouble: { failure, retry: () => explainCurrent() } });
  }

  function explainCurrent() {
    store.set({ trouble: null });
    const { tree } = store.get();
    if (tree.nodes[tree.current]?.kind === "piece") explainer.answer(tree.current);
  }

  function halt() {
    controller?.abort();
    controller = null;
    explainer.cancel();
  }

  /** Ask what is in the draft: behind the current answer in a chat, as a prompt by itself in plain mode. */
  async function send() {
    const { draft, mode, tree, system } = store.get();
    const text = draft.trim() ? draft : "";
    if (mode === "text" ? !text : !text && tree.current === null) return;
    if (mode === "text") {
      const last = promptOf(tree, tree.current);
      if (last?.mode === "text" && last.text === text) return again(last.id);
      await ask({ mode, text, messages: [], parent: null });
      return;
    }
    if (!text) return again(promptOf(tree, tree.current).id);
    const here = tree.nodes[tree.current];
    const parent = promptOf(tree, tree.current)?.mode === "chat" ? (here.kind === "piece" ? here.id : here.parent) : null;
    const before = parent === null ? [] : messagesOf(tree, parent, "");
    store.set({ draft: "" });
    const asked = await ask({ mode, messages: [...before, { role: "user", content: text }], parent, system });
    if (!asked && !store.get().draft) store.set({ draft: text });
  }

  /** Render a prompt with the server, put it into the tree, and answer it. Resolves to whether it got there. */
  async function ask({ mode, text = "", messages, parent, system = "" }) {
    halt();
    const { settings } = store.get();
    const mine = (controller = new AbortController());
    store.set({ trouble: null, look: null, running: { tokens: 0, since: performance.now() } });
    const full = system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
    try {
      const body = mode === "text" ? { model: settings.model, prompt: text } : { model: settings.model, messages: full };
      const { tokens: ids, prompts = null } = await api.tokenize(body, { signal: mine.signal });
      if (controller !== mine) return false;
      setTree((tree) => addPrompt(tree, { mode, text, messages: full, ids, prompts, parent }).tree);
    } catch (failure) {
      if (controller !== mine) return false;
      store.set({ running: null, trouble: failure.kind === "stopped" ? null : { failure, retry: () => ask({ mode, text, messages, parent, system }) } });
      return false;
    }
    await go(store.get().tree.current, 0, [], 1, "answer");
    return true;
  }

  /** Another question in the place of one. */
  function edit(promptId, content) {
    const { tree, system } = store.get();
    const prompt = tree.nodes[promptId];
    if (prompt.mode === "text") return ask({ mode: "text", text: content, messages: [], parent: prompt.parent });
    const before = prompt.messages.filter(({ role }) => role !== "system").slice(0, -1);
    return ask({ mode: "chat", messages: [...before, { role: "user", content }], parent: prompt.parent, system });
  }

  /** Another answer to a prompt: with the settings of now, and with another seed unless something else is new. */
  function again(promptId) {
    const { tree, settings } = store.get();
    const asked = JSON.stringify(settings);
    const known = versionsOf(tree, promptId).some((id) => JSON.stringify(tree.nodes[id].settings) === asked);
    if (known) store.set({ settings: { ...settings, seed: newSeed() } });
    return go(promptId, 0, [], 1, "again");
  }

  /** From the answer that ends in `end`, keep `at` tokens, put `first` behind them, and have the model go on. */
  async function go(end, at, first, count, origin) {
    halt();
    const { settings, cards } = store.get();
    const { tree, ids } = addPieces(store.get().tree, end, at, count, { settings, tokens: first, origin });
    store.set({ tree, trouble: null, running: null });
    if (first.at(-1)?.special) {
      store.set({ tree: changed(tree, ids[0], { state: "done", finish: "stop" }) });
      return explainer.answer(ids[0]);
    }
    return stream(ids, cardOf(cards, settings.model), settings);
  }

  async function stream(ids, card, settings) {
    const mine = (controller = new AbortController());
    for (const id of ids) setTree((tree) => changed(tree, id, { state: "streaming", finish: null }));
    const { tree } = store.get();
    const { tokens } = answerOf(tree, ids[0]);
    const prompt = promptOf(tree, ids[0]);
    const asked = continuationOf(card, prompt, tokens);
    const since = performance.now();
    const own = session;
    const buffer = createBuffer({ store, ids, since, isHere: () => session === own });
    store.set({ running: { tokens: 0, since } });
    let failure = null;
    try {
      await api.complete({
        ...completionOf(card, settings, asked),
        n: ids.length,
        signal: mine.signal,
        onEvent: (progress) => {
          if (!mine.signal.aborted) buffer.add(progress);
        },
      });
    } catch (error) {
      failure = error;
    }
    buffer.flush();
    if (session !== own) return;
    settle(ids, failure);
    if (controller !== mine) return;
    controller = null;
    const current = store.get().tree.current;
    const grown = answerOf(store.get().tree, ids[0]).tokens.length > tokens.length;
    const retry = () => (grown ? resume(ids[0]) : anew(ids));
    store.set({ running: null, trouble: failure && failure.kind !== "stopped" ? { failure, retry } : null });
    const reachable = !failure || failure.kind === "stopped";
    if (reachable && answerOf(store.get().tree, current).tokens.length) explainer.answer(current);
  }

  /** Ask for the same pieces again, with the settings of now. */
  function anew(ids) {
    const { settings, cards } = store.get();
    for (const id of ids) setTree((tree) => changed(tree, id, { settings }));
    store.set({ trouble: null });
    return stream(ids, cardOf(cards, settings.model), settings);
  }

  function settle(ids, failure) {
    const state = !failure ? "done" : failure.kind === "stopped" ? "stopped" : "failed";
    for (const id of ids) {
      setTree((tree) => (tree.nodes[id].state === "streaming" ? changed(tree, id, { state: tree.nodes[id].finish ? "done" : state }) : tree));
    }
  }

  /** Go on behind everything that is there of an answer. */
  function resume(end) {
    const { tree } = store.get();
    const { tokens } = answerOf(tree, end);
    const kept = tokens.at(-1)?.special ? tokens.length - 1 : tokens.length;
    return go(end, kept, [], 1, "continued");
  }

  /** Put another token in the place of one, and go on from there; the card moves to the next token. */
  function steer(end, index, { id, text, bytes, special, logprob }) {
    const promise = go(end, index, [{ id, text, bytes, special, logprob, chosen: true }], 1, "steered");
    store.set({ look: { end: store.get().tree.current, index: index + 1, pinned: true } });
    return promise;
  }

  /** Several continuations at once of the answer's first `index` tokens. */
  const more = (end, index, count) => {
    const { settings } = store.get();
    store.set({ settings: { ...settings, seed: newSeed() }, look: null });
    return go(end, index, [], count, "more");
  };

  function navigate(move) {
    const before = store.get().tree;
    const tree = move(before);
    if (tree === before) return;
    halt();
    store.set({ tree, look: null, running: null, trouble: null });
    if (tree.nodes[tree.current]?.kind === "piece") explainer.answer(tree.current);
  }

  return {
    send,
    edit,
    again,
    resume,
    steer,
    more,
    stop: () => controller?.abort(),
    goTo: (id) => navigate((tree) => goTo(tree, id)),
    undo: () => navigate(undo),
    redo: () => navigate(redo),
    beside: (step) => navigate((tree) => goTo(tree, sibling(tree, tree.current, step) ?? tree.current)),
    up: () => navigate((tree) => goTo(tree, tree.nodes[tree.current]?.parent ?? tree.current)),
    /** Another session in the place of this one. */
    replace(opened) {
      halt();
      session++; // What still comes for nodes of the old tree is not for the new one's.
      store.set({ ...opened, look: null, running: null, trouble: null, notices: [] });
      if (opened.tree.nodes[opened.tree.current]?.kind === "piece") explainer.answer(opened.tree.current);
    },
    /** Explain a token that is looked at and is not yet explained, before the others. */
    explain: explainer.one,
  };
}

/** Gathers what comes in, and puts it into the tree a few times a second. */
function createBuffer({ store, ids, since, isHere }) {
  let waiting = ids.map(() => []);
  let finished = {};
  let timer = null;
  let count = 0;
  function flush() {
    clearTimeout(timer);
    timer = null;
    if (!isHere()) return;
    let { tree } = store.get();
    ids.forEach((id, index) => {
      if (waiting[index].length) tree = append(tree, id, waiting[index]);
      if (finished[index]) tree = changed(tree, id, { finish: finished[index], state: "done" });
    });
    waiting = ids.map(() => []);
    finished = {};
    const { running } = store.get();
    store.set({ tree, ...(running?.since === since ? { running: { tokens: count, since } } : {}) });
  }
  return {
    flush,
    add({ index, tokens, finish_reason: finish }) {
      waiting[index].push(...tokens);
      count += tokens.length;
      if (finish) finished[index] = finish;
      timer ??= setTimeout(flush, DRAW_EVERY_MS);
    },
  };
}
