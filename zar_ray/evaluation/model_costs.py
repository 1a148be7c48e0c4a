"""What a run's model computes for a video under its settings; see `zar_ray.models.cost` for the unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from zar_ray.adaptation.options import Setting
from zar_ray.data.class_texts import ClassPrompts
from zar_ray.models.clip import ClipModel
from zar_ray.models.cost import image_gflops, parameter_count, step_gflops, view_gflops, weightless
from zar_ray.models.options import ClassPosition
from zar_ray.results.record import ModelCost


def count_costs(model: ClipModel, settings: Sequence[Setting]) -> tuple[ModelCost, ...]:
    """Counts what a model holds and computes, under each setting; what settings have in common is counted once.

    Args:
        model: The model; only its shape matters.
        settings: The settings, whose methods can use the model and its prompts.
    """
    shape = weightless(model.architecture, model.name, model.preprocessing)
    parameters, of_image = parameter_count(shape), image_gflops(shape)
    of_view = cache(lambda frames: view_gflops(shape, frames))

    @cache
    def of_step(prompts: ClassPrompts, position: ClassPosition) -> float:
        return step_gflops(shape, prompts, position)

    costs = []
    for setting in settings:
        options = setting.options
        largest = max(setting.prompts, key=lambda prompts: len(prompts.names))
        steps = {method: options.context_steps(method) for method in options.method}
        costs.append(
            ModelCost(
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
