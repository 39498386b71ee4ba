"""Every kernel compiles for A100 and H100 at the tile sizes that run, without a GPU and without register spills.

Another triton than the installed one is tested from a folder of its own, which goes first on the path::

    pip install --no-deps --target /tmp/triton-3.9 triton==3.9.0
    PYTHONPATH=/tmp/triton-3.9 TRITON_DEFAULT_FP_FUSION=1 pytest tests/kernels/test_triton_compile.py

(3.9 warns, and warnings are errors here, where the variable does not say whether a * b + c may be fused.)
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch

pytest.importorskip("triton", reason="triton exists on Linux only")

from cellfoundry_bench.compiled import SHARED_KIB, Resources, compile_launch, compiled_in_parallel
from cellfoundry_kernels.launch import Launch, all_published_launches
from cellfoundry_kernels.varlen.kernel import KERNELS, launch_of
from cellfoundry_kernels.varlen.tiles import Kernel, tile_for

COMPILED = [
    pytest.param(launch, capability, id=f"{launch.name}-sm{capability}")
    for launch in all_published_launches()
    for capability in launch.capabilities
]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, int], Future[Resources]]]:
    """Of the selected tests; in parallel, because together they take three minutes of a processor."""
    here = [
        item for item in request.session.items if item.path == request.path and "launch" in item.fixturenames
    ]
    chosen = [(item.callspec.params["launch"], item.callspec.params["capability"]) for item in here]
    with compiled_in_parallel(chosen) as found:
        yield found


@pytest.mark.parametrize(("launch", "capability"), COMPILED)
def test_compiles_without_spills(
    launch: Launch, capability: int, compiled: dict[tuple[str, int], Future[Resources]]
) -> None:
    resources = compiled[launch.name, capability].result()
    assert resources.stack_bytes == 0
    assert resources.shared_bytes <= SHARED_KIB[capability][0] * 1024
    assert resources.blocks >= 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_fits_devices_with_little_shared_memory(kernel: Kernel) -> None:
    """Consumer Blackwell compiles it otherwise than Hopper; heads of 128 take the most."""
    sizes = tile_for(kernel, torch.bfloat16, 128, 500, 120)
    resources = compile_launch(launch_of(kernel, torch.bfloat16, 128, sizes), 120)
    assert resources.shared_bytes <= SHARED_KIB[120][0] * 1024
    assert resources.stack_bytes == 0
