"""``python -m cellfoundry``: the command line, for a Python that may lack what it needs (as on a cluster's nodes)."""

from __future__ import annotations

import sys

try:
    from cellfoundry.cli.main import run
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("cellfoundry"):
        raise
    print(
        f"error: {sys.executable} has no {error.name}: install cellfoundry's requirements into it, or put the "
        "environment that has them first on PATH.",
        file=sys.stderr,
    )
    sys.exit(2)

run()
