"""The endpoint's own JSON form: genes by name."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.cells import cells_from_json, listed_cells
from cellfoundry_serving.endpoint.incoming import read_body
from cellfoundry_serving.endpoint.openapi import NATIVE_BODY, NATIVE_EXAMPLES, described
from cellfoundry_serving.endpoint.service import Service, read_conventions


def native_routes(service: Service) -> APIRouter:
    """Vocabulary and embeddings of cells with named genes."""
    router = APIRouter(prefix="/v1")

    @router.get("/vocabulary")
    async def vocabulary() -> dict[str, Any]:
        engine = service.engine
        return {"genes": list(engine.vocab_genes), "sha256": engine.info["vocabulary_sha256"]}

    @router.post("/embed", openapi_extra=described(NATIVE_BODY, NATIVE_EXAMPLES))
    async def embed_json(request: Request) -> Response:
        """Embeddings (cells, width) of cells with named genes; a cell without counts gives nulls."""
        document = v2.parse_json(await read_body(request, service.limits), None)
        cells = cells_from_json(listed_cells(document), service.index, service.limits.cells)
        embedding = await service.embed(request, cells, read_conventions(document))
        answer = {"embedding": v2.json_numbers(embedding), "width": embedding.shape[1]}
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")

    return router
