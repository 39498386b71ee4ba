from __future__ import annotations

import socket

import numpy as np
import pytest
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving import client as client_module
from cellfoundry_serving.client import Client
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError


def test_every_form_of_cells_gives_the_same_rows(
    url: str, engine: Engine, cells: CellBatch, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "REQUEST_CELLS", 2)
    expected = engine.encode(cells)
    order = np.random.default_rng(0).permutation(400)
    genes = [engine.vocab_genes[gene] for gene in order]
    with Client(url) as client:
        assert client.ready()
        assert client.models() == ["cellfoundry"]
        forms = (cells, adata, (genes, adata.X[:, order]), (genes, adata.X.toarray()[:, order]))
        for form in forms:
            got = client.embed(form)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_refusals_and_absence_are_one_sentence(url: str, cells: CellBatch) -> None:
    with Client(url) as client, pytest.raises(ServingError, match="answered 400: target is 'deep'"):
        client.embed(cells, target="deep")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(closed) as client:
            assert not client.ready()
            with pytest.raises(ServingError, match=r"cannot be reached .* is `cellfoundry serve` running"):
                client.models()
    with Client(f"{url}/nowhere") as client, pytest.raises(ServingError, match="answered 404: Not Found"):
        client.models()
