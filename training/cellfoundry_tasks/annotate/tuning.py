"""Fine-tuning on the probes' own splits, by the machinery of ``cellfoundry train finetune``.

Legend: C labelled cells.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.head import HeadConfig
from cellfoundry_model.token_batch import TokenizedCells
from cellfoundry_model.tokens import tokenize
from cellfoundry_tasks.annotate.config import AnnotateConfig, Tune
from cellfoundry_tasks.annotate.labelled import Labelled
from cellfoundry_tasks.annotate.splits import FewShot, Positions
from cellfoundry_tasks.representation import READ_CELLS
from cellfoundry_training.finetune.config import FinetuneConfig, build_config
from cellfoundry_training.finetune.fitting import outputs
from cellfoundry_training.finetune.inputs import Inputs, Progress, TokenInputs, VectorInputs
from cellfoundry_training.finetune.learn import Learned, learn
from cellfoundry_training.finetune.split import Split
from cellfoundry_training.finetune.tuned import check_tune

STOPPING_SHARE = 0.2
"""Share of each class's training cells that says how many epochs are best, one cell at least."""
BATCH_CELLS, STEPS, FEWEST_EPOCHS = 16, 600, 20
"""Few cells need many epochs: as many as make this many steps."""


class Tuning:
    """Fine-tunes a model anew for each split.

    Args:
        embedder: the model to start from; its weights stay as they are.
        labelled: all cells of all splits.
        embedding_CW: the model's embeddings of them, which tune head learns from.
        config: the run.

    Raises:
        TrainingError: an encoder that cannot be tuned so.
    """

    def __init__(
        self,
        embedder: Embedder,
        labelled: Labelled,
        embedding_CW: npt.NDArray[np.float32],
        config: AnnotateConfig,
    ) -> None:
        self._embedder, self._labelled, self._config = embedder, labelled, config
        self._vectors = VectorInputs(embedding_CW, embedder.device)
        self._tokens: TokenInputs | None = None
        if set(config.tune) - {"head"}:
            source = SourceCells(labelled.cells, Vocabulary(embedder.vocab_genes))
            parts = [
                tokenize(batch, n_genes=embedder.config.n_genes, target=config.target)
                for batch, _ in source.blocks(READ_CELLS)
            ]
            self._tokens = TokenInputs(TokenizedCells(parts), embedder.max_tokens, embedder.device)

    def classes(
        self, tune: Tune, split: FewShot, seed: int, *, progress: Progress | None = None
    ) -> npt.NDArray[np.int64]:
        """Class numbers of the test cells after training on all training cells, as every other row does: for as many
        epochs as were best for cells held back from a training on the others.
        """
        learning, stopping = self._parts(split.train, seed)
        config = finetune_config(self._config, tune, len(learning), seed)
        epochs = self._learned(tune, Split(learning, stopping, split.test), config, progress).epochs
        best = min(epochs, key=lambda epoch: epoch.validation_loss)
        everything = Split(split.train, np.empty(0, dtype=np.int64), split.test)
        config = config.model_copy(update={"max_epochs": best.epoch})
        learned = self._learned(tune, everything, config, progress)
        found = outputs(learned.encoder, learned.head, self._inputs(tune), split.test, config.precision)
        return found.argmax(1).numpy()

    def _learned(
        self, tune: Tune, parts: Split, config: FinetuneConfig, progress: Progress | None
    ) -> Learned:
        loaded = replace(self._embedder.loaded, model=copy.deepcopy(self._embedder.loaded.model))
        head = HeadConfig(
            "classification",
            self._config.label,
            self._labelled.classes,
            config.pool,
            config.target,
            self._embedder.width("cell", config.pool),
            config.hidden,
        )
        return learn(
            loaded,
            head,
            self._inputs(tune),
            self._labelled.class_C,
            parts,
            config,
            self._embedder.device,
            progress,
        )

    def _inputs(self, tune: Tune) -> Inputs:
        return self._vectors if tune == "head" or self._tokens is None else self._tokens

    def _parts(self, train: Positions, seed: int) -> tuple[Positions, Positions]:
        """The training cells that learn first, and those that say for how many epochs."""
        stopping = []
        for number in np.unique(self._labelled.class_C[train]):
            cells = train[self._labelled.class_C[train] == number]
            cells = np.random.default_rng([seed, int(number), 1]).permutation(cells)
            if len(cells) > 1:
                stopping.append(cells[: max(1, round(STOPPING_SHARE * len(cells)))])
        held = np.sort(np.concatenate(stopping))
        return np.setdiff1d(train, held), held


def check_tunes(config: AnnotateConfig, depth: int) -> None:
    """TrainingError, before any work, where an encoder of ``depth`` layers cannot be tuned as asked."""
    for tune in config.tune:
        check_tune(finetune_config(config, tune, BATCH_CELLS, 0), depth)


def finetune_config(config: AnnotateConfig, tune: Tune, cells: int, seed: int) -> FinetuneConfig:
    """How to fine-tune on so many cells."""
    epochs = max(FEWEST_EPOCHS, STEPS * BATCH_CELLS // cells)
    return build_config(
        {
            "label": config.label,
            "task": "classification",
            "tune": tune,
            "last": config.last if tune == "last" else None,
            "target": config.target,
            "batch_cells": BATCH_CELLS,
            "max_epochs": epochs,
            "patience": max(5, epochs // 10),
            "learning_rate": 3e-3,
            "encoder_learning_rate": 3e-4,
            "seed": seed,
        }
    )
