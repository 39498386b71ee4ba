"""Exports of a model directory for other engines."""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellfoundry_data.store.replace import remove
from cellfoundry_model.head_files import HEAD_FILES, HEAD_HASH
from cellfoundry_serving.atomic import check_parent
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import (
    CARD_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    ONNX_FILE,
    PLAN_FILE,
    PLAN_METADATA_FILE,
    VOCABULARY_FILE,
)

if TYPE_CHECKING:
    from cellfoundry_serving.engines.torch import TorchEngine
    from cellfoundry_serving.export.check import Comparison, Progress

# The precisions of each format; the first is the default. TensorRT's fused attention needs half precision.
FORMATS = {"onnx": ("fp32", "fp16", "bf16", "int8"), "tensorrt": ("fp16", "bf16")}


@dataclass(frozen=True)
class Staged:
    """An engine's files in the temporary folder.

    Attributes:
        comparisons, note, built: see ``ExportReport``.
        served: the file that a Triton repository gets.
        form: of its batches, "ragged", "packed" or "padded": a key of ``triton_configs``.
    """

    comparisons: tuple[Comparison, ...]
    note: str
    served: Path
    form: str = "ragged"
    built: str = ""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how it compares with torch.

    Attributes:
        files: the engine's files.
        precision: their arithmetic.
        comparisons: with torch, one an output; none where the engine cannot run on this machine.
        note: how it was compared, and what was left out and why; or nothing.
        built: of a plan, whether its batches are packed or padded, and why.
        triton: the new version in a Triton repository, where one was asked for.
    """

    files: tuple[Path, ...]
    precision: str
    comparisons: tuple[Comparison, ...]
    note: str = ""
    built: str = ""
    triton: Path | None = None

    def summary(self) -> str:
        """Lines for people."""
        sizes = ", ".join(f"{file.name} {file.stat().st_size / 2**20:,.1f} MiB" for file in self.files)
        checked = [f"against torch, {comparison.summary()}" for comparison in self.comparisons]
        checked = checked or ["not checked: no GPU here to run it"]
        triton = f"Triton model version {self.triton}" if self.triton else ""
        return "\n".join(
            filter(None, [f"{self.precision}, {sizes}", self.built, *checked, self.note, triton])
        )


def export_model(
    model_dir: str | Path,
    out_dir: str | Path,
    format: str = "onnx",
    *,
    precision: str | None = None,
    decoder: bool = True,
    calibrate: str | Path | None = None,
    timing_cache: Path | None = None,
    triton: str | Path | None = None,
    progress: Progress = lambda label, done, total: None,
) -> ExportReport:
    """Exports a model directory; ``out_dir`` then opens with ``open_engine``.

    The files are written under a temporary name, run on cells beside torch, and put in place only if they
    agree; a plan built where no GPU can run it is the exception, and its report says so. ``out_dir`` is a new folder,
    or one that holds the same model (``model_dir`` itself, an older export).

    Args:
        model_dir: the model.
        out_dir: see above.
        format: "onnx" or "tensorrt" (cell embeddings only).
        precision: "fp32", "fp16", "bf16" or "int8" (the encoder alone), by default fp32; for TensorRT "fp16", by
            default, or "bf16".
        decoder: whether ONNX gets a second graph, for gene embeddings and expression. A model whose encoder was
            fine-tuned alone has no decoder that fits it, so it never does.
        calibrate: for int8, a source of real cells; by default the donor that ships with the package, where the model
            has the vocabulary "scfoundation".
        timing_cache: where TensorRT keeps what it measured of its kernels; by default a file of the user's cache
            folder for this TensorRT and GPU.
        triton: folder of a model in a Triton Inference Server repository, which gets the export as its next version.
        progress: called with (what is done, steps done, steps).

    Raises:
        ServingError: an unknown format or precision, an option that it does not use, TensorRT missing, a folder with
            something else in it, or a failed check.
        ModelError: a damaged model directory.
        DataError: a source of cells that cannot be read.
    """
    out, target = Path(out_dir), None if triton is None else Path(triton)
    precision = check_choice(format, precision)
    check_options(format, precision, calibrate, timing_cache)
    check_parent(out)
    from cellfoundry_serving.engines.torch import TorchEngine
    from cellfoundry_serving.export.card import write_card
    from cellfoundry_serving.export.triton import check_triton, new_version, triton_configs

    reference = TorchEngine(model_dir, device="cpu")
    configs = {}
    if target:
        configs = triton_configs(
            target.name, format, reference.loaded.config, str(reference.info["vocabulary_sha256"])
        )
        check_triton(target, configs.values())
    with temporary_directory(out) as staging:
        copy_model_files(Path(model_dir), staging, reference)
        check_target(staging, out)
        if format == "onnx":
            staged = stage_graphs(
                reference, staging, precision, decoder, calibrate, target is not None, progress
            )
        else:
            staged = stage_plan(reference, staging, precision, timing_cache, progress)
        write_card(reference.loaded, precision, staging, out, staged.comparisons, staged.note, staged.built)
        # A version that cannot be copied is an error before anything is in place.
        with new_version(target, configs[staged.form], staged.served) if target else nullcontext() as version:
            files = put_in_place(staging, out)
    return ExportReport(files, precision, staged.comparisons, staged.note, staged.built, version)


def check_choice(format: str, precision: str | None) -> str:
    """The precision to export; ServingError for a format or precision that is none."""
    if format not in FORMATS:
        raise ServingError(f"Unknown export format {format!r}; use one of {', '.join(FORMATS)}.")
    if precision is not None and precision not in FORMATS[format]:
        raise ServingError(
            f"No precision {precision!r} for {format} exports; use one of {', '.join(FORMATS[format])}."
        )
    return precision or FORMATS[format][0]


def check_options(
    format: str, precision: str, calibrate: str | Path | None, timing_cache: Path | None
) -> None:
    """Raises ServingError for an option that the export would not use."""
    if calibrate is not None and precision != "int8":
        raise ServingError(
            f"--calibrate is for int8, and this export is {precision}; add --precision int8 or leave it out."
        )
    if timing_cache is not None and format != "tensorrt":
        raise ServingError(
            f"--timing-cache is for TensorRT, and this export is {format}; use --format tensorrt or leave it out."
        )


def copy_model_files(source: Path, staging: Path, reference: TorchEngine) -> None:
    """Config and vocabulary, and a label head's files where the model has one."""
    for name in (CONFIG_FILE, VOCABULARY_FILE, *(HEAD_FILES if HEAD_HASH in reference.info else ())):
        shutil.copyfile(source / name, staging / name)


