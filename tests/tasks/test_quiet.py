"""What libraries say stays out of the terminal, and what Ray changes does not reach them."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from cellfoundry_tasks.quiet import EVERY_WARNING, quiet

RAY_SHOWS_A_BAR = "from ray.experimental import tqdm_ray; tqdm_ray.instance()"
COMPILED = """
import builtins
from cellfoundry_tasks.quiet import quiet

def doubled(n):
    if n < 0:
        print("negative")
    return 2 * n

with quiet():
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
        [sys.executable, "-c", "\n".join((*order, COMPILED))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prints_and_named_warnings_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(EVERY_WARNING):
        print("fitting")
        warnings.warn("slow", stacklevel=1)
    assert capsys.readouterr().out == ""
    with pytest.warns(UserWarning, match="slow"), quiet("fast"):
        warnings.warn("slow", stacklevel=1)
