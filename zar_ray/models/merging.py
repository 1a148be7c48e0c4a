"""Averages the weights of checkpoints that were fine-tuned from the same model.

Two in the proportion alpha are WiSE-FT's weight-space ensemble (Wortsman et al., "Robust fine-tuning of zero-shot
models", CVPR 2022, section 3), with the pretrained model first and the fine-tuned one second; Open-VCLIP (Weng et
al., ICML 2023) does the same for video: what its image tower adds has no weights, so CLIP itself is merged with it, and
the result has it too. Several in equal parts are a uniform soup (Wortsman et al., ICML 2022), or
stochastic weight averaging (Izmailov et al., UAI 2018) where they are one run's. The logit scale, a logarithm, is
averaged like every other parameter; integer buffers, which are counters, are the first checkpoint's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import Architecture, architecture_difference, difference
from zar_ray.models.checkpoints import free_path, save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_source
from zar_ray.models.settings import has_parts
from zar_ray.models.systems.registry import known_parts
from zar_ray.options.places import file_of

Source = str | os.PathLike[str]


def merge_checkpoints(
    sources: Sequence[Source],
    weights: Sequence[float] | None,
    output: str | os.PathLike[str],
    pixels_of: Source | None = None,
    *,
    replace: bool = False,
) -> None:
    """Writes a weighted mean of checkpoints as a zar-ray checkpoint.

    Sums are taken in float64 and rounded to float32 once. Beside the sum, one checkpoint is held, the first
    and the one of `pixels_of`.

    Args:
        sources: At least two checkpoint files or open_clip ``NAME:TAG``.
        weights: A share for each source, not negative, that together make 1; None: equal ones. By custom the pretrained
            model is the first of two.
        output: The ``.safetensors`` file to write, a path or a URI.
        pixels_of: The source whose preprocessing the result has, and whose system it is of unless one adds parts, where
            they do not all have the same, as CLIP and a model that was fine-tuned from it with ImageNet's mean.
        replace: Whether it takes the place of what is at `output`; else nothing may be there.

    Raises:
        ConfigError: There are too few sources, the weights do not fit them, or `pixels_of` is none of them.
        ModelError: A source cannot be loaded, or differs from the first in architecture, or in preprocessing and
            `pixels_of` does not say whose holds; or there is something at `output` already.
    """
    if len(sources) < 2:
        raise ConfigError("merging takes at least two checkpoints; name another")
    shares = [1 / len(sources)] * len(sources) if weights is None else list(weights)
    if len(shares) != len(sources) or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ConfigError(f"merging weights {shares}: give {len(sources)} that are not negative and sum to 1")
    if pixels_of is not None and pixels_of not in sources:
        raise ConfigError(f"preprocessing of {pixels_of}: give one of the checkpoints that are merged")
    target = file_of(output) if replace else free_path(output, ".safetensors")

    total: dict[str, torch.Tensor] = {}
    merged: list[dict[str, Any]] = []
    first = leading = None
    for source, share in zip(sources, shares, strict=True):
        model = load_source(source)
        first, leading = first or model, model if leading is None or source == pixels_of else leading
        if (other := architecture_difference(*_compared(first, model))) is not None:
            raise ModelError(f"{sources[0]} and {source} cannot be merged: {other}; merge one architecture's")
        if (other := difference(_pixels(first), _pixels(model))) is not None and pixels_of is None:
            raise ModelError(
                f"{sources[0]} and {source} read other pixels: {other}; say whose preprocessing the result has"
                " (--pixels-of)"
            )
        for name, tensor in model.clip.state_dict().items():
            if tensor.is_floating_point():
                total[name] = total.get(name, 0) + tensor.double() * share
            else:
                total.setdefault(name, tensor)
        about = {"source": Path(source).name, "name": model.name, "fingerprint": model.fingerprint, "weight": share}
        merged.append(about)
        first = first if has_parts(first.architecture) else model
    assert first is not None
    assert leading is not None
    architecture = (first if has_parts(first.architecture) else leading).architecture
    save_checkpoint(total, architecture, leading.preprocessing, target, {"name": target.stem, "merged": merged})


def _compared(first: ClipModel, other: ClipModel) -> tuple[Architecture, Architecture]:
    """Two models' architectures, as far as they must agree: a part without weights may be missing in one of them."""
    one, two = first.architecture, other.architecture
    same = first.clip.state_dict().keys() == other.clip.state_dict().keys()
    if not same or has_parts(one) == has_parts(two):
        return one, two
    parts = known_parts()
    one, two = ({word: value for word, value in each.items() if word not in parts} for each in (one, two))
    return one, two


def _pixels(model: ClipModel) -> dict[str, object]:
    pixels = model.preprocessing
    return {**asdict(pixels), "short_side": pixels.short_side or pixels.input_size}
