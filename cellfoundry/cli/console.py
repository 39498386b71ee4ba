"""What a command writes to the terminal: progress, warnings and the one-sentence error."""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_LINE_EVERY_S = 5.0
SHORTEST_TIMED_S = 0.01


def amount(label: str, number: float, digits: int = 0) -> str:
    """A number of what ``label`` counts: ``1,937``, or ``9.1 MB`` where it counts bytes."""
    if not label.endswith("bytes"):
        return f"{number:,.{digits}f}"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    """``73`` -> ``1:13``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def command_line() -> str:
    """The command as it was typed, for reports."""
    return shlex.join(["cellfoundry", *sys.argv[1:]])


class ProgressDisplay:
    """Renders ``progress(label, done, total)`` calls: bars with rate and ETA on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._began: dict[str, tuple[int, float]] = {}
        self._last_call = time.monotonic()
        self._printed: dict[str, float] = {}
        self._note = ""

    def __enter__(self) -> ProgressDisplay:
        if self._stream.isatty():
            from rich.console import Console, RenderableType
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.text import Text

            class BarsAndNote(Progress):
                def get_renderables(bars) -> Iterable[RenderableType]:  # self is the display
                    yield from super().get_renderables()
                    if self._note:
                        yield Text(f"  {self._note}")

            self._bars = BarsAndNote(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[of_total]}"),
                TextColumn("{task.fields[rate]}"),
                TextColumn("eta"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Say ``text`` beside the progress from now on: below the bars, or at the end of the plain lines."""
        self._note = text

    def line(self, text: str) -> None:
        """Write a line that stays, above the bars."""
        if self._bars:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` (0 where unknown) is through for the task ``label``."""
        now = time.monotonic()
        # Work began when the task last said that nothing new is done, else when the task before it was last heard of:
        # a first call may come with work already done.
        if done == self._done.get(label, 0):
            self._began[label] = (done, now)
        done_before, began = self._began.setdefault(label, (0, self._last_call))
        self._done[label], self._last_call = done, now
        rate = (done - done_before) / (now - began) if now - began > SHORTEST_TIMED_S else 0.0
        of_total = amount(label, done) + (f"/{amount(label, total)}" if total else "")
        pace = f"{amount(label, rate, 1)}/s" if rate else ""
        if self._bars:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total or None, rate="", of_total="")
            self._bars.update(
                self._tasks[label], completed=done, total=total or None, rate=pace, of_total=of_total
            )
        elif label not in self._printed or (
            done != done_before and (done >= total > 0 or now - self._printed[label] >= PLAIN_LINE_EVERY_S)
        ):
            self._printed[label] = now
            eta = f", eta {duration((total - done) / rate)}" if rate and done < total else ""
            note = f": {self._note}" if self._note else ""
            self.line(f"{label}: {of_total}{f' ({pace}{eta})' if pace else ''}{note}")


def print_warnings_as_lines() -> None:
    """Each distinct user-facing warning becomes one ``warning:`` line on stderr; library noise stays quiet."""
    seen: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and is_ours(filename) and str(message) not in seen:
            seen.add(str(message))
            print(f"warning: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show


def is_ours(filename: str) -> bool:
    """Whether a source file belongs to our packages; a checkout or environment below ``cellfoundry/`` does not."""
    parts = Path(filename).parts
    if "site-packages" in parts:
        parts = parts[len(parts) - parts[::-1].index("site-packages") :]
    packages = {module.partition(".")[0] for module in LAYER_ERRORS} | {"cellfoundry"}
    return not packages.isdisjoint(parts[:-1])


LAYER_ERRORS = {
    "cellfoundry_data.errors": "DataError",
    "cellfoundry_model.errors": "ModelError",
    "cellfoundry_training.errors": "TrainingError",
    "cellfoundry_tasks.errors": "TaskError",
    "cellfoundry_serving.errors": "ServingError",
    "cellfoundry_bench.errors": "BenchError",
    "cellfoundry.cluster.errors": "ClusterError",
}


def user_message(error: BaseException) -> str | None:
    """The sentence to print for an error that the user can mend, None for a defect of ours.

    A layer that was never imported cannot have raised, so none is imported here.
    """
    loaded = tuple(
        getattr(sys.modules[module], name) for module, name in LAYER_ERRORS.items() if module in sys.modules
    )
    if isinstance(error, loaded):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}."  # HDF5 gives its reason as the message only
    return None
