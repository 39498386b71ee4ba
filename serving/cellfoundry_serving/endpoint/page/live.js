// Throughput, latency and queue from readings of /metrics: tiles and the last two minutes as lines.
import { ask } from "./ask.js";
import { drawChart } from "./chart.js";
import { number } from "./dom.js";
import { every } from "./every.js";
import { parse, quantile, rise, total } from "./metrics.js";

const PERIOD_MS = 1000;
const SHOWN_MS = 120_000;
const LATENCY_MS = 10_000; // quantiles of a single second would be of a few requests
const GAP_MS = 3000; // longer between two readings: the page was out of view

const CHARTS = {
  throughput: { lines: ["cells"], says: "Cells a second" },
  latency: { lines: ["p50", "p99"], says: "Latency p50 and p99 in ms", powers: true },
  stages: { lines: ["queueing", "computing"], says: "p50 in the queue and in the engine in ms", powers: true },
  queue: { lines: ["queued"], says: "Tokens waiting" },
};

const readings = [];
const points = [];

export function startMetrics() {
  every(PERIOD_MS, async () => {
    const response = await ask("metrics");
    if (!response.ok) return;
    readings.push({ at: performance.now(), ...parse(await response.text()) });
    while (readings[0].at < readings[readings.length - 1].at - LATENCY_MS) readings.shift();
    points.push(pointNow());
    while (points[0].at < points[points.length - 1].at - SHOWN_MS) points.shift();
    show(points[points.length - 1]);
  });
}

function pointNow() {
  const now = readings[readings.length - 1];
  const point = { at: now.at, queued: total(now, "cellfoundry_queued_tokens") };
  const before = readings[readings.length - 2];
  if (!before || now.at - before.at > GAP_MS) return point;
  const seconds = (now.at - before.at) / 1000;
  const rate = (name) => {
    const risen = rise(before, now, name);
    return risen === null ? null : risen / seconds;
  };
  const first = readings[0];
  const milliseconds = (name, share, labels) => {
    const found = quantile(first, now, name, share, labels);
    return found === null ? null : found * 1000;
  };
  const hits = rise(first, now, "cellfoundry_cache_hits_total");
  const misses = rise(first, now, "cellfoundry_cache_misses_total");
  return {
    ...point,
    cells: rate("cellfoundry_cells_total"),
    requests: rate("cellfoundry_request_seconds_count"),
    p50: milliseconds("cellfoundry_request_seconds", 0.5),
    p99: milliseconds("cellfoundry_request_seconds", 0.99),
    queueing: milliseconds("cellfoundry_stage_seconds", 0.5, { stage: "queue" }),
    computing: milliseconds("cellfoundry_stage_seconds", 0.5, { stage: "engine" }),
    cached: hits + misses > 0 ? (100 * hits) / (hits + misses) : null,
  };
}

function show(point) {
  const units = { p50: " ms", p99: " ms", cached: " %" };
  for (const tile of document.querySelectorAll("[data-tile]")) {
    const value = point[tile.dataset.tile] ?? null;
    tile.textContent = number(value) + (value === null ? "" : (units[tile.dataset.tile] ?? ""));
  }
  for (const [id, { lines, says, powers }] of Object.entries(CHARTS)) {
    const place = document.getElementById(id);
    drawChart(place, points, lines, { now: point.at, span: SHOWN_MS, gap: GAP_MS, powers });
    const values = lines.map((line) => number(point[line] ?? null)).join(" and ");
    place.setAttribute("aria-label", `${says} over the last two minutes, now ${values}`);
  }
}
