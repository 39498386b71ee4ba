"""What libraries say stays out of the terminal."""

from __future__ import annotations

import warnings

import pytest

from cellfoundry_tasks.quiet import EVERY_WARNING, quiet


def test_prints_and_named_warnings_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(EVERY_WARNING):
        print("fitting")
        warnings.warn("slow", stacklevel=1)
    assert capsys.readouterr().out == ""
    with pytest.warns(UserWarning, match="slow"), quiet("fast"):
        warnings.warn("slow", stacklevel=1)
