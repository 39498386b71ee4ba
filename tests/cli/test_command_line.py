"""The installed command as a user runs it: instant help, one sentence and exit code 2 for every mistake."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from .conftest import COMMAND, entry_point, program


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directory with random weights of the tiny preset over the real vocabulary."""
    import torch

    from cellfoundry_data.vocabulary import Vocabulary
    from cellfoundry_model.architecture import CellModel
    from cellfoundry_model.checkpoint import save_model
    from cellfoundry_model.presets import PRESETS

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(CellModel(PRESETS["tiny"]), Vocabulary.named("scfoundation").genes, folder, {})
    return folder


def write_h5ad(path: Path, counts: np.ndarray, genes: list[str]) -> Path:
    cells = [f"cell{row}" for row in range(len(counts))]
    obs, var = pd.DataFrame(index=cells), pd.DataFrame(index=genes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns of the repeated genes that one test is about
        anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


GENES = ["CD3D", "CD8A", "MS4A1", "LYZ", "NKG7", "GNLY", "PPBP", "FCER1A"]


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nsys.argv = ['cellfoundry', '--help']\nfrom cellfoundry.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'numpy', 'pandas', 'anndata', 'pydantic', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "command",
    [
        ("quickstart",),
        ("data", "ingest"),
        ("data", "info"),
        ("data", "verify"),
        ("data", "report"),
        ("data", "export"),
        ("train", "pretrain"),
        ("train", "finetune"),
        ("predict",),
        ("model", "import"),
        ("model", "info"),
        ("model", "export"),
        ("embed",),
        ("serve",),
        ("bench", "list"),
        ("bench", "run"),
        ("bench", "report"),
    ],
    ids=" ".join,
)
def test_every_promised_command_has_help(command: tuple[str, ...]) -> None:
    result = entry_point(*command, "--help")
    assert result.returncode == 0
    assert "Usage: cellfoundry" in result.stdout


