"""Answers that are none, of fewer cells, or of another version of the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scripted_server import Handler, Step, answer, counted, embedding, scripted

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH
from cellfoundry_serving.errors import ServingError


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[1]", b'[{"name": "cell"}]', b"[" * 100_000, b"\xff"],
    ids=lambda body: repr(body[:10]),
)
def test_what_no_endpoint_answers_is_one_sentence(body: bytes) -> None:
    with scripted(answer(200, body)) as server, Client(server.url) as client:
        with pytest.raises(ServingError) as caught:
            client.models()
        assert len(server.paths) == 1
    message = str(caught.value)
    assert "with what no CellFoundry endpoint sends" in message
    assert "\n" not in message
    assert len(message) < 800


@pytest.mark.parametrize("wire", ["v2", "arrow"])
@pytest.mark.parametrize("body", [b"", b"\0" * 64, b"<html>" * 20, b'{"outputs": []}'], ids=repr)
def test_embeddings_that_are_none_are_one_sentence(wire: str, body: bytes) -> None:
    with (
        scripted(answer(200, body, **{HEADER_LENGTH: str(len(body))})) as server,
        Client(server.url, wire=wire) as client,
        pytest.raises(ServingError, match=r"with what no CellFoundry endpoint sends .*; check the URL\.$"),
    ):
        client.embed(counted(3), model="cell")


def test_rows_that_are_missing_are_noticed() -> None:
    with (
        scripted(lambda handler: embedding(handler, rows=2)) as server,
        Client(server.url) as client,
        pytest.raises(ServingError, match=r"an array of shape \(2, 1\) for 3 cells"),
    ):
        client.embed(counted(3), model="cell")


def of_version(version: str) -> Step:
    return lambda handler: embedding(handler, version=version)


def test_rows_of_two_versions_are_never_joined() -> None:
    with scripted(of_version("1"), of_version("1"), of_version("2")) as server:
        got = Client(server.url, request_cells=1).embed(counted(3), model="cell")
        assert len(server.paths) == 6  # all of them once more, by the new version
    np.testing.assert_array_equal(got[:, 0], np.arange(3))
    with (
        scripted(*[of_version(str(number)) for number in range(9)]) as server,
        Client(server.url, request_cells=1) as client,
        pytest.raises(
            ServingError, match="took another version of the model while it answered, again and again"
        ),
    ):
        client.embed(counted(3), model="cell")


def test_the_genes_are_asked_for_again_when_the_model_has_others() -> None:
    genes = ["A", "B"]

    def step(handler: Handler) -> None:
        path = handler.path.partition("?")[0]
        hashes = {"version": "1", "model_sha256": "0", "vocabulary_sha256": Vocabulary(tuple(genes)).hash}
        documents = {
            "/v2/repository/index": [{"name": "cell", "state": "READY"}],
            "/v2/models/cell": {"platform": "torch", "parameters": hashes},
            "/v1/vocabulary": {"genes": genes},
        }
        answer(200, json.dumps(documents[path]).encode())(handler)

    with scripted(step) as server, Client(server.url) as client:
        assert client.vocabulary().genes == client.vocabulary().genes == ("A", "B")
        genes.append("C")
        assert client.vocabulary().genes == ("A", "B", "C")
        assert [path.partition("?")[0] for path in server.paths].count("/v1/vocabulary") == 2
