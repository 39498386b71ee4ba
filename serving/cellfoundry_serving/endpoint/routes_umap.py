"""An h5ad's UMAP for the page: read, embedded and laid out in one request."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from cellfoundry_serving.endpoint import h5ad, v2
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.h5ad import H5adReader
from cellfoundry_serving.endpoint.incoming import read_body, while_connected
from cellfoundry_serving.endpoint.label_columns import LabelColumn
from cellfoundry_serving.endpoint.models import ServedModel
from cellfoundry_serving.endpoint.openapi import UMAP_ANSWER, umap_description
from cellfoundry_serving.endpoint.pieces import Conventions
from cellfoundry_serving.endpoint.routes_native import media_type
from cellfoundry_serving.endpoint.service import Service, read_conventions
from cellfoundry_serving.endpoint.umap import UmapMaker

MAX_AT_ONCE = 4  # one is computed, others wait with their cells in memory


def umap_routes(service: Service, uploads: H5adReader, maker: UmapMaker) -> APIRouter:
    """``POST /v1/umap``."""
    router = APIRouter(prefix="/v1")
    under_way = 0

    @router.post("/umap", openapi_extra=umap_description(), responses={200: UMAP_ANSWER})
    async def umap(request: Request) -> Response:
        """Places of an h5ad's cells in a UMAP of their embeddings, and the obs columns to colour them by."""
        nonlocal under_way
        if media_type(request) != h5ad.MEDIA_TYPE:
            raise RequestError(f"Send an h5ad with Content-Type: {h5ad.MEDIA_TYPE}.", 415)
        fields = dict(request.query_params)
        asked_of = fields.pop("model", None), fields.pop("version", None)
        service.models.find(*asked_of)  # before the body arrives
        conventions = read_conventions(fields)
        body = await read_body(request, service.limits)
        if under_way >= MAX_AT_ONCE:  # a body that comes slowly takes no place
            raise RequestError("Other UMAPs wait already; try again later.", 429, {"Retry-After": "10"})
        under_way += 1
        try:
            with service.models.find(*asked_of).in_use() as model:
                work = laid_out(body, model, conventions)
                return await while_connected(request, work, service.limits.timeout_s)
        finally:
            under_way -= 1

    async def laid_out(body: bytes, model: ServedModel, conventions: Conventions) -> Response:
        cells, columns = await uploads.read_labelled(body, model.engine.vocab_genes)
        embedding = await service.embed(model, cells, conventions)
        layout = await maker.layout(embedding)
        return await aside(len(body), partial(answer, layout, columns))

    return router


def answer(layout: npt.NDArray[np.float32], columns: dict[str, LabelColumn]) -> Response:
    """Places (cells, 2) and labels as JSON."""
    x, y = (v2.json_numbers(axis) for axis in layout.T)
    labels = ", ".join(f"{json.dumps(name)}: {json.dumps(column)}" for name, column in columns.items())
    document = f'{{"x": [{x}], "y": [{y}], "columns": {{{labels}}}}}'
    return Response(document, media_type="application/json")
