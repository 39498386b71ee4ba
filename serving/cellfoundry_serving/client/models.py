"""What an endpoint tells of its models."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

import httpx

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.client.call import Call, Outcome
from cellfoundry_serving.client.rows import Asked


@dataclass(frozen=True)
class ModelFacts:
    """What tells one model from another.

    Attributes:
        version: of the model.
        engine: what computes.
        model_sha256: of the weights.
        vocabulary_sha256: of the genes in position order.
    """

    version: str
    engine: str
    model_sha256: str
    vocabulary_sha256: str


READY: Call[None] = Call("GET", "/v2/health/ready", lambda response: None)


def is_ready(outcome: Outcome) -> bool:
    """Whether the answer to ``READY`` says so."""
    return isinstance(outcome, httpx.Response) and outcome.is_success


def models_call() -> Call[list[str]]:
    """Names of the models that are ready, each once, in the endpoint's order."""
    return Call(
        "POST",
        "/v2/repository/index",
        lambda response: list(
            dict.fromkeys(model["name"] for model in response.json() if model["state"] == "READY")
        ),
    )


def first_model_call() -> Call[str]:
    """Name of the endpoint's first model; where that is not ready, the endpoint says so of what is asked next."""
    return Call("POST", "/v2/repository/index", lambda response: str(response.json()[0]["name"]))


def release_call() -> Call[str]:
    """The endpoint's release of CellFoundry."""
    return Call("GET", "/v2", lambda response: str(response.json()["version"]))


def facts_call(asked: Asked) -> Call[ModelFacts]:
    """Facts about the model asked for, which has a name here."""
    assert asked.model is not None

    def read(response: httpx.Response) -> ModelFacts:
        metadata = response.json()
        facts = metadata["parameters"]
        return ModelFacts(
            facts["version"], metadata["platform"], facts["model_sha256"], facts["vocabulary_sha256"]
        )

    return Call("GET", model_path(asked.model, asked.version), read)


def vocabulary_call(asked: Asked) -> Call[Vocabulary]:
    """A model's genes in position order."""
    return Call(
        "GET",
        "/v1/vocabulary",
        lambda response: Vocabulary(tuple(response.json()["genes"])),
        params=asked.choice,
    )


def model_path(model: str, version: str | None) -> str:
    """Where V2 has a model, or one version of it."""
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"
