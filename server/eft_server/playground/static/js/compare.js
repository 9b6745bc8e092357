/** A/B: two settings answer one prompt with one seed, side by side; each says what it makes of the other's text. */

import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact.js";
import { align, counterpart, differing, firstDifference } from "./align.js";
import { asksSomething, figure, inBrief, signed } from "./runs/answers.js";
import { useRun } from "./runs/kept.js";
import { Question } from "./runs/question.js";
import { createComparison } from "./runs/comparison.js";
import { ChoiceOfA, ChoiceOfB, startOfB } from "./runs/choice.js";
import { Elsewhere } from "./runs/elsewhere.js";
import { onKeys } from "./runs/keys.js";
import { Merged } from "./runs/merged.js";
import { unlessDouble } from "./store.js";
import { TokenText, shownToken } from "./tokens.js";
import { CUT_OFF, counted, inOneSentence } from "./words.js";

const OTHER = { a: "b", b: "a" };
const NAMES = { a: "A", b: "B" };
const HOVER_MS = 90;

/**
 * @param {{api: object, cards: object[], settings: object, conversation: object, measure: object,
 *   compare?: {b: object, result: object|null}|null, onCompare?: (compare: object) => void,
 *   onSettings?: (settings: object) => void, draft?: string, onDraft?: (draft: string) => void}} props
 *   compare: B and the last comparison, from where they are kept; onSettings: takes B's settings, or another seed, for the page.
 */
export function Compare({ api, cards, settings, conversation, measure, compare = null, onCompare, onSettings, draft, onDraft }) {
  const [own, setOwn] = useState(compare ?? { b: startOfB(cards, settings), result: null });
  const kept = compare ?? own;
  const keep = (change) => {
    const next = { ...kept, ...change };
    if (onCompare) onCompare(next);
    else setOwn(next);
  };
  const create = (options) => createComparison({ api, cards, ...options });
  const comparison = useRun({ create, result: kept.result, keep, busy: ({ phase }) => phase === "streaming", over: [api, cards] });
  const state = comparison.get();
  const b = { ...kept.b, seed: settings.seed };
  const run = () => comparison.run(settings, b, conversation);
  const ready = asksSomething(conversation);
  const swap = () => {
    const { result } = state;
    keep({ b: settings, result: result && { ...result, a: result.b, b: result.a } });
    onSettings(b);
  };
  return html`<section class="beside compare" aria-label="Compare two settings" onKeyDown=${(event) => onKeys(event, { busy: state.phase === "streaming", ready, run, stop: comparison.stop })}>
    <${Question} ...${{ conversation, draft, onDraft }} />
    <div class="versus">
      <${ChoiceOfA} ...${{ cards, settings, onChange: onSettings }} />
      <${ChoiceOfB} ...${{ cards, settings, b, onChange: (next) => changeB(next, { settings, keep, onSettings }) }} />
    </div>
    <${Actions} ...${{ state, ready, run, stop: comparison.stop, swap, use: onSettings && (() => onSettings(b)) }} />
    <${Outcome} ...${{ state, cards, comparison, measure }} />
  </section>`;
}

/** B has A's seed; another seed in B's panel is the page's. */
function changeB(next, { settings, keep, onSettings }) {
  keep({ b: next });
  if (next.seed !== settings.seed) onSettings?.({ ...settings, seed: next.seed });
}

function Actions({ state, ready, run, stop, swap, use }) {
  const busy = state.phase === "streaming";
  return html`<div class="row actions">
    ${busy
      ? html`<button type="button" class="danger" data-testid="compare-stop" onClick=${unlessDouble(stop)}>Stop</button>`
      : html`<button type="button" class="primary" data-testid="compare-run" disabled=${!ready} onClick=${run}>Compare</button>`}
    ${use && html`<button type="button" data-testid="compare-swap" disabled=${busy} onClick=${swap}>Swap A and B</button>
      <button type="button" data-testid="compare-use-b" disabled=${busy} onClick=${use}>Use B as the settings</button>`}
    <span class="quiet" role="status" data-testid="compare-status">${progress(state)}</span>
  </div>`;
}

function progress({ phase, result }) {
  if (phase === "streaming") return result ? "Both are answering …" : "Waiting for the server …";
  if (phase === "scoring") return "Each is reading the other's text …";
  return result ? `Seed ${result.a.settings.seed} in both.` : "";
}

