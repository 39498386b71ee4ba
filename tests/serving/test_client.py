"""Both clients against a real endpoint: every form of cells, both wire forms, what they return and refuse."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from odd_engines import GatedEngine
from scraped import scraped

import cellfoundry as cf
from cellfoundry_data.aliases import shipped
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_serving.client import AsyncClient, Client, sync
from cellfoundry_serving.embed import embed
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running, running_service
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

Ask = Callable[..., Any]
DOCS = Path(__file__).parents[2] / "docs" / "endpoint.md"


def ask_sync(
    method: str, *arguments: Any, url: str, options: dict[str, Any] | None = None, **asked: Any
) -> Any:
    with Client(url, **(options or {})) as client:
        return getattr(client, method)(*arguments, **asked)


def ask_async(
    method: str, *arguments: Any, url: str, options: dict[str, Any] | None = None, **asked: Any
) -> Any:
    async def main() -> Any:
        async with AsyncClient(url, **(options or {})) as client:
            return await getattr(client, method)(*arguments, **asked)

    return asyncio.run(main())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a method of either client."""
    return request.param


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the client waits for another try."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(sync, "sleep", sleep)


@pytest.mark.parametrize("wire", ["v2", "arrow"])
def test_every_form_of_cells_gives_the_same_rows(
    ask: Ask, wire: str, url: str, engine: Engine, cells: CellBatch, adata: AnnData
) -> None:
    expected = engine.encode(cells, pool="max", target="a5")
    order = np.random.default_rng(0).permutation(400)
    genes = [engine.vocab_genes[gene] for gene in order]
    options = {"wire": wire, "request_cells": 2}
    for form in (cells, adata, (genes, adata.X[:, order]), (genes, adata.X.toarray()[:, order])):
        got = ask("embed", form, url=url, options=options, pool="max", target="a5")
        assert got.dtype == np.float32
        assert got.flags.writeable
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_both_wires_give_the_same_bits(engine: Engine, cells: CellBatch, adata: AnnData) -> None:
    with running(engine, limits=Limits(cache_bytes=0)) as url:
        by_position, by_name, alone = (
            ask_sync("embed", form, url=url, options={"wire": wire, "request_cells": 4})
            for form, wire in ((adata, "v2"), (adata, "arrow"), (cells, "arrow"))
        )
    np.testing.assert_array_equal(by_name, by_position)
    np.testing.assert_array_equal(alone, by_position)


def test_names_of_another_kind_are_found_by_the_client_and_not_by_the_endpoint(
    url: str, engine: Engine, adata: AnnData
) -> None:
    expected = ask_sync("embed", adata, url=url)
    id_of = {symbol: gene_id for gene_id, symbol in ids_of(engine).items()}
    adata.var_names = [id_of.get(gene, gene) for gene in adata.var_names]
    assert len(id_of) > 300
    np.testing.assert_array_equal(ask_sync("embed", adata, url=url), expected)
    adata.var_names = [f"{gene}_x" for gene in adata.var_names]
    with pytest.raises(
        ServingError, match="answered 400: Cell 0: none of its 5 genes is in the model's vocabulary"
    ):
        ask_sync("embed", adata, url=url, options={"wire": "arrow"})
    with pytest.raises(DataError, match="0 of 400 gene columns match"):
        ask_sync("embed", adata, url=url)


def test_the_matrix_that_holds_counts_is_sent(ask: Ask, url: str, adata: AnnData) -> None:
    expected = ask("embed", adata, url=url)
    adata.raw = adata.copy()
    normalised = adata[:, ::-1].copy()
    normalised.X = normalised.X / 7
    for wire in ("v2", "arrow"):
        with pytest.warns(UserWarning, match="reads raw, the first of its matrices that holds whole numbers"):
            got = ask("embed", normalised, url=url, options={"wire": wire})
        np.testing.assert_array_equal(got, expected)


def test_what_are_no_counts_is_refused_by_row_and_gene(ask: Ask, url: str, adata: AnnData) -> None:
    counts = adata.X.toarray()
    counts[7, 3] = -1
    for wire in ("v2", "arrow"):
        with pytest.raises(
            DataError, match=r"row 7 \(7\), gene .* has the value -1; counts cannot be negative"
        ):
            ask("embed", (adata.var_names, counts), url=url, options={"wire": wire, "request_cells": 2})


