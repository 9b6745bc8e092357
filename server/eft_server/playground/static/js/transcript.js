/** The conversation: questions, tinted answers, and what can be done with them. */

import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact.js";
import { plainText, shownToken, TokenText } from "./tokens.js";
import { percent } from "./measures.js";
import { answerOf, childrenOf, promptsBeside, startOf, turnsOf, versionsOf } from "./tree.js";
import { CUT_OFF } from "./words.js";

const MOST_AT_ONCE = 8;

/** @param {{state: object, measure: object, play: object, onLook: (look: object|null) => void}} props */
export function Transcript({ state, measure, play, onLook }) {
  const { tree, look, running } = state;
  const turns = useMemo(() => turnsOf(tree), [tree.current, tree.nodes]);
  if (!turns.length) return html`<${Welcome} state=${state} />`;
  return html`<div class="transcript">
    ${turns.map(({ prompt, end }, at) => {
      const last = at === turns.length - 1;
      return html`<div class="turn" key=${prompt.id}>
        <${Question} ...${{ prompt, tree, play, busy: Boolean(running) }} />
        ${end !== null &&
        html`<${Answer} ...${{ tree, prompt, end, last, measure, play, running: last && running, look: look?.end === end ? look : null, onLook }} />`}
      </div>`;
    })}
  </div>`;
}

function Welcome({ state }) {
  return html`<div class="welcome">
    <h2>See what each expert did to each token</h2>
    <p>
      Ask something below. The answer's tokens are tinted by what you choose above; point at one to see what else could have
      stood there and who pushed it, and click another token to continue from there.
    </p>
    <p class="quiet">
      ${state.mode === "chat" ? "Chat: messages are rendered in the models' template." : "Plain text: the prompt is continued as it is."} Press${" "}<kbd>?</kbd> for the keys.
    </p>
  </div>`;
}

function Question({ prompt, tree, play, busy }) {
  const [editing, setEditing] = useState(null);
  const beside = promptsBeside(tree, prompt.id);
  const chat = prompt.mode === "chat";
  const text = chat ? prompt.messages.at(-1).content : prompt.text;
  const system = chat && prompt.messages[0].role === "system" ? prompt.messages[0].content : null;
  if (editing !== null) {
    const save = () => {
      setEditing(null);
      if (editing.trim() && editing !== text) play.edit(prompt.id, editing);
    };
    return html`<div class="question editing">
      <textarea aria-label="Edit the question" rows="3" value=${editing} onInput=${(event) => setEditing(event.target.value)}
        onKeyDown=${(event) => {
          if (event.key === "Escape") setEditing(null);
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
        }}></textarea>
      <p class="row end">
        <button type="button" onClick=${() => setEditing(null)}>Cancel</button>
        <button type="button" class="primary" onClick=${save}>Ask this instead</button>
      </p>
    </div>`;
  }
  return html`<div class=${chat ? "question" : "question plain"}>
    ${system && html`<p class="system"><span class="quiet">System:</span> ${system}</p>`}
    <p class="said">${text}</p>
    <p class="row tools">
      <${Pager} name="question" ids=${beside} current=${prompt.id} onGo=${(id) => play.goTo(lastOf(tree, id))} />
      <button type="button" class="small ghost" disabled=${busy} data-testid="edit" onClick=${() => setEditing(text)}>Edit</button>
    </p>
  </div>`;
}

/** The newest answer to a prompt, or the prompt if it has none. */
const lastOf = (tree, promptId) => versionsOf(tree, promptId).at(-1) ?? promptId;

function Pager({ name, ids, current, onGo }) {
  if (ids.length < 2) return null;
  const at = ids.indexOf(current);
  return html`<span class="pager">
    <button type="button" class="icon" aria-label=${`Previous ${name}`} disabled=${at === 0} onClick=${() => onGo(ids[at - 1])}>‹</button>
    <span>${at + 1} of ${ids.length}</span>
    <button type="button" class="icon" aria-label=${`Next ${name}`} disabled=${at === ids.length - 1} onClick=${() => onGo(ids[at + 1])}>›</button>
  </span>`;
}

function Answer({ tree, prompt, end, last, measure, play, running, look, onLook }) {
  const { tokens } = useMemo(() => answerOf(tree, end), [tree.nodes, end]);
  const piece = tree.nodes[end];
  const marks = useMemo(() => forksOf(tree, end), [tree.nodes, end]);
  const ahead = look && look.index < tokens.length ? look.index : null;
  return html`<div class="answer" data-testid=${last ? "answer" : undefined} data-state=${piece.state} data-finish=${piece.finish}>
    <${TokenText}
      tokens=${tokens}
      measure=${measure}
      selected=${ahead}
      marks=${marks}
      label="Answer"
      onHover=${(index) => index !== null && onLook({ end, index })}
      onPick=${(index) => onLook({ end, index, pinned: true })}
    />
    ${running && html`<span class="caret" aria-hidden="true"></span>`}
    ${!running && tokens.length > 0 && html`<${Doings} ...${{ tree, prompt, end, piece, tokens, last, play, look }} />`}
  </div>`;
}

/** The places of an answer's tokens where another branch begins. */
function forksOf(tree, end) {
  const places = new Set();
  for (let node = tree.nodes[end]; node.kind === "piece"; node = tree.nodes[node.parent]) {
    const start = startOf(tree, node.id);
    for (const child of childrenOf(tree, node.id)) if (child.kind === "piece" && child.id !== end) places.add(start + child.at);
  }
  return places;
}

