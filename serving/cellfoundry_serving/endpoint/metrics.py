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
            "# HELP cellfoundry_cells_total Cells embedded.",
            "# TYPE cellfoundry_cells_total counter",
            f"cellfoundry_cells_total {self.cells}",
            "# HELP cellfoundry_embed_seconds Time from a read request to its embedding.",
            "# TYPE cellfoundry_embed_seconds summary",
            f"cellfoundry_embed_seconds_sum {self.latency_sum_s}",
            f"cellfoundry_embed_seconds_count {self.latency_count}",
        ]
        return "\n".join(lines) + "\n"
