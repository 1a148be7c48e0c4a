"""Says in what two models differ, besides their weights."""

from __future__ import annotations

from dataclasses import asdict

from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from zar_ray.models.architecture import Architecture
from zar_ray.models.systems.base import SYSTEM
from zar_ray.video.transforms import Preprocessing


def architecture_difference(first: Architecture, second: Architecture) -> str | None:
    """The first setting that two architectures differ in, as ``NAME is ONE and OTHER``; None where they are the same.

    What an architecture leaves out has open_clip's default.
    """
    return _difference(_settings(first), _settings(second))


def preprocessing_difference(first: Preprocessing, second: Preprocessing) -> str | None:
    """The first setting that two preprocessings differ in, as ``NAME is ONE and OTHER``; None where there is none."""
    return _difference(_pixels(first), _pixels(second))


def _settings(architecture: Architecture) -> dict[str, object]:
    towers = {"vision_cfg": asdict(CLIPVisionCfg()), "text_cfg": asdict(CLIPTextCfg())}
    settings: dict[str, object] = {"quick_gelu": False}
    for name, value in architecture.items():
        if name in towers:
            settings |= {f"{name}.{key}": inner for key, inner in {**towers[name], **value}.items()}
        elif name not in ("custom_text", SYSTEM):  # the same towers, under other attribute names or trained otherwise
            settings[name] = value
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _pixels(preprocessing: Preprocessing) -> dict[str, object]:
    values = asdict(preprocessing)
    return {**values, "short_side": preprocessing.short_side or preprocessing.input_size}


def _difference(first: dict[str, object], second: dict[str, object]) -> str | None:
    for name in {**first, **second}:
        one, other = first.get(name), second.get(name)
        if one != other:
            return f"{name} is {one} and {other}"
    return None
