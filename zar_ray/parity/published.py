"""A checkpoint in a system's published format, imported as a user would, and the steps that systems' checks share."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from zar_ray.data.class_texts import load_templates
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions

TEMPLATES = "actionclip"  # ActionCLIP's 16


def tensors(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A recipe's weights as a state dict."""
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def imported(content: Mapping[str, object], base: Mapping[str, torch.Tensor] | None = None) -> ClipModel:
    """The model of a checkpoint, by way of files: the published one, and zar-ray's that is made of it.

    Args:
        content: What the published file holds.
        base: The state dict of the CLIP that it was trained from, where it needs one.

    Raises:
        ModelError: It cannot be imported.
    """
    return imported_with_account(content, base)[0]


def imported_with_account(
    content: Mapping[str, object],
    base: Mapping[str, torch.Tensor] | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> tuple[ClipModel, tuple[str, ...]]:
    """The model, as `imported`, and the names of the tensors that were left out.

    Args:
        content: See `imported`.
        base: See `imported`.
        architecture: Settings that no tensor tells, in the place of what the import takes for granted.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A base is in OpenAI's layout without OpenAI's marks, which is said when it is read.
        warnings.simplefilter("ignore", UserWarning)
        published, base_file, ours = (Path(folder) / name for name in ("v.pth", "b.pt", "v.safetensors"))
        torch.save(dict(content), published)
        if base is not None:
            torch.save(dict(base), base_file)
        plan = plan_import(published, None if base is None else base_file)
        replace(plan, architecture={**plan.architecture, **(architecture or {})}).write(ours)
        return load_model(ModelOptions(checkpoint=ours, device="cpu")), tuple(sorted(plan.checkpoint.left_out))


def template_tokens(model: ClipModel, names: Sequence[str]) -> torch.Tensor:
    """int64 (16·K, 77): ActionCLIP's templates with K names, a template's together."""
    return model.tokenize([one.replace("{}", name) for one in load_templates(TEMPLATES) for name in names])


def encode_texts(model: ClipModel, ids: torch.Tensor) -> torch.Tensor:
    """(N, D): texts' embeddings, L2-normalised, differentiable."""
    return normalize(model.encode_embedded_text(model.embed_tokens(ids), ids.argmax(dim=1)), dim=-1)


def template_logits(model: ClipModel, videos: torch.Tensor, texts: torch.Tensor, classes: int) -> torch.Tensor:
    """The evaluation's logits of videos (B, D) against texts (templates·K, D): (B, templates, K)."""
    return (model.logit_scale * normalize(videos, dim=-1) @ texts.mT).unflatten(1, (-1, classes))


def averaged_scores(logits: torch.Tensor) -> torch.Tensor:
    """ActionCLIP's scores: the mean over templates of each one's probabilities, (B, templates, K) to (B, K)."""
    return logits.softmax(dim=-1).mean(dim=1)
