"""What training trains: CLIP over videos against texts, of all classes or their own, or the part that options name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from zar_ray.data.class_texts import ClassPrompts, ContextFile
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.deep_prompts import attach_deep_prompts
from zar_ray.models.learned_context import RANDOM, LearnedContext, parse_context, save_context
from zar_ray.models.losses import matching_losses, motion_loss
from zar_ray.models.parts import DEEP_PROMPTS, FUSION, own_context_of
from zar_ray.models.systems.base import EVALUATION_SCALE, TrainingRule
from zar_ray.models.systems.registry import registered, rule_of
from zar_ray.models.text import PromptedClasses, encode_tokens
from zar_ray.options.places import AnyFile
from zar_ray.training.options import TrainConfig
from zar_ray.training.regularisation import attach_regularisation

# CLIP's own bound on the logit scale (Radford et al., ICML 2021, section 2.5).
MAX_LOGIT_SCALE = 100.0

_START = "_start_"  # in front of the number of what is trained, as it was
_OF_IMAGES = ("visual.", f"{FUSION}.")  # parameters of the image tower, and of a head over its frames
_RANDOM_DEVIATION = 0.02  # of vectors drawn at random, as CoOp's


class VideoTextModel(nn.Module):
    """CLIP over videos: what the model makes of a video's frames, their mean in most, against texts.

    `config.trains` settles what takes gradients, as in ViFi-CLIP's official code (Rasheed et al., CVPR 2023):

    - ``both``: the image tower with the fusion head that a model may have, the text tower and the logit scale;
    - ``all``: the same and the token embeddings, as ActionCLIP (Wang et al., 2021);
    - ``image``: the image tower and the head alone; the texts' features, of a class's several texts the mean, are
      computed once and kept;
    - ``text``: the text tower alone;
    - ``prompts``: prompt vectors in the layers of both towers, new ones or those that the model has, see
      `zar_ray.models.deep_prompts`;
    - ``context``: the vectors in front of the class names alone (CoOp: Zhou et al., IJCV 2022);
    - ``added``: what a published system adds to a frozen CLIP and trains
      (`zar_ray.models.systems.base.TrainingRule`).

    But for ``all``, the token embeddings are trained from scratch only: fine-tuning leaves them as they are, as there.
    Batch norms keep their statistics. In training mode, in which it starts, it drops what options name
    (`zar_ray.training.regularisation`) and draws that from PyTorch's generators; in evaluation mode it drops nothing.

    Attributes:
        model: The CLIP, which is trained in place.
        context: float32 (L, W), the context in training; None where it is not.
        rule: How its system's parameters are treated.

    Raises:
        ConfigError: A class has several texts that all classes' logits need as one, its text has no context to train,
            the model has nothing that could be dropped, or options do not fit together or the model.
        ModelError: The context was learned for another model, its file is damaged, the model has prompt vectors in its
            layers and something else is to be trained, or nothing was added to it that is.
    """

    _text_features: torch.Tensor | None

    def __init__(self, model: ClipModel, prompts: ClassPrompts, config: TrainConfig) -> None:
        super().__init__()
        _check_loss(config)
        for name, own in zip(prompts.names, prompts.texts or (), strict=False):
            averaged = config.trains == "image" and not model.texts_follow_videos  # once, as nothing moves them
            if config.loss == "classes" and len(own) > 1 and not averaged:
                raise ConfigError(
                    f'training reads one text a class, and "{name}" has {len(own)}; give one template such as'
                    ' "a video of a {}." and one text a class'
                )
        model.require_frames(config.frames, "--frames")
        if config.context_vectors is not None and config.trains != "context":
            raise ConfigError(f"--context-vectors: --trains {config.trains} trains no context; leave it away")
        self.model = model
        self.rule = rule_of(model.architecture)
        self.context: nn.Parameter | None = None
        self._prompts = prompts
        self._trains, self._from_scratch = config.trains, config.architecture is not None
        clip = model.clip.requires_grad_(False)
        if config.grad_checkpointing:
            clip.set_grad_checkpointing()

        if config.trains == "prompts":
            _add_deep_prompts(model, config)
        elif (reason := self.rule.refuses(config)) is not None:
            raise ModelError(f"{model.name}: {reason}")
        elif model.texts_follow_videos and config.loss != "classes":
            raise ModelError(f"{model.name}: its texts follow the video; train it with --loss classes")
        elif DEEP_PROMPTS in model.architecture:
            raise ModelError(f"{model.name}: has prompt vectors in its layers; train them with --trains prompts")
        self._learned = learned = _starting_context(model, prompts, config)
        self._classes = self._prompted()
        features = None
        if learned is not None and config.trains in ("both", "all", "text"):
            raise ConfigError(f"--context {learned.place}: --trains {config.trains} reads words; give words")
        for name, parameter in clip.named_parameters():
            parameter.requires_grad_(_is_trained(name, config, self.rule))
        if config.trains == "image":
            # Texts that follow the video are normalised when they have.
            found = self._classes.encode_texts() if model.texts_follow_videos else self._classes.initial_features
            features = found.detach().clone()
        elif config.trains == "context":
            self._classes.require_tunable("--trains context", "--trains text")
            self.context = nn.Parameter(self._classes.initial_context.clone())
        elif config.trains == "added" and not any(parameter.requires_grad for parameter in clip.parameters()):
            systems = ", ".join(name for name, one in registered().items() if one.additions)
            raise ModelError(f"{model.name}: is a CLIP that nothing was added to; start from --model {systems}")
        self.register_buffer("_text_features", features, persistent=False)
        self._dropping = attach_regularisation(model, config)
        if config.interpolated_loss:
            for number, (_, parameter) in enumerate(self.trained()):
                self.register_buffer(f"{_START}{number}", parameter.detach().clone(), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> VideoTextModel:
        """Sets what drops to training or to evaluation; everything else stays in evaluation mode, see the class."""
        super().train(False)
        for module in self._dropping:
            module.train(mode)
        return self

    def draw_texts(self, labels: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
        """Draws for each of B videos one of its class's texts: int64 (B, context_length), token ids on the CPU."""
        rows = [self._classes.rows_of(label) for label in labels]
        return self._classes.token_ids[[int(own[int(rng.integers(len(own)))]) for own in rows]]

    def forward(
        self, pixels: torch.Tensor, texts: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits of videos over classes, or over texts of their own; differentiable in what is trained.

        Under autocast the image tower runs in mixed precision; the text tower and the logits stay float32, since a
        bfloat16 logit of 50 is rounded to quarters.

        Args:
            pixels: float32 (B, T, 3, R, R), normalised.
            texts: int64 (B, context_length), see `draw_texts`; by default the texts of all classes.

        Returns:
            float32 (B, K); with `texts` the logits over them, (B, B), and the frames' embeddings, float32 (B, T, D),
            not normalised.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains not in ("text", "context")):
            frames = self.model.clip.visual(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]).float()
            videos = self.model.view_features(frames)
        with torch.autocast(videos.device.type, enabled=False):
            learned, fixed = self.model.clip.logit_scale, self.model.architecture.get(EVALUATION_SCALE)
            scale = learned.exp() if fixed is None or learned.requires_grad else fixed
            if self.model.texts_follow_videos:
                known = self._text_features
                own = self._classes.encode_texts() if known is None else known
                return scale * self.model.followed_cosines(videos, own)
            if texts is None:
                return scale * videos @ self._texts().T
            of_texts = normalize(encode_tokens(self.model, texts), dim=-1)
            return scale * videos @ of_texts.T, frames

    @torch.no_grad()
    def bound_logit_scale(self) -> None:
        """Keeps the logit scale of a training from scratch within CLIP's bound; to be called after every step.

        No published fine-tuning bounds it.
        """
        if self._from_scratch and self.model.clip.logit_scale.requires_grad:
            self.model.clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that training changes, each with its name in the CLIP's state dict, or ``context``."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("model.clip."), parameter

    @contextmanager
    def towards_start(self, share: float | None) -> Iterator[None]:
        """Inside, what is trained is a mean of what it was at the start, with this share, and of itself; None: itself.

        Gradients that are taken inside are kept as they are, as Open-VCLIP's official code does.
        """
        if share is None:
            yield
            return
        own = [(parameter, parameter.detach().clone()) for _, parameter in self.trained()]
        try:
            with torch.no_grad():
                for number, (parameter, _) in enumerate(own):
                    parameter.lerp_(self.get_buffer(f"{_START}{number}"), share)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in own:
                    parameter.copy_(value)

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The tensors of `trained` by their names; not copied."""
        return {name: parameter.detach() for name, parameter in self.trained()}

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, torch.Tensor], place: str) -> None:
        """Takes over what `trained_state` of the same options gave; a message names the place that it comes from.

        Raises:
            ModelError: A tensor is missing, unknown or of another shape; nothing is taken over then.
        """
        wanted = dict(self.trained())
        sizes, found = ({name: tuple(one.shape) for name, one in tensors.items()} for tensors in (wanted, state))
        if unlike := sorted({name for name, _ in sizes.items() ^ found.items()}):
            name = unlike[0]
            raise ModelError(
                f"{place}: {name} is {found.get(name, 'missing')} and should be {sizes.get(name, 'left out')} (--trains"
                f" {self._trains}); continue with its own options"
            )
        for name, parameter in wanted.items():
            parameter.copy_(state[name])

    def learned_context(self, notes: Mapping[str, Any]) -> LearnedContext:
        """The context as training has left it, where one is trained."""
        assert self.context is not None
        words = self._prompts.context or self.model.context
        start = str(words) if self._learned is None else self._learned.start
        vectors = self.context.detach().float().cpu().clone()
        return LearnedContext(vectors, start, self.model.name, self.model.fingerprint, notes)

    def _texts(self) -> torch.Tensor:
        """float32 (K, D): the classes' features, L2-normalised."""
        if self._text_features is not None:
            return self._text_features
        context = own_context_of(self.model.text_tower) if self.context is None else self.context
        if context is None:
            return normalize(self._classes.encode_texts(), dim=-1)
        if self._classes.initial_context.device != context.device:
            # The pass over the text tower holds weights, and the module has been moved since it was made.
            self._classes = self._prompted()
        return self._classes.features(context)

    def _prompted(self) -> PromptedClasses:
        words = None if self._prompts.context is None else str(self._prompts.context)
        return PromptedClasses(self.model, self._prompts.names, self._learned or words, texts=self._prompts.texts)


