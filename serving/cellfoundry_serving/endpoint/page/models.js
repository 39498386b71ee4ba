// The models served: what runs and why, sizes, origin, hashes and the card.
import { element, number } from "./dom.js";

let shown = "";

export function showModels(place, models) {
  const text = JSON.stringify(models);
  if (text === shown) return; // an opened card stays open
  shown = text;
  place.replaceChildren(...models.map(modelPanel));
}

function modelPanel(model) {
  const state = model.ready ? ["Ready", "chip good"] : ["Not ready", "chip bad"];
  const head = element(
    "div",
    { className: "row" },
    element("h3", { textContent: model.name }),
    element("span", { className: "chip", textContent: `version ${model.version}` }),
    element("span", { className: "chip", textContent: `${model.engine}, ${model.precision}` }),
    element("span", { className: state[1], textContent: state[0] }),
  );
  const panel = element("article", { className: "model" }, head, element("p", { textContent: model.why }));
  panel.append(facts(model.facts), fold("Sizes", facts(model.sizes)));
  if (model.card) panel.append(fold("Model card", element("pre", { textContent: model.card })));
  return panel;
}

function facts(values) {
  const list = element("dl", { className: "facts" });
  for (const [name, value] of Object.entries(values)) {
    const text = typeof value === "number" ? number(value, 6) : String(value);
    list.append(
      element("dt", { textContent: name.replaceAll("_", " ") }),
      element("dd", { textContent: text }),
    );
  }
  return list;
}

function fold(title, content) {
  return element("details", {}, element("summary", { textContent: title }), content);
}
