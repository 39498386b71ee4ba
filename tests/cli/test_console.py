"""What a command writes to the terminal."""

from __future__ import annotations

import io

import pytest

from cellfoundry.cli import console
from cellfoundry.cli.console import ProgressDisplay, is_ours, user_message


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


def test_rate_and_eta_leave_out_what_came_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with ProgressDisplay(stream) as progress:
        for _ in range(60):  # ranks start, for half a minute
            progress("resumed", 1000, 2000)
            clock.now += 0.5
        clock.now += 9.5
        progress("resumed", 1100, 2000)
        clock.now += 10
        progress("at once", 50, 50)
        clock.now += 2
        progress("read bytes", 3_000_000, 1_500_000_000)
    assert stream.getvalue().splitlines() == [
        "resumed: 1,000/2,000",
        "resumed: 1,100/2,000 (10.0/s, eta 1:30)",
        "at once: 50/50 (5.0/s)",
        "read bytes: 3.0 MB/1.5 GB (1.5 MB/s, eta 16:38)",
    ]


def test_warnings_of_libraries_are_not_ours_even_below_a_folder_of_our_name() -> None:
    installed = "/home/me/cellfoundry/.venv/lib/python3.12/site-packages"
    assert is_ours("/home/me/cellfoundry/data_platform/cellfoundry_data/source_cells.py")
    assert is_ours(f"{installed}/cellfoundry_serving/encode.py")
    assert is_ours(f"{installed}/cellfoundry/model.py")
    assert not is_ours(f"{installed}/anndata/_core/anndata.py")


def test_an_error_of_the_system_is_one_sentence_with_or_without_its_number() -> None:
    assert (
        user_message(OSError(28, "No space left on device", "out.npy")) == "out.npy: No space left on device."
    )
    assert user_message(OSError("Can't write data")) == "Can't write data."
    assert user_message(RuntimeError("a defect")) is None
