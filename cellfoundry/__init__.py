"""CellFoundry: raw single-cell counts in, embeddings and an endpoint out.

>>> import cellfoundry as cf
>>> model = cf.load("model_dir")
>>> cf.tl.embed(adata, model)  # writes adata.obsm["X_cellfoundry"]
>>> cf.Client("http://127.0.0.1:8000").embed(adata)

Everything is imported on first use: ``import cellfoundry`` loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellfoundry import tasks, tl
    from cellfoundry.finetuning import finetune
    from cellfoundry.model import Model, load
    from cellfoundry_data.ingest import ingest
    from cellfoundry_data.loader import ShardDataset
    from cellfoundry_serving.client import AsyncClient, Client
    from cellfoundry_serving.embed import embed
    from cellfoundry_serving.predict import predict

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Model",
    "ShardDataset",
    "__version__",
    "embed",
    "finetune",
    "ingest",
    "load",
    "predict",
    "tasks",
    "tl",
]

_HOME = {
    "AsyncClient": "cellfoundry_serving.client",
    "Client": "cellfoundry_serving.client",
    "Model": "cellfoundry.model",
    "ShardDataset": "cellfoundry_data.loader",
    "embed": "cellfoundry_serving.embed",
    "finetune": "cellfoundry.finetuning",
    "ingest": "cellfoundry_data.ingest",
    "load": "cellfoundry.model",
    "predict": "cellfoundry_serving.predict",
}


def __getattr__(name: str) -> Any:
    if name in ("tasks", "tl"):
        return importlib.import_module(f"cellfoundry.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cellfoundry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
