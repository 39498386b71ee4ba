"""The models of the task: one that says expression, one that embeds, and their twins with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cellfoundry_model.embedder import Embedder
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.representation import no_expression, open_model, random_twin


@dataclass(frozen=True)
class Models:
    """Ready to run.

    Attributes:
        expression: says expression.
        expression_twin: the same with random weights.
        embedding: embeds; of our own checkpoints the same model, of official weights another part.
        embedding_twin: the same with random weights.
    """

    expression: Embedder
    expression_twin: Embedder
    embedding: Embedder
    embedding_twin: Embedder


def open_models(model: str | Path, embedding_model: str | Path | None) -> Models:
    """Open model directories; without ``embedding_model`` the first does both.

    Raises TaskError for a model that says no expression, or for two vocabularies.
    """
    expression = open_model(model)
    if lacking := no_expression(expression):
        raise TaskError(
            f"{model}: {lacking.why}; give {lacking.instead} as --model and this one as --embedding-model"
        )
    expression_twin = Embedder(random_twin(model), device=str(expression.device))
    if embedding_model is None:
        return Models(expression, expression_twin, expression, expression_twin)
    embedding = open_model(embedding_model)
    if embedding.vocab_genes != expression.vocab_genes:
        raise TaskError(
            f"{embedding_model}: has other genes than {model}; give two parts of the same weights"
        )
    return Models(
        expression,
        expression_twin,
        embedding,
        Embedder(random_twin(embedding_model), device=str(embedding.device)),
    )
