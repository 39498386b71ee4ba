"""Computes one UMAP in a process of its own: ``python -m cellfoundry_serving.endpoint.umap_worker FOLDER``.

It takes tens of seconds of Python, numba and their compiler, and memory that grows with the cells: none of it may
stop the server. The folder holds ``embedding.npy``, float32 (cells, width); the worker leaves ``umap.npy``, (cells, 2).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellfoundry_serving.endpoint.worker_process import run_task

EMBEDDING, LAYOUT = "embedding.npy", "umap.npy"


def main(folder: Path) -> None:
    """Does the task of ``folder``."""
    from cellfoundry_serving.umap_layout import umap_coordinates

    np.save(folder / LAYOUT, umap_coordinates(np.load(folder / EMBEDDING, allow_pickle=False)))


if __name__ == "__main__":
    run_task(main)
