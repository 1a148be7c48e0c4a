"""What a comparison says, and how it is printed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


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


@dataclass(frozen=True, eq=False)
class Measured:
    """What this code gives for an array of a fixture.

    Attributes:
        value: The array, of the fixture's shape.
        tolerance: Largest absolute difference allowed.
        relative: Allowed besides, as a share of the reference's largest absolute value.
        shares: Whether the difference of each element is taken as a share of the reference's, as for norms.
    """

    value: np.ndarray | torch.Tensor
    tolerance: float
    relative: float = 0.0
    shares: bool = False


@dataclass(frozen=True, eq=False)
class Evidence:
    """What this code has to say about a fixture.

    Attributes:
        checks: Comparisons that are done already, of what is not an array.
        measured: Values for arrays, by the fixture's names; for more than it holds, perhaps.
    """

    checks: list[ArrayCheck]
    measured: dict[str, Measured]


def compare(name: str, reference: np.ndarray, measured: Measured) -> ArrayCheck:
    """Holds an array against its reference, in float64; shapes must agree, and NaN never does."""
    value = measured.value
    ours = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    theirs = np.asarray(reference, dtype=np.float64)
    largest = float(np.abs(theirs).max()) if measured.relative and theirs.size else 0.0
    tolerance = measured.tolerance + measured.relative * largest
    if ours.shape != theirs.shape:
        return ArrayCheck(name, math.inf, tolerance, False, f"shape {ours.shape} instead of {theirs.shape}")
    differences = np.abs(ours.astype(np.float64) - theirs)
    if measured.shares:
        differences = differences / np.maximum(np.abs(theirs), np.finfo(np.float64).tiny)
    difference = float(differences.max()) if theirs.size else 0.0
    return ArrayCheck(name, difference, tolerance, difference <= tolerance)


def norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """float32 (n,): the L2 norm of each gradient."""
    return torch.stack([gradient.norm() for gradient in gradients])


def equal(name: str, reference: object, ours: object) -> ArrayCheck:
    """Holds a digest or a whole number against its reference: equal or not."""
    if ours == reference:
        return ArrayCheck(name, 0.0, 0.0, True)
    return ArrayCheck(name, math.inf, 0.0, False, f"{_short(ours)} instead of {_short(reference)}")


def miss(name: str, note: str) -> ArrayCheck:
    """Something in a fixture that was not compared with anything."""
    return ArrayCheck(name, math.nan, 0.0, False, note)


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


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
