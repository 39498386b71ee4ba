"""Tasks run in a process whose ``print`` Ray has replaced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RAY_SHOWS_A_BAR = "from ray.experimental import tqdm_ray; tqdm_ray.instance()"
COMPILED = """
import builtins
from cellfoundry_tasks.numba_print import numba_print

def doubled(n):
    if n < 0:
        print("negative")
    return 2 * n

with numba_print():
    import numba
    assert numba.njit(doubled)(3) == 6
assert builtins.print is tqdm_ray.safe_print
"""


@pytest.mark.parametrize(
    "order", [("import numba", RAY_SHOWS_A_BAR), (RAY_SHOWS_A_BAR, "import numba"), (RAY_SHOWS_A_BAR,)]
)
def test_functions_that_print_compile_although_ray_took_print_over(order: tuple[str, ...]) -> None:
    """kBET and UMAP failed in numba, in a process that Ray had shown its logs in."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((*order, COMPILED))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_TQDM_PATCH_PRINT": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
