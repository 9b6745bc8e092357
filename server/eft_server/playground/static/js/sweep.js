/** A sweep: the same prompt across the values of one setting, so that one sees where the answer flips. */

import { html, useMemo, useState } from "../vendor/preact.js";
import { firstDifference } from "./align.js";
import { asksSomething, figure, inBrief, signed } from "./runs/answers.js";
import { onKeys } from "./runs/keys.js";
import { useRun } from "./runs/kept.js";
import { Plot } from "./runs/plot.js";
import { Question } from "./runs/question.js";
import { STEPS, cardFor, createSeries, expertOf, nameOf, rangeFor, settingsAt, sweepable, valueIn, valuesOf } from "./runs/series.js";
import { unlessDouble } from "./store.js";
import { TokenText } from "./tokens.js";
import { CUT_OFF, counted, inOneSentence } from "./words.js";

const PLAIN = { id: "none", group: "", name: "nothing", signed: false, full: 1, of: () => null, show: String };

/**
 * @typedef {{what: string, hold: boolean, from: number|null, to: number|null, steps: number, result: object|null}} Kept
 *   from, to: null for the ends of the range.
 * @param {{api: object, cards: object[], settings: object, conversation: object, sweep?: Kept|null,
 *   onSweep?: (sweep: Kept) => void, onSettings?: (settings: object) => void, draft?: string,
 *   onDraft?: (draft: string) => void}} props
 *   sweep: what is swept and the last sweep, from where they are kept; onSettings: takes a row's value for the page.
 */
export function Sweep({ api, cards, settings, conversation, sweep = null, onSweep, onSettings, draft, onDraft }) {
  const card = cardFor(cards, settings);
  const [own, setOwn] = useState(sweep ?? startOf(card));
  const kept = sweep ?? own;
  const keep = (change) => {
    const next = { ...kept, ...change };
    if (onSweep) onSweep(next);
    else setOwn(next);
  };
  const create = (options) => createSeries({ api, cards, ...options });
  const series = useRun({ create, result: kept.result, keep, busy: ({ running }) => running, over: [api, cards] });
  const state = series.get();
  const plan = planOf(kept, card, settings);
  const ready = asksSomething(conversation);
  const run = () => series.run({ settings, conversation, what: plan.what, hold: plan.hold, values: valuesOf(plan) });
  const take = ({ value }) => {
    const { settings: its, what, hold } = state.result;
    onSettings?.(settingsAt({ ...settings, model: its.model, weights: its.weights }, what, value, hold));
  };
  return html`<section class="beside sweep" aria-label="Sweep a setting" onKeyDown=${(event) => onKeys(event, { busy: state.running, ready, run, stop: series.stop })}>
    <${Question} ...${{ conversation, draft, onDraft }} />
    <${Plan} ...${{ plan, card, settings, cards, keep }} />
    <div class="row actions">
      ${state.running
        ? html`<button type="button" class="danger" data-testid="sweep-stop" onClick=${unlessDouble(series.stop)}>Stop</button>`
        : html`<button type="button" class="primary" data-testid="sweep-run" disabled=${!ready} onClick=${run}>Sweep</button>`}
      <span class="quiet" role="status" data-testid="sweep-status">${progress(state)}</span>
    </div>
    ${state.failure && html`<p class="failure" role="alert" data-testid="error">${inOneSentence(state.failure)}</p>`}
    ${state.result && html`<${Strip} ...${{ result: state.result, settings, take: onSettings && take }} />`}
  </section>`;
}

const startOf = (card) => ({ what: sweepable(card)[0][0], hold: false, from: null, to: null, steps: 7, result: null });

