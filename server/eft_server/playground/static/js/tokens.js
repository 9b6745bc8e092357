/** TokenText: a text as tinted tokens, of which only those near the window are elements. */

import { Component, html } from "../vendor/preact.js";
import { tint } from "./measures.js";

const CHUNK = 40;
const MOST_CHUNKS = 9;
const PARTIAL = "\ufffd";

/** Whether a token is a part of a character. */
export const isPartial = (token) => token.text.includes(PARTIAL);

/** Whether a token would show nothing: no text at all, or control and format characters only. */
const isInvisible = ({ text }) => /^\p{C}*$/u.test(text) && !/[\n\t]/.test(text);

/** Whether a token is drawn in a frame, by what it is rather than by its text. */
const isOdd = (token) => Boolean(token.special) || isPartial(token) || isInvisible(token);

const hexadecimal = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");

const inBytes = (bytes) => `⟨${Array.from(bytes, hexadecimal).join(" ")}⟩`;

/** A token in words for a list or a label: white space, specials and parts of characters can be seen. */
export function shownToken({ text, bytes, special }) {
  if (special) return text || "end of turn";
  if (text.includes(PARTIAL)) return bytes ? inBytes(bytes) : "⟨…⟩";
  if (isInvisible({ text })) return text ? inBytes(new TextEncoder().encode(text)) : "∅";
  return text
    .replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length))
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥");
}

/** The plain text of tokens; special ones have none, and characters in parts are put together. */
export function plainText(tokens) {
  return pieces(tokens)
    .map((piece) => piece.plain)
    .join("");
}

/** Each token with the plain text that it shows; a character in parts belongs to its last part. */
export function pieces(tokens) {
  let waiting = [];
  return tokens.map((token, at) => {
    if (token.special) return { token, plain: "" };
    if (!isPartial(token)) return { token, plain: token.text };
    waiting = waiting.concat(token.bytes ?? []);
    const next = tokens[at + 1];
    if (next && isPartial(next) && !isWhole(waiting)) return { token, plain: "" };
    const plain = token.bytes ? new TextDecoder().decode(new Uint8Array(waiting)) : "";
    waiting = [];
    return { token, plain };
  });
}

function isWhole(bytes) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
    return bytes.length > 0;
  } catch {
    return false;
  }
}

/** "pepper, probability 92 %" for a screen reader. */
function spoken(token, measure, value) {
  const words = shownToken(token);
  return value === null ? words : `${words}, ${measure.group} ${measure.name} ${measure.show(value)}`.replace("  ", " ");
}

class Chunk extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    const names = ["first", "live", "measure", "selected", "focusable", "marks", "hidden"];
    if (names.some((name) => now[name] !== next[name]) || now.tokens.length !== next.tokens.length) return true;
    return now.tokens.some((token, at) => token !== next.tokens[at]);
  }

  componentDidMount() {
    this.props.watch(this.base, this.props.number);
  }

  componentWillUnmount() {
    this.props.unwatch(this.base);
  }

  render({ tokens, first, live }) {
    const shown = pieces(tokens);
    return html`<span class="chunk">${live ? shown.map((piece, at) => this.token(piece, first + at)) : resting(shown)}</span>`;
  }

  token({ token, plain }, index) {
    const { measure, selected, focusable } = this.props;
    const marks = this.props.marks.split(",");
    const value = measure.of(token);
    const names = ["tok", tint(measure, value)];
    if (/^ /.test(plain)) names.push("sp");
    if (plain.includes("\n")) names.push("nl");
    if (isOdd(token)) names.push("odd");
    if (index === selected) names.push("on");
    if (marks[index - this.props.first]) names.push(marks[index - this.props.first]);
    return html`<span
      key=${index}
      class=${names.join(" ")}
      role="button"
      tabindex=${index === focusable ? 0 : -1}
      data-testid="token"
      data-index=${index}
      data-id=${token.id}
      data-shown=${isOdd(token) ? shownToken(token) : undefined}
      aria-label=${spoken(token, measure, value)}
      aria-pressed=${index === selected ? "true" : "false"}
      >${plain}</span
    >`;
  }
}

/** A chunk away from the window: its text, and the few tokens that have none, so that nothing moves. */
function resting(shown) {
  const parts = [];
  for (const { token, plain } of shown) {
    if (isOdd(token)) parts.push(html`<span class="tok odd" data-shown=${shownToken(token)}>${plain}</span>`);
    else if (typeof parts.at(-1) === "string") parts.push(parts.pop() + plain);
    else parts.push(plain);
  }
  return parts;
}

const middleOf = (element) => {
  const { top, bottom } = element.getBoundingClientRect();
  return (top + bottom) / 2;
};

/** The classes of a chunk's marked tokens as one text, which is quick to compare. */
function marksIn(marks, first) {
  if (!marks?.size) return "";
  const names = Array.from({ length: CHUNK }, (_, at) => (marks.has(first + at) ? (marks.get?.(first + at) ?? "mark") : ""));
  return names.some(Boolean) ? names.join(",") : "";
}

