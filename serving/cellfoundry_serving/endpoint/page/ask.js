// fetch with the API key, which the user is asked for when the endpoint does; it is kept in this module alone.

let key = "";
let asking = null;

export async function ask(path, options = {}) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.status !== 401) return response;
    if (used === key) {
      asking = asking || keyFromUser(used !== "");
      await asking;
    }
  }
}

function keyFromUser(refused) {
  const form = document.getElementById("key-form");
  const input = document.getElementById("key");
  document.getElementById("key-refused").textContent = refused ? "The endpoint does not know this key." : "";
  form.hidden = false;
  input.focus();
  return new Promise((resolve) => {
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        key = input.value.trim();
        input.value = "";
        form.hidden = true;
        asking = null;
        resolve();
      },
      { once: true },
    );
  });
}
