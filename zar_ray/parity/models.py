"""Models of a fixture's made-up weights, written to a file as the official code saves them and imported from there."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.options.layers import merge
from zar_ray.parity.fixture import Fixture


def imported(
    content: Mapping[str, object],
    base: Mapping[str, torch.Tensor] | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> tuple[ClipModel, tuple[str, ...]]:
    """The model of a checkpoint, by way of files: the published one, and zar-ray's that is made of it.

    Args:
        content: What the published file holds.
        base: The state dict of the CLIP that it was trained from, where it needs one.
        architecture: Settings that no tensor tells, over what the import takes for granted.

    Returns:
        The model, and the names of the tensors that were left out, sorted.

    Raises:
        ModelError: It cannot be imported.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A plain CLIP is in OpenAI's layout without OpenAI's marks, which is said when it is read.
        warnings.simplefilter("ignore", UserWarning)
        published, base_file, ours = (Path(folder) / name for name in ("v.pth", "b.pt", "v.safetensors"))
        torch.save(dict(content), published)
        if base is not None:
            torch.save(dict(base), base_file)
        plan = plan_import(published, None if base is None else base_file)
        replace(plan, architecture=merge(dict(plan.architecture), dict(architecture or {}))).write(ours)
        return load_model(ModelOptions(checkpoint=ours, device="cpu")), tuple(sorted(plan.checkpoint.left_out))


def plain_clip(fixture: Fixture) -> ClipModel:
    """The CLIP that methods run on: ``base_clip``, with heads as the settings have them, which no tensor tells."""
    architecture: dict[str, dict[str, int]] = {"vision_cfg": {}, "text_cfg": {}}
    if heads := fixture.fact(int, "config", "heads_vision", default=0):
        architecture["vision_cfg"]["head_width"] = fixture.fact(int, "config", "vision_width") // heads
    if heads := fixture.fact(int, "config", "heads_text", default=0):
        architecture["text_cfg"]["heads"] = heads
    return imported(fixture.weights("base_clip"), architecture=architecture)[0]
