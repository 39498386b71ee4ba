"""Mapping: cells of several batches in one space, labels carried from a reference to a query, and how well."""

from cellfoundry_tasks.mapping.config import MapConfig
from cellfoundry_tasks.mapping.result import MapResult
from cellfoundry_tasks.mapping.run import map_cells

__all__ = ["MapConfig", "MapResult", "map_cells"]
