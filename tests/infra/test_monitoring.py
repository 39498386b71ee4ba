"""Monitoring asks for what the endpoint really exports, where it really listens."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import yaml

from cellfoundry_serving.endpoint.app import create_app
from cellfoundry_serving.endpoint.metrics import Metrics
from cellfoundry_serving.endpoint.server import serve

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana_dashboard.json").read_text())
NAME = re.compile(r"\bcellfoundry_\w+")


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exposition() -> str:
    metrics = Metrics()
    metrics.requests.labels("200").inc()
    metrics.request_seconds.labels("/v1/embed").observe(0.5)
    model = metrics.of_model("cellfoundry", 1)
    model.waited(0.1)
    model.ran(tokens=900, seconds=0.2)
    model.answered(cells=2, seconds=0.3)
    return metrics.text()


def test_dashboard_asks_only_for_metrics_that_exist() -> None:
    exported = {match[0] for match in NAME.finditer(exposition())}
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert asked
    assert asked <= exported


def test_labels_in_expressions_are_exported_ones() -> None:
    labels = set(re.findall(r"(\w+)=\"", exposition()))
    asked = {label for text in expressions() for label in re.findall(r"(\w+)=~?\"", text)}
    grouped = {label for text in expressions() for label in re.findall(r"by \((\w+)\)", text)}
    assert asked | grouped <= labels


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert all(panel["title"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_scrapes_the_route_at_the_default_address() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    defaults = inspect.signature(serve).parameters
    address = f"{defaults['host'].default}:{defaults['port'].default}"
    assert job["static_configs"] == [{"targets": [address]}]
    assert f'"{job["metrics_path"]}"' in inspect.getsource(create_app)
