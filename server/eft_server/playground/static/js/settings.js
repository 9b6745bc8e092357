/** What a request is asked with: the shape, what is sent of it, and the panel of sliders. */

import { html, useState } from "../vendor/preact.js";

/**
 * @typedef {{model: string, weights: Object<string, number>, scale: number, amplify: number,
 *   filter: null|{kind: "expert"|"base", top_p: number}, temperature: number, top_p: number, max_tokens: number,
 *   seed: number|null}} Settings
 */

const SEEDS = 1_000_000;

/** The card of a model by its name; undefined if there is none. */
export const cardOf = (cards, model) => cards.find((card) => card.id === model);

/** The family's own card. */
export const familyOf = (cards) => cards.find((card) => card.eft.kind === "composite");

/** The experts' names, in the server's order. */
export const expertsOf = (cards) => Object.keys(familyOf(cards)?.eft.weights ?? {});

export const isMember = (card) => card?.eft.kind === "member";

/** The member's name of a plain member's card: "base" of "demo/base"; null for others. */
export const memberOf = (card) => (isMember(card) ? card.id.slice(card.id.indexOf("/") + 1) : null);

export const newSeed = () => Math.floor(Math.random() * SEEDS);

/** @returns {Settings} what the server does by itself, with a seed that stays. */
export function defaultSettings(cards) {
  const family = familyOf(cards);
  const sampling = family.eft.sampling ?? {};
  return {
    model: family.id,
    ...behaviourOf(family),
    temperature: sampling.temperature ?? 1,
    top_p: sampling.top_p ?? 1,
    max_tokens: Math.min(256, Math.max(1, Math.floor(family.max_model_len / 2))),
    seed: newSeed(),
  };
}

/** The weights, scale, amplify and filter behind a name. */
export function behaviourOf({ eft }) {
  return { weights: { ...eft.weights }, scale: eft.scale, amplify: eft.amplify, filter: eft.filter };
}

/** The `eft` object to send; undefined for a plain member, which takes none. */
export function eftOf(settings, card) {
  if (isMember(card)) return undefined;
  const { weights, scale, amplify, filter } = settings;
  const off = card?.eft.filter ? { kind: card.eft.filter.kind, top_p: 1 } : null;
  const wanted = filter ?? off;
  return { weights, scale, amplify, ...(wanted ? { filter: wanted } : {}) };
}

/** The prompt that a model reads: a plain member has its own, a composite one for each member that has another. */
export function promptFor(card, { ids, prompts = null }) {
  const member = memberOf(card);
  if (member !== null) return { ids: prompts?.[member] ?? ids, prompts: null };
  return { ids, prompts: prompts ?? null };
}

/** How many tokens the context has room for behind a prompt; the server says what is wrong where there is none. */
export function roomFor({ max_model_len: context }, { ids, prompts }) {
  const longest = Math.max(ids.length, ...Object.values(prompts ?? {}).map((own) => own.length));
  return Math.max(1, context - longest);
}

/** What `complete` of api.js takes of a model that continues a prompt of its own, with no more tokens than there is room for. */
export function completionOf(card, settings, prompt) {
  const most = Math.min(settings.max_tokens, roomFor(card, prompt));
  return { model: settings.model, eft: eftOf(settings, card), ...prompt, settings: { ...settings, max_tokens: most } };
}

/** What a model and its prompt are in a request for scores or explanations. */
export function subjectOf(card, settings, prompt) {
  const eft = eftOf(settings, card);
  const { ids, prompts } = promptFor(card, prompt);
  return { behaviour: { model: settings.model, ...(eft ? { eft } : {}) }, read: { prompt: ids, ...(prompts ? { prompts } : {}) } };
}

/** The same with more token ids behind every prompt. */
export function extended({ ids, prompts }, more) {
  const longer = prompts && Object.fromEntries(Object.entries(prompts).map(([name, own]) => [name, [...own, ...more]]));
  return { ids: [...ids, ...more], prompts: longer };
}