@pytest.mark.parametrize(
    ("number", "code", "suffix"), [(signal.SIGINT, 130, "zarr"), (signal.SIGTERM, 143, "npy")]
)
def test_a_stopped_command_leaves_nothing(
    number: int, code: int, suffix: str, model_dir: Path, tmp_path: Path
) -> None:
    source = write_h5ad(tmp_path / "cells.h5ad", np.ones((200_000, len(GENES))), GENES)
    process = subprocess.Popen(
        [str(COMMAND), "embed", str(source), "--model", str(model_dir), "--out", f"out.{suffix}"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A parent may have Ctrl-C ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("embed: ")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [source]


def test_version_is_the_packages() -> None:
    import importlib.metadata

    assert program("--version").stdout.split() == [
        "cellfoundry",
        importlib.metadata.version("cellfoundry"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.h5ad", None, ("missing.h5ad",)),
        ("cells.docx", b"text", (".docx", ".h5ad", ".csv")),
        ("garbage.h5ad", b"this is not hdf5" * 100, ("garbage.h5ad",)),
        ("garbage.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, ("garbage.h5",)),
        ("empty.csv", b"", ("empty.csv",)),
        ("header_only.csv", b"cell,CD3D,CD8A\n", ("header_only.csv",)),
        ("garbage.npy", b"\x93NUMPY garbage", ("garbage.npy",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_source_is_one_sentence(
    name: str, content: bytes | None, words: tuple[str, ...], model_dir: Path, tmp_path: Path
) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    out = tmp_path / "out.h5ad"
    assert_refused(entry_point("embed", source, "--model", model_dir, "--out", out), *words)
    assert sorted(tmp_path.iterdir()) == ([source] if content is not None else [])


@pytest.mark.parametrize(
    ("value", "words"),
    [(-1.0, ("-1",)), (np.nan, ("nan",)), (np.inf, ("inf",)), (0.5, ("--pre-normalized T",))],
    ids=["negative", "nan", "infinite", "fraction"],
)
def test_impossible_count_names_row_and_gene(
    value: float, words: tuple[str, ...], model_dir: Path, tmp_path: Path
) -> None:
    counts = np.ones((4, len(GENES)))
    counts[2, 3] = value
    source = write_h5ad(tmp_path / "cells.h5ad", counts, GENES)
    out = tmp_path / "out.npy"
    result = entry_point("embed", source, "--model", model_dir, "--out", out)
    assert_refused(result, "cells.h5ad", "cell2", "LYZ", *words)
    assert sorted(tmp_path.iterdir()) == [source]


def test_foreign_genes_are_shown_beside_the_vocabulary(model_dir: Path, tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "mouse.h5ad", np.ones((3, 3)), ["Cd3d", "Cd8a", "Ms4a1"])
    result = entry_point("embed", source, "--model", model_dir, "--out", tmp_path / "out.npy")
    assert_refused(result, "mouse.h5ad", "0 of 3", "Cd3d", "A1BG")


def test_cells_without_counts_become_nan_in_place_and_are_counted(model_dir: Path, tmp_path: Path) -> None:
    counts = np.ones((5, len(GENES)))
    counts[[1, 3]] = 0
    source = write_h5ad(tmp_path / "cells.h5ad", counts, GENES)
    result = program("embed", source, "--model", model_dir, "--out", tmp_path / "out.npy")
    assert result.returncode == 0, result.stderr
    assert next(line for line in result.stderr.splitlines() if line.startswith("warning: ")).count("2") >= 1
    embedding = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert np.isnan(embedding).any(axis=1).tolist() == [False, True, False, True, False]


def test_duplicate_genes_are_summed_and_said(model_dir: Path, tmp_path: Path) -> None:
    split = write_h5ad(tmp_path / "split.h5ad", np.full((3, 9), 2), [*GENES, "CD3D"])
    counts = np.full((3, 8), 2)
    counts[:, 0] = 4
    whole = write_h5ad(tmp_path / "whole.h5ad", counts, GENES)
    for source in (split, whole):
        result = entry_point("embed", source, "--model", model_dir, "--out", source.with_suffix(".npy"))
        assert result.returncode == 0, result.stderr
        assert ("summed" in result.stderr) == (source == split)
    np.testing.assert_allclose(
        np.load(split.with_suffix(".npy")), np.load(whole.with_suffix(".npy")), rtol=0, atol=1e-5
    )


def test_unknown_output_suffix_is_refused_before_any_work(model_dir: Path, tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "cells.h5ad", np.ones((3, len(GENES))), GENES)
    result = entry_point("embed", source, "--model", model_dir, "--out", tmp_path / "out.xlsx")
    assert_refused(result, ".xlsx", ".h5ad", ".parquet")


def test_missing_model_directory_is_one_sentence(tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "cells.h5ad", np.ones((3, len(GENES))), GENES)
    result = program("embed", source, "--model", tmp_path / "nowhere", "--out", tmp_path / "out.npy")
    assert_refused(result, "nowhere")


def test_malicious_checkpoint_never_runs(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    checkpoint = tmp_path / "bad.ckpt"
    checkpoint.write_bytes(pickle.dumps(Payload()))
    assert_refused(program("model", "import", checkpoint, "--out", tmp_path / "model"), "bad.ckpt")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model").exists()


def test_engine_without_an_export_names_the_command(model_dir: Path, tmp_path: Path) -> None:
    source = write_h5ad(tmp_path / "cells.h5ad", np.ones((3, len(GENES))), GENES)
    result = entry_point(
        "embed", source, "--model", model_dir, "--out", tmp_path / "out.npy", "--engine", "onnx"
    )
    assert_refused(result, "cellfoundry model export")


def test_unknown_config_key_is_named(tmp_path: Path) -> None:
    result = program(
        "train",
        "pretrain",
        "--config",
        "tiny",
        "--store",
        tmp_path,
        "--run",
        tmp_path / "run",
        "--set",
        "lerning_rate=1",
    )
    assert_refused(result, "lerning_rate", "learning_rate")


def test_public_bind_is_refused(model_dir: Path) -> None:
    assert_refused(program("serve", "--model", model_dir, "--host", "0.0.0.0"), "0.0.0.0")


def test_unknown_suite_lists_the_known(tmp_path: Path) -> None:
    assert_refused(program("bench", "run", "nonsense", "--out", tmp_path), "nonsense", "kernels")


@pytest.mark.parametrize("form", [str, Path.as_uri], ids=["path", "URL"])
def test_an_export_that_cannot_be_made_is_one_sentence_and_leaves_nothing(
    form: Callable[[Path], str], model_dir: Path, tmp_path: Path
) -> None:
    result = entry_point(
        *("model", "export", model_dir, "--out", tmp_path / "out"),
        *("--format", "onnx", "--precision", "int8", "--calibrate", form(tmp_path / "no.h5ad")),
    )
    assert_refused(result, f"error: {tmp_path}/no.h5ad: no such file")
    assert list(tmp_path.iterdir()) == []
