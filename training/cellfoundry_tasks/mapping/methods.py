"""What is compared: representations of the same cells, alone and joined in several ways.

Legend: C cells, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.baselines import highly_variable, log_normalized, pca
from cellfoundry_tasks.mapping.integration import bbknn, harmony, scanorama
from cellfoundry_tasks.mapping.joint import Joint
from cellfoundry_tasks.mapping.scores import LISI_NEIGHBORS
from cellfoundry_tasks.mapping.transfer import Graph, Place

COMPONENTS = 50
GRAPH_PER_BATCH = 3
"""BBKNN's own number of neighbours in a batch, for votes and UMAPs."""
PCA, EMBEDDING, EXPRESSION, RANDOM = "PCA", "embedding", "enhanced expression", "random weights"
SCANORAMA = "Scanorama"
FEATURES = {"embedding": EMBEDDING, "expression": EXPRESSION}
"""What of the model can be joined and carry labels."""
JOINED = {"harmony": "{} + Harmony", "bbknn": "{} + BBKNN"}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """A way to place the cells; ``place`` gives coordinates, float32 (C, K), or a graph."""

    name: str
    kind: str
    place: Callable[[], Place]


def methods(
    joint: Joint,
    embedded: Floats,
    expressed: Floats | None,
    random: Floats,
    seed: int,
) -> Iterator[Method]:
    """All that are compared, from PCA, of what the model and its random twin gave for the cells of ``joint``.

    Args:
        joint: the cells.
        embedded: the model's embedding.
        expressed: components of the model's expression; None leaves its rows out.
        random: components of what random weights say.
        seed: of PCA, Harmony and Scanorama.
    """
    before = pca(joint.cells, COMPONENTS, seed=seed)
    genes = highly_variable(log_normalized(joint.cells))
    yield Method(PCA, "baseline", lambda: before)
    for name in JOINED:
        yield joined(name, PCA, "baseline", before, joint, seed)
    yield Method(SCANORAMA, "baseline", lambda: scanorama(joint.cells, joint.batch, genes, seed))
    yield from _features(EMBEDDING, embedded, joint, seed)
    if expressed is not None:
        yield from _features(EXPRESSION, expressed, joint, seed)
    yield joined("harmony", RANDOM, "control", random, joint, seed)


def _features(name: str, coordinates: Floats, joint: Joint, seed: int) -> Iterator[Method]:
    yield Method(name, "model", lambda: coordinates)
    for method in JOINED:
        yield joined(method, name, "model", coordinates, joint, seed)


def joined(method: str, name: str, kind: str, coordinates: Floats, joint: Joint, seed: int) -> Method:
    """``coordinates`` with their batches joined by "harmony" or "bbknn"."""
    if method == "harmony":
        return Method(JOINED[method].format(name), kind, lambda: harmony(coordinates, joint.batch, seed))
    return Method(JOINED[method].format(name), kind, lambda: _graph(coordinates, joint))


def _graph(coordinates: Floats, joint: Joint) -> Graph:
    """BBKNN's: about 90 neighbours for LISI, no more than the smallest batch has cells, and 3 a batch for the rest."""
    sizes = [int((joint.batch == name).sum()) for name in joint.batches]
    many = min(-(-LISI_NEIGHBORS // len(sizes)), min(sizes))
    neighbors, _ = bbknn(coordinates, joint.batch, many)
    _, weights = bbknn(coordinates, joint.batch, GRAPH_PER_BATCH)
    return Graph(neighbors, weights)
