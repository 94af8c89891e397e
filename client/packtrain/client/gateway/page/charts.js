// Curves of the last quarter of an hour, hour or day, drawn by uPlot.
//
// uPlot paints on a canvas, where style sheets do not reach: its colours are read from the page's own, once for each
// drawing, so they follow the theme.

import { useEffect, useRef, useState } from "preact/hooks";
import { history } from "./api.js";
import { duration, minute, rate } from "./format.js";
import { Panel, html } from "./ui.js";

const SPANS = [[900, "15 m"], [3600, "1 h"], [86400, "24 h"]];
const EVERY_MS = 5000;

const CHARTS = [
  { title: "Tokens per second", fill: true, show: rate, lines: [["tokens_per_s", "tokens/s", "--accent"]] },
  { title: "Waiting jobs", fill: true, show: rate, lines: [["interactive", "interactive", "--accent"], ["bulk", "bulk", "--kv"]] },
  { title: "Wait for the first token", points: true, show: duration, lines: [["first_p50_ms", "median", "--accent"], ["first_p95_ms", "95 %", "--bad"]] },
];

export function Charts({ theme }) {
  const [span, setSpan] = useState(900);
  const [curves, setCurves] = useState(null);
  useEffect(() => {
    let isOver = false;
    const look = () => document.hidden || history(span).then((found) => isOver || setCurves({ ...found, span }), () => {});
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => { isOver = true; clearInterval(timer); };
  }, [span]);
  const tabs = html`<div class="tabs" role="group" aria-label="Time shown">
    ${SPANS.map(([seconds, label]) => html`<button type="button" aria-pressed=${span === seconds} onClick=${() => setSpan(seconds)}>${label}</button>`)}
  </div>`;
  return html`<${Panel} id="curves" title="History" aside=${tabs}>
    <div class="charts">${CHARTS.map((chart) => html`<${Chart} key=${chart.title + theme} chart=${chart} curves=${curves} />`)}</div>
  <//>`;
}

function Chart({ chart, curves }) {
  const place = useRef(null);
  const drawn = useRef(null);
  const data = curves ? [curves.at_ms.map((ms) => ms / 1000), ...chart.lines.map(([name]) => curves[name])] : null;
  useEffect(() => {
    const box = place.current;
    const size = () => ({ width: box.clientWidth, height: 170 });
    drawn.current = new uPlot({ ...options(chart, box), ...size() }, data ?? [[], ...chart.lines.map(() => [])], box);
    const watch = new ResizeObserver(() => drawn.current.setSize(size()));
    watch.observe(box);
    return () => { watch.disconnect(); drawn.current.destroy(); };
  }, []);
  useEffect(() => { if (data) drawn.current.setData(data); }, [curves]);
  const latest = chart.lines.map(([name, label]) => `${label} ${said(chart, curves?.[name])}`);
  return html`<figure>
    <figcaption>${chart.title} <span class="keys">${chart.lines.map(([name, label, colour]) => html`<span><i style=${{ background: `var(${colour})` }}></i>${label} <b>${said(chart, curves?.[name])}</b></span>`)}</span></figcaption>
    <div ref=${place} role="img" aria-label=${`${chart.title}, latest: ${latest.join(", ")}`}></div>
  </figure>`;
}

/** The latest value of a curve in words. */
function said(chart, values) {
  const known = values?.filter((value) => value !== null) ?? [];
  return known.length ? chart.show(known.at(-1)) : "–";
}

function options(chart, box) {
  const colour = (name, alpha = 1) => {
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    box.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return alpha === 1 ? found : found.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
  };
  const axis = { stroke: colour("--quiet"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: colour("--line"), width: 1 } };
  return {
    padding: [10, 8, 0, 0],
    legend: { show: false },
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: { y: { range: (_, __, most) => [0, Math.max(most || 0, 1) * 1.15] } },
    axes: [{ ...axis, grid: { show: false }, space: 60, size: 28, values: (_, ticks) => ticks.map((tick) => minute(tick * 1000)) }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => chart.show(tick)) }],
    series: [
      {},
      ...chart.lines.map(([, label, name]) => ({
        label,
        stroke: colour(name),
        width: 1.75,
        fill: chart.fill ? colour(name, 0.12) : undefined,
        points: { show: chart.points === true, size: 5, fill: colour(name) },
      })),
    ],
  };
}
