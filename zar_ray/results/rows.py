"""The result table: one row per (video, case), and the rules by which parts of it become one table.

A row is either finished (it holds the decision) or failed (``error`` and ``error_stage`` say why); no video is
without a row.  Rows come from many workers and, after a resumption, from several sessions; `deduplicate` makes one
table of them that does not depend on the order in which the parts were read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zar_ray.columns import Bytes, Name, Number, Real, Text, rows_to_table, schema_of, table_to_rows
from zar_ray.errors import VideoError
from zar_ray.results.certainty import certainties

if TYPE_CHECKING:
    from zar_ray.adaptation.base import Decision

# What a column holds; unknown is null: labels of unlabelled videos, all of the decision of failed ones. Lists are large
# ones: four million videos have more than 2^31 values of a feature.
Nats = Annotated[float | None, pa.float32()]
Plain = Annotated[float | None, pa.float32()]
Flag = Annotated[bool | None, pa.bool_()]
Numbers = Annotated[tuple[int, ...] | None, pa.large_list(pa.int32())]
Values = Annotated[tuple[float, ...] | None, pa.large_list(pa.float32())]
Feature = Annotated[tuple[float, ...] | None, pa.large_list(pa.float16())]


@dataclass(frozen=True)
class ResultRow:
    """One row of the result table; made by `from_decision` or `failed`.

    Attributes:
        video_id: Path of the video relative to its dataset's root.
        case_id: What was run on it, see `zar_ray.results.case.Case`.
        method: The case's test-time method.
        model: What the run calls the model.
        corruption: What was done to the frames, NAME:SEVERITY; None where nothing was.
        setting: What the run calls the setting; of a case that several settings have in common, the first of them.
        label_id: Index of the right class among the run's class names; None when the video has no label.
        label: Its name; of a video whose class was held out of the class names that, without `label_id`.
        group: What other videos of its dataset share with it, see `zar_ray.data.manifest.VideoRow`.
        labels: Indices of all right classes, in a protocol where a video may show several; then the row has no
            `label_id`, and `scores_before` and `scores_after`.
        top5_before: Class ids by falling score before adaptation, min(5, K) of them; equal scores by rising id.
        top5_after: The same after adaptation.
        top5_scores_before: Their softmax probabilities over all K classes.
        top5_scores_after: The same after adaptation.
        correct_before: Whether the first of them is the label; None without a label.
        correct_after: The same after adaptation.
        correct5_before: Whether the label is among them; None without a label.
        correct5_after: The same after adaptation.
        scores_before: Logits of all K classes before adaptation, which average precision is made of.
        scores_after: The same after adaptation.
        nll_before: Minus the logarithm of the right class's probability, in nats; None without a label.
        nll_after: The same after adaptation.
        brier_before: Squared distance of the probabilities from the right class's 1 and all others' 0, from 0 to 2;
            None without a label.
        brier_after: The same after adaptation.
        energy_before: Logarithm of the sum of the exponentials of all K logits, the negative of what Liu et al. call
            the energy (NeurIPS 2020).
        energy_after: The same after adaptation.
        entropy_before: Entropy of the evaluation view's probabilities in nats, before adaptation.
        entropy_after: The same after adaptation.
        view_entropies: Entropy of each view in nats, before adaptation; None for a method without views.
        selected_views: Views used for the update, by rising entropy.
        video_feature: float16 (D,), L2-normalised, what the encoder makes of the evaluation view; the mean of several.
            In the row of the first case of each model only.
        views: Number of views adapted on, repeated ones included; 0 for a method without views.
        images: Distinct (frame, crop) images of the views that this case looks at, and those that it encoded itself.
        text_tokens: Tokens of the contexts that this case put through the text tower for this video: what is the same
            for all videos, such as the untuned prompts' texts, is not among them.
        gradient_tokens: Tokens that its gradients went back through there.
        images_encoded: Those that went through the image encoder for this video, for all cases together; 0 where they
            were stored.
        frames: Frames of the video.
        frames_decoded: Distinct frames read from it.
        bytes_shipped: Bytes of pixels sent from the decoding to the adapting process, for all cases together.
        seconds_decode: Wall seconds to open, read and resize; of the video, not of the case.
        seconds_encode: Wall seconds to encode its images; of the video, not of the case.
        seconds_adapt: Wall seconds of this case's adaptation and decision.
        seconds_case: These and its images' share of `seconds_encode`: what the case by itself costs.
        peak_memory: The most bytes that its worker had in use meanwhile, on the GPU where there is one, the model
            included.
        decoder: Which decoder read it.
        worker: The adapting process, as host:pid.
        warning: What was odd about a video that was used all the same, such as a damaged tail.
        error: Why there is no decision; None for a finished row.
        error_stage: Where it failed, see `zar_ray.errors.VideoError`.
        recorded_at: When the row was made, in seconds since 1970 (UTC).
    """

    video_id: Name
    case_id: Name
    method: Name
    model: Text = None
    corruption: Text = None
    setting: Text = None
    label_id: Number = None
    label: Text = None
    group: Text = None
    labels: Numbers = None
    top5_before: Numbers = None
    top5_after: Numbers = None
    top5_scores_before: Values = None
    top5_scores_after: Values = None
    correct_before: Flag = None
    correct_after: Flag = None
    correct5_before: Flag = None
    correct5_after: Flag = None
    scores_before: Values = None
    scores_after: Values = None
    nll_before: Nats = None
    nll_after: Nats = None
    brier_before: Plain = None
    brier_after: Plain = None
    energy_before: Nats = None
    energy_after: Nats = None
    entropy_before: Nats = None
    entropy_after: Nats = None
    view_entropies: Values = None
    selected_views: Numbers = None
    video_feature: Feature = None
    views: Number = None
    images: Number = None
    text_tokens: Bytes = None
    gradient_tokens: Bytes = None
    images_encoded: Number = None
    frames: Number = None
    frames_decoded: Number = None
    bytes_shipped: Bytes = None
    seconds_decode: Real = None
    seconds_encode: Real = None
    seconds_adapt: Real = None
    seconds_case: Real = None
    peak_memory: Bytes = None
    decoder: Text = None
    worker: Text = None
    warning: Text = None
    error: Text = None
    error_stage: Text = None
    recorded_at: Annotated[float, pa.float64()] = field(default_factory=time.time)

    @classmethod
    def from_decision(cls, video_id: str, case_id: str, method: str, decision: Decision, **facts: Any) -> ResultRow:
        """Makes the row of a finished case, and of attributes of the same names as in `facts`.

        With ``label_id`` the row says whether the decision is right, with ``labels`` it holds all scores.

        Raises:
            VideoError: The logits are not finite (stage ``adapt``): no ranking of them would mean anything.
        """
        label_id, ranked = facts.get("label_id"), {}
        for when, logits in (("before", decision.logits_before), ("after", decision.logits_after)):
            values = logits.detach().cpu().double()
            if not values.isfinite().all():
                raise VideoError(f"the logits {when} adaptation are not finite; try --precision fp32", stage="adapt")
            log_probabilities = values.log_softmax(dim=-1)
            probabilities = log_probabilities.exp()
            top = values.sort(descending=True, stable=True).indices[:5]
            top5, certain = tuple(top.tolist()), certainties(values)
            ranked |= {f"top5_{when}": top5, f"top5_scores_{when}": tuple(probabilities[top].tolist())}
            ranked |= {f"entropy_{when}": max(-certain["entropy"], 0.0), f"energy_{when}": certain["energy"]}
            if label_id is not None:
                nll, right = -log_probabilities[label_id].item(), probabilities[label_id].item()
                # Of a sure and right decision, rounding must not make it negative.
                brier = max((probabilities**2).sum().item() - 2 * right + 1, 0.0)
                ranked |= {f"nll_{when}": nll, f"brier_{when}": brier}
                ranked |= {f"correct_{when}": top5[0] == label_id, f"correct5_{when}": label_id in top5}
            if facts.get("labels") is not None:
                ranked[f"scores_{when}"] = tuple(logits.tolist())
        entropies = None if decision.view_entropies is None else tuple(decision.view_entropies.detach().cpu().tolist())
        selected = None if decision.selected is None else tuple(decision.selected.detach().cpu().tolist())
        return cls(
            video_id=video_id,
            case_id=case_id,
            method=method,
            view_entropies=entropies,
            selected_views=selected,
            views=len(entropies or ()),
            **ranked,
            **facts,
        )

    @classmethod
    def failed(cls, video_id: str, case_id: str, method: str, *, error: str, stage: str, **facts: Any) -> ResultRow:
        """Makes the row of a case without a decision; why there is none is put on one line.

        The stage is where it failed, see `zar_ray.errors.VideoError`; `facts` are attributes of the same names.
        """
        message = " ".join(error.split()) or "unknown error"
        return cls(video_id=video_id, case_id=case_id, method=method, error=message, error_stage=stage, **facts)

    @property
    def finished(self) -> bool:
        """Whether there is a decision."""
        return self.error is None


RESULT_SCHEMA = schema_of(ResultRow)
"""Columns of the result table: the attributes of `ResultRow`."""

KEYS = ("video_id", "case_id")
"""Columns that tell a row from all others."""

FLAT_COLUMNS = tuple(field.name for field in RESULT_SCHEMA if not pa.types.is_large_list(field.type))
"""Columns without lists, which are most of a table's bytes."""


