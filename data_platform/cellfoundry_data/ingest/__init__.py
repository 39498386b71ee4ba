"""Sources in, a shuffled shard store out, with Ray Data in bounded memory."""

from cellfoundry_data.ingest.pipeline import ingest

__all__ = ["ingest"]
