"""What stands between the HTTP application and the processes that do the work; tests put a plain object there."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from zar_ray.results.certainty import CertaintyScore
from zar_ray.serving.schema import Classification, ServedModel, WindowParameters, WindowResult
from zar_ray.video.sandbox_process import DecodedViews
from zar_ray.video.transforms import Preprocessing


@dataclass(frozen=True, eq=False)
class VideoSource:
    """A video to classify.

    Attributes:
        name: Its file name; with the seed it keys the view plan, as in `zar predict`.
        source: uint8 (n,), the file; or its path, on a disk that decoding processes see, checked against the roots.
    """

    name: str
    source: np.ndarray | str


@dataclass(frozen=True)
class Query:
    """What is asked about a video, checked, with the service's defaults filled in but for `options`.

    Attributes:
        request_id: For logs and the answer.
        labels: The candidate labels.
        method: The method.
        options: Those of its own options that are not the service's, as JSON values.
        seed: Seed of the views.
        seeds: All that are asked for, the first of them `seed` (`zar_ray.serving.seeds`).
        template: The prompt; None for the service's.
        top_k: Labels to return.
        reject_below: A decision that is less sure than this is rejected; None for none.
        reject_score: How sure it is, by which score.
        explain: Whether frames and relevance maps are wanted.
        received: Seconds that the body took to arrive.
    """

    request_id: str
    labels: tuple[str, ...]
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    template: str | None = None
    top_k: int = 5
    explain: bool = False
    received: float = 0.0
    seeds: tuple[int, ...] = ()
    reject_below: float | None = None
    reject_score: CertaintyScore = "max_probability"

    @property
    def shared(self) -> tuple[object, ...]:
        """What questions have in common that can share all passes."""
        return self.labels, self.method, self.seed, self.template, json.dumps(self.options, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Job:
    """A decoded video, or a window of one, and what is asked about it.

    Attributes:
        query: The question.
        name: The video's file name.
        decoded: Its frames, and what was found in the file.
    """

    query: Query
    name: str
    decoded: DecodedViews


@dataclass(frozen=True)
class DecodingNeeds:
    """What decoders must know of the model and the methods to plan a video's views.

    Attributes:
        preprocessing: What the model expects of its pixels.
        methods_with_views: The service's methods that look at other views than the one that is classified.
    """

    preprocessing: Preprocessing
    methods_with_views: tuple[str, ...]


class Backend(Protocol):
    """Classifies videos. All methods raise `zar_ray.serving.problems.RequestError` for what goes wrong."""

    async def classify(self, video: VideoSource, query: Query) -> Classification:
        """Classifies a video as a whole."""
        ...

    def classify_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncGenerator[WindowResult]:
        """Classifies a long video window by window, each as soon as it is decoded."""
        ...

    async def model(self) -> ServedModel:
        """The served model, once its weights are loaded and a warm-up video has been classified."""
        ...
