"""View plans: which frames of a video are decoded, which crops are cut, and which view uses which.

A plan depends on the video's id, its frame count and size, the options and the seed, and on nothing else: not on
the order of videos, the worker or the machine (DESIGN.md, "ZAR, exactly", 1 to 4).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from zar_ray.errors import VideoError
from zar_ray.video.options import ViewConfig
from zar_ray.video.sampling import Draw, evaluated_frames, part_centres
from zar_ray.video.transforms import CropBox, Preprocessing, crop_boxes, resized_size, short_side_for

if TYPE_CHECKING:
    from zar_ray.video.reading import VideoInfo

_HASH_BITS = 128


@dataclass(frozen=True)
class ViewOrigin:
    """Where a view comes from: which sample of which rate, which crop, the segment's first frame and its length."""

    rate: float
    sample: int
    crop: str
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class ViewPlan:
    """Everything the views of one video need, each frame and each image named once.

    Attributes:
        frames: int64 (F,), ascending distinct frame indices in presentation order.
        short_side: Short side of the resized frames, in pixels.
        height: Height of the resized frames.
        width: Width of the resized frames.
        boxes: The distinct crops.
        images: int64 (I, 2), the distinct images: a row of `frames` and a row of `boxes`.
        views: int64 (V, T), rows of `images`, one row a view.
        origins: Where each view comes from, (V,).
        evaluation: int64 (T_eval,), rows of `images`: the evaluation view; (E, T_eval) where there are several.
    """

    frames: np.ndarray
    short_side: int
    height: int
    width: int
    boxes: tuple[CropBox, ...]
    images: np.ndarray
    views: np.ndarray
    origins: tuple[ViewOrigin, ...]
    evaluation: np.ndarray

    def evaluation_only(self) -> ViewPlan:
        """The same plan without the views: only the frames and images of the evaluation view."""
        rows, evaluation = np.unique(self.evaluation, return_inverse=True)
        evaluation = evaluation.reshape(self.evaluation.shape).astype(np.int64)
        bare = replace(self, images=self.images[rows], views=self.views[:0], origins=(), evaluation=evaluation)
        return unite([bare])[0]

    def count_images(self, *, with_views: bool) -> int:
        """Distinct images of this plan's evaluation view, and of its other views; `images` may hold more (`unite`)."""
        rows = [self.views.ravel(), self.evaluation.ravel()] if with_views else [self.evaluation.ravel()]
        return len(np.unique(np.concatenate(rows)))


def plan_video(
    video_id: str, info: VideoInfo, views: ViewConfig, preprocessing: Preprocessing, seed: int, *, needs_views: bool
) -> ViewPlan:
    """What `plan_views` plans; the evaluation view alone, where no method needs another."""
    plan = plan_views(video_id, info.frames, info.height, info.width, views, preprocessing, seed)
    return plan if needs_views else plan.evaluation_only()


def plan_views(
    video_id: str,
    info_frames: int,
    height: int,
    width: int,
    views: ViewConfig,
    preprocessing: Preprocessing,
    seed: int,
) -> ViewPlan:
    """Plans the views of a video: rates × samples × crops, in that order, and the evaluation view.

    Plans nest: without one of the rates or samples, the other views stay as they were.

    Args:
        video_id: The video's path relative to its dataset's root; it and the seed key the random starts.
        info_frames: N, the video's frames.
        height: Height of the upright frame, before resizing.
        width: Width of the upright frame, before resizing.
        views: The options.
        preprocessing: The model's input size and resize.
        seed: Seed of the run.

    Raises:
        VideoError: The video has no frames or no size (stage ``plan``).
        ConfigError: The short side is smaller than the model's input.
    """
    if min(info_frames, height, width) < 1:
        raise VideoError(f"{info_frames} frames of {width}×{height} cannot be sampled", stage="plan")
    short_side = short_side_for(views, preprocessing)
    resized = resized_size(height, width, short_side, preprocessing.resize_mode)
    crops = crop_boxes(*resized, preprocessing.input_size, views.crops)
    moments, spots = (int(number) for number in views.eval_views.split("x"))
    eval_crops = [box for _, box in crop_boxes(*resized, preprocessing.input_size, spots)]
    boxes = tuple(sorted({box for _, box in crops} | set(eval_crops)))

    origins: list[ViewOrigin] = []
    frames: list[np.ndarray] = []
    box_of: list[int] = []
    for rate in views.rates:
        exact = _as_fraction(rate)
        length = segment_length(info_frames, exact)
        for sample in range(views.views_per_rate):
            start = _segment_start(seed, video_id, exact, sample, info_frames - length)
            indices = part_centres(start, length, views.frames, info_frames)
            for name, box in crops:
                origins.append(ViewOrigin(rate, sample, name, start, length))
                frames.append(indices)
                box_of.append(boxes.index(box))
    evaluation_frames = [
        evaluated_frames(
            views.eval_sampling,
            number,
            moments,
            views.eval_frames,
            info_frames,
            _draws(seed, video_id, "evaluation", number),
            views.eval_stride,
        )
        for number in range(moments)
    ]

    # one number an image, frame first, so that sorting groups the images of a frame
    view_codes = np.stack(frames) * len(boxes) + np.array(box_of, dtype=np.int64)[:, None]
    eval_boxes = [boxes.index(box) for box in eval_crops]
    evaluation_codes = np.stack([moment * len(boxes) + box for moment in evaluation_frames for box in eval_boxes])
    planned_frames, images, rows = _distinct(np.concatenate([view_codes.ravel(), evaluation_codes.ravel()]), len(boxes))
    evaluation = rows[view_codes.size :]
    return ViewPlan(
        frames=planned_frames,
        short_side=short_side,
        height=resized[0],
        width=resized[1],
        boxes=boxes,
        images=images,
        views=rows[: view_codes.size].reshape(view_codes.shape),
        origins=tuple(origins),
        evaluation=evaluation if len(evaluation_codes) == 1 else evaluation.reshape(evaluation_codes.shape),
    )


