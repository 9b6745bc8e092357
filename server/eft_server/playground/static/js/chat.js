/** The view Chat: settings, conversation and composer, the card and the branches. */

import { html, useCallback, useEffect, useMemo, useRef, useState } from "../vendor/preact.js";
import { Card } from "./card.js";
import { LEVELS, measuresFor } from "./measures.js";
import { conversationOf } from "./play.js";
import { cardOf, eftOf, expertsOf, SettingsPanel } from "./settings.js";
import { baseUrl, snippets } from "./snippets.js";
import { memo, unlessDouble } from "./store.js";
import { BranchTree, Transcript } from "./transcript.js";
import { answerOf } from "./tree.js";
import { counted, inWords, waiting } from "./words.js";

/** The measure that is chosen. */
export function useMeasure({ cards, measure }) {
  const measures = useMemo(() => measuresFor(expertsOf(cards)), [cards]);
  return measures.find(({ id }) => id === measure) ?? measures[1];
}

const narrow = matchMedia("(max-width: 60rem)");

/** What does not change while tokens come is not drawn again for each of them. */
const Settings = memo(SettingsPanel);
const Branches = memo(BranchTree, ({ tree, running }) => running && tree.nodes[tree.current]?.tokens?.length > 16);

/** @param {{state: object, store: object, play: object}} props */
export function Chat({ state, store, play }) {
  const measure = useMeasure(state);
  const { cards, settings, tree, look } = state;
  const onChange = useCallback((next) => store.set({ settings: next }), []);
  const onLook = useCallback((next) => {
    const now = store.get().look;
    if (next && !next.pinned && (now?.pinned || (now?.end === next.end && now.index === next.index))) return;
    store.set({ look: next });
  }, []);
  useFollowing(state);
  return html`<div class="columns">
    <aside class="left" aria-label="Settings">
      <details class="foldable" open=${!narrow.matches}>
        <summary>Settings</summary>
        <${Mode} ...${{ mode: state.mode, system: state.system, store }} />
        <${Settings} ...${{ settings, cards, onChange }} />
      </details>
    </aside>
    <main>
      <${Toolbar} ...${{ back: tree.past.length > 0, forth: tree.future.length > 0, cards, measure, store, play }} />
      <${Notices} ...${{ state, store }} />
      <${Transcript} ...${{ state, measure, play, onLook }} />
      <${Trouble} ...${{ trouble: state.trouble, received: receivedIn(tree), onDismiss: () => store.set({ trouble: null }) }} />
      <${Composer} ...${{ state, store, play }} />
    </main>
    <aside class=${look ? "right open" : "right"} aria-label="Token and branches">
      <${Looked} ...${{ state, store, play, onLook }} />
      <${Branches} tree=${tree} running=${Boolean(state.running)} onGo=${play.goTo} />
    </aside>
  </div>`;
}

const NEAR = 80;

/** Keep the end of an answer in view while it grows, for whoever has not scrolled away from it. */
function useFollowing({ running, tree }) {
  const following = useRef(true);
  useEffect(() => {
    const onScroll = () => {
      const caret = document.querySelector(".caret");
      if (caret) following.current = caret.getBoundingClientRect().top < innerHeight + NEAR;
    };
    addEventListener("scroll", onScroll, { passive: true });
    return () => removeEventListener("scroll", onScroll);
  }, []);
  const began = running && !running.tokens;
  useEffect(() => void (following.current = true), [tree.current]);
  useEffect(() => {
    if (running && following.current) document.querySelector(".caret")?.scrollIntoView({ block: "nearest" });
  }, [running?.tokens, began, tree.current]);
}

const receivedIn = (tree) => (tree.nodes[tree.current]?.kind === "piece" ? answerOf(tree, tree.current).tokens.length : 0);

const Mode = memo(({ mode, system, store }) => {
  const kinds = [
    ["chat", "Chat"],
    ["text", "Plain text"],
  ];
  return html`<div class="panel">
    <div class="segmented" role="group" aria-label="Kind of prompt">
      ${kinds.map(
        ([id, name]) =>
          html`<button key=${id} type="button" data-testid=${`mode-${id}`} aria-pressed=${mode === id ? "true" : "false"} onClick=${() => store.set({ mode: id })}>${name}</button>`,
      )}
    </div>
    ${mode === "chat" &&
    html`<div class="field">
      <label for="system">System message</label>
      <textarea id="system" data-testid="system" rows="2" placeholder="none" value=${system} onInput=${(event) => store.set({ system: event.target.value })}></textarea>
    </div>`}
  </div>`;
});

