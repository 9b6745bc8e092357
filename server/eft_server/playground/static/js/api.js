/** The server's endpoints. Every address is relative to the page, so that it works below any prefix. */

const ROOT = new URL("../../", import.meta.url);

/**
 * Why a request has no answer.
 * kind: "refused" (the request was wrong), "unauthorised", "busy" (full, stopping or not ready: try again), "lost" (no
 * connection), "ended" (the server failed or gave up in the middle), "stopped" (by whoever sits here).
 */
export class Failure extends Error {
  constructor(kind, { status = 0, message = "", param = null, code = null, retryAfter = null } = {}) {
    super(message || kind);
    this.name = "Failure";
    Object.assign(this, { kind, status, param, code, retryAfter });
  }
}

/**
 * @typedef {{id: number, text: string, bytes?: number[], logprob: number|null, special?: boolean, explained?: object}}
 *   Token
 * @typedef {{index: number, tokens: Token[], finish_reason: string|null}} Progress
 */

/**
 * @param {{key?: () => (string|null), onUnauthorised?: (failure: Failure) => Promise<boolean>}} options
 *   key: the API key at this moment; onUnauthorised: asks for one, and resolves to whether to try again.
 */
export function createApi({ key = () => null, onUnauthorised = async () => false } = {}) {
  async function send(path, { body, signal } = {}) {
    for (;;) {
      const response = await request(path, { body, signal, key: key() });
      if (response.ok) return response;
      const failure = await failureOf(response);
      if (failure.kind !== "unauthorised" || !(await onUnauthorised(failure))) throw failure;
    }
  }
  const json = async (path, options) => {
    const response = await send(path, options);
    return whole(response, options?.signal);
  };
  return {
    /** The cards of GET /v1/models. */
    models: async (options) => (await json("v1/models", options)).data,
    /** @returns {Promise<{tokens: number[], count: number, max_model_len: number, prompts?: object}>} */
    tokenize: (body, options) => json("tokenize", { body, ...options }),
    explain: (body, options) => json("v1/eft/explain", { body, ...options }),
    score: (body, options) => json("v1/eft/score", { body, ...options }),
    /**
     * Continue token ids, as a stream; resolves when every choice has ended.
     * @param {{model: string, eft?: object, ids: number[], prompts?: object|null, settings: object, n?: number,
     *   signal?: AbortSignal, onEvent: (progress: Progress) => void}} options
     */
    async complete({ model, eft, ids, prompts = null, settings, n = 1, signal, onEvent }) {
      const body = completionBody({ model, eft, ids, prompts, settings, n });
      const response = await send("v1/completions", { body, signal });
      await readEvents(response, signal, (event) => {
        for (const choice of event.choices ?? []) onEvent(progressOf(choice));
      });
    },
  };
}

/** The request for POST /v1/completions that continues token ids. */
export function completionBody({ model, eft, ids, prompts, settings, n = 1 }) {
  const body = {
    model,
    prompt: ids,
    max_tokens: settings.max_tokens,
    temperature: settings.temperature,
    top_p: settings.top_p,
    n,
    stream: true,
    logprobs: 0,
    return_token_ids: true,
    skip_special_tokens: false,
  };
  if (settings.seed !== null && settings.seed !== undefined) body.seed = settings.seed;
  const behaviour = { ...eft, ...(prompts ? { prompts } : {}) };
  if (Object.keys(behaviour).length) body.eft = behaviour;
  return body;
}

function progressOf(choice) {
  const ids = choice.token_ids ?? [];
  const texts = choice.logprobs?.tokens ?? [];
  const logprobs = choice.logprobs?.token_logprobs ?? [];
  const ended = choice.finish_reason === "stop";
  const tokens = ids.map((id, at) => {
    const special = ended && at === ids.length - 1 && (choice.stop_reason ?? null) === null;
    // A part of a character has no text here; the character's last part has all of it.
    const text = texts[at] || (special ? "" : "\ufffd");
    return { id, text, logprob: logprobs[at] ?? null, ...(special ? { special } : {}) };
  });
  return { index: choice.index, tokens, finish_reason: choice.finish_reason ?? null };
}

async function request(path, { body, signal, key }) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(new URL(path, ROOT), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    throw interrupted(error, signal);
  }
}

function interrupted(error, signal) {
  if (error instanceof Failure) return error;
  if (signal?.aborted || error.name === "AbortError") return new Failure("stopped");
  return new Failure("lost", { message: String(error.message ?? error) });
}

async function whole(response, signal) {
  try {
    return await response.json();
  } catch (error) {
    throw interrupted(error, signal);
  }
}

async function failureOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, or nothing: the status says what there is to say.
  }
  return described(response.status, error, response.headers.get("retry-after"));
}

function described(status, error, retryAfter) {
  const kind =
    status === 401 || status === 403
      ? "unauthorised"
      : [408, 429, 502, 503, 504].includes(status)
        ? "busy"
        : status >= 500
          ? "ended"
          : "refused";
  const seconds = retryAfter === null ? NaN : Number(retryAfter);
  return new Failure(kind, {
    status,
    message: error.message ?? "",
    param: error.param ?? null,
    code: error.code ?? null,
    retryAfter: Number.isFinite(seconds) && seconds >= 0 ? seconds : null,
  });
}

/** Read server-sent events until [DONE]; one that is an error, and an end without it, are failures. */
async function readEvents(response, signal, onEvent) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Failure("lost", { message: "the stream ended early" });
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw inStream(event.error);
        onEvent(event);
      }
    }
  } catch (error) {
    throw interrupted(error, signal);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function inStream(error) {
  const { kind, ...rest } = described(error.status ?? 500, error, null);
  return new Failure(kind === "busy" ? "ended" : kind, { ...rest, message: error.message });
}