def to_table(rows: Iterable[ResultRow]) -> pa.Table:
    """Puts rows into a table of `RESULT_SCHEMA`; no rows make an empty table."""
    return rows_to_table(rows, RESULT_SCHEMA)


def to_rows(table: pa.Table) -> list[ResultRow]:
    """Reads a table of `RESULT_SCHEMA` back into rows."""
    return table_to_rows(table.select(RESULT_SCHEMA.names), ResultRow)


def deduplicate(table: pa.Table) -> pa.Table:
    """Leaves one row per (video_id, case_id) of a table of `RESULT_SCHEMA`, sorted by them.

    A finished row wins over a failed one; among equals the one recorded last, and among rows recorded at the same
    instant the order of their values decides.  The choice therefore does not depend on the order of `table`.
    """
    table = table.select(RESULT_SCHEMA.names).cast(RESULT_SCHEMA)
    flat = table.select(FLAT_COLUMNS).append_column("failed", table["error"].is_valid())
    rest = [name for name in flat.column_names if name not in {*KEYS, "failed", "recorded_at"}]
    rising = [(name, "ascending") for name in [*KEYS, "failed"]]
    by = [*rising, ("recorded_at", "descending"), *((name, "ascending") for name in rest)]
    order = pc.call_function("sort_indices", [flat], pc.SortOptions(by))
    of_keys = [table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in KEYS]
    codes = np.stack(of_keys)[:, order.to_numpy()]
    first = np.append(True, (codes[:, 1:] != codes[:, :-1]).any(axis=0))[: table.num_rows]
    # The lists are most of the memory: they are copied once.
    return table.take(order.filter(pa.array(first))).combine_chunks()
