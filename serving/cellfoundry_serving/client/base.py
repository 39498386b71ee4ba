"""What both clients are made of: options, checked once, and what they remember of the endpoint."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import httpx
import numpy as np
import numpy.typing as npt
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.client import arrow_wire, v2_wire
from cellfoundry_serving.client.annotated import provenance, with_embedding
from cellfoundry_serving.client.call import Call, Result
from cellfoundry_serving.client.cells import own_genes, request_batches
from cellfoundry_serving.client.connection import http_options, shown_url
from cellfoundry_serving.client.models import (
    facts_call,
    first_model_call,
    release_call,
    vocabulary_call,
)
from cellfoundry_serving.client.retry import Deadline, Tries
from cellfoundry_serving.client.rows import Asked, Rows, joined
from cellfoundry_serving.errors import ServingError

Steps: TypeAlias = Generator[Call[Any] | Iterator[Call[Rows]], Any, Result]
"""What a method asks for, one thing after another: yields a call, or the calls that may be on the way together, and
is sent its result, or theirs in order. A client without a transport, so that both clients do the same."""

ROUNDS = 3  # one that a new version of the model has cut through is done again
WIRES = ("v2", "arrow")
CONNECT_TIMEOUT_S = 10.0  # a host that drops packets would else hold each try for all of timeout_s
READY_TIMEOUT = httpx.Timeout(CONNECT_TIMEOUT_S)


class ClientBase:
    """A client without a transport.

    Attributes:
        url: of the endpoint, without a user's name and password.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 600.0,
        api_key: str | None = None,
        *,
        retries: int = 5,
        deadline_s: float | None = None,
        wire: str = "v2",
        request_cells: int = 512,
    ) -> None:
        """Connects when first asked.

        Args:
            url: such as ``http://127.0.0.1:8000``.
            timeout_s: how long the endpoint may take for one try of a request.
            api_key: one that the endpoint knows, where it asks for keys.
            retries: further tries of a request that cannot reach the endpoint, or is answered with 408, 429, 502 or
                503; 0 is none. The waits between them double, start at half a second at most and are jittered; a
                Retry-After is waited for, two minutes at most.
            deadline_s: for one call of a method, with all its requests, tries and waits; None is no bound. Each
                wait for the endpoint is cut to what is left of it.
            wire: "v2" sends positions in the model's vocabulary, which the client asks for once: symbols, Ensembl ids
                and aliases of genes are found as ``cellfoundry embed`` finds them. "arrow" sends the names of genes and
                needs no vocabulary; the endpoint knows those that are spelled as the model spells them.
            request_cells: cells of a request.

        Raises:
            ServingError: an option that cannot be one.
        """
        self.url = shown_url(url)
        check_options(timeout_s, retries, deadline_s, wire, request_cells)
        self._timeout_s = timeout_s
        self._retries = retries
        self._deadline_s = deadline_s
        self._wire = wire
        self._request_cells = request_cells
        self._vocabularies: dict[str, Vocabulary] = {}  # by hash
        self._open(http_options(url, api_key))

    def _open(self, options: dict[str, Any]) -> None:
        """Makes the httpx client."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _deadline(self) -> Deadline:
        return Deadline(self._deadline_s)

    def _tries(self, deadline: Deadline) -> Tries:
        return Tries(self._retries, deadline)

    def _timeout(self, tries: Tries) -> httpx.Timeout:
        """Of the next try."""
        seconds = tries.timeout_s(self._timeout_s)
        return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S))

    def _embedding_steps(
        self, source: AnnData | CellBatch, asked: Asked
    ) -> Steps[tuple[npt.NDArray[np.float32], str]]:
        """What ``embed`` asks for; all rows are of one version of the model, which is returned beside them."""
        for _ in range(ROUNDS):
            vocabulary, versions = None, set()
            if self._wire == "v2":
                asked = yield from self._named_steps(asked)
                if isinstance(source, AnnData):
                    vocabulary, version = yield from self._vocabulary_steps(asked)
                    versions.add(version)
            parts = yield self._embed_calls(source, vocabulary, asked)
            versions |= {part.version for part in parts}
            embedding = joined(parts)
            if len(versions) == 1:
                return embedding, versions.pop()
        raise ServingError(
            "The endpoint took another version of the model while it answered, again and again; name a version."
        )

    def _adata_steps(self, source: AnnData | CellBatch, asked: Asked) -> Steps[AnnData]:
        """What ``embed_adata`` asks for."""
        embedding, version = yield from self._embedding_steps(source, asked)
        named = yield from self._named_steps(replace(asked, version=version))
        facts = yield facts_call(named)
        release = yield release_call()
        return with_embedding(source, embedding, provenance(asked, facts, release))

    def _vocabulary_steps(self, asked: Asked) -> Steps[tuple[Vocabulary, str]]:
        """A model's genes and version; genes that were told before are not asked for again."""
        asked = yield from self._named_steps(asked)
        facts = yield facts_call(asked)
        vocabulary = self._vocabularies.get(facts.vocabulary_sha256)
        if vocabulary is None:
            vocabulary = yield vocabulary_call(asked)
            self._vocabularies[vocabulary.hash] = vocabulary
        return vocabulary, facts.version

    def _named_steps(self, asked: Asked) -> Steps[Asked]:
        """The same with a model's name: where none is given, that of the endpoint's first.

        It is asked for anew each time, because an endpoint that was started again may have another.
        """
        if asked.model is not None:
            return asked
        name = yield first_model_call()
        return replace(asked, model=name)

    def _embed_calls(
        self, cells: AnnData | CellBatch, vocabulary: Vocabulary | None, asked: Asked
    ) -> Iterator[Call[Rows]]:
        """The requests for all cells, made one by one."""
        if self._wire == "arrow":
            own = own_genes(cells) if isinstance(cells, AnnData) else None
            genes = None if own is None else own.genes
            for batch in request_batches(cells, own, self._request_cells):
                yield arrow_wire.embed_call(batch, genes, asked)
        else:
            for batch in request_batches(cells, vocabulary, self._request_cells):
                yield v2_wire.infer_call(batch, asked)


def check_options(
    timeout_s: float, retries: int, deadline_s: float | None, wire: str, request_cells: int
) -> None:
    """ServingError for an option out of its range."""
    if not 0 < timeout_s < math.inf:
        raise ServingError(f"timeout_s is {timeout_s!r}; give seconds above 0.")
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise ServingError(f"deadline_s is {deadline_s!r}; give seconds above 0, or None for no bound.")
    if retries < 0:
        raise ServingError(f"retries is {retries!r}; give 0 or more.")
    if request_cells < 1:
        raise ServingError(f"request_cells is {request_cells!r}; give 1 or more.")
    if wire not in WIRES:
        raise ServingError(f"wire is {wire!r}; it is one of {', '.join(WIRES)}.")
