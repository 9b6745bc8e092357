/**
 * What data from outside has to look like. A shape is a function (value, path) that gives a clean copy of the value, with
 * the properties that it knows and no others, or throws a Misfit that says in words what is wrong and where. Pure.
 */

/** Data that is not what it should be; the message is for whoever brought it. */
export class Misfit extends Error {
  constructor(path, text) {
    super(`${path} ${text}`);
    this.name = "Misfit";
  }
}

/** A value in a message: short, and without what cannot be seen. */
export function shown(value) {
  if (value === undefined) return "missing";
  if (value === null || typeof value !== "object") {
    const text = typeof value === "string" ? JSON.stringify(value) : String(value);
    const short = text.length > 40 ? `${text.slice(0, 40)}…` : text;
    return short.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");
  }
  return Array.isArray(value) ? "a list" : "an object";
}

const fail = (path, value, expected) => {
  throw new Misfit(path, `is ${shown(value)}; expected ${expected}`);
};

export const text = (most) => (value, path) => {
  if (typeof value !== "string") fail(path, value, "text");
  if (value.length > most) throw new Misfit(path, `has ${value.length} characters; allowed: up to ${most}`);
  return value;
};

/** A finite number within [min, max]; JSON's 1e999 is none. */
export const number = (min = -Infinity, max = Infinity) => (value, path) => {
  const bounded = min !== -Infinity || max !== Infinity;
  const expected = bounded ? `a number from ${min} to ${max}` : "a finite number";
  if (typeof value !== "number" || !Number.isFinite(value) || value < min || value > max) fail(path, value, expected);
  return value;
};

export const whole = (min, max) => (value, path) => {
  if (!Number.isSafeInteger(value) || value < min || value > max) fail(path, value, `a whole number from ${min} to ${max}`);
  return value;
};

export const flag = (value, path) => (typeof value === "boolean" ? value : fail(path, value, "true or false"));

export const oneOf = (...values) => (value, path) =>
  values.includes(value) ? value : fail(path, value, values.map((each) => JSON.stringify(each)).join(", "));

export const nullable = (shape) => (value, path) => (value === null || value === undefined ? null : shape(value, path));

export const list = (shape, most) => (value, path) => {
  if (!Array.isArray(value)) fail(path, value, "a list");
  if (value.length > most) throw new Misfit(path, `has ${value.length} entries; allowed: up to ${most}`);
  return value.map((item, at) => shape(item, `${path}[${at}]`));
};

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** An object with these properties; a shape marked by `optional` may be missing. Others are left out. */
export const object = (shapes) => (value, path) => {
  if (!isObject(value)) fail(path, value, "an object");
  const clean = {};
  for (const [name, shape] of Object.entries(shapes)) {
    const given = Object.hasOwn(value, name) ? value[name] : undefined;
    if (given === undefined && shape.optional) continue;
    clean[name] = shape(given, path ? `${path}.${name}` : name);
  }
  return clean;
};

export const optional = (shape) => Object.assign((value, path) => shape(value, path), { optional: true });

/** An object whose property names the data chooses; `__proto__` is no name. */
export const record = (shape, most, nameOf = (name) => name) => (value, path) => {
  if (!isObject(value)) fail(path, value, "an object");
  const entries = Object.entries(value);
  if (entries.length > most) throw new Misfit(path, `has ${entries.length} entries; allowed: up to ${most}`);
  const clean = {};
  for (const [name, item] of entries) {
    if (name === "__proto__" || name.length > 200) throw new Misfit(path, `has the name ${shown(name)}, which is not allowed`);
    clean[nameOf(name)] = shape(item, `${path}.${shown(name).replace(/^"|"$/g, "")}`);
  }
  return clean;
};
