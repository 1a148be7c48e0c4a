"""One video's frames to its decisions: what the batch job and `zar predict` run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zar_ray.adaptation.base import Decision
from zar_ray.adaptation.cases import Case
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.methods import get_method
from zar_ray.config import AdaptationOptions, fingerprint, identity
from zar_ray.errors import VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.video.plans import ViewPlan
from zar_ray.video.transforms import crop_and_normalise

# What all methods depend on, besides the class names and the weights.
_SHARED_SETTINGS = ("context", "precision", "seed", "views")


@dataclass(frozen=True, eq=False)
class CasePrediction:
    """What one case says about a video.

    Attributes:
        case_id: The case.
        method: Its method's name.
        decision: The decision.
        seconds: Wall seconds of the adaptation and decision.
    """

    case_id: str
    method: str
    decision: Decision
    seconds: float


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """What all cases say about a video.

    Attributes:
        cases: One prediction a case, in the adapter's order.
        images_encoded: Passes of the image encoder, in images.
        views: V, views that the methods could look at.
        encode_seconds: Wall seconds of cropping and encoding.
    """

    cases: tuple[CasePrediction, ...]
    images_encoded: int
    views: int
    encode_seconds: float


def make_cases(options: AdaptationOptions, model_fingerprint: str, class_names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of a run: one a method.

    Args:
        options: The run's options.
        model_fingerprint: The model's.
        class_names: The K candidate classes, in order.

    Raises:
        ConfigError: A method is unknown.
    """
    values = identity(options)
    cases = []
    for name in options.method:
        settings = {key: values[key] for key in (*_SHARED_SETTINGS, *get_method(name).settings)}
        number = fingerprint([model_fingerprint, list(class_names), name, settings])
        cases.append(Case(f"{name}-{number[:8]}", name))
    return tuple(cases)


class VideoAdapter:
    """A model with its classes and cases; call it with a video's frames and plan.

    Args:
        model: The model, on its device.
        class_names: The K candidate classes.
        methods: Names of the methods to run.
        options: Their settings.
        cases: What to call the results; by default as `make_cases` does.

    Raises:
        ConfigError: A method is unknown, or the class names cannot be used.
    """

    def __init__(
        self,
        model: ClipModel,
        class_names: Sequence[str],
        methods: Sequence[str],
        options: AdaptationOptions,
        cases: Sequence[Case] | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.methods = tuple(get_method(name) for name in methods)
        chosen = options.model_copy(update={"method": tuple(methods)})
        self.cases = tuple(cases) if cases is not None else make_cases(chosen, model.fingerprint, class_names)
        self.classes = PromptedClasses(model, class_names, options.context)

    def __call__(self, frames: np.ndarray | torch.Tensor, plan: ViewPlan) -> VideoPrediction:
        """Encodes each distinct image that the methods need once, and runs every case on the features.

        Args:
            frames: uint8 (F, h, w, 3), resized, one a row of ``plan.frames``.
            plan: The video's views.

        Raises:
            VideoError: The encoder ran out of memory (stage ``encode``), or a method could not decide (``adapt``).
            ValueError: The frames are not the plan's.
        """
        if tuple(frames.shape) != (len(plan.frames), plan.height, plan.width, 3):
            wanted = (len(plan.frames), plan.height, plan.width, 3)
            raise ValueError(f"frames are of shape {tuple(frames.shape)}, and the plan's are {wanted}")
        if not any(method.needs_views for method in self.methods):
            rows = np.unique(plan.images[plan.evaluation][:, 0])
            frames, plan = frames[rows], plan.evaluation_only()

        started = time.perf_counter()
        features = video_features(self._encode(frames, plan), plan)
        encode_seconds = time.perf_counter() - started

        predictions = []
        for case, method in zip(self.cases, self.methods, strict=True):
            started = time.perf_counter()
            decision = method.adapt(features, self.classes, self.options)
            predictions.append(CasePrediction(case.case_id, case.method, decision, time.perf_counter() - started))
        return VideoPrediction(tuple(predictions), len(plan.images), len(plan.views), encode_seconds)

    def _encode(self, frames: np.ndarray | torch.Tensor, plan: ViewPlan) -> torch.Tensor:
        """float32 (I, D), one row an image of the plan, `encoder_batch` of them a pass."""
        batch, model = self.options.encoder_batch, self.model
        try:
            pixels = _as_tensor(frames).to(model.device)
            embeddings = torch.cat(
                [
                    model.encode_images(
                        crop_and_normalise(pixels, plan.images[first : first + batch], plan.boxes, model.preprocessing)
                    )
                    for first in range(0, len(plan.images), batch)
                ]
            )
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)  # so that the time, and any failure, is this stage's
        except (RuntimeError, MemoryError) as error:
            # PyTorch has a class of its own for a full GPU, but not for a full host.
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
                raise
            what = f"{len(plan.images)} images, {batch} a pass"
            raise VideoError(f"out of memory encoding {what}; lower --encoder-batch", stage="encode") from error
        return embeddings


def _as_tensor(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(frames, torch.Tensor):
        return frames
    # Frames that came through Ray's shared memory are read-only, which tensors cannot be.
    return torch.from_numpy(frames if frames.flags.writeable else frames.copy())
