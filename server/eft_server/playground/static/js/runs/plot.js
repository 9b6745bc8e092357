/** A plot of scores over the value that is swept. The rows say the same in words. */

import { html, useEffect, useRef } from "../../vendor/preact.js";
import { figure } from "./answers.js";

const HEIGHT = 230;
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4]];
const COLOURS = ["--for-bar", "--against-bar", "--alarm", "--accent"];
const VENDOR = new URL("../../vendor/", import.meta.url);

let loading = null;

/** uPlot is a script of the old kind: it is loaded once, when it is first wanted. */
function loadPlot() {
  loading ??= new Promise((resolve, reject) => {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("uplot.css", VENDOR).href });
    const script = Object.assign(document.createElement("script"), { src: new URL("uplot.js", VENDOR).href });
    script.onload = () => resolve(globalThis.uPlot);
    script.onerror = () => {
      loading = null;
      reject(new Error("The plot cannot be loaded."));
    };
    document.head.append(style, script);
  });
  return loading;
}

/**
 * @typedef {{name: string, values: (number|null)[], colour?: string}} Line colour: the name of one of the page's
 * @param {{label: string, values: number[], lines: Line[], flips: number[], onPoint: (at: number|null) => void}} props
 *   flips: the places whose answer differs from the one before.
 */
export function Plot({ label, values, lines, flips, onPoint }) {
  const place = useRef(null);
  const latest = useRef(null);
  latest.current = { flips, onPoint };
  const shape = JSON.stringify([label, values, lines.map(({ name }) => name)]);
  const plot = useRef(null);
  useEffect(() => {
    let gone = false;
    const end = [];
    loadPlot().then((UPlot) => {
      if (gone) return;
      const draw = () => {
        plot.current?.destroy();
        plot.current = new UPlot(optionsOf(place.current, label, lines, latest), dataOf(values, lines), place.current);
      };
      draw();
      end.push(watch(place.current, plot, draw));
    }, () => {});
    return () => {
      gone = true;
      end.forEach((stop) => stop());
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(dataOf(values, lines)), [JSON.stringify(lines), flips.join()]);
  return html`<div class="plot" data-testid="sweep-plot" role="img" aria-label=${`Scores over ${label}; the table below has the same figures`} ref=${place}></div>`;
}

const dataOf = (values, lines) => [values, ...lines.map((line) => line.values)];

/** Follow the width and the colour scheme. */
function watch(element, plot, draw) {
  const size = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
  const scheme = new MutationObserver(draw);
  const system = matchMedia("(prefers-color-scheme: dark)");
  size.observe(element);
  scheme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-scheme"] });
  system.addEventListener("change", draw);
  return () => {
    size.disconnect();
    scheme.disconnect();
    system.removeEventListener("change", draw);
  };
}

function optionsOf(element, label, lines, latest) {
  const colour = colours(element);
  const axis = { stroke: colour("--text"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    scales: { x: { time: false } },
    cursor: { points: { size: 8 } },
    legend: { markers: { dash: (_, at) => (at > 1 ? "dashed" : "solid") } },
    axes: [
      { ...axis, label, labelSize: 20, size: 34 },
      { ...axis, label: "nats a token", labelSize: 20, size: 48, values: (_, ticks) => ticks.map((tick) => figure(tick, 2)) },
    ],
    series: [
      { label, value: (_, value) => (value === null ? "–" : String(value)) },
      ...lines.map(({ name, colour: own }, at) => ({
        label: name,
        stroke: colour(own ?? COLOURS[at % COLOURS.length]),
        width: 2,
        dash: DASHES[at % DASHES.length],
        points: { show: true, size: 6 },
        value: (_, value) => figure(value),
      })),
    ],
    hooks: {
      drawAxes: [(drawn) => drawFlips(drawn, latest.current.flips, colour("--text"))],
      setCursor: [({ cursor }) => latest.current.onPoint(cursor.idx ?? null)],
    },
  };
}

/** A line half-way between two values with different answers. */
function drawFlips(drawn, flips, stroke) {
  const { ctx, bbox, data } = drawn;
  ctx.save();
  Object.assign(ctx, { strokeStyle: stroke, globalAlpha: 0.45, lineWidth: devicePixelRatio });
  ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const at of flips) {
    const x = Math.round(drawn.valToPos((data[0][at - 1] + data[0][at]) / 2, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** The colours of the scheme that is on, as a canvas wants them. */
function colours(element) {
  const probe = element.appendChild(document.createElement("i"));
  const known = {};
  for (const name of [...COLOURS, "--text", "--quiet", "--line"]) {
    probe.style.color = `var(${name})`;
    known[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return (name) => known[name];
}
