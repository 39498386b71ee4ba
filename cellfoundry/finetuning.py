"""Fine-tuning with its report: what the command and ``cf.finetune`` run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.config import FinetuneConfig, build_config
from cellfoundry_training.finetune.inputs import Progress
from cellfoundry_training.finetune.result import Finetuned
from cellfoundry_training.finetune.run import finetune as run_finetune

if TYPE_CHECKING:
    from anndata import AnnData

    from cellfoundry_training.finetune.fitting import Epoch


def finetune(
    model_dir: str | Path,
    data: AnnData | str | Path,
    out: str | Path,
    config: FinetuneConfig | None = None,
    *,
    layer: str | None = None,
    progress: Progress | None = None,
    watch: Callable[[Epoch], None] | None = None,
    **settings: Any,
) -> Finetuned:
    """Fine-tune ``model_dir`` on an obs column of ``data``; ``out`` becomes a model directory with a report in it.

    >>> cf.finetune("models/cell", adata, "models/typed", label="cell_type", tune="last", last=2)

    Args:
        model_dir: the model to start from.
        data: labelled raw counts: an AnnData, or a path that ``cellfoundry embed`` takes.
        out: model directory to write, whole or not at all.
        config: every setting; or give them as keywords, not both.
        layer: matrix of an AnnData to read; by default the first with whole counts.
        progress: called with (label, done, total).
        watch: called after every epoch.
        **settings: fields of ``FinetuneConfig``; ``label`` at least.

    Raises:
        DataError, ModelError, TrainingError: one sentence on what to mend.
    """
    if config is None:
        config = build_config(settings)
    elif settings:
        raise TrainingError(
            f"fine-tuning: config and {', '.join(settings)} are both given; put all settings into one of them"
        )
    return run_finetune(
        model_dir, data, out, config, layer=layer, report=_report, progress=progress, watch=watch
    )


def _report(result: Finetuned) -> str:
    from cellfoundry.report.finetune_report import page  # matplotlib, which a refused run need not wait for

    return page(result)
