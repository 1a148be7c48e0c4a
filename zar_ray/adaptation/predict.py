"""`zar predict`: given labels ranked for given files, by the adapter that the batch job runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

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
from zar_ray.video.files import VideoFile
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest


def predict(
    model: ClipModel, labels: tuple[str, ...], options: PredictConfig, decoder: DecoderProcess
) -> Iterator[Ranking]:
    """Ranks labels for each file, before and after adaptation, each file for itself.

    The views are planned by the file's name and the seed: the same file gives the same numbers in any folder, and
    others under another name. Several seeds tell how much that is.

    Args:
        model: The model.
        labels: The candidate labels.
        options: The videos, and how they are looked at.
        decoder: What decodes them.

    Yields:
        One ranking a file and method, in the order given; a file that cannot be used yields its error.
    """
    seeds = options.seeds or (options.seed,)
    prompts = prompts_of([labels], options)
    # One each, as what streams have seen is of one seed.
    adapters = [VideoAdapter(model, prompts, options.method, options) for _ in seeds]
    needs_views = any(get_method(name).needs_views for name in options.method)
    pixels, seconds = model.preprocessing, options.decode_timeout
    for path in options.videos:
        name = Location.parse(path).name
        request = DecodeRequest(name, options.views, seeds[0], pixels, needs_views, options.decoder)
        cases, warning = [], None
        try:
            with VideoFile(path) as file:
                for seed, adapter in zip(seeds, adapters, strict=True):
                    decoded = decoder.decode(file, replace(request, seed=seed), seconds)
                    cases.append(adapter(decoded.frames, decoded.plan, name).cases)
                    warning = decoded.warning
        except VideoError as error:
            for method in options.method:
                yield Ranking(path, method, (), (), error=str(error))
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
                yield Ranking(path, method, (), (), error=str(error))
            else:
                yield Ranking(path, method, before, after, seeds, warning, certainty=certainty, reject=reject)


def rank_labels(logits: Sequence[torch.Tensor], labels: tuple[str, ...], top_k: int) -> tuple[RankedLabel, ...]:
    """The first `top_k` labels by falling mean of the softmax probabilities of float32 (K,) logits, one a seed."""
    scores = [dict(zip(labels, one.double().softmax(dim=-1).tolist(), strict=True)) for one in logits]
    return mean_ranking(scores, top_k)
