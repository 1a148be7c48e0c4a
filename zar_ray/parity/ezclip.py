"""The system ``ezclip``: a view's frames together, adapters in both towers, and a training step with the motion loss.

The made-up weights are written to a file as the official code saves them and imported as a user would. Tolerances are
those of the reference vectors: features 1e-5, logits 1e-4, losses 1e-5, gradient norms a share of 1e-3, and the same
of the largest element for a whole gradient; scores are probabilities that follow the logits, 1e-4; token ids and the
names of what is trained must be equal.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import normalize

from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.losses import matching_losses, motion_loss
from zar_ray.models.systems.ezclip import PROMPTS, is_trained
from zar_ray.parity.checks import Evidence, Measured, equal, norms
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.parity.published import averaged_scores, encode_texts, imported, template_logits, template_tokens, tensors

FEATURES, LOGITS, LOSSES, GRADIENT_SHARE, EXACT = 1e-5, 1e-4, 1e-5, 1e-3, 0.0


class EzclipFormat(FileFormat):
    """What only this system's description has."""

    descriptions: tuple[str, ...]
    grad_norm_names: tuple[str, ...]
    trainable: tuple[str, ...]


def check_ezclip(fixture: Fixture, videos: Path | None) -> Evidence:
    """Imports a fixture's checkpoint, scores its input and takes a training step's gradients.

    Args:
        fixture: The fixture.
        videos: Not used: this system reads no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no EZ-CLIP's.
    """
    facts = fixture.read(EzclipFormat, fixture.file.model_dump(), "EZ-CLIP's entries")
    model = imported(
        {
            "epoch": 0,
            "model_state_dict": tensors(fixture.weights("model_state_dict")),
            "optimizer_state_dict": {},
        }
    )
    pixels, classes = torch.from_numpy(fixture.input()), len(fixture.file.class_names)
    ids = model.tokenize(facts.descriptions)
    of_templates = template_tokens(model, [name.replace("_", " ") for name in fixture.file.class_names])
    with torch.no_grad():
        frames = model.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        video, texts = model.fuse(frames), encode_texts(model, ids)
        logits = template_logits(model, video, texts, classes)
        by_templates = template_logits(model, video, encode_texts(model, of_templates), classes)
    labels = torch.from_numpy(fixture.array("list_id"))
    trained = {name for name, _ in model.clip.named_parameters() if is_trained(name)}
    return Evidence(
        [equal(fixture.label("trainable"), set(facts.trainable), trained)],
        {
            "list_id": Measured(labels, EXACT),
            "token_ids": Measured(ids, EXACT),
            "token_ids_16_templates": Measured(of_templates, EXACT),
            "frame_embeddings": Measured(frames, FEATURES),
            "video_features": Measured(video, FEATURES),
            "text_features": Measured(texts, FEATURES),
            "logits": Measured(logits[:, 0], LOGITS),
            "similarity": Measured(averaged_scores(logits), LOGITS),
            "similarity_16_templates": Measured(averaged_scores(by_templates), LOGITS),
            **_training_step(model, facts, pixels, ids[labels], labels, fixture),
        },
    )


def _training_step(
    model: ClipModel,
    facts: EzclipFormat,
    pixels: torch.Tensor,
    ids: torch.Tensor,
    labels: torch.Tensor,
    fixture: Fixture,
) -> dict[str, Measured]:
    clip = model.clip
    parameters = {name: parameter.requires_grad_() for name, parameter in clip.named_parameters() if is_trained(name)}
    frames = clip.visual(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    video = normalize(model.fuse(frames), dim=-1)
    similarities = clip.logit_scale.exp() * video @ encode_texts(model, ids).T
    of_videos, of_texts = matching_losses(similarities, labels)
    motion = motion_loss(frames)
    total = (of_videos + of_texts) / 2 + motion
    prompts = f"visual.transformer.{PROMPTS}"
    try:
        wanted = [parameters[name] for name in (*facts.grad_norm_names, prompts)]
    except KeyError as error:
        raise ConfigError(f"{fixture.folder}: grad_norm_names: {error} is not trained") from None
    *gradients, of_prompts = torch.autograd.grad(total, wanted)
    return {
        "train_logits_per_image": Measured(similarities, LOGITS),
        "losses": Measured(torch.stack([of_videos, of_texts, motion, total]), LOSSES),
        "grad_norms": Measured(norms(gradients), GRADIENT_SHARE, shares=True),
        "grad_T_prompt_embeddings": Measured(of_prompts, 0.0, relative=GRADIENT_SHARE),
    }
