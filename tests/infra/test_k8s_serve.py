"""The endpoint's Deployment: its command is one of ours, its probes need no key, nothing accepted is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from typer.main import get_command

from cellfoundry import __version__
from cellfoundry.cli.main import app
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.app import create_app
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.service import Service

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "k8s"
DEPLOYMENT, SERVICE = yaml.safe_load_all((FOLDER / "serve.yaml").read_text())
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_its_command_is_one_of_ours() -> None:
    name, *arguments = CONTAINER["args"]
    parameters = get_command(app).commands[name].make_context(name, arguments).params
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": parameters["port"], "grpc": parameters["grpc_port"]}
    keys = {mount["name"]: Path(mount["mountPath"]) for mount in CONTAINER["volumeMounts"]}["keys"]
    assert parameters["api_keys"].parent == keys
    assert parameters["model"] == [
        "cells=/data/models/cells"
    ]  # a folder of versions: the header tells how to add one
    assert parameters["drain_s"] > CONTAINER["readinessProbe"]["periodSeconds"]
    assert parameters["drain_s"] + 2 * parameters["timeout"] < POD["terminationGracePeriodSeconds"]
    assert CONTAINER["image"] == f"cellfoundry:{__version__}-cpu"


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_need_no_key(probe: str) -> None:
    endpoint = create_app(Service([], Limits()), ApiKeys(["a-key-for-these-tests"]))
    asked = CONTAINER[probe]["httpGet"]
    with TestClient(endpoint) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get(asked["path"]).status_code != 401  # without a model it is alive, not ready
    assert asked["port"] in {port["name"] for port in CONTAINER["ports"]}


def test_pods_are_not_root_and_the_service_finds_them() -> None:
    claim = yaml.safe_load((FOLDER / "storage.yaml").read_text())["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert CONTAINER["securityContext"]["allowPrivilegeEscalation"] is False
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"])
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == labels == DEPLOYMENT["spec"]["selector"]["matchLabels"]
    assert {port["targetPort"] for port in SERVICE["spec"]["ports"]} <= {
        port["name"] for port in CONTAINER["ports"]
    }
