"""What every method gets and gives, and what they share: entropy, and which views are confident."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from zar_ray.errors import VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options
from zar_ray.video.plans import ViewPlan


@dataclass(frozen=True, eq=False)
class VideoPixels:
    """One video as images, for methods that encode some themselves.

    Attributes:
        video_id: What keys its random draws, besides the seed.
        frames: uint8 (F, h, w, 3), resized.
        plan: Its images and views.
        embeddings: float32 (I, D), of the images by the model as it was loaded; not normalised.
    """

    video_id: str
    frames: np.ndarray | torch.Tensor
    plan: ViewPlan
    embeddings: torch.Tensor

    def frames_on(self, device: torch.device, rows: np.ndarray | slice = slice(None)) -> torch.Tensor:
        """Some of the frames on a device."""
        frames = self.frames[rows]
        # A copy: frames that came through Ray's shared memory are read-only.
        return (frames if isinstance(frames, torch.Tensor) else torch.tensor(frames)).to(device)


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """One video, encoded; see `zar_ray.adaptation.fusion` for what a row is.

    Attributes:
        views: float32 (V, D), L2-normalised, one row a view; V may be 0 for methods that need none.
        evaluation: float32 (D,), L2-normalised: the evaluation view, which is classified; (E, D) where a decision is
            the mean over several.
        pixels: The video's images, for methods that need them.
    """

    views: torch.Tensor
    evaluation: torch.Tensor
    pixels: VideoPixels | None = None

    def require_pixels(self) -> VideoPixels:
        """The video's images.

        Raises:
            VideoError: There are stored features in their place (stage ``adapt``).
        """
        if self.pixels is None:
            raise VideoError("the method works from pixels, and there are stored features only", stage="adapt")
        return self.pixels


@dataclass(frozen=True, eq=False)
class Decision:
    """What a method decided about a video; all tensors on the CPU.

    Attributes:
        logits_before: float32 (K,), of the evaluation view without adaptation.
        logits_after: float32 (K,), of the evaluation view with it; the decision.
        view_entropies: float32 (V,), nats, before adaptation; None for methods that look at no views.
        selected: int64 (S,), the views that took part, by their confidence; None for methods that select none.
        losses: float32 (steps,), the loss at the start of each step; None for methods without steps.
        encoded: Images that the method itself put through the image encoder, besides those shared with others.
    """

    logits_before: torch.Tensor
    logits_after: torch.Tensor
    view_entropies: torch.Tensor | None = None
    selected: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    encoded: int = 0


# What a method has to say of a video; an error of one leaves the others of its batch alone.
Outcome = Decision | VideoError

Updates = Literal["nothing", "context", "weights", "cache"]
"""What a method changes to decide about a video."""


Fusion = Literal["embedding", "image", "decision"]
"""Where the frames of a view become one."""

Selection = Literal["entropy", "margin"]
"""What makes a view confident: low entropy, or a wide margin between its two likeliest classes."""


@dataclass(frozen=True)
class Shared:
    """What every method is told besides its own options.

    Attributes:
        seed: Seed of random draws.
        encoder_batch: Images a pass of the image encoder.
        videos: How many videos a stream will be given at most; None where nobody knows.
    """

    seed: int = 0
    encoder_batch: int = 64
    videos: int | None = None


Rule = Callable[[Sequence[VideoFeatures], PromptedClasses, Any, Shared], list[Outcome]]
"""Several videos to an outcome each, in order, under the method's own options (None of a method without any).

No video's outcome depends on the others.
"""


class Stream(Protocol):
    """What a stream method remembers from one video to the next, under one case."""

    def decide(self, video: VideoFeatures) -> Decision:
        """Decides about the next video; one that raises a `VideoError` leaves no trace."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """All that later decisions depend on, to be saved."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from what `state` gave, under the same classes and options."""
        ...


OpenStream = Callable[[PromptedClasses, Any, Shared], Stream]
"""Begins a stream under a method's own options."""


@dataclass(frozen=True)
class Method:
    """A test-time rule: its options, what it needs, what it updates, and whether it is a stream.

    All that takes options takes the method's own: an instance of `options`, or None without such a class.

    Attributes:
        name: What it is called in options and results; its options are the group of this name.
        description: One line for people.
        adapt: The rule itself; of a stream method, a stream of the given videos alone.
        options: The class of its own options, each with a default and a description; None where it has none.
        needs_views: Whether it looks at other views than the evaluation view.
        needs_pixels: Whether it encodes images itself, so that features alone do not do; a function of its options
            where these say it.
        updates: What it changes; a context must be one that can be tuned.
        fusion: How the frames of its views become features.
        unfit: Why it cannot serve a model; None where it can.
        is_stream: Whether a decision depends on the videos before it.
        open_stream: A stream's beginning; only for methods that can be one.
        changes: What it changes in words, for people; by default `updates`.
        also_needs: What it needs beside what the rest says, for people.
        cost: What a video takes beside the images of its views, for people.
        source: Where it was published, in a few words.
        reference: Its source: a key of conf/references.bib, or of a package's own method a whole BibTeX entry.
    """

    name: str
    description: str
    adapt: Rule
    options: type[Options] | None = None
    needs_views: bool = False
    needs_pixels: bool | Callable[[Any], bool] = False
    updates: Updates = "nothing"
    fusion: Callable[[Any], Fusion] = lambda options: "embedding"
    unfit: Callable[[ClipModel, Any], str | None] = lambda model, options: None
    is_stream: Callable[[Any], bool] = lambda options: False
    open_stream: OpenStream | None = None
    reference: str | None = None
    changes: str = ""
    also_needs: str = ""
    cost: str = ""
    source: str = ""

    def works_from_pixels(self, options: Any) -> bool:
        """Whether it encodes images itself under its own options."""
        return self.needs_pixels(options) if callable(self.needs_pixels) else self.needs_pixels


