"""``cf.load``: a model directory as an object that encodes AnnData, predicts, and lends its encoder for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cellfoundry_model.cell_encoder import CellEncoder
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.head_files import HEAD_HASH, load_head
from cellfoundry_model.token_batch import TokenizedCells
from cellfoundry_serving.encode import encode_source, tokenize_source
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.predict import predict_source, warn_about_cells_without_prediction

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from anndata import AnnData

    from cellfoundry_serving.engines.torch import TorchEngine


class Model:
    """A loaded model: an engine and the names of its genes.

    Attributes:
        engine: what computes; ``engine.why`` says which one and why.
        genes: gene names in position order.
        folder: the model directory.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.genes = engine.vocab_genes
        self.folder = folder

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

    def predict(self, adata: AnnData | str | Path, *, layer: str | None = None) -> pd.DataFrame:
        """What the head of a fine-tuned model says of every cell, in the row order of ``adata``, indexed by cell name.

        Returns:
            ``prediction`` (categorical, or float64 for a number) and, for classes, ``probability_CLASS`` of each
            (float32). A cell without counts has no prediction.

        Raises:
            DataError: values that are no counts, or no gene in common.
            ModelError: the model has no head.
        """
        head = load_head(self.folder, self.engine.info)
        predicted, _ = predict_source(adata, self.engine, head, layer=layer)
        warn_about_cells_without_prediction(predicted)
        return predicted

    def encoder(self, pool: str = "all") -> CellEncoder:
        """The encoder as a module for your own training loop, on the engine's device: token batches to cell vectors.

        Its weights are this model's: once they are trained, ``encode`` uses them and ``save`` keeps them. It is in
        training mode, which changes nothing it computes: there is no dropout.

        Raises:
            ModelError: an unknown pool.
            ServingError: the engine is not torch.
        """
        return CellEncoder(self._torch().loaded.model, pool).train()

    def tokens(
        self, adata: AnnData | str | Path, *, target: str = "t4", layer: str | None = None
    ) -> TokenizedCells:
        """All cells as tokens in memory (12 bytes a non-zero); ``tokens[rows]`` is a batch for ``encoder``.

        Raises:
            DataError: values that are no counts, or no gene in common.
            ModelError: an unknown target.
        """
        return tokenize_source(adata, self.genes, target=target, layer=layer)

    def save(self, out: str | Path) -> None:
        """Write the weights as they are now as a model directory, without a head.

        Raises:
            ModelError: something that is no model directory is at ``out``.
            ServingError: the engine is not torch.
        """
        loaded = self._torch().loaded
        facts = {key: value for key, value in loaded.info.items() if key != HEAD_HASH}
        save_model(loaded.model, loaded.vocab_genes, out, facts)

    def _torch(self) -> TorchEngine:
        from cellfoundry_serving.engines.torch import TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise ServingError(
                f"{self.folder}: the {self.engine.name} engine has no weights to train; load the model directory "
                'with engine="torch".'
            )
        return self.engine

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
    return Model(open_engine(model_dir, engine, precision), Path(model_dir))
