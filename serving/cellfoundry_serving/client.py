"""Client of the endpoint: cells in, embeddings out, over V2 binary tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.token_batches import consecutive, token_counts

REQUEST_CELLS = 512
REQUEST_TOKENS = 1_000_000  # 8 bytes a token: an eighth of what the endpoint accepts by default
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class Client:
    """Talks to one endpoint; usable as a context manager.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        timeout_s: for one request.
        api_key: one that the endpoint knows, where it asks for keys.

    Every method raises ServingError where the endpoint cannot be reached or refuses.
    """

    def __init__(self, url: str, timeout_s: float = 600.0, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            is_local = httpx.URL(self.url).host in LOOPBACK_HOSTS
            # A proxy of the environment is for the outside; it cannot reach this machine's loopback.
            self._http = httpx.Client(
                base_url=self.url,
                timeout=timeout_s,
                trust_env=not is_local,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            )
        except httpx.InvalidURL as error:
            raise ServingError(f"{url!r} is no URL; give one such as http://127.0.0.1:8000.") from error

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def ready(self) -> bool:
        """True where the endpoint takes requests; False where nothing answers."""
        try:
            return self._http.get("/v2/health/ready").is_success
        except httpx.TransportError:
            return False

    def models(self) -> list[str]:
        """Names of the models that are ready."""
        index = self._request("POST", "/v2/repository/index").json()
        return [model["name"] for model in index if model["state"] == "READY"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's genes in position order."""
        return Vocabulary(tuple(self._request("GET", "/v1/vocabulary").json()["genes"]))

    def embed(
        self,
        cells: AnnData | CellBatch | tuple[Sequence[str], Any],
        *,
        pool: str = "all",
        target: str = "t4",
    ) -> npt.NDArray[np.float32]:
        """Embeddings in the cells' order, float32 (cells, width); a cell without counts gives NaN.

        Args:
            cells: an AnnData with raw counts in X, (gene names, counts matrix cells x genes, dense or sparse),
                or a CellBatch over the model's vocabulary.
            pool: "all" or "max".
            target: depth T asked for: "tN", "fN" or "aN".

        Raises:
            DataError: no gene in common with the model, or values that are not raw counts.
        """
        parameters = {"pool": pool, "target": target}
        results = [
            self._infer(batch.select(np.arange(part.start, part.stop)), parameters)
            for batch in self._batches(cells)
            for part in consecutive(token_counts(batch), REQUEST_TOKENS, REQUEST_CELLS)
        ]
        return np.concatenate(results)

    def _batches(self, cells: AnnData | CellBatch | tuple[Sequence[str], Any]) -> list[CellBatch]:
        if isinstance(cells, CellBatch):
            return [cells]
        if not isinstance(cells, AnnData):
            genes, counts = cells
            cells = AnnData(counts, var=pd.DataFrame(index=list(genes)))
        return [batch for batch, _ in SourceCells(cells, self.vocabulary).blocks()]

    def _infer(self, batch: CellBatch, parameters: dict[str, str]) -> npt.NDArray[np.float32]:
        body, header_length = infer_body(batch, parameters)
        response = self._request(
            "POST",
            f"/v2/models/{self._model}/infer",
            content=body,
            headers={HEADER_LENGTH: str(header_length)},
        )
        length = int(response.headers[HEADER_LENGTH])
        shape = json.loads(response.content[:length])["outputs"][0]["shape"]
        return np.frombuffer(response.content[length:], "<f4").reshape(shape)

    @cached_property
    def _model(self) -> str:
        return self.models()[0]

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise ServingError(
                f"{self.url} cannot be reached ({error}); is `cellfoundry serve` running?"
            ) from error
        if response.is_success:
            return response
        try:
            reason = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            reason = "it is no CellFoundry endpoint"
        raise ServingError(f"{self.url} answered {response.status_code}: {reason}")


def infer_body(cells: CellBatch, parameters: dict[str, str]) -> tuple[bytes, int]:
    """A V2 request with ``cells`` as binary CSR tensors, answered in binary, and the length of its JSON part."""
    tensors = (
        ("indptr", "INT64", cells.indptr.astype("<i8")),
        ("gene_ids", "INT32", cells.gene_ids.astype("<i4")),
        ("counts", "FP32", cells.counts.astype("<f4")),
    )
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, datatype, array in tensors
    ]
    document = {"inputs": inputs, "parameters": parameters | {"binary_data_output": True}}
    header = json.dumps(document).encode()
    return b"".join([header, *(array.tobytes() for _, _, array in tensors)]), len(header)
