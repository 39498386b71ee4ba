"""What a model says of cells: embeddings and expression at any depth; and a twin of it with random weights.

Legend: C cells, W width of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel, load_model
from cellfoundry_model.decoder_fit import encoder_tuning
from cellfoundry_model.embedder import Embedder
from cellfoundry_tasks.errors import TaskError

READ_CELLS = 256  # progress is told after each block, which takes seconds on a CPU

Floats: TypeAlias = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Output = Literal["cell", "expression"]


def open_model(model: str | Path | LoadedModel, *, device: str = "auto") -> Embedder:
    """A model directory, or a model in memory, ready to embed; ModelError where it is damaged."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Embedder(model, device=device)


@dataclass(frozen=True)
class NoExpression:
    """A model whose expression output says nothing of cells.

    Attributes:
        why: what of the model is so, after its name.
        instead: the model that has one.
    """

    why: str
    instead: str

    def __str__(self) -> str:
        """For lists of what is left out."""
        return f"the model's expression: the model {self.why}"


def no_expression(embedder: Embedder) -> NoExpression | None:
    """None where the model's expression output was trained and fits its encoder.

    Of official weights only the part "gene" has one, and none is left where a fine-tuning changed the encoder.
    """
    info = embedder.loaded.info
    part = info.get("part", "gene")
    if part != "gene":
        return NoExpression(
            f"is part {part!r} of official weights, whose decoder was not trained for expression",
            "part 'gene'",
        )
    if tune := encoder_tuning(info):
        return NoExpression(
            f"has a fine-tuned encoder (tune {tune}), which its decoder no longer fits",
            "the model before fine-tuning",
        )
    return None


def check_features(embedder: Embedder, features: str) -> None:
    """TaskError where ``--features`` asks for an expression that the model lacks."""
    lacking = no_expression(embedder)
    if lacking and features in ("expression", "both"):
        raise TaskError(
            f"--features {features}: the model {lacking.why}; take --features embedding, or as --model "
            f"{lacking.instead}"
        )


def random_twin(model: str | Path | LoadedModel, seed: int = 0) -> LoadedModel:
    """The same architecture with fresh random weights: what of a result comes from the form and not the learning."""
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        twin = CellModel(loaded.config).eval()
    return replace(loaded, model=twin, info={"origin": f"random weights, seed {seed}"})


def represent(
    cells: ad.AnnData,
    embedder: Embedder,
    *,
    output: Output = "cell",
    pool: str = "all",
    target: str = "t4",
    keep: Callable[[Floats], Floats] = lambda vector_CW: vector_CW,
    label: str = "embed",
    progress: Progress | None = None,
) -> Floats:
    """Vectors of cells of raw counts, float32 (C, W) in their order; W is the genes' number for "expression", whose
    unit is log1p of counts per 10,000. ``keep`` makes of each block of rows what is kept of it: expression of all
    genes is 77 kB a cell.

    Raises:
        DataError: no gene in common with the model.
        ModelError: an unknown pool or target.
    """
    source = SourceCells(cells, Vocabulary(embedder.vocab_genes))
    parts: list[Any] = []
    for batch, _ in source.blocks(READ_CELLS):
        parts.append(keep(embedder.encode(batch, output=output, pool=pool, target=target)))  # type: ignore[arg-type]
        if progress:
            progress(label, int(batch.row_ids[-1]) + 1, cells.n_obs)
    return np.concatenate(parts)
