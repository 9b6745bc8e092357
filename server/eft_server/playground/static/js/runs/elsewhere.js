/** What the other setting would have said at a token of one side. */

import { html } from "../../vendor/preact.js";
import { Glyphs, alternativesOf } from "../card.js";
import { chance, percent } from "../measures.js";

const NAMES = { a: "A", b: "B" };
const OTHER = { a: "b", b: "a" };

/** @param {{at: {side: "a"|"b", index: number}|null, result: object, looked: object}} props */
export function Elsewhere({ at, result, looked }) {
  const token = at && result[at.side].tokens[at.index];
  if (!token) {
    return html`<section class="elsewhere" aria-label="What the other would have said" data-testid="compare-there">
      <p class="note">Point at a token, or move to it with Tab and the arrow keys: here is what the other setting would have said there.</p>
    </section>`;
  }
  const other = OTHER[at.side];
  return html`<section class="elsewhere" aria-label="What the other would have said" data-testid="compare-there" data-side=${at.side} data-index=${at.index}>
    <h2>
      At token ${at.index + 1} of ${NAMES[at.side]}'s text <${Glyphs} token=${token} />
    </h2>
    <div class="sides" aria-live="polite">
      <${View} side=${other} mine=${false} token=${token} explained=${looked[at.side + other]?.[at.index]} />
      <${View} side=${at.side} mine=${true} token=${token} explained=${looked[at.side + at.side]?.[at.index]} />
    </div>
  </section>`;
}

function View({ side, mine, token, explained }) {
  const title = html`<h3><span class=${`badge ${side}`}>${NAMES[side]}</span> ${mine ? "itself had" : "would have said"}</h3>`;
  if (!explained) return html`<div>${title}<p class="note">Being computed …</p></div>`;
  const rows = alternativesOf({ explained });
  return html`<div data-testid=${`compare-view-${side}`}>
    ${title}
    <table class="choices">
      <tbody>
        ${rows.map(
          (row) =>
            html`<tr key=${row.id} class=${row.id === token.id ? "here" : ""} data-id=${row.id} data-value=${chance(row.logprob)}>
              <td><${Glyphs} token=${row} />${row.id === token.id && html`<span class="quiet"> stands here${rankOf(row, explained)}</span>`}</td>
              <td class="figure"><span class="bar" style=${{ width: `${chance(row.logprob) * 100}%` }}></span><span class="over">${percent(chance(row.logprob))}</span></td>
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** ", rank 17" of a token that is not among the likeliest. */
const rankOf = (row, explained) => (explained.top.includes(row) || !explained.rank ? "" : `, rank ${explained.rank}`);
