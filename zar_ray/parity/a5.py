"""The system ``a5``: learnt vectors around class names, layers over frames, and cross-entropy's gradients.

For each combination of vectors and layers the made-up weights are written to a file as the official code saves them and
imported as a user would. The numbers of vectors are the fixture's to say, as no tensor tells them. Tolerances are those
of the reference vectors: features 1e-5, logits 1e-4, the loss 1e-5, gradient norms a share of 1e-3; token ids and the
names of what is trained must be equal.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, normalize

from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.systems.a5 import LEARNED_TEXTS, PUBLISHED_CLIP, PUBLISHED_TEXTS, is_trained
from zar_ray.parity.checks import ArrayCheck, Evidence, Measured, equal, norms
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.parity.published import encode_texts, imported_with_account, tensors

FEATURES, LOGITS, LOSS, GRADIENT_SHARE, EXACT = 1e-5, 1e-4, 1e-5, 1e-3, 0.0
# Classes of the fixture's two samples in the training step.
_LABELS = (2, 6)


class Combination(FileFormat):
    """One of ``config.combos``: what no tensor tells."""

    prefix: int
    postfix: int


class A5Config(FileFormat):
    """``config`` of this system."""

    combos: dict[str, Combination]


class A5Facts(FileFormat):
    """What only this system's description has."""

    feature_input_shape: tuple[int, ...]
    grad_norm_names: dict[str, tuple[str, ...]]


def check_a5(fixture: Fixture, videos: Path | None) -> Evidence:
    """Imports a fixture's checkpoint in each combination, scores its inputs and takes a training step's gradients.

    Args:
        fixture: The fixture.
        videos: Not used: this system reads no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no A5's.
    """
    combinations = fixture.read(A5Config, fixture.file.config, "config").combos
    facts = fixture.read(A5Facts, fixture.file.model_dump(), "A5's entries")
    checks: list[ArrayCheck] = []
    measured: dict[str, Measured] = {}
    for name, combination in combinations.items():
        state = tensors(fixture.weights(name))
        sizes = {LEARNED_TEXTS: combination.model_dump()}
        model, left_out = imported_with_account(
            {"state_dict": state, "optimizer": {}, "iteration": 0}, architecture=sizes
        )
        trained = {_official(one) for one, _ in model.clip.named_parameters() if is_trained(one)}
        own = {one for one in state if not one.startswith(PUBLISHED_CLIP)} - set(left_out)
        checks.append(equal(fixture.label(f"{name}/trained"), own, trained))
        measured |= {
            ("" if what == "token_ids" else f"{name}/") + what: value
            for what, value in _measure(fixture, facts, model, name).items()
        }
    return Evidence(checks, measured)


def _measure(fixture: Fixture, facts: A5Facts, model: ClipModel, name: str) -> dict[str, Measured]:
    names = fixture.file.class_names
    pixels = torch.from_numpy(fixture.input())
    features = torch.from_numpy(fixture.feature_input())
    ids = model.tokenize(names)
    bare = ids.new_zeros(ids.shape)
    for row, whole in zip(bare, ids, strict=True):  # the tokens that are the text's own
        own = whole[whole >= 0]
        row[: len(own)] = own
    with torch.no_grad():
        frames = model.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        texts = model.encode_embedded_text(model.embed_tokens(ids), ids.argmax(dim=1))
        of_pixels, of_features = model.fuse(frames), model.fuse(features)
    clip = model.clip
    parameters = {_official(one): p.requires_grad_() for one, p in clip.named_parameters() if is_trained(one)}
    logits = model.logit_scale * normalize(model.fuse(features), dim=-1) @ encode_texts(model, ids).T
    loss = cross_entropy(logits, torch.tensor(_LABELS))
    try:
        wanted = [parameters[one] for one in facts.grad_norm_names[name]]
    except KeyError as error:
        raise ConfigError(f"{fixture.folder}: grad_norm_names: {error} is not trained") from None
    return {
        "token_ids": Measured(bare, EXACT),
        "prompt_actiontoken": Measured(ids.clamp(min=0), EXACT),
        "text_features": Measured(texts, FEATURES),
        "pixels/video_features": Measured(of_pixels, FEATURES),
        "pixels/logits": Measured(_logits(model, of_pixels, texts), LOGITS),
        "features/video_features": Measured(of_features, FEATURES),
        "features/logits": Measured(_logits(model, of_features, texts), LOGITS),
        "loss": Measured(loss, LOSS),
        "grad_norms": Measured(norms(torch.autograd.grad(loss, wanted)), GRADIENT_SHARE, shares=True),
    }


def _logits(model: ClipModel, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return model.logit_scale * normalize(videos, dim=-1) @ normalize(texts, dim=-1).T


def _official(name: str) -> str:
    """The published name of a parameter that A5 adds."""
    return PUBLISHED_TEXTS if name == LEARNED_TEXTS else name.removeprefix("fusion.")
