"""Where cells lie in a UMAP of their embeddings."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

MIN_CELLS = 5
NEIGHBOURS = 15


def umap_coordinates(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """UMAP of standardised features (cells, width) of at least 5 cells, float32, (cells, 2), seed 0.

    Neighbours are scikit-learn's, which are exact; umap's own search would compile for 5 s first.
    """
    from sklearn.neighbors import NearestNeighbors  # a second, which who asks for no UMAP need not wait
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    neighbours = min(NEIGHBOURS, len(scaled) - 1)
    distances, indices = NearestNeighbors(n_neighbors=neighbours).fit(scaled).kneighbors(scaled)
    with warnings.catch_warnings():
        # That its optional TensorFlow part is not there, and that without a search of its own it could place no
        # further cells.
        warnings.simplefilter("ignore", ImportWarning)
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)
        from umap import UMAP

        # One job, since a seeded UMAP is single-threaded and warns when asked for more. The eigenvectors that it
        # starts from need more cells than neighbours.
        layout = UMAP(
            n_components=2,
            n_neighbors=neighbours,
            precomputed_knn=(indices, distances.astype(np.float32)),
            force_approximation_algorithm=True,  # else neighbours given for fewer than 4,096 cells are ignored
            init="spectral" if len(scaled) > NEIGHBOURS else "random",
            random_state=0,
            n_jobs=1,
        )
        return layout.fit_transform(scaled)
