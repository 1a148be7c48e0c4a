"""Texts as token ids: CLIP's own tokenizer, or the one from Hugging Face that a model was trained with.

What a text becomes is told in its parts, what stands in front of its own tokens, these, and what stands behind them:
a context in front of a class name must know where its tokens lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from zar_ray.errors import ModelError, reason_of
from zar_ray.models.hub import hub_folder
from zar_ray.models.openclip import HFTokenizer, SimpleTokenizer

CONTEXT_LENGTH = 77  # of OpenAI's models, and of whatever says nothing else

TOKENIZER_SIGNS = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_FILES = ("config.json", "tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges*", "*.model")
_PROBES = ("a", "x", "video")  # words that any tokenizer has tokens for


@dataclass(frozen=True)
class Tokenizer:
    """How texts become token ids.

    Attributes:
        encode: A text's own tokens, without what frames it.
        start: What stands in front of them.
        end: What stands behind them.
        pad: What fills up.
        last: What stands in the very last position, behind what fills up; None where nothing does.
        size: Tokens that it knows.
    """

    encode: Callable[[str], list[int]]
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    last: int | None
    size: int

    def framed(self, tokens: Sequence[int]) -> list[int]:
        """A whole text's ids, without what fills up, of its own tokens."""
        return [*self.start, *tokens, *self.end]


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    """CLIP's byte-pair tokenizer of 49,408 tokens; it lower-cases and mends text as the official one does."""
    return _of_clip(SimpleTokenizer())


def tokenizer_of(text: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a text tower, by its open_clip config.

    Raises:
        ModelError: It is not here and cannot be fetched, or frames texts in a way that is not known.
    """
    settings = dict(text.get("tokenizer_kwargs") or {})
    name = text.get("hf_tokenizer_name")
    if not name:
        return _of_clip(SimpleTokenizer(**settings)) if settings else clip_tokenizer()
    return _of_hugging_face(str(name), text.get("tokenizer_mode"), tuple(sorted(settings.items())))


def _of_clip(tokenizer: SimpleTokenizer) -> Tokenizer:
    start, end = (tokenizer.sot_token_id,), (tokenizer.eot_token_id,)
    return Tokenizer(tokenizer.encode, start, end, 0, None, tokenizer.vocab_size)


@lru_cache(maxsize=8)
def _of_hugging_face(name: str, mode: str | None, settings: tuple[tuple[str, Any], ...]) -> Tokenizer:
    folder = (
        Path(name)
        if Path(name).is_dir()
        else hub_folder(name, TOKENIZER_SIGNS, TOKENIZER_FILES, f"the tokenizer {name}")
    )
    try:
        found: Any = HFTokenizer(str(folder), tokenizer_mode=mode, **dict(settings))
    except Exception as error:  # transformers raises many kinds, of files that are not whole too
        raise ModelError(f"the tokenizer {name} cannot be loaded ({reason_of(error)})") from error
    inner = found.tokenizer

    def encode(text: str) -> list[int]:
        return list(inner(found.clean_fn(text), add_special_tokens=False).input_ids)

    if mode == "clips":
        return Tokenizer(
            encode, (inner.bos_token_id,), (inner.eos_token_id,), inner.pad_token_id, inner.cls_token_id, len(inner)
        )
    if inner.padding_side != "right":
        raise ModelError(f"the tokenizer {name} fills up in front of texts, where contexts have their places")
    start, end = _frame(name, inner, encode)
    if found.strip_sep_token:
        start, end = (tuple(0 if token == inner.sep_token_id else token for token in one) for one in (start, end))
    return Tokenizer(encode, start, end, inner.pad_token_id, None, len(inner))


def _frame(name: str, inner: Any, encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer puts in front of a text and behind it."""
    for word in _PROBES:
        own, whole = encode(word), list(inner(word).input_ids)
        for first in range(len(whole) - len(own) + 1 if own else 0):
            if whole[first : first + len(own)] == own:
                return tuple(whole[:first]), tuple(whole[first + len(own) :])
    raise ModelError(f"the tokenizer {name} does not frame texts by tokens in front and behind")
