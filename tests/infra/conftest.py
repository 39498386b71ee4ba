"""What the manifests' tests share: a parse by the real command line, and a stand-in that says how it was called."""

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

    def parse(arguments: Sequence[str]) -> dict[str, Any]:
        command: Any = get_command(app)
        name, context, rest = "cellfoundry", None, list(arguments)
        while True:
            context = command.make_context(name, list(rest), parent=context)
            if not hasattr(command, "resolve_command"):
                parameters: dict[str, Any] = context.params
                return parameters
            name, command, rest = command.resolve_command(context, rest)

    return parse


@pytest.fixture
def echoing_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``cellfoundry`` prints its arguments, one a line, and ``srun`` runs the rest of its own.

    For scripts whose only work is to put a command line together.
    """
    scripts = {
        "cellfoundry": 'printf "%s\\n" "$@"',
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    }
    for name, body in scripts.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
