"""A question under several seeds: one whole classification each, one after the other, and the mean of their answers."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from zar_ray.adaptation.rankings import mean_ranking
from zar_ray.serving.backend import Backend, Query, VideoSource
from zar_ray.serving.schema import Classification, RankedLabel, Timings


async def classify(backend: Backend, video: VideoSource, query: Query) -> Classification:
    """Classifies a whole video under each of the query's seeds.

    One after the other, so that a request holds what one request may; the body is received once, and one explained.

    Raises:
        RequestError: What goes wrong under a seed.
    """
    if len(query.seeds) < 2:
        return await backend.classify(video, query)
    each = []
    for seed in query.seeds:
        once = {} if not each else {"explain": False, "received": 0.0}
        # The mean over the seeds may have another order than each has.
        asked = replace(query, seed=seed, top_k=len(query.labels), **once)
        each.append(await backend.classify(video, asked))
    return _mean(each, query)


def _mean(each: list[Classification], query: Query) -> Classification:
    """Means and sums of what differs between the seeds; what is of a view, such as the maps, is the first seed's."""

    def ranked(when: str) -> tuple[RankedLabel, ...]:
        scores = [{label.label: label.score for label in getattr(one, when)} for one in each]
        means = mean_ranking(scores, query.top_k)
        return tuple(RankedLabel(**asdict(one)) for one in means)

    update: dict[str, Any] = {
        "seeds": query.seeds,
        "before": ranked("before"),
        "after": ranked("after"),
        **{name: fmean(getattr(one, name) for one in each) for name in ("entropy_before", "entropy_after")},
        "images_encoded": sum(one.images_encoded for one in each),
        "timings": Timings(**{name: sum(getattr(one.timings, name) for one in each) for name in Timings.model_fields}),
    }
    return each[0].model_copy(update=update)
