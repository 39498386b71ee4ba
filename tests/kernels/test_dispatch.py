"""Which implementation runs, and what a user is told who forces the wrong one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cellfoundry_kernels import pool_cells
from cellfoundry_kernels.dispatch import use_triton


def test_cpu_tensors_run_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELLFOUNDRY_KERNELS", raising=False)
    assert not use_triton(torch.zeros(1))
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "torch")
    assert not use_triton(torch.zeros(1))


def test_the_choice_is_a_constant_of_a_traced_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither breaks the graph nor is looked at again when the graph runs."""

    def which(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if use_triton(x) else x - 1

    traced = torch.compile(which, fullgraph=True, backend="eager")
    assert traced(torch.zeros(1)) == -1
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "cuda")
    assert traced(torch.zeros(1)) == -1


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match="CELLFOUNDRY_KERNELS is 'cuda': set it to triton or torch, or unset it"
    ):
        pool_cells(torch.zeros(3, 1), torch.tensor([0, 3]), "all")


def test_triton_forced_on_cpu_tensors_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton exists on Linux only")
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="a tensor is on cpu: move it to a CUDA device"):
        use_triton(torch.zeros(1))
    assert not use_triton(torch.zeros(1, dtype=torch.float64))


def test_the_package_runs_where_triton_is_absent() -> None:
    program = """
import sys
sys.modules["triton"] = None  # an import of triton raises ImportError
import torch
from cellfoundry_kernels import pool_cells
print(pool_cells(torch.ones(3, 1), torch.tensor([0, 3]), "max").item())
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "1.0"
