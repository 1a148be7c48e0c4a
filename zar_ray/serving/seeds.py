"""A question under several seeds: a whole classification each, one after the other, and the mean of their answers."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from zar_ray.adaptation.rankings import RankedLabel, mean_ranking
from zar_ray.results.certainty import is_rejected
from zar_ray.serving.backend import Backend, Query, VideoSource
from zar_ray.serving.schema import Classification, Timings


async def classify(backend: Backend, video: VideoSource, query: Query) -> Classification:
    """Classifies a whole video under each of the query's seeds, in one request's place; the first one is explained.

    Raises:
        RequestError: What goes wrong under a seed.
    """
    if len(query.seeds) < 2:
        return await backend.classify(video, query)
    # All labels are asked for: their mean scores may have another order than those of each seed.
    asked = replace(query, top_k=len(query.labels))
    each = [await backend.classify(video, asked)]
    for seed in query.seeds[1:]:
        each.append(await backend.classify(video, replace(asked, seed=seed, explain=False, received=0.0)))

    def ranked(when: str) -> tuple[RankedLabel, ...]:
        return mean_ranking([{label.label: label.score for label in getattr(one, when)} for one in each], query.top_k)

    seconds = {stage: sum(getattr(one.timings, stage) for one in each) for stage in Timings.model_fields}
    certainty, reject = None, None
    if query.reject_below is not None:
        certainty = fmean(one.certainty for one in each if one.certainty is not None)
        reject = is_rejected(certainty, query.reject_below)
    update = {
        "seeds": query.seeds,
        "certainty": certainty,
        "reject": reject,
        **{when: ranked(when) for when in ("before", "after")},
        **{name: fmean(getattr(one, name) for one in each) for name in ("entropy_before", "entropy_after")},
        "images_encoded": sum(one.images_encoded for one in each),
        "timings": Timings(**seconds),
    }
    return each[0].model_copy(update=update)
