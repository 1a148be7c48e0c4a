"""The system ``actionclip``: its five heads, scores by 16 templates, and a training step's losses and gradients.

For each head the made-up weights are written to a file as the official code saves them and imported as a user would.
Tolerances are those of the reference vectors: features 1e-5, logits 1e-4, losses 1e-5, gradient norms a share of 1e-3;
scores are probabilities that follow the logits, 1e-4; token ids must be equal.

Which samples and templates make up the training step is the fixture's to say; they are inputs, not results.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch.nn.functional import normalize

from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.losses import matching_losses, same_class
from zar_ray.models.parts import FUSION
from zar_ray.parity.checks import Evidence, Measured, norms
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.parity.published import averaged_scores, encode_texts, imported, template_logits, template_tokens, tensors

FEATURES, LOGITS, LOSSES, GRADIENT_SHARE, EXACT = 1e-5, 1e-4, 1e-5, 1e-3, 0.0


class CheckpointFormat(FileFormat):
    """``checkpoint`` of this system, besides its weights."""

    fusion_model_state_dict: dict[str, dict[str, tuple[int, ...]]]


class GradientNames(FileFormat):
    """Which parameters' gradients were taken, by head."""

    names: dict[str, tuple[str, ...]] = Field(default_factory=dict)


def check_actionclip(fixture: Fixture, videos: Path | None) -> Evidence:
    """Imports a fixture's checkpoint with each head, scores its input and takes a training step's gradients.

    Args:
        fixture: The fixture.
        videos: Not used: this system reads no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no ActionCLIP's.
    """
    heads = fixture.read(CheckpointFormat, fixture.file.checkpoint, "checkpoint").fusion_model_state_dict
    measured: dict[str, Measured] = {}
    for head in heads:
        measured |= _check_head(fixture, head)
    return Evidence([], measured)


def _check_head(fixture: Fixture, head: str) -> dict[str, Measured]:
    model = imported(
        {
            "epoch": 0,
            "model_state_dict": tensors(fixture.weights("model_state_dict")),
            "fusion_model_state_dict": tensors(fixture.weights(f"fusion/{head}")),
            "optimizer_state_dict": {},
        }
    )
    names, pixels = fixture.file.class_names, torch.from_numpy(fixture.input())
    ids = template_tokens(model, names)
    with torch.no_grad():
        frames = model.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        video, texts = model.fuse(frames), encode_texts(model, ids)
        logits = template_logits(model, video, texts, len(names))
    measured = {
        "token_ids": Measured(ids, EXACT),
        "frame_embeddings": Measured(frames, FEATURES),
        "text_features": Measured(texts, FEATURES),
        f"{head}/video_features": Measured(video, FEATURES),
        f"{head}/logits": Measured(logits, LOGITS),
        f"{head}/similarity": Measured(averaged_scores(logits), LOGITS),
    }
    labels, templates = (torch.from_numpy(fixture.array(name)) for name in ("list_id", "text_id"))
    measured |= {
        "list_id": Measured(labels, EXACT),
        "text_id": Measured(templates, EXACT),
        "ground_truth": Measured(same_class(labels), EXACT),
    }
    return measured | _training_step(fixture, head, model, pixels, ids[templates * len(names) + labels], labels)


def _training_step(
    fixture: Fixture, head: str, model: ClipModel, pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
) -> dict[str, Measured]:
    clip = model.clip.requires_grad_(True)
    frames = clip.visual(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    video = normalize(model.fuse(frames), dim=-1)
    similarities = clip.logit_scale.exp() * video @ encode_texts(model, ids).T
    of_videos, of_texts = matching_losses(similarities, labels)
    total = (of_videos + of_texts) / 2
    parameters = dict(clip.named_parameters())
    official = fixture.read(GradientNames, {"names": fixture.file.grad_norm_names}, "grad_norm_names").names
    try:
        wanted = [parameters[_ours(name)] for name in official.get(head, ())]
    except KeyError as error:
        raise ConfigError(f"{fixture.folder}: grad_norm_names: no parameter is called {error}") from None
    return {
        f"{head}/train_logits_per_image": Measured(similarities, LOGITS),
        f"{head}/losses": Measured(torch.stack([of_videos, of_texts, total]), LOSSES),
        f"{head}/grad_norms": Measured(norms(torch.autograd.grad(total, wanted)), GRADIENT_SHARE, shares=True),
    }


def _ours(name: str) -> str:
    """Our name of a published parameter: the fusion head's alone were saved under DataParallel."""
    return f"{FUSION}.{name.removeprefix('module.')}" if name.startswith("module.") else name