const Toolbar = memo(({ back, forth, cards, measure, store, play }) => {
  const measures = useMemo(() => measuresFor(expertsOf(cards)), [cards]);
  const groups = [...new Set(measures.map(({ group }) => group))];
  const options = (group) =>
    measures.filter((one) => one.group === group).map(({ id, name }) => html`<option key=${id} value=${id}>${group} ${name}</option>`);
  return html`<div class="toolbar">
    <label class="row">
      <span>Tint by</span>
      <select data-testid="measure" value=${measure.id} onChange=${(event) => store.set({ measure: event.target.value })}>
        ${groups.map((group) => (group ? html`<optgroup key=${group} label=${`${group} …`}>${options(group)}</optgroup>` : options(group)))}
      </select>
    </label>
    <${Legend} measure=${measure} />
    <div class="row end">
      <button type="button" class="icon" data-testid="undo" aria-label="Undo" title="Undo (Ctrl-Z)" disabled=${!back} onClick=${play.undo}>↶</button>
      <button type="button" class="icon" data-testid="redo" aria-label="Redo" title="Redo (Ctrl-Shift-Z)" disabled=${!forth} onClick=${play.redo}>↷</button>
    </div>
  </div>`;
});

function Legend({ measure }) {
  if (measure.id === "none") return html`<p class="legend quiet">${measure.about}</p>`;
  const levels = Array.from({ length: LEVELS }, (_, at) => at + 1);
  const swatches = measure.signed
    ? [...levels.map((level) => `n${level}`).reverse(), "", ...levels.map((level) => `p${level}`)]
    : ["", ...levels.map((level) => `t${level}`)];
  return html`<p class="legend" title=${measure.about}>
    <span class="quiet">${measure.signed ? measure.show(-measure.full) : measure.show(0)}</span>
    <span class="swatches" aria-hidden="true">${swatches.map((name) => html`<i key=${name} class=${name}></i>`)}</span>
    <span class="quiet">${measure.show(measure.full)}</span>
    <span class="hidden">${measure.about}</span>
  </p>`;
}

/** What the address or a file asked for and could not have. */
function Notices({ state: { notices }, store }) {
  if (!notices.length) return null;
  return html`<div class="trouble mild" role="status" data-testid="notices">
    <ul>
      ${notices.map((notice) => html`<li key=${notice}>${notice}</li>`)}
    </ul>
    <p class="row"><button type="button" class="ghost small" onClick=${() => store.set({ notices: [] })}>Dismiss</button></p>
  </div>`;
}

function Composer({ state, store, play }) {
  const { draft, mode, running } = state;
  const send = (event) => {
    event.preventDefault();
    play.send();
  };
  return html`<form class="composer" onSubmit=${send}>
    <label class="hidden" for="prompt">${mode === "chat" ? "Your message" : "Text to continue"}</label>
    <textarea
      id="prompt"
      data-testid="prompt"
      rows="2"
      placeholder=${mode === "chat" ? "Ask something …" : "A text to continue …"}
      value=${draft}
      onInput=${(event) => store.set({ draft: event.target.value })}
    ></textarea>
    <div class="row">
      <${Status} state=${state} />
      <${Snippets} state=${state} />
      ${running
        ? html`<button key="stop" type="button" class="danger" data-testid="stop" onClick=${unlessDouble(play.stop)}>Stop <kbd>Esc</kbd></button>`
        : html`<button key="send" type="submit" class="primary" data-testid="send">${mode === "chat" ? "Send" : "Continue"} <kbd>Ctrl ⏎</kbd></button>`}
    </div>
  </form>`;
}

/** How it stands: announced when it changes, not with every token; the running figures are for the eye. */
function Status({ state }) {
  const { running, explaining, tree } = state;
  const [, tick] = useState(0);
  const waits = running && !running.tokens;
  useEffect(() => {
    if (!waits) return undefined;
    const timer = setInterval(() => tick((count) => count + 1), 5000);
    return () => clearInterval(timer);
  }, [waits]);
  const seconds = running ? (performance.now() - running.since) / 1000 : 0;
  return html`<p class="status quiet">
    <span data-testid="status" role="status" aria-live="polite">${standing({ running, explaining, piece: tree.nodes[tree.current], seconds })}</span>
    <span aria-hidden="true">${figures({ running, explaining, seconds })}</span>
  </p>`;
}

function standing({ running, explaining, piece, seconds }) {
  if (running) return running.tokens ? "Answering" : waiting({ seconds: 5 * Math.floor(seconds / 5) });
  if (explaining) return "Explaining the tokens";
  return { stopped: "Stopped", failed: "Broken off", done: "Ready" }[piece?.state] ?? "";
}

