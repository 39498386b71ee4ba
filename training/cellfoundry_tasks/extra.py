"""Libraries of the extra ``tasks``, imported when a task runs."""

from __future__ import annotations

import importlib
from typing import Any

from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.quiet import EVERY_WARNING, quiet
from cellfoundry_tasks.random_state import own_random_state


def library(module: str) -> Any:
    """The module, TaskError that names the extra where it is not installed.

    What libraries warn of while they are imported (a missing tensorflow, deprecated names) says nothing of the cells
    and is not shown.
    """
    try:
        with quiet(EVERY_WARNING), own_random_state(0):  # scanorama seeds numpy when it is imported
            return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(
            f"{module} is not installed, which this task needs: pip install 'cellfoundry[tasks]'"
        ) from error
