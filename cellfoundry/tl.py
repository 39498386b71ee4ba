"""Tools in scanpy's manner: they take an AnnData and write their result into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from cellfoundry.model import Model


def embed(
    adata: AnnData, model: Model | str | Path, *, key_added: str = "X_cellfoundry", **options: Any
) -> None:
    """Write every cell's embedding to ``adata.obsm[key_added]``.

    Args:
        adata: raw counts in ``X``, in a layer or in ``raw`` (``layer`` names it; else the first with whole counts).
        model: from ``cf.load``, or a model directory.
        key_added: key in obsm; ``sc.pp.neighbors(adata, use_rep=key_added)`` goes on from there.
        **options: ``pool``, ``target``, ``input_type``, ``pre_normalized``, ``layer`` of ``Model.encode``.

    Raises:
        DataError, ModelError, ServingError: see ``cf.load`` and ``Model.encode``; ``adata`` is unchanged then.
    """
    if isinstance(model, str | Path):
        from cellfoundry.model import load

        model = load(model)
    adata.obsm[key_added] = model.encode(adata, **options)
