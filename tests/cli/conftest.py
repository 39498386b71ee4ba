"""The command as a user runs it: the installed program, or its entry point in this process."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from cellfoundry.cli.main import run

COMMAND = Path(sys.executable).parent / "cellfoundry"


def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)], capture_output=True, text=True, timeout=80, check=False
    )


def entry_point(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The program's answer from this process, where torch is imported once and not, for 3 s, once a command.

    What the entry point does not turn into an exit code is raised, and fails the test as a traceback would.
    """
    command = ["cellfoundry", *map(str, arguments)]
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        warnings.simplefilter("default")  # a program shows warnings, the tests raise them
        patch.setattr(sys, "argv", command)
        patch.setattr(sys.modules["__main__"], "__package__", None)  # else help speaks of pytest's
        try:
            run()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())