def ids_of(engine: Engine) -> dict[str, str]:
    """Symbol of each Ensembl id of the model's genes."""
    index = {gene: position for position, gene in enumerate(engine.vocab_genes)}
    return {
        gene_id: engine.vocab_genes[position] for gene_id, position in shipped().resolve(index).by_id.items()
    }


@pytest.mark.parametrize("wire", ["v2", "arrow"])
def test_an_anndata_comes_back_as_embed_writes_it(
    ask: Ask, wire: str, model_dir: Path, url: str, adata: AnnData, tmp_path: Path
) -> None:
    before = adata.copy()
    with pytest.warns(UserWarning, match="2 of 9 cells have no counts"):
        embed(adata, model_dir, tmp_path / "cells.h5ad")
    written = anndata.read_h5ad(tmp_path / "cells.h5ad")
    got = ask("embed_adata", adata, url=url, options={"wire": wire})
    told, expected = dict(got.uns["cellfoundry"]), dict(written.uns["cellfoundry"])
    assert told.pop("engine") == "torch"
    assert expected.pop("engine").startswith("model.safetensors on torch")
    assert told == expected
    np.testing.assert_allclose(got.obsm["X_cellfoundry"], written.obsm["X_cellfoundry"], atol=1e-4, rtol=0)
    assert got.obs.equals(adata.obs)
    assert (got.var_names == written.var_names).all()
    assert (got.X != written.X).nnz == 0
    assert list(adata.obsm) == list(before.obsm) == []
    assert got.X is not adata.X


def test_cells_without_annotation_come_back_with_their_rows(url: str, cells: CellBatch) -> None:
    got = ask_sync("embed_adata", cells.select(np.array([2, 1])), url=url)
    assert list(got.obs_names) == ["2", "1"]
    np.testing.assert_array_equal(
        got.obsm["X_cellfoundry"], ask_sync("embed", cells.select(np.array([2, 1])), url=url)
    )


def test_what_the_endpoint_has(ask: Ask, url: str, engine: Engine) -> None:
    assert ask("ready", url=url) is True
    assert ask("models", url=url) == ["cellfoundry"]
    assert ask("vocabulary", url=url).genes == engine.vocab_genes
    assert ask("vocabulary", url=url, model="cellfoundry", version="1").genes == engine.vocab_genes


@pytest.mark.parametrize("wire", ["v2", "arrow"])
def test_models_are_chosen_by_name(ask: Ask, wire: str, engine: Engine, adata: AnnData) -> None:
    """The second model has other genes in other places."""
    fewer = GatedEngine(engine.vocab_genes[100:300][::-1])
    fewer.gate.set()
    service = Service([OpenedSource(engine, "all"), OpenedSource(fewer, "few")], Limits())
    counts = adata.X[[5]].toarray()
    totals = counts[:, 100:300].sum(axis=1, keepdims=True)
    with running_service(service) as url:
        assert ask("models", url=url) == ["all", "few"]
        assert ask("vocabulary", url=url, model="few").genes == fewer.vocab_genes
        options = {"wire": wire}
        assert ask("embed", adata[[5]], url=url, options=options).shape == (1, 128)
        got = ask("embed", adata[[5]], url=url, options=options, model="few", version="1")
        np.testing.assert_array_equal(got, totals)
        assert (
            ask("embed_adata", adata[[5]], url=url, options=options, model="few").uns["cellfoundry"][
                "model_sha256"
            ]
            == "0"
        )
        with pytest.raises(
            ServingError, match="answered 404: Model 'few' has no such version here; there is 1"
        ):
            ask("embed", adata[[5]], url=url, options=options, model="few", version="2")


@pytest.mark.usefixtures("no_waits")
def test_refusals_are_one_sentence_and_not_tried_again(url: str, cells: CellBatch, adata: AnnData) -> None:
    with Client(url) as client:
        with pytest.raises(ServingError, match="answered 400: target is 'deep'"):
            client.embed(cells, target="deep")
        with pytest.raises(ServingError, match="answered 404: There is no such model"):
            client.embed(adata, model="other")
        with pytest.raises(ServingError, match="answered 404"):
            client.embed(cells, model="cellfoundry", version="17")
        with pytest.raises(ServingError, match="There are no cells to embed"):
            client.embed(cells.select(np.arange(0)))
        with pytest.raises(DataError, match="is empty, 0 cells x 400 genes"):
            client.embed(adata[:0].copy())
        with pytest.raises(DataError, match="the values look already normalised"):
            client.embed((["A1BG"], np.array([[0.5]])))
    with Client(f"{url}/nowhere") as client, pytest.raises(ServingError, match="answered 404: Not Found"):
        client.models()


