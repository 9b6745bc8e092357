/** Answers beside the conversation: the same prompt, under other settings. Nothing here draws. */

import { cardOf, completionOf, familyOf, memberOf, promptFor } from "../settings.js";

const DRAW_EVERY_MS = 60;

/** Whether a conversation asks anything. */
export const asksSomething = ({ mode, messages, prompt }) => (mode === "text" ? prompt !== "" : messages.length > 0);

/** The prompt in token ids, and every member's own where they differ, for all models of the family. */
export async function prepare({ api, cards, conversation, signal }) {
  const { mode, messages, prompt } = conversation;
  const question = mode === "text" ? { prompt } : { messages };
  const { tokens: ids, prompts = null } = await api.tokenize({ model: familyOf(cards).id, ...question }, { signal });
  return { ids, prompts };
}

/**
 * Answer a prepared prompt.
 * @param {{api: object, cards: object[], settings: object, prompt: {ids: number[], prompts: object|null},
 *   signal?: AbortSignal, onTokens: (tokens: object[], finish: string|null) => void}} options
 *   onTokens gets all tokens so far, some times a second, and for the last time before this resolves or throws.
 */
export async function answer({ api, cards, settings, prompt, signal, onTokens }) {
  const card = cardOf(cards, settings.model);
  let [tokens, finish, timer] = [[], null, null];
  const draw = () => {
    clearTimeout(timer);
    timer = null;
    onTokens(tokens, finish);
  };
  try {
    await api.complete({
      ...completionOf(card, settings, promptFor(card, prompt)),
      signal,
      onEvent: (progress) => {
        tokens = [...tokens, ...progress.tokens];
        finish = progress.finish_reason ?? finish;
        timer ??= setTimeout(draw, DRAW_EVERY_MS);
      },
    });
  } finally {
    draw();
  }
}

export const idsOf = (tokens) => tokens.map(({ id }) => id);

/** A number for reading: a true minus sign, so many digits. */
export function figure(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;
}

export const signed = (value, digits = 2) => (value > 0 ? `+${figure(value, digits)}` : figure(value, digits));

/** Settings in a few words: "base by itself", "helpful 0.5, harmless 0.5, scale 2". */
export function inBrief(settings, cards) {
  const card = cardOf(cards, settings.model);
  const { temperature, top_p } = settings;
  const sampling = [temperature !== 1 && `temperature ${temperature}`, top_p !== 1 && `top-p ${top_p}`];
  return [...behaviour(settings, card), ...sampling].filter(Boolean).join(", ");
}

function behaviour({ weights, scale, amplify, filter }, card) {
  const member = memberOf(card);
  if (member !== null) return [`${member} by itself`];
  const own = Object.entries(weights).map(([expert, weight]) => `${expert} ${Number(weight.toFixed(3))}`);
  const factors = [scale !== 1 && `scale ${scale}`, amplify !== 1 && `amplify ${amplify}`];
  return [...own, ...factors, filter && `filter ${filter.kind} ${filter.top_p}`];
}
