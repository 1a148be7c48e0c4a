"""`zar predict`: given labels ranked for given videos, by the adapter that the batch job runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.rankings import RankedLabel, Ranking, mean_ranking
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import VideoError
from zar_ray.file_systems import Location
from zar_ray.models.clip import ClipModel
from zar_ray.results.certainty import certainties, is_rejected
from zar_ray.video.decoding import GivenFrames, resize_given
from zar_ray.video.files import VideoFile
from zar_ray.video.plans import ViewPlan
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest


@dataclass(frozen=True, eq=False)
class Source:
    """A video to rank labels for.

    Attributes:
        shown: What its rankings call it.
        name: Its name, by which its views are planned.
        content: Where the file lies, its bytes, uint8 (n,), or its frames.
    """

    shown: str
    name: str
    content: str | np.ndarray | GivenFrames

    @classmethod
    def of_file(cls, place: str) -> Source:
        """The file at a path or URI."""
        return cls(place, Location.parse(place).name, place)

    def decoded(
        self, requests: Sequence[DecodeRequest], decoder: DecoderProcess, options: PredictConfig
    ) -> Iterator[tuple[np.ndarray, ViewPlan, str | None]]:
        """The frames that each request needs, its plan, and what was odd; raises a `VideoError`."""
        if isinstance(self.content, GivenFrames):
            for one in requests:
                given = resize_given(self.content, one.plan, one.preprocessing.scaling, options.resize)
                yield given.frames, one.plan(given.info), given.warning
            return
        opened = VideoFile(self.content) if isinstance(self.content, str) else nullcontext(self.content)
        with opened as file:
            for one in requests:
                decoded = decoder.decode(file, one, options.decode_timeout)
                yield decoded.frames, decoded.plan, decoded.warning


def predict(
    model: ClipModel,
    labels: tuple[str, ...],
    options: PredictConfig,
    decoder: DecoderProcess,
    sources: Sequence[Source] | None = None,
) -> Iterator[Ranking]:
    """Ranks labels for each video, before and after adaptation, each video for itself.

    The views are planned by the file's name and the seed: the same file gives the same numbers in any folder, and
    others under another name. Several seeds tell how much that is.

    Args:
        model: The model.
        labels: The candidate labels.
        options: The videos, and how they are looked at.
        decoder: What decodes them.
        sources: The videos, where they are not the files that the options name.

    Yields:
        One ranking a video and method, in the order given; a video that cannot be used yields its error.
    """
    seeds = options.seeds or (options.seed,)
    prompts = prompts_of([labels], options)
    sources = [Source.of_file(place) for place in options.videos] if sources is None else sources
    # One each, as what streams have seen is of one seed.
    adapters = [VideoAdapter(model, prompts, options.method, options, videos=(len(sources),)) for _ in seeds]
    needs_views = any(get_method(name).needs_views for name in options.method)
    for source in sources:
        name = source.name
        request = DecodeRequest(name, options.views, seeds[0], model.preprocessing, needs_views, options.decoder)
        requests = [replace(request, seed=seed) for seed in seeds]
        cases, warning = [], None
        try:
            for adapter, seen in zip(adapters, source.decoded(requests, decoder, options), strict=True):
                frames, plan, warning = seen
                cases.append(adapter(frames, plan, name).cases)
        except VideoError as error:
            for method in options.method:
                yield Ranking(source.shown, method, (), (), error=str(error))
            continue
        for of_seeds in zip(*cases, strict=True):
            before, after = (
                rank_labels([getattr(case.decision, name) for case in of_seeds], labels, options.top_k)
                for name in ("logits_before", "logits_after")
            )
            method, below, certainty, reject = of_seeds[0].method, options.reject_below, None, None
            try:
                if below is not None:
                    certainty = fmean(certainties(one.decision.logits_after)[options.reject_score] for one in of_seeds)
                    reject = is_rejected(certainty, below)
            except VideoError as error:
                yield Ranking(source.shown, method, (), (), error=str(error))
            else:
                yield Ranking(source.shown, method, before, after, seeds, warning, certainty=certainty, reject=reject)


def rank_labels(logits: Sequence[torch.Tensor], labels: tuple[str, ...], top_k: int) -> tuple[RankedLabel, ...]:
    """The first `top_k` labels by falling mean of the softmax probabilities of float32 (K,) logits, one a seed."""
    scores = [dict(zip(labels, one.double().softmax(dim=-1).tolist(), strict=True)) for one in logits]
    return mean_ranking(scores, top_k)
