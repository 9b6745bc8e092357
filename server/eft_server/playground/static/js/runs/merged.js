/** Both answers as one text: what is shared once, and where they differ A above B. */

import { html } from "../../vendor/preact.js";
import { plainText } from "../tokens.js";

/** @param {{result: object, runs: object[], phase: string}} props */
export function Merged({ result, runs, phase }) {
  if (phase === "streaming") return html`<p class="note">Both texts are put together when they have ended.</p>`;
  const text = (side, [first, stop]) => plainText(result[side].tokens.slice(first, stop));
  return html`<div class="merged" data-testid="compare-merged">
    ${runs.map((run, at) =>
      run.same
        ? html`<span key=${at}>${text("a", run.a)}</span>`
        : html`<span key=${at} class="fork"><${Version} side="a" text=${text("a", run.a)} /><${Version} side="b" text=${text("b", run.b)} /></span>`,
    )}
  </div>`;
}

const Version = ({ side, text }) => html`<span class=${`version ${side}`}><span class=${`badge ${side}`}>${side.toUpperCase()}</span>${text.trim() || html`<em>nothing</em>`}</span>`;
