"""A training run's records in words: the line beside the progress, an evaluation, and the end of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellfoundry.cli.console import ProgressDisplay
    from cellfoundry_training.pretrain import PretrainResult

PHASES = ("data_wait_s", "mask_s", "forward_s", "backward_s", "optimizer_s", "communication_s")


def show(record: dict[str, Any], display: ProgressDisplay) -> None:
    """Put a record on the display: a step beside the progress, anything else as a line that stays."""
    if "heldout_loss" in record:
        display.line(evaluation_text(record))
    elif "warning" in record:
        display.line(f"warning: step {record['step']:,}: {record['warning']}")
    elif "loss" in record:
        display.note(step_text(record))


def step_text(record: dict[str, Any]) -> str:
    """``loss 0.5123, 31.0 cells/s, 38,100 tokens/s, MFU 41.3 %, data wait 0.2 %``: of these what it has."""
    parts = [f"loss {record['loss']:.4f}"]
    parts.append(f"{record['cells_per_s']:,.1f} cells/s")
    if "tokens_per_s" in record:
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    if record.get("mfu") is not None:
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    spent = sum(record.get(phase, 0.0) for phase in PHASES)
    if "forward_s" in record and spent > 0:
        parts.append(f"data wait {100 * record['data_wait_s'] / spent:.1f} %")
    return ", ".join(parts)


def evaluation_text(record: dict[str, Any]) -> str:
    """One line of an evaluation, without what it could not measure."""
    return f"step {record['step']:,}: " + _heldout_text(
        record["heldout_loss"],
        record["gene_mean_loss"],
        record["pearson_median"],
        record["probe_accuracy"],
        record["probe_macro_f1"],
    )


def result_text(result: PretrainResult) -> str:
    """The last line of a run: where the model is and what it reached."""
    return f"{result.model_dir}: step {result.steps:,}, " + _heldout_text(
        result.heldout_loss,
        result.gene_mean_loss,
        result.pearson_median,
        result.probe_accuracy,
        result.probe_macro_f1,
    )


def _heldout_text(
    loss: float | None,
    gene_mean_loss: float,
    pearson: float | None,
    accuracy: float | None,
    macro_f1: float | None,
) -> str:
    parts = [
        f"held-out masked MSE {'not a number' if loss is None else f'{loss:.4f}'} (gene means {gene_mean_loss:.4f})"
    ]
    if pearson is not None:
        parts.append(f"Pearson over a gene's cells {pearson:.3f}")
    if accuracy is not None and macro_f1 is not None:
        parts.append(f"linear probe {100 * accuracy:.1f} % right, macro-F1 {macro_f1:.3f}")
    return ", ".join(parts)
