/** Failures and waiting, in sentences. Pure. */

const LONGEST = 600;

/** Why an answer ended that its model had not ended. */
export const CUT_OFF = "cut off at max tokens, or where the context ends";

/**
 * @typedef {{title: string, text: string, again: boolean}} Words
 *   title: what happened, in a few words; text: sentences with what can be done; again: whether the same may work later.
 */

/**
 * What a failure means to whoever reads the page.
 * @param {object} failure a Failure of api.js, or any other error
 * @param {{received?: number}} context received: how many tokens had come; they are kept
 * @returns {Words}
 */
export function inWords(failure, { received = 0 } = {}) {
  const { title, sentences, again } = described(failure);
  const kept = received > 0 && failure?.kind !== "file" ? [`What had come is kept: ${counted(received, "token")}.`] : [];
  return { title, text: [...sentences, ...kept].join(" "), again };
}

/** The same as one text. */
export function inOneSentence(failure, context) {
  const { title, text } = inWords(failure, context);
  return text ? `${title}. ${text}` : `${title}.`;
}

/**
 * What to say while an answer does not come.
 * @param {{ahead?: number|null, seconds?: number}} state ahead: how many requests are first, where that is known
 */
export function waiting({ ahead = null, seconds = 0 } = {}) {
  const since = seconds >= 5 ? ` Waiting for ${Math.floor(seconds)} s.` : "";
  if (ahead === null) return `Waiting for the first token …${since}`;
  if (ahead === 0) return `The server is busy; this request is next.${since}`;
  return `The server is busy; ${counted(ahead, "request")} ${ahead === 1 ? "is" : "are"} ahead.${since}`;
}

/** "1 token", "3 tokens". */
export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** A server's text for reading: bounded, and without characters that hide or turn text around. */
export function readable(text) {
  const plain = String(text ?? "")
    .replace(/[\n\r\t]+/g, " ")
    .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd")
    .trim();
  return plain.length > LONGEST ? `${plain.slice(0, LONGEST)}…` : plain;
}

const KINDS = {
  refused: (failure) => (REFUSED[failure.status] ?? REFUSED[400])(failure),
  unauthorised: ({ status, message }) => ({
    title: status === 403 ? "This API key may not do that" : "The server wants an API key",
    sentences: status === 403 ? [said(message), "Use another key."] : ["The key is missing or wrong.", said(message)],
    again: false,
  }),
  busy: (failure) => (BUSY[failure.status] ?? BUSY[503])(failure),
  lost: ({ message }) => ({
    title: "The connection to the server is lost",
    sentences: [
      /ended early/.test(message) ? "The stream broke off before its end." : "The server does not answer: it may have stopped, or the network is down.",
      "Try again when it is back.",
    ],
    again: true,
  }),
  ended: ({ status, message }) => ({
    title: status === 503 ? "The server is stopping" : "The server failed while it answered",
    sentences: [said(message) || "It gave no reason; its log has one.", "Try again; if it stays, tell whoever runs the server."],
    again: true,
  }),
  file: ({ message }) => ({ title: "The file was not opened", sentences: [said(message)], again: false }),
  stopped: () => ({ title: "Stopped", sentences: ["You stopped this answer."], again: true }),
};

const REFUSED = {
  400: (failure) =>
    failure.code === "context_length_exceeded"
      ? {
          title: "The text is too long for this model",
          sentences: [said(failure.message), "Shorten the prompt, or lower max tokens."],
          again: false,
        }
      : { title: `The server refused ${field(failure)}`, sentences: [said(withField(failure)) || `It answered ${failure.status}.`], again: false },
  404: ({ message, code }) => ({
    title: code === "model_not_found" ? "The server has no such model" : "The server has nothing at this address",
    sentences: [said(message), code === "model_not_found" ? "Reload the page to see the models that it has now." : "It may be older than this page."],
    again: false,
  }),
  413: ({ message }) => ({
    title: "The request is too large",
    sentences: [said(message) || "It is larger than the server takes.", "Shorten the prompt or the conversation."],
    again: false,
  }),
};

const BUSY = {
  408: ({ message }) => ({
    title: "The request did not reach the server in time",
    sentences: [said(message), "The connection may be slow. Try again."],
    again: true,
  }),
  429: ({ message, retryAfter }) => ({
    title: "The server is busy",
    sentences: [said(message) || "It has as many requests as it takes.", later(retryAfter)],
    again: true,
  }),
  502: ({ retryAfter }) => ({
    title: "The server cannot be reached behind its gateway",
    sentences: ["It may be starting or stopping.", later(retryAfter)],
    again: true,
  }),
  503: ({ message, retryAfter }) => ({
    title: "The server takes no requests now",
    sentences: [said(message) || "It may be starting, stopping or full.", later(retryAfter)],
    again: true,
  }),
  504: ({ message, retryAfter }) => ({
    title: "The answer took too long",
    sentences: [said(message) || "The server gave up on it.", "Lower max tokens, or try again when it is less busy.", later(retryAfter, "")],
    again: true,
  }),
};

function described(failure) {
  const known = failure?.name === "Failure" && Object.hasOwn(KINDS, failure.kind);
  const { title, sentences, again } = known ? KINDS[failure.kind](fieldsOf(failure)) : mistake(failure);
  return { title, sentences: sentences.filter(Boolean), again };
}

/** A failure that the server gave no words for has its kind as the message. */
function fieldsOf({ kind, status, message, param, code, retryAfter }) {
  return { status, message: message === kind ? "" : message, param, code, retryAfter };
}

const mistake = (error) => ({
  title: "Something in this page went wrong",
  sentences: [said(error?.message ?? error), "What was written is still here."],
  again: true,
});

/** The server's words as a sentence; "" if it gave none. */
function said(message) {
  const words = readable(message);
  return words && !/[.!?…]$/.test(words) ? `${words}.` : words;
}

const FIELDS = {
  messages: "the conversation",
  prompt: "the prompt",
  max_tokens: "max tokens",
  temperature: "the temperature",
  top_p: "top-p",
  seed: "the seed",
  model: "the model",
};

/** "the weight of helpful", "the filter", "the request". */
function field({ param }) {
  const name = readable(param);
  if (!name) return "the request";
  const weight = /^eft\.weights\.(.+)$/.exec(name);
  if (weight) return `the weight of ${weight[1]}`;
  if (name.startsWith("eft.")) return `the ${name.slice("eft.".length).replaceAll("_", " ")}`;
  const top = name.split(/[.[]/)[0];
  return Object.hasOwn(FIELDS, top) ? FIELDS[top] : name;
}

/** The server's message, with the field in front unless it names it. */
function withField({ message, param }) {
  const [words, name] = [readable(message), readable(param)];
  return !name || !words || words.includes(name) ? words : `${name}: ${words}`;
}

function later(seconds, otherwise = "Try again in a moment.") {
  if (seconds === null || seconds === undefined) return otherwise;
  if (seconds < 1) return "Try again now.";
  return `Try again in ${seconds < 120 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`}.`;
}
