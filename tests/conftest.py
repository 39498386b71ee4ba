"""Fixtures every layer uses: the one Ray cluster of the run, the bundled donor, and the optional reference data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# One commit gives one result: property tests draw the same examples each time. CELLFOUNDRY_FUZZ=1 draws others.
# No deadline: by default an example that takes 200 ms fails, and speed is no matter of tests.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("default" if os.environ.get("CELLFOUNDRY_FUZZ") else "repeatable")

# As the product sets them before it starts Ray: no token file in the home directory, no usage report, Python's print.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")

# Read when torch loads its OpenMP: threads that wait sleep. By default they spin, and beside one other busy process on
# two cores a fine-tuning test took 282 s instead of 28. The number of threads, which bits depend on, stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and so would the programs be
# that tests press Ctrl-C on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; a user's machine has none, so such tests skip there."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("needs the reference data folder beside the checkout, which is not distributed")
    return folder


@pytest.fixture(scope="session")
def baron_h5ad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled Baron donor, 1,937 real cells, as h5ad."""
    from cellfoundry_data.bundled import baron_h5ad as write_baron

    return write_baron(tmp_path_factory.mktemp("baron") / "baron.h5ad")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """The one local Ray cluster (2 CPUs) of the whole run: starting one costs 5 to 8 s."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()
