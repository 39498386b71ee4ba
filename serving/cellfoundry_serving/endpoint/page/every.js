// Work repeated while the page is in view: the next round begins a while after the last one began, never two at once.

export function every(milliseconds, work) {
  async function round() {
    if (document.hidden) {
      document.addEventListener("visibilitychange", round, { once: true });
      return;
    }
    const began = performance.now();
    try {
      await work();
    } catch {
      // The endpoint is away; the health chip says so, and the next round asks again.
    }
    setTimeout(round, Math.max(0, milliseconds - (performance.now() - began)));
  }
  round();
}
