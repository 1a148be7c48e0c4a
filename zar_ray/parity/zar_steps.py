"""The systems ``zar_step`` (from frame embeddings) and ``zar_step_pixels`` (from pixels): ZAR, every step of it.

Where a fixture tunes as TPT was published, on 10 % of the views, the update is that of the method ``tpt``.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.zar import Decide, Objective, ZarConfig, adapt_zar_batch, tuning_steps
from zar_ray.errors import ConfigError
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.fixture import Evidence, Fixture, imported

_TUNED = re.compile(r"p(?P<fraction>[0-9.]+)/\w+?(?:_step(?P<step>\d+))?")
_NUMBER = r"([0-9.]+(?:e[-+]?\d+)?)"


class ZarStepConfig(BaseModel):
    """``config`` of these systems; what the shapes of the weights tell is read off them."""

    ctx_init: str
    lr: float
    n_views: int
    steps: int


def zar_steps(fixture: Fixture) -> Evidence:
    """Runs the model, the fusion and the adaptation on a fixture's weights and input."""
    config = fixture.fact(ZarStepConfig, "config")
    classes = prompted(fixture)
    embeddings = fixture.input()
    if len(embeddings) != config.n_views + 1:
        raise ConfigError(f"{fixture.folder}: its input has {len(embeddings)} rows, not one a view and one to classify")
    rows = np.arange(embeddings.shape[0] * embeddings.shape[1]).reshape(embeddings.shape[:2])
    if fixture.system == "zar_step_pixels":
        embeddings = classes.model.encode_images(embeddings.flatten(0, 1)).unflatten(0, rows.shape)
    features = video_features(embeddings.flatten(0, 1), SimpleNamespace(views=rows[:-1], evaluation=rows[-1]))
    untuned = decided(features, classes, update(fixture, confidence="1", steps=1, lr=config.lr))
    assert untuned.view_entropies is not None
    arrays = {
        "token_ids": classes.token_ids,
        "ctx_init": classes.initial_context,
        "text_features_init": classes.initial_features,
        "frame_embeddings": embeddings,
        "view_features": features.views,
        "view_logits": classes.logits(features.views, classes.initial_features),
        "view_entropies": untuned.view_entropies,
        "eval_logits_init": untuned.logits_before[None],
    }
    evidence = Evidence(arrays)
    steps: dict[str, int] = {}  # by fraction, as the fixture's names spell it: those of the settings, or more
    for match in filter(None, map(_TUNED.fullmatch, fixture.arrays)):
        fraction = match["fraction"]
        steps[fraction] = max(steps.get(fraction, config.steps), int(match["step"] or 1))
    for fraction, count in steps.items():
        options = update(fixture, confidence=fraction, steps=count, lr=config.lr)
        evidence.add(_tune(features, classes, options), f"p{fraction}")
    return evidence


def prompted(fixture: Fixture) -> PromptedClasses:
    """A fixture's classes under its model and context."""
    # Methods run on the plain CLIP; no tensor tells its heads.
    told = {name: fixture.fact(int, "config", f"heads_{name}", default=0) for name in ("vision", "text")}
    words = [f"{name}_heads={heads}" for name, heads in told.items() if heads]
    model, _ = imported(fixture.weights("base_clip"), settings=words)
    return PromptedClasses(model, fixture.class_names, fixture.fact(str, "config", "ctx_init"))


def _tune(features: VideoFeatures, classes: PromptedClasses, options: ZarConfig) -> dict[str, torch.Tensor]:
    decision = decided(features, classes, options)
    assert decision.selected is not None
    assert decision.losses is not None
    arrays = {"selected": decision.selected, "losses": decision.losses}
    for number, step in enumerate(tuning_steps(features.views[decision.selected][None], classes, options), 1):
        with torch.no_grad():
            text = classes.features(step.contexts[0])
        # the decision after this many steps
        shorter = decided(features, classes, options.model_copy(update={"steps": number}))
        arrays |= {
            f"grad_step{number}": step.gradients[0],
            f"ctx_step{number}": step.contexts[0],
            f"text_features_step{number}": text,
            f"view_logits_step{number}": classes.logits(features.views, text),
            f"eval_logits_step{number}": shorter.logits_after[None],
        }
    return arrays


def decided(
    features: VideoFeatures,
    classes: PromptedClasses,
    options: ZarConfig,
    objective: Objective | None = None,
    decide: Decide | None = None,
) -> Decision:
    """The decision by the function that evaluations call."""
    (outcome,) = adapt_zar_batch([features], classes, options, objective, decide)
    if isinstance(outcome, Decision):
        return outcome
    raise outcome


def update(fixture: Fixture, **values: Any) -> ZarConfig:
    """ZAR's options of these values, and of AdamW's settings as the fixture spells them out, else by default."""
    for key in ("eps", "weight_decay"):
        values |= {key: found} if (found := spelt(fixture, key)) else {}
    pair = re.search(rf"betas\s*=?\s*\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)", _optimiser(fixture))
    values |= {"betas": pair.groups()} if pair else {}
    return fixture.options(ZarConfig, **values)


def spelt(fixture: Fixture, key: str) -> str | None:
    """A number of the optimiser's, where the fixture spells it out."""
    found = re.search(rf"\b{key}\s*=?\s*{_NUMBER}", _optimiser(fixture))
    return None if found is None else found[1]


def _optimiser(fixture: Fixture) -> str:
    return fixture.fact(str, "config", "optimizer", default="")
