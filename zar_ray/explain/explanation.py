"""What a finished run's model looks at in chosen videos, before and after tuning: maps that are computed anew.

The maps are of the evaluation view, with the tuning of `zar_ray.adaptation.zar`: the rule that the run's own, batched
one is held to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from zar_ray.adaptation.adapter import make_cases
from zar_ray.adaptation.base import averaged
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.zar import tuned_features
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.manifest import VideoRow
from zar_ray.errors import RunError, VideoError, suggestion
from zar_ray.models.attention import attention_rollout, class_relevance, require_attention
from zar_ray.models.loading import load_model
from zar_ray.models.packing import ImageSet, encode_packed, images_at_once
from zar_ray.models.text import PromptedClasses
from zar_ray.options.layers import validate
from zar_ray.results.rows import ResultRow, to_rows
from zar_ray.results.study_record import FinishedRun
from zar_ray.video.pixels import cut_crops, normalise
from zar_ray.video.reading import VideoInfo
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodedViews, DecodeRequest
from zar_ray.video.transforms import short_side_for

_METHOD = "zar"
_ONE_VIEW = "1x1"
# DESIGN.md promises scores within 1e-3 in float32 and the same decoder; this is where a reader should be told.
_NOTABLE = 0.01


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """What speaks for a class before and after tuning.

    Attributes:
        role: ``predicted`` or ``right``.
        before: (T, g, g), none negative: relevance under the untuned text.
        after: (T, g, g), under the tuned text.
    """

    name: str
    role: str
    before: np.ndarray
    after: np.ndarray

    @property
    def moved(self) -> float | None:
        """Share of the relevance that is elsewhere after tuning: the total variation distance, in [0, 1].

        None where one of the maps is empty.
        """
        if not self.before.sum() or not self.after.sum():
            return None
        return float(np.abs(self.before / self.before.sum() - self.after / self.after.sum()).sum() / 2)


@dataclass(frozen=True, eq=False)
class VideoMaps:
    """A video's evaluation view with its maps.

    Attributes:
        frames: uint8 (T, R, R, 3), the crops that the model sees.
        indices: (T,), which frames of the video they are.
        rollout: (T, g, g), none negative: the image tower's attention rollout.
    """

    video_id: str
    frames: np.ndarray
    indices: np.ndarray
    rollout: np.ndarray
    classes: tuple[ClassMaps, ...]
    remarks: tuple[str, ...] = ()


def explain_videos(
    run: FinishedRun,
    class_sets: Sequence[tuple[str, ...]],
    results: pa.Table,
    videos: Mapping[str, VideoRow],
    video_ids: Sequence[str],
    decoder: DecoderProcess,
) -> tuple[VideoMaps, ...]:
    """Computes what an evaluation's model looks at in some of its videos.

    Each video is decoded, encoded and tuned to again as the evaluation did, by the model that its options name; the
    class that was predicted is explained and, where that is wrong, the right one.

    Args:
        run: An evaluation that `zar` was a method of.
        class_sets: Its candidate classes, a set for each distinct one of its splits.
        results: Its predictions, one row a (video, case).
        videos: Its manifest's rows by video id.
        video_ids: Videos that it finished.
        decoder: What decodes them.

    Returns:
        The maps of each video, in order.

    Raises:
        RunError: There is no such video in it; or what is at hand is not what it was made with.
        ModelError: The model cannot be loaded, or its image tower has no attention maps.
        ZarError: Its manifest or class texts cannot be read.
    """
    explaining = _Explaining(run, class_sets, results, videos, decoder)
    return tuple(explaining.maps(video_id) for video_id in video_ids)


class _Explaining:
    """An evaluation with the model that made it, see `explain_videos`."""

    def __init__(
        self,
        run: FinishedRun,
        class_sets: Sequence[tuple[str, ...]],
        results: pa.Table,
        videos: Mapping[str, VideoRow],
        decoder: DecoderProcess,
    ) -> None:
        self.place, self.videos, self.decoder = run.place, videos, decoder
        known = {name: one for name, one in run.config.items() if name in AdaptationOptions.model_fields}
        self.options = options = validate(AdaptationOptions, known, run.place)
        if _METHOD not in options.method:
            raise RunError(f"{run.place}: tunes nothing (methods {', '.join(options.method)}); attention maps need zar")
        if options.own(_METHOD).stream:
            raise RunError(
                f"{run.place}: its context went on from video to video; attention maps tune it for one alone"
            )
        self.model = model = load_model(options)
        require_attention(model)
        if model.fingerprint != (own := run.summary.model_fingerprint):
            raise RunError(
                f"{run.place}: its model was {own}, and {options.checkpoint or options.model} is {model.fingerprint}"
                " now; bring the weights of the run back"
            )
        prompts = prompts_of(class_sets, options)
        cases = [case for case in make_cases(options, model.fingerprint, prompts) if case.method == _METHOD]
        ids = pa.array([case.case_id for case in cases], pa.string())
        rows = to_rows(results.filter(pc.field("case_id").isin(ids)))
        if not rows:
            raise RunError(f"{run.place}: its texts of the classes have changed since; bring those of the run back")
        prompted = [PromptedClasses.of(model, one, options.class_position) for one in prompts]
        # The candidate classes by ZAR's case ids, and its results; of the first class set, where a video is of several.
        self.classes = {case.case_id: (class_sets[case.class_set], prompted[case.class_set]) for case in cases}
        self.rows = {row.video_id: row for row in reversed(rows)}

    def maps(self, video_id: str) -> VideoMaps:
        """The maps of one video."""
        row = self._result(video_id)
        names, classes = self.classes[row.case_id]
        decoded = self._decoded(self.videos[video_id])
        plan = decoded.plan
        frames = torch.from_numpy(decoded.frames).to(self.model.device)
        at_once = images_at_once(self.options.encoder_batch, self.model.device)
        (embeddings,) = encode_packed(self.model, [ImageSet(decoded.frames, plan.images, plan.boxes)], at_once)
        if isinstance(embeddings, VideoError):
            raise RunError(f"{video_id}: {embeddings}")
        update = self.options.zar
        features = video_features(embeddings, plan, self.model.view_features, update.fusion)
        tuned = tuned_features(features, classes, update)

        view = plan.images[plan.evaluation]
        crops = cut_crops(frames, view, plan.boxes)
        pixels = normalise(crops, self.model.preprocessing)
        # The predicted class and, if that is wrong, the first right one.
        assert row.top5_after is not None
        predicted = row.top5_after[0]
        right = row.labels if row.labels is not None else () if row.label_id is None else (row.label_id,)
        explained = {predicted: "predicted"}
        if right and predicted not in right:
            explained[right[0]] = "right"
        ids = list(explained)
        texts = torch.cat([classes.initial_features[ids], tuned[ids]])
        relevance = class_relevance(self.model, pixels, texts).cpu().numpy()
        logits = averaged(classes.logits(features.evaluation, tuned))
        return VideoMaps(
            video_id=video_id,
            frames=crops.cpu().numpy(),
            indices=plan.frames[view[:, 0]],
            rollout=attention_rollout(self.model, pixels).cpu().numpy(),
            classes=tuple(
                ClassMaps(names[number], role, before, after)
                for (number, role), before, after in zip(
                    explained.items(), relevance[: len(ids)], relevance[len(ids) :], strict=True
                )
            ),
            remarks=tuple(self._remarks(row, logits)),
        )

    def _result(self, video_id: str) -> ResultRow:
        row = self.rows.get(video_id)
        if row is None:
            raise RunError(f'{self.place}: has no video "{video_id}"{suggestion(video_id, self.rows)}')
        if not row.finished:
            raise RunError(f"{video_id}: failed in this run ({row.error}); choose a video that it finished")
        return row

    def _decoded(self, video: VideoRow) -> DecodedViews:
        options, preprocessing = self.options, self.model.preprocessing
        # One evaluation view, with the zoom that the run's had.
        one_view = {"eval_views": _ONE_VIEW, "short_side": short_side_for(options.views, preprocessing)}
        views = options.views.model_copy(update=one_view)
        known = VideoInfo(
            video.frames or 0, video.fps or 0.0, video.width or 0, video.height or 0, video.duration or 0.0, ""
        )
        request = DecodeRequest(
            video.video_id,
            views,
            options.seed,
            preprocessing,
            needs_views=True,
            decoder=options.decoder,
            expected=known,
        )
        try:
            with video.file() as file:
                return self.decoder.decode(file, request, options.decode_timeout)
        except VideoError as error:
            raise RunError(f"{video.file()}: {error}") from error

    def _remarks(self, row: ResultRow, logits: torch.Tensor) -> list[str]:
        views = self.options.views.eval_views
        if views != _ONE_VIEW:
            return [f"The run averages its {views} evaluation views; shown is the centre crop."]
        if self.options.zar.decision != "evaluation":
            return ["The run decides by the views that it selected; shown is the evaluation view."]
        scores = logits.softmax(dim=-1)[list(row.top5_after or ())].cpu().numpy()
        difference = float(np.abs(scores - np.array(row.top5_scores_after)).max())
        if difference <= _NOTABLE:
            return []
        return [f"Computed anew, its scores differ from the run's by up to {difference:.2f}."]
