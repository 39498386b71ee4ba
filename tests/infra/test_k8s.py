"""Kubernetes manifests: they parse, their jobs run commands that exist, on volumes that exist, never as root."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "k8s"
JOBS = {path.stem.removesuffix("-job"): path for path in sorted(FOLDER.glob("*-job.yaml"))}
Parse = Callable[[Sequence[str]], dict[str, Any]]


def pod_of(job: str) -> dict[str, Any]:
    manifest = yaml.safe_load(JOBS[job].read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return pod


def arguments_of(job: str, environment: dict[str, str]) -> list[str]:
    """What the job's container hands to ``cellfoundry``: its args, or what its shell line comes to."""
    (container,) = pod_of(job)["containers"]
    if "command" not in container:
        return [str(argument) for argument in container["args"]]
    line = [*container["command"], *container["args"]]
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize("job", JOBS)
def test_job_runs_a_command_that_exists(job: str, parse: Parse, echoing_path: dict[str, str]) -> None:
    parse(arguments_of(job, echoing_path))


def test_a_first_pretraining_pod_does_not_resume(parse: Parse, echoing_path: dict[str, str]) -> None:
    assert parse(arguments_of("pretrain", echoing_path))["resume"] is False


@pytest.mark.parametrize("job", JOBS)
def test_job_is_not_root_and_mounts_what_exists(job: str) -> None:
    pod = pod_of(job)
    (container,) = pod["containers"]
    claim = yaml.safe_load((FOLDER / "storage.yaml").read_text())["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim


def test_jobs_hand_files_on_to_each_other(parse: Parse, echoing_path: dict[str, str]) -> None:
    ingest, pretrain, embed = (
        parse(arguments_of(job, echoing_path)) for job in ("ingest", "pretrain", "embed")
    )
    assert str(pretrain["store"]) == ingest["store"]
    assert embed["model"] == pretrain["run"] / "model"


def test_the_image_has_the_version_of_the_package() -> None:
    from cellfoundry import __version__

    assert {pod_of(job)["containers"][0]["image"] for job in JOBS} == {f"cellfoundry:{__version__}"}
