/** What is asked beside the conversation: seen, and changed where the page lets it be. */

import { html } from "../../vendor/preact.js";
import { counted } from "../words.js";
import { asksSomething } from "./answers.js";

/** @param {{conversation: object, draft?: string, onDraft?: (draft: string) => void}} props */
export function Question({ conversation, draft, onDraft }) {
  const { mode, messages, prompt } = conversation;
  const last = mode === "text" ? prompt : (messages.at(-1)?.content ?? "");
  const before = mode === "text" ? 0 : messages.length - 1;
  const about = before > 0 ? `Prompt, behind ${counted(before, "earlier message")}` : "Prompt";
  if (!onDraft) return html`<p class="asked"><span class="quiet">${about}</span> ${last}</p>`;
  return html`<div class="asked">
    <label for="asked">${about}</label>
    <textarea
      id="asked"
      data-testid="prompt"
      rows="2"
      placeholder=${!draft && last ? last : mode === "text" ? "A text to continue …" : "Ask something …"}
      value=${draft}
      onInput=${(event) => onDraft(event.target.value)}
    ></textarea>
    ${!asksSomething(conversation) && html`<p class="note">There is nothing to ask yet.</p>`}
  </div>`;
}
