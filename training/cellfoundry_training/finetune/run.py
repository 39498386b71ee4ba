"""A fine-tuning run: labelled cells of a source into a model directory with a head.

Legend: C cells of the source, E those with a label and counts, W width of a cell's vector.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.joined_cells import Cells
from cellfoundry_data.store_cells import open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.checkpoint import LoadedModel, check_replaceable, load_model, save_model
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.head import Head, HeadConfig
from cellfoundry_model.head_files import HEAD_HASH, head_files, head_hash
from cellfoundry_model.token_batch import TokenizedCells
from cellfoundry_model.tokens import tokenize
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.config import FinetuneConfig
from cellfoundry_training.finetune.fitting import Epoch, outputs
from cellfoundry_training.finetune.inputs import (
    Inputs,
    Progress,
    Source,
    TokenInputs,
    VectorInputs,
    read_cells,
)
from cellfoundry_training.finetune.labels import Labels, read_labels, without_rare_classes
from cellfoundry_training.finetune.learn import Learned, learn
from cellfoundry_training.finetune.result import CellNumbers, Finetuned
from cellfoundry_training.finetune.scores import (
    ClassificationScores,
    RegressionScores,
    classification_scores,
    regression_scores,
)
from cellfoundry_training.finetune.split import Split, check_training_numbers, strata, stratified_split
from cellfoundry_training.finetune.tuned import check_tune

RECORD_FILE, REPORT_FILE = "finetune.json", "report.html"


def finetune(
    model_dir: str | Path,
    src: Source,
    out: str | Path,
    config: FinetuneConfig,
    *,
    layer: str | None = None,
    report: Callable[[Finetuned], str] | None = None,
    progress: Progress | None = None,
    watch: Callable[[Epoch], None] | None = None,
) -> Finetuned:
    """Train a head, and as much of the encoder as ``config`` says, on an obs column; write a model directory.

    Args:
        model_dir: the model to start from.
        src: file or folder of raw counts, a store, or an AnnData; its labelled cells must fit in memory, as tokens
            (12 bytes a non-zero), or where only the head learns as vectors.
        out: model directory to write, whole or not at all; an earlier model there is replaced.
        config: what to learn, and how.
        layer: matrix of an AnnData to read; by default the first with whole counts.
        report: makes a page that is kept beside the model.
        progress: called with (label, done, total).
        watch: called after every epoch.

    Raises:
        DataError, ModelError: see the layers.
        TrainingError: a label that cannot be learnt, an encoder that cannot be tuned so, or a diverging loss.
    """
    started = time.monotonic()
    out = Path(out)
    _check_out(Path(model_dir), src, out)
    device = _device(config.device)
    loaded = load_model(model_dir, device)
    check_tune(config, loaded.config.encoder_depth)
    source = "the AnnData" if isinstance(src, AnnData) else str(src)
    cells = open_cells(src, Vocabulary(loaded.vocab_genes), layer=layer)
    labels = read_labels(cells.obs, config.label, config.task, source)
    if labels.task == "regression" and config.class_weights == "balanced":
        raise TrainingError(
            f"{source}: class_weights are for classes, and obs column {config.label!r} is learnt as numbers; leave "
            "them out, or set task to classification"
        )
    without_label = int((~labels.has_label_C).sum())
    labels, rare = without_rare_classes(labels)
    strata(labels, source)  # refuses labels that cannot be learnt before any cell is read
    inputs, row_E = _inputs(loaded, cells, labels, config, device, progress)
    without_counts = int(labels.has_label_C.sum()) - len(row_E)
    has_counts_C = np.zeros_like(labels.has_label_C)
    has_counts_C[row_E] = True
    labels, rarer = without_rare_classes(replace(labels, has_label_C=labels.has_label_C & has_counts_C))
    read = time.monotonic()
    kept_E = np.flatnonzero(labels.has_label_C[row_E])
    drawn = stratified_split(
        strata(labels, source),
        validation_share=config.validation_share,
        test_share=config.test_share,
        seed=config.seed,
    )
    split = Split(kept_E[drawn.train], kept_E[drawn.validation], kept_E[drawn.test])
    value_E = labels.value_C[row_E]
    if labels.task == "regression":
        check_training_numbers(value_E[split.train], labels.column, source)

    learned = learn(
        loaded, _head_config(loaded, labels, config), inputs, value_E, split, config, device, progress, watch
    )
    true, predicted, scores = _judged(learned, inputs, split, value_E, config)
    result = Finetuned(
        config,
        learned.head.config,
        source,
        str(loaded.info["weights_sha256"]),
        CellNumbers(
            len(split.train),
            len(split.validation),
            len(split.test),
            without_label,
            without_counts,
            rare | rarer,
        ),
        learned.parameters,
        learned.epochs,
        scores,
        true,
        predicted,
        {"read": read - started, "train": time.monotonic() - read},
        str(device),
    )
    _save(loaded, learned.head, result, out, report)
    return result


def _check_out(model_dir: Path, src: Source, out: Path) -> None:
    """ModelError or TrainingError, before any cell is read, where the model could not be written at the end."""
    folder = out.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=folder):
            pass
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    if out.exists() and model_dir.exists() and out.samefile(model_dir):
        raise TrainingError(f"{out} is the model to start from and would be overwritten; give another --out")
    if not isinstance(src, AnnData) and Path(src).exists() and out.resolve() in Path(src).resolve().parents:
        raise TrainingError(f"{src} lies in {out}, which would be replaced; give another --out")
    check_replaceable(out)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda: torch sees no GPU here; use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _inputs(
    loaded: LoadedModel,
    cells: Cells,
    labels: Labels,
    config: FinetuneConfig,
    device: torch.device,
    progress: Progress | None,
) -> tuple[Inputs, npt.NDArray[np.int64]]:
    """The labelled cells' inputs, and their rows in the source, int64 (E,)."""
    if config.tune == "head":
        embedder = Embedder(
            loaded, device=str(device), precision=config.precision, max_tokens=config.max_tokens
        )
        vectors, row_E = read_cells(
            cells,
            labels.has_label_C,
            lambda batch: embedder.encode(batch, pool=config.pool, target=config.target),
            progress,
        )
        return VectorInputs(np.concatenate(vectors), device), row_E

    def tokens_of(batch: CellBatch) -> Any:
        return tokenize(batch, n_genes=loaded.config.n_genes, target=config.target)

    tokens, row_E = read_cells(cells, labels.has_label_C, tokens_of, progress)
    return TokenInputs(TokenizedCells(tokens), config.max_tokens, device), row_E