/** What is wrong with the weights before the server says so; null if nothing is. */
export function problemWith(settings, card) {
  const total = card?.eft.bounds?.total;
  if (total === undefined) return null;
  const sum = Math.abs(settings.scale) * Object.values(settings.weights).reduce((all, weight) => all + Math.abs(weight), 0);
  return sum > total * (1 + 1e-9) ? `Scale times the sum of the weights is ${rounded(sum)}; this server allows up to ${total}.` : null;
}

const rounded = (value) => Number(value.toFixed(3));

/** A slider with a number beside it; either sets the value. */
function Slider({ id, testId, name, about, min, max, step = 0.05, value, disabled, onChange }) {
  const set = (event) => {
    const given = Number(event.target.value);
    if (event.target.value !== "" && Number.isFinite(given)) onChange(Math.min(max, Math.max(min, given)));
  };
  const described = about ? `${id}-about` : undefined;
  return html`<div class="slider">
    <label for=${id}>${name}</label>
    <input
      class="number"
      type="number"
      data-testid=${`number-${testId}`}
      aria-label=${`${name}, as a number`}
      min=${min}
      max=${max}
      step="any"
      value=${rounded(value)}
      disabled=${disabled}
      onChange=${set}
    />
    <input
      id=${id}
      type="range"
      data-testid=${testId}
      aria-describedby=${described}
      min=${min}
      max=${max}
      step=${step}
      value=${value}
      disabled=${disabled}
      onInput=${set}
    />
    ${about && html`<p class="about" id=${described}>${about}</p>`}
  </div>`;
}

const sameBehaviour = (settings, card) =>
  Object.entries(card.eft.weights).every(([name, weight]) => settings.weights[name] === weight) &&
  ["scale", "amplify"].every((name) => settings[name] === card.eft[name]) &&
  JSON.stringify(settings.filter) === JSON.stringify(card.eft.filter);

/** The whole panel. */
export function SettingsPanel({ settings, cards, onChange, idPrefix = "" }) {
  const card = cardOf(cards, settings.model) ?? familyOf(cards);
  const plain = isMember(card);
  const set = (change) => onChange({ ...settings, ...change });
  return html`<div class="panel">
    <${ModelChoice} ...${{ settings, cards, idPrefix, set }} />
    ${!plain && html`<${Presets} ...${{ settings, cards, set }} />`}
    ${plain
      ? html`<p class="note">A plain member by itself: it takes no weights.</p>`
      : html`<${Behaviour} ...${{ settings, cards, card, idPrefix, set }} />`}
    <${Sampling} ...${{ settings, card, idPrefix, set }} />
  </div>`;
}

function ModelChoice({ settings, cards, idPrefix, set }) {
  const family = familyOf(cards);
  const members = family.eft.members ?? {};
  const kinds = { base: "the base", reference: "a reference", expert: "an expert" };
  return html`<div class="field">
    <label for=${`${idPrefix}model`}>Model</label>
    <select id=${`${idPrefix}model`} data-testid="model" value=${settings.model} onChange=${(event) => set({ model: event.target.value })}>
      <option value=${family.id}>${family.id} (the composite)</option>
      <optgroup label="One member by itself">
        ${cards.filter(isMember).map((card) => {
          const kind = kinds[members[memberOf(card)]?.kind];
          return html`<option key=${card.id} value=${card.id}>${memberOf(card)}${kind ? `, ${kind}` : ""}</option>`;
        })}
      </optgroup>
    </select>
  </div>`;
}

function Presets({ settings, cards, set }) {
  const presets = cards.filter((card) => !isMember(card));
  if (presets.length < 2) return null;
  const chosen = presets.find((card) => !isMember(cardOf(cards, settings.model)) && sameBehaviour(settings, card));
  return html`<div class="field" role="group" aria-label="Presets">
    <span class="caption">Presets</span>
    <div class="chips">
      ${presets.map(
        (card) =>
          html`<button
            key=${card.id}
            type="button"
            class="chip"
            data-testid=${`preset-${card.id}`}
            title=${card.eft.description || undefined}
            aria-pressed=${card === chosen ? "true" : "false"}
            onClick=${() => set(behaviourOf(card))}
          >
            ${card.id}
          </button>`,
      )}
    </div>
  </div>`;
}

