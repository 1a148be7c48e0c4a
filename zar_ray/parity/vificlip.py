"""The system ``vificlip``: a checkpoint under ViFi-CLIP's published keys, imported, and what the model makes of it.

The made-up weights are written to a file as the official code saves them, the base CLIP to another, and both are
imported as a user would. Tolerances are those of the reference vectors: features 1e-5, logits 1e-4; scores are
probabilities that follow the logits, 1e-4; token ids must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch.nn.functional import normalize

from zar_ray.models.clip import ClipModel
from zar_ray.parity.checks import Evidence, Measured, equal
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.parity.published import imported_with_account, tensors

FEATURES, LOGITS, EXACT = 1e-5, 1e-4, 0.0


class TrainerConfig(FileFormat):
    """``config.trainer`` of this system."""

    CTX_INIT: str


class VificlipConfig(FileFormat):
    """``config`` of this system; what the shapes of the weights tell is read off them."""

    trainer: TrainerConfig


class CheckpointFormat(FileFormat):
    """``checkpoint`` of this system, besides its weights."""

    derived_keys_in_model: dict[str, tuple[int, ...]] = Field(default_factory=dict)


def check_vificlip(fixture: Fixture, videos: Path | None) -> Evidence:
    """Imports a fixture's checkpoint and runs both towers on its input.

    Args:
        fixture: The fixture.
        videos: Not used: this system reads no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no ViFi-CLIP's.
    """
    config = fixture.read(VificlipConfig, fixture.file.config, "config")
    derived = fixture.read(CheckpointFormat, fixture.file.checkpoint, "checkpoint").derived_keys_in_model
    model, left_out = _import(fixture, derived)
    # Names stand as they are: an underscore is a token.
    prompts = [f"{config.trainer.CTX_INIT} {name}." for name in fixture.file.class_names]
    frames = torch.from_numpy(fixture.input())
    embeddings = model.encode_images(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    video = embeddings.mean(dim=1)
    text = _encode(model, prompts)
    logits = _logits(model, video, text)
    return Evidence(
        [equal(fixture.label("left_out"), tuple(sorted(derived)), left_out)],
        {
            "token_ids": Measured(model.tokenize(prompts), EXACT),
            "token_ids_zs_eval": Measured(model.tokenize(fixture.file.class_names), EXACT),
            "frame_embeddings": Measured(embeddings, FEATURES),
            "video_features": Measured(video, FEATURES),
            "text_features": Measured(text, FEATURES),
            "logits": Measured(logits, LOGITS),
            "similarity": Measured(logits.softmax(dim=-1), LOGITS),
            "logits_zs_eval": Measured(_logits(model, video, _encode(model, fixture.file.class_names)), LOGITS),
            "logits_fp16_rounded_tokens": Measured(
                _logits(model, video, _encode(model, prompts, torch.float16)), LOGITS
            ),
        },
    )


def _import(fixture: Fixture, derived: dict[str, tuple[int, ...]]) -> tuple[ClipModel, tuple[str, ...]]:
    """The model, by way of files in the published format, and the tensors that were left out."""
    weights = tensors(fixture.weights("model")) | {name: torch.zeros(shape) for name, shape in derived.items()}
    published = {"model": weights, "max_accuracy": 0.0, "epoch": 0}
    return imported_with_account(published, tensors(fixture.weights("base_clip")))


def _encode(model: ClipModel, texts: Sequence[str], rounding: torch.dtype = torch.float32) -> torch.Tensor:
    """(K, D): texts' embeddings, not normalised, with their tokens' embeddings rounded first."""
    ids = model.tokenize(texts)
    return model.encode_embedded_text(model.embed_tokens(ids).to(rounding).float(), ids.argmax(dim=1))


def _logits(model: ClipModel, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return model.logit_scale * normalize(video, dim=-1) @ normalize(text, dim=-1).mT
