// Cells in a plane: coloured by a column, with a legend and the values of the cell under the pointer.
import { element, svg } from "./dom.js";

const SIZE = 640;
const MARGIN = 16;
const NEAR = 12; // pixels within which a cell is under the pointer
const TOLD_COLUMNS = 6;
const FIRST_COLOURS = [
  "#4c86c6", "#e08a2e", "#4fa36b", "#cf5b5b", "#9273c4", "#a8795b", "#d678b6", "#8a8f3c", "#2fa5b5", "#7f8a99",
];

let places = []; // of the cells drawn: {cell, x, y}
let height = SIZE; // of the plot; its width is SIZE

// Of the value that is number ``rank`` by frequency; behind the first ten, hues a golden angle apart.
function colour(rank) {
  if (rank < FIRST_COLOURS.length) return FIRST_COLOURS[rank];
  return `hsl(${(rank * 137.5) % 360} 55% ${[62, 46][rank % 2]}%)`;
}

export function drawCells(answer) {
  const shown = answer.x.flatMap((x, cell) => (x === null ? [] : [{ cell, x, y: answer.y[cell] }]));
  const range = (axis) => {
    const values = shown.map((place) => place[axis]).sort((a, b) => a - b);
    return [values[0], values[values.length - 1]];
  };
  const [[left, right], [bottom, top]] = [range("x"), range("y")];
  const scale = (SIZE - 2 * MARGIN) / Math.max(right - left, top - bottom, 1e-9);
  height = Math.max(SIZE / 2, (top - bottom) * scale + 2 * MARGIN);
  places = shown.map(({ cell, x, y }) => ({
    cell,
    x: SIZE / 2 + (x - (left + right) / 2) * scale,
    y: height / 2 - (y - (bottom + top) / 2) * scale,
  }));
}

// Draws all cells with the colours of ``column``; null draws them in one.
export function colourBy(answer, column) {
  const { categories, codes } = answer.columns[column] ?? { categories: [], codes: [] };
  const groups = [...categories.map((value) => ({ value, cells: [] })), { value: null, cells: [] }];
  for (const place of places) {
    const code = codes[place.cell] ?? -1;
    groups[code < 0 ? categories.length : code].cells.push(place);
  }
  const ordered = groups.filter((group) => group.cells.length).sort((a, b) => b.cells.length - a.cells.length);
  ordered.forEach((group, rank) => {
    group.colour = column !== null && group.value === null ? "#8888" : colour(rank);
  });
  const says = column === null ? "" : `, coloured by ${column}`;
  const plot = svg("svg", {
    viewBox: `0 0 ${SIZE} ${height.toFixed(0)}`,
    role: "img",
    "aria-label": `UMAP of ${places.length.toLocaleString("en")} cells${says}`,
  });
  const radius = Math.min(4, Math.max(1.6, 80 / Math.sqrt(places.length)));
  // Rare values last, so that they lie on top.
  for (const group of ordered) {
    group.drawn = svg("g", { fill: group.colour });
    for (const { x, y } of group.cells) {
      group.drawn.append(svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: radius.toFixed(1) }));
    }
    plot.append(group.drawn);
  }
  const place = document.getElementById("plot");
  place.classList.remove("alone");
  place.replaceChildren(plot);
  plot.addEventListener("pointermove", (event) => tell(event, plot, answer, column));
  plot.addEventListener("pointerdown", (event) => tell(event, plot, answer, column));
  plot.addEventListener("pointerleave", () => {
    document.getElementById("tooltip").hidden = true;
  });
  showLegend(place, column === null ? [] : ordered);
}

function showLegend(place, groups) {
  const buttons = groups.map((group) => {
    const swatch = svg("svg", { width: 12, height: 12, "aria-hidden": "true" });
    swatch.append(svg("circle", { cx: 6, cy: 6, r: 5.5, fill: group.colour }));
    return element(
      "button",
      { type: "button", ariaPressed: "false" },
      swatch,
      element("span", { className: "value", textContent: group.value ?? "no value" }),
      element("span", { className: "count", textContent: group.cells.length.toLocaleString("en") }),
    );
  });
  buttons.forEach((button, number) => {
    button.addEventListener("click", () => {
      const alone = button.ariaPressed !== "true";
      buttons.forEach((other, index) => {
        other.ariaPressed = String(alone && index === number);
        groups[index].drawn.classList.toggle("chosen", index === number);
      });
      place.classList.toggle("alone", alone);
    });
  });
  document.getElementById("legend").replaceChildren(...buttons.map((button) => element("li", {}, button)));
}

// The tooltip of the nearest cell: the chosen column first.
function tell(event, plot, answer, column) {
  const box = plot.getBoundingClientRect();
  const scale = SIZE / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  let nearest = null;
  let distance = NEAR * scale;
  for (const place of places) {
    const away = Math.hypot(place.x - x, place.y - y);
    if (away < distance) [nearest, distance] = [place, away];
  }
  const tooltip = document.getElementById("tooltip");
  tooltip.hidden = nearest === null;
  if (nearest === null) return;
  const names = Object.keys(answer.columns).sort((a, b) => (b === column) - (a === column));
  const lines = names.slice(0, TOLD_COLUMNS).map((name) => {
    const { categories, codes } = answer.columns[name];
    return `${name}: ${categories[codes[nearest.cell]] ?? "no value"}`;
  });
  tooltip.textContent = [`cell ${nearest.cell + 1}`, ...lines].join("\n");
  tooltip.style.left = `${Math.max(0, Math.min(event.pageX + 14, document.documentElement.clientWidth - 200))}px`;
  tooltip.style.top = `${event.pageY + 14}px`;
}
