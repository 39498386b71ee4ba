"""Embeddings beside the cells they belong to, as ``cellfoundry embed --out x.h5ad`` keeps them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client.models import ModelFacts
from cellfoundry_serving.client.rows import Asked
from cellfoundry_serving.outputs.base import OBSM_KEY, PROVENANCE_KEY


def with_embedding(
    cells: AnnData | CellBatch, embedding: npt.NDArray[np.float32], provenance: dict[str, str]
) -> AnnData:
    """A copy of an AnnData with ``obsm["X_cellfoundry"]`` and ``uns["cellfoundry"]``; of a batch, row ids as obs."""
    if isinstance(cells, AnnData):
        result = cells.to_memory(copy=True)
    else:
        result = AnnData(obs=pd.DataFrame(index=cells.row_ids.astype(str)))
    result.obsm[OBSM_KEY] = embedding
    result.uns[PROVENANCE_KEY] = provenance
    return result


def provenance(asked: Asked, facts: ModelFacts, release: str) -> dict[str, str]:
    """What ``cellfoundry embed`` says of an output: the conventions, and what computed it."""
    return {
        "output": "cell",
        **asked.conventions,
        "input_type": "singlecell",
        "pre_normalized": "F",
        "engine": facts.engine,
        "model_sha256": facts.model_sha256,
        "vocabulary_sha256": facts.vocabulary_sha256,
        "cellfoundry": release,
    }
