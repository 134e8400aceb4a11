"""How the server is."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

import selfplay_ray
from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.context import Context
from selfplay_ray.inference.server.metrics import CONTENT_TYPE
from selfplay_ray.inference.server.streaming import json_response

router = APIRouter()


@router.get("/health")
async def health(context: Context) -> Response:
    """200 while the engine runs, else 503."""
    context.models.engine.check_alive()
    return Response(status_code=200)


@router.get("/ping", include_in_schema=False)
async def ping(context: Context) -> Response:
    return await health(context)


@router.get("/version", response_model=answers.VersionAnswer)
async def version() -> Response:
    return json_response(answers.VersionAnswer(version=selfplay_ray.__version__))


@router.get("/metrics")
async def metrics(context: Context) -> Response:
    """Prometheus text."""
    return Response(context.metrics.text(), media_type=CONTENT_TYPE)
