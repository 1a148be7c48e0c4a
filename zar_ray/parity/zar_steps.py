"""The systems ``zar_step`` (from frame embeddings) and ``zar_step_pixels`` (from pixels): ZAR, every step of it.

Where a fixture tunes as TPT was published, on 10 % of the views, the decisions are those of the method ``tpt``.

Tolerances are those of the reference vectors: features and losses 1e-5, logits 1e-4, the context 1e-6 after one step.
AdamW divides by the gradient's own size, so later steps amplify rounding: context and text features 1e-4, logits
1e-2. Entropies follow the logits they come from, 1e-4. Gradients, elementwise: 1e-5 and besides a share of the
largest element, 1e-3 at the first step (what is asked of gradient norms) and 1e-2 at later ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.tpt import TptConfig, tune_on_views, update_of
from zar_ray.adaptation.zar import ZarConfig, tuning_steps
from zar_ray.adaptation.zar_batched import adapt_zar_batch
from zar_ray.errors import ConfigError
from zar_ray.models.architecture import build_clip, infer_architecture
from zar_ray.models.checkpoints import load_weights, openai_layout
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.options.layers import validate
from zar_ray.parity.checks import Evidence, Measured
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.video.transforms import Preprocessing

FEATURES, LOGITS, LOSSES, ENTROPIES, EXACT = 1e-5, 1e-4, 1e-5, 1e-4, 0.0
CONTEXT, LATER_CONTEXT, LATER_FEATURES, LATER_LOGITS = 1e-6, 1e-4, 1e-4, 1e-2
GRADIENT, GRADIENT_SHARE, LATER_GRADIENT_SHARE = 1e-5, 1e-3, 1e-2

_BASE = "base_clip"
_TUNED = re.compile(r"p(?P<fraction>[0-9.]+)/\w+?(?:_step(?P<step>\d+))?")
_NUMBER = r"([0-9.]+(?:e[-+]?\d+)?)"


class ZarStepConfig(FileFormat):
    """``config`` of these systems; what the shapes of the weights tell is read off them."""

    ctx_init: str
    lr: float
    optimizer: str = ""
    n_views: int
    steps: int
    heads_vision: int | None = None
    heads_text: int | None = None


@dataclass(frozen=True)
class _Views:
    views: np.ndarray
    evaluation: np.ndarray


def check_zar_steps(fixture: Fixture, videos: Path | None) -> Evidence:
    """Runs the model, the fusion and the adaptation on a fixture's weights and input.

    Args:
        fixture: The fixture.
        videos: Not used: these systems read no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no CLIP's.
    """
    config = fixture.read(ZarStepConfig, fixture.file.config, "config")
    model = _build_model(fixture, config)
    classes = PromptedClasses(model, fixture.file.class_names, config.ctx_init)
    frames = torch.from_numpy(fixture.input())
    count, length = frames.shape[:2]
    if count != config.n_views + 1:
        raise ConfigError(f"{fixture.folder}: its input has {count} rows, not one a view and one to classify")
    embeddings = frames.flatten(0, 1)
    if fixture.file.system == "zar_step_pixels":
        embeddings = model.encode_images(embeddings)
    rows = np.arange(count * length, dtype=np.int64).reshape(count, length)
    features = video_features(embeddings, _Views(rows[: config.n_views], rows[config.n_views]))

    untuned = _decide(features, classes, _options(config, "1", 1, fixture))
    assert untuned.view_entropies is not None
    measured = {
        "token_ids": Measured(classes.token_ids, EXACT),
        "ctx_init": Measured(classes.initial_context, CONTEXT),
        "text_features_init": Measured(classes.initial_features, FEATURES),
        "frame_embeddings": Measured(embeddings.unflatten(0, (count, length)), FEATURES),
        "view_features": Measured(features.views, FEATURES),
        "view_logits": Measured(classes.logits(features.views, classes.initial_features), LOGITS),
        "view_entropies": Measured(untuned.view_entropies, ENTROPIES),
        "eval_logits_init": Measured(untuned.logits_before[None], LOGITS),
    }
    for fraction, steps in _tunings(fixture, config).items():
        tuning = _measure_tuning(features, classes, _options(config, fraction, steps, fixture))
        measured |= {f"p{fraction}/{key}": value for key, value in tuning.items()}
    return Evidence([], measured)


def _build_model(fixture: Fixture, config: ZarStepConfig) -> ClipModel:
    weights = {name: torch.from_numpy(value) for name, value in fixture.weights(_BASE).items()}
    tensors = openai_layout(weights)
    architecture = infer_architecture(tensors, fixture.name)
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    if config.heads_vision is not None:
        vision["head_width"] = vision["width"] // config.heads_vision
    if config.heads_text is not None:
        text["heads"] = config.heads_text
    clip = build_clip(architecture)
    load_weights(clip, tensors, fixture.name)
    return ClipModel(clip, fixture.name, Preprocessing(input_size=vision["image_size"]), architecture)


def _tunings(fixture: Fixture, config: ZarStepConfig) -> dict[str, int]:
    """The confidence fractions of a fixture, as its names spell them, with the steps it holds of each."""
    steps: dict[str, int] = {}
    for name in fixture.arrays:
        match = _TUNED.fullmatch(name)
        if match:
            held = steps.get(match["fraction"], config.steps)
            steps[match["fraction"]] = max(held, int(match["step"] or 1))
    return steps


def _options(config: ZarStepConfig, fraction: str, steps: int, fixture: Fixture) -> ZarConfig:
    values = {"confidence": fraction, "steps": steps, "lr": config.lr, **_adamw_settings(config.optimizer)}
    return validate(ZarConfig, values, f"{fixture.folder}: optimiser")


def _measure_tuning(features: VideoFeatures, classes: PromptedClasses, options: ZarConfig) -> dict[str, Measured]:
    decision = _decide(features, classes, options)
    assert decision.selected is not None
    assert decision.losses is not None
    measured = {
        "selected": Measured(decision.selected, EXACT),
        "losses": Measured(decision.losses, LOSSES),
    }
    for number, step in enumerate(tuning_steps(features.views[decision.selected], classes, options), 1):
        first = number == 1
        with torch.no_grad():
            text = classes.features(step.context)
        # the decision after this many steps
        shorter = _decide(features, classes, options.model_copy(update={"steps": number}))
        logits = LOGITS if first else LATER_LOGITS
        share = GRADIENT_SHARE if first else LATER_GRADIENT_SHARE
        measured |= {
            f"grad_step{number}": Measured(step.gradient, GRADIENT, share),
            f"ctx_step{number}": Measured(step.context, CONTEXT if first else LATER_CONTEXT),
            f"text_features_step{number}": Measured(text, FEATURES if first else LATER_FEATURES),
            f"view_logits_step{number}": Measured(classes.logits(features.views, text), logits),
            f"eval_logits_step{number}": Measured(shorter.logits_after[None], logits),
        }
    return measured


def _decide(features: VideoFeatures, classes: PromptedClasses, options: ZarConfig) -> Decision:
    """The decision by the function that evaluations call: under TPT's own settings by TPT's, else by ZAR's."""
    tpt = TptConfig(steps=options.steps)
    if options == update_of(tpt):
        (outcome,) = tune_on_views([features], classes, tpt)
    else:
        (outcome,) = adapt_zar_batch([features], classes, options)
    if isinstance(outcome, Decision):
        return outcome
    raise outcome


def _adamw_settings(description: str) -> dict[str, Any]:
    """AdamW's settings as the fixture's description spells them out; what it leaves out keeps its default."""
    settings: dict[str, Any] = {}
    for key in ("eps", "weight_decay"):
        found = re.search(rf"{key}\s*=?\s*{_NUMBER}", description)
        if found:
            settings[key] = float(found[1])
    found = re.search(rf"betas\s*=?\s*\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)", description)
    if found:
        settings["betas"] = (float(found[1]), float(found[2]))
    return settings