def _head_config(loaded: LoadedModel, labels: Labels, config: FinetuneConfig) -> HeadConfig:
    width = loaded.config.encoder_width * (4 if config.pool == "all" else 1)
    return HeadConfig(
        labels.task, labels.column, labels.classes, config.pool, config.target, width, config.hidden
    )


def _judged(
    learned: Learned,
    inputs: Inputs,
    split: Split,
    value_E: npt.NDArray[Any],
    config: FinetuneConfig,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], ClassificationScores | RegressionScores]:
    """Labels of the test cells, what the model says of them, and how right that is."""
    true = value_E[split.test]
    head = learned.head
    found = outputs(learned.encoder, head, inputs, split.test, config.precision)
    if head.config.task == "regression":
        return true, found.numpy(), regression_scores(true, found.numpy())
    probability = found.double().softmax(1).numpy()
    return true, probability.argmax(1), classification_scores(true, probability, head.config.classes)


def _save(
    loaded: LoadedModel,
    head: Head,
    result: Finetuned,
    out: Path,
    report: Callable[[Finetuned], str] | None,
) -> None:
    record = result.record()
    files = head_files(head)
    extra = loaded.info | {
        HEAD_HASH: head_hash(files),
        # ``before`` keeps that of the model it started from: who wants the decoder must know of every run.
        "finetuned": {key: record[key] for key in ("config", "source", "base_sha256")}
        | {"before": loaded.info.get("finetuned")},
    }
    files[RECORD_FILE] = (json.dumps(record, indent=2) + "\n").encode()
    if report:
        files[REPORT_FILE] = report(result).encode()
    save_model(loaded.model, loaded.vocab_genes, out, extra, files)
