"""Kubernetes manifests: KubeRay's schema accepts them, their jobs run commands that exist, on volumes that exist, not
as root, behind a token.
"""

from __future__ import annotations

import copy
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "k8s"
JOBS = ("ingest", "pretrain", "embed")
Parse = Callable[[Sequence[str]], dict[str, Any]]


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    definition = yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(definition)
    return jsonschema.Draft202012Validator(definition)


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def ray_object(name: str) -> dict[str, Any]:
    """The RayCluster or RayJob of a manifest."""
    (found,) = (each for each in objects(name) if each["apiVersion"] == "ray.io/v1")
    return found


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = ray_object(name)["spec"]
    return spec if name == "cluster" else spec["rayClusterSpec"]


def pods(name: str) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(name)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def arguments_of(job: str, environment: dict[str, str], run: Path) -> list[str]:
    """What the job hands to ``cellfoundry``: its entrypoint, or what the script of its ConfigMap comes to."""
    words = shlex.split(ray_object(job)["spec"]["entrypoint"])
    if words[0] == "cellfoundry":
        return words[1:]
    shell, path = words
    (script,) = (each["data"][Path(path).name] for each in objects(job) if each["kind"] == "ConfigMap")
    here = script.replace("/data/runs/3m/config.yaml", str(run / "config.yaml"))
    done = subprocess.run([shell, "-c", here], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_all_manifests_are_looked_at() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"storage", "cluster", "serve", *JOBS}


@pytest.mark.parametrize("name", ["cluster", *JOBS])
def test_kuberay_accepts_it(name: str, schema: jsonschema.Draft202012Validator) -> None:
    schema.validate(ray_object(name))


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what lies at a dotted path, list positions as numbers; None deletes it."""

    def apply(tree: Any) -> None:
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            tree = tree[step]
        if value is None:
            del tree[last]
        else:
            tree[last] = value

    return apply


@pytest.mark.parametrize(
    "edit",
    [
        change("spec.entryPoint", "a misspelt field"),
        change("spec.rayClusterSpec", None),
        change("spec.shutdownAfterJobFinishes", False),
        change("spec.backoffLimit", "2"),
        change("spec.submissionMode", "SshMode"),
        change("spec.rayClusterSpec.authOptions.mode", "password"),
        change("spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        change("spec.rayClusterSpec.workerGroupSpecs.0.groupName", None),
        change(
            "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory",
            "16GB",
        ),
        change("spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.emptyDir", {}),
    ],
)
def test_the_schema_refuses_what_kuberay_would(
    edit: Callable[[dict[str, Any]], None], schema: jsonschema.Draft202012Validator
) -> None:
    manifest = copy.deepcopy(ray_object("ingest"))
    edit(manifest)
    assert list(schema.iter_errors(manifest))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_runs_a_command_that_exists(
    job: str, parse: Parse, echoing_path: dict[str, str], tmp_path: Path
) -> None:
    parse(arguments_of(job, echoing_path, tmp_path))


@pytest.mark.parametrize("started_before", [False, True])
def test_a_retried_pretraining_resumes(
    started_before: bool, parse: Parse, echoing_path: dict[str, str], tmp_path: Path
) -> None:
    if started_before:
        (tmp_path / "config.yaml").touch()
    assert parse(arguments_of("pretrain", echoing_path, tmp_path))["resume"] is started_before


def test_pretraining_has_a_gpu_for_each_of_its_workers(
    parse: Parse, echoing_path: dict[str, str], tmp_path: Path
) -> None:
    from cellfoundry_training.config import load_config

    parameters = parse(arguments_of("pretrain", echoing_path, tmp_path))
    (workers,) = cluster_of("pretrain")["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    gpus = workers["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert load_config(parameters["config"], parameters["set_"]).workers == gpus


@pytest.mark.parametrize("name", ["cluster", *JOBS])
def test_pods_are_not_root_and_mount_what_exists(name: str) -> None:
    claim = objects("storage")[0]["metadata"]["name"]
    maps = {each["metadata"]["name"] for each in objects(name) if each["kind"] == "ConfigMap"}
    for pod in pods(name):
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= maps


@pytest.mark.parametrize("name", ["cluster", *JOBS])
def test_a_cluster_asks_for_a_token_and_says_its_ray(name: str) -> None:
    import ray

    assert cluster_of(name)["authOptions"] == {"mode": "token"}
    assert cluster_of(name)["rayVersion"] == ray.__version__


def test_jobs_hand_files_on_to_each_other(parse: Parse, echoing_path: dict[str, str], tmp_path: Path) -> None:
    ingest, pretrain, embed = (parse(arguments_of(job, echoing_path, tmp_path)) for job in JOBS)
    assert str(pretrain["store"]) == ingest["store"]
    assert embed["model"] == pretrain["run"] / "model"


def test_images_are_those_of_this_version() -> None:
    from cellfoundry import __version__

    images = {pod["containers"][0]["image"] for name in ("cluster", *JOBS) for pod in pods(name)}
    assert images == {f"cellfoundry:{__version__}-{target}" for target in ("cpu", "cuda")}
    gpu = {name for name in ("cluster", *JOBS) for pod in pods(name) if "nvidia.com/gpu" in str(pod)}
    assert {next(pods(name))["containers"][0]["image"].rpartition("-")[2] for name in gpu} == {"cuda"}
