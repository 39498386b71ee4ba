"""What a submitted command line becomes: checked here, local inputs placed, outputs and URLs untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cellfoundry.cluster.command import parse_command
from cellfoundry.cluster.errors import ClusterError


@pytest.fixture
def root() -> Any:
    from typer.main import get_command

    from cellfoundry.cli.main import app

    return get_command(app)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a source, a folder of sources, a config and a store."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5ad", "donors/b.h5ad", "donors/c.h5ad", "mine.yaml", "store/manifest.json", "X", "tiny"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


def on_cluster(root: Any, line: str, shared: list[Path] | None = None) -> tuple[str, list[str]]:
    """The command in the job, and the local inputs that travel, each placed as ``in/NAME``."""
    travels: list[str] = []

    def place(path: Path) -> str:
        travels.append(str(path))
        return f"in/{path.name}"

    return " ".join(parse_command(root, line.split()).on_cluster(place, shared or [])), travels


@pytest.mark.parametrize(
    ("line", "in_job", "travels"),
    [
        ("data ingest a.h5ad --store /s", "data ingest --store=/s in/a.h5ad", ["a.h5ad"]),
        (
            "data ingest donors/*.h5ad s3://b/x.h5ad --store=s3://b/s --max-mito 0.2 --append",
            "data ingest --store=s3://b/s --append --max-mito=0.2 in/b.h5ad in/c.h5ad s3://b/x.h5ad",
            ["donors/b.h5ad", "donors/c.h5ad"],
        ),
        ("data ingest donors --store /s", "data ingest --store=/s in/donors", ["donors"]),
        ("data info store", "data info in/store", ["store"]),
        ("data report store --out /p.html", "data report --out=/p.html in/store", ["store"]),
        ("data report /s", "data report /s", []),
        ("train report /r", "train report /r", []),
        ("bench run kernels --out /o", "bench run --out=/o kernels", []),
        (
            "train pretrain --config mine.yaml --store store --run /r --set workers=2 --resume",
            "train pretrain --config=in/mine.yaml --store=in/store --run=/r --set=workers=2 --resume",
            ["mine.yaml", "store"],
        ),
        # Names stay names, whatever lies in the current folder.
        (
            "train pretrain --config tiny --store /s --run /r --set a=mine.yaml --set b=0.5",
            "train pretrain --config=tiny --store=/s --run=/r --set=a=in/mine.yaml --set=b=0.5",
            ["mine.yaml"],
        ),
        (
            "embed /on/cluster.h5ad --model store --out /o.npy --layer X --precision bf16",
            "embed --model=in/store --out=/o.npy --precision=bf16 --layer=X /on/cluster.h5ad",
            ["store"],
        ),
        (
            "embed donors a.h5ad --model store --out /o.zarr --genes mine.yaml --workers 4 --num-gpus 1",
            "embed --model=in/store --out=/o.zarr --genes=in/mine.yaml --workers=4 --num-gpus=1.0 in/donors in/a.h5ad",
            ["donors", "a.h5ad", "store", "mine.yaml"],
        ),
    ],
)
def test_paths_become_what_holds_in_the_job(
    root: Any, here: Path, line: str, in_job: str, travels: list[str]
) -> None:
    assert on_cluster(root, line) == (in_job, travels)


def test_the_rewritten_command_parses_to_the_same_command(root: Any, here: Path) -> None:
    line = "data ingest a.h5ad --store /s --max-total 5e4 --profile fast --values float32 --fresh --seed 3"
    rewritten, _ = on_cluster(root, line)
    before, after = (parse_command(root, text.split()).context.params for text in (line, rewritten))
    assert {**after, "sources": None} == {**before, "sources": None}
    assert after["sources"] == ["in/a.h5ad"]


def test_what_the_cluster_sees_too_does_not_travel(root: Any, here: Path) -> None:
    line, travels = on_cluster(root, "data ingest a.h5ad --store stores/new", shared=[here])
    assert line == f"data ingest --store={here}/stores/new {here}/a.h5ad"
    assert travels == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data ingest a.h5ad --store atlas", ["--store atlas", "absolute path"]),
        ("embed a.h5ad --model store --out o.npy", ["--out o.npy", "absolute path"]),
        ("quickstart", ["--out quickstart", "absolute path"]),
        ("data info nothere", ["nothere", "does not exist here"]),
        ("data ingest nothere/*.h5ad --store /s", ["nothere/*.h5ad", "does not exist here"]),
        ("data report store", ["copy of store", "give --out"]),
        ("bench run kernels", ["job's temporary folder", "give --out"]),
        ("jobs list", ["jobs runs on this machine"]),
        ("serve --model store", ["serve runs on this machine"]),
        ("submit -- data info store", ["submit runs on this machine"]),
    ],
)
def test_what_cannot_work_on_the_cluster_is_refused(
    root: Any, here: Path, line: str, words: list[str]
) -> None:
    with pytest.raises(ClusterError) as refusal:
        on_cluster(root, line)
    for word in words:
        assert word in str(refusal.value)
