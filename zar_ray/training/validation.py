"""Evaluating what is being trained: zero-shot over all videos of a dataset, by the adapter that `zar eval` runs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed
from rich.console import Console

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import ClassPrompts, prompts_of
from zar_ray.data.datasets import choose_splits, open_dataset, resolve_dataset
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.options import DatasetOptions
from zar_ray.data.protocols import EvaluationSplit
from zar_ray.errors import ManifestError, NoRoomError, RunError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.training.options import TrainConfig
from zar_ray.training.samples import in_order, threads_ahead
from zar_ray.training.videos import VideoTable
from zar_ray.video.decoding import decode_video
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import ViewPlan, plan_video
from zar_ray.video.reading import VideoInfo

_METHOD = "zero_shot"
_VIDEOS_A_PASS = 8


@dataclass(frozen=True)
class ValidationSet:
    """The labelled videos that a training is evaluated on, and what the model reads of their classes.

    Broken videos are among them and count as failed; `label_id` is a place among the prompts.
    """

    videos: VideoTable
    prompts: ClassPrompts


def validation_split(config: TrainConfig, console: Console | None = None) -> tuple[Manifest, EvaluationSplit]:
    """Opens the dataset that `config.validation` names, and its one split.

    Raises:
        ManifestError: It cannot be opened, has no labelled video, or several splits and none is chosen.
    """
    name = str(config.validation)
    source = resolve_dataset(name, config.data_root)
    manifest = open_dataset(source, console, config.decoder)
    options = DatasetOptions(dataset=name, split=config.validation_split)
    split, *more = choose_splits(manifest, source.benchmark, options)
    if more or split.multi_label:
        known = ", ".join(one.name for one in (split, *more))
        raise ManifestError(
            f"--validation {name}: its protocol has several splits or labels a video; choose a split of"
            f" single labels with --validation-split ({known})"
        )
    if not any(split.labels):
        raise ManifestError(f"--validation {name}: has no labelled video")
    return manifest, split


def validation_set(config: TrainConfig, console: Console | None = None) -> ValidationSet | None:
    """The videos of the dataset that `config.validation` names; None where it names none.

    Raises:
        ManifestError: See `validation_split`.
    """
    if config.validation is None:
        return None
    manifest, split = validation_split(config, console)
    labelled = ((video, ids[0]) for video, ids in zip(split.video_ids, split.labels, strict=True) if ids)
    videos = VideoTable.of(manifest).labelled(labelled)
    return ValidationSet(videos, prompts_of([split.class_names], config)[0])


def evaluation_options(config: TrainConfig) -> AdaptationOptions:
    """How a training's model is evaluated: with as many frames as it is trained on, unless others are asked for."""
    shared = AdaptationOptions.model_fields.keys() & TrainConfig.model_fields.keys() - {"method", "seed"}
    views = ViewConfig(frames=config.frames, eval_frames=config.validation_frames or config.frames)
    return AdaptationOptions(**{name: getattr(config, name) for name in shared}, method=(_METHOD,), views=views)


def validate(
    model: ClipModel, prompts: ClassPrompts, videos: ValidationSet, config: TrainConfig, rank: int, workers: int
) -> tuple[int, int, int]:
    """Classifies all videos by the model as it is now, in the training processes themselves; all must call this.

    Returns:
        Over all processes: videos whose class was found, videos that could be evaluated, videos that could not.

    Raises:
        RunError: There is not enough memory beside the training's for a single image.
    """
    adapter = VideoAdapter(model, [prompts], (_METHOD,), evaluation_options(config))
    counts = torch.zeros(3, dtype=torch.int64)
    share = range(rank, len(videos.videos), workers)
    groups = [share[start : start + _VIDEOS_A_PASS] for start in range(0, len(share), _VIDEOS_A_PASS)]
    with ThreadPoolExecutor(threads_ahead(config, model.device), thread_name_prefix="validate") as pool:

        def begin(group: range) -> list[Future[PlannedVideo | None]]:
            return [pool.submit(_plan_and_decode, videos.videos[number], adapter, config) for number in group]

        for group, begun in in_order(groups, begin, ahead=1):
            usable = [(number, one) for number, one in zip(group, map(Future.result, begun), strict=True) if one]
            predicted = adapter.predict([one for _, one in usable]) if usable else []
            for (number, _), outcome in zip(usable, predicted, strict=True):
                if isinstance(outcome, NoRoomError):
                    # No fault of the video's: without it, the share would be of whatever happened to fit.
                    beside = "or evaluate outside of the training's processes, with --validation-async"
                    raise RunError(f"--validation {config.validation}: {outcome}; {beside}")
                if not isinstance(outcome, VideoError):
                    label = videos.videos[number].label_id
                    counts[0] += int(outcome.cases[0].decision.logits_before.argmax()) == label
                    counts[1] += 1
    counts[2] = len(share) - counts[1]
    if workers > 1:
        counts = counts.to(model.device)
        torch.distributed.all_reduce(counts)
    correct, evaluated, failed = counts.tolist()
    return correct, evaluated, failed


def _plan_and_decode(video: VideoRow, adapter: VideoAdapter, config: TrainConfig) -> PlannedVideo | None:
    """None for a video that cannot be decoded."""
    options, pixels = adapter.options, adapter.model.preprocessing

    def plan_of(info: VideoInfo) -> ViewPlan:
        return plan_video(video.video_id, info, options.views, pixels, options.seed, needs_views=False)

    if video.error is not None:
        return None
    try:
        with video.file() as file:
            found = decode_video(
                file,
                plan_of,
                pixels.scaling,
                config.decoder,
                timeout=config.decode_timeout,
                resizer=config.resize,
            )
    except VideoError:
        return None
    return PlannedVideo(plan_of(found.info), found.frames)
