"""Stream methods that keep caches of features: fixtures of a stream of samples whose features are made up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

import torch

from zar_ray.adaptation.base import Shared, entropy
from zar_ray.adaptation.boostadapter import BoostAdapterConfig, BoostAdapterStream
from zar_ray.adaptation.dmn import DmnConfig, DmnStream
from zar_ray.adaptation.dpe import DpeConfig, DpeStream
from zar_ray.parity.fixture import Evidence, Fixture, Rows
from zar_ray.parity.methods import given
from zar_ray.parity.zar_steps import spelt

# Data sets on whose pictures the authors run several views; one view, or the plain one, speaks on all others.
_IMAGENETS = ("I", "A", "V", "R", "S")


def boostadapter(fixture: Fixture) -> Evidence:
    """Both caches and the decisions of each case."""
    views, classes = given(fixture)
    evidence = Evidence({"text_features": classes.initial_features, "labels": fixture.made("labels")})
    for case in fixture.fact(dict[str, object], "config", "cases"):
        setting = partial(fixture.fact, float, "config", "cases", case)
        several = fixture.fact(str, "config", "cases", case, "datasets") in _IMAGENETS
        values = {
            "decision": "selected" if several else "evaluation",
            "confidence": fixture.fact(float, "config", "share_of_views"),
            "lent": fixture.fact(float, "config", "boosting_share"),
            "lent_capacity": setting("delta"),
            **_of_cache(fixture, case, "positive", "positive_"),
            **_of_cache(fixture, case, "negative", "negative_"),
            "negative_entropy": tuple(setting("negative", "entropy_threshold", end) for end in ("lower", "upper")),
            "negative_mask": tuple(setting("negative", "mask_threshold", end) for end in ("lower", "upper")),
        }
        options = fixture.options(BoostAdapterConfig, **values)
        stream, rows = BoostAdapterStream(classes, options, Shared()), Rows()
        for number, sample in enumerate(views, 1):
            logits = classes.initial_logits(sample)
            found = stream.see(sample, logits, sample[0], logits[0])
            rows.add(
                clip_logits=found.logits,
                entropy=found.doubt,
                entropy_share=found.share,
                prediction_before=found.logits.argmax(),
                boosting_views=found.lent,
                boosting_entropies=found.entropies[found.lent],
                boosting_classes=logits[found.lent].argmax(dim=-1),
                positive_logits=found.positive,
                negative_logits=found.negative,
                output=found.after,
                boosted_counts=found.counts,
            )
            positive = _held(stream.positive.keys, stream.positive.doubts)
            negative = _held(stream.negative.keys, stream.negative.entropies)
            negative["probabilities"] = stream.negative.probabilities
            for name, held in (("positive", positive), ("negative", negative)):
                evidence.put(held, f"{case}/{name}_cache_{number}")
        evidence.put(rows.stacked(), case)
    return evidence


def dmn(fixture: Fixture) -> Evidence:
    """The memory and the decisions with each size of it."""
    views, classes = given(fixture)
    texts = classes.initial_features
    evidence = Evidence({"text_features": texts, "labels": fixture.made("labels")})
    for case, size in fixture.fact(dict[str, int], "config", "memory_sizes").items():
        options = fixture.options(
            DmnConfig,
            confidence=fixture.fact(float, "config", "selection_p"),
            capacity=size,
            sharpness=fixture.fact(float, "config", "beta"),
        )
        stream, rows, dynamic = DmnStream(classes, options, Shared()), Rows(), Rows()
        snapshots = _numbers(fixture.arrays, rf"{re.escape(case)}/memory_(\d+)/counts")
        for number, sample in enumerate(views, 1):
            logits = classes.initial_logits(sample)
            found = stream.see(sample[0], logits, texts)
            rows.add(
                plain_probabilities=logits[0].softmax(dim=-1),
                view_entropies=found.entropies,
                selected=found.selected,
                mean_probabilities=found.probabilities,
                pseudo_labels=found.probabilities.argmax(),
                entropies=found.doubt,
            )
            dynamic.add(dynamic_probabilities=found.logits.softmax(dim=-1))
            if number in snapshots:
                dynamic.add(class_features=found.class_features)
                memory = stream.memory
                held = {"features": memory.features, "entropies": memory.doubts, "counts": memory.counts}
                evidence.put(held, f"{case}/memory_{number}")
        evidence.arrays.update(rows.stacked())
        evidence.put(dynamic.stacked(), case)
        plain = evidence.arrays["plain_probabilities"]
        of_memory = evidence.arrays[f"{case}/dynamic_probabilities"]
        for weight in _numbers(fixture.arrays, rf"{re.escape(case)}/output_weight_(\d+)"):
            evidence.arrays[f"{case}/output_weight_{weight}"] = plain + weight * of_memory
    return evidence


def dpe(fixture: Fixture) -> Evidence:
    """Prototypes, cache and decisions of each case."""
    views, classes = given(fixture)
    evidence = Evidence({"text_features": classes.initial_features, "labels": fixture.made("labels")})
    eps = spelt(fixture, "eps")
    for case in fixture.fact(dict[str, object], "config", "cases"):
        dataset = fixture.fact(str, "config", "cases", case, "dataset")
        rate = partial(fixture.fact, float, "config", "cases", case, "learning_rate")
        values = {
            "tuned_on": "selected" if dataset in _IMAGENETS else "evaluation",
            "decision": "selected" if dataset == "A" else "evaluation",
            "confidence": fixture.fact(float, "config", "share_of_views"),
            **_of_cache(fixture, case, "positive"),
            "text_lr": rate("text"),
            "image_lr": rate("image"),
            "alignment": rate("align"),
            "temperature": fixture.fact(float, "config", "alignment_temperature"),
            "sure_below": fixture.fact(float, "config", "global_update_below"),
            **({"eps": eps} if eps else {}),
        }
        options = fixture.options(DpeConfig, **values)
        stream, rows = DpeStream(classes, options, Shared()), Rows()
        for number, sample in enumerate(views, 1):
            found = stream.see(sample, sample[:1])
            rows.add(
                selected=found.selected,
                mean_logits=found.logits,
                marginal_entropy=found.marginal,
                entropy_share=found.share,
                prediction_before=found.logits.argmax(),
                cache_logits_in_the_loss=found.of_cache,
                entropy_loss=found.loss,
                alignment_loss=found.alignment,
                output=found.after,
                entropy_of_the_output=entropy(found.after),
                updates_of_the_global_prototypes=stream.updates,
            )
            held = _held(stream.cache.keys, stream.cache.doubts)
            after = {
                "global_text_prototypes": stream.texts,
                "text_gradient": found.gradients[0],
                "text_residual": found.residuals[0],
                "image_gradient": found.gradients[1],
                "image_residual": found.residuals[1],
                "cached_classes": found.cached,
                "image_prototypes": found.prototypes,
                **{f"cache_{name}": value for name, value in held.items()},
            }
            evidence.put(after, f"{case}/after_{number}")
        evidence.put(rows.stacked(), case)
    return evidence


def _of_cache(fixture: Fixture, case: str, cache: str, prefix: str = "") -> dict[str, float]:
    """A cache's options as a method has them; one that is not enabled has no room."""
    setting = partial(fixture.fact, float, "config", "cases", case, cache)
    enabled = fixture.fact(bool, "config", "cases", case, cache, "enabled", default=True)
    return {
        f"{prefix}capacity": setting("shot_capacity") if enabled else 0,
        f"{prefix}weight": setting("alpha"),
        f"{prefix}sharpness": setting("beta"),
    }


def _held(keys: torch.Tensor, doubts: torch.Tensor) -> dict[str, torch.Tensor]:
    """A cache as fixtures show it."""
    held = doubts.isfinite()
    return {"keys": keys.clone(), "entropies": doubts.masked_fill(~held, -1), "counts": held.sum(dim=1)}


def _numbers(names: Iterable[str], pattern: str) -> list[int]:
    """The numbers in names of a pattern, rising."""
    return sorted(int(found[1]) for found in (re.fullmatch(pattern, name) for name in names) if found)


METHODS = {"boostadapter": boostadapter, "dmn": dmn, "dpe": dpe}
"""What this code makes of the fixtures here, by the system that they name."""
