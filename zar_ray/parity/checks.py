"""Values held against their references: how far each may be away, what a comparison says, and how it is printed.

The reference vectors' own README asks for 1e-5 of features and losses, 1e-4 of logits and a share of 1e-3 of gradient
norms; of ZAR for 1e-6 of the context after one step. AdamW divides by the gradient's own size, so later steps amplify
rounding: context and text features 1e-4, logits 1e-2. Scores and entropies follow the logits they come from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Tolerance:
    """How far a value may be from its reference.

    Attributes:
        absolute: Largest absolute difference allowed.
        of_largest: Allowed besides, as a share of the reference's largest absolute value.
        shares: Whether the difference of each element is taken as a share of the reference's, as for norms.
    """

    absolute: float = 0.0
    of_largest: float = 0.0
    shares: bool = False


EXACT = Tolerance()

# By the array's name without its case; the first that fits.
TOLERANCES = (
    (r"token_ids\w*|prompt_actiontoken|list_id|text_id|labels|ground_truth|selected", EXACT),
    (r"source_layer0_groups", EXACT),
    (r"frame_indices|N\d+_T\d+|crop_centre_u8", EXACT),
    (r"ctx_init|ctx_step1", Tolerance(1e-6)),
    (r"ctx_step\d+", Tolerance(1e-4)),
    (r"grad_step1", Tolerance(1e-5, of_largest=1e-3)),
    (r"grad_step\d+", Tolerance(1e-5, of_largest=1e-2)),
    (r"text_features_step(?!1$)\d+", Tolerance(1e-4)),
    (r"(view|eval)_logits_step(?!1$)\d+", Tolerance(1e-2)),
    (r"\w*features\w*|frame_embeddings|frame_patch_tokens|text_prompts|context_tokens", Tolerance(1e-5)),
    (r"\w*logits\w*|similarity\w*|view_entropies", Tolerance(1e-4)),
    (r"loss(es)?", Tolerance(1e-5)),
    (r"grad_norms", Tolerance(1e-3, shares=True)),
    (r"grad_T_prompt_embeddings", Tolerance(of_largest=1e-3)),
    (r"clip_(mean|std|grid|corner)", Tolerance(1e-5)),  # normalised pixels
    (r"frame_(mean|grid)", Tolerance(1e-3)),  # averages of uint8 pixels
    (r"avg_fps", Tolerance(1e-3)),
)


def tolerance_of(name: str) -> Tolerance:
    """The tolerance of an array, by its name; what the table does not know must be equal."""
    own = name.rpartition("/")[2]
    return next((tolerance for names, tolerance in TOLERANCES if re.fullmatch(names, own)), EXACT)


@dataclass(frozen=True)
class ArrayCheck:
    """One array of a fixture (or one digest or number), held against this code's.

    Attributes:
        name: The fixture's folder and the array.
        max_abs_difference: Of norms as a share; of digests 0 or infinite; NaN where nothing was compared.
        tolerance: What that may be.
        ok: Whether it is within.
        note: Why there is no sensible difference; empty otherwise.
    """

    name: str
    max_abs_difference: float
    tolerance: float
    ok: bool
    note: str = ""


def hold(name: str, reference: object, ours: object, tolerance: Tolerance | None = None) -> ArrayCheck:
    """Holds a value against its reference, either None where it is missing.

    Where no tolerance is given the check's name settles it.
    """
    if reference is None:
        return miss(name, "listed, but not among the arrays")
    if ours is None:
        return miss(name, "not compared: nothing here makes it")
    if isinstance(ours, float | np.ndarray | torch.Tensor):
        return compare(name, reference, ours, tolerance_of(name) if tolerance is None else tolerance)
    if ours == reference:
        return ArrayCheck(name, 0.0, 0.0, True)
    return ArrayCheck(name, math.inf, 0.0, False, f"{_short(ours)} instead of {_short(reference)}")


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


def miss(name: str, note: str) -> ArrayCheck:
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
