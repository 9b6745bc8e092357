/** What is compared with: a plain member, an alias, or sliders of its own. */

import { html, useState } from "../../vendor/preact.js";
import { SettingsPanel, behaviourOf, familyOf, isMember, memberOf } from "../settings.js";
import { inBrief } from "./answers.js";

const OWN = "own";

const memberCards = (cards) => cards.filter(isMember);

/** The base by itself, sampled as the page's settings are. */
export function startOfB(cards, settings) {
  const base = memberCards(cards)[0];
  return { ...settings, model: base?.id ?? familyOf(cards).id };
}

const BEHAVIOUR = ["scale", "amplify", "filter"];

/** Which entry of the list settings are: a member's name, an alias's, or "own". */
function chosen(cards, b) {
  const card = cards.find(({ id }) => id === b.model);
  if (isMember(card)) return card.id;
  const alike = cards.filter((each) => !isMember(each)).find((each) => sameBehaviour(each, b));
  return alike?.id ?? OWN;
}

function sameBehaviour({ eft }, b) {
  const weights = Object.entries(eft.weights).every(([expert, weight]) => b.weights[expert] === weight);
  return weights && BEHAVIOUR.every((name) => JSON.stringify(eft[name]) === JSON.stringify(b[name]));
}

/** A is what the page is set to. */
export function ChoiceOfA({ cards, settings, onChange }) {
  return html`<div class="setting" data-testid="compare-a-settings">
    <p><span class="badge a">A</span> <strong>the settings of this page</strong></p>
    <p>${inBrief(settings, cards)}</p>
    ${onChange &&
    html`<details>
      <summary>Change A</summary>
      <${SettingsPanel} idPrefix="a-" settings=${settings} cards=${cards} onChange=${onChange} />
    </details>`}
  </div>`;
}

/** @param {{cards: object[], settings: object, b: object, onChange: (b: object) => void}} props settings: A's. */
export function ChoiceOfB({ cards, settings, b, onChange }) {
  const [open, setOpen] = useState(false);
  const family = familyOf(cards);
  const choose = (id) => {
    const card = cards.find((each) => each.id === id);
    if (id === OWN) setOpen(true);
    else if (isMember(card)) onChange({ ...b, model: id });
    else onChange({ ...b, model: family.id, ...behaviourOf(card) });
    if (id === OWN && isMember(cards.find((each) => each.id === b.model))) onChange({ ...settings });
  };
  return html`<div class="setting" data-testid="compare-b-settings">
    <p><label class="choice"
      ><span class="badge b">B</span> <span class="hidden">is</span>
      <select data-testid="compare-b-model" value=${chosen(cards, b)} onChange=${(event) => choose(event.target.value)}>
        <optgroup label="One member by itself">
          ${memberCards(cards).map((card) => html`<option key=${card.id} value=${card.id}>${memberOf(card)} by itself</option>`)}
        </optgroup>
        <optgroup label="The composite">
          ${cards.filter((card) => !isMember(card)).map((card) => html`<option key=${card.id} value=${card.id}>${card.id}${card.id === family.id ? ", as it is by default" : ""}</option>`)}
          <option value=${OWN}>other weights …</option>
        </optgroup>
      </select>
    </label></p>
    ${!isMember(cards.find(({ id }) => id === b.model)) && html`<p>${inBrief(b, cards)}</p>`}
    <details open=${open} onToggle=${(event) => setOpen(event.target.open)}>
      <summary>Change B</summary>
      <${SettingsPanel} idPrefix="b-" settings=${b} cards=${cards} onChange=${onChange} />
    </details>
  </div>`;
}