/**
 * @param {{tokens: object[], measure: object, selected?: number|null, marks?: Set<number>|Map<number, string>, label: string,
 *   onPick?: (index: number) => void, onHover?: (index: number|null) => void}} props
 */
export class TokenText extends Component {
  constructor(props) {
    super(props);
    this.state = { live: new Set([0, 1]), focus: 0 };
    this.near = new Set();
    this.pointed = null;
    this.chunks = new Map();
    this.watch = (element, number) => {
      this.chunks.set(element, number);
      this.observer?.observe(element);
    };
    this.unwatch = (element) => {
      this.near.delete(this.chunks.get(element));
      this.chunks.delete(element);
      this.observer?.unobserve(element);
    };
    this.observer = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: "200px 0px" });
  }

  componentWillUnmount() {
    this.observer.disconnect();
  }

  seen(entries) {
    for (const { target, isIntersecting } of entries) {
      const number = this.chunks.get(target);
      if (isIntersecting) this.near.add(number);
      else this.near.delete(number);
    }
    this.enliven();
  }

  enliven() {
    const live = this.chosen();
    const before = this.state.live;
    if (live.size !== before.size || [...live].some((number) => !before.has(number))) this.setState({ live });
  }

  /** The chunks near the window; if they are too many, those nearest to what is pointed at, or to the window's middle. */
  chosen() {
    if (this.near.size <= MOST_CHUNKS) return new Set(this.near);
    const places = [...this.chunks].filter(([, number]) => this.near.has(number)).map(([element, number]) => [number, middleOf(element)]);
    const centre = places.find(([number]) => number === this.pointed)?.[1] ?? innerHeight / 2;
    places.sort(([, one], [, other]) => Math.abs(one - centre) - Math.abs(other - centre));
    return new Set(places.slice(0, MOST_CHUNKS).map(([number]) => number));
  }

  /** A chunk at rest that is pointed at or touched becomes one of tokens. */
  point({ target }) {
    const number = this.chunks.get(target.closest?.(".chunk")) ?? null;
    if (number === null || this.state.live.has(number)) return;
    this.pointed = number;
    this.enliven();
  }

  indexOf(event) {
    const element = event.target.closest?.("[data-index]");
    return element && this.base.contains(element) ? Number(element.dataset.index) : null;
  }

  move(event) {
    const index = this.indexOf(event);
    if (index === null) return;
    const last = this.props.tokens.length - 1;
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last }[event.key] ?? this.line(event, index);
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.props.onPick?.(index);
    } else if (next !== null && next >= 0 && next <= last) {
      event.preventDefault();
      this.focus(next);
    }
  }

  /** The token above or below. */
  line(event, index) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return null;
    const here = event.target.getClientRects()[0];
    const step = event.key === "ArrowUp" ? -1 : 1;
    for (let at = index + step; ; at += step) {
      const box = this.base.querySelector(`[data-index="${at}"]`)?.getClientRects()[0];
      if (!box) return null;
      const beyond = step > 0 ? box.top > here.top + 2 && box.right > here.left : box.top < here.top - 2 && box.left <= here.left;
      if (beyond) return at;
    }
  }

  focus(index) {
    this.setState({ focus: index, live: new Set([...this.state.live, Math.floor(index / CHUNK)]) }, () =>
      this.base.querySelector(`[data-index="${index}"]`)?.focus(),
    );
  }

  componentDidUpdate(before) {
    const { selected } = this.props;
    if (selected !== before.selected && selected !== null && selected !== undefined) this.setState({ focus: selected });
  }

  render({ tokens, measure, selected = null, marks, label, onHover, onPick }, { live, focus }) {
    const chunks = [];
    const focusable = Math.min(focus, tokens.length - 1);
    const within = (index, first) => (index !== null && index >= first && index < first + CHUNK ? index : -1);
    for (let first = 0; first < tokens.length; first += CHUNK) {
      const number = first / CHUNK;
      chunks.push(html`<${Chunk}
        key=${number}
        number=${number}
        first=${first}
        tokens=${tokens.slice(first, first + CHUNK)}
        live=${live.has(number)}
        measure=${measure}
        selected=${within(selected, first)}
        focusable=${within(focusable, first)}
        marks=${marksIn(marks, first)}
        watch=${this.watch}
        unwatch=${this.unwatch}
      />`);
    }
    return html`<div
      class="tokens"
      role="group"
      aria-label=${label}
      onPointerOver=${(event) => {
        this.point(event);
        if (event.pointerType !== "touch") onHover?.(this.indexOf(event));
      }}
      onPointerLeave=${(event) => event.pointerType !== "touch" && onHover?.(null)}
      onfocusin=${(event) => {
        const index = this.indexOf(event);
        if (index !== null) {
          this.setState({ focus: index });
          onHover?.(index);
        }
      }}
      onClick=${(event) => {
        const index = this.indexOf(event);
        if (index !== null && getSelection().isCollapsed) onPick?.(index);
      }}
      onKeyDown=${(event) => this.move(event)}
    >
      ${chunks}
    </div>`;
  }
}
