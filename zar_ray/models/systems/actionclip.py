"""ActionCLIP's heads: from the embeddings of a video's frames to the video's.

They are those of Wang et al., "ActionCLIP: A New Paradigm for Video Action Recognition", 2021, section 3.3, as its
official code computes them. All but ``Transf_cls`` average what they made of the frames, and add it to the frames
themselves first:

- ``meanP``: the mean alone, as CLIP's own; no weights;
- ``LSTM``: one layer;
- ``Conv_1D``: a convolution over three frames, each channel by itself, that starts as a temporal shift;
- ``Transf``: learned positions and a pre-norm transformer, with CLIP's activation; the head of the published
  Kinetics-400 checkpoints;
- ``Transf_cls``: a standard post-norm transformer with a class token, whose last state is the video.

The CLIP holds its head as the module ``fusion``, under the names of the published checkpoints, and its architecture
bears the head's settings under the same word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from zar_ray.errors import ModelError
from zar_ray.models.formats import NOT_READ, Converted, SavedWeights, count_layers, openai_layout, tensors_in
from zar_ray.models.openclip import LayerNorm, QuickGELU, Transformer
from zar_ray.models.parts import FUSION, embedding_width, is_of_head
from zar_ray.models.systems.base import EVALUATION_SCALE, System, TrainingRule
from zar_ray.video.transforms import enlarged_preprocessing

Head = Literal["meanP", "LSTM", "Conv_1D", "Transf", "Transf_cls"]

_SAVED = "fusion_model_state_dict"  # where the official code puts the head
_POSITIONS = "frame_position_embeddings.weight"
_PUBLISHED_SCALE = 100  # of cosines in the official evaluation, whatever was learnt
_HEAD_WIDTH = 64  # of an attention head in Transf
_EPS = 1e-12  # of Transf's norms
_HEADS = 8  # attention heads of Transf_cls
_CLS_INNER = 2048
_DEVIATION = 0.02  # of new weights, as in the official code


def attach_fusion(clip: Any, head: Head, layers: int = 6, frames: int | None = None, transposes: bool = False) -> None:
    """Gives an open_clip CLIP a new fusion head.

    Args:
        clip: A CLIP that has none yet.
        head: Which.
        layers: Of ``Transf`` and ``Transf_cls``.
        frames: T, for ``Transf_cls``, which has positions for so many frames and reads no others.
        transposes: Whether ``Conv_1D`` runs over a channel's frames. The official code, and so every published
            checkpoint, reinterprets the memory of (T, D) as (D, T) instead.

    Raises:
        ModelError: There is no such head, or a number is missing.
    """
    rows, text_width = getattr(clip, "text", clip).positional_embedding.shape
    width = embedding_width(clip)
    if head == "Transf_cls" and frames is None:
        raise ModelError(f"the fusion head {head} has positions for so many frames: say how many (frames)")
    heads: dict[str, Callable[[], nn.Module]] = {
        "meanP": _MeanHead,
        "LSTM": lambda: _LstmHead(width),
        "Conv_1D": lambda: _ShiftHead(width, transposes),
        "Transf": lambda: _TransformerHead(width, layers, max(1, text_width // _HEAD_WIDTH), rows),
        "Transf_cls": lambda: _ClassTokenHead(width, layers, frames or 0),
    }
    if head not in heads:
        raise ModelError(f'no fusion head is called "{head}"; there are {", ".join(heads)}')
    clip.add_module(FUSION, heads[head]())


class _MeanHead(nn.Module):
    """``meanP``."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """float32 (n, T, D), not normalised, to (n, D)."""
        return (frames + self.added(frames)).mean(dim=1)

    def added(self, frames: torch.Tensor) -> torch.Tensor | float:
        """What is added to the frames before they are averaged, (n, T, D)."""
        return 0.0


class _LstmHead(_MeanHead):
    """``LSTM``, one layer from D to D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm_visual = nn.LSTM(width, width, batch_first=True)

    def added(self, frames: torch.Tensor) -> torch.Tensor:
        return self.lstm_visual(frames)[0]