function Behaviour({ settings, cards, card, idPrefix, set }) {
  const { bounds } = card.eft;
  const about = (expert) => cards.find((other) => memberOf(other) === expert)?.eft.description;
  const problem = problemWith(settings, card);
  const step = ({ min, max }) => (max - min > 4 ? 0.1 : 0.05);
  return html`<fieldset>
    <legend>Behaviour</legend>
    ${Object.entries(bounds.weights).map(
      ([expert, range]) =>
        html`<${Slider}
          key=${expert}
          id=${`${idPrefix}weight-${expert}`}
          testId=${`slider-${expert}`}
          name=${expert}
          about=${about(expert)}
          ...${range}
          step=${step(range)}
          value=${settings.weights[expert] ?? 0}
          onChange=${(value) => set({ weights: { ...settings.weights, [expert]: value } })}
        />`,
    )}
    <${Slider} id=${`${idPrefix}scale`} testId="slider-scale" name="scale" about="Multiplies all weights: the strength of fine-tuning."
      ...${bounds.scale} step=${step(bounds.scale)} value=${settings.scale} onChange=${(scale) => set({ scale })} />
    <${Slider} id=${`${idPrefix}amplify`} testId="slider-amplify" name="amplify" about="Multiplies what the base knows beyond the small model: the strength of size."
      ...${bounds.amplify} step=${step(bounds.amplify)} value=${settings.amplify} onChange=${(amplify) => set({ amplify })} />
    <${FilterChoice} ...${{ settings, idPrefix, set }} />
    ${problem && html`<p class="failure" role="status">${problem}</p>`}
  </fieldset>`;
}

function FilterChoice({ settings, idPrefix, set }) {
  const { filter } = settings;
  const choose = (kind) => set({ filter: kind === "none" ? null : { kind, top_p: filter?.top_p ?? 0.9 } });
  return html`<div class="field">
      <label for=${`${idPrefix}filter`}>filter</label>
      <select id=${`${idPrefix}filter`} data-testid="filter-kind" value=${filter?.kind ?? "none"} onChange=${(event) => choose(event.target.value)}>
        <option value="none">none</option>
        <option value="expert">expert: the delta counts in the small model's nucleus</option>
        <option value="base">base: only tokens of the base's nucleus</option>
      </select>
    </div>
    ${filter &&
    html`<${Slider} id=${`${idPrefix}filter-top-p`} testId="filter-top-p" name="nucleus (top-p)" min=${0} max=${1} step=${0.01}
      value=${filter.top_p} onChange=${(top) => set({ filter: { ...filter, top_p: top } })} />`}`;
}

function Sampling({ settings, card, idPrefix, set }) {
  const whole = (event, change) => {
    const value = Math.floor(Number(event.target.value));
    if (event.target.value !== "" && Number.isFinite(value)) change(value);
  };
  return html`<fieldset>
    <legend>Sampling</legend>
    <${Slider} id=${`${idPrefix}temperature`} testId="temperature" name="temperature" min=${0} max=${2} value=${settings.temperature}
      onChange=${(temperature) => set({ temperature })} />
    <${Slider} id=${`${idPrefix}top-p`} testId="top-p" name="top-p" min=${0.01} max=${1} step=${0.01} value=${settings.top_p}
      onChange=${(top) => set({ top_p: top })} />
    <div class="field inline">
      <label for=${`${idPrefix}max-tokens`}>max tokens</label>
      <input id=${`${idPrefix}max-tokens`} class="number" type="number" data-testid="max-tokens" min="1" max=${card?.max_model_len} step="1"
        value=${settings.max_tokens} onChange=${(event) => whole(event, (value) => set({ max_tokens: Math.min(card.max_model_len, Math.max(1, value)) }))} />
    </div>
    <div class="field inline">
      <label for=${`${idPrefix}seed`}>seed</label>
      <input id=${`${idPrefix}seed`} class="number wide" type="number" data-testid="seed" min="0" step="1" placeholder="random"
        value=${settings.seed ?? ""}
        onChange=${(event) => (event.target.value === "" ? set({ seed: null }) : whole(event, (seed) => set({ seed: Math.max(0, seed) })))} />
      <button type="button" class="small" data-testid="new-seed" onClick=${() => set({ seed: newSeed() })}>New seed</button>
    </div>
  </fieldset>`;
}
