"""What clients may ask of the endpoint before it refuses."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What one request may hold, and all of them together.

    Attributes:
        body_bytes: bytes of a request's body; more is answered with 413.
        bodies_bytes: bytes of the bodies of all requests in hand; a request beyond is answered with 429.
        json_bytes: bytes of JSON in a body, whose reading stops all others; more is answered with 413.
        cells: cells of a request; more is answered with 413.
        queued_tokens: tokens that may wait for the engine; a request beyond is answered with 429, and one
            that could never fit with 413.
        wait_s: seconds of computing that may stand before a request, estimated from the engine's recent batches; a
            request that comes when there is more is answered with 429.
        cache_bytes: memory for finished embeddings, which the same cells get without computing; 0 keeps none.
        timeout_s: seconds for a body to arrive (then 408), and from there for the answer (then 504).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    body_bytes: int = Field(default=64 * 2**20, gt=0)
    bodies_bytes: int = Field(default=512 * 2**20, gt=0)  # eight of the largest
    json_bytes: int = Field(default=8 * 2**20, gt=0)  # read in 0.06 to 0.16 s
    cells: int = Field(default=4096, gt=0)
    queued_tokens: int = Field(
        default=4_194_304, gt=0
    )  # 256 full batches; a client's request holds a quarter
    # Longer than the engine's slowest batches take; who wants answers sooner or not at all sets it lower.
    wait_s: float = Field(default=10.0, gt=0)
    cache_bytes: int = Field(default=64 * 2**20, ge=0)  # 5,000 cells of width 3,072
    timeout_s: float = Field(default=600.0, gt=0)
