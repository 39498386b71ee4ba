"""The images' recipe, read as text: no container engine is needed, so none is asserted."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "infra" / "docker" / "Dockerfile"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(instruction, arguments) in order, continued lines joined, comments dropped."""
    lines = [line for line in RECIPE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined if line.strip()]


def stages() -> dict[str, tuple[str, list[Instruction]]]:
    """Each stage's base and its own instructions."""
    found: dict[str, tuple[str, list[Instruction]]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            base, _, stage = arguments.split()
            own: list[Instruction] = []
            found[stage] = (base, own)
        else:
            own.append((name, arguments))
    return found


def history(target: str) -> list[Instruction]:
    """What made an image: its stage's instructions after those of the stages it builds on."""
    base, own = stages()[target]
    return (history(base) if base in stages() else []) + own


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


def test_base_tags_and_python_packages_are_pinned() -> None:
    """Not digests, Debian packages or build tools: the README says so."""
    outside = {base for base, _ in stages().values() if base not in stages()}
    assert outside
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", base) for base in outside)
    installs = [
        arguments for name, arguments in instructions() if name == "RUN" and "pip install" in arguments
    ]
    assert len(installs) == 2
    assert all("--constraint requirements.lock" in arguments for arguments in installs)


def test_its_extras_exist_and_let_it_be_a_ray_head_and_tune_with_lora() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for build in ("build-cpu", "build-cuda"):
        (listed,) = re.findall(r"'\.\[([a-z,-]+)\]'", str(stages()[build]))
        assert set(listed.split(",")) <= set(extras)
        assert {"cluster", "lora"} <= set(listed.split(","))


def test_images_end_as_an_ordinary_user_at_the_help() -> None:
    for target in ("cpu", "cuda"):
        last = dict(history(target))  # the last of each kind wins
        assert int(last["USER"]) > 0
        assert json.loads(last["ENTRYPOINT"]) == ["cellfoundry"]
        assert json.loads(last["CMD"]) == ["--help"]
        copied = [arguments for name, arguments in history(target) if name == "COPY"]
        assert copied == [f"--from=build-{target} /opt/cellfoundry /opt/cellfoundry"]


def test_kuberay_finds_what_it_calls() -> None:
    """Its probes call wget, and its login shells read /etc/profile, which forgets the image's PATH."""
    runs = " ".join(arguments for name, arguments in history("cpu") if name == "RUN")
    assert " wget " in runs
    assert "'PATH=/opt/cellfoundry/bin:$PATH' > /etc/profile.d/" in runs
