"""Class names as prompts with a context that can be tuned (DESIGN.md, "ZAR, exactly", 6), or as fixed texts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import normalize

from zar_ray.data.class_texts import ClassPrompts, ContextFile
from zar_ray.data.options import CONTEXT, PromptOptions, TextAverage
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.clip import ClipModel, shortened
from zar_ray.models.learned_context import LearnedContext, parse_context
from zar_ray.models.options import ClassPosition
from zar_ray.models.parts import following_head, own_context_of, own_position_of
from zar_ray.models.precision import exact_float32
from zar_ray.models.prompt_passes import FullPass, SharedPrefixPass, TokenCount, Trail, unfit_text

_TEXTS_A_PASS = 256
_OTHER_TEXTS = ', or one text a class in a single template such as "a video of a {}."'
_PLACEHOLDER = "x"  # a token whose place a learned vector takes


class PromptedClasses:
    """K class names under one model, each the prompt ``CONTEXT NAME.`` with L context vectors in front, or texts.

    Underscores become spaces. The text features of the untuned context, and what leads back from them, are computed
    once for all videos. The text tower is run by `SharedPrefixPass` where it can be; a warning says where it cannot.

    With `texts` a class may have several prompts. Its untuned feature is then the L2-normalised mean of their
    L2-normalised features, the ensemble of the CLIP paper (Radford et al., ICML 2021, section 3.1.4). With `average`
    ``probabilities`` its untuned score is instead the mean of the probabilities that it has among the first prompts of
    all classes, among the second ones, and so on, as ActionCLIP's (Wang et al., 2021) is over its templates. A context
    can be tuned where each class has one text and all texts start with the context's words, tokens of their own; what
    follows them, the name and what the template puts behind it, stays.

    A model may hold a context of its own (`zar_ray.models.parts.own_context_of`), and takes no other then. One that
    puts vectors around its texts (`zar_ray.models.parts.TextFrame`) reads names alone, or texts, between them, and has
    no context to tune; nor has one whose texts follow the video, which reads names alone too.

    Args:
        model: The model whose text tower reads the prompts.
        class_names: The candidate classes, as they shall appear in results.
        context: The words that the context vectors start from, or a context learned for this model; None: the
            model's own words (`ClipModel.context`).
        position: Where the name stands: ``end``, after the context; ``front``, before it; ``middle``, after the first
            half of it, rounded down (CoOp: Zhou et al., IJCV 2022, section 3.2).
        texts: For each class its whole prompts; by default the one prompt ``CONTEXT NAME.``.
        average: What counts of several prompts.

    Attributes:
        model: The model.
        class_names: The candidate classes, as given.
        token_ids: int64 (N, context_length), the tokens of all prompts, a class's together, on the CPU; N = K where
            each class has one.
        counted: What contexts have run through the text tower so far.

    Raises:
        ConfigError: There are no classes; a name or a text is empty, too long, or reads the same as another class's;
            the context has no words; or `texts` are given with a position or with a learned context.
        ModelError: The context was learned for another model.
        ValueError: There are not as many `texts` as classes.
    """

    def __init__(
        self,
        model: ClipModel,
        class_names: Sequence[str],
        context: str | LearnedContext | None = None,
        position: ClassPosition = "end",
        texts: Sequence[Sequence[str]] | None = None,
        average: TextAverage = "features",
    ) -> None:
        if not class_names:
            raise ConfigError("no class names are given; name at least one class")
        for number, name in enumerate(class_names, 1):
            if not _spaced(name):
                raise ConfigError(f"class name {number} of {len(class_names)} is empty; give every class a name")
        self._bare = bare = model.reads_names_alone
        if bare:
            # A template's words count as a context, and stand between the vectors as any text.
            if (texts is None and context is not None) or position != "end":
                raise ConfigError(
                    f"{model.name}: reads class names without a context; leave --context and --class-position away"
                )
            texts = [(name,) for name in class_names] if texts is None else texts
            framed = getattr(following_head(model.clip), "framed", None)
            if framed is not None:
                texts = [[framed(text) if _spaced(text) else text for text in own] for own in texts]
        vectors = _learned_vectors(model, context, position, texts)
        position = _position_of(model, position)
        context = model.context if context is None else context
        tokenizer = model.tokenizer
        words = "" if vectors is not None else _spaced(str(context))
        own_ids = tokenizer.encode(words) if vectors is None else tokenizer.encode(_PLACEHOLDER)[:1] * len(vectors)
        self.model, self.counted = model, TokenCount()
        self.class_names = tuple(class_names)
        first, length = len(tokenizer.start), len(own_ids)
        if texts is None:
            if length < 1:
                raise ConfigError(f'context "{context}" has no words')
            names = [_spaced(name) for name in class_names]
            before = {"end": length, "front": 0, "middle": length // 2}[position]
            self._counts = [1] * len(names)
            self.token_ids = _prompt_tokens(model, words, own_ids, names, before)
            # The context's tokens behind the name stand further on, by the name's length.
            lengths = torch.tensor([len(tokenizer.encode(name)) for name in names])
            own = torch.arange(length)
            places = first + own + lengths[:, None] * (own >= before)
        elif position != "end":
            raise ConfigError(
                f'class position "{position}" goes without a template and class texts; write where the name stands into'
                " the template"
            )
        else:
            self._counts = [len(own) for own in texts]
            self.token_ids = _text_tokens(model, self.class_names, texts)
            places = torch.arange(first, first + length).expand(len(self.token_ids), -1)
        self._check_distinct()
        self._by_probabilities = average == "probabilities" and max(self._counts) > 1
        if self._by_probabilities and len(set(self._counts)) > 1:
            raise ConfigError(
                "--template-average probabilities: every class needs as many texts as the others; here one has"
                f" {min(self._counts)} and another {max(self._counts)}"
            )

        read = self.token_ids.gather(1, places.clamp(max=model.context_length - 1))
        strays = (read != torch.tensor(own_ids, dtype=torch.int64)).any(dim=1)
        if texts is None and strays.any():
            raise ConfigError(f'context "{context}": its words must stand for themselves in front of every class name')
        self._fixed = None if texts is None else _why_fixed(self.class_names, texts, words, strays)
        if bare:
            self._fixed = f"tunes the words in front of a class name, and {model.name} has none there"
        if model.texts_follow_videos and max(self._counts) > 1 and not self._by_probabilities:
            raise ConfigError(
                f"{model.name}: its texts follow the video, so several of a class have no mean; give"
                " --template-average probabilities, or one text a class"
            )
        if self._fixed is None:
            embeddings = model.embed_tokens(self.token_ids)
            start = embeddings[0, places[0].to(embeddings.device)] if vectors is None else vectors
            self._start = start.detach().to(embeddings, copy=True)
            ends, reason = model.text.ends(self.token_ids), why_full_pass(model, position)
            if reason is None and ends is not None:
                self._run = SharedPrefixPass(model.text_tower, embeddings, places.shape[1], ends)
            else:
                warnings.warn(
                    f"{model.name}: {reason}; every prompt is run as a whole, which takes longer", stacklevel=2
                )
                self._run = FullPass(model, embeddings, places, self.token_ids)

    @classmethod
    def of(cls, model: ClipModel, prompts: ClassPrompts, position: ClassPosition = "end") -> PromptedClasses:
        """What a run's options say of its classes, see `zar_ray.data.class_texts.prompts_of`.

        Raises:
            ConfigError: See the class.
            ModelError: The context's file is damaged, or was learned for another model.
        """
        context = prompts.context
        if isinstance(context, ContextFile):
            context = parse_context(context.content, context.path)
        return cls(model, prompts.names, context, position, prompts.texts, prompts.average)

    def __len__(self) -> int:
        return len(self.class_names)

    def rows_of(self, number: int) -> range:
        """The rows of `token_ids` that are a class's."""
        first = sum(self._counts[:number])
        return range(first, first + self._counts[number])

    def require_tunable(self, method: str = "the method", way_out: str = "--method zero_shot") -> None:
        """Refuses classes without a context that `method` could tune; the message says that `way_out` does not.

        Raises:
            ConfigError: A class has several texts, or one that does not start with the context.
        """
        if self._fixed is not None:
            other = "" if self._bare else _OTHER_TEXTS
            raise ConfigError(f"{method} {self._fixed}; use {way_out}{other}")

    @property
    def initial_context(self) -> torch.Tensor:
        """float32 (L, W): the learned context, or its words' token embeddings; needs a context that can be tuned."""
        self.require_tunable()
        return self._start

    @property
    def tokens(self) -> int:
        """Tokens that one context runs through the text tower; needs a context that can be tuned."""
        self.require_tunable()
        return self._run.tokens

    @cached_property
    def initial_features(self) -> torch.Tensor:
        """float32 (K, D): the L2-normalised text features of the untuned prompts."""
        with torch.no_grad():
            if self._fixed is None:
                return normalize(self._run(self.initial_context[None])[0], dim=-1)
            of_texts = self._features_of_texts.split(self._counts)
            return normalize(torch.stack([one.mean(dim=0) for one in of_texts]), dim=-1)

    @cached_property
    def _trail(self) -> Trail:
        """What the untuned context's pass leaves behind for gradients."""
        context = self.initial_context  # where there is none to be tuned, this says so
        return self._run.trail(context)

    def forget_trail(self) -> None:
        """Lets go of what `initial_gradients` needs; it is made again when it is asked for."""
        self.__dict__.pop("_trail", None)

    @property
    def held_bytes(self) -> int:
        """Bytes of all tensors that are held besides the model's."""
        trail = self.__dict__.get("_trail")
        known = {one.untyped_storage().data_ptr() for one in self.model.state_dict().values()}
        storages = [one.untyped_storage() for one in _tensors_in(vars(self))]
        sizes = {one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in known}
        return sum(sizes.values()) + (0 if trail is None else trail.bytes)

    def features(self, contexts: torch.Tensor) -> torch.Tensor:
        """Text features of contexts (L, W) or (B, L, W): float32 (K, D) or (B, K, D), L2-normalised, differentiable.

        Raises:
            ConfigError: No context can be tuned, see `require_tunable`.
        """
        self.require_tunable()
        if contexts.ndim == 2:
            return self.features(contexts[None])[0]
        return self.counted.passed(normalize(self._run(contexts), dim=-1), len(contexts) * self._run.tokens)

    def initial_gradients(self, gradients: torch.Tensor) -> torch.Tensor:
        """Takes gradients from the text features of the untuned context back to it, along the one trail kept.

        Those of B losses with respect to `initial_features`, float32 (B, K, D), become those with respect to
        `initial_context`, (B, L, W).
        """
        trail = self._trail
        self.counted.back(len(gradients) * self._run.tokens)
        with exact_float32():
            # Through the normalisation: a gradient's part along the feature changes its length alone.
            features, lengths = self.initial_features, trail.embeddings.norm(dim=-1, keepdim=True)
            along = (gradients * features).sum(dim=-1, keepdim=True)
            return trail.follow(torch.addcmul(gradients, along, features, value=-1) / lengths)

    def logits(self, video_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) · cosine, and the model's bias, of normalised features.

        They are float32 (..., V, K) of (..., V, D) and (..., K, D), or (K,) of (D,).
        """
        with exact_float32():
            logits = self.model.logit_scale * video_features @ text_features.mT
            return logits if self.model.logit_bias is None else logits + self.model.logit_bias

    def initial_logits(self, video_features: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (..., K), of videos (..., D), see `ClipModel.view_features`, under the untuned prompts.

        Where probabilities are averaged, these are the mean's logarithms.
        """
        if self.model.texts_follow_videos:
            by_text = self.model.logit_scale * self.model.followed_cosines(video_features, self._embeddings_of_texts)
        elif self._by_probabilities:
            by_text = self.logits(video_features, self._features_of_texts)
        else:
            return self.logits(video_features, self.initial_features)
        if not self._by_probabilities:
            return by_text
        by_text = by_text.unflatten(-1, (len(self), -1))
        return by_text.log_softmax(dim=-2).logsumexp(dim=-1) - math.log(by_text.shape[-1])

    def texts_for(self, video_features: torch.Tensor) -> torch.Tensor:
        """The untuned text features as videos (V, D) have them: (K, D), or (V, K, D) where texts follow the video.

        They are float32 and L2-normalised; of several texts a class, the mean of these.
        """
        if not self.model.texts_follow_videos:
            return self.initial_features
        own = self.model.followed_texts(video_features, self._embeddings_of_texts)
        return normalize(torch.stack([one.mean(dim=-2) for one in own.split(self._counts, dim=-2)], dim=-2), dim=-1)

    @cached_property
    def _embeddings_of_texts(self) -> torch.Tensor:
        with torch.no_grad():
            return self.encode_texts()

    @cached_property
    def _features_of_texts(self) -> torch.Tensor:
        return normalize(self._embeddings_of_texts, dim=-1)

    def encode_texts(self) -> torch.Tensor:
        """float32 (N, D): all prompts' embeddings, not normalised, differentiable in the model's weights.

        A learned context has no words, so these are not the prompts that it stands in.
        """
        return encode_tokens(self.model, self.token_ids)

    def _check_distinct(self) -> None:
        seen: dict[tuple[tuple[int, ...], ...], str] = {}
        for name, ids in zip(self.class_names, self.token_ids.split(self._counts), strict=True):
            read = tuple(sorted(map(tuple, ids.tolist())))
            if read in seen:
                raise ConfigError(f'class names "{seen[read]}" and "{name}" read the same to the model; name it once')
            seen[read] = name


