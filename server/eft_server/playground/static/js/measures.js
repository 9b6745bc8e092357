/** What tokens are tinted by. Pure: a measure gives a number for a token, and a number gives a tint. */

export const LEVELS = 8;

/**
 * @typedef {{id: string, group: string, name: string, about: string, signed: boolean, full: number, unit: string,
 *   of: (token: object) => (number|null), show: (value: number) => string}} Measure
 *   full: the value at which the tint is strongest.
 */

const nats = (value) => `${signedNumber(value)} nats`;
const signedNumber = (value) => `${value <= -0.005 ? "−" : ""}${Number.isInteger(value) ? Math.abs(value) : Math.abs(value).toFixed(2)}`;

/** The probability of a log-probability; null, which is impossible, is 0. */
export const chance = (logprob) => (logprob === null || logprob === undefined ? 0 : Math.exp(logprob));

/** "92 %", "0.3 %", "< 0.01 %". */
export function percent(probability) {
  const hundredths = probability * 100;
  if (hundredths >= 99.95 && hundredths < 100) return "99.9+ %";
  if (hundredths >= 10) return `${hundredths.toFixed(hundredths >= 99 ? 1 : 0)} %`;
  if (hundredths >= 0.1) return `${hundredths.toFixed(1)} %`;
  return hundredths >= 0.01 ? `${hundredths.toFixed(2)} %` : hundredths > 0 ? "< 0.01 %" : "0 %";
}

const PLAIN = [
  {
    id: "none",
    name: "nothing",
    about: "No tint. Tokens can still be looked at.",
    full: 1,
    of: () => null,
    show: String,
  },
  {
    id: "probability",
    name: "probability",
    about: "How likely the token was, before temperature and top-p: the darker, the less likely.",
    full: 1,
    of: (token) => (token.logprob === null || token.logprob === undefined ? null : 1 - Math.exp(token.logprob)),
    show: (value) => percent(1 - value),
  },
  {
    id: "entropy",
    name: "entropy",
    about: "How undecided the model was at this point, in nats.",
    full: 3,
    of: (token) => token.explained?.entropy ?? null,
    show: nats,
  },
  {
    id: "kl",
    name: "KL to the base",
    about: "How far the experts moved the distribution away from the base's here, in nats.",
    full: 2,
    of: (token) => token.explained?.kl ?? null,
    show: nats,
  },
  {
    id: "rank",
    name: "rank",
    about: "The token's place among all tokens: untinted is the most likely one.",
    full: 6,
    of: (token) => (token.explained?.rank ? Math.log2(token.explained.rank) : null),
    show: (value) => `rank ${Math.round(2 ** value)}`,
  },
];

function ofExpert(expert) {
  return [
    {
      id: `push:${expert}`,
      group: "pushed by",
      name: expert,
      about: `What ${expert} added to this token's logit, with its weight: orange for it, blue against it.`,
      signed: true,
      full: 3,
      of: (token) => token.explained?.contributions?.experts?.[expert] ?? null,
      show: nats,
    },
    {
      id: `reward:${expert}`,
      group: "reward of",
      name: expert,
      about: `How much likelier ${expert}'s fine-tuning made this token, whatever its weight here.`,
      signed: true,
      full: 3,
      of: (token) => token.explained?.rewards?.[expert] ?? null,
      show: nats,
    },
  ];
}

/** @returns {Measure[]} for a family with these experts. */
export function measuresFor(experts) {
  const own = experts.map(ofExpert);
  const rest = [0, 1].flatMap((kind) => own.map((pair) => pair[kind]));
  return [...PLAIN, ...rest].map((measure) => ({ group: "", signed: false, ...measure }));
}

/** The tint's class: "" for none, "t1" to "t8", and for signed measures "p1" to "p8" and "n1" to "n8". */
export function tint(measure, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const share = Math.min(1, Math.abs(value) / measure.full);
  const level = Math.round(Math.sqrt(share) * LEVELS);
  if (level === 0) return "";
  return `${measure.signed ? (value > 0 ? "p" : "n") : "t"}${level}`;
}
