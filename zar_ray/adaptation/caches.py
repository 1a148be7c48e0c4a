"""What stream methods keep of the videos they have seen: for each class features of some of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.functional import normalize, pad

from zar_ray.adaptation.base import VideoFeatures, evaluation_logits
from zar_ray.models.clip import ClipModel
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses

_Held = TypeVar("_Held")


@dataclass(frozen=True, eq=False)
class ConfidentCache:
    """For each class up to S features, by rising doubt.

    Attributes:
        keys: float32 (K, S, D); zeros in empty places.
        doubts: float32 (K, S); infinite in empty places.
    """

    keys: torch.Tensor
    doubts: torch.Tensor

    @classmethod
    def empty(cls, classes: int, capacity: int, like: torch.Tensor) -> ConfidentCache:
        """One that holds nothing, for features of the width, type and device of `like` (..., D)."""
        return cls(like.new_zeros(classes, capacity, like.shape[-1]), like.new_full((classes, capacity), math.inf))

    def copy(self, more: int = 0) -> ConfidentCache:
        """The same in tensors of its own, with so many more places a class."""
        if not more:
            return ConfidentCache(self.keys.clone(), self.doubts.clone())
        return ConfidentCache(pad(self.keys, (0, 0, 0, more)), pad(self.doubts, (0, more), value=math.inf))

    def offer(self, of: int, feature: torch.Tensor, doubt: torch.Tensor) -> None:
        """Puts a feature (D,) among those of a class, where there is room or one of more doubt, which goes."""
        if not self.doubts.shape[1] or not doubt < self.doubts[of, -1]:
            return
        self.keys[of, -1], self.doubts[of, -1] = feature, doubt
        order = self.doubts[of].argsort(stable=True)
        self.keys[of], self.doubts[of] = self.keys[of, order], self.doubts[of, order]

    @property
    def counts(self) -> torch.Tensor:
        """int64 (K,): the features a class."""
        return self.doubts.isfinite().sum(dim=1)

    def affinities(self, feature: torch.Tensor, sharpness: float) -> torch.Tensor:
        """float32 (K, S): exp(-beta (1 - <feature, key>)); 0 in empty places."""
        return affinities(feature, self.keys, sharpness) * self.doubts.isfinite()


@dataclass(frozen=True, eq=False)
class DoubtfulCache:
    """For each class features of doubtful videos that it was the likeliest of, and what these show by their logits.

    Attributes:
        keys: float32 (K, S, D); zeros in empty places.
        entropies: float32 (K, S), nats; infinite in empty places.
        probabilities: float32 (K, S, K), of the videos' classes.
    """

    keys: torch.Tensor
    entropies: torch.Tensor
    probabilities: torch.Tensor

    @classmethod
    def empty(cls, classes: int, capacity: int, like: torch.Tensor) -> DoubtfulCache:
        """One that holds nothing, for features like `like` (..., D)."""
        return cls(
            like.new_zeros(classes, capacity, like.shape[-1]),
            like.new_full((classes, capacity), math.inf),
            like.new_zeros(classes, capacity, classes),
        )

    def surer(self, of: int, feature: torch.Tensor, doubt: torch.Tensor, p: torch.Tensor) -> DoubtfulCache:
        """Another one, which was offered a class's video: where that is full, the most doubtful of them all goes."""
        if not self.entropies.shape[1]:
            return self
        place = int(self.entropies[of].argmax())
        if not doubt < self.entropies[of, place]:
            return self
        kept = [one.clone() for one in vars(self).values()]
        for own, value in zip(kept, (feature, doubt, p), strict=True):
            own[of, place] = value
        return DoubtfulCache(*kept)

    def later(self, of: int, feature: torch.Tensor, doubt: torch.Tensor, p: torch.Tensor) -> DoubtfulCache:
        """Another one, which has a further video of a class, in place of the oldest where that class is full."""
        capacity = self.entropies.shape[1]
        if not capacity:
            return self
        kept = [one.clone() for one in vars(self).values()]
        place = int(self.entropies[of].isfinite().sum())
        for own, value in zip(kept, (feature, doubt, p), strict=True):
            if place == capacity:
                own[of] = own[of].roll(-1, dims=0)
            own[of, min(place, capacity - 1)] = value
        return DoubtfulCache(*kept)

    def against(self, feature: torch.Tensor, sharpness: float, mask: tuple[float, float]) -> torch.Tensor:
        """float32 (K,): what speaks against each class, by the videos near a feature (D,).

        Those count against a class whose probability of it is between the bounds of the mask.
        """
        low, high = mask
        masks = ((self.probabilities > low) & (self.probabilities < high)).to(feature.dtype)
        near = affinities(feature, self.keys, sharpness) * self.entropies.isfinite()
        return torch.einsum("ks,ksc->c", near, masks)


def state_of(held: object, under: str = "") -> dict[str, torch.Tensor]:
    """All tensors of what a stream holds, by their names."""
    return {f"{under}{part}": value for part, value in vars(held).items()}


def restored(held: _Held, state: Mapping[str, torch.Tensor], under: str = "") -> _Held:
    """What goes on from `state_of` such a thing, on the device of `held`."""
    kind: Any = type(held)
    return kind(**{part: state[f"{under}{part}"].to(value, copy=True) for part, value in vars(held).items()})


def share_of_doubt(doubt: torch.Tensor, classes: int) -> torch.Tensor:
    """Entropy in nats over log2(K), as the published code of these methods has it."""
    return doubt / math.log2(max(2, classes))


@contextmanager
def unless_it_fails(holder: object) -> Iterator[None]:
    """Puts what an object holds back where what is done inside fails, as where memory runs out.

    Its values are put in each other's place, and never written to, so that this takes no memory.
    """
    known = dict(vars(holder))
    try:
        yield
    except Exception:
        vars(holder).update(known)
        raise


def plain_view(video: VideoFeatures, classes: PromptedClasses) -> tuple[torch.Tensor, torch.Tensor]:
    """What a stream sees of a video's evaluation view: its logits (K,), and its feature (D,), L2-normalised.

    Of several evaluation views these are the logarithm of their mean probability, and their mean.

    Raises:
        VideoError: Some logits are not finite (stage ``adapt``).
    """
    own = classes.model.embedding_part(torch.atleast_2d(video.evaluation))
    return evaluation_logits(video, classes), normalize(own.mean(dim=0), dim=-1)


def affinities(feature: torch.Tensor, keys: torch.Tensor, sharpness: float) -> torch.Tensor:
    """float32 (..., N): exp(-beta (1 - <feature, key>)) of a feature (D,) and keys (..., N, D); differentiable.

    Of several features (E, D) it is (..., N, E).
    """
    with exact_float32():
        return (-sharpness * (1 - keys @ (feature if feature.ndim == 1 else feature.mT))).exp()


def unfit_for_online_texts(model: ClipModel, _: object) -> str | None:
    """Why a method that takes class features from video to video cannot serve a model; None where it can."""
    if model.texts_follow_videos:
        return "its texts follow the video, and class features are carried from video to video"
    return None