def encode_tokens(model: ClipModel, token_ids: torch.Tensor) -> torch.Tensor:
    """float32 (N, D): the embeddings of texts (N, context_length), not normalised, differentiable in the weights."""
    parts = []
    for ids in token_ids.split(_TEXTS_A_PASS):
        needed = ids[:, : model.text.needed(ids)]
        parts.append(model.encode_embedded_text(model.embed_tokens(needed), needed))
    return torch.cat(parts)


def default_words(model: ClipModel) -> str | None:
    """The words that stand in front of class names where the user names none; None where a model takes no words."""
    wordless = model.reads_names_alone or own_context_of(model.text_tower) is not None
    return None if wordless else model.context


def remark_on_words(model: ClipModel, options: PromptOptions) -> str | None:
    """What to tell the user whose options name no words, where the model's system has its own; None elsewhere."""
    words = default_words(model)
    if words in (None, CONTEXT) or options.context is not None or options.template is not None:
        return None
    return f'its prompts start with "{words}", as it was trained; --context gives it other words'


def why_full_pass(model: ClipModel, position: ClassPosition = "end") -> str | None:
    """Why prompts of a model must run through the text tower as a whole; None where classes can share a prefix."""
    if _position_of(model, position) != "end":
        return "class names stand before context vectors"
    if len(model.tokenizer.start) != 1:
        return f"its texts start with {len(model.tokenizer.start)} tokens"
    return unfit_text(model.text_tower)


