/** The card of a token: how likely it was, what else there was, and who pushed it. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { chance, percent } from "./measures.js";
import { shownToken } from "./tokens.js";

const nats = (value) => `${value <= -0.005 ? "−" : value >= 0.005 ? "+" : ""}${Math.abs(value).toFixed(2)}`;
const differs = (one, other) => Math.abs(chance(one) - chance(other)) >= 5e-4;
const hexadecimal = (bytes) => bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

/** A token's glyphs, as they are shown in lists. */
export const Glyphs = ({ token }) => html`<span class=${token.special ? "glyphs special" : "glyphs"}>${shownToken(token)}</span>`;

/** The alternatives of a token, with itself among them. */
export function alternativesOf(token) {
  const { explained } = token;
  if (!explained) return [];
  const { top } = explained;
  return top.some((row) => row.id === explained.id) ? top : [...top, explained];
}

/**
 * @param {{token: object, index: number, count: number, pinned: boolean,
 *   onSteer: (row: object) => void, onMove: (step: number) => void, onPin: () => void, onClose: () => void}} props
 */
export function Card({ token, index, count, pinned, onSteer, onMove, onPin, onClose }) {
  const [chosen, setCompared] = useState(null);
  const section = useRef(null);
  useEffect(() => {
    setCompared(null);
    // A button that was pressed here is gone with its token: the focus stays in the card.
    if (pinned && document.activeElement === document.body) section.current.focus({ preventScroll: true });
  }, [token.id, index]);
  const { explained } = token;
  const rows = alternativesOf(token);
  const others = rows.filter((row) => row.id !== token.id && row.logprob !== null);
  const other = others.find((row) => row.id === chosen) ?? others[0];
  const compared = other?.id ?? null;
  return html`<section ref=${section} tabindex="-1" class="card" data-testid="card" data-index=${index} data-id=${token.id} aria-label=${`Token ${index + 1}: ${shownToken(token)}`}>
    <header>
      <h2><${Glyphs} token=${token} /></h2>
      <div class="row">
        <button type="button" class="icon" aria-label="Previous token" disabled=${index === 0} onClick=${() => onMove(-1)}>‹</button>
        <span class="quiet count">${index + 1} of ${count}</span>
        <button type="button" class="icon" aria-label="Next token" disabled=${index >= count - 1} onClick=${() => onMove(1)}>›</button>
        <button type="button" class="icon" aria-pressed=${pinned ? "true" : "false"} title=${pinned ? "Pinned: stays on this token" : "Pin the card to this token"}
          aria-label="Pin" data-testid="card-pin" onClick=${onPin}>${pinned ? "●" : "○"}</button>
        <button type="button" class="icon" aria-label="Close the card" data-testid="card-close" onClick=${onClose}>×</button>
      </div>
    </header>
    <p class="quiet identity">
      id ${token.id}${token.bytes ? `, bytes ${hexadecimal(token.bytes)}` : ""}${token.special ? ", a special token" : ""}${token.chosen ? ", chosen by you" : ""}
    </p>
    <${Facts} token=${token} />
    ${explained
      ? html`<${Alternatives} ...${{ token, rows, compared, onSteer, onCompare: setCompared }} />
          <${Contributions} ...${{ token, other }} />
          <${Members} explained=${explained} />
          <${Without} explained=${explained} />`
      : html`<p class="note" role="status">What else there was, and who pushed this token, is being computed …</p>`}
  </section>`;
}

