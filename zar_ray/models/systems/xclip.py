"""X-CLIP's additions to CLIP: messages between frames, a transformer over them, and texts that follow the video.

The design is X-CLIP's (Ni et al., "Expanding Language-Image Pretrained Models for General Video Recognition", ECCV
2022, section 3), as its official code computes it:

- in front of each block of the image tower, a frame's class token becomes a message, which attends to the messages of
  the view's other frames; it stands behind the frame's tokens while the block runs, and goes with it;
- a transformer with learned positions integrates the frames' class embeddings: the mean of what it gives and of what
  it was given;
- each class's text embedding attends to the patches of the video, averaged over frames, in two layers, and a share of
  what comes of it is added to the text embedding before that is normalised.

So the image tower gives each frame's class embedding with its patch tokens behind it, the head makes the video's
embedding of them with projected patches behind it, and a text has an embedding for each video. The CLIP holds the head
as its module ``fusion``; all names are the published ones within it. The architecture has the sizes under
``cross_frames``. Frames come view by view: T images after one another are a view.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import nn

from zar_ray.models.formats import Converted, SavedWeights, count_layers
from zar_ray.models.openclip import LayerNorm, QuickGELU, Transformer
from zar_ray.models.parts import (
    FUSION,
    VIEW_FRAMES,
    ApartAttention,
    drop_last,
    is_of_head,
    keep_tokens,
    kept_tokens,
    require_class_token,
    require_sizes,
)
from zar_ray.models.systems.base import System, TrainingRule
from zar_ray.video.transforms import imagenet_preprocessing

CROSS_FRAMES = "cross_frames"

_HEAD_WIDTH = 64  # of an attention head over frames or patches
_MESSAGE = "message_"  # what the names of a block's parameters for messages start with
_HEAD = ("mit.", "prompts_generator.", "prompts_visual_ln.", "prompts_visual_proj")
_POSITIONS = "mit.positional_embedding"
_SHARE = 0.1  # of a new text prompt that is added
_DEVIATION = 0.02  # of new positions, and of new weights of the head


def attach_cross_frames(clip: Any, frames: int, layers: int = 1, prompt_layers: int = 2) -> None:
    """Gives an open_clip CLIP with a vision transformer new messages between the T frames of a view, and a new head.

    The head has a transformer of `layers` over frames, and `prompt_layers` in which texts attend to patches.

    Raises:
        ModelError: The image tower is not such a transformer, or a number is below 1.
    """
    require_class_token(clip, "messages between frames")
    require_sizes("messages between frames", frames=frames, layers=layers, prompt_layers=prompt_layers)
    visual: Any = clip.visual
    setattr(visual, VIEW_FRAMES, frames)
    width, projection = visual.positional_embedding.shape[1], cast(torch.Tensor, visual.proj)
    block: Any  # its attributes bear no types
    for block in visual.transformer.resblocks:
        block.add_module("message_fc", nn.Linear(width, width))
        block.add_module("message_ln", LayerNorm(width))
        block.add_module("message_attn", nn.MultiheadAttention(width, block.attn.num_heads, batch_first=True))
        block.register_forward_pre_hook(partial(_append, frames))
        block.register_forward_hook(drop_last)
    # The tower's output has the class token alone; the patches are taken on their way there.
    keep_tokens(visual)
    visual.register_forward_hook(_with_patches)
    clip.add_module(FUSION, CrossFrameHead(projection.shape[1], width, frames, layers, prompt_layers))


def never_decays(name: str) -> bool:
    """Whether weight decay leaves a parameter alone that is no gain and no bias: positions, of patches and frames."""
    return "positional_embedding" in name


def is_new(name: str) -> bool:
    """Whether a parameter of the CLIP is one that X-CLIP adds: of its head, or of messages."""
    return is_of_head(name) or f".{_MESSAGE}" in name


class CrossFrameHead(nn.Module):
    """From T frames to a video, and from a video's patches to texts; D is the width of embeddings, W of tokens."""

    def __init__(self, width: int, token_width: int, frames: int, layers: int, prompt_layers: int) -> None:
        super().__init__()
        self.width, self.frames, self._token_width = width, frames, token_width
        self.mit = _Integration(width, frames, layers)
        self.prompts_visual_ln = LayerNorm(token_width)
        self.prompts_visual_proj = nn.Parameter(torch.randn(token_width, width))
        self.prompts_generator = _TextPrompts(width, prompt_layers)
        for part in (self.mit, self.prompts_generator):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=_DEVIATION)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Videos (n, D + P·D), not normalised, with projected patches behind them, of frames (n, T, D + P·W).

        The frames are class embeddings with the patch tokens behind them.
        """
        classes, tokens = frames[..., : self.width], frames[..., self.width :].unflatten(-1, (-1, self._token_width))
        patches = (self.prompts_visual_ln(tokens) @ self.prompts_visual_proj).mean(dim=1)
        return torch.cat([self.mit(classes), patches.flatten(1)], dim=1)

    def text_embeddings(self, texts: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Texts (n, K, D) as videos have them, of texts (K, D) and patches (n, P·D) of `forward`; not normalised."""
        own = texts.expand(len(patches), -1, -1)
        return own + self.prompts_generator(own, patches.unflatten(1, (-1, self.width)))


class _Integration(nn.Module):
    def __init__(self, width: int, frames: int, layers: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, frames, width) * _DEVIATION)
        self.resblocks = Transformer(width, layers, max(1, width // _HEAD_WIDTH), act_layer=QuickGELU).resblocks

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames + self.positional_embedding
        for block in self.resblocks:
            x = block(x)
        return (x + frames).mean(dim=1)


class _TextPrompts(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.decoder = nn.ModuleList(_PromptLayer(width) for _ in range(layers))
        self.alpha = nn.Parameter(torch.full((width,), _SHARE))

    def forward(self, texts: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        patches = self.norm(patches)
        for layer in self.decoder:
            texts = layer(texts, patches)
        return self.alpha * texts


class _PromptLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross_attn = ApartAttention(width, max(1, width // _HEAD_WIDTH), bias=False, outcome="proj")
        self.norm1, self.norm3 = LayerNorm(width), LayerNorm(width)
        # The published names count the dropout between the two.
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, texts: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        texts = texts + self.cross_attn(self.norm1(texts), patches)
        return texts + self.mlp(self.norm3(texts))


def _append(frames: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    messages = block.message_fc(x[:, 0].unflatten(0, (-1, frames)))
    normed = block.message_ln(messages)
    messages = messages + block.message_attn(normed, normed, normed, need_weights=False)[0]
    return (torch.cat([x, messages.flatten(0, 1)[:, None].to(x.dtype)], dim=1), *inputs[1:])


def _with_patches(visual: Any, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output, kept_tokens(visual)[:, 1:].flatten(1).to(output.dtype)], dim=1)


def recognise(saved: SavedWeights) -> Converted | None:
    """X-CLIP's own files bear OpenAI's names and its head's, which tell the sizes."""
    tensors = saved.tensors
    if _POSITIONS not in tensors:
        return None
    sizes = {
        "frames": tensors[_POSITIONS].shape[1],
        "layers": count_layers(tensors, "mit.resblocks."),
        "prompt_layers": count_layers(tensors, "prompts_generator.decoder."),
    }
    weights = {f"{FUSION}.{name}" if name.startswith(_HEAD) else name: one for name, one in tensors.items()}
    return Converted(weights, {CROSS_FRAMES: sizes})


SYSTEM = System(
    name="xclip",
    title="X-CLIP",
    parts={CROSS_FRAMES: attach_cross_frames},
    additions={CROSS_FRAMES: {"frames": 8, "layers": 1, "prompt_layers": 2}},
    recognise=recognise,
    preprocessing=imagenet_preprocessing,
    training=TrainingRule(added=is_new, new=is_new, undecayed=never_decays),
    reference="ni2022xclip",
)
