"""Streams whose state is learnt or grows: fixtures of samples in a given order, with the state after some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.dynaprompt import DynapromptConfig, PromptPool
from zar_ray.adaptation.ecalp import EcalpConfig, GrowingGraph
from zar_ray.adaptation.onzeta import OnlineLearner, OnzetaConfig
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.fixture import Evidence, Fixture, Rows
from zar_ray.parity.methods import given
from zar_ray.parity.recipe import recipe_digest, recipe_tensor
from zar_ray.parity.zar_steps import prompted, update

_OFFSETS = "prompt_offsets.ctx"


def _given(fixture: Fixture) -> tuple[torch.Tensor, PromptedClasses, Evidence]:
    """The plain views' features (N, D) of a fixture's samples, its classes, and what all cases have in common."""
    views, classes = given(fixture)
    features = views[:, 0]
    common = {"text_features": classes.initial_features, "features": features, "labels": fixture.made("labels")}
    return features, classes, Evidence(common)


def _settings(fixture: Fixture, case: str, names: dict[str, str]) -> dict[str, Any]:
    """A case's settings, by this code's names."""
    return {ours: fixture.fact(float, "config", "cases", case, theirs) for theirs, ours in names.items()}


def onzeta(fixture: Fixture) -> Evidence:
    """Labels, duals and proxies after each sample."""
    features, classes, evidence = _given(fixture)
    names = {
        "tau_t": "text_temperature",
        "tau_i": "vision_temperature",
        "cw": "vision_lr",
        "cr": "dual_lr",
        "alpha": "balance",
        "beta": "vision_weight",
    }
    for case in fixture.fact(dict[str, str], "cases"):
        options = fixture.options(OnzetaConfig, videos=len(features), **_settings(fixture, case, names))
        learner = OnlineLearner(classes.initial_features, options)
        rows = Rows()
        for number, feature in enumerate(features, 1):
            labels = learner.learn(feature)
            rows.add(
                text_labels=labels.text.exp(),
                vision_labels=labels.vision.exp(),
                dual=learner.duals,
                output=labels.mixed.exp(),
                rates=torch.tensor(labels.rates, dtype=torch.float64),
            )
            evidence.arrays[f"{case}/vision_proxies_{number}"] = learner.proxies
        evidence.put(rows.stacked(), case)
    return evidence


def ecalp(fixture: Fixture) -> Evidence:
    """Neighbours, adjacency, scores and carried labels after each sample."""
    features, classes, evidence = _given(fixture)
    names = {
        "k_text": "class_neighbours",
        "k_image": "video_neighbours",
        "gamma": "sharpness",
        "alpha": "alpha",
        "num_iterations": "iterations",
    }
    carried = fixture.fact(float, "config", "label_carried_over")
    output_scale = fixture.fact(float, "config", "output_scale")
    for case in fixture.fact(dict[str, str], "cases"):
        options = fixture.options(EcalpConfig, carried=carried, **_settings(fixture, case, names))
        graph = GrowingGraph(classes.initial_features, options)
        # One row more than samples, the newest's second copy.
        shape = len(features), len(features) + 1, options.video_neighbours
        neighbours = torch.full(shape, -1)
        scores = []
        arrays: dict[str, torch.Tensor] = {}
        for number, feature in enumerate(features, 1):
            found = graph.place(feature)
            rows, places = found.neighbours.shape
            neighbours[number - 1, :rows, :places] = found.neighbours
            scores.append(found.scores)
            arrays |= {
                f"labels_after_{number}": found.carried,
                f"image_similarities_{number}": found.similarities,
                f"adjacency_{number}": found.adjacency.to_dense(),
            }
        propagated = torch.stack(scores)
        arrays |= {
            "image_neighbours": neighbours,
            "propagated": propagated,
            "prediction": propagated.argmax(dim=1),
            "output": (output_scale * propagated).softmax(dim=1),
            "text_neighbours": graph.near_classes,
            "text_similarities": graph.class_cosines,
        }
        evidence.put(arrays, case)
    return evidence


def dynaprompt(fixture: Fixture) -> Evidence:
    """The pool's choices, gradients and offsets after each sample, from zero and from given offsets."""
    classes, samples = prompted(fixture), normalize(fixture.made("view_embeddings"), dim=-1)
    options = _pool_options(fixture)
    evidence = Evidence(
        {
            "token_ids": classes.token_ids,
            "ctx_init": classes.initial_context,
            "text_features_init": classes.initial_features,
        },
        _offsets_digest(fixture, (options.prompts, *classes.initial_context.shape)),
    )
    for case in fixture.fact(dict[str, str], "cases"):
        pool = PromptPool(classes, options)
        if case == "warm":
            pool.offsets = fixture.made_by("config", "warm_start")
        rows = Rows()
        for number, views in enumerate(samples, 1):
            order = pool.order
            step = pool.tune(views)
            chosen = step.choice.chosen
            filled = torch.full((options.prompts,), -1)
            filled[: len(chosen)] = chosen
            rows.add(
                reset_prompt=torch.tensor(-1 if step.reset is None else step.reset),
                order_before=order,
                order_after=pool.order,
                uses_after=pool.uses,
                prompt_entropies=step.choice.entropies,
                prompt_differences=step.choice.differences,
                prompts_by_entropy=step.choice.by_entropy,
                prompts_by_difference=step.choice.by_difference,
                chosen_prompts=filled,
                selected_views=step.selected,
                view_entropies=step.view_entropies,
                loss=step.loss,
                output=classes.logits(views[:1], pool.features(chosen.tolist())).mean(dim=0)[0],
            )
            evidence.put({f"ctx_{number}": pool.offsets, f"grad_{number}": step.gradients}, case)
        evidence.put(rows.stacked(), case)
    return evidence


def _pool_options(fixture: Fixture) -> DynapromptConfig:
    spelt = update(fixture)
    return fixture.options(
        DynapromptConfig,
        prompts=fixture.fact(int, "config", "num_prompts"),
        confidence=fixture.fact(float, "config", "selection_p"),
        lr=fixture.fact(float, "config", "lr"),
        weight_decay=spelt.weight_decay,
    )


def _offsets_digest(fixture: Fixture, shape: tuple[int, ...]) -> dict[str, tuple[object, object]]:
    """The digest of the tensor that the given offsets are made of, where the fixture lists one."""
    expected = fixture.fact(dict[str, str], "digest", default={}).get(_OFFSETS)
    if expected is None:
        return {}
    made = recipe_tensor(_OFFSETS, shape, fixture.fact(int, "seed"))
    return {f"digest/{_OFFSETS}": (expected, recipe_digest({_OFFSETS: made}))}


METHODS = {"onzeta": onzeta, "ecalp": ecalp, "dynaprompt": dynaprompt}
"""What this code makes of the fixtures here, by the system that they name."""