class _ShiftHead(_MeanHead):
    """``Conv_1D``: a new one moves a quarter of the channels a frame on, a quarter a frame back, and keeps the rest."""

    def __init__(self, width: int, transposes: bool) -> None:
        super().__init__()
        self.transposes = transposes
        self.shift = nn.Conv1d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        with torch.no_grad():
            kernels = self.shift.weight.zero_()
            kernels[: width // 4, 0, 0] = 1
            kernels[width // 4 : width - width // 4, 0, 1] = 1
            kernels[width - width // 4 :, 0, 2] = 1

    def added(self, frames: torch.Tensor) -> torch.Tensor:
        count, length, width = frames.shape
        channels = frames.mT if self.transposes else frames.reshape(count, width, length)
        return self.shift(channels).mT


class _TransformerHead(_MeanHead):
    """``Transf``."""

    def __init__(self, width: int, layers: int, heads: int, rows: int) -> None:
        super().__init__()
        self.most_frames = rows
        self.frame_position_embeddings = nn.Embedding(rows, width)
        norm: Any = partial(LayerNorm, eps=_EPS)
        self.transformer = Transformer(width, layers, heads, act_layer=QuickGELU, norm_layer=norm)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_DEVIATION)

    def added(self, frames: torch.Tensor) -> torch.Tensor:
        return self.transformer(frames + self.frame_position_embeddings.weight[: frames.shape[1]])


class _ClassTokenHead(nn.Sequential):
    """``Transf_cls``."""

    def __init__(self, width: int, layers: int, frames: int) -> None:
        super().__init__(OrderedDict(transformer=_ClassTokenEncoder(width, layers, frames)))
        self.frames = frames


class _ClassTokenEncoder(nn.Module):
    def __init__(self, width: int, layers: int, frames: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * _DEVIATION)
        self.pos_embed = nn.Parameter(torch.randn(1, frames + 1, width) * _DEVIATION)
        layer, norm = nn.TransformerEncoderLayer(width, _HEADS, _CLS_INNER, batch_first=True), nn.LayerNorm(width)
        self.transformer_enc = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.cls_token.expand(len(frames), -1, -1), frames], dim=1)
        return self.transformer_enc(tokens + self.pos_embed)[:, 0]


def head_settings(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What head the tensors of a published checkpoint's part are of, as `attach_fusion` takes it."""
    if "lstm_visual.weight_ih_l0" in tensors:
        return {"head": "LSTM"}
    if "shift.weight" in tensors:
        return {"head": "Conv_1D"}
    if "transformer.cls_token" in tensors:
        layers = count_layers(tensors, "transformer.transformer_enc.layers.")
        return {"head": "Transf_cls", "layers": layers, "frames": tensors["transformer.pos_embed"].shape[1] - 1}
    layers = count_layers(tensors, "transformer.resblocks.")
    return {"head": "Transf", "layers": layers} if layers else {"head": "meanP"}


def recognise(saved: SavedWeights) -> Converted | None:
    """ActionCLIP's own files have the head beside the CLIP; every head but ``meanP`` with a table of positions, which
    ``Transf`` alone reads.
    """
    part = saved.content.get(_SAVED)
    if not isinstance(part, Mapping):
        return None
    head = openai_layout(tensors_in(part))
    settings = head_settings(head)
    unread = set() if settings["head"] == "Transf" else {_POSITIONS}
    weights = {f"{FUSION}.{name}": tensor for name, tensor in head.items() if name not in unread}
    left_out = {f"{_SAVED}/{name}": NOT_READ for name in part if name.removeprefix("module.") in unread}
    return Converted(saved.tensors | weights, {FUSION: settings, EVALUATION_SCALE: _PUBLISHED_SCALE}, left_out)


SYSTEM = System(
    name="actionclip",
    title="ActionCLIP",
    parts={FUSION: attach_fusion},
    additions={FUSION: {"head": "Transf", "layers": 6}, EVALUATION_SCALE: _PUBLISHED_SCALE},
    recognise=recognise,
    preprocessing=enlarged_preprocessing,
    training=TrainingRule(added=is_of_head),
    reference="wang2021actionclip",
)
