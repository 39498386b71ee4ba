// Starts the page: health and models now and then, metrics once a second, routes once, and the UMAP of a dropped file.
import { ask } from "./ask.js";
import { showModels } from "./models.js";
import { startMetrics } from "./live.js";
import { offerModels, startUmap } from "./umap.js";
import { every } from "./every.js";
import { showRoutes } from "./routes.js";

const HEALTH_MS = 5000;
const MODELS_MS = 15000;

async function showHealth() {
  const chip = document.getElementById("health");
  let text = "Unreachable";
  try {
    const response = await fetch("v2/health/ready", { cache: "no-store" });
    text = response.ok ? "Ready" : "Not ready";
  } catch {
    // Says so itself.
  }
  chip.textContent = text;
  chip.className = text === "Ready" ? "chip good" : "chip bad";
}

async function refreshModels() {
  const response = await ask("v1/models");
  if (!response.ok) return;
  const models = await response.json();
  showModels(document.getElementById("models"), models);
  offerModels(models);
}

async function describeRoutes() {
  const response = await ask("openapi.json");
  if (response.ok) showRoutes(document.getElementById("routes"), await response.json());
}

every(HEALTH_MS, showHealth);
every(MODELS_MS, refreshModels);
startMetrics();
describeRoutes();
startUmap();
