"""What a run decides: its models, loaded once to be known, the settings as they run, and the cases that these make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Any

from zar_ray.adaptation.adapter import VideoAdapter, make_cases
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions, Setting
from zar_ray.data.class_texts import is_context_file, prompts_of, with_words
from zar_ray.errors import ConfigError
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.spec import JobSpec, ModelViews
from zar_ray.evaluation.streams import order_for, orders_for
from zar_ray.evaluation.workload import Workload
from zar_ray.models.architecture import model_name
from zar_ray.models.clip import ClipModel
from zar_ray.models.cost import image_gflops, parameter_count, step_gflops, view_gflops, weightless
from zar_ray.models.loading import load_model
from zar_ray.models.text import default_words, remark_on_words, why_full_pass
from zar_ray.models.vision import unfit_vision
from zar_ray.options.base import fingerprint, meaning
from zar_ray.options.layers import leaves
from zar_ray.results.case import Case
from zar_ray.results.record import ModelCost
from zar_ray.storage import Storage
from zar_ray.video.corruptions import Corruption
from zar_ray.video.transforms import Preprocessing, short_side_for

# Where things lie; what they hold is compared by fingerprints instead.
_PLACES = ("dataset", "checkpoint", "class_names", "class_texts", "unknown_classes", "unknown_seed")


@dataclass(frozen=True, eq=False)
class AskedModel:
    """A model as a study asks for it.

    Attributes:
        label: What tables call it; the same for one that is shown several corruptions.
        settings: The options of each setting under it; the first is the study's own.
    """

    label: str
    settings: tuple[EvaluationOptions, ...]


@dataclass(frozen=True, eq=False)
class PlannedModel:
    """What is known of a model that was loaded once, and what it decides.

    Attributes:
        label: What tables call it.
        name: The model's name.
        fingerprint: A hash of its weights.
        preprocessing: Its input size and normalisation.
        random_weights: Whether it is untrained.
        remarks: What makes it slower than it could be, and the words that it brings for prompts, a line each.
        costs: What it holds and computes, under each setting.
        settings: Its settings as they run: at one short side, with what it reads of the classes.
        of_settings: The cases of each setting; what settings have in common is one case.
    """

    label: str
    name: str
    fingerprint: str
    preprocessing: Preprocessing
    random_weights: bool
    remarks: tuple[str, ...]
    costs: tuple[ModelCost, ...]
    settings: tuple[Setting, ...]
    of_settings: tuple[tuple[Case, ...], ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Each case once, under the first setting that has it."""
        distinct: dict[str, Case] = {}
        for case in chain.from_iterable(self.of_settings):
            distinct.setdefault(case.case_id, case)
        return tuple(distinct.values())

    def views(self, cases: Sequence[Case] | None = None) -> ModelViews:
        """What decoding must know of it, where it has those cases alone; by default all of its own."""
        cases = self.cases if cases is None else cases
        options = [setting.options for setting in self.settings]
        # A setting without a case looks at nothing: what another one looks at costs nothing.
        used = {case.setting for case in cases} or {0}
        # Where corruptions follow each other a cell's options name all up to its own.
        shown = getattr(options[0], "corruption", ())
        return ModelViews(
            self.fingerprint,
            options[0].precision,
            self.preprocessing,
            tuple(
                (one.views, one.seed)
                for one in (options[place if place in used else min(used)] for place in range(len(options)))
            ),
            needs_views=any(get_method(case.method).needs_views for case in cases),
            corruption=Corruption.parse(shown[-1]) if shown else None,
        )

    def under(self, number: int, settings: Sequence[Setting]) -> PlannedModel:
        """The same model as another of a run's, which differs in what is done to its frames."""
        update = {"corruption": settings[0].options.corruption}
        running = tuple(replace(one, options=one.options.model_copy(update=update)) for one in self.settings)
        cases = (
            make_cases(one.options, self.fingerprint, one.prompts, place, number) for place, one in enumerate(running)
        )
        return replace(self, settings=running, of_settings=tuple(cases))


def plan_models(
    asked: Sequence[AskedModel], workload: Workload, plan: Callable[[str, int, Sequence[Setting]], PlannedModel]
) -> tuple[PlannedModel, ...]:
    """A run's models, each loaded once by `plan` however many corruptions it is shown.

    Raises:
        ZarError: What `plan` raises.
    """
    known: dict[str, PlannedModel] = {}
    models = []
    for number, one in enumerate(asked):
        settings = asked_settings(one, workload)
        first = known.get(one.label)
        models.append(plan(one.label, number, settings) if first is None else first.under(number, settings))
        known.setdefault(one.label, models[-1])
    return tuple(models)


