"""Open-VCLIP: CLIP's own weights, whose image tower attends to the frames beside each frame too.

The design is Open-VCLIP's (Weng et al., "Open-VCLIP: Transforming CLIP to an Open-vocabulary Video Model via
Interpolated Weight Optimization", ICML 2023, section 3), as its official code computes it:

- in each block of the image tower, all tokens of a frame attend to those of the frames within reach, one before and one
  behind, with CLIP's own projections and one softmax over all of them;
- where a view ends, the frame that is missing there is not left out: its keys and values are zeros, which take their
  part of the softmax;
- a view's cosine with a text is the mean of its frames', each of an L2-normalised embedding.

Nothing has weights, so a file is a CLIP. What makes one is its training, which also learns by the weights between
CLIP's and its own (``--interpolated-loss``), and the mean of CLIP and what was trained: `zar_ray.models.merging`.

The architecture has the numbers of frames and of neighbours on either side under ``neighbour_frames``; a reach of 0 is
CLIP's own attention. No tensor tells either. Frames come view by view: T images after one another are a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.formats import Converted, SavedWeights
from zar_ray.models.parts import FUSION, VIEW_FRAMES, StandIn, projected_heads, require_class_token, require_sizes
from zar_ray.models.systems.base import System, TrainingRule
from zar_ray.options.layers import parse_yaml
from zar_ray.video.transforms import Preprocessing

if TYPE_CHECKING:
    from zar_ray.training.options import TrainConfig

NEIGHBOUR_FRAMES = "neighbour_frames"

_NEW = {"frames": 8, "reach": 1}
_SAVED, _PREFIXES = "model_state", ("model.", "module.model.")  # where the official code puts weights, and their names
# What its configuration calls how frames see each other, by how far they do; of other ways there are other weights.
_REACHES = {
    None: 0,
    "expand_temporal_view": 1,
    "expand_temporal_view_step2": 2,
    "expand_temporal_view_step3": 3,
}


def attach_neighbour_frames(clip: Any, frames: int, reach: int = 1) -> None:
    """Has the image tower of an open_clip CLIP attend to neighbouring frames; it gets no new weights.

    Args:
        clip: A CLIP with a vision transformer.
        frames: T, of a view.
        reach: How many frames before a frame, and behind it, its tokens attend to.

    Raises:
        ModelError: The image tower is not such a transformer, or a number is out of range.
    """
    require_class_token(clip, "attention to neighbouring frames")
    require_sizes("attention to neighbouring frames", frames=frames)
    require_sizes("attention to neighbouring frames", least=0, reach=reach)
    visual: Any = clip.visual
    setattr(visual, VIEW_FRAMES, frames)
    blocks = visual.transformer.resblocks
    for layer, block in enumerate(blocks):
        blocks[layer] = NeighbourBlock(block, frames, reach)
    clip.add_module(FUSION, MeanOfUnits())


class NeighbourBlock(StandIn):
    """A block of the image tower, with the weights of the one it stands for, whose attention reaches other frames.

    Args:
        block: open_clip's.
        frames: T, of a view.
        reach: How many frames before and behind.
    """

    def __init__(self, block: Any, frames: int, reach: int) -> None:
        super().__init__(block)
        self.frames, self.reach = frames, reach

    def forward(
        self, x: torch.Tensor, _keys: None = None, _values: None = None, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(n·T, L, W) to the same; there is no mask."""
        query, key, value = projected_heads(self.attn, self.ln_1(x), "qkv")
        found = F.scaled_dot_product_attention(query, self._within_reach(key), self._within_reach(value))
        return self.transformed(self.attended(x, found))

    def _within_reach(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n·T, heads, L, d) to (n·T, heads, (2·reach + 1)·L, d): of all frames within reach, zeros where none is."""
        if not self.reach:
            return tokens
        views = tokens.unflatten(0, (-1, self.frames))
        padded = F.pad(views, (0, 0, 0, 0, 0, 0, self.reach, self.reach))
        shifted = [padded[:, start : start + self.frames] for start in range(2 * self.reach + 1)]
        return torch.cat(shifted, dim=3).flatten(0, 1)


class MeanOfUnits(nn.Module):
    """The mean of frames' L2-normalised embeddings: its product with a text is the mean of the frames' cosines."""

    averages_cosines = True  # see `zar_ray.models.parts.averages_cosines`

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """float32 (n, T, D), not normalised, to (n, D), of length 1 at most."""
        return F.normalize(frames, dim=-1).mean(dim=1)


def recognise(saved: SavedWeights) -> Converted | None:
    """Open-VCLIP's own files are SlowFast's: a CLIP under ``model_state`` whose names all start with ``model.``.

    Those of a training have its configuration beside them, as YAML; those that were averaged or published have none.

    Raises:
        ModelError: Its frames see each other in another way.
    """
    state = saved.content.get(_SAVED)
    if not isinstance(state, Mapping) or not all(str(name).startswith(_PREFIXES) for name in state):
        return None
    told = _told(saved)
    assumed = tuple(name for name in _NEW if name not in told)
    return Converted(saved.tensors, {NEIGHBOUR_FRAMES: {**_NEW, **told}}, assumed=assumed)


def _told(saved: SavedWeights) -> dict[str, int]:
    """What the configuration in a file says."""
    config = saved.content.get("cfg")
    if isinstance(config, str):
        try:
            config = parse_yaml(config, saved.place)
        except ConfigError:  # of Python's own objects, say: then it tells nothing
            config = None
    found: dict[str, int] = {}
    data, model = (_part(config, name) for name in ("DATA", "MODEL"))
    if isinstance(frames := data.get("NUM_FRAMES"), int):
        found["frames"] = frames
    if "TEMPORAL_MODELING_TYPE" in model:
        way = model["TEMPORAL_MODELING_TYPE"]
        if way not in _REACHES:
            raise ModelError(f"{saved.place}: its frames see each other by {way}, and zar-ray has {_listed_ways()}")
        found["reach"] = _REACHES[way]
    return found


def _part(config: object, name: str) -> Mapping[str, Any]:
    part = config.get(name) if isinstance(config, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _listed_ways() -> str:
    return ", ".join(way for way in _REACHES if way is not None)


def _why_untrained(config: TrainConfig) -> str | None:
    added = config.trains == "added"
    return "adds no weights to CLIP's; train its image tower with --trains image" if added else None


def _preprocessing(input_size: int) -> Preprocessing:
    return Preprocessing(input_size, interpolation="bilinear")


SYSTEM = System(
    name="openvclip",
    title="Open-VCLIP",
    parts={NEIGHBOUR_FRAMES: attach_neighbour_frames},
    additions={NEIGHBOUR_FRAMES: dict(_NEW)},
    recognise=recognise,
    preprocessing=_preprocessing,
    training=TrainingRule(refuses=_why_untrained),
    reference="weng2023openvclip",
)