def _position_of(model: ClipModel, position: ClassPosition) -> ClassPosition:
    """Where class names stand: where the user says, or where they do among the model's own vectors."""
    return cast(ClassPosition, own_position_of(model.text_tower)) if position == "end" else position


def _learned_vectors(
    model: ClipModel,
    context: str | LearnedContext | None,
    position: ClassPosition,
    texts: Sequence[Sequence[str]] | None,
) -> torch.Tensor | None:
    """(L, W): the vectors that stand where a context's words would; None where words do."""
    own = own_context_of(model.text_tower)
    if own is not None:
        if texts is not None or context is not None or position != "end":
            raise ConfigError(
                f"{model.name}: has learnt {len(own)} vectors to stand in front of class names; leave --context,"
                " --class-position, --template and --class-texts away"
            )
        return own
    if not isinstance(context, LearnedContext):
        return None
    if model.fingerprint != context.model_fingerprint:  # vectors say nothing to any other text tower
        raise ModelError(
            f"{context.place}: was learned for {context.model_name} ({context.model_fingerprint}), and this model is"
            f" {model.name} ({model.fingerprint}); load the model it was learned for, or leave --context away"
        )
    if texts is not None:
        raise ConfigError(f"{context.place}: goes without a template and class texts; leave them away")
    return context.vectors


