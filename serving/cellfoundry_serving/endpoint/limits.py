"""What clients may ask of the endpoint before it refuses."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What one request may hold, and all of them together.

    Attributes:
        body_bytes: bytes of a request's body; more is answered with 413.
        cells: cells of a request; more is answered with 413.
        queued_tokens: tokens that may wait for the engine; a request beyond is answered with 429, and one
            that could never fit with 413.
        cache_bytes: memory for finished embeddings, which the same cells get without computing; 0 keeps none.
        timeout_s: seconds for a body to arrive (then 408), and from there for the answer (then 504).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    body_bytes: int = Field(default=64 * 2**20, gt=0)
    cells: int = Field(default=4096, gt=0)
    queued_tokens: int = Field(
        default=4_194_304, gt=0
    )  # 256 full batches; a client's request holds a quarter
    cache_bytes: int = Field(default=64 * 2**20, ge=0)  # 5,000 cells of width 3,072
    timeout_s: float = Field(default=600.0, gt=0)
