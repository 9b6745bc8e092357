/** The request of the page as text to copy: for curl, OpenAI's client in Python, and eft_client. Pure. */

/** A longer argument than this is no argument for Linux (128 KiB); the body then comes through a pipe. */
const LONGEST_ARGUMENT = 100_000;

/**
 * @typedef {{settings: import("./settings.js").Settings, conversation: {mode: "chat"|"text", messages: object[], prompt: string},
 *   eft: object|undefined, base: string}} Request
 *   eft: what eftOf gives; base: the server's address up to and with /v1
 */

/** The address of the API beside the page at this location. */
export function baseUrl(location) {
  const path = location.pathname.replace(/\/+$/, "").replace(/\/playground$/, "");
  return `${location.origin}${path}/v1`;
}

/**
 * @param {Request} request
 * @returns {{curl: string, openai: string, eft: string}}
 */
export function snippets(request) {
  return { curl: curl(request), openai: openai(request), eft: eftClient(request) };
}

/** The body of the request, as it is sent for a whole answer. */
export function bodyOf({ settings, conversation, eft }) {
  const { messages, prompt } = questionOf(conversation);
  return {
    model: settings.model,
    ...(messages ? { messages } : { prompt }),
    ...samplingOf(settings),
    ...(eft && Object.keys(eft).length ? { eft } : {}),
  };
}

function questionOf({ mode, messages, prompt }) {
  if (mode === "text") return { prompt };
  return { messages: messages.map(({ role, content }) => ({ role, content })) };
}

function samplingOf({ max_tokens, temperature, top_p, seed }) {
  return { max_tokens, temperature, top_p, ...(seed === null || seed === undefined ? {} : { seed }) };
}

const isChat = ({ conversation }) => conversation.mode !== "text";

export function curl(request) {
  const path = isChat(request) ? "chat/completions" : "completions";
  const body = json(bodyOf(request));
  const head = [
    `curl -s ${shell(`${request.base}/${path}`)}`,
    "-H 'Content-Type: application/json'",
    '-H "Authorization: Bearer $EFT_API_KEY"',
  ];
  const argument = shell(body);
  if (new TextEncoder().encode(argument).length <= LONGEST_ARGUMENT) return [...head, `-d ${argument}`].join(" \\\n  ");
  // No line of the body is this word: each begins with a bracket, a brace, a quote or a space.
  return `${[...head, "--data-binary @- <<'END'"].join(" \\\n  ")}\n${body}\nEND`;
}

export function openai(request) {
  const { eft, ...body } = bodyOf(request);
  const behaviour = eft ? { extra_body: { eft } } : {};
  const [method, printed] = isChat(request)
    ? ["chat.completions", "answer.choices[0].message.content"]
    : ["completions", "answer.choices[0].text"];
  return `import os

from openai import OpenAI

client = OpenAI(
    base_url=${python(request.base)},
    api_key=os.environ.get("EFT_API_KEY", "none"),
)
answer = client.${method}.create(
${keywords({ ...body, ...behaviour })})
print(${printed})`;
}

export function eftClient(request) {
  const { eft, messages, prompt, ...options } = bodyOf(request);
  const method = messages ? "chat" : "complete";
  return `import os

from eft_client import EftClient

client = EftClient(
    ${python(request.base)},
    api_key=os.environ.get("EFT_API_KEY"),
)
answer = client.${method}(
    ${python(messages ?? prompt, 1)},
${keywords({ ...options, ...eft })})
print(answer.text)`;
}

const keywords = (values) =>
  Object.entries(values)
    .map(([name, value]) => `    ${name}=${python(value, 1)},\n`)
    .join("");

/** Characters that are not seen, or that turn around what stands beside them. */
const UNSEEN = /[\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\uffff]/g;
const ASTRAL_UNSEEN = /[\u{e0000}-\u{e0fff}]/gu;
const escaped = (text) =>
  [...Array(text.length).keys()].map((at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, "0")}`).join("");

/** JSON on several lines; what cannot be seen is escaped. */
export function json(value) {
  return JSON.stringify(value, null, 2).replace(UNSEEN, escaped).replace(ASTRAL_UNSEEN, escaped);
}

/** One word for a POSIX shell. */
export const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A value as a literal of Python; objects and lists on several lines. */
export function python(value, depth = 0) {
  if (value === null || value === undefined) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (typeof value === "string") return pythonText(value);
  if (typeof value === "number") return pythonNumber(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => python(item, depth + 1))
    : Object.entries(value).map(([name, item]) => `${pythonText(name)}: ${python(item, depth + 1)}`);
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length + 4 * depth <= 88 && !line.includes("\n")) return line;
  const inner = "    ".repeat(depth + 1);
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${"    ".repeat(depth)}${close}`;
}

function pythonNumber(value) {
  if (Number.isFinite(value)) return String(value);
  return `float("${Number.isNaN(value) ? "nan" : value < 0 ? "-inf" : "inf"}")`;
}

/** JSON's escapes are Python's, but for characters beyond the first plane, which Python writes as one. */
function pythonText(text) {
  return JSON.stringify(text)
    .replace(UNSEEN, escaped)
    .replace(ASTRAL_UNSEEN, (character) => `\\U${character.codePointAt(0).toString(16).padStart(8, "0")}`);
}