def asked_settings(asked: AskedModel, workload: Workload) -> tuple[Setting, ...]:
    """A model's settings with the candidate classes' prompts, before the model is known.

    Raises:
        ConfigError: Prompts cannot be made as the options say.
    """
    videos = workload.usable()
    return tuple(Setting(one, prompts_of(workload.class_sets, one), videos) for one in asked.settings)


def on_device(settings: Sequence[Setting], device: str) -> tuple[Setting, ...]:
    """The same settings for workers on a device."""
    return tuple(replace(one, options=one.options.model_copy(update={"device": device})) for one in settings)


def plan_model(label: str, number: int, settings: Sequence[Setting], device: str | None = None) -> PlannedModel:
    """Loads a model once, before a pool of workers does, and settles what it decides.

    Args:
        label: What tables call it.
        number: Which of the run's models it is.
        settings: Its settings as they are asked for.
        device: Where workers will have it; by default as the settings say.

    Raises:
        ConfigError: The model cannot read the prompts, a method cannot use them, features are to be kept of a model
            that has none of images, or the settings are told different short sides.
        ModelError: The model cannot be loaded, or a method cannot serve it.
    """
    own = settings[0].options
    model = load_model(own, device)
    if getattr(own, "features", None) is not None and not model.frame_independent:
        raise ConfigError(
            f"--features: {model.name} encodes a view as a whole, so an image has no features of its own; leave it away"
        )
    first, *further = settings
    adapter = VideoAdapter(model, first.prompts, own.method, own, further=further, videos=first.videos)
    sided = at_one_short_side([one.options for one in settings], model.preprocessing)
    words = default_words(model)
    running = tuple(
        Setting(*with_words(options, one.prompts, words), one.videos)
        for options, one in zip(sided, settings, strict=True)
    )
    return PlannedModel(
        label=label,
        name=model.name,
        fingerprint=model.fingerprint,
        preprocessing=model.preprocessing,
        random_weights=model.random_weights,
        remarks=_remarks(model, settings, tuned=any(method.updates == "context" for method in adapter.methods)),
        costs=count_costs(model, settings),
        settings=running,
        of_settings=tuple(
            make_cases(one.options, model.fingerprint, one.prompts, place, number) for place, one in enumerate(running)
        ),
    )


def _remarks(model: ClipModel, settings: Sequence[Setting], tuned: bool) -> tuple[str, ...]:
    why_full = dict.fromkeys(why_full_pass(model, one.options.class_position) for one in settings if tuned)
    slow = (
        *((reason, "every prompt runs through the text tower as a whole") for reason in why_full),
        (unfit_vision(model.clip.visual), "images run through it as open_clip wrote it"),
    )
    of_words = remark_on_words(model, settings[0].options)
    remarks = (*(f"{reason}: {outcome}" for reason, outcome in slow if reason is not None), of_words)
    return tuple(remark for remark in remarks if remark is not None)


def count_costs(model: ClipModel, settings: Sequence[Setting]) -> tuple[ModelCost, ...]:
    """Counts what a model of this shape holds and computes for a video, under each setting whose methods can use it."""
    shape = weightless(model.architecture, model.name, model.preprocessing)
    architecture, parameters, of_image = model_name(model.architecture), parameter_count(shape), image_gflops(shape)
    of_view = cache(partial(view_gflops, shape))
    of_step = cache(partial(step_gflops, shape))
    costs = []
    for setting in settings:
        options = setting.options
        largest = max(setting.prompts, key=lambda prompts: len(prompts.names))
        steps = {method: options.context_steps(method) for method in options.method}
        costs.append(
            ModelCost(
                architecture=architecture,
                input_size=model.preprocessing.input_size,
                parameters=parameters,
                view_frames=options.views.eval_frames,
                view_gflops=of_view(options.views.eval_frames),
                image_gflops=of_image,
                tuning_gflops={
                    method: count * of_step(largest, options.class_position) for method, count in steps.items() if count
                },
            )
        )
    return tuple(costs)


def job_spec(
    workload: Workload,
    models: Sequence[PlannedModel],
    settings: Sequence[str],
    storage: Storage,
    streams: tuple[str, ...] = (),
) -> JobSpec:
    """What every worker of a run is told; `settings` are what result rows call the settings."""
    own = models[0].settings[0].options
    return JobSpec(
        models=tuple(model.views() for model in models),
        labels=tuple(model.label for model in models),
        settings=tuple(settings),
        class_sets=workload.class_sets,
        held_out=workload.splits[0].held_out,
        multi_label=workload.multi_label,
        cases=tuple(case for model in models for case in model.cases),
        storage=storage,
        decoder=own.decoder,
        decode_timeout=own.decode_timeout,
        resizer=own.resize,
        features=getattr(own, "features", None),
        streams=streams,
        batch_size=own.batch_size,
        corruption_seed=getattr(own, "corruption_seed", 0),
    )