/** What the experts did to an answer as a whole, once all of it is explained; null before, and for what they had no part in. */
function summaryOf(tokens) {
  const items = tokens.map((token) => token.explained);
  if (!items.length || items.some((item) => !item?.contributions.experts || !item.top.length)) return null;
  const changed = items.filter((item) => item.top[0].id !== item.members?.base?.top?.id).length / items.length;
  const kl = items.reduce((sum, item) => sum + item.kl, 0) / items.length;
  return { changed, kl };
}

const ENDS = { stop: "", length: CUT_OFF };

function Doings({ tree, prompt, end, piece, tokens, last, play, look }) {
  const [count, setCount] = useState(3);
  const [copied, setCopied] = useState(false);
  const versions = versionsOf(tree, prompt.id);
  const from = look?.pinned && look.index < tokens.length ? look.index : 0;
  const where = from ? `from “${shownToken(tokens[from])}”` : "from the beginning";
  const summary = useMemo(() => summaryOf(tokens), [tokens]);
  const state = { stopped: "stopped", failed: "broken off" }[piece.state] ?? ENDS[piece.finish] ?? piece.finish;
  return html`<p class="row tools">
    <${Pager} name="answer" ids=${versions} current=${end} onGo=${play.goTo} />
    <span class="quiet">${tokens.length} tokens${state ? `, ${state}` : ""}</span>
    ${summary &&
    html`<span class="quiet" data-testid="summary" title="The share of tokens at which the likeliest one is not the base's, and the mean KL to the base, in nats"
      >experts changed ${percent(summary.changed)}, KL ${summary.kl.toFixed(2)}</span
    >`}
    ${last &&
    html`<span class="row">
      ${piece.finish !== "stop" && tokens.length > 0 && html`<button type="button" class="small" data-testid="continue" onClick=${() => play.resume(end)}>Continue</button>`}
      <button type="button" class="small" data-testid="again" onClick=${() => play.again(prompt.id)}>Again</button>
      <span class="joined">
        <button type="button" class="small" data-testid="more" title=${`${count} other continuations ${where}, in one request`} onClick=${() => play.more(end, from, count)}>
          More ${where}
        </button>
        <select aria-label="How many continuations" data-testid="more-count" value=${count} onChange=${(event) => setCount(Number(event.target.value))}>
          ${Array.from({ length: MOST_AT_ONCE - 1 }, (_, at) => html`<option key=${at} value=${at + 2}>× ${at + 2}</option>`)}
        </select>
      </span>
    </span>`}
    <button type="button" class="small ghost" data-testid="copy" onClick=${() => copy(plainText(tokens), setCopied)}>${copied ? "Copied" : "Copy"}</button>
  </p>`;
}

async function copy(text, setCopied) {
  await navigator.clipboard?.writeText(text);
  setCopied(true);
  setTimeout(() => setCopied(false), 1500);
}

const DEEPEST = 8;
const EXCERPT = 34;

/** Every branch, as a list in a list; the current one is marked. */
export function BranchTree({ tree, onGo }) {
  const roots = childrenOf(tree, null);
  const current = useRef(null);
  useEffect(() => current.current?.scrollIntoView({ block: "nearest" }), [tree.current]);
  if (!roots.length) return null;
  const onPath = new Set();
  for (let node = tree.nodes[tree.current]; node; node = tree.nodes[node.parent]) onPath.add(node.id);
  return html`<nav class="branches" data-testid="branch-tree" aria-label="Branches">
    <h2>Branches</h2>
    <${Level} ...${{ tree, nodes: roots, depth: 0, onGo, onPath, current }} />
  </nav>`;
}

function Level({ tree, nodes, depth, onGo, onPath, current }) {
  return html`<ul class=${depth > DEEPEST ? "flat" : ""}>
    ${nodes.map((node) => {
      const below = childrenOf(tree, node.id).sort((one, other) => (one.at ?? 0) - (other.at ?? 0) || one.id - other.id);
      const here = node.id === tree.current;
      return html`<li key=${node.id}>
        <button
          type="button"
          ref=${here ? current : undefined}
          class=${`branch ${node.kind} ${onPath.has(node.id) ? "path" : ""}`}
          data-testid="branch"
          data-node=${node.id}
          data-kind=${node.kind}
          aria-current=${here ? "true" : undefined}
          title=${titleOf(tree, node)}
          onClick=${() => onGo(node.id)}
        >
          ${node.kind === "piece" && html`<span class="at">${startOf(tree, node.id) || ""}</span>`}
          <span>${excerptOf(node)}</span>
        </button>
        ${below.length > 0 && html`<${Level} ...${{ tree, nodes: below, depth: depth + 1, onGo, onPath, current }} />`}
      </li>`;
    })}
  </ul>`;
}

function excerptOf(node) {
  const text = node.kind === "prompt" ? (node.mode === "chat" ? node.messages.at(-1).content : node.text) : plainText(node.tokens.slice(0, EXCERPT));
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > EXCERPT ? `${line.slice(0, EXCERPT)}…` : line || (node.state === "streaming" ? "…" : "(nothing)");
}

function titleOf(tree, node) {
  if (node.kind === "prompt") return "A question";
  const weights = Object.entries(node.settings.weights ?? {}).map(([name, weight]) => `${name} ${weight}`);
  const start = startOf(tree, node.id);
  return `${node.tokens.length} tokens${start ? ` behind the first ${start}` : ""}; ${node.settings.model}, ${weights.join(", ")}, seed ${node.settings.seed}`;
}
