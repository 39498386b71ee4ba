"""What the endpoint has done and what waits, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

MODEL = ("model", "version")
STAGES = ("queue", "engine")
SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
"""Bounds of latency buckets: from the endpoint's own half millisecond to minutes of a large request on a CPU."""
TOKENS = (256, 1024, 4096, 8192, 12288, 16384, 32768)
"""Bounds of the buckets of a batch's tokens, which aims at 16,384."""


@dataclass
class Span:
    """How often something was done, and how long it took together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Once more, or ``count`` times in ``seconds`` together."""
        self.count += count
        self.seconds += seconds


class ModelMetrics:
    """What one version of a model has done: its part of the Prometheus numbers, and V2's statistics.

    Attributes:
        cells: embedded, kept results among them.
        success: answered requests.
        failed: requests that the engine failed on.
        kept: cells whose embedding was in the cache, and the time of looking for them.
        not_kept: cells whose embedding was not, and the time of looking for them.
        queue: waits of requests' pieces.
        engine: batches.
        last_s: when the last request was answered, seconds since 1970.
    """

    def __init__(self, cells: Counter, queue: Histogram, engine: Histogram, tokens: Histogram) -> None:
        self._cells, self._queue, self._engine, self._tokens = cells, queue, engine, tokens
        self.cells = 0
        self.success, self.failed, self.queue, self.engine = Span(), Span(), Span(), Span()
        self.kept, self.not_kept = Span(), Span()
        self.last_s = 0.0

    def waited(self, seconds: float) -> None:
        """A piece came to its turn."""
        self.queue.add(seconds)
        self._queue.observe(seconds)

    def ran(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self.engine.add(seconds)
        self._engine.observe(seconds)
        self._tokens.observe(tokens)

    def answered(self, cells: int, seconds: float) -> None:
        """A request was embedded."""
        self.cells += cells
        self._cells.inc(cells)
        self.success.add(seconds)
        self.last_s = time.time()


class Metrics:
    """All numbers of one endpoint, in a registry of its own.

    Attributes:
        requests: answers by HTTP status; those over gRPC have its code's name.
        request_seconds: time of whole requests that were answered, from the first byte of the head to the last of the
            answer; refusals would make a busy server look fast.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "cellfoundry_requests", "Requests answered, by status.", ("status",), registry=registry
        )
        self.request_seconds = Histogram(
            "cellfoundry_request_seconds",
            "Time of a whole request that asked for embeddings.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._stage = Histogram(
            "cellfoundry_stage_seconds",
            "Time of a request's cells in the queue, and of a batch in the engine.",
            ("stage", *MODEL),
            buckets=SECONDS,
            registry=registry,
        )
        self._cells = Counter("cellfoundry_cells", "Cells embedded.", MODEL, registry=registry)
        self._batch_tokens = Histogram(
            "cellfoundry_batch_tokens",
            "Tokens of the engine's batches.",
            MODEL,
            buckets=TOKENS,
            registry=registry,
        )
        self._queued = Gauge(
            "cellfoundry_queued_tokens", "Tokens that wait for the engine.", MODEL, registry=registry
        )
        self.cache_hits = Counter(
            "cellfoundry_cache_hits", "Cells whose embedding was kept.", registry=registry
        )
        self.cache_misses = Counter(
            "cellfoundry_cache_misses", "Cells whose embedding was not kept.", registry=registry
        )
        self.cache_bytes = Gauge("cellfoundry_cache_bytes", "Memory of kept embeddings.", registry=registry)
        ProcessCollector(registry=registry)
        registry.register(GpuMemory())

    def of_model(self, name: str, version: int) -> ModelMetrics:
        """The numbers of one version of a model."""
        of = (name, str(version))
        return ModelMetrics(
            self._cells.labels(*of),
            self._stage.labels("queue", *of),
            self._stage.labels("engine", *of),
            self._batch_tokens.labels(*of),
        )

    def watch_queue(self, name: str, version: int, tokens: Callable[[], float]) -> None:
        """Shows what ``tokens`` says whenever it is asked."""
        self._queued.labels(name, str(version)).set_function(tokens)

    def forget_model(self, name: str, version: int) -> None:
        """Drops the series of a version that is gone."""
        of = (name, str(version))
        for metric in (self._cells, self._batch_tokens, self._queued):
            metric.remove(*of)
        for stage in STAGES:
            self._stage.remove(stage, *of)

    def text(self) -> str:
        """The exposition that ``GET /metrics`` answers."""
        return generate_latest(self._registry).decode()


class GpuMemory(Collector):
    """Memory of each GPU that torch sees, read when asked for."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Used and total bytes; nothing on a machine without a GPU."""
        if not torch.cuda.is_available():
            return
        memory = GaugeMetricFamily(
            "cellfoundry_gpu_memory_bytes", "Memory of the GPU.", labels=("gpu", "kind")
        )
        for gpu in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(gpu)
            memory.add_metric((str(gpu), "used"), total - free)
            memory.add_metric((str(gpu), "total"), total)
        yield memory
