// A line chart over the time until now: from zero up, or by powers of ten for what spans many.
import { compact, svg } from "./dom.js";

const HEIGHT = 170;
const LEFT = 52;
const RIGHT = 10;
const TOP = 12;
const BOTTOM = 24;
const CLASSES = ["first", "second"];

// Marks of an axis from zero to the least of 1, 2, 5, 10, 20 ... that is above all ``values``.
function evenMarks(values) {
  const most = Math.max(1, ...values);
  const power = 10 ** Math.floor(Math.log10(most));
  const top = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= most * 0.9999);
  return [0, top / 2, top];
}

// Powers of ten around all ``values``.
function powerMarks(values) {
  const first = Math.floor(Math.log10(Math.min(1, ...values)));
  const last = Math.max(first + 1, Math.ceil(Math.log10(Math.max(10, ...values))));
  return Array.from({ length: last - first + 1 }, (_, step) => 10 ** (first + step));
}

export function drawChart(place, points, lines, { now, span, gap, powers }) {
  const width = Math.max(200, place.clientWidth);
  const values = points.flatMap((point) => lines.map((line) => point[line] ?? null)).filter((value) => value !== null);
  const marks = powers ? powerMarks(values) : evenMarks(values);
  const scale = powers ? Math.log10 : (value) => value;
  const [low, high] = [scale(marks[0]), scale(marks[marks.length - 1])];
  const x = (at) => LEFT + (width - LEFT - RIGHT) * (1 - (now - at) / span);
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * (scale(value) - low)) / (high - low);
  const chart = svg("svg", { width, height: HEIGHT, "aria-hidden": "true" });
  for (const value of marks) {
    chart.append(
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, compact(value)),
    );
  }
  chart.append(
    svg("text", { x: LEFT, y: HEIGHT - 6 }, `${span / 60_000} min ago`),
    svg("text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, "now"),
  );
  if (!values.length) chart.append(svg("text", { class: "none", x: width / 2, y: HEIGHT / 2 }, "nothing measured yet"));
  lines.forEach((line, index) => {
    chart.append(svg("path", { class: CLASSES[index], d: path(points, line, x, y, gap) }));
  });
  place.replaceChildren(chart);
}

// Interrupted where a value is missing; a lone point is a dot, by the line's round end.
function path(points, line, x, y, gap) {
  let before = -Infinity;
  const steps = [];
  for (const point of points) {
    const value = point[line] ?? null;
    if (value === null) continue;
    const place = `${x(point.at).toFixed(1)},${y(value).toFixed(1)}`;
    steps.push(point.at - before > gap ? `M${place}h0` : `L${place}`);
    before = point.at;
  }
  return steps.join("");
}
