"""What is served, for people: the facts and the card of every model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cellfoundry_serving.endpoint.models import ServedModel
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.told_facts import told


def models_routes(service: Service) -> APIRouter:
    """``GET /v1/models``."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> list[dict[str, Any]]:
        """Name, version, engine, sizes, origin, hashes and MODEL_CARD.md's text of every model."""
        return [described(model) for model in service.models.all()]

    return router


def described(model: ServedModel) -> dict[str, Any]:
    """One version of a model, which has warmed up; of its facts those that tell nothing of the owner's machines."""
    engine = model.engine
    return {
        "name": model.name,
        "version": str(model.version),
        "ready": True,
        "engine": engine.name,
        "precision": engine.precision,
        "why": engine.why,
        "sizes": engine.sizes,
        "facts": told(engine.info),
        "card": engine.card,
    }