def _prompt_tokens(
    model: ClipModel, words: str, context: Sequence[int], names: Sequence[str], before: int
) -> torch.Tensor:
    """int64 (K, context_length): the prompts, with `before` of the context's tokens in front of the name.

    Where the context has no words, its tokens stand in.
    """
    encode = model.tokenizer.encode
    texts = [f"{words} {name}.".lstrip() for name in names]
    if before == len(context):
        tokens = [encode(text) if words else [*context, *encode(text)] for text in texts]
    else:
        # What a full stop becomes behind a word, which some tokenizers leave out.
        stop = encode(f"{_PLACEHOLDER}.")[len(encode(_PLACEHOLDER)) :]
        tokens = [[*context[:before], *encode(name), *context[before:], *stop] for name in names]
    return model.frame_tokens(texts, tokens)


def _text_tokens(model: ClipModel, class_names: Sequence[str], texts: Sequence[Sequence[str]]) -> torch.Tensor:
    """int64 (N, context_length): the tokens of texts."""
    named: list[tuple[str, str]] = []
    for name, own in zip(class_names, texts, strict=True):
        if not own:
            raise ConfigError(f'class "{name}" has no text; give it one')
        for text in map(_spaced, own):
            if not text:
                raise ConfigError(f'a text of class "{name}" is empty; write one or take it out')
            named.append((name, text))
    names, spaced = zip(*named, strict=True)
    return model.frame_tokens(spaced, [model.tokenizer.encode(text) for text in spaced], names)


def _why_fixed(
    class_names: Sequence[str], texts: Sequence[Sequence[str]], words: str, strays: torch.Tensor
) -> str | None:
    """Why the context of texts cannot be tuned; `strays`, bool (N,), are those that do not start with it."""
    for name, own in zip(class_names, texts, strict=True):
        if len(own) > 1:
            return f'tunes one prompt a class, and "{name}" has {len(own)}'
    if not words or strays.any():
        stray = shortened(_spaced(texts[int(strays.int().argmax())][0]))
        behind = f'does not start with "{words}"' if words else "has none"
        return f'tunes the words in front of a class name, and "{stray}" {behind}'
    return None


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors that an object of this package's models holds, those of modules aside."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)
    elif not isinstance(value, nn.Module) and type(value).__module__.startswith("zar_ray.models."):
        yield from _tensors_in(vars(value))