function Outcome({ state, cards, comparison, measure }) {
  const { result, phase, failures, scores, looked } = state;
  const [view, setView] = useState("beside");
  const [tint, setTint] = useState("against");
  const [at, setAt] = useState(null);
  const runs = useMemo(() => (result && phase !== "streaming" ? align(result.a.tokens, result.b.tokens) : []), [result, phase]);
  const first = result ? firstOf(result, phase) : null;
  useEffect(() => setAt(null), [phase === "streaming"]);
  useScroll(first, phase);
  useLooks({ at, tint, measure, comparison, result, phase });
  const measured = useMeasured(result, looked, scores);
  if (!result) return html`<${Failures} failures=${failures} result=${null} />`;
  const tinted = tintOf(tint, measure);
  const sides = ["a", "b"].map((side) => ({
    ...{ side, cards, answer: result[side], failure: failures[side], measure: tinted, at, onLook: setAt },
    tokens: measured[side],
    marks: marksOf(side, runs, first, at),
    total: result[side].tokens.length,
  }));
  return html`<${Failures} failures=${failures} result=${result} />
    <div class="row tools">
      <${FirstDifference} ...${{ result, first, phase }} />
      <${Choice} name="View" value=${view} onChange=${setView} options=${[["beside", "side by side"], ["merged", "in one text"]]} />
      ${view === "beside" && html`<${Choice} name="Tint" value=${tint} onChange=${setTint} options=${[["against", "A against B"], ["page", measure.name], ["none", "nothing"]]} />`}
      ${view === "beside" && tint === "against" && html`<p class="legend" aria-hidden="true">likelier under <span class="badge b">B</span> <span class="swatches">${SWATCHES.map((name) => html`<i key=${name} class=${name}></i>`)}</span> <span class="badge a">A</span></p>`}
    </div>
    ${view === "beside"
      ? html`<div class="sides">${sides.map((side) => html`<${Side} key=${side.side} ...${side} />`)}</div>`
      : html`<${Merged} ...${{ result, runs, phase }} />`}
    ${view === "beside" && phase !== "streaming" && html`<${Elsewhere} ...${{ at, result, looked }} />`}
    <${Totals} ...${{ result, scores }} />`;
}

/** While both write, only what both have written can differ. */
function firstOf({ a, b }, phase) {
  const first = firstDifference(a.tokens, b.tokens);
  const shorter = Math.min(a.tokens.length, b.tokens.length);
  return phase === "streaming" && first === shorter && !(a.finish && b.finish) ? null : first;
}

const AGAINST = {
  id: "against",
  group: "",
  name: "A against B, in nats",
  signed: true,
  full: 4,
  of: (token) => token.against ?? null,
  show: (value) => (Math.abs(value) < 0.005 ? "0.00: as likely under both" : `${signed(value)}: likelier under ${value > 0 ? "A" : "B"}`),
};
const SWATCHES = ["n8", "n5", "n2", "p2", "p5", "p8"];
const NOTHING = { id: "none", group: "", name: "nothing", signed: false, full: 1, of: () => null, show: String };

const tintOf = (tint, measure) => ({ against: AGAINST, page: measure }[tint] ?? NOTHING);

function useMeasured(result, looked, scores) {
  const of = (side) => useMemo(() => result && withMeasures(result[side].tokens, looked[side + side], scores?.under, side), [result?.[side].tokens, looked[side + side], scores]);
  return { a: of("a"), b: of("b") };
}

/** Tokens with what is known of each: its explanation under its own settings, and how much likelier A finds it than B. */
function withMeasures(tokens, explained, under, side) {
  const [underA, underB] = [under?.[`${side}a`], under?.[`${side}b`]];
  if (!explained && !underA) return tokens;
  return tokens.map((token, at) => ({ ...token, explained: explained?.[at] ?? token.explained, against: difference(underA?.logprobs[at], underB?.logprobs[at]) }));
}

/** Of two log-probabilities; null is impossible, which is at most 20 nats away here. */
function difference(one, other) {
  if (one === undefined || other === undefined || (one === null && other === null)) return null;
  if (one === null) return -20;
  return other === null ? 20 : Math.max(-20, Math.min(20, one - other));
}

function marksOf(side, runs, first, at) {
  const marks = new Map();
  for (const index of differing(runs)[side]) marks.set(index, "mark");
  if (at && at.side !== side) {
    const peer = counterpart(runs, at.side, at.index);
    if (peer) marks.set(peer.index, `${marks.get(peer.index) ?? ""} peer`.trim());
  }
  if (first !== null) marks.set(first, `${marks.get(first) ?? ""} mark first`.trim());
  return marks;
}

