"""The parts of the OpenAPI document that FastAPI cannot know: bodies that are streamed, and problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from zar_ray.serving.problems import PROBLEMS
from zar_ray.serving.schema import (
    ClassifyParameters,
    PathRequest,
    ProblemDocument,
    ServedMethod,
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


def classify_body(methods: Sequence[ServedMethod]) -> dict[str, Any]:
    """The body of a question about a whole video, with the options of the methods that are served."""
    return _body(methods, ClassifyParameters, on_server=PathRequest)


def stream_body(methods: Sequence[ServedMethod]) -> dict[str, Any]:
    """The same of a question about a long video's windows."""
    return _body(methods, ClassifyParameters, WindowParameters, on_server=WindowedPathRequest)


def _body(methods: Sequence[ServedMethod], *parameters: type[BaseModel], on_server: type[BaseModel]) -> dict[str, Any]:
    """A request body: a form with a file, or JSON with a path."""
    of_methods = [{**method.options, "title": method.name} for method in methods if method.options is not None]
    options = {
        "description": ClassifyParameters.model_fields["options"].description,
        "anyOf": [*of_methods, {"type": "null"}],
    }
    properties: dict[str, Any] = {"video": _VIDEO}
    for model in parameters:
        properties |= _schema(model)["properties"]
    properties["options"] = options
    json_body = _schema(on_server)
    json_body["properties"]["options"] = options
    form = {"type": "object", "properties": properties, "required": ["video"], "additionalProperties": False}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": form,
                    "encoding": {
                        "candidate_labels": {"style": "form", "explode": True},
                        "options": {"contentType": "application/json"},
                    },
                },
                "application/json": {
                    "schema": json_body,
                    "example": {"path": "kitchen/egg.mp4", **_EXAMPLE},
                },
            },
        }
    }


STREAM_ANSWER: dict[str, Any] = {
    "description": "Events `window`, one a window, then `end`; or `error` with a problem document.",
    "content": {"text/event-stream": {"schema": {"type": "string"}, "example": "event: window\ndata: {...}\n\n"}},
    "x-window": {"$ref": f"#/components/schemas/{WindowResult.__name__}"},
}