function Facts({ token }) {
  const { explained } = token;
  const raw = chance(token.logprob);
  const sampled = explained && differs(explained.logprob, explained.sampled_logprob);
  return html`<dl class="facts">
    <div>
      <dt title="Before temperature, top-p and the like">probability, raw</dt>
      <dd data-testid="card-probability" data-value=${raw}>${percent(raw)}</dd>
    </div>
    ${sampled &&
    html`<div>
      <dt title="After temperature, top-p and the like">as sampled</dt>
      <dd data-testid="card-sampled" data-value=${chance(explained.sampled_logprob)}>${percent(chance(explained.sampled_logprob))}</dd>
    </div>`}
    ${explained &&
    html`<div><dt>rank</dt><dd data-testid="card-rank" data-value=${explained.rank}>${explained.rank}</dd></div>
      <div><dt title="How undecided the model was, in nats">entropy</dt><dd data-testid="card-entropy" data-value=${explained.entropy}>${explained.entropy.toFixed(2)}</dd></div>
      <div><dt title="How far the distribution is from the base's, in nats">KL to base</dt><dd data-testid="card-kl" data-value=${explained.kl}>${explained.kl.toFixed(2)}</dd></div>
      ${Object.entries(explained.rewards ?? {}).map(
        ([name, value]) =>
          html`<div key=${name}>
            <dt title=${`How much likelier ${name}'s fine-tuning made this token, in nats`}>reward of ${name}</dt>
            <dd data-testid="card-reward" data-name=${name} data-value=${value}>${value === null ? "–" : nats(value)}</dd>
          </div>`,
      )}`}
  </dl>`;
}

function Alternatives({ token, rows, compared, onSteer, onCompare }) {
  const both = rows.some((row) => differs(row.logprob, row.sampled_logprob));
  return html`<section aria-labelledby="card-alternatives">
    <h3 id="card-alternatives">Alternatives <span class="quiet">pick one to continue from it</span></h3>
    <table class="alternatives">
      <thead>
        <tr>
          <th scope="col"><span class="hidden">Key</span></th>
          <th scope="col">token</th>
          <th scope="col" class="figure" title="Before temperature, top-p and the like">${both ? "raw" : "probability"}</th>
          ${both && html`<th scope="col" class="figure" title="After temperature, top-p and the like">as sampled</th>`}
          <th scope="col"><span class="hidden">Compare</span></th>
        </tr>
      </thead>
      <tbody>
        ${rows.map((row, place) => html`<${Alternative} key=${row.id} ...${{ row, place, both, token, compared, onSteer, onCompare }} />`)}
      </tbody>
    </table>
  </section>`;
}

function Alternative({ row, place, both, token, compared, onSteer, onCompare }) {
  const here = row.id === token.id;
  const raw = chance(row.logprob);
  const name = shownToken(row);
  return html`<tr class=${here ? "here" : ""} data-testid="card-top" data-id=${row.id} data-value=${raw}>
    <td class="quiet">${place < 9 ? html`<kbd>${place + 1}</kbd>` : ""}</td>
    <td>
      ${here
        ? html`<span class="pick" aria-current="true"><${Glyphs} token=${row} /> <span class="quiet">is here</span></span>`
        : html`<button type="button" class="pick" data-testid="card-pick" aria-label=${`Continue with ${name}`} onClick=${() => onSteer(row)}><${Glyphs} token=${row} /></button>`}
    </td>
    <td class="figure"><span class="bar" style=${{ width: `${raw * 100}%` }}></span><span class="over">${percent(raw)}</span></td>
    ${both && html`<td class="figure"><span class="bar" style=${{ width: `${chance(row.sampled_logprob) * 100}%` }}></span><span class="over">${row.sampled_logprob === null ? "cut off" : percent(chance(row.sampled_logprob))}</span></td>`}
    <td>
      ${!here &&
      html`<button type="button" class="icon" aria-pressed=${compared === row.id ? "true" : "false"} title="Compare who pushed it" data-testid="card-compare" data-id=${row.id}
        aria-label=${`Compare who pushed ${name}`} onClick=${() => onCompare(compared === row.id ? null : row.id)}>⇄</button>`}
    </td>
  </tr>`;
}

/** [name, value, what it is] of each part of a logit. */
export function partsOf(contributions) {
  if (contributions.members) {
    const parts = Object.entries(contributions.members).map(([name, value]) => [name, value, `${name}'s log-probability, times its coefficient`]);
    return [...parts, ["filter", contributions.filter, "Removed by the filter"]].filter(([name, value]) => name !== "filter" || value !== 0);
  }
  const { base, experts, amplify, filter } = contributions;
  const extra = [
    ["amplify", amplify, "What amplifying the up-scaling delta adds"],
    ["filter", filter, "What the filter takes or gives"],
  ].filter(([, value]) => value !== 0 && value !== undefined);
  const own = Object.entries(experts).map(([name, value]) => [name, value, `scale × weight × what ${name}'s fine-tuning changed`]);
  return [["base", base, "The base's own log-probability"], ...own, ...extra];
}

