/** The page: loads the models, lays out its views, and knows the keys that work everywhere. */

import { html, render, useEffect, useRef, useState } from "../vendor/preact.js";
import { fromHash, toHash } from "./address.js";
import { createApi } from "./api.js";
import { alternativesOf } from "./card.js";
import { Chat, Trouble, useMeasure } from "./chat.js";
import { createAsking, KeyDialog, storedKey } from "./key.js";
import { conversationOf, createPlay } from "./play.js";
import { exportSession, fileName, importSession, LARGEST } from "./session.js";
import { defaultSettings, familyOf } from "./settings.js";
import { createStore, memo, useStore } from "./store.js";
import { answerOf, emptyTree } from "./tree.js";

const READY_EVERY_MS = 3000;

const store = createStore({
  cards: null,
  settings: null,
  mode: "chat",
  system: "",
  draft: "",
  tree: emptyTree(),
  look: null,
  measure: "probability",
  running: null,
  explaining: null,
  trouble: null,
  notices: [],
  asking: null,
  tab: "chat",
  helping: false,
  compare: null,
  sweep: null,
});
const asking = createAsking(store);
const api = createApi({ key: storedKey, onUnauthorised: asking.ask });
const play = createPlay({ store, api });

/** Ask for the models until there are some. */
async function load() {
  store.set({ trouble: null });
  try {
    const cards = await api.models();
    const { settings, notices } = fromHash(location.hash, cards, defaultSettings(cards));
    store.set({ cards, settings, notices });
    store.subscribe(writeAddress);
    addEventListener("hashchange", readAddress);
    addEventListener("beforeunload", askBeforeLeaving);
    setTimeout(focusPrompt);
  } catch (failure) {
    store.set({ trouble: { failure, retry: load } });
    if (failure.kind === "busy" || failure.kind === "lost") setTimeout(() => store.get().cards || load(), READY_EVERY_MS);
  }
}

/** The settings go into the address, without a new entry in the browser's history. */
function writeAddress({ settings, cards }) {
  const hash = toHash(settings, cards);
  if (hash !== location.hash) history.replaceState(null, "", hash);
}

function readAddress() {
  const { cards, settings: now } = store.get();
  if (location.hash === toHash(now, cards)) return;
  const { settings, notices } = fromHash(location.hash, cards, defaultSettings(cards));
  store.set({ settings, notices });
}

/** Whoever has a keyboard can write at once; on a phone its own would cover half of the page. */
function focusPrompt() {
  if (document.activeElement === document.body && matchMedia("(hover: hover)").matches) document.getElementById("prompt")?.focus({ preventScroll: true });
}

let saved = emptyTree().next;

/** The conversation is in the page's memory only: the browser asks before what is in no file goes. */
function askBeforeLeaving(event) {
  const { tree, running } = store.get();
  if (running || tree.next !== saved) event.preventDefault();
}

function save() {
  const { settings, mode, system, draft, tree, compare, sweep, cards } = store.get();
  const file = exportSession({ settings, conversation: { mode, system, draft }, tree, compare, sweep }, cards);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file], { type: "application/json" }));
  link.download = fileName(cards);
  link.click();
  saved = tree.next;
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function open(file) {
  try {
    if (file.size > LARGEST) throw new Error(`The file is too large; allowed: up to ${LARGEST / 1e6} MB`);
    const { settings, conversation, tree, compare, sweep } = importSession(await file.text(), store.get().cards);
    play.replace({ settings, ...conversation, tree, compare, sweep });
    saved = tree.next;
  } catch (error) {
    const failure = { name: "Failure", kind: "file", message: error.message, retryAfter: null };
    store.set({ trouble: { failure, retry: null }, tab: "chat" });
  }
}

function Page() {
  const state = useStore(store);
  return html`<${Header} cards=${state.cards} tab=${state.tab} />
    ${state.cards ? html`<${Views} state=${state} />` : html`<${Waiting} trouble=${state.trouble} />`}
    <${KeyDialog} asking=${state.asking} onAnswer=${asking.answer} />
    <${Help} open=${state.helping} onClose=${() => store.set({ helping: false })} />`;
}

function Waiting({ trouble }) {
  return html`<main class="waiting">
    <${Trouble} trouble=${trouble} />
    ${!trouble && html`<p class="loading">Asking the server for its models …</p>`}
  </main>`;
}

const TABS = [
  ["chat", "Chat"],
  ["compare", "Compare"],
  ["sweep", "Sweep"],
];

