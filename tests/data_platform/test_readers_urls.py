"""Sources behind URLs, folders and patterns of sources."""

from __future__ import annotations

import builtins
import gzip
import http.server
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anndata
import fsspec
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse as sp

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.plan import identity
from cellfoundry_data.readers import expand_sources, open_source
from cellfoundry_data.readers.base import reading

from .conftest import MakeStore, random_cells

CELLS, GENES = 40, 7
DENSE = np.random.default_rng(0).poisson(0.7, (CELLS, GENES)).astype(np.float32)
DENSE[:, 0] += 1  # every cell and gene has an entry, so that the long form holds all of them
DENSE[0] += 1


def write_all(folder: Path) -> list[str]:
    """One source of every format; their names."""
    cells, genes = [f"c{row}" for row in range(CELLS)], [f"g{column}" for column in range(GENES)]
    matrix = sp.csr_matrix(DENSE)
    data = anndata.AnnData(matrix, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=genes))
    data.write_h5ad(folder / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write_zarr(folder / "a.zarr")
    data.to_df().to_csv(folder / "a.csv.gz")
    np.save(folder / "a.npy", DENSE)
    sp.save_npz(folder / "a.npz", matrix.tocoo())
    rows, columns = np.nonzero(DENSE)
    long = {"cell": np.array(cells)[rows], "gene": np.array(genes)[columns], "count": DENSE[rows, columns]}
    pq.write_table(pa.table(long), folder / "a.parquet")
    with h5py.File(folder / "a.loom", "w") as file:
        file["matrix"] = DENSE.T
        file["row_attrs/Gene"], file["col_attrs/CellID"] = np.array(genes, "S"), np.array(cells, "S")
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["barcodes"], group["shape"] = np.array(cells, "S"), [GENES, CELLS]
        group["features/id"] = group["features/name"] = np.array(genes, "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * GENES, "S")
    (folder / "mtx").mkdir()
    scipy.io.mmwrite(folder / "mtx" / "matrix.mtx", matrix.T.astype(int))
    for name, lines in (
        ("features", [f"{gene}\t{gene}\tGene Expression" for gene in genes]),
        ("barcodes", cells),
    ):
        (folder / "mtx" / f"{name}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return sorted(path.name for path in folder.iterdir())


NAMES = ["a.csv.gz", "a.h5", "a.h5ad", "a.loom", "a.npy", "a.npz", "a.parquet", "a.zarr", "mtx"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources")
    assert write_all(path) == NAMES
    return path


class _RangeServer(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; gives ranges, as every web server but Python's own does."""

    sent: ClassVar[list[int]] = []
    ranges = True

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.ranges or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.sent.append(stop - start)
        self.wfile.write(content[start:stop])


class _PlainServer(_RangeServer):
    ranges = False


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has seen enough hangs up."""


@contextmanager
def serving(handler: type[_RangeServer], folder: Path) -> Iterator[str]:
    with _Server(("127.0.0.1", 0), partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[str]:
    with serving(_RangeServer, folder) as url:
        yield url


@pytest.fixture(scope="module")
def web_without_ranges(folder: Path) -> Iterator[str]:
    with serving(_PlainServer, folder) as url:
        yield url


@pytest.fixture(scope="module")
def memory(folder: Path) -> str:
    fsspec.filesystem("memory").put(str(folder), "/sources", recursive=True)
    return "memory://sources"


def matrix_of(path: str) -> np.ndarray:
    source = open_source(path)
    blocks = [block for _, block in source.blocks(16)]
    return sp.vstack(blocks).toarray()


@pytest.mark.parametrize("name", NAMES)
def test_object_store(name: str, memory: str, folder: Path) -> None:
    np.testing.assert_array_equal(matrix_of(f"{memory}/{name}"), DENSE)
    assert open_source(f"{memory}/{name}").obs.equals(open_source(folder / name).obs)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mtx"])
def test_web_server(name: str, web: str) -> None:
    np.testing.assert_array_equal(matrix_of(f"{web}/{name}"), DENSE)


@pytest.mark.parametrize("name", ["a.h5ad", "a.npz", "a.csv.gz", "a.parquet", "a.npy"])
def test_web_server_without_ranges(name: str, web_without_ranges: str) -> None:
    np.testing.assert_array_equal(matrix_of(f"{web_without_ranges}/{name}"), DENSE)


def test_query_and_folder_of_the_web(web: str) -> None:
    np.testing.assert_array_equal(matrix_of(f"{web}/a.h5ad?token=x.csv"), DENSE)
    assert open_source(f"{web}/a.h5ad?token=x.csv").name == "a.h5ad"
    np.testing.assert_array_equal(matrix_of(f"{web}/mtx"), DENSE)


def test_a_block_of_a_large_file_fetches_only_its_ranges(tmp_path: Path) -> None:
    size = 4_000_000
    matrix = sp.csr_matrix(
        (
            np.ones(size, np.float32),
            np.tile(np.arange(100, dtype=np.int32), size // 100),
            np.arange(0, size + 1, 100),
        )
    )
    anndata.AnnData(matrix).write_h5ad(tmp_path / "large.h5ad")
    with serving(_RangeServer, tmp_path) as url:
        source = open_source(f"{url}/large.h5ad")
        _RangeServer.sent.clear()
        first, block = next(iter(source.blocks(1000, 20_000)))
    assert (first, block.nnz) == (20_000, 100_000)
    assert sum(_RangeServer.sent) < (tmp_path / "large.h5ad").stat().st_size / 2


def test_file_url(folder: Path) -> None:
    np.testing.assert_array_equal(matrix_of(f"file://{folder}/a.h5ad"), DENSE)


@pytest.mark.parametrize("name", ["a #1 100%25?.h5ad", "a%20%231%20100%2525%3F.h5ad"])
def test_file_url_of_a_name_with_marks(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.h5ad", tmp_path / "a #1 100%25?.h5ad")
    np.testing.assert_array_equal(matrix_of(f"file://{tmp_path}/{name}"), DENSE)


@pytest.mark.parametrize("url", ["memory://none/a.h5ad", "memory://none/a.csv", "memory://none/folder"])
def test_missing_url(url: str) -> None:
    with pytest.raises(DataError, match=r": no such file or folder\.$"):
        open_source(url)


def test_unreachable_server_and_unknown_protocol() -> None:
    with pytest.raises(DataError, match=r"^nope://x/a.h5ad: .*\.$"):
        open_source("nope://x/a.h5ad")
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/a.h5ad: .*\.$"):
        open_source("http://127.0.0.1:9/a.h5ad")


def test_an_object_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cellfoundry_data.ingest.plan._remote_files", lambda url: 1 / 0
    )  # no OSError, like obstore's
    assert identity("s3://bucket/a.h5ad")[1] == 0
    with (
        pytest.raises(DataError, match="server cannot be reached"),
        reading("s3://bucket/a.h5ad", "a source"),
    ):
        raise ConnectionError("refused")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_obstore(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_obstore)
    with pytest.raises(DataError, match=r"pip install 'cellfoundry\[cloud\]'\.$"):
        open_source("s3://bucket/a.h5ad")


# --- folders and patterns --------------------------------------------------------------------------------


@pytest.fixture
def tree(folder: Path, tmp_path: Path) -> Path:
    """Sources in two levels, beside other files."""
    shutil.copytree(folder, tmp_path / "data" / "all")
    shutil.copy(folder / "a.h5ad", tmp_path / "data" / "z.h5ad")
    (tmp_path / "data" / "parts").mkdir()
    entries = pq.read_table(folder / "a.parquet").sort_by("cell")
    for part, start in (("a", 0), ("b", len(entries) // 2)):
        half = entries.slice(start, len(entries) // 2 if part == "a" else None)
        pq.write_table(half, tmp_path / "data" / "parts" / f"{part}.parquet")
    for name in ("README.md", "all/notes.txt", ".hidden.h5ad"):
        (tmp_path / "data" / name).write_text("x")
    return tmp_path / "data"


def test_folder(tree: Path) -> None:
    with pytest.warns(UserWarning, match=r"^2 files that are no source of counts were skipped \(.*README.md"):
        found = expand_sources([tree])
    assert found == sorted(
        str(tree / name) for name in [*(f"all/{name}" for name in NAMES), "parts", "z.h5ad"]
    )
    assert all(open_source(path).n_cells == CELLS for path in found)


def test_a_store_beside_its_sources_is_passed_over(tree: Path, make_store: MakeStore) -> None:
    store = make_store(tree / "all" / "store", random_cells(20))
    with pytest.warns(UserWarning, match=r"^3 files that are no source .*all/store"):
        found = expand_sources([tree])
    assert len(found) == len(NAMES) + 2
    with pytest.raises(DataError, match="store: is a store and names no source of counts"):
        expand_sources([store])


def test_patterns(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand_sources([str(tree / "*.h5ad")]) == [str(tree / "z.h5ad")]
    both = [str(tree / "all" / "a.h5ad"), str(tree / "z.h5ad")]
    assert expand_sources([str(tree / "**" / "*.h5ad")]) == both
    assert expand_sources([tree / "z.h5ad", tree / "all" / "a.h5ad"]) == both
    assert expand_sources([str(tree / "*" / "mt?")]) == [str(tree / "all" / "mtx")]
    monkeypatch.chdir(tree.parent)
    assert expand_sources(["data/all/a.[hz]*"]) == [f"data/all/a.{end}" for end in ("h5", "h5ad", "zarr")]
    with pytest.warns(UserWarning, match="1 files"):
        assert expand_sources(["data/*.*"]) == ["data/z.h5ad"]


def test_a_name_with_brackets_is_no_pattern(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.h5ad", tmp_path / "a[1].h5ad")
    assert expand_sources([tmp_path / "a[1].h5ad"]) == [str(tmp_path / "a[1].h5ad")]


def test_urls_of_folders_and_patterns(memory: str, web: str) -> None:
    in_memory = [f"memory:///sources/{name}" for name in NAMES]
    assert expand_sources([memory]) == in_memory
    assert expand_sources([f"{memory}/*.h5*"]) == in_memory[1:3]
    assert expand_sources([f"{web}/a.h5ad"]) == [f"{web}/a.h5ad"]
    for path in in_memory:
        np.testing.assert_array_equal(matrix_of(path), DENSE)


def test_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for none in (tmp_path / "empty", tmp_path / "*.h5ad", "memory://nothing/*.h5ad"):
        with pytest.raises(DataError, match=r": names no source of counts; accepted are \.h5ad"):
            expand_sources([none])
    (tmp_path / "x.xlsx").touch()
    for named in ("x.xlsx", "missing.h5ad"):  # said where it is opened, by name
        assert expand_sources([tmp_path / named]) == [str(tmp_path / named)]
        with pytest.raises(DataError):
            open_source(tmp_path / named)
