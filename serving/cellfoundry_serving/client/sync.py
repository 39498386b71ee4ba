"""The client that waits for each answer."""

from __future__ import annotations

import weakref
from time import sleep
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from anndata import AnnData

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.client.base import READY_TIMEOUT, ClientBase, Steps
from cellfoundry_serving.client.call import Call, Outcome, Result, result_of
from cellfoundry_serving.client.cells import Cells, as_source
from cellfoundry_serving.client.models import (
    READY,
    is_ready,
    models_call,
)
from cellfoundry_serving.client.retry import Deadline
from cellfoundry_serving.client.rows import Asked


class Client(ClientBase):
    """Talks to one endpoint over connections that are kept; a context manager.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     embedding = client.embed(adata)

    Every method raises ServingError where the endpoint cannot be reached or refuses.
    """

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.Client(**options)
        # A client that is used in one expression is closed with the expression.
        self._closing = weakref.finalize(self, self._http.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._closing()

    def ready(self) -> bool:
        """True where the endpoint takes requests; False where nothing answers, which is not tried again."""
        return is_ready(self._try(READY, READY_TIMEOUT))

    def models(self) -> list[str]:
        """Names of the models that are ready."""
        return self._ask(models_call(), self._deadline())

    def vocabulary(self, *, model: str | None = None, version: str | None = None) -> Vocabulary:
        """Genes of a model, by default the endpoint's first, in position order."""
        vocabulary, _ = self._run(self._vocabulary_steps(Asked(model, version)))
        return vocabulary

    def embed(
        self,
        cells: Cells,
        *,
        pool: str = "all",
        target: str = "t4",
        model: str | None = None,
        version: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings in the cells' order, float32 (cells, width); a cell without counts gives NaN.

        Args:
            cells: an AnnData with raw counts, (gene names, counts matrix cells x genes, dense or sparse), or a
                CellBatch over the model's vocabulary.
            pool: "all" or "max".
            target: depth T asked for: "tN", "fN" or "aN".
            model: by name; by default the endpoint's first.
            version: of the model; by default the one that the endpoint chooses.

        Raises:
            DataError: no gene in common with the model, or values that are not raw counts.
        """
        asked = Asked(model, version, pool, target)
        embedding, _ = self._run(self._embedding_steps(as_source(cells), asked))
        return embedding

    def embed_adata(
        self,
        cells: Cells,
        *,
        pool: str = "all",
        target: str = "t4",
        model: str | None = None,
        version: str | None = None,
    ) -> AnnData:
        """A copy of an AnnData with the embeddings, as ``cellfoundry embed --out cells.h5ad`` writes it.

        They are in ``obsm["X_cellfoundry"]``, and ``uns["cellfoundry"]`` says what computed them. A CellBatch gives
        an AnnData that has these alone. Arguments and errors as of ``embed``.
        """
        asked = Asked(model, version, pool, target)
        return self._run(self._adata_steps(as_source(cells), asked))

    def _run(self, steps: Steps[Result]) -> Result:
        deadline, result = self._deadline(), None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                return done.value
            if isinstance(step, Call):
                result = self._ask(step, deadline)
            else:
                result = [self._ask(call, deadline) for call in step]

    def _ask(self, call: Call[Result], deadline: Deadline) -> Result:
        """The result, after as many tries as it takes and the options allow."""
        tries = self._tries(deadline)
        while True:
            outcome = self._try(call, self._timeout(tries))
            wait_s = tries.wait_s(outcome)
            if wait_s is None:
                return result_of(call, outcome, self.url, tries.made)
            sleep(wait_s)

    def _try(self, call: Call[Any], timeout: httpx.Timeout) -> Outcome:
        try:
            return self._http.request(**call.arguments, timeout=timeout)
        except httpx.RequestError as error:
            return error
