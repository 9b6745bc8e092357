/** Fills tokens in with explanations: a span at a time, those that are looked at first, cancelled when superseded. */

import { cardOf, extended, promptFor, subjectOf } from "./settings.js";
import { answerOf, explained, lightened, promptOf } from "./tree.js";

const SPAN = 128;

/** How many alternatives are asked for, unless the server allows fewer. */
const ALTERNATIVES = 8;

/**
 * @param {{store: object, api: object, onFailure: (failure: Error) => void}} options
 *   store: has `tree` and `cards`.
 */
export function createExplainer({ store, api, onFailure }) {
  let controller = null;
  let single = null;
  let alternatives = ALTERNATIVES;
  let most = SPAN;

  function cancel() {
    controller?.abort();
    single?.abort();
    controller = single = null;
    store.set({ explaining: null });
  }

  /** Explain what is not yet of the answer that ends in a node. */
  async function answer(end) {
    cancel();
    const mine = (controller = new AbortController());
    try {
      for (let next; (next = nextSpan(end)); ) {
        store.set({ explaining: { done: next.start, total: next.total } });
        try {
          await span(end, next.start, next.stop, mine.signal);
        } catch (failure) {
          // The server's `max_scores` allows fewer tokens at a time.
          if (failure.param !== "span" || most === 1) throw failure;
          most = Math.ceil(most / 2);
        }
      }
    } catch (failure) {
      if (failure.kind !== "stopped") onFailure(failure);
    } finally {
      if (controller === mine) cancel();
    }
  }

  function nextSpan(end) {
    const { tokens, owners } = answerOf(store.get().tree, end);
    const start = tokens.findIndex((token) => !token.explained);
    if (start < 0) return null;
    let stop = start + 1;
    while (stop < tokens.length && stop < start + most && owners[stop].id === owners[start].id && !tokens[stop].explained) stop++;
    return { start, stop, total: tokens.length };
  }

  /** One request, about tokens of one piece, under the settings that the piece was made with. */
  async function span(end, start, stop, signal) {
    const { tree, cards } = store.get();
    const { tokens, owners } = answerOf(tree, end);
    const owner = owners[start];
    if (!owner) return;
    const { settings } = tree.nodes[owner.id];
    const ids = tokens.slice(0, stop).map((token) => token.id);
    const body = explanationBody(cardOf(cards, settings.model), settings, promptOf(tree, end), ids, [start, stop]);
    const answered = await ask(body, signal);
    if (signal?.aborted) return;
    store.set(({ tree: now }) => ({ tree: lightened(explained(now, owner.id, owner.at, answered.tokens)) }));
  }

  /** Ask with as many alternatives as the server's `max_logprobs` allows, which is found by trying. */
  async function ask(body, signal) {
    for (;;) {
      try {
        return await api.explain({ ...body, top_logprobs: alternatives }, { signal });
      } catch (failure) {
        if (failure.param !== "top_logprobs" || alternatives === 0) throw failure;
        alternatives = Math.floor(alternatives / 2);
      }
    }
  }

  /** Explain one token that is looked at, while others come or wait; the last one asked for counts. */
  async function one(end, index) {
    single?.abort();
    const mine = (single = new AbortController());
    try {
      await span(end, index, index + 1, mine.signal);
    } catch (failure) {
      if (failure.kind !== "stopped") onFailure(failure);
    }
  }

  return { cancel, answer, one };
}

/** The request that explains some tokens of a completion behind a prompt. */
export function explanationBody(card, settings, prompt, completion, span) {
  const { behaviour, read } = subjectOf(card, settings, prompt);
  const { temperature, top_p } = settings;
  return { ...behaviour, ...read, completion, span, temperature, top_p };
}

/** What to continue: the prompt of a model with the ids of tokens behind it. */
export function continuationOf(card, prompt, tokens) {
  return extended(
    promptFor(card, prompt),
    tokens.map((token) => token.id),
  );
}