function Side({ side, cards, answer, tokens, marks, failure, measure, at, onLook }) {
  const timer = useRef(null);
  const hover = (index) => {
    clearTimeout(timer.current);
    if (index !== null) timer.current = setTimeout(() => onLook({ side, index }), HOVER_MS);
  };
  return html`<article class=${`side ${side}`} data-testid=${`compare-${side}`} aria-label=${`${NAMES[side]}: ${inBrief(answer.settings, cards)}`}>
    <h2><span class=${`badge ${side}`}>${NAMES[side]}</span> ${inBrief(answer.settings, cards)}</h2>
    <${TokenText}
      tokens=${tokens}
      measure=${measure}
      marks=${marks}
      selected=${at?.side === side ? at.index : null}
      label=${`${NAMES[side]}'s answer`}
      onHover=${hover}
      onPick=${(index) => onLook({ side, index })}
    />
    ${failure && html`<p class="failure" role="alert" data-testid="error">${inOneSentence(failure, { received: tokens.length })}</p>`}
    <p class="quiet">${counted(tokens.length, "token")}${answer.finish === "length" ? `, ${CUT_OFF}` : ""}</p>
  </article>`;
}

function Failures({ failures, result }) {
  if (!failures.both || failures.both.kind === "stopped") return null;
  const received = result ? result.a.tokens.length + result.b.tokens.length : 0;
  return html`<p class="failure" role="alert" data-testid="error">${inOneSentence(failures.both, { received })}</p>`;
}

function Choice({ name, value, options, onChange }) {
  return html`<label class="choice"
    >${name}
    <select data-testid=${`compare-${name.toLowerCase()}`} value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([id, words]) => html`<option key=${id} value=${id}>${words}</option>`)}
    </select></label
  >`;
}

function FirstDifference({ result, first, phase }) {
  if (first === null) {
    const same = phase !== "streaming" && result.a.tokens.length > 0;
    return html`<p class="verdict" data-testid="first-difference" data-index="">${same ? "Both answers are the same, token for token." : ""}</p>`;
  }
  const words = (side) => {
    const token = result[side].tokens[first];
    return token ? html`<span class="glyphs">${shownToken(token)}</span>` : html`<em>ends</em>`;
  };
  return html`<p class="verdict" data-testid="first-difference" data-index=${first}>
    ${first ? `The same for ${counted(first, "token")}; then ` : "Different from the first token on: "}
    <span class="badge a">A</span> ${words("a")} <span class="badge b">B</span> ${words("b")}${" "}
    <button type="button" class="small" onClick=${() => showToken(first)}>Show</button>
  </p>`;
}

/** Bring the first difference into view, once it is known that it stays. */
function useScroll(first, phase) {
  const before = useRef(null);
  useEffect(() => {
    if (first !== null && before.current === null && phase === "streaming") showToken(first);
    before.current = first;
  }, [first, phase]);
}

function showToken(index) {
  for (const side of ["a", "b"]) {
    const text = document.querySelector(`[data-testid="compare-${side}"] .tokens`);
    if (!text) continue;
    const chunks = [...text.querySelectorAll(".chunk")];
    const target = text.querySelector(`[data-index="${index}"]`) ?? chunks[Math.min(chunks.length - 1, Math.floor(index / 40))];
    target?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

/** Ask for what is looked at: of a token both settings' choices, and of the page's measure everything. */
function useLooks({ at, tint, measure, comparison, result, phase }) {
  useEffect(() => {
    if (!at || phase === "streaming") return;
    comparison.look(at.side, OTHER[at.side], at.index);
    comparison.look(at.side, at.side, at.index);
  }, [at, phase]);
  const all = tint === "page" && measure.id !== "none" && measure.id !== "probability";
  useEffect(() => {
    if (!all || !result || phase === "streaming") return undefined;
    let wanted = true;
    (async () => {
      for (const side of ["a", "b"]) for (let index = 0; wanted && index < result[side].tokens.length; index += 64) await comparison.look(side, side, index);
    })();
    return () => void (wanted = false);
  }, [all, result, phase]);
}

function Totals({ result, scores }) {
  const rows = [["tokens", (side) => String(result[side].tokens.length)]];
  if (scores) {
    for (const under of ["a", "b"]) {
      rows.push([`log-probability under ${NAMES[under]}`, (side) => totalInWords(scores.under[side + under], result[side].tokens.length)]);
    }
    for (const expert of Object.keys(scores.rewards.a).length ? Object.keys(scores.rewards.a) : Object.keys(scores.rewards.b)) {
      rows.push([`reward of ${expert}`, (side) => signed(scores.rewards[side][expert])]);
    }
  }
  return html`<table class="totals" data-testid="compare-totals">
    <caption>In total <span class="quiet">in nats; a reward is what the expert's fine-tuning added to the text's log-probability</span></caption>
    <thead>
      <tr><td></td>${["a", "b"].map((side) => html`<th key=${side} scope="col" class="figure"><span class=${`badge ${side}`}>${NAMES[side]}</span>'s text</th>`)}</tr>
    </thead>
    <tbody>
      ${rows.map(
        ([name, of]) =>
          html`<tr key=${name}><th scope="row">${name}</th>${["a", "b"].map((side) => html`<td key=${side} class="figure" data-side=${side}>${of(side)}</td>`)}</tr>`,
      )}
    </tbody>
  </table>`;
}

function totalInWords(column, count) {
  if (!column) return "–";
  if (column.total === null) return "impossible";
  return `${figure(column.total)} (${figure(column.total / count)} a token)`;
}