def matching_loss(logits: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor, motion: float) -> torch.Tensor:
    """The mean of the two matching losses, and a share of the motion loss beside it (`zar_ray.models.losses`).

    Args:
        logits: float32 (B, B), of videos, the rows, over texts, the columns.
        frames: float32 (B, T, D), the frames' embeddings.
        labels: int64 (B,).
        motion: Weight of the motion loss.
    """
    of_videos, of_texts = matching_losses(logits, labels)
    loss = (of_videos + of_texts) / 2
    return loss + motion * motion_loss(frames) if motion else loss


def save_trained(network: VideoTextModel, output: AnyFile, notes: Mapping[str, Any]) -> None:
    """Writes what was trained, atomically: the learned context, or else a checkpoint of the whole model.

    It is a ``.safetensors`` file, whose folder is made, or object; notes are anything worth keeping that JSON can hold.
    """
    if network.context is not None:
        save_context(network.learned_context(notes), output)
        return
    model = network.model
    save_checkpoint(model.clip, model.architecture, model.preprocessing, output, {"name": output.stem, **notes})


def _check_loss(config: TrainConfig) -> None:
    augment = config.augment
    if config.loss == "matching":
        if config.trains in ("image", "prompts", "context"):
            raise ConfigError(f"--loss matching: goes with --trains both, all, text or added, not {config.trains}")
        if config.interpolated_loss:
            raise ConfigError("--interpolated-loss: goes with --loss classes")
        if augment.mixup or augment.cutmix or augment.label_smoothing:
            raise ConfigError("--loss matching: videos of one class are its targets; mix and smooth none")
    elif config.interpolated_share[0] > config.interpolated_share[1]:
        low, high = config.interpolated_share
        raise ConfigError(f"--interpolated-share {low:g} {high:g}: the lower bound comes first")
    elif config.motion_loss:
        raise ConfigError("--motion-loss: goes with --loss matching")
    if config.motion_loss and config.frames < 2:
        raise ConfigError("--motion-loss: one frame does not move; give --frames 2 or more")


