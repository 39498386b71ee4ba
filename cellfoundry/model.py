"""``cf.load``: a model directory as an object that encodes AnnData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cellfoundry_serving.encode import encode_source
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from anndata import AnnData


class Model:
    """A loaded model: an engine and the names of its genes.

    Attributes:
        engine: what computes; ``engine.why`` says which one and why.
        genes: gene names in position order.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.genes = engine.vocab_genes

    def encode(
        self,
        adata: AnnData | str | Path,
        *,
        output: str = "cell",
        pool: str = "all",
        target: str = "t4",
        input_type: str = "singlecell",
        pre_normalized: str = "F",
        layer: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings in the row order of ``adata`` (an AnnData, or a path that ``cellfoundry embed`` takes).

        Returns:
            float32: (cells, 4 width) for pool "all", (cells, width) for "max"; (cells, genes, width) for output
            "gene"; (cells, genes) for "expression". A cell without counts is a row of NaN.

        Raises:
            DataError: values that cannot be what ``pre_normalized`` says, or no gene in common.
            ModelError, ServingError: an unknown convention, or an output this engine does not compute.
        """
        return encode_source(
            adata,
            self.engine,
            output=output,
            pool=pool,
            target=target,
            input_type=input_type,
            pre_normalized=pre_normalized,
            layer=layer,
        )

    def __repr__(self) -> str:
        return f"Model({len(self.genes):,} genes, {self.engine.why})"


def load(model_dir: str | Path, *, engine: str = "auto", precision: str = "fp32") -> Model:
    """Load a model directory (imported, pretrained here, or an export).

    Args:
        model_dir: folder with ``config.json``, ``vocab.tsv`` and weights or an exported engine.
        engine: "auto", "torch", "onnx" or "tensorrt".
        precision: "fp32" or "bf16".

    Raises:
        ModelError, ServingError: the folder is missing, damaged, or lacks the engine's file.
    """
    return Model(open_engine(model_dir, engine, precision))
