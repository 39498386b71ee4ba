"""How errors are answered: always ``{"error": one sentence}``, never a path or a traceback."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cellfoundry_model.errors import ModelError
from cellfoundry_serving.endpoint.errors import RequestError

failed = JSONResponse({"error": "The server failed on this request; its log says why."}, status_code=500)
"""A defect of ours, or what an engine cannot do: the gate logs it and answers this."""


def add_error_answers(app: FastAPI) -> None:
    """What a client did wrong is answered with its status."""

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=error.status, headers=error.headers)

    @app.exception_handler(ModelError)
    async def refuse_convention(_: Request, error: ModelError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(HTTPException)
    async def no_such_route(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            {"error": str(error.detail)}, status_code=error.status_code, headers=error.headers
        )
