"""Test-time methods on features: fixtures whose towers' outputs are made up, so that no tower is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.mta import MtaConfig, find_mode
from zar_ray.adaptation.tps import TpsConfig, shifted_logits, shifting_steps
from zar_ray.adaptation.vte import mean_of_confident
from zar_ray.adaptation.zero import vote
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.fixture import Evidence, Fixture


class GivenClasses:
    """Classes whose text features are given, for rules that take nothing else of `PromptedClasses`.

    Args:
        text_embeddings: float32 (K, D), not normalised.
        scale: What cosines are multiplied by.
    """

    def __init__(self, text_embeddings: torch.Tensor, scale: float) -> None:
        self.initial_features = normalize(text_embeddings, dim=-1)
        self.model = SimpleNamespace(logit_scale=scale, embedding_part=lambda features: features)

    def __len__(self) -> int:
        return len(self.initial_features)

    def logits(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """See `PromptedClasses.logits`."""
        with exact_float32():
            return self.model.logit_scale * features @ texts.mT

    def initial_logits(self, features: torch.Tensor) -> torch.Tensor:
        """See `PromptedClasses.initial_logits`."""
        return self.logits(features, self.initial_features)


def given(fixture: Fixture) -> tuple[torch.Tensor, PromptedClasses]:
    """A fixture's view features (V, D), and its classes."""
    classes = GivenClasses(fixture.made("text_embeddings"), fixture.fact(float, "config", "logit_scale"))
    return normalize(fixture.made("view_embeddings"), dim=-1), cast(PromptedClasses, classes)


def tuning(fixture: Fixture) -> dict[str, Any]:
    """How a fixture's method tunes, by this code's names."""
    return {
        "confidence": fixture.fact(float, "config", "selection_p"),
        "steps": fixture.fact(int, "config", "steps"),
        "lr": fixture.fact(float, "config", "lr"),
    }


def zero(fixture: Fixture) -> Evidence:
    """The vote of each window of views."""
    views, classes = given(fixture)
    evidence = Evidence({"text_features": classes.initial_features, "view_features": views})
    for case, (first, count) in fixture.fact(dict[str, tuple[int, int]], "config", "windows").items():
        logits = classes.initial_logits(views[first : first + count])
        cosines = classes.initial_features @ views[first : first + count].T
        ballot = vote(logits, cosines.T, fixture.fact(float, "config", "gamma"))
        evidence.add(
            {
                "cosines": cosines.T,
                "entropies": ballot.entropies,
                "order": ballot.order,
                "selected": ballot.selected,
                "votes": ballot.votes,
                "p_bar": ballot.decided,
                "tied_classes": ballot.tied,
                "prediction": ballot.decided.argmax()[None],
            },
            case,
        )
    return evidence


def mta(fixture: Fixture) -> Evidence:
    """The mode of all views."""
    views, classes = given(fixture)
    logits = classes.initial_logits(views)
    options = fixture.options(
        MtaConfig,
        inlierness=fixture.fact(float, "config", "lambda_y"),
        affinity=fixture.fact(float, "config", "lambda_q"),
    )
    found = find_mode(views, logits, options)
    squared = 2 * found.bandwidths.square()
    return Evidence(
        {
            "text_features": classes.initial_features,
            "view_features": views,
            "logits": logits,
            "mean_squared_distances": squared,
            "bandwidth": found.bandwidths,
            "affinity": found.affinity,
            "density_of_first_round": (-(views - views[0]).square().sum(dim=1) / squared).exp(),
            "inlierness_by_round": found.inlierness,
            "mode_by_round": found.modes,
            "final_weights": found.weights,
            "mode": found.modes[-1],
            "output": classes.initial_logits(found.modes[-1:]),
        }
    )


def vte(fixture: Fixture) -> Evidence:
    """The mean of the confident views."""
    views, classes = given(fixture)
    logits = classes.initial_logits(views)
    entropies, selected, mean = mean_of_confident(views, logits, fixture.fact(float, "config", "selection_p"))
    return Evidence(
        {
            "text_features": classes.initial_features,
            "view_features": views,
            "view_logits": logits,
            "view_entropies": entropies,
            "selected": selected,
            "mean_feature": mean,
            "output": classes.initial_logits(mean[None]),
        }
    )


def tps(fixture: Fixture) -> Evidence:
    """The shifts, a class's own or one for all, after each number of steps."""
    views, classes = given(fixture)
    texts = classes.initial_features
    logits = classes.initial_logits(views)
    evidence = Evidence(
        {
            "text_embeddings": fixture.made("text_embeddings"),
            "text_features": texts,
            "view_features": views,
            "view_logits": logits,
            "plain_logits": logits[:1],
        }
    )
    for case in fixture.fact(dict[str, str], "cases"):
        options = fixture.options(TpsConfig, **tuning(fixture), per_class=case != "shared")
        arrays: dict[str, torch.Tensor] = {}
        for number, step in enumerate(shifting_steps(views, texts, classes, options), 1):
            with torch.no_grad():
                moved = shifted_logits(views, texts, step.shift, classes)
            arrays |= {
                f"selected_step{number}": step.selected,
                f"entropies_step{number}": step.entropies,
                f"loss_step{number}": step.loss[None],
                f"grad_step{number}": step.gradient,
                f"shift_step{number}": step.shift,
                f"text_features_step{number}": normalize(texts + step.shift, dim=-1),
                f"output_step{number}": moved[:1],
                f"view_logits_step{number}": moved,
            }
        evidence.put(arrays, case)
    return evidence


METHODS = {"zero": zero, "mta": mta, "vte": vte, "tps": tps}
"""What this code makes of the fixtures here, by the system that they name."""