def passes_of(spec: JobSpec, models: Sequence[PlannedModel]) -> tuple[JobSpec, ...]:
    """A run's passes over its videos: one, but for streams one for each of the orders that they want.

    Where corruptions follow each other, each order has a pass for each of them. All that is no stream is done in the
    first pass, or in those of the first order.
    """
    orders = orders_for(one.options for model in models for one in model.settings)
    turns = {replace(order, turn=0): order.turn for order in orders}
    shown = [model.settings[0].options.corruption for model in models]
    parts = list(dict.fromkeys(shown)) if getattr(models[0].settings[0].options, "continual", False) else []
    of_each = max(1, len(parts))
    of_passes: list[list[Case]] = [[] for _ in range(len(orders) * of_each)]
    for case in spec.cases if orders else ():
        wanted = order_for(models[case.model].settings[case.setting].options, case.method)
        part = parts.index(shown[case.model]) if parts else 0
        of_passes[of_each * (0 if wanted is None else turns[wanted]) + part].append(case)
    placed = [replace(orders[turn // of_each], turn=turn) for turn in range(len(of_passes))]

    def carried(turn: int) -> dict[str, str]:
        """The cases of the pass before, and those that go on from them."""
        before = of_passes[turn - 1] if turn % of_each else []
        known = {_without_corruption(spec, case): case.case_id for case in before}
        own = {_without_corruption(spec, case): case.case_id for case in of_passes[turn]}
        return {known[key]: case_id for key, case_id in own.items() if key in known}

    return tuple(
        replace(
            spec,
            cases=tuple(cases),
            order=order,
            carried=carried(order.turn),
            models=tuple(
                model.views([case for case in cases if case.model == number]) for number, model in enumerate(models)
            ),
        )
        for order, cases in zip(placed, of_passes, strict=True)
    ) or (spec,)


def _without_corruption(spec: JobSpec, case: Case) -> tuple[object, ...]:
    """What a case is, whatever is done to the frames."""
    return spec.labels[case.model], case.method, case.class_set, case.setting


def at_one_short_side(runs: Sequence[Any], preprocessing: Preprocessing) -> tuple[Any, ...]:
    """Settings with the short side that they share (DESIGN.md, "ZAR, exactly", 4): the larger one where they differ.

    So the number of crops is not mixed with zoom, and settings share images.

    Raises:
        ConfigError: They are told different short sides, or one that is smaller than the model's input.
    """
    sides = {short_side_for(run.views, preprocessing) for run in runs}
    if len(sides) == 1:
        return tuple(runs)
    told = sorted({run.views.short_side for run in runs if run.views.short_side is not None})
    if told:
        raise ConfigError(
            f"a sweep has one short side, and its settings come to {' and '.join(map(str, sorted(sides)))}; "
            "give one for all with --views.short-side, or run a sweep for each"
        )
    widest = {"short_side": max(sides)}
    return tuple(run.model_copy(update={"views": run.views.model_copy(update=widest)}) for run in runs)


def identity(workload: Workload, models: Sequence[PlannedModel]) -> dict[str, object]:
    """What a run's numbers depend on, as JSON values; a folder holds one such run only."""
    manifest = workload.manifest
    own = models[0].settings[0].options
    orders = orders_for(one.options for model in models for one in model.settings)
    places = (*_PLACES, *(("context",) if is_context_file(own.context) else ()), *(() if orders else ("order",)))

    def without_places(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in places}

    def cell(setting: Setting) -> dict[str, Any]:
        prompts = fingerprint([one.identity for one in setting.prompts])
        return {**without_places(varied_options(own, setting.options)), "prompts": prompts}

    return {
        "options": without_places(meaning(own)),
        "models": [{"name": model.name, "fingerprint": model.fingerprint} for model in models],
        "cells": [[cell(setting) for setting in model.settings] for model in models],
        "manifest": {"videos": len(manifest), "fingerprint": manifest.fingerprint()},
        # The fingerprint does not depend on the order of the manifest's rows, and streams do.
        **(
            {"orders": [fingerprint(one.arranged(manifest.table)["video_id"].to_pylist()) for one in orders]}
            if orders
            else {}
        ),
        "splits": {
            split.name: {
                "classes": list(split.class_names),
                "videos": fingerprint([split.video_ids, split.labels]),
                **({"held_out": list(split.held_out)} if split.held_out else {}),
            }
            for split in workload.splits
        },
    }


def varied_options(default: AdaptationOptions, other: AdaptationOptions) -> dict[str, Any]:
    """The dotted options of a setting that are not the default's, as plain values."""
    ours, theirs = leaves(meaning(other)), leaves(meaning(default))
    return {name: value for name, value in ours.items() if value != theirs.get(name)}
