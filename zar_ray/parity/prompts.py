"""The systems ``ctpt``, ``otpt`` and ``rtpt``: prompt tuning's relatives, from made-up embeddings of the views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation import ctpt, otpt, rtpt
from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.prompt_tuning import PromptTuningConfig
from zar_ray.adaptation.tpt import update_of
from zar_ray.adaptation.zar import Decide, Objective, TuningStep, marginal_entropy, tuning_steps
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.fixture import Evidence, Fixture
from zar_ray.parity.methods import tuning
from zar_ray.parity.zar_steps import decided, prompted, update


@dataclass(frozen=True, eq=False)
class _Tuned:
    """One video under one setting.

    Attributes:
        decision: By the function that evaluations call.
        steps: Each step of the optimiser.
        text: float32 (K, D), text features after all steps.
        texts_before: The same before each step.
    """

    decision: Decision
    steps: list[TuningStep]
    text: torch.Tensor
    texts_before: list[torch.Tensor]

    def arrays(self, entropies: str = "entropies") -> dict[str, torch.Tensor]:
        """What fixtures of these systems have in common; of several steps, the last one's."""
        assert self.decision.view_entropies is not None
        assert self.decision.selected is not None
        last = self.steps[-1]
        return {
            "selected": self.decision.selected,
            entropies: self.decision.view_entropies,
            "loss": last.losses,
            "grad": last.gradients[0],
            "ctx": last.contexts[0],
            "text_features": self.text,
            "output": self.decision.logits_after[None],
        }


def ctpt_steps(fixture: Fixture) -> Evidence:
    """The dispersion with the entropy, after it, and without weight."""
    views, classes, evidence = _given(fixture)
    for case in fixture.fact(dict[str, str], "cases"):
        weight = fixture.fact(float, "config", "lambda_term") if "ctpt" in case else 0.0
        options = fixture.options(ctpt.CtptConfig, weight=weight, two_step=case.endswith("two_step"), **tuning(fixture))
        tuned = _tune(fixture, views, classes, options, ctpt.objective_of(options))
        of_entropy = tuned.texts_before[-2 if options.two_step else -1]
        arrays = tuned.arrays() | {
            "entropy_loss": _marginal_entropy(views, classes, tuned, of_entropy),
            "dispersion": ctpt.dispersion(tuned.texts_before[-1])[None],
            "view_logits": classes.logits(views, tuned.text),
        }
        evidence.put(arrays, case)
    return evidence


def otpt_steps(fixture: Fixture) -> Evidence:
    """The orthogonality with the entropy."""
    views, classes, evidence = _given(fixture)
    options = fixture.options(otpt.OtptConfig, weight=fixture.fact(float, "config", "lambda_term"), **tuning(fixture))
    tuned = _tune(fixture, views, classes, options, otpt.objective_of(options))
    text = tuned.texts_before[-1]
    with exact_float32():
        gram = text @ text.mT
    evidence.arrays.update(
        tuned.arrays()
        | {
            "entropy_loss": _marginal_entropy(views, classes, tuned, text),
            "gram": gram,
            "householder_images": otpt.lengths_of_rows(text).diag(),
            "orthogonality": otpt.orthogonality(text)[None],
            "view_logits_after": classes.logits(views, tuned.text),
        }
    )
    return evidence


def rtpt_steps(fixture: Fixture) -> Evidence:
    """The views' own entropies, and their weights; as run, with the neighbours that rounding left in the fixture."""
    views, classes, evidence = _given(fixture)
    options = fixture.options(
        rtpt.RtptConfig,
        neighbours=fixture.fact(int, "config", "k"),
        temperature=fixture.fact(float, "config", "temperature"),
        **tuning(fixture),
    )
    tuned = _tune(fixture, views, classes, options, rtpt.objective, rtpt.decide_by(classes, options))
    logits = classes.logits(views, tuned.text)
    evidence.arrays.update(tuned.arrays() | {"tuned_logits": logits})
    for case in fixture.fact(dict[str, str], "cases"):
        kept = fixture.arrays.get(f"{case}/diagonal_kept")
        own = None if kept is None else torch.from_numpy(kept).bool()
        scores, weights = rtpt.reliability(views, options, own)
        output = tuned.decision.logits_after if own is None else rtpt.weighed(weights, logits)
        arrays = {"scores": scores, "weights": weights, "output": output[None]}
        evidence.put(arrays, case)
    return evidence


def _given(fixture: Fixture) -> tuple[torch.Tensor, PromptedClasses, Evidence]:
    """View features (V, D), the classes, and what both are before tuning."""
    views, classes = normalize(fixture.made("view_embeddings"), dim=-1), prompted(fixture)
    # Some of the code pads its texts to fewer tokens than the model reads.
    padded = fixture.arrays["token_ids"].shape[-1] if "token_ids" in fixture.arrays else None
    evidence = Evidence(
        {
            "token_ids": classes.token_ids[:, :padded],
            "ctx_init": classes.initial_context,
            "text_features_init": classes.initial_features,
            "view_features": views,
            "view_logits": classes.initial_logits(views),
        }
    )
    return views, classes, evidence


def _tune(
    fixture: Fixture,
    views: torch.Tensor,
    classes: PromptedClasses,
    options: PromptTuningConfig,
    objective: Objective,
    decide: Decide | None = None,
) -> _Tuned:
    usual = update_of(options)
    own = update(fixture, confidence=usual.confidence, steps=usual.steps, lr=usual.lr)
    outcome = decided(VideoFeatures(views, views[0]), classes, own, objective, decide)
    assert outcome.selected is not None
    steps = list(tuning_steps(views[outcome.selected][None], classes, own, objective=objective))
    with torch.no_grad():
        *between, last = (classes.features(step.contexts[0]) for step in steps)
    return _Tuned(outcome, steps, last, [classes.initial_features, *between])


def _marginal_entropy(views: torch.Tensor, classes: PromptedClasses, tuned: _Tuned, text: torch.Tensor) -> torch.Tensor:
    return marginal_entropy(classes.logits(views[tuned.decision.selected], text))[None]


METHODS = {"ctpt": ctpt_steps, "otpt": otpt_steps, "rtpt": rtpt_steps}
"""What this code makes of the fixtures here, by the system that they name."""
