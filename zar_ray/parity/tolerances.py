"""How far each array may be from its reference: one table for every kind of fixture.

The reference vectors' own README asks for 1e-5 of features and losses, 1e-4 of logits and a share of 1e-3 of gradient
norms; of ZAR for 1e-6 of the context after one step. AdamW divides by the gradient's own size, so later steps amplify
rounding: context and text features 1e-4, logits 1e-2. Scores and entropies follow the logits they come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


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
    (r"frame_indices|N\d+_T\d+|crop_centre_u8", EXACT),
    (r"ctx_init|ctx_step1", Tolerance(1e-6)),
    (r"ctx_step\d+", Tolerance(1e-4)),
    (r"grad_step1", Tolerance(1e-5, of_largest=1e-3)),
    (r"grad_step\d+", Tolerance(1e-5, of_largest=1e-2)),
    (r"text_features_step(?!1$)\d+", Tolerance(1e-4)),
    (r"(view|eval)_logits_step(?!1$)\d+", Tolerance(1e-2)),
    (r"\w*features\w*|frame_embeddings|frame_patch_tokens|text_prompts", Tolerance(1e-5)),
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