/** Each part's difference between two tokens: they sum to the difference of the log-probabilities, exactly. */
function Contributions({ token, other }) {
  const mine = partsOf(token.explained.contributions);
  const theirs = other ? new Map(partsOf(other.contributions).map(([name, value]) => [name, value])) : null;
  const difference = (name, value) => {
    const their = theirs ? (theirs.has(name) ? theirs.get(name) : 0) : 0;
    return value === null || their === null ? null : value - their;
  };
  const rows = mine.map(([name, value, about]) => ({ name, value, about, push: difference(name, value) }));
  const most = Math.max(1, ...rows.map(({ push }) => Math.abs(push ?? 0)));
  const total = other && token.explained.logprob !== null ? token.explained.logprob - other.logprob : null;
  return html`<section aria-labelledby="card-pushes">
    <h3 id="card-pushes">
      ${other ? html`Who chose it <span class="quiet">over</span> <${Glyphs} token=${other} />` : "Who pushed it"} <span class="quiet">in nats</span>
    </h3>
    <div class="pushes" role="list">
      ${rows.map((row) => html`<${Push} key=${row.name} ...${row} most=${most} compared=${Boolean(other)} />`)}
      ${total !== null && html`<${Push} name="together" value=${null} push=${total} most=${Math.max(most, Math.abs(total))} compared=${true} sum=${true} about="The difference of the two log-probabilities" />`}
    </div>
    ${other && html`<p class="note">Orange is for <${Glyphs} token=${token} />, blue for <${Glyphs} token=${other} />; the last column is the part of this token by itself.</p>`}
  </section>`;
}

function Push({ name, value, about, most, push, compared, sum = false }) {
  const width = `${(Math.min(Math.abs(push ?? most), most) / most) * 50}%`;
  const words = push === null ? "removed" : nats(push);
  const hook = sum ? "card-together" : "card-contribution";
  return html`<div class=${sum ? "push sum" : "push"} role="listitem" data-testid=${hook} data-name=${name} data-value=${sum ? push : value} data-push=${push} title=${about}>
    <span class="name">${name}</span>
    <span class="axis" aria-hidden="true"><span class=${`part ${push === null || push < 0 ? "minus" : "plus"}`} style=${{ width }}></span></span>
    <span class="figure difference">${words}</span>
    ${compared && html`<span class="figure quiet">${sum ? "" : value === null ? "–" : nats(value)}</span>`}
  </div>`;
}

function Members({ explained }) {
  return html`<section aria-labelledby="card-members">
    <h3 id="card-members">Each member by itself</h3>
    <table>
      <thead>
        <tr><th scope="col">member</th><th scope="col">would say</th><th scope="col" class="figure">this token</th><th scope="col" class="figure">rank</th></tr>
      </thead>
      <tbody>
        ${Object.entries(explained.members ?? {}).map(
          ([name, { logprob, rank, top }]) =>
            html`<tr key=${name} data-testid="card-member" data-name=${name} data-id=${top?.id} data-value=${logprob}>
              <th scope="row">${name}</th>
              <td>${top ? html`<${Glyphs} token=${top} /> <span class="quiet">${percent(chance(top.logprob))}</span>` : "–"}</td>
              <td class="figure">${percent(chance(logprob))}</td>
              <td class="figure">${rank ?? "–"}</td>
            </tr>`,
        )}
      </tbody>
    </table>
  </section>`;
}

function Without({ explained }) {
  const rows = Object.entries(explained.without ?? {});
  if (!rows.length) return null;
  return html`<section aria-labelledby="card-without">
    <h3 id="card-without">Without one expert</h3>
    <table>
      <tbody>
        ${rows.map(
          ([name, row]) =>
            html`<tr key=${name} class=${row.changed ? "changed" : ""} data-testid="card-without" data-name=${name} data-id=${row.id} data-changed=${row.changed}>
              <th scope="row">no ${name}</th>
              <td><${Glyphs} token=${row} /> <span class="quiet">${percent(chance(row.logprob))}</span></td>
              <td>${row.changed ? html`<strong>another token</strong>` : html`<span class="quiet">the same</span>`}</td>
            </tr>`,
        )}
      </tbody>
    </table>
  </section>`;
}
