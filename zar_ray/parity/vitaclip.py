"""The system ``vitaclip``: prompts between frames, contexts for all classes and for each, and a training step.

The made-up weights are written to files as the official code saves them, one with a context for all classes and one
with a context for each, and imported as a user would. A context for each class belongs to the training's classes: it
is left out of what is imported, and taken from the fixture here. Tolerances are those of the reference vectors:
features 1e-5, logits 1e-4, the loss 1e-5, gradient norms a share of 1e-3; token ids and the names of what is trained
must be equal.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, normalize

from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.parts import OWN_CONTEXT
from zar_ray.models.systems.vitaclip import is_trained
from zar_ray.parity.checks import Evidence, Measured, equal, norms
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.parity.published import imported_with_account, tensors

FEATURES, LOGITS, LOSS, GRADIENT_SHARE, EXACT = 1e-5, 1e-4, 1e-5, 1e-3, 0.0

_PREFIX, _CONTEXT = "module.", "prompt_learner.ctx"
_OF_CLASSES, _SHARED = "csc", "generic"  # the fixture's words for a context for each class and for all
# What is trained beside what is added to CLIP.
_SCALE = "logit_scale"


class VitaclipConfig(FileFormat):
    """``config`` of this system."""

    text_num_prompts: int


class VitaclipFacts(FileFormat):
    """What only this system's description has."""

    grad_norm_names: tuple[str, ...]
    trainable: tuple[str, ...]


class Derived(FileFormat):
    """Keys of a file that are made anew for other classes."""

    derived_keys: dict[str, tuple[int, ...]]


def check_vitaclip(fixture: Fixture, videos: Path | None) -> Evidence:
    """Imports a fixture's two checkpoints, scores its input and takes a training step's gradients.

    Args:
        fixture: The fixture.
        videos: Not used: this system reads no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no Vita-CLIP's.
    """
    vectors = fixture.read(VitaclipConfig, fixture.file.config, "config").text_num_prompts
    facts = fixture.read(VitaclipFacts, fixture.file.model_dump(), "Vita-CLIP's entries")
    of_classes, left_out = _import(fixture, _OF_CLASSES)
    shared, _ = _import(fixture, _SHARED)
    names = [name.replace("_", " ") for name in fixture.file.class_names]
    ids = shared.tokenize([f"{' '.join(['X'] * vectors)} {name}." for name in names])
    own_context = torch.from_numpy(fixture.weights(_OF_CLASSES)[_PREFIX + _CONTEXT])
    pixels, labels = torch.from_numpy(fixture.input()), torch.from_numpy(fixture.array("labels"))
    with torch.no_grad():
        frames = shared.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        video = shared.fuse(frames)
        texts = _texts(shared, ids, shared.clip.own_context)
        texts_of_classes = _texts(of_classes, ids, own_context)
    trained = {_official(name) for name, _ in shared.clip.named_parameters() if is_trained(name)} | {_SCALE}
    return Evidence(
        [
            equal(fixture.label("trainable"), set(facts.trainable), trained),
            equal(fixture.label("left_out"), True, any(_CONTEXT in name for name in left_out)),
        ],
        {
            "labels": Measured(labels, EXACT),
            "token_ids": Measured(ids, EXACT),
            "video_features": Measured(video, FEATURES),
            f"{_SHARED}/text_features": Measured(texts, FEATURES),
            f"{_SHARED}/logits": Measured(_logits(shared, video, texts), LOGITS),
            f"{_OF_CLASSES}/text_features": Measured(texts_of_classes, FEATURES),
            f"{_OF_CLASSES}/logits": Measured(_logits(of_classes, video, texts_of_classes), LOGITS),
            **_training_step(fixture, facts, of_classes, ids, own_context, labels),
        },
    )


def _import(fixture: Fixture, part: str) -> tuple[ClipModel, tuple[str, ...]]:
    derived = fixture.read(Derived, fixture.file.checkpoint.get(part), f"checkpoint.{part}").derived_keys
    state = tensors(fixture.weights(part)) | {name: torch.zeros(shape) for name, shape in derived.items()}
    return imported_with_account({"model": state, "next_step": 0})


def _texts(model: ClipModel, ids: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """(K, D): texts with a context, (L, W) or one a class, in the place of their first words."""
    embeddings = model.embed_tokens(ids)
    length = context.shape[-2]
    own = context.expand(len(ids), -1, -1)
    whole = torch.cat([embeddings[:, :1], own, embeddings[:, 1 + length :]], dim=1)
    return model.encode_embedded_text(whole, ids.argmax(dim=1))


def _logits(model: ClipModel, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return model.logit_scale * normalize(videos, dim=-1) @ normalize(texts, dim=-1).T


def _training_step(
    fixture: Fixture,
    facts: VitaclipFacts,
    model: ClipModel,
    ids: torch.Tensor,
    context: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, Measured]:
    clip, context = model.clip, context.clone().requires_grad_()
    parameters = {_official(name): p.requires_grad_() for name, p in clip.named_parameters() if is_trained(name)}
    parameters |= {_SCALE: clip.logit_scale.requires_grad_(), _CONTEXT: context}
    pixels = torch.from_numpy(fixture.input())
    video = model.fuse(clip.visual(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))
    texts = _texts(model, ids, context)
    logits = clip.logit_scale.exp() * normalize(video, dim=-1) @ normalize(texts, dim=-1).T
    loss = cross_entropy(logits, labels)
    try:
        wanted = [parameters[name] for name in facts.grad_norm_names]
    except KeyError as error:
        raise ConfigError(f"{fixture.folder}: grad_norm_names: {error} is not trained") from None
    return {
        "loss": Measured(loss, LOSS),
        "grad_norms": Measured(norms(torch.autograd.grad(loss, wanted)), GRADIENT_SHARE, shares=True),
    }


def _official(name: str) -> str:
    """The published name of a parameter that Vita-CLIP adds."""
    return _CONTEXT if name == OWN_CONTEXT else name.replace("transformer.resblocks.", "blocks.")
