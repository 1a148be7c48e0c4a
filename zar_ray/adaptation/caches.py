"""What stream methods keep of the videos they have seen: for each class the features of those of least doubt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize, pad

from zar_ray.adaptation.base import VideoFeatures, averaged, require_finite
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses


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

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """All of it, under a name."""
        return {f"{name}/{part}": value for part, value in vars(self).items()}

    def restored(self, name: str, state: Mapping[str, torch.Tensor]) -> ConfidentCache:
        """One that goes on from a `state`, on this one's device."""
        return ConfidentCache(
            **{part: state[f"{name}/{part}"].to(value, copy=True) for part, value in vars(self).items()}
        )


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
    logits = averaged(classes.initial_logits(video.evaluation))
    require_finite(logits, "of the evaluation view")
    own = classes.model.embedding_part(torch.atleast_2d(video.evaluation))
    return logits, normalize(own.mean(dim=0), dim=-1)


def affinities(feature: torch.Tensor, keys: torch.Tensor, sharpness: float) -> torch.Tensor:
    """float32 (..., N): exp(-beta (1 - <feature, key>)) of a feature (D,) and keys (..., N, D); differentiable.

    Of several features (E, D) it is (..., N, E).
    """
    with exact_float32():
        return (-sharpness * (1 - keys @ (feature if feature.ndim == 1 else feature.mT))).exp()