def stage_graphs(
    reference: TorchEngine,
    staging: Path,
    precision: str,
    decoder: bool,
    calibrate: str | Path | None,
    ragged: bool,
    progress: Progress,
) -> Staged:
    """The ONNX graphs and, with ``ragged``, the form for Triton, all compared with torch."""
    from cellfoundry_serving.export.onnx_files import stage_onnx
    from cellfoundry_serving.export.triton_files import stage_ragged

    misfit = why_no_decoder(reference) if decoder else ""
    onnx = stage_onnx(reference, staging, precision, decoder and not misfit, calibrate, progress)
    note = "\n".join(filter(None, [onnx.note, misfit and f"without {DECODER_FILE}: {misfit}"]))
    if not ragged:
        return Staged(tuple(onnx.comparisons), note, staging / ONNX_FILE)
    served, compared = stage_ragged(reference, staging, onnx, precision, progress)
    return Staged((*onnx.comparisons, *compared), note, served)


def stage_plan(
    reference: TorchEngine, staging: Path, precision: str, timing_cache: Path | None, progress: Progress
) -> Staged:
    """The TensorRT plan, compared with torch where a GPU can run it."""
    from cellfoundry_serving.export.check import checked_note
    from cellfoundry_serving.export.tensorrt_files import stage_tensorrt

    plan = stage_tensorrt(reference, staging, precision, timing_cache, progress)
    note = checked_note(len(reference.vocab_genes)) if plan.comparisons else ""
    return Staged(tuple(plan.comparisons), note, staging / PLAN_FILE, plan.layout, plan.built)


def why_no_decoder(reference: TorchEngine) -> str:
    """Why the model's decoder cannot be used, or nothing."""
    from cellfoundry_serving.encode import check_decoder_fits

    try:
        check_decoder_fits(reference.info, "gene")
    except ServingError as error:
        return str(error)
    return ""


@contextmanager
def temporary_directory(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, removed at the end whatever happens."""
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.absolute().parent))
    try:
        yield staging
    finally:
        remove(staging)


def check_target(staging: Path, out: Path) -> None:
    """Raises ServingError where ``out`` holds anything but the same model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not all(
        (out / name).is_file() and filecmp.cmp(staging / name, out / name, shallow=False)
        for name in (CONFIG_FILE, VOCABULARY_FILE)
    ):
        raise ServingError(f"{out} exists and holds something else than this model; give a new folder.")


def put_in_place(staging: Path, out: Path) -> tuple[Path, ...]:
    """Moves all there is and returns the engine's files in their new place.

    model.onnx or model.plan comes last, so that a reader never finds it without what belongs to it; a decoder of an
    older export goes before a new model.onnx comes.
    """
    out.mkdir(exist_ok=True)
    if (staging / ONNX_FILE).exists():
        (out / DECODER_FILE).unlink(missing_ok=True)
    engine_files = [file for file in (DECODER_FILE, PLAN_FILE, ONNX_FILE) if (staging / file).exists()]
    for name in (CONFIG_FILE, VOCABULARY_FILE, *HEAD_FILES, CARD_FILE, PLAN_METADATA_FILE, *engine_files):
        if (staging / name).exists():
            (staging / name).replace(out / name)
    return tuple(out / file for file in reversed(engine_files))
