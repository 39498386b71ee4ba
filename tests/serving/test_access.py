"""Who may ask: API keys, browsers' other origins, and what answers tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from odd_engines import BrokenEngine

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

KEY, OTHER = "k" * 32, "o" * 16


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# of the lab\n\n{OTHER}\n {KEY} \n")
    file.chmod(0o600)
    return file


def test_with_keys_every_route_but_the_probes_needs_one(
    engine: Engine, cells: CellBatch, key_file: Path
) -> None:
    with running(engine, keys=ApiKeys.read(key_file)) as url:
        routes = [
            ("GET", "/v2"),
            ("GET", "/v2/models/cellfoundry/ready"),
            ("POST", "/v2/models/cellfoundry/infer"),
            ("POST", "/v1/embed"),
            ("GET", "/metrics"),
            ("GET", "/nothing"),
        ]
        for method, path in routes:
            response = httpx.request(method, url + path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in response.json()["error"]
        wrong: list[dict[str, Any]] = [
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
            {"Authorization": "Bearer"},
            {"B-Authorization": ""},
            {"B-Authorization": KEY[:-1]},
            {"Authorization": b"Bearer \xff\xfe"},
        ]
        for headers in wrong:
            assert httpx.get(f"{url}/v2", headers=headers).status_code == 401
        right = [{"Authorization": f"bearer {KEY}"}, {"B-Authorization": KEY}, {"B-Authorization": OTHER}]
        for headers in right:
            assert httpx.get(f"{url}/v2", headers=headers).status_code == 200
        for probe in ("live", "ready"):
            assert httpx.get(f"{url}/v2/health/{probe}").status_code == 200
        with Client(url, api_key=KEY) as client:
            np.testing.assert_allclose(client.embed(cells), engine.encode(cells), atol=1e-4, rtol=0)
        with Client(url) as client, pytest.raises(ServingError, match="answered 401"):
            client.models()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("# none\n", "no API key in it"),
        (f"{KEY}\nshort\n", "line 2: a key must be at least 16"),
        (f"{KEY} {KEY}\n", "line 1"),
        ("é" * 20, "line 1"),
    ],
)
def test_a_bad_key_file_is_one_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(0o600)
    with pytest.raises(ServingError, match=message) as caught:
        ApiKeys.read(file)
    assert KEY not in str(caught.value)


def test_a_key_file_that_others_can_read_is_warned_of(key_file: Path) -> None:
    key_file.chmod(0o640)
    with pytest.warns(UserWarning, match="other users can read the API keys"):
        ApiKeys.read(key_file)


def test_no_other_origin_is_let_in(url: str) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{url}/v1/embed", headers=origin)
    answered = httpx.get(f"{url}/v2", headers=origin)
    assert preflight.status_code == 405
    for response in (preflight, answered):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "error", [RuntimeError("/secret/model"), ServingError("/secret/model"), OSError(2, "no", "/secret/model")]
)
def test_a_failure_of_the_server_tells_nothing_of_its_inside(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(BrokenEngine(error)) as url:
        response = httpx.post(f"{url}/v1/embed", json={"cells": [{"genes": ["A"], "counts": [1]}]})
        assert response.status_code == 500
        assert response.json() == {"error": "The server failed on this request; its log says why."}
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert 'status="500"} 1' in httpx.get(f"{url}/metrics").text
