"""How errors are answered: always ``{"error": one sentence}``, never a path or a traceback."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cellfoundry_model.errors import ModelError
from cellfoundry_serving.endpoint.errors import RequestError


def add_error_answers(app: FastAPI) -> None:
    """A defect of ours is logged by the server and answered with 500; so is what an engine cannot do."""

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

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(
            {"error": "The server failed on this request; its log says why."}, status_code=500
        )
