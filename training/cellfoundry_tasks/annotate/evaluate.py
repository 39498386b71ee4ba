"""The few-shot curve: every way to annotate on the same splits.

Legend: C labelled cells, K features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_model.embedder import Embedder
from cellfoundry_tasks.annotate.config import AnnotateConfig
from cellfoundry_tasks.annotate.counts import normalised, training_pca
from cellfoundry_tasks.annotate.detail import detail_of
from cellfoundry_tasks.annotate.folds import macro_f1
from cellfoundry_tasks.annotate.labelled import Labelled, read_labelled
from cellfoundry_tasks.annotate.other_cells import differences
from cellfoundry_tasks.annotate.probe import Basis, Floats, Probe, side_by_side
from cellfoundry_tasks.annotate.result import Evaluation, Kind, Row
from cellfoundry_tasks.annotate.rivals import celltypist_classes, celltypist_library, commonest
from cellfoundry_tasks.annotate.splits import FewShot, few_shot, scarce_classes, seeds_of
from cellfoundry_tasks.annotate.tuning import Tuning, check_tunes
from cellfoundry_tasks.annotate.vectors import NO_GENES, FeatureMap, Vectors, variable_genes, vectors_of
from cellfoundry_tasks.baselines import pca
from cellfoundry_tasks.cells import Source
from cellfoundry_tasks.extra import library
from cellfoundry_tasks.facts import model_facts
from cellfoundry_tasks.numba_print import numba_print
from cellfoundry_tasks.representation import Progress, no_expression, open_model, random_twin

Classes = npt.NDArray[np.int64]

PROBE_NAMES = {
    "expression": "expression, PCA-{n}",
    "embedding": "embedding",
    "both": "expression, embedding",
    "with_counts": "expression, counts",
    "embedding_with_counts": "embedding, counts",
}
TUNE_NAMES = {
    "head": "fine-tuned: head alone",
    "last": "fine-tuned: last {n} layers",
    "lora": "fine-tuned: LoRA",
}


@dataclass(frozen=True)
class Way:
    """One way to annotate.

    Attributes:
        key: short name.
        name: for people.
        kind: whose say it is.
        classes: of (split, seed), the class numbers of its test cells.
    """

    key: str
    name: str
    kind: Kind
    classes: Callable[[FewShot, int], Classes]


@numba_print()
def evaluate(
    data: Source,
    model: str | Path | LoadedModel,
    config: AnnotateConfig,
    *,
    layer: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a model's probes, those of a twin with random weights, and baselines, on labelled cells.

    Args:
        data: labelled raw counts, which must fit in memory.
        model: model directory, or a model in memory.
        config: what to judge.
        layer: matrix of an AnnData to read; by default the first with whole counts.
        device: "auto" takes a GPU where there is one.
        progress: called with (label, done, total).

    Raises:
        DataError, ModelError: see the layers.
        TaskError: labels that cannot be learnt, or a library of the extra ``tasks`` is missing.
        TrainingError: an encoder that cannot be tuned as asked.
    """
    library("scanpy")
    with celltypist_library():
        pass  # missing libraries are told of before any work
    embedder = open_model(model, device=device)
    check_tunes(config, embedder.config.encoder_depth)
    labelled = read_labelled(data, config, layer=layer)
    started = time.monotonic()
    genes = variable_genes(labelled.cells, embedder, config.target, progress)
    vectors = vectors_of(labelled.cells, embedder, genes, config.target, progress=progress)
    pca_CK = pca(labelled.cells, config.components)
    pca_CK = Basis.of(pca_CK, None).features(pca_CK)
    features = probe_features(vectors, pca_CK, config)
    lacking = no_expression(embedder)
    twin_features = _twin_features(labelled, embedder, pca_CK, config, progress)
    represented = time.monotonic()
    ways = _ways(labelled, embedder, vectors, features, twin_features, pca_CK, config, progress)
    rows = _judge(ways, labelled, config, progress)
    middle = config.shots[(len(config.shots) - 1) // 2]
    detail = detail_of(
        features,
        pca_CK,
        labelled.class_C,
        labelled.classes,
        [few_shot(labelled, config, middle, seed) for seed in seeds_of(labelled, config, middle)],
        str(middle),
        config.regularisation,
    )
    size_K = np.bincount(labelled.class_C).tolist()
    return Evaluation(
        config,
        labelled.source,
        dict(zip(labelled.classes, size_K, strict=True)),
        None if labelled.heldout_C is None else int(labelled.heldout_C.sum()),
        (*labelled.left_out, str(lacking)) if lacking else labelled.left_out,
        {str(shot): scarce_classes(labelled, config, shot) for shot in config.shots},
        rows,
        detail,
        model_facts(embedder.loaded),
        str(embedder.device),
        {"represent": represented - started, "judge": time.monotonic() - represented},
    )


def probe_features(vectors: Vectors, pca_CK: Floats, config: AnnotateConfig) -> dict[str, Floats]:
    """Features (C, K) of each of the model's probes; their axes are of all these cells, without labels.

    Expression, or without it the embedding, beside the counts' own components answers whether the model adds to what is
    there without it.
    """
    found = {
        kind: FeatureMap.of(kind, vectors, config.components).features(vectors) for kind in vectors.kinds
    }
    first = vectors.kinds[0]
    key = "with_counts" if first == "expression" else "embedding_with_counts"
    return found | {key: side_by_side([found[first], pca_CK])}


def _twin_features(
    labelled: Labelled,
    embedder: Embedder,
    pca_CK: Floats,
    config: AnnotateConfig,
    progress: Progress | None,
) -> dict[str, Floats]:
    """The same of the model's form with random weights, without expression where the model has none."""
    twin = open_model(random_twin(embedder.loaded), device=str(embedder.device))
    genes = (
        NO_GENES if no_expression(embedder) else variable_genes(labelled.cells, twin, config.target, progress)
    )
    vectors = vectors_of(
        labelled.cells, twin, genes, config.target, label="random weights: ", progress=progress
    )
    return probe_features(vectors, pca_CK, config)


def _ways(
    labelled: Labelled,
    embedder: Embedder,
    vectors: Vectors,
    features: dict[str, Floats],
    twin_features: dict[str, Floats],
    pca_CK: Floats,
    config: AnnotateConfig,
    progress: Progress | None,
) -> list[Way]:
    """Everything that stands in the report, in its order."""
    class_C, classes = labelled.class_C, len(labelled.classes)
    logged = normalised(labelled.cells)

    def probe(feature_CK: Floats) -> Callable[[FewShot, int], Classes]:
        return lambda split, seed: _called(
            feature_CK[split.train], class_C[split.train], feature_CK[split.test], classes, config
        )

    def inductive(split: FewShot, seed: int) -> Classes:
        train_CK, test_CK = training_pca(logged, split, config.components)
        return _called(train_CK, class_C[split.train], test_CK, classes, config)

    def celltypist(split: FewShot, seed: int) -> Classes:
        return celltypist_classes(logged[split.train], class_C[split.train], logged[split.test])

    names = {kind: name.format(n=config.components) for kind, name in PROBE_NAMES.items()}
    ways = [Way(kind, f"model: {names[kind]}", "model", probe(features[kind])) for kind in features]
    if config.tune:
        tuning = Tuning(embedder, labelled, vectors.embedding_CW, config)
        ways += [
            Way(
                f"tune_{tune}",
                TUNE_NAMES[tune].format(n=config.last),
                "tuned",
                partial(tuning.classes, tune, progress=progress),
            )
            for tune in config.tune
        ]
    pcs = f"PCA-{config.components}"
    return [
        *ways,
        Way("counts", f"counts: {pcs}, all cells", "baseline", probe(pca_CK)),
        Way("counts_inductive", f"counts: {pcs}, training cells", "baseline", inductive),
        Way("celltypist", "CellTypist", "baseline", celltypist),
        *(
            Way(f"random_{kind}", f"random: {names[kind]}", "random", probe(twin_features[kind]))
            for kind in twin_features
        ),
        Way(
            "commonest",
            "commonest class",
            "trivial",
            lambda split, seed: commonest(class_C[split.train], len(split.test)),
        ),
    ]


def _called(
    train_CK: Floats, class_C: Classes, test_CK: Floats, classes: int, config: AnnotateConfig
) -> Classes:
    return Probe(train_CK, class_C, classes, config.regularisation).scores(test_CK).argmax(1)


def _judge(
    ways: list[Way], labelled: Labelled, config: AnnotateConfig, progress: Progress | None
) -> tuple[Row, ...]:
    """Every way on every split."""
    rows = [Row(way.key, way.name, way.kind, {}, {}, {}) for way in ways]
    done, total = 0, len(ways) * sum(len(seeds_of(labelled, config, shot)) for shot in config.shots)
    for shot in config.shots:
        splits = [few_shot(labelled, config, shot, seed) for seed in seeds_of(labelled, config, shot)]
        called: dict[str, list[Classes]] = {way.key: [] for way in ways}
        for seed, split in enumerate(splits):
            for way in ways:
                called[way.key].append(way.classes(split, seed))
                done += 1
                if progress:
                    progress("judge", done, total)
        true = [labelled.class_C[split.test] for split in splits]
        above = differences(called, "counts", labelled.class_C, splits)
        for row in rows:
            pairs = list(zip(true, called[row.key], strict=True))
            row.macro_f1[str(shot)] = [macro_f1(*pair) for pair in pairs]
            row.accuracy[str(shot)] = [float((right == said).mean()) for right, said in pairs]
            row.above_counts[str(shot)] = above[row.key]
    return tuple(rows)
