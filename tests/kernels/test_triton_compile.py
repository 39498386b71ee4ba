"""Every kernel compiles for A100 and H100 at the tile sizes that run, without a GPU and without register spills.

Another triton than the installed one is tested from a folder of its own, which goes first on the path::

    pip install --no-deps --target /tmp/triton-3.9 triton==3.9.0
    PYTHONPATH=/tmp/triton-3.9 TRITON_DEFAULT_FP_FUSION=1 pytest tests/kernels/test_triton_compile.py

(3.9 warns, and warnings are errors here, where the variable does not say whether a * b + c may be fused.)
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton exists on Linux only")

from cellfoundry_bench.compiled import SHARED_KIB, compile_launch
from cellfoundry_kernels.launch import Launch, all_published_launches

COMPILED = [
    pytest.param(launch, capability, id=f"{launch.name}-sm{capability}")
    for launch in all_published_launches()
    for capability in launch.capabilities
]


@pytest.mark.parametrize(("launch", "capability"), COMPILED)
def test_compiles_without_spills(launch: Launch, capability: int) -> None:
    resources = compile_launch(launch, capability)
    assert resources.stack_bytes == 0
    assert resources.shared_bytes <= SHARED_KIB[capability][0] * 1024
    assert resources.blocks >= 1