const Header = memo(({ cards, tab }) => {
  const file = useRef(null);
  return html`<header class="top">
    <h1>Playground${cards ? html` <span class="quiet">${familyOf(cards).id}</span>` : ""}</h1>
    <nav class="tabs" aria-label="Views">
      ${TABS.map(
        ([id, name]) =>
          html`<button key=${id} type="button" data-testid=${`tab-${id}`} aria-current=${tab === id ? "page" : undefined} onClick=${() => store.set({ tab: id })}>${name}</button>`,
      )}
    </nav>
    <div class="row end">
      <button type="button" class="ghost small" data-testid="session-save" disabled=${!cards} title="Keep everything as a JSON file" onClick=${save}>Save</button>
      <button type="button" class="ghost small" data-testid="session-open" disabled=${!cards} title="Open a saved session" onClick=${() => file.current.click()}>Open</button>
      <input
        ref=${file}
        type="file"
        accept="application/json,.json"
        hidden
        aria-label="A saved session"
        onChange=${({ target }) => {
          if (target.files[0]) open(target.files[0]);
          target.value = "";
        }}
      />
      <button type="button" class="icon" data-testid="scheme" aria-label="Switch between light and dark" title="Light or dark" onClick=${switchScheme}>◐</button>
      <button type="button" class="icon" data-testid="help" aria-label="Keys" title="Keys (?)" onClick=${() => store.set({ helping: true })}>?</button>
    </div>
  </header>`;
});

function switchScheme() {
  const root = document.documentElement;
  const dark = root.dataset.scheme ? root.dataset.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.scheme = dark ? "light" : "dark";
}

function Views({ state }) {
  const { tab } = state;
  if (tab === "chat") return html`<${Chat} ...${{ state, store, play }} />`;
  return html`<${Other} key=${tab} name=${tab} state=${state} />`;
}

const OTHERS = {
  compare: { load: () => import("./compare.js"), name: "Compare", keep: "compare", onKeep: "onCompare" },
  sweep: { load: () => import("./sweep.js"), name: "Sweep", keep: "sweep", onKeep: "onSweep" },
};

/** A view whose modules are loaded when it is first opened. */
function Other({ name, state }) {
  const { load: bring, name: exported, keep, onKeep } = OTHERS[name];
  const [View, setView] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    bring().then((module) => setView(() => module[exported]), setProblem);
  }, [name]);
  const measure = useMeasure(state);
  if (problem) return html`<main class="waiting"><p class="failure" role="alert">This view cannot be loaded: ${problem.message}</p></main>`;
  if (!View) return html`<main class="waiting"><p class="loading">Loading …</p></main>`;
  const { cards, settings, draft } = state;
  const kept = { [keep]: state[keep], [onKeep]: (next) => store.set({ [keep]: next }) };
  const changes = { onSettings: (next) => store.set({ settings: next }), onDraft: (next) => store.set({ draft: next }) };
  return html`<main class="other"><${View} ...${{ api, cards, settings, conversation: conversationOf(state), measure, draft, ...kept, ...changes }} /></main>`;
}

const KEYS = [
  ["Ctrl ⏎", "send (⌘ ⏎ on a Mac)"],
  ["Esc", "stop, or close the card"],
  ["← → ↑ ↓", "from token to token, once one has the focus"],
  ["⏎", "pin the card of the token"],
  ["1 … 9", "continue with that alternative in the card"],
  ["Ctrl Z, Ctrl Shift Z", "undo, redo: back to the branch before, and forth"],
  ["Alt ← →", "the answer before or after, of the same question"],
  ["Alt ↑", "the branch from which this one forks"],
  ["?", "this list"],
];

function Help({ open: shown, onClose }) {
  const dialog = useRef(null);
  useEffect(() => {
    if (shown) dialog.current.showModal();
    else dialog.current.close();
  }, [shown]);
  return html`<dialog ref=${dialog} class="dialog" aria-labelledby="help-title" onClose=${onClose}>
    <h2 id="help-title">Keys</h2>
    <dl class="keys">
      ${KEYS.map(([key, does]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${does}</dd></div>`)}
    </dl>
    <p class="row end"><button type="button" class="primary" onClick=${onClose}>Close</button></p>
  </dialog>`;
}

const inText = (target) => target.matches?.("textarea, select, input:not([type=range])");

/** The tokens know their own keys. */
function onKey(event) {
  const { look, running, tab } = store.get();
  if (tab !== "chat" || event.target.closest?.("dialog") || event.isComposing) return;
  const command = event.ctrlKey || event.metaKey;
  const bare = !command && !event.altKey && !inText(event.target);
  const acts = [
    [command && event.key === "Enter" && !running, play.send],
    [event.key === "Escape" && running, play.stop],
    [event.key === "Escape" && look, () => store.set({ look: null })],
    [command && !inText(event.target) && event.key.toLowerCase() === "z", () => (event.shiftKey ? play.redo() : play.undo())],
    [event.altKey && !inText(event.target) && event.key === "ArrowLeft", () => play.beside(-1)],
    [event.altKey && !inText(event.target) && event.key === "ArrowRight", () => play.beside(1)],
    [event.altKey && !inText(event.target) && event.key === "ArrowUp", play.up],
    [bare && event.key === "?", () => store.set({ helping: true })],
    [bare && look && /^[1-9]$/.test(event.key), () => pick(Number(event.key) - 1)],
  ];
  const found = acts.find(([applies]) => applies);
  if (!found) return;
  event.preventDefault();
  found[1]();
}

function pick(place) {
  const { look, tree } = store.get();
  const token = answerOf(tree, look.end).tokens[look.index];
  const row = token && alternativesOf(token)[place];
  if (row && row.id !== token.id) play.steer(look.end, look.index, row);
}

document.addEventListener("keydown", onKey);
const root = document.getElementById("page");
root.textContent = "";
render(html`<${Page} />`, root);
load();
