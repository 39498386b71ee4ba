"""What the tests of infra/ share: a parse by the real command line, and stand-ins that say how they were called."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Parse = Callable[[Sequence[str]], dict[str, Any]]


@pytest.fixture
def parse() -> Parse:
    """Parameters of the command that some arguments (without ``cellfoundry``) name, without running it.

    An unknown command, option or value raises typer's usage error, which names it.
    """
    from typer.main import get_command

    from cellfoundry.cli.main import app
    from cellfoundry.cluster.command import parse_command

    def parse(arguments: Sequence[str]) -> dict[str, Any]:
        parameters: dict[str, Any] = parse_command(get_command(app), arguments).context.params
        return parameters

    return parse


@pytest.fixture
def echoing_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``cellfoundry`` prints its arguments, one a line.

    For scripts whose only work is to put a command line together.
    """
    return stand_ins(tmp_path, cellfoundry='printf "%s\\n" "$@"')


def stand_ins(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment whose PATH begins with programs of these names that do what these lines of bash say."""
    for name, body in scripts.items():
        script = folder / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
