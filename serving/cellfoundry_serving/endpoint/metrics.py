"""Counters in the Prometheus text format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """What the endpoint has done since it started."""

    requests: Counter[int] = field(default_factory=Counter)  # by HTTP status
    cells: int = 0
    latency_sum_s: float = 0.0
    latency_count: int = 0
    queued_tokens: int = 0
    batches: int = 0
    batch_tokens: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bytes: int = 0

    def embedded(self, cells: int, seconds: float) -> None:
        """One embedding request was answered."""
        self.cells += cells
        self.latency_sum_s += seconds
        self.latency_count += 1

    def text(self) -> str:
        """The exposition that ``GET /metrics`` answers."""
        lines = [
            "# HELP cellfoundry_requests_total Requests answered, by HTTP status.",
            "# TYPE cellfoundry_requests_total counter",
            *(f'cellfoundry_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.requests.items())),
            "# HELP cellfoundry_embed_seconds Time from a read request to its embedding.",
            "# TYPE cellfoundry_embed_seconds summary",
            f"cellfoundry_embed_seconds_sum {self.latency_sum_s}",
            f"cellfoundry_embed_seconds_count {self.latency_count}",
        ]
        for name, kind, value, text in (
            ("cells_total", "counter", self.cells, "Cells embedded."),
            ("queued_tokens", "gauge", self.queued_tokens, "Tokens that wait for the engine."),
            ("batches_total", "counter", self.batches, "Batches given to the engine."),
            ("batch_tokens_total", "counter", self.batch_tokens, "Tokens of those batches."),
            ("cache_hits_total", "counter", self.cache_hits, "Cells whose embedding was kept."),
            ("cache_misses_total", "counter", self.cache_misses, "Cells whose embedding was not kept."),
            ("cache_bytes", "gauge", self.cache_bytes, "Memory of kept embeddings."),
        ):
            lines += [
                f"# HELP cellfoundry_{name} {text}",
                f"# TYPE cellfoundry_{name} {kind}",
                f"cellfoundry_{name} {value}",
            ]
        return "\n".join(lines) + "\n"