def _distinct(codes: np.ndarray, boxes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct frames (F,) and images (I, 2) of images given as ``frame·boxes + box``, and each one's row: int64."""
    images, rows = np.unique(codes, return_inverse=True)
    frames, frame_rows = np.unique(images // boxes, return_inverse=True)
    pairs = np.stack([frame_rows, images % boxes], axis=1)
    return frames.astype(np.int64), pairs.astype(np.int64), rows.astype(np.int64)


def unite(plans: Sequence[ViewPlan]) -> tuple[ViewPlan, ...]:
    """Several plans of one video over the frames and images of all of them, each named once.

    Args:
        plans: At least one, all of one short side.

    Returns:
        The same views, a plan each in order, as rows of shared `frames`, `boxes` and `images`.

    Raises:
        ValueError: The plans are of frames of different sizes.
    """
    if len({(plan.short_side, plan.height, plan.width) for plan in plans}) != 1:
        raise ValueError("plans of frames of different sizes share no images")
    cut = [[plan.boxes[box] for box in plan.images[:, 1]] for plan in plans]
    boxes = tuple(sorted({box for of_plan in cut for box in of_plan}))
    places = {box: place for place, box in enumerate(boxes)}
    own = [
        plan.frames[plan.images[:, 0]] * len(boxes) + np.array([places[box] for box in of_plan])
        for plan, of_plan in zip(plans, cut, strict=True)
    ]
    frames, images, rows = _distinct(np.concatenate(own), len(boxes))
    ends = np.cumsum([len(one) for one in own])
    return tuple(
        replace(plan, frames=frames, boxes=boxes, images=images, views=of[plan.views], evaluation=of[plan.evaluation])
        for plan, of in zip(plans, np.split(rows, ends[:-1]), strict=True)
    )


def by_view(plans: Sequence[ViewPlan]) -> tuple[ViewPlan, ...]:
    """Plans whose images are whole views after one another, for models whose frames see each other.

    Args:
        plans: At least one, over the same images (`unite`), all of views of T frames.

    Returns:
        The same views, a plan each in order, over shared images: T rows a distinct view, in the view's order. An image
        is there once for every distinct view that has it.

    Raises:
        ValueError: The views are of different lengths.
    """
    parts = [(*([plan.views] if len(plan.views) else []), np.atleast_2d(plan.evaluation)) for plan in plans]
    if len({part.shape[1] for of_plan in parts for part in of_plan}) != 1:
        raise ValueError("views of different lengths cannot be encoded as wholes together")
    own = [np.concatenate(of_plan) for of_plan in parts]
    distinct, places = np.unique(np.concatenate(own), axis=0, return_inverse=True)
    rows = np.arange(distinct.size, dtype=np.int64).reshape(distinct.shape)[places.ravel()]
    images = plans[0].images[distinct.ravel()]
    ends = np.cumsum([len(views) for views in own])
    return tuple(
        replace(
            plan,
            images=images,
            views=of[: len(plan.views)] if len(plan.views) else plan.views,
            evaluation=of[len(plan.views) :].reshape(plan.evaluation.shape),
        )
        for plan, of in zip(plans, np.split(rows, ends[:-1]), strict=True)
    )


def segment_length(frames: int, rate: float | Fraction) -> int:
    """Frames of a segment: floor(N·q + 1/2), at least 1, in exact arithmetic."""
    return max(1, int(frames * _as_fraction(rate) + Fraction(1, 2)))


def _as_fraction(rate: float | Fraction) -> Fraction:
    # the simple fraction a rate stands for: binary 0.3 or 0.333… would round N·q to the wrong side of a half
    return Fraction(rate).limit_denominator(1_000_000)


def _segment_start(seed: int, video_id: str, rate: Fraction, sample: int, last: int) -> int:
    return _number(last + 1, seed, video_id, str(rate), sample)


def _draws(*key: object) -> Draw:
    """Draws of a key, one after the other."""
    numbers = count()
    return lambda below: _number(below, *key, next(numbers))


def _number(below: int, *key: object) -> int:
    # A hash as the generator: NumPy's streams may change between versions, this may not. JSON keeps the parts apart
    # and writes any file name in ASCII.
    told = json.dumps(key).encode("ascii")
    number = int.from_bytes(hashlib.blake2b(told, digest_size=_HASH_BITS // 8, person=b"zar segment").digest(), "big")
    return number * below >> _HASH_BITS