def one_by_one(rule: Callable[[VideoFeatures, PromptedClasses, Any, Shared], Decision]) -> Rule:
    """Makes a method's rule of one that decides about a single video."""
    return lambda videos, *told: decisions(videos, lambda video: rule(video, *told))


def on_and_on(open_stream: OpenStream) -> Rule:
    """Makes a rule of a stream: it sees the given videos alone, and their number is known where no other one is."""

    def rule(videos: Sequence[VideoFeatures], classes: PromptedClasses, options: Any, shared: Shared) -> list[Outcome]:
        count = len(videos) if shared.videos is None else shared.videos
        return decisions(videos, open_stream(classes, options, replace(shared, videos=count)).decide)

    return rule


def stream_method(
    name: str, description: str, open_stream: OpenStream, options: type[Options], **declared: Any
) -> Method:
    """A method that is a stream under any options; what else a `Method` has is `declared`, and it fills a cache."""
    return Method(
        name,
        description,
        on_and_on(open_stream),
        options,
        **{"updates": "cache", **declared},
        is_stream=lambda _: True,
        open_stream=open_stream,
    )


def decisions(videos: Sequence[VideoFeatures], decide: Callable[[VideoFeatures], Decision]) -> list[Outcome]:
    """What `decide` says of each video, in order, or the error that it raised."""
    outcomes: list[Outcome] = []
    for video in videos:
        try:
            outcomes.append(decide(video))
        except VideoError as error:
            outcomes.append(error)
    return outcomes


def with_plain_view(video: VideoFeatures) -> torch.Tensor:
    """float32 (1 + V, D): a video's views, with its evaluation view, the first of several, in front."""
    return torch.cat([torch.atleast_2d(video.evaluation)[:1], video.views])


def evaluation_logits(video: VideoFeatures, classes: PromptedClasses) -> torch.Tensor:
    """float32 (K,): the logits of a video's evaluation views without adaptation, see `averaged`.

    Raises:
        VideoError: Some are not finite (stage ``adapt``).
    """
    logits = averaged(classes.initial_logits(video.evaluation))
    require_finite(logits, "of the evaluation view")
    return logits


def views_with_logits(video: VideoFeatures, classes: PromptedClasses) -> tuple[torch.Tensor, torch.Tensor]:
    """The views `with_plain_view`, float32 (1 + V, D), and their logits without adaptation, (1 + V, K).

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    views = with_plain_view(video)
    logits = classes.initial_logits(views)
    require_finite(logits, "of the views")
    return views, logits


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the softmax over the last axis of finite logits, in nats, computed in log space."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def doubt(logits: torch.Tensor, selection: Selection) -> torch.Tensor:
    """How little confident views (..., V, K) are: (..., V), their entropy in nats, or their negative margin.

    The margin is how much more probable the likeliest class is than the next (Scheffer et al., IDA 2001, on active
    learning); that of a single class is its probability, 1.
    """
    if selection == "entropy":
        return entropy(logits)
    best = logits.softmax(dim=-1).topk(min(2, logits.shape[-1]), dim=-1).values
    return best[..., 1:].sum(dim=-1) - best[..., 0]


def count_confident(views: int, fraction: float) -> int:
    """How many views are selected: floor(fraction·views), at least one.

    The product is floored as the floating-point number it is, as in the reference implementation of TPT: 0.29 of
    100 is 28.999999999999996 there, so 28.
    """
    return max(1, int(views * fraction))


def select_confident(doubts: torch.Tensor, fraction: float) -> torch.Tensor:
    """The views of least `doubt` (V,), `count_confident` of them; equal ones in the views' order.

    Returns:
        int64 (S,), rows of `doubts`, the most confident first.
    """
    return doubts.argsort(stable=True)[: count_confident(len(doubts), fraction)]


def averaged(logits: torch.Tensor) -> torch.Tensor:
    """The logits (K,) of a decision over evaluation views (E, K): the logarithm of the mean of their probabilities.

    (K,) stays as it is, as does a single view.
    """
    if logits.ndim == 1 or len(logits) == 1:
        return logits.reshape(-1)
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def require_finite(logits: torch.Tensor, when: str) -> None:
    """Refuses logits that are not numbers, which no rule could rank.

    Raises:
        VideoError: Some are not finite (stage ``adapt``); the message says `when`.
    """
    if not torch.isfinite(logits).all():
        raise VideoError(f"logits {when} are not finite", stage="adapt")