/** What will be swept: as it is kept, as far as this model takes it. */
function planOf(kept, card, settings) {
  const choices = sweepable(card);
  const what = choices.some(([id]) => id === kept.what) ? kept.what : choices[0][0];
  const hold = kept.hold && expertOf(what) !== null && Object.keys(settings.weights).length > 1;
  const range = rangeFor(card, settings, what, hold);
  const inside = (value, otherwise) => (value === null ? otherwise : Math.min(range.max, Math.max(range.min, value)));
  return { what, hold, range, from: inside(kept.from, range.min), to: inside(kept.to, range.max), steps: kept.steps };
}

function progress({ running, result }) {
  if (!result) return running ? "Waiting for the server …" : "";
  const done = result.rows.filter(({ state }) => state === "done").length;
  if (running) return `${done} of ${result.rows.length} answers …`;
  const flips = flipsOf(result.rows).length;
  const words = flips ? `The answer changes ${flips === 1 ? "once" : `${flips} times`}` : "The answer is the same at every value";
  return done ? `${words} from ${nameOf(result.what)} ${result.rows[0].value} to ${result.rows.at(-1).value}; seed ${result.settings.seed} in all.` : "";
}

function Plan({ plan, card, settings, cards, keep }) {
  const { what, hold, range, from, to, steps } = plan;
  const several = Object.keys(settings.weights).length > 1;
  const number = (event, change) => {
    const value = Number(event.target.value);
    if (event.target.value !== "" && Number.isFinite(value)) change(Math.min(range.max, Math.max(range.min, value)));
  };
  return html`<fieldset class="plan">
    <legend class="hidden">What is swept</legend>
    <label>Sweep the
      <select data-testid="sweep-what" value=${what} onChange=${(event) => keep({ what: event.target.value, from: null, to: null })}>
        ${sweepable(card).map(([id, name]) => html`<option key=${id} value=${id}>${name}</option>`)}
      </select></label
    >
    <label>from <input class="number" type="number" step="any" data-testid="sweep-from" min=${range.min} max=${range.max} value=${from}
      onChange=${(event) => number(event, (value) => keep({ from: value }))} /></label>
    <label>to <input class="number" type="number" step="any" data-testid="sweep-to" min=${range.min} max=${range.max} value=${to}
      onChange=${(event) => number(event, (value) => keep({ to: value }))} /></label>
    <label>in <input class="number" type="number" step="1" data-testid="sweep-steps" min=${STEPS.min} max=${STEPS.max} value=${steps}
      onChange=${(event) => keep({ steps: Math.min(STEPS.max, Math.max(STEPS.min, Math.round(Number(event.target.value)) || STEPS.min)) })} /> steps</label>
    ${expertOf(what) !== null && several &&
    html`<label class="check"><input type="checkbox" data-testid="sweep-hold" checked=${hold} onChange=${(event) => keep({ hold: event.target.checked, from: null, to: null })} />
      the others give way: the weights' sum stays</label>`}
    <p class="quiet">Everything else as it is: ${inBrief(settings, cards)}. Allowed: ${range.min} to ${range.max}.</p>
  </fieldset>`;
}

/** The places of rows whose answer differs from the one before. */
function flipsOf(rows) {
  const ended = ({ state, tokens }) => tokens.length > 0 && state !== "waiting" && state !== "streaming";
  return [...rows.keys()].filter((at) => at > 0 && ended(rows[at]) && ended(rows[at - 1]) && firstDifference(rows[at - 1].tokens, rows[at].tokens) !== null);
}

function Strip({ result, settings, take }) {
  const { rows, what } = result;
  const [pointed, setPointed] = useState(null);
  const experts = [...new Set(rows.flatMap(({ scores }) => Object.keys(scores?.rewards ?? {})))];
  const flips = flipsOf(rows);
  const lines = [
    ...experts.map((expert) => ({ name: `reward of ${expert}`, values: rows.map(({ scores }) => scores?.rewards[expert] ?? null) })),
    { name: "KL to the base", colour: "--text", values: rows.map(({ scores }) => scores?.kl ?? null) },
    { name: "log-probability", colour: "--quiet", values: rows.map(({ scores }) => scores?.logprob ?? null) },
  ];
  const now = settings.model === result.settings.model ? valueIn(settings, what) : null;
  const name = nameOf(what);
  return html`<${Plot} ...${{ label: name, values: rows.map(({ value }) => value), lines, flips, onPoint: setPointed }} />
    <table class="strip" role="table">
      <caption class="hidden">Answers and scores by ${name}; scores are means over the tokens, in nats</caption>
      <thead role="rowgroup">
        <tr role="row">
          <th role="columnheader" scope="col" class="figure">${name}</th>
          <th role="columnheader" scope="col">answer</th>
          <th role="columnheader" scope="col" class="figure">tokens</th>
          ${lines.map((line) => html`<th key=${line.name} role="columnheader" scope="col" class="figure">${line.name}</th>`)}
        </tr>
      </thead>
      <tbody role="rowgroup">
        ${rows.map((row, at) => html`<${Row} key=${at} ...${{ row, at, before: rows[at - 1], flip: flips.includes(at), lines, name, pointed: pointed === at, now: row.value === now, take }} />`)}
      </tbody>
    </table>
    <p class="note">Scores are means over an answer's tokens, in nats. A line in the plot, and <span class="flip">≠</span> in the table, is where the answer changes.</p>`;
}

