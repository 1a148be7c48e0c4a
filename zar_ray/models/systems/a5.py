"""A5: learnt vectors around class names, and layers over the embeddings of a video's frames.

Efficient prompting (Ju et al., "Prompting Visual-Language Models for Efficient Video Understanding", ECCV 2022, called
A5 after its best row) freezes CLIP and trains a table of vectors, one a position of the text tower. A text is then

    start  vector …  name …  vector …  end  vector …

with as many vectors in front of the name and behind it as the settings say; each is the one of the position that it
stands at, also where nothing reads it, after the end of text. Positions are added as to any token. The video is the
mean of what pre-norm layers with learned positions make of the frames (its section 3.3), without the frames themselves.

The text tower holds the table as the parameter ``learned_texts`` (context_length, W), and the architecture bears both
numbers under the same word. The CLIP holds the layers as the module ``fusion``, and the architecture their settings
under ``frame_layers``. No tensor tells the numbers of vectors, or the layers' heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zar_ray.errors import ModelError
from zar_ray.models.formats import NOT_READ, Converted, SavedWeights, count_layers, openai_layout
from zar_ray.models.openclip import QuickGELU, Transformer
from zar_ray.models.parts import (
    FUSION,
    TEXT_FRAME,
    TextFrame,
    embedding_width,
    is_of_head,
    require_heads,
    require_sizes,
)
from zar_ray.models.systems.base import EVALUATION_SCALE, System, TrainingRule
from zar_ray.video.transforms import Preprocessing

LEARNED_TEXTS = "learned_texts"
FRAME_LAYERS = "frame_layers"
PUBLISHED_CLIP, PUBLISHED_TEXTS, PUBLISHED_LAYERS = "clipmodel.", "embedding.weight", "temporalModelling."
"""What a published checkpoint calls its CLIP, its vectors around class names, and its layers over frames."""

_POSITIONS = "temporalEmbedding.weight"
_AROUND = 16  # vectors on each side of a name in the commands of the official README
_SCALE = 1 / 0.07  # cosines are divided by this temperature, in training and after it
_HEADS = 8  # of the layers, by default there
_DEVIATION = 0.01  # of new vectors and positions, as in the official code


def attach_learned_texts(clip: Any, prefix: int = _AROUND, postfix: int = _AROUND) -> None:
    """Gives the text tower of an open_clip CLIP new vectors, so many on each side of a name.

    Raises:
        ModelError: A number is below 0, or no name has room between them.
    """
    tower = getattr(clip, "text", clip)
    require_sizes("vectors around class names", least=0, prefix=prefix, postfix=postfix)
    if (most := len(tower.positional_embedding) - 3) < prefix + postfix:  # start, end, and a name of one token
        raise ModelError(f"vectors around class names: {prefix} and {postfix} leave no room; {most} are the most")
    vectors = torch.randn_like(tower.positional_embedding) * _DEVIATION
    tower.register_parameter(LEARNED_TEXTS, nn.Parameter(vectors.detach()))
    setattr(tower, TEXT_FRAME, TextFrame(LEARNED_TEXTS, prefix, postfix))


class FrameLayers(nn.Module):
    """So many layers over embeddings of width D of T frames, which it has positions for; it reads no others."""

    def __init__(self, width: int, layers: int, frames: int, heads: int) -> None:
        super().__init__()
        self.frames = frames
        self.temporalEmbedding = nn.Embedding(frames, width)
        self.temporalModelling = Transformer(width, layers, heads, act_layer=QuickGELU)
        nn.init.normal_(self.temporalEmbedding.weight, std=_DEVIATION)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """float32 (n, T, D), not normalised, to (n, D)."""
        return self.temporalModelling(frames + self.temporalEmbedding.weight).mean(dim=1)


def attach_frame_layers(clip: Any, layers: int, frames: int, heads: int = _HEADS) -> None:
    """Gives an open_clip CLIP new layers, of so many heads, over the T frames of every view; with 0 layers none.

    Raises:
        ModelError: A number is out of range, or heads do not share the width.
    """
    require_sizes("layers over frames", frames=frames)
    require_sizes("layers over frames", least=0, layers=layers)
    require_heads("layers over frames", embedding_width(clip), heads)
    if layers:
        clip.add_module(FUSION, FrameLayers(embedding_width(clip), layers, frames, heads))


def is_trained(name: str) -> bool:
    """Whether A5 trains a parameter: the vectors around names and the layers over frames."""
    return name == LEARNED_TEXTS or is_of_head(name)


def recognise(saved: SavedWeights) -> Converted | None:
    """A5's own files hold the CLIP under ``clipmodel.``; one without layers over frames averages them."""
    if PUBLISHED_TEXTS not in saved.tensors or not any(name.startswith(PUBLISHED_CLIP) for name in saved.tensors):
        return None
    tensors = dict(saved.tensors)
    of_clip = [name for name in tensors if name.startswith(PUBLISHED_CLIP)]
    weights = openai_layout({name.removeprefix(PUBLISHED_CLIP): tensors.pop(name) for name in of_clip})
    layers, left_out = count_layers(tensors, f"{PUBLISHED_LAYERS}resblocks."), {}
    for name, tensor in tensors.items():
        if name == _POSITIONS and not layers:
            left_out[name] = NOT_READ
        elif name == PUBLISHED_TEXTS:
            weights[LEARNED_TEXTS] = tensor
        else:
            weights[f"{FUSION}.{name}" if name == _POSITIONS or name.startswith(PUBLISHED_LAYERS) else name] = tensor
    additions: dict[str, Any] = {LEARNED_TEXTS: {"prefix": _AROUND, "postfix": _AROUND}, EVALUATION_SCALE: _SCALE}
    assumed = ("prefix", "postfix")
    if layers:
        additions[FRAME_LAYERS] = {"layers": layers, "frames": len(tensors[_POSITIONS]), "heads": _HEADS}
        assumed += ("heads",)
    return Converted(weights, additions, left_out, assumed)


SYSTEM = System(
    name="a5",
    title="A5",
    parts={LEARNED_TEXTS: attach_learned_texts, FRAME_LAYERS: attach_frame_layers},
    additions={
        LEARNED_TEXTS: {"prefix": _AROUND, "postfix": _AROUND},
        FRAME_LAYERS: {"layers": 1, "frames": 16, "heads": _HEADS},
        EVALUATION_SCALE: _SCALE,
    },
    optional=(FRAME_LAYERS,),
    recognise=recognise,
    preprocessing=Preprocessing,
    training=TrainingRule(added=is_trained),
    reference="ju2022a5",
)
