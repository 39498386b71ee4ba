// "Drop an h5ad, see its UMAP": sends the file and shows the answer, or why there is none.
import { ask } from "./ask.js";
import { element, number } from "./dom.js";
import { colourBy, drawCells } from "./scatter.js";

const MEDIA_TYPE = "application/x-hdf5";

let running = null;

export function startUmap() {
  const drop = document.getElementById("drop");
  const file = document.getElementById("file");
  file.addEventListener("change", () => {
    if (file.files.length) send(file.files[0]);
    file.value = ""; // the same file may be chosen again
  });
  // Beside the frame too: a browser would leave the page for a file that is dropped there.
  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", type === "dragover");
      if (type === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
    });
  }
  document.getElementById("stop").addEventListener("click", () => running?.abort());
}

// The choice among several models; it stays as it is while they do.
export function offerModels(models) {
  const select = document.getElementById("model");
  const options = models.map(({ name, version }) =>
    element("option", {
      value: new URLSearchParams({ model: name, version }),
      textContent: `${name}, version ${version}`,
    }),
  );
  const values = (list) => [...list].map((option) => option.value).join("\n");
  if (values(select.options) !== values(options)) select.replaceChildren(...options);
  document.getElementById("several").hidden = models.length < 2;
}

async function send(file) {
  running?.abort();
  const controller = new AbortController();
  running = controller;
  const began = performance.now();
  showState({ error: "" });
  const tick = () => {
    const seconds = Math.round((performance.now() - began) / 1000);
    showState({ progress: `${file.name} is read, embedded and laid out: ${seconds} s` });
  };
  tick();
  const clock = setInterval(tick, 1000);
  let outcome = {};
  try {
    const response = await ask(`v1/umap?${document.getElementById("model").value}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": MEDIA_TYPE },
      signal: controller.signal,
    });
    const answer = await response.json();
    outcome = response.ok ? { answer } : { error: answer.error };
  } catch (error) {
    if (error.name !== "AbortError") {
      outcome = { error: "No answer came: the endpoint is away, or the file is larger than it takes." };
    }
  } finally {
    clearInterval(clock);
  }
  if (running !== controller) return; // another file was dropped meanwhile
  running = null;
  showState({ error: outcome.error ?? "" });
  if (outcome.answer) showCells(file.name, outcome.answer);
}

function showState({ progress = null, error = null }) {
  document.getElementById("working").hidden = progress === null;
  if (progress !== null) document.getElementById("progress").textContent = progress;
  if (error !== null) {
    document.getElementById("umap-error").textContent = error;
    document.getElementById("umap").hidden = true;
  }
}

function showCells(name, answer) {
  document.getElementById("umap").hidden = false;
  const select = document.getElementById("colour");
  const names = Object.keys(answer.columns);
  select.replaceChildren(...names.map((column) => element("option", { value: column, textContent: column })));
  select.disabled = !names.length;
  if (!names.length) select.append(element("option", { textContent: "nothing: no obs column has 2 to 50 values" }));
  const without = answer.x.filter((x) => x === null).length;
  const left = without ? `, ${number(without)} more without counts` : "";
  document.getElementById("shown").textContent = `${name}, ${number(answer.x.length - without)} cells${left}`;
  drawCells(answer);
  select.onchange = () => colourBy(answer, names.length ? select.value : null);
  select.onchange();
}
