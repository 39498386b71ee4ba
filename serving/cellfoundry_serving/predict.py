"""Predictions of a fine-tuned model: every cell of a source through the encoder and the head beside it.

Legend: C cells, K classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from cellfoundry_model.head import Head
from cellfoundry_model.head_files import load_head
from cellfoundry_serving.embed import absolute_source, check_source_is_kept
from cellfoundry_serving.encode import EncodedBlocks, Progress, Source
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.outputs.h5ad import check_obs_is_written
from cellfoundry_serving.outputs.predictions import check_predictions_output, write_predictions

PREDICTION, PROBABILITY = "prediction", "probability_"


@dataclass(frozen=True)
class PredictSummary:
    """What ``predict`` wrote.

    Attributes:
        cells: rows.
        label: the obs column that the head was trained on.
        classes: its classes; none for a number.
        empty_cells: cells without counts, which get no prediction.
        seconds: wall time of reading, computing and writing.
        engine: which engine ran, and why.
    """

    cells: int
    label: str
    classes: tuple[str, ...]
    empty_cells: int
    seconds: float
    engine: str

    def __str__(self) -> str:
        """One line for people."""
        what = f"{self.label} of {len(self.classes)} classes" if self.classes else f"{self.label}, a number"
        return f"{self.cells:,} cells, {what}, {self.cells / self.seconds:,.1f} cells/s, {self.engine}"


def predict(
    src: Source,
    model_dir: str | Path,
    out: str | Path,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    layer: str | None = None,
    progress: Progress | None = None,
) -> PredictSummary:
    """Predict for every cell of ``src`` and write ``out``, which appears whole or not at all.

    Args:
        src: file or folder of raw counts, a store, or an AnnData.
        model_dir: model directory with a head, or an export of it.
        out: .csv, .parquet or .h5ad.
        engine: "auto", "torch", "onnx" or "tensorrt".
        precision: "fp32" or "bf16".
        layer: matrix of an AnnData to read; by default the first with whole counts.
        progress: called with ("embed", cells done, cells).

    Raises:
        DataError, ModelError, ServingError: see the layers; what was at ``out`` before is still there then.
    """
    started = time.monotonic()
    src, out = absolute_source(src), Path(out)
    check_predictions_output(out)
    check_source_is_kept(src, out, adds_to_it=out.suffix.lower() == ".h5ad")
    if isinstance(src, AnnData) and out.suffix.lower() == ".h5ad":
        check_obs_is_written(src)
    runner = open_engine(model_dir, engine, precision)
    head = load_head(model_dir, runner.info)
    predicted, obs = predict_source(src, runner, head, layer=layer, progress=progress)
    provenance = {
        "label": head.config.label,
        "engine": runner.why,
        "model_sha256": str(runner.info["weights_sha256"]),
        "cellfoundry": version("cellfoundry"),
    }
    write_predictions(out, src, obs, predicted, provenance)
    empty = warn_about_cells_without_prediction(predicted)
    return PredictSummary(
        len(predicted), head.config.label, head.config.classes, empty, time.monotonic() - started, runner.why
    )


def predict_source(
    src: Source,
    engine: Engine,
    head: Head,
    *,
    layer: str | None = None,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions, and the source's obs, both one row a cell in the source's order, indexed by cell name.

    ``prediction`` is the likeliest class (categorical) or the number (float64); for classes there is also
    ``probability_CLASS`` (float32) of each, see ``probability_columns``. A cell without counts has no prediction, and
    NaN probabilities.

    Raises:
        DataError, ModelError, ServingError: see the layers.
    """
    config = head.config
    conventions = {
        "output": "cell",
        "pool": config.pool,
        "target": config.target,
        "input_type": "singlecell",
        "pre_normalized": "F",
    }
    blocks = EncodedBlocks(src, engine, conventions, layer, progress)
    found = []
    with torch.inference_mode():
        for _, vectors in blocks:
            found.append(head(torch.from_numpy(vectors)))
    output = torch.cat(found)
    if config.task == "regression":
        return pd.DataFrame({PREDICTION: output.numpy()}, index=blocks.obs.index), blocks.obs
    probability_CK = output.softmax(1).numpy()
    likeliest_C = np.where(np.isnan(probability_CK).any(1), -1, probability_CK.argmax(1))
    columns = {PREDICTION: pd.Categorical.from_codes(likeliest_C.tolist(), pd.Index(config.classes))} | dict(
        zip(probability_columns(config.classes), probability_CK.T, strict=True)
    )
    return pd.DataFrame(columns, index=blocks.obs.index), blocks.obs


def probability_columns(classes: Sequence[str]) -> list[str]:
    """A column's name for each class, with ``|`` for a ``/``, which no h5ad column can have.

    Where that makes two names the same, "T/NK" and "T|NK" say, the later one gets ``_2`` at its end, or the next free
    number.
    """
    columns: list[str] = []
    for name in classes:
        column = free = PROBABILITY + name.replace("/", "|")
        number = 1
        while free in columns:
            number += 1
            free = f"{column}_{number}"
        columns.append(free)
    return columns


def warn_about_cells_without_prediction(predicted: pd.DataFrame) -> int:
    """Their number; a warning if there are any, to be given when all is written."""
    empty = int(predicted[PREDICTION].isna().sum())
    if empty:
        warnings.warn(
            f"{empty:,} of {len(predicted):,} cells have no counts in the model's genes and get no prediction.",
            UserWarning,
            stacklevel=2,
        )
    return empty
