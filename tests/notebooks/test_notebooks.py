"""Every notebook runs from its first cell to its last, as a reader would run it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[nbformat.NotebookNode]]]:
    """All notebooks, two at a time: most of their time goes into imports and small models, on one core each."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as two:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        for name in ("CELLFOUNDRY_MODEL", "SCFOUNDATION_CHECKPOINT"):
            patch.delenv(name, raising=False)
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # jupyter_core warns of its old folders without
        yield {path: two.submit(run, path, tmp_path_factory.mktemp(path.stem)) for path in NOTEBOOKS}
        two.shutdown(wait=False, cancel_futures=True)


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    asyncio.run(client.async_execute())  # its execute() would leave this thread's event loop open
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, executed: dict[Path, Future[nbformat.NotebookNode]]) -> None:
    notebook = executed[path].result()
    said = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # tqdm asks for ipywidgets, which nothing here needs; scanpy says that a small model has few genes to choose from.
    expected = ("TqdmWarning", "n_top_genes")
    errors = [output["text"] for output in said if output.get("name") == "stderr"]
    assert not [text for text in errors if not any(word in text for word in expected)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
