"""An engine that computes nothing, so that what is left is the endpoint; and requests as bytes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cellfoundry_bench.load_generator import HOST
from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import infer_body
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.sources import DEFAULT_NAME
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH
from cellfoundry_serving.engines.base import Engine

WIDTH = 256
NO_CACHE = Limits(cache_bytes=0)  # every request carries the same cell
BODY_ENTRIES = 3000  # 8 bytes each: a body of 24 kB
INFER_PATH = f"/v2/models/{DEFAULT_NAME}/infer"


class NoEngine(Engine):
    """Answers zeros at once."""

    name: ClassVar[str] = "none"

    def __init__(self, n_genes: int) -> None:
        info = {"weights_sha256": "0", "vocabulary_sha256": "0"}
        super().__init__([f"gene{index}" for index in range(n_genes)], WIDTH // 4, info, "computes nothing")

    def encode(self, batch: CellBatch, **conventions: Any) -> npt.NDArray[np.float32]:
        """Zeros, (cells, 256)."""
        return np.zeros((len(batch), WIDTH), np.float32)

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        """Shape of one cell's result."""
        return (WIDTH,)


def cell_of_24_kb() -> CellBatch:
    """One cell of 3,000 genes."""
    genes = np.arange(BODY_ENTRIES, dtype=np.int32)
    return CellBatch(
        np.array([0, BODY_ENTRIES]), genes, np.ones(BODY_ENTRIES, np.float32), np.zeros(1, np.int64)
    )


def infer_request(cells: CellBatch) -> bytes:
    """A whole HTTP request: POST .../infer with CSR cells as binary tensors, binary answer asked for."""
    body, header_length = infer_body(cells, {})
    head = (
        f"POST {INFER_PATH} HTTP/1.1\r\nHost: {HOST}\r\n"
        f"{HEADER_LENGTH}: {header_length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
