"""The methods by name: one line each."""

from __future__ import annotations

from zar_ray.adaptation.base import Method, one_by_one
from zar_ray.adaptation.zar_batched import adapt_zar_batch
from zar_ray.adaptation.zero_shot import classify_zero_shot
from zar_ray.errors import ConfigError, suggestion

_ALL = (
    Method("zero_shot", "no adaptation", one_by_one(lambda video, k, _: classify_zero_shot(video, k))),
    Method(
        "zar",
        "prompt tuning",
        lambda videos, k, run: adapt_zar_batch(videos, k, run.zar),
        needs_views=True,
        updates="context",
        settings=("zar",),
        fusion=lambda run: run.zar.fusion,
    ),
)
METHODS = {method.name: method for method in _ALL}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: There is none; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ConfigError(f'no method is called "{name}"{suggestion(name, METHODS)}')
    return METHODS[name]
