"""The page at ``/`` as its users see it, in a real Chromium, and what it sends."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pytest
from chromium import Visit, headless_chromium
from playwright.sync_api import Browser, expect
from soak_server import GENES

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running, running_service
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.export import export_model

KEY = "k" * 32
MARKUP = "<img src=x onerror=document.title='owned'>"
Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens a URL; afterwards every request must have gone to that host."""
    visits: list[tuple[Visit, str]] = []

    def open_page(url: str, **options: Any) -> Visit:
        visits.append((Visit(browser.new_context(**options).new_page(), url), url))
        return visits[-1][0]

    yield open_page
    for visit, url in visits:
        assert visit.requests
        assert not [request for request in visit.requests if not request.startswith(url)]
        visit.page.context.close()


@pytest.fixture(scope="module")
def donor(baron_h5ad: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled donor's cells, with a second column whose values are markup."""
    adata = anndata.read_h5ad(baron_h5ad)
    adata.obs[MARKUP] = np.where(np.arange(len(adata)) % 3, "plain", MARKUP)
    path = tmp_path_factory.mktemp("page") / "donor.h5ad"
    adata.write_h5ad(path)
    return path


def test_it_shows_the_model_its_health_and_what_is_done(
    visit: Open, engine: Engine, cells: CellBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "card", f"# Model card\n{MARKUP}")
    monkeypatch.setattr(engine, "info", engine.info | {"part": MARKUP})
    with running(engine) as url:
        seen = visit(url)
        page = seen.page
        expect(page.locator("#health")).to_have_text("Ready")
        model = page.locator(".model")
        expect(model.locator("h3")).to_have_text("cellfoundry")
        expect(model).to_contain_text("version 1")
        expect(model).to_contain_text("torch, fp32")
        expect(model).to_contain_text(engine.info["weights_sha256"])
        expect(model.locator(".facts").first).to_contain_text(MARKUP)
        model.get_by_text("Model card", exact=True).click()
        expect(model.locator("pre")).to_contain_text(MARKUP)
        chart = page.locator("#throughput")
        expect(chart).to_have_attribute("aria-label", re.compile(r"now 0$"))
        flat = chart.locator("path.first").bounding_box()
        expect(page.locator("[data-tile=p50]")).to_have_text("\u2013")
        expect(page.locator("#latency")).to_contain_text("nothing measured yet")
        with Client(url) as client:
            client.embed(cells)
        # The cells of one second are a peak of the line for the next two minutes.
        page.wait_for_function(
            "(flat) => document.querySelector('#throughput path.first').getBoundingClientRect().height > flat + 20",
            arg=flat["height"] if flat else 0,
        )
        for tile in ("p50", "p99"):
            expect(page.locator(f"[data-tile={tile}]")).to_have_text(re.compile(r"^[\d,.]+ ms$"))
        expect(page.locator("#stages")).to_have_attribute(
            "aria-label", re.compile(r"now [\d,.]+ and [\d,.]+$")
        )
        expect(page.locator("[data-tile=queued]")).to_have_text("0")
        expect(page.locator("[data-tile=requests]")).to_have_text("0")  # of the last second
        assert not seen.complaints
        assert page.title() == "CellFoundry endpoint"
    expect(page.locator("#health")).to_have_text("Unreachable")


def test_it_lists_every_route_with_a_command_that_works(visit: Open, url: str) -> None:
    seen = visit(url)
    routes = seen.page.locator("#routes details")
    described = httpx.get(f"{url}/openapi.json").json()["paths"]
    expect(routes).to_have_count(sum(map(len, described.values())))
    embed = routes.filter(has=seen.page.get_by_text("POST /v1/embed", exact=True))
    embed.locator("summary").click()
    expect(embed).to_contain_text("Embeddings (cells, width) of cells with named genes")
    command = embed.locator("pre").inner_text()
    answer = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=60)
    assert np.array(json.loads(answer.stdout)["embedding"]).shape == (1, 128)
    assert not seen.complaints


def test_one_of_several_models_is_chosen(visit: Open, engine: Engine, tmp_path: Path) -> None:
    sources = [OpenedSource(engine, "blood"), OpenedSource(engine, "brain")]
    with running_service(Service(sources, Limits())) as url:
        seen = visit(url)
        expect(seen.page.locator(".model h3")).to_have_text(["blood", "brain"])
        seen.page.locator("#model").select_option("brain, version 1")
        (tmp_path / "none.h5ad").write_bytes(b"none")
        seen.drop(tmp_path / "none.h5ad", "#drop")
        expect(seen.page.locator("#umap-error")).to_have_text("The file is not an h5ad that can be read.")
        assert f"{url}/v1/umap?model=brain&version=1" in seen.requests


