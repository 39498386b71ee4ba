"""Which Ray cluster a job runs on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cellfoundry_data.errors import DataError
from cellfoundry_data.ray_cluster import ray_cluster

ADDRESS_OF_THE_CLUSTER_USED = (
    "import ray\nfrom cellfoundry_data.ray_cluster import ray_cluster\n"
    "with ray_cluster():\n    print('used', ray.get_runtime_context().gcs_address)"
)


def test_the_cluster_of_ray_address_is_used(ray_local: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", ADDRESS_OF_THE_CLUSTER_USED],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert f"used {address}" in done.stdout, done.stderr


def test_an_address_without_a_cluster_is_one_sentence() -> None:
    code = (
        "from cellfoundry_data.errors import DataError\nfrom cellfoundry_data.ray_cluster import ray_cluster\n"
        "try:\n    with ray_cluster():\n        pass\nexcept DataError as error:\n    print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_ADDRESS": "nonsense"},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert "refused: the Ray cluster of RAY_ADDRESS=nonsense cannot be used" in done.stdout, done.stderr


def test_a_connected_cluster_stays_connected(ray_local: None) -> None:
    import ray

    with ray_cluster(min_cpus=1000):
        pass
    assert ray.is_initialized()


def test_a_block_that_fails_passes_its_error_on(ray_local: None) -> None:
    with pytest.raises(DataError, match="of the block"), ray_cluster():
        raise DataError("of the block")
