// Every route of openapi.json, with its example as a curl command.
import { element } from "./dom.js";

export function showRoutes(place, { paths }) {
  const routes = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => route(method.toUpperCase(), path, operation)),
  );
  place.replaceChildren(...routes);
}

function route(method, path, operation) {
  const name = element("code", { textContent: `${method} ${path}` });
  const about = element("p", { className: "soft", textContent: operation.description ?? operation.summary });
  const command = element("pre", { textContent: curl(method, path, operation) });
  return element("details", {}, element("summary", {}, name), about, command);
}

function curl(method, path, operation) {
  const words = ["curl"];
  if (method !== "GET") words.push(`-X ${method}`);
  words.push(quoted(new URL(path.slice(1), document.baseURI).href.replaceAll("%7B", "{").replaceAll("%7D", "}")));
  if (operation.security?.length !== 0) words.push('-H "Authorization: Bearer $KEY"');
  for (const [type, body] of Object.entries(operation.requestBody?.content ?? {})) {
    const example = Object.values(body.examples ?? {})[0];
    const data = example ? `-d ${quoted(JSON.stringify(example.value))}` : "--data-binary @FILE";
    words.push(`-H ${quoted(`Content-Type: ${type}`)} ${data}`);
    break; // the first form is the plainest
  }
  return words.join(" \\\n  ");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
