"""What the tests of Triton twins share: their processes, dtypes, gradients, and how exact a twin must be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

DEVICE = os.environ.get("CELLFOUNDRY_TEST_DEVICE", "cpu")
"""cuda where ../test_triton_on_gpu.py runs these files without the interpreter."""

# An import of torch and triton costs five seconds, and no process should run for a minute.
SLOW = {"favor": ["test_favor.py"], "model": ["test_model.py", "test_saved_memory.py"]}
HERE = Path(__file__).parent
OTHERS = {path.name for path in HERE.glob("test_*.py")}.difference(*SLOW.values())
PROCESSES = SLOW | {"others": sorted(OTHERS)}


def run_alone(files: list[str], environment: dict[str, str]) -> None:
    """Run these files in a process of their own, because triton decides at import whether it interprets."""
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(str(HERE / file) for file in files),
        ],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


# bf16 arithmetic is wrong in the interpreter, so a GPU alone tests it.
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    *([pytest.param(torch.bfloat16, id="bf16")] if DEVICE == "cuda" else []),
]
interpreter_only = pytest.mark.skipif(
    DEVICE == "cuda", reason="reserves memory that is never touched, or counts calls, on a CPU"
)
gpu_only = pytest.mark.skipif(
    DEVICE != "cuda", reason="needs an NVIDIA GPU: the interpreter would take minutes to hours"
)


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS of the error over RMS of the expected values; a NaN on either side fails at once."""
    assert actual.shape == expected.shape
    assert not actual.isnan().any()
    assert not expected.isnan().any()
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def assert_as_exact_as_the_reference(ours: list[Tensor], low: list[Tensor], exact: list[Tensor]) -> None:
    """fp32 within 1e-5 of float64; fp16 within twice the error of torch's own op in fp16."""
    for actual, torch_own, expected in zip(ours, low, exact, strict=True):
        bound = 1e-5 if actual.dtype == torch.float32 else 2 * relative_rms(torch_own, expected)
        assert relative_rms(actual, expected) <= bound


def with_gradients(op: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = op(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def assert_compiles_whole(op: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> None:
    """One graph without a break gives the same values and gradients, bit for bit."""
    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = with_gradients(op, inputs, grad)
    for ours, eager in zip(with_gradients(compiled, inputs, grad), expected, strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0, equal_nan=True)
