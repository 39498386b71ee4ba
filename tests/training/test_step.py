"""The step's parts: activation checkpointing, compilation, useful FLOPs, and what it must not import."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import masked_mse
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.flops import forward_flops, training_flops
from cellfoundry_training import engine, peak_flops
from cellfoundry_training.batches import CellTensors
from cellfoundry_training.config import load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.objective import Masking

GENES = 40
CPU = torch.device("cpu")
SMALL = ["model.encoder_width=16", "model.encoder_heads=2", "model.encoder_depth=3", "model.decoder_depth=3"]
RandomCells = Callable[..., CellBatch]


def loss_and_gradients(
    model: CellModel, cells: CellBatch, rate: float | None = None
) -> tuple[Tensor, list[Tensor], int]:
    """Loss, the gradients, and the bytes of distinct memory that the forward pass keeps for the backward pass."""
    masking, tensors = Masking(GENES, 102.0, context_rate=rate), CellTensors.of(cells, CPU)
    masked = masking.mask(tensors, step=1)
    context = masking.sample(masked, tensors.cell_ids, step=1)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = masked_mse(model(masked, context), masked.target_X)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.detach(), [each for each in gradients if each is not None], sum(kept.values())


def small_model(*overrides: str) -> CellModel:
    config = load_config("tiny", [*SMALL, *overrides])
    torch.manual_seed(0)
    return engine.prepare_model(CellModel(config.architecture(GENES)), config, CPU)


@pytest.mark.parametrize("rate", [None, 0.5], ids=["full", "sampled"])
def test_activation_checkpointing_changes_memory_alone(random_cells: RandomCells, rate: float | None) -> None:
    cells = random_cells(60)
    loss, gradients, kept = loss_and_gradients(small_model(), cells, rate)
    again, same, kept_less = loss_and_gradients(small_model("activation_checkpointing=true"), cells, rate)
    assert torch.equal(again, loss)
    assert len(same) == len(gradients) > 20
    assert all(map(torch.equal, same, gradients))
    assert kept_less < kept / 2


# Torch's own, of its compiler's imports and of how it traces.
@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_layers_compute_the_same(random_cells: RandomCells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, forward and backward, but not turned into C++, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    shallow = ["model.encoder_depth=1", "model.decoder_depth=1"]
    model, compiled = small_model(*shallow), small_model(*shallow, "compile=true")
    assert model.state_dict().keys() == compiled.state_dict().keys()
    for rate in (None, 0.5):
        loss, gradients, _ = loss_and_gradients(model, random_cells(3), rate)
        again, same, _ = loss_and_gradients(compiled, random_cells(3), rate)
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=0)
        for one, other in zip(gradients, same, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        TrainingError, match=r"needs a C\+\+ compiler on CPU and 'no-such-compiler' is not there"
    ):
        small_model("compile=true")


def test_flops_of_a_ragged_batch_are_those_of_its_cells(random_cells: RandomCells) -> None:
    """Nothing is padded, so a batch costs what its cells cost alone but for the table of zero genes, made once."""
    config = load_config("tiny", SMALL).architecture(GENES)
    cells = random_cells(3)
    masking = Masking(GENES, config.mask_token_id)

    def flops(batch: CellBatch) -> int:
        return forward_flops(config, masking.mask(CellTensors.of(batch, CPU), step=1))

    alone = [flops(cells.select(torch.tensor([cell]).numpy())) for cell in range(3)]
    table = 2 * config.n_positions * config.encoder_width * config.decoder_width
    assert flops(cells) == sum(alone) - 2 * table
    masked = masking.mask(CellTensors.of(cells, CPU), step=1)
    assert training_flops(config, masked) == 3 * flops(cells)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_a_known_gpu_has_its_data_sheet(monkeypatch: pytest.MonkeyPatch, name: str, bf16: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops.peak_flops(torch.device("cuda"), "bf16") == peak_flops.PeakFlops(bf16, "data sheet")


def test_a_cpu_is_measured() -> None:
    peak = peak_flops.peak_flops(CPU, "fp32")
    assert peak.source == "measured matrix product"
    assert 1e8 < peak.per_s < 1e14


def test_the_step_needs_neither_ray_nor_deepspeed_nor_pydantic() -> None:
    code = (
        "import sys; import cellfoundry_training.step, cellfoundry_training.peak_flops, "
        "cellfoundry_training.guarded_adamw; "
        "print(sorted({'ray', 'deepspeed', 'pydantic', 'pandas', 'pyarrow', 'scipy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
