"""The parts of the OpenAPI document that FastAPI cannot know: bodies that are streamed, and problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from zar_ray.serving.problems import PROBLEMS
from zar_ray.serving.schema import (
    ProblemDocument,
    ServedMethod,
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


def request_body(methods: Sequence[ServedMethod], form: type[BaseModel], on_server: type[BaseModel]) -> dict[str, Any]:
    """The body of a question: a form with a file, or JSON with a path.

    Args:
        methods: The methods that are served, whose options it may hold.
        form: The form's other fields.
        on_server: The JSON.
    """
    of_methods = [{**method.options, "title": method.name} for method in methods if method.options is not None]
    of_form, of_json = _schema(form), _schema(on_server)
    for schema in (of_form, of_json):
        options = schema["properties"]["options"]
        schema["properties"]["options"] = {
            "description": options["description"],
            "anyOf": [*of_methods, {"type": "null"}],
        }
    of_form |= {"properties": {"video": _VIDEO, **of_form["properties"]}, "required": ["video"]}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": of_form,
                    "encoding": {
                        "candidate_labels": {"style": "form", "explode": True},
                        "seeds": {"style": "form", "explode": True},
                        "options": {"contentType": "application/json"},
                    },
                },
                "application/json": {
                    "schema": of_json,
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
