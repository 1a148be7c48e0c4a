"""Options as Python calls say them: by the names of the command line's, checked by the same classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, get_origin

import numpy as np

from zar_ray.errors import ConfigError, suggestion
from zar_ray.options.base import Options


def plain(kind: type[Options], told: Mapping[str, Any], call: str) -> dict[str, Any]:
    """The options that a call says as plain values; one value stands for a list of it.

    Raises:
        ConfigError: There is no such option; the message suggests the nearest.
    """
    values = {}
    for name, value in told.items():
        if name not in kind.model_fields:
            raise ConfigError(f"{call}: unknown option {name}{suggestion(name, kind.model_fields)}")
        wants_several = get_origin(kind.model_fields[name].annotation) is tuple
        if isinstance(value, Options):
            value = value.model_dump(exclude_unset=True)
        elif isinstance(value, np.ndarray | range):
            value = [one.item() if isinstance(one, np.generic) else one for one in value]
        elif wants_several and (isinstance(value, str | os.PathLike) or np.isscalar(value)):
            value = [value]
        if wants_several or kind.model_fields[name].annotation in (str, str | None):
            value = _as_text(value)
        values[name] = value
    return values


def _as_text(value: Any) -> Any:
    """Paths as text, where options hold text."""
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
