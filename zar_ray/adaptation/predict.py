"""`zar predict`: given labels ranked for given files, by the adapter that the batch job runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.rankings import RankedLabel, Ranking
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest


def predict(
    model: ClipModel, labels: tuple[str, ...], options: PredictConfig, decoder: DecoderProcess
) -> Iterator[Ranking]:
    """Ranks labels for each file, before and after adaptation, each file for itself.

    The views are planned by the file's name and the seed: the same file gives the same numbers in any folder.

    Args:
        model: The model.
        labels: The candidate labels.
        options: The videos, and how they are looked at.
        decoder: What decodes them.

    Yields:
        One ranking a file and method, in the order given; a file that cannot be used yields its error.
    """
    adapter = VideoAdapter(model, prompts_of([labels], options), options.method, options)
    needs_views = any(get_method(name).needs_views for name in options.method)
    pixels, seconds = model.preprocessing, options.decode_timeout
    for path in options.videos:
        name = Path(path).name
        request = DecodeRequest(name, options.views, options.seed, pixels, needs_views, options.decoder)
        try:
            decoded = decoder.decode(path, request, seconds)
            prediction = adapter(decoded.frames, decoded.plan, name)
        except VideoError as error:
            for method in options.method:
                yield Ranking(path, method, (), (), error=str(error))
            continue
        for case in prediction.cases:
            before = rank_labels(case.decision.logits_before, labels, options.top_k)
            after = rank_labels(case.decision.logits_after, labels, options.top_k)
            yield Ranking(path, case.method, before, after, warning=decoded.warning)


def rank_labels(logits: torch.Tensor, labels: tuple[str, ...], top_k: int) -> tuple[RankedLabel, ...]:
    """The first `top_k` labels by falling softmax probability of float32 (K,) logits; equal ones in their order."""
    scores = logits.double().softmax(dim=-1)
    order = torch.argsort(scores, descending=True, stable=True)[:top_k]
    return tuple(RankedLabel(labels[index], float(scores[index])) for index in order.tolist())