def _starting_context(model: ClipModel, prompts: ClassPrompts, config: TrainConfig) -> LearnedContext | None:
    """The vectors in the place of the context's words, if there are any."""
    if config.context_vectors is None:
        file = prompts.context
        return parse_context(file.content, file.path) if isinstance(file, ContextFile) else None
    if isinstance(prompts.context, ContextFile):
        raise ConfigError(f"--context-vectors and --context {prompts.context.path}: give one of them")
    width = model.text.width
    generator = torch.Generator().manual_seed(config.seed)
    vectors = torch.randn(config.context_vectors, width, generator=generator) * _RANDOM_DEVIATION
    return LearnedContext(vectors, RANDOM, model.name, model.fingerprint, place="--context-vectors")


def _add_deep_prompts(model: ClipModel, config: TrainConfig) -> None:
    """Gives a model new prompt vectors, unless it has some of the options' sizes."""
    if not model.frame_independent:
        raise ModelError(f"{model.name}: has frames that see each other; train it without --trains prompts")
    sizes = {"vectors": config.prompt_vectors, "depth": config.prompt_depth}
    present = model.architecture.get(DEEP_PROMPTS)
    if present is None:
        attach_deep_prompts(model.clip, **sizes, generator=torch.Generator().manual_seed(config.seed))
        model.architecture = {**model.architecture, DEEP_PROMPTS: sizes}
    elif present != sizes:
        raise ModelError(
            f"{model.name}: has {present['vectors']} prompt vectors in {present['depth']} layers; go on with"
            f" --prompt-vectors {present['vectors']} --prompt-depth {present['depth']}"
        )


def _is_trained(name: str, config: TrainConfig, rule: TrainingRule) -> bool:
    """Whether a parameter of the CLIP takes gradients."""
    of_images = name.startswith(_OF_IMAGES)
    parts = {"context": False, "prompts": name.endswith(DEEP_PROMPTS), "added": rule.added(name), "image": of_images}
    if config.trains in parts:
        return parts[config.trains]
    if of_images or name == "logit_scale":
        return config.trains in ("both", "all")
    if name.endswith("token_embedding.weight"):
        return config.trains == "all" or config.architecture is not None
    return name != "logit_bias"
