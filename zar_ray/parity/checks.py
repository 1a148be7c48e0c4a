"""What a comparison says, and how it is printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zar_ray.parity.tolerances import Tolerance


@dataclass(frozen=True)
class ArrayCheck:
    """One array of a fixture (or one digest or number), held against this code's.

    Attributes:
        name: The fixture's folder and the array.
        max_abs_difference: Largest absolute difference, of norms as a share; of digests 0 or infinite; NaN where
            nothing was compared.
        tolerance: What it may be.
        ok: Whether it is within.
        note: Why there is no sensible difference; empty otherwise.
    """

    name: str
    max_abs_difference: float
    tolerance: float
    ok: bool
    note: str = ""


def compare(name: str, reference: object, value: object, tolerance: Tolerance) -> ArrayCheck:
    """Holds an array or number against its reference, in float64; shapes must agree, and NaN never does."""
    ours = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    theirs = np.asarray(reference, dtype=np.float64)
    largest = float(np.abs(theirs).max()) if tolerance.of_largest and theirs.size else 0.0
    allowed = tolerance.absolute + tolerance.of_largest * largest
    if ours.shape != theirs.shape:
        return ArrayCheck(name, math.inf, allowed, False, f"shape {ours.shape} instead of {theirs.shape}")
    differences = np.abs(ours.astype(np.float64) - theirs)
    if tolerance.shares:
        differences = differences / np.maximum(np.abs(theirs), np.finfo(np.float64).tiny)
    difference = float(differences.max()) if theirs.size else 0.0
    return ArrayCheck(name, difference, allowed, difference <= allowed)


def equal(name: str, reference: object, ours: object) -> ArrayCheck:
    """Holds what is no array, such as a digest, against its reference: equal or not."""
    if ours == reference:
        return ArrayCheck(name, 0.0, 0.0, True)
    return ArrayCheck(name, math.inf, 0.0, False, f"{_short(ours)} instead of {_short(reference)}")


def miss(name: str, note: str = "not compared: nothing here makes it") -> ArrayCheck:
    """Something in a fixture that was not compared with anything."""
    return ArrayCheck(name, math.nan, 0.0, False, note)


def format_checks(checks: Sequence[ArrayCheck]) -> str:
    """One line a check: name, largest absolute difference, tolerance, and ``ok`` or ``MISS`` with its reason."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        verdict = "ok" if check.ok else "MISS"
        line = f"{check.name:<{width}}  {check.max_abs_difference:9.3g}  {check.tolerance:9.3g}  {verdict}"
        lines.append(f"{line}  {check.note}".rstrip())
    return "\n".join(lines)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"
