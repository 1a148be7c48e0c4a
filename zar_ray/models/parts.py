"""What a published system adds to CLIP, as a declaration: the word in an architecture, and what puts it there.

`zar_ray.models.architecture.PARTS` has all of them; docs/extending.md shows a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

VIEW_FRAMES = "view_frames"
"""Where an image tower whose frames see each other says how many a view has."""


def _none(_name: str) -> bool:
    return False


@dataclass(frozen=True)
class Part:
    """Something that an architecture may add to an open_clip CLIP.

    Attributes:
        word: What an architecture calls it; the settings under it are the arguments of `attach`.
        attach: Puts it, with new weights from torch's default generator, into a CLIP that has none yet. Raises
            `zar_ray.errors.ModelError` where the CLIP or a setting does not fit.
        is_trained: Whether ``--trains added``, under which the CLIP itself is frozen, trains a parameter of this name
            in the CLIP's state dict. By default none.
        shapes_tell: Whether the shapes of its tensors tell all its settings; a model's fingerprint counts the others'
            settings too.
    """

    word: str
    attach: Callable[..., None]
    is_trained: Callable[[str], bool] = _none
    shapes_tell: bool = False


def frames_of(visual: Any) -> int | None:
    """T, the frames that an image tower reads together; None where each is by itself."""
    return getattr(visual, VIEW_FRAMES, None)


def embedding_width(clip: Any) -> int:
    """D, the width of an open_clip CLIP's embeddings."""
    projection = getattr(clip, "text", clip).text_projection
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