def test_a_dropped_h5ad_becomes_its_umap(visit: Open, url: str, donor: Path) -> None:
    seen = visit(url)
    page = seen.page
    seen.drop(donor, "#drop")
    expect(page.locator("#progress")).to_contain_text("donor.h5ad is read, embedded and laid out")
    adata = anndata.read_h5ad(donor)
    seen_genes = adata[:, adata.var_names.isin(GENES)]
    with_counts = int((seen_genes.X.sum(axis=1) > 0).sum())
    points = page.locator("#plot circle")
    expect(points).to_have_count(with_counts)
    plot = page.locator("#plot svg")
    assert plot.get_attribute("aria-label") == f"UMAP of {with_counts:,} cells, coloured by cell_type"
    types = adata.obs["cell_type"][np.asarray(seen_genes.X.sum(axis=1)).ravel() > 0].value_counts()
    legend = page.locator("#legend button")
    expect(legend).to_have_count(len(types))
    shown = dict(
        zip(
            legend.locator(".value").all_inner_texts(),
            legend.locator(".count").all_inner_texts(),
            strict=True,
        )
    )
    assert shown == {name: f"{count:,}" for name, count in types.items()}
    assert len(
        set(page.locator("#plot g").evaluate_all("(all) => all.map((g) => g.getAttribute('fill'))"))
    ) == len(types)
    legend.first.click()
    expect(page.locator("#plot g.chosen circle")).to_have_count(int(types.iloc[0]))
    points.last.hover(force=True)
    expect(page.locator("#tooltip")).to_contain_text("cell_type: ")

    page.locator("#colour").select_option(MARKUP)
    expect(legend).to_have_count(2)
    expect(page.locator("#legend")).to_contain_text(MARKUP)
    points.last.hover(force=True)
    expect(page.locator("#tooltip")).to_contain_text(f"{MARKUP}: ")
    assert not page.locator("#umap img").count()
    assert page.title() == "CellFoundry endpoint"
    assert not seen.complaints


def test_a_file_that_is_none_gets_its_sentence(visit: Open, url: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n" * 40)
    seen = visit(url)
    seen.page.locator("#file").set_input_files(broken)
    expect(seen.page.locator("#umap-error")).to_have_text("The file is not an h5ad that can be read.")
    expect(seen.page.locator("#umap")).to_be_hidden()
    expect(seen.page.locator("#working")).to_be_hidden()


def test_a_file_that_is_too_large_gets_its_sentence(visit: Open, engine: Engine, donor: Path) -> None:
    with running(engine, limits=Limits(body_bytes=1000)) as url:
        page = visit(url).page
        page.locator("#file").set_input_files(donor)
        expect(page.locator("#umap-error")).to_have_text(
            re.compile("larger than 1000 bytes|the file is larger than it takes")
        )


def test_a_umap_can_be_stopped(visit: Open, engine: Engine, donor: Path) -> None:
    with running(engine) as url:
        seen = visit(url)
        seen.drop(donor, "#drop")
        with seen.page.expect_event(
            "requestfailed", lambda request: request.url.startswith(f"{url}/v1/umap")
        ):
            seen.page.get_by_role("button", name="Stop").click()
        expect(seen.page.locator("#working")).to_be_hidden()
        expect(seen.page.locator("#umap-error")).to_be_empty()
        deadline = time.monotonic() + 60
        while 'status="499"' not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
        assert not seen.complaints


def test_it_asks_for_the_key_and_forgets_it(visit: Open, engine: Engine) -> None:
    with running(engine, keys=ApiKeys([KEY])) as url:
        page = visit(url).page
        expect(page.locator("#health")).to_have_text("Ready")
        key = page.get_by_label("This endpoint asks for an API key")
        key.fill("wrong" * 6)
        key.press("Enter")
        expect(page.locator("#key-refused")).to_have_text("The endpoint does not know this key.")
        expect(page.locator(".model")).to_have_count(0)
        key.fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".model h3")).to_have_text("cellfoundry")
        expect(page.locator("[data-tile=queued]")).to_have_text("0")
        expect(page.locator("#key-form")).to_be_hidden()
        assert (
            page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'
        )
        page.reload()
        expect(page.locator("#key-form")).to_be_visible()


def test_it_fits_a_phone(visit: Open, url: str) -> None:
    page = visit(url, viewport={"width": 360, "height": 740}).page
    expect(page.locator(".model")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_static_files_need_no_key_load_nothing_from_elsewhere_and_are_kept(engine: Engine) -> None:
    with running(engine, keys=ApiKeys([KEY])) as url:
        for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg"):
            first = httpx.get(url + path)
            assert first.status_code == 200
            assert "default-src 'self'" in first.headers["content-security-policy"]
            assert "unsafe" not in first.headers["content-security-policy"]
            assert first.headers["x-content-type-options"] == "nosniff"
            assert "http" not in first.text.replace("http://www.w3.org/2000/svg", "")
            again = httpx.get(url + path, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert httpx.get(f"{url}/page/none.js").status_code == 404
        assert httpx.get(f"{url}/page/..%2fapp.py").status_code == 404
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.post(f"{url}/v1/umap").status_code == 401


def test_of_a_models_facts_those_are_told_that_name_no_place(model_dir: Path, tmp_path: Path) -> None:
    loaded = load_model(model_dir)
    facts = {
        "source": "/home/Jane Doe/secret project/x",
        "steps": 7,
        "finetuned": {"config": {"tune": "head"}, "source": "s3://secret/x", "before": None},
    }
    save_model(loaded.model, loaded.vocab_genes, tmp_path / "model", loaded.info | facts)
    export_model(tmp_path / "model", tmp_path / "secret", "onnx", decoder=False)
    (tmp_path / "secret" / "model.plan").write_bytes(b"")
    engine = open_engine(tmp_path / "secret")
    with running(engine) as url:
        (model,) = httpx.get(f"{url}/v1/models").json()
    assert "auto: model.plan cannot run here (model.plan.json: missing or damaged" in model["why"]
    assert "| steps | 7 |" in model["card"]
    assert model["facts"] == {
        "steps": 7,
        "weights_sha256": engine.info["weights_sha256"],
        "vocabulary_sha256": engine.info["vocabulary_sha256"],
    }
    assert model["sizes"]["n_genes"] == 400
    assert "secret" not in json.dumps(model)
    assert "Jane" not in json.dumps(model)
