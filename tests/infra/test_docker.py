"""The image's recipe, read as text: no container engine is needed, so none is asserted."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "infra" / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined, comments dropped."""
    lines = [line for line in RECIPE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined if line.strip()]


def test_everything_copied_exists_and_covers_the_wheel() -> None:
    sources = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [package for package in packages if not {package, package.split("/")[0]} & set(sources)] == []
    assert set(project["project"]["license-files"]) | {project["project"]["readme"]} <= set(sources)


def test_it_installs_what_the_lock_says() -> None:
    runs = [arguments for name, arguments in instructions() if name == "RUN" and "pip install" in arguments]
    assert len(runs) == 1
    assert "--constraint requirements.lock" in runs[0]


def test_it_ends_as_an_ordinary_user_at_the_help() -> None:
    last = dict(instructions())  # the last of each kind wins
    assert int(last["USER"]) > 0
    assert json.loads(last["ENTRYPOINT"]) == ["cellfoundry"]
    assert json.loads(last["CMD"]) == ["--help"]
