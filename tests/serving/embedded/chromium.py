"""A real headless Chromium for tests of pages, and what a page did in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = (
    "--no-sandbox",  # CI's user is root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 60_000
DROP = """([input, selector]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(input.files[0]);
  for (const type of ["dragover", "drop"]) {
    const event = new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer });
    document.querySelector(selector).dispatchEvent(event);
  }
}"""


@contextmanager
def headless_chromium() -> Iterator[Browser]:
    """Started once for a module; the test is skipped on a machine without one."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome, of which none is installed")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


class Visit:
    """One page opened in a context of its own, with what it asked for and complained of.

    Attributes:
        page: Playwright's.
        requests: URLs asked for.
        complaints: errors of its console and of its scripts.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type == "error" else None,
        )
        page.goto(url)

    def drop(self, file: Path, selector: str) -> None:
        """Drops a file on an element as a user does."""
        # An input that is not part of the page takes the file into the browser.
        source = self.page.evaluate_handle(
            "Object.assign(document.createElement('input'), {type: 'file'})"
        ).as_element()
        assert source is not None
        source.set_input_files(file)
        self.page.evaluate(DROP, [source, selector])
