"""The served methods with their own options: for model replicas the classes, for all other processes data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions, MethodGroups
from zar_ray.errors import ConfigError
from zar_ray.options.base import Options
from zar_ray.options.layers import one_line
from zar_ray.serving.backend import Query
from zar_ray.serving.options import LimitConfig, ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import ServedMethod


class ServiceOptions(ServeConfig, MethodGroups):
    """All options of the service: with every method's own, whose classes load PyTorch."""

    def without_methods(self) -> ServeConfig:
        """What processes that only receive or decode are told."""
        return ServeConfig.model_validate({name: getattr(self, name) for name in ServeConfig.model_fields})


def require_methods(options: ServiceOptions) -> None:
    """Refuses methods that no request could be answered by.

    Raises:
        ConfigError: A method is unknown, or depends on the videos before, which are other people's.
    """
    for name in options.methods:
        if get_method(name).is_stream(options.own(name)):
            raise ConfigError(f"methods: {name} depends on the order of videos, and the service answers each by itself")


def adaptation_options(options: ServiceOptions, query: Query) -> AdaptationOptions:
    """The options that a request runs under, as `zar predict` would have them.

    Raises:
        RequestError: The method's own options do not fit together, or make a stream of it (``invalid-parameters``).
    """
    own = options.own(query.method)
    if query.options:
        try:
            own = type(own).model_validate({**own.model_dump(), **query.options})
        except ValidationError as error:
            raise RequestError("invalid-parameters", f"options: {one_line(error)}") from None
        if get_method(query.method).is_stream(own):
            raise RequestError("invalid-parameters", f"options: {query.method} would depend on the videos before")
    shared = {name: getattr(options, name) for name in AdaptationOptions.model_fields if hasattr(options, name)}
    of_query = {"method": (query.method,), "seed": query.seed, "template": query.template}
    return AdaptationOptions.model_validate({**shared, **of_query, **({} if own is None else {query.method: own})})


def served_methods(options: ServiceOptions) -> tuple[ServedMethod, ...]:
    """What requests may choose, as data: the schemas of the methods' own options, with the service's defaults."""
    return tuple(
        ServedMethod(
            name=name,
            description=get_method(name).description,
            options=None if options.own(name) is None else _request_schema(options.own(name), options.limits),
        )
        for name in options.methods
    )


def _request_schema(own: Options, limits: LimitConfig) -> dict[str, Any]:
    """The JSON Schema of a method's options as requests may give them.

    Whole numbers count what a request costs (views, steps, places): one that its author has not bounded may be at
    most what the service itself has, and steps what its limits say.
    """
    schema = type(own).model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    for name, default in own.model_dump(mode="json").items():
        field = schema["properties"][name]
        field["default"] = default
        if name == "steps":
            field["maximum"] = min(limits.steps, field.get("maximum", limits.steps))
        elif field.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & field.keys():
            field["maximum"] = default
    return schema


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its definitions in the places that refer to them, so that it may stand anywhere in a document."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {name: _inlined(value, definitions) for name, value in schema.items() if name != "$ref"}
    if "$ref" not in schema:
        return rest
    return {**_inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions), **rest}