function figures({ running, explaining, seconds }) {
  if (running?.tokens) return `${counted(running.tokens, "token")}, ${(running.tokens / seconds).toFixed(0)} a second`;
  return explaining ? `${explaining.done} of ${explaining.total}` : "";
}

/** What went wrong, in words, and how to go on; a server that said when to come back is not asked before. */
export function Trouble({ trouble, received = 0, onDismiss }) {
  const [left, setLeft] = useState(0);
  useEffect(() => {
    setLeft(Math.ceil(trouble?.failure.retryAfter ?? 0));
    const timer = setInterval(() => setLeft((seconds) => Math.max(0, seconds - 1)), 1000);
    return () => clearInterval(timer);
  }, [trouble]);
  const box = useRef(null);
  useEffect(() => box.current?.scrollIntoView({ block: "nearest" }), [trouble]);
  if (!trouble) return null;
  const { failure, retry } = trouble;
  const { title, text } = inWords(failure, { received });
  return html`<div ref=${box} class="trouble" role="alert" data-testid="error" data-kind=${failure.kind}>
    <h2>${title}</h2>
    ${text && html`<p>${text}</p>`}
    <p class="row">
      ${retry && html`<button type="button" data-testid="retry" disabled=${left > 0} onClick=${retry}>${left > 0 ? `Try again in ${left} s` : "Try again"}</button>`}
      ${onDismiss && html`<button type="button" class="ghost" onClick=${onDismiss}>Dismiss</button>`}
    </p>
  </div>`;
}

const LANGUAGES = [
  ["curl", "curl"],
  ["openai", "openai (Python)"],
  ["eft", "eft_client (Python)"],
];

/** The request in other words, to copy; the key is not in it. */
const Snippets = memo(ShownSnippets, ({ state }) => Boolean(state.running));

function ShownSnippets({ state }) {
  const { settings, cards } = state;
  const dialog = useRef(null);
  const conversation = conversationOf(state);
  if (!conversation.messages.length && !conversation.prompt) return null;
  const request = { settings, conversation, eft: eftOf(settings, cardOf(cards, settings.model)), base: baseUrl(location) };
  const texts = snippets(request);
  return html`<button type="button" class="ghost small end" data-testid="snippets" onClick=${() => dialog.current.showModal()}>As code</button>
    <dialog ref=${dialog} class="dialog wide" aria-labelledby="snippets-title">
      <h2 id="snippets-title">This request as code</h2>
      ${LANGUAGES.map(([id, name]) => html`<${Snippet} key=${id} ...${{ id, name, text: texts[id] }} />`)}
      <p class="row end"><button type="button" class="primary" onClick=${() => dialog.current.close()}>Close</button></p>
    </dialog>`;
}

function Snippet({ id, name, text }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard?.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<section class="snippet">
    <h3>${name} <button type="button" class="small ghost" data-testid=${`copy-${id}`} onClick=${copy}>${copied ? "Copied" : "Copy"}</button></h3>
    <pre tabindex="0" aria-label=${name} data-testid=${`snippet-${id}`}>${text}</pre>
  </section>`;
}

/** The card of the token that is looked at. */
function Looked({ state, store, play, onLook }) {
  const { look, tree, running } = state;
  const answer = useMemo(() => (look && tree.nodes[look.end] ? answerOf(tree, look.end) : null), [look?.end, tree.nodes]);
  const token = answer?.tokens[look.index];
  const streaming = Boolean(running);
  useEffect(() => {
    if (token && !token.explained && look.pinned) play.explain(look.end, look.index);
  }, [token?.id, look?.index, look?.end, look?.pinned]);
  if (!look) return html`<p class="note hint">Point at a token of an answer: here is what else could stand there, and who pushed it.</p>`;
  if (!token) {
    return html`<section class="card" data-testid="card" data-index=${look.index} aria-label="Next token">
      <p class="note" role="status">${streaming ? "Waiting for the next token …" : "The answer ends here."}</p>
    </section>`;
  }
  return html`<${Card}
    token=${token}
    index=${look.index}
    count=${answer.tokens.length}
    pinned=${Boolean(look.pinned)}
    onSteer=${(row) => play.steer(look.end, look.index, row)}
    onMove=${(step) => onLook({ end: look.end, index: look.index + step, pinned: true })}
    onPin=${() => store.set({ look: { ...look, pinned: !look.pinned } })}
    onClose=${() => store.set({ look: null })}
  />`;
}
