"""The methods by name: one entry each."""

from __future__ import annotations

from zar_ray.adaptation.base import Method, as_stream, one_by_one
from zar_ray.adaptation.fusion import unfit_for_fusion
from zar_ray.adaptation.memo import adapt_memo, unfit_for_memo
from zar_ray.adaptation.tda import TdaStream
from zar_ray.adaptation.tent import TentStream, adapt_tent, unfit_for_tent
from zar_ray.adaptation.tpt import adapt_tpt, unfit_for_tpt
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
        unfit=lambda model, run: unfit_for_fusion(model, run.zar.fusion),
    ),
    Method(
        "tpt",
        "prompt tuning on random crops",
        adapt_tpt,
        needs_pixels=True,
        updates="context",
        settings=("tpt",),
        unfit=unfit_for_tpt,
    ),
    Method(
        "memo",
        "the image tower moved by the marginal entropy",
        one_by_one(adapt_memo),
        needs_views=True,
        needs_pixels=True,
        updates="weights",
        settings=("memo",),
        unfit=unfit_for_memo,
    ),
    Method(
        "tent",
        "layer norms moved by the mean entropy",
        one_by_one(adapt_tent),
        needs_views=True,
        needs_pixels=True,
        updates="weights",
        settings=("tent",),
        unfit=unfit_for_tent,
        is_stream=lambda run: run.tent.stream,
        open_stream=TentStream,
    ),
    Method(
        "tda",
        "caches of the videos seen before",
        as_stream(TdaStream),
        updates="cache",
        settings=("tda",),
        is_stream=lambda _: True,
        open_stream=TdaStream,
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
