"""The parts of the OpenAPI document that FastAPI cannot know: bodies that are streamed, and problem documents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from zar_ray.serving.problems import PROBLEMS
from zar_ray.serving.schema import (
    ClassifyParameters,
    PathRequest,
    ProblemDocument,
    WindowedPathRequest,
    WindowParameters,
    WindowResult,
)

_VIDEO = {"type": "string", "format": "binary", "description": "The video file; its name keys the views."}
_EXAMPLE = {
    "candidate_labels": ["riding a horse", "walking the dog", "cooking an egg"],
    "method": "zar",
    "top_k": 3,
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of an operation, for FastAPI's `responses`."""
    return {
        status: {
            "description": "; ".join(title for of, title in PROBLEMS.values() if of == status),
            "content": {"application/problem+json": {"schema": _schema(ProblemDocument)}},
        }
        for status in statuses
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _body(*parameters: type[BaseModel], on_server: type[BaseModel]) -> dict[str, Any]:
    """A request body: a form with a file, or JSON with a path."""
    properties: dict[str, Any] = {"video": _VIDEO}
    for model in parameters:
        properties |= _schema(model)["properties"]
    form = {"type": "object", "properties": properties, "required": ["video"], "additionalProperties": False}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": form,
                    "encoding": {"candidate_labels": {"style": "form", "explode": True}},
                },
                "application/json": {
                    "schema": _schema(on_server),
                    "example": {"path": "kitchen/egg.mp4", **_EXAMPLE},
                },
            },
        }
    }


CLASSIFY_BODY = _body(ClassifyParameters, on_server=PathRequest)
STREAM_BODY = _body(ClassifyParameters, WindowParameters, on_server=WindowedPathRequest)
STREAM_ANSWER: dict[str, Any] = {
    "description": "Events `window`, one a window, then `end`; or `error` with a problem document.",
    "content": {"text/event-stream": {"schema": {"type": "string"}, "example": "event: window\ndata: {...}\n\n"}},
    "x-window": {"$ref": f"#/components/schemas/{WindowResult.__name__}"},
}