function Row({ row, at, before, flip, lines, name, pointed, now, take }) {
  const same = at > 0 && !flip && row.tokens.length > 0 && row.state !== "streaming" && before.tokens.length > 0 && firstDifference(before.tokens, row.tokens) === null;
  const names = ["row-of-sweep", flip && "flipped", same && "same", pointed && "pointed", now && "now"].filter(Boolean).join(" ");
  const click = (event) => {
    if (take && getSelection().isCollapsed && !event.target.closest("button, .tok")) take(row);
  };
  return html`<tr role="row" class=${names} data-testid="sweep-row" data-value=${row.value} data-state=${row.state} data-same=${String(same)} onClick=${click} aria-current=${now ? "true" : undefined}>
    <th role="rowheader" scope="row" class="figure">
      ${take
        ? html`<button type="button" class="small" data-testid="sweep-take" title=${`Set ${name} to ${row.value}`} aria-label=${`${name} ${row.value}: use it for the settings`} onClick=${() => take(row)}>${row.value}</button>`
        : row.value}
    </th>
    <td role="cell" class="said"><${Said} ...${{ row, before, flip, same, name }} /></td>
    <td role="cell" class="figure" data-label="tokens">${row.tokens.length || ""}</td>
    ${lines.map((line) => html`<td key=${line.name} role="cell" class="figure" data-label=${line.name} data-score=${line.values[at]}>${row.scores ? (line.name.startsWith("reward") ? signed : figure)(line.values[at]) : ""}</td>`)}
  </tr>`;
}

function Said({ row, before, flip, same, name }) {
  const first = flip ? firstDifference(before.tokens, row.tokens) : null;
  const marks = useMemo(() => new Map(first === null ? [] : [[first, "mark first"]]), [first]);
  if (row.state === "waiting") return html`<span class="quiet">waiting</span>`;
  return html`${flip && html`<span class="flip" title="Differs from the answer above">≠</span>`}${same && html`<span class="quiet as-above"><span aria-hidden="true">″</span> as above</span> `}
    <${TokenText} tokens=${row.tokens} measure=${PLAIN} marks=${marks} label=${`Answer at ${name} ${row.value}`} />
    ${row.finish === "length" && html` <span class="quiet">(${CUT_OFF})</span>`}
    ${row.state === "stopped" && html` <span class="quiet">(stopped${row.tokens.length ? `, ${counted(row.tokens.length, "token")} kept` : ""})</span>`}
    ${row.failure && html`<p class="failure" role="alert" data-testid="error">${inOneSentence(row.failure, { received: row.tokens.length })}</p>`}`;
}
