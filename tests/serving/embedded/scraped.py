"""One number of a live endpoint's metrics."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


def scraped(url: str, sample: str, **labels: str) -> float:
    """Sum over all series of ``sample`` that have these labels; 0 where there is none."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return sum(
        found.value
        for family in families
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )
