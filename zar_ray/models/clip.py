"""CLIP as the rest of zar-ray sees it: pixels to image embeddings, embedded text to text embeddings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from zar_ray.data.options import CONTEXT
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import AnyClip, Architecture, told_by_no_tensor
from zar_ray.models.fitting import Fitting
from zar_ray.models.options import Precision
from zar_ray.models.parts import FUSION, VECTOR, averages_cosines, following_head, frames_of, text_frame_of
from zar_ray.models.precision import exact_float32, full_precision
from zar_ray.models.recurrent import give_gradients
from zar_ray.models.systems.base import EVALUATION_SCALE
from zar_ray.models.systems.registry import known_parts, system_of
from zar_ray.models.text_towers import TextTower, tower_of
from zar_ray.models.tokens import CONTEXT_LENGTH, tokenizer_of
from zar_ray.models.vision import VisionTower, unfit_vision
from zar_ray.video.transforms import Preprocessing

PRODUCTS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each precision computes products in; None: the weights' own type."""

_SHOWN_TEXT = 80  # characters of a text that a message repeats


def shortened(text: str) -> str:
    """A text as messages repeat it."""
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"


class ClipModel(nn.Module):
    """A frozen CLIP in evaluation mode.

    Args:
        clip: The towers, as `build_clip` or open_clip's factory makes them; their parameters stop requiring
            gradients.
        name: What to call the model in results.
        preprocessing: What it expects of its pixels.
        architecture: What `clip` was built from.
        precision: Of the image encoder alone: under ``bf16`` and ``fp16`` it runs in mixed precision.
        random_weights: Whether the weights are untrained.

    Attributes:
        image_passes: How many images pass the encoder at once.
        moving_passes: How many do so where the encoder's weights move, with all that their gradients need.
        text_passes: How many tokens pass the text tower at once, with all that gradients need.
        compiled: Whether `torch.compile` compiles the image encoder.

    Raises:
        ModelError: The text tower has another vocabulary than the model's tokenizer, or that cannot be had.
    """

    def __init__(
        self,
        clip: AnyClip,
        name: str,
        preprocessing: Preprocessing,
        architecture: Architecture,
        precision: Precision = "fp32",
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        text = architecture.get("text_cfg") or {}
        self.tokenizer = tokenizer_of(text)
        known = self.tokenizer.size
        # Of others than CLIP's own, towers have places for more tokens than there are.
        if clip.vocab_size < known or (clip.vocab_size > known and not text.get("hf_tokenizer_name")):
            raise ModelError(f"{name}: its vocabulary has {clip.vocab_size} tokens, and its tokenizer makes {known}")
        self.clip: Any = clip.requires_grad_(False)  # Any: its attributes bear no types
        give_gradients(clip)
        self.name = name
        self.preprocessing = preprocessing
        self.architecture = architecture
        self.precision: Precision = precision
        self.random_weights = random_weights
        self.image_passes = Fitting("images a pass of the image encoder", "--encoder-batch {}")
        self.moving_passes = Fitting("images a pass of the moving image encoder", "--encoder-batch {}")
        self.text_passes = Fitting("tokens a pass of the text tower")
        self.compiled = False
        self._held: tuple[bool, Callable[[torch.Tensor], torch.Tensor] | None] = (False, None)
        self._scale: tuple[tuple[int, int], float] | None = None
        self._ready: tuple[list[tuple[int, int]], Callable[[torch.Tensor], torch.Tensor]] | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of all embeddings: float32 unless the model was converted."""
        return self.clip.logit_scale.dtype

    @property
    def text_tower(self) -> Any:
        """What holds the text tower's parts: a `CLIP` itself, or the ``text`` of a `CustomTextCLIP`."""
        return getattr(self.clip, "text", self.clip)

    @property
    def text(self) -> TextTower:
        """The text tower, as it runs over vectors."""
        said = (self.architecture.get("text_cfg") or {}).get("context_length", CONTEXT_LENGTH)
        return tower_of(self.text_tower, said)

    @property
    def context_length(self) -> int:
        """Tokens the text tower reads, 77 in OpenAI's models."""
        return self.text.context_length

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by to give logits: exp of the learnt parameter, or what the architecture says."""
        scale = self.architecture.get(EVALUATION_SCALE)
        if scale is not None:
            return float(scale)
        # Read once until it moves or changes: from a GPU each time would be a wait.
        learnt = self.clip.logit_scale.detach()
        state = learnt.data_ptr(), learnt._version
        if self._scale is None or self._scale[0] != state:
            self._scale = (state, float(learnt.exp()))
        return self._scale[1]

    @property
    def logit_bias(self) -> torch.Tensor | None:
        """What is added to all logits, of one number; None of most models. It changes no softmax."""
        return getattr(self.clip, "logit_bias", None)

    @property
    def context(self) -> str:
        """The words in front of class names where the user names no others: those that its system was trained with."""
        system = system_of(self.architecture)
        return CONTEXT if system is None or system.context is None else system.context

    @property
    def frame_independent(self) -> bool:
        """Whether each frame is encoded by itself, so that views can share frames; else a view is as a whole."""
        return frames_of(self.clip.visual) is None

    @property
    def averages_frames(self) -> bool:
        """Whether a view's embedding is the mean over its frames', rather than what a head makes of them."""
        return self._head is None

    @property
    def view_frames(self) -> int | None:
        """T, the frames that every view must have; None where they may be any."""
        return frames_of(self.clip.visual) or getattr(self._head, "frames", None)

    @property
    def _head(self) -> nn.Module | None:
        return getattr(self.clip, FUSION, None)

    def require_frames(self, frames: int, option: str) -> None:
        """Refuses views of another length than the model reads, which `option` sets.

        Raises:
            ConfigError: The model has weights for another number of frames, or for fewer.
        """
        exactly, most = self.view_frames, getattr(self._head, "most_frames", None)
        if exactly not in (None, frames):
            raise ConfigError(f"{self.name}: reads views of {exactly} frames, not of {frames}; give {option} {exactly}")
        if most is not None and frames > most:
            raise ConfigError(f"{self.name}: reads views of up to {most} frames; give {option} {most} or fewer")

    @property
    def texts_follow_videos(self) -> bool:
        """Whether a text has another embedding for each video; features then hold more than a video's."""
        return following_head(self.clip) is not None

    @property
    def reads_names_alone(self) -> bool:
        """Whether it reads class names, or texts in their place, without a context in front of them."""
        return text_frame_of(self.text_tower) is not None or self.texts_follow_videos

    def view_features(self, frames: torch.Tensor) -> torch.Tensor:
        """What logits take of a view's frames, float32 (..., T, D): `fuse`, (..., D), L2-normalised.

        Where texts follow videos, what they follow is behind it, as it is. Where a view's cosines are the mean of its
        frames', it is the mean of L2-normalised embeddings, at most of length 1.
        """
        fused, head = self.fuse(frames), following_head(self.clip)
        if head is None:
            return fused if averages_cosines(self.clip) else normalize(fused, dim=-1)
        return torch.cat([normalize(fused[..., : head.width], dim=-1), fused[..., head.width :]], dim=-1)

    def embedding_part(self, features: torch.Tensor) -> torch.Tensor:
        """The videos' own part (..., D) of `view_features`, L2-normalised."""
        head = following_head(self.clip)
        return features if head is None else features[..., : head.width]

    def followed_cosines(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Cosines, float32 (..., K), of videos with texts that follow them, in full precision, differentiable.

        Videos are float32 (..., D + P·D), see `view_features`, and texts (K, D), not normalised.
        """
        with full_precision(self.device):
            return (self.followed_texts(features, texts) @ self.embedding_part(features)[..., None])[..., 0]

    def followed_texts(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Texts (K, D), not normalised, as videos (..., D + P·D) have them: float32 (..., K, D), L2-normalised."""
        head = following_head(self.clip)
        with full_precision(self.device):
            flat = features.reshape(-1, features.shape[-1])
            own = normalize(head.text_embeddings(texts, flat[:, head.width :]), dim=-1)
            return own.reshape(*features.shape[:-1], *own.shape[1:])

    def fuse(self, frames: torch.Tensor) -> torch.Tensor:
        """One embedding, float32 (..., D), of a view's frames (..., T, D), neither normalised; differentiable.

        It is their mean, or what the model's head makes of them, in full precision.
        """
        if self._head is None or 0 in frames.shape:
            return frames.mean(dim=-2)
        with full_precision(self.device):
            *several, length, width = frames.shape
            views = frames.to(self.dtype).reshape(math.prod(several), length, width)
            return self._head(views).unflatten(0, several) if several else self._head(views)[0]

    @cached_property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of a hash of everything that determines the embeddings.

        That is the weights in float32, activation, heads and preprocessing, but not the file they came from,
        the device or the precision.
        """
        towers = (self.text_tower.transformer, getattr(self.clip.visual, "transformer", None))
        blocks = [tower.resblocks[0] for tower in towers if tower is not None and hasattr(tower, "resblocks")]
        settings = [(type(block.mlp.gelu).__name__, block.attn.num_heads) for block in blocks]
        words = (*known_parts(), EVALUATION_SCALE)
        added = {word: self.architecture[word] for word in words if word in self.architecture}
        added |= told_by_no_tensor(self.architecture)
        told = [json.dumps(added, sort_keys=True)] if added else []
        digest = hashlib.sha256(repr((settings, self.preprocessing, *told)).encode())
        for name, tensor in sorted(self.clip.state_dict().items()):
            values = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(values.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds normalised images, in one pass.

        Args:
            pixels: float32 (n, 3, R, R) on the model's device; whole views after one another, `view_frames` images
                each, where the model is not `frame_independent`.

        Returns:
            float32 (n, D), as the encoder gives them: not normalised; they carry no gradient.
        """
        dtype = PRODUCTS[self.precision]
        with torch.inference_mode(), exact_float32():
            tower = self._vision_tower()
            if tower is not None:
                embeddings = tower(pixels)
            else:
                with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                    embeddings = self.clip.visual(pixels.to(self.dtype))
        # A clone made outside inference mode may take part in autograd later.
        return embeddings.to(self.dtype).clone()

    def compile_image_encoder(self) -> None:
        """Has `torch.compile` compile the image encoder at its next pass, which then takes longer; the first only.

        An image tower that `VisionTower` cannot stand for stays as it is.
        """
        self.compiled, self._ready = True, None

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Inside, the image tower stays as it is: whether it has changed is looked at once, and not at every pass."""
        self._held = False, None
        try:
            self._held = True, self._vision_tower()
            yield
        finally:
            self._held = False, None

    def _vision_tower(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The image tower made ready, once until its weights move or change; None where it runs as it is."""
        known, tower = self._held
        if known:
            return tower
        if unfit_vision(self.clip.visual) is not None:
            return None
        weights = [(weight.data_ptr(), weight._version) for weight in self.clip.visual.parameters()]
        if self._ready is None or self._ready[0] != weights:
            made = VisionTower(self.clip.visual, PRODUCTS[self.precision] or self.dtype)
            self._ready = (weights, torch.compile(made) if self.compiled else made)
        return self._ready[1]

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Turns texts into token ids: start of text, the text, end of text, and what fills up.

        Returns:
            int64 (K, context_length) on the CPU.

        Raises:
            ConfigError: A text has more tokens than the model reads; the message repeats it.
        """
        return self.frame_tokens(texts, [self.tokenizer.encode(text) for text in texts])

    def frame_tokens(
        self, texts: Sequence[str], tokens: Sequence[Sequence[int]], classes: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Puts start and end of text around the token ids of K texts, and learnt vectors where the model has such.

        Returns:
            int64 (K, context_length), see `tokenize`.

        Raises:
            ConfigError: A text has more tokens than the model reads; the message repeats it, and says of which of the
                `classes` it is a text, if they are given.
        """
        tokenizer, frame = self.tokenizer, text_frame_of(self.text_tower)
        rest, room = tokenizer.pad if frame is None else VECTOR, self.context_length - (tokenizer.last is not None)
        ids = torch.full((len(texts), self.context_length), rest, dtype=torch.int64)
        if tokenizer.last is not None:
            ids[:, -1] = tokenizer.last
        for number, (row, text, inner) in enumerate(zip(ids, texts, tokens, strict=True)):
            whole = tokenizer.framed(inner) if frame is None else frame.around(tokenizer.start, inner, tokenizer.end)
            if len(whole) > room:
                of, what = "", "the class name"
                if classes is not None:
                    of, what = f', a text of class "{classes[number]}",', "it"
                raise ConfigError(
                    f'"{shortened(text)}"{of} is {len(whole)} tokens long and the model reads {room}; shorten {what}'
                )
            row[: len(whole)] = torch.tensor(whole, dtype=torch.int64)
        return ids

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings, float32 (K, n, W), without positions, of the ids of `tokenize` or the first n of them."""
        return self.text.embed(ids.to(self.device))

    def encode_embedded_text(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Embeds texts that are already sequences of vectors; always in full precision, whatever `precision` says.

        Args:
            embeddings: float32 (K, n, W), without positions.
            ids: int64 (K, n), the texts' tokens, which say where they end; of a vector that stands for no token, any
                that is neither the end of text nor fills up. n is any length of which the tower needs no more, see
                `TextTower.needed`, with equal results.

        Returns:
            float32 (K, D), not normalised, differentiable with respect to `embeddings`.
        """
        with full_precision(self.device):
            return self.text(embeddings, ids)