def test_an_absent_endpoint_is_one_sentence(ask: Ask) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert ask("ready", url=closed) is False
        with pytest.raises(ServingError, match=r"cannot be reached \(.*\); is `cellfoundry serve` running"):
            ask("models", url=closed, options={"retries": 0})


@pytest.mark.usefixtures("no_waits")
def test_requests_above_the_limits_name_the_option(engine: Engine, cells: CellBatch) -> None:
    with running(engine, limits=Limits(cells=4)) as url:
        with pytest.raises(
            ServingError, match=r"413: .*send fewer at once \(the client's option request_cells\)"
        ):
            ask_sync("embed", cells, url=url)
        assert len(ask_sync("embed", cells, url=url, options={"request_cells": 4})) == 9


def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = GatedEngine()
    one = CellBatch(np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32), np.zeros(1, np.int64))
    waits = []
    with running(engine, limits=Limits(queued_tokens=3, cache_bytes=0)) as url, ThreadPoolExecutor(2) as pool:

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            engine.gate.set()
            assert computing.result() == queued.result() == [[1.0]]

        monkeypatch.setattr(sync, "sleep", sleep)
        computing = pool.submit(ask_async, "embed", one, url=url)
        assert engine.entered.wait(20)
        queued = pool.submit(ask_async, "embed", one, url=url)
        while scraped(url, "cellfoundry_queued_tokens") < 3:
            assert not queued.done()
        assert ask_sync("embed", one, url=url) == [[1.0]]
    assert len(waits) == 1
    assert 1 <= waits[0] <= 1.5  # the endpoint's Retry-After, and jitter


def test_a_key_is_sent_and_never_shown(engine: Engine, ask: Ask) -> None:
    key = "a-key-of-sixteen-characters"
    with running(engine, keys=ApiKeys([key])) as url:
        assert ask("models", url=url, options={"api_key": key}) == ["cellfoundry"]
        with pytest.raises(ServingError, match="answered 401: An API key is needed"):
            ask("models", url=url)
    for kind in (Client, AsyncClient):
        client = kind("http://name:secret@127.0.0.1:1/base/", api_key=key)
        assert repr(client) == f"{kind.__name__}('http://127.0.0.1:1/base')"
    with pytest.raises(ServingError, match="The API key must be ASCII") as caught:
        Client("http://127.0.0.1:1", api_key=f"{key}\n")
    assert key not in str(caught.value)


def test_a_proxy_is_not_asked_for_loopback(ask: Ask, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask("models", url=url, options={"retries": 0}) == ["cellfoundry"]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://a:port", "", "\0"])
def test_what_is_no_url_is_said_so(url: str) -> None:
    with pytest.raises(ServingError, match="is no URL; give one such as http"):
        Client(url)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout_s", 0),
        ("deadline_s", float("nan")),
        ("retries", -1),
        ("request_cells", 0),
        ("wire", "grpc"),
        ("concurrency", 0),
    ],
)
def test_options_out_of_range_are_named(option: str, value: Any) -> None:
    with pytest.raises(ServingError, match=f"^{option} is {value!r}; "):
        AsyncClient("http://127.0.0.1:1", **{option: value})


def test_a_client_of_one_expression_leaves_no_connection_open(url: str) -> None:
    assert Client(url).models() == ["cellfoundry"]
    gc.collect()  # an open socket would be warned of here


def test_the_examples_of_the_documentation_run(url: str, adata: AnnData) -> None:
    section = DOCS.read_text().split("## From Python")[1].split("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(examples) >= 2
    names = {"adata": adata, "cf": cf}
    for example in examples:
        exec(example.replace("http://127.0.0.1:8000", url), names)
    assert names["embedding"].shape == names["same"].shape == (9, 128)
