"""torch with packed tokens: every output, both precisions; the reference that exports are checked against."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.checkpoint import load_model
from cellfoundry_model.embedder import Embedder, Output, Pool, Precision
from cellfoundry_model.tokens import InputType, PreNormalized
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.export.layout import WEIGHTS_FILE


class TorchEngine(Engine):
    """Runs model.safetensors through the Embedder, on CUDA where there is a GPU, else on CPU."""

    name: ClassVar[str] = "torch"

    def __init__(
        self, model_dir: str | Path, precision: Precision = "fp32", device: str | None = None
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = precision
        self.loaded = load_model(model_dir, device)
        self._embedder = Embedder(self.loaded, device=device, precision=precision)
        why = f"{WEIGHTS_FILE} on torch {torch.__version__} ({device}, {precision}, packed tokens)"
        super().__init__(self.loaded.vocab_genes, self.loaded.config.encoder_width, self.loaded.info, why)

    def shape(self, output: Output, pool: Pool) -> tuple[int, ...]:
        """Shape of one cell's result."""
        width = self._embedder.width(output, pool)
        return (len(self.vocab_genes), width) if output == "gene" else (width,)

    def encode(
        self,
        batch: CellBatch,
        *,
        output: Output = "cell",
        pool: Pool = "all",
        target: str = "t4",
        input_type: InputType = "singlecell",
        pre_normalized: PreNormalized = "F",
        totals: npt.NDArray[np.float64] | None = None,
        bulk_median: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """See Engine.encode."""
        return self._embedder.encode(
            batch,
            output=output,
            pool=pool,
            target=target,
            input_type=input_type,
            pre_normalized=pre_normalized,
            totals=totals,
            bulk_median=bulk_median,
        )
