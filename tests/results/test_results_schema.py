"""The result table's rows say what the decision said, and parts of it become one table in one way only."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy

from zar_ray.adaptation.base import Decision
from zar_ray.errors import VideoError
from zar_ray.results.rows import RESULT_SCHEMA, ResultRow, deduplicate, to_rows, to_table


def decision(before, after=None, view_entropies=None, selected=None) -> Decision:
    return Decision(
        logits_before=torch.tensor(before),
        logits_after=torch.tensor(before if after is None else after),
        view_entropies=None if view_entropies is None else torch.tensor(view_entropies),
        selected=None if selected is None else torch.tensor(selected),
        losses=None,
    )


def test_a_row_has_the_columns_of_the_schema():
    assert [field.name for field in dataclasses.fields(ResultRow)] == RESULT_SCHEMA.names


def test_a_decision_is_ranked_scored_and_compared_with_its_label():
    before, after = [1.0, 4.0, 2.0, 3.0, 0.0, -1.0], [1.0, 2.0, 9.0, 3.0, 0.0, 8.0]
    row = ResultRow.from_decision(
        "a/b.mp4", "zar", "zar", decision(before, after, [0.5, 0.25, 0.75], [1, 0]), label_id=5, label="jump"
    )
    assert row.top5_before == (1, 3, 2, 0, 4)
    assert row.top5_after == (2, 5, 3, 1, 0)
    assert row.top5_scores_before == pytest.approx(np.sort(softmax(before))[::-1][:5])
    assert row.top5_scores_after == pytest.approx(np.sort(softmax(after))[::-1][:5])
    assert row.entropy_before == pytest.approx(entropy(softmax(before)))
    assert row.entropy_after == pytest.approx(entropy(softmax(after)))
    assert (row.correct_before, row.correct5_before) == (False, False)
    assert (row.correct_after, row.correct5_after) == (False, True)
    assert (row.view_entropies, row.selected_views, row.views) == ((0.5, 0.25, 0.75), (1, 0), 3)
    assert row.finished
    assert row.error is None


def test_without_a_label_nothing_is_right_or_wrong():
    row = ResultRow.from_decision("v", "zero_shot", "zero_shot", decision([1.0, 2.0]))
    assert {row.correct_before, row.correct_after, row.correct5_before, row.correct5_after} == {None}
    assert row.top5_before == (1, 0)
    assert (row.view_entropies, row.selected_views, row.views) == (None, None, 0)


def test_label_zero_is_a_label():
    row = ResultRow.from_decision("v", "c", "m", decision([2.0, 1.0]), label_id=0, label="first")
    assert row.correct_before is True


def test_equal_scores_rank_by_class_id():
    assert ResultRow.from_decision("v", "c", "m", decision([0.0, 1.0, 1.0] * 99)).top5_after == (1, 2, 4, 5, 7)


def test_large_logits_give_finite_scores():
    row = ResultRow.from_decision("v", "c", "m", decision([5000.0, -5000.0]))
    assert row.top5_scores_before == (1.0, 0.0)
    assert row.entropy_before == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_a_failure_not_a_prediction(bad):
    with pytest.raises(VideoError, match="not finite") as caught:
        ResultRow.from_decision("v", "c", "m", decision([1.0, 2.0], [1.0, bad]))
    assert caught.value.stage == "adapt"


def test_a_failed_row_carries_its_reason_on_one_line_and_its_label():
    row = ResultRow.failed("v", "c", "m", error="broken\n  pipe", stage="open", label_id=3, label="run", frames=9)
    assert (row.error, row.error_stage, row.label_id, row.label, row.frames) == ("broken pipe", "open", 3, "run", 9)
    assert not row.finished
    assert row.correct_after is None
    assert row.top5_after is None
    assert ResultRow.failed("v", "c", "m", error="", stage="open").error == "unknown error"


def test_rows_survive_parquet(tmp_path):
    rows = [
        ResultRow.from_decision("a", "zar", "zar", decision([0.0, 1.0], view_entropies=[0.5], selected=[0]), frames=7),
        ResultRow.failed("b", "zar", "zar", error="gone", stage="open"),
    ]
    pq.write_table(to_table(rows), tmp_path / "part.parquet")
    table = pq.read_table(tmp_path / "part.parquet")
    assert table.schema.equals(RESULT_SCHEMA)
    assert to_table(to_rows(table)).equals(to_table(rows))
    assert to_rows(table)[1] == rows[1]


def test_no_rows_are_a_table_too():
    assert to_table([]).schema.equals(RESULT_SCHEMA)
    assert deduplicate(to_table([])).num_rows == 0


def row(video: str, case: str = "zar", at: float = 0.0, error: str | None = None, **values) -> ResultRow:
    stage = None if error is None else "open"
    return ResultRow(video, case, case, error=error, error_stage=stage, recorded_at=at, **values)


def test_a_finished_row_wins_over_a_later_failure():
    table = deduplicate(to_table([row("a", at=1.0), row("a", at=2.0, error="x")]))
    assert to_rows(table) == [row("a", at=1.0)]


def test_among_equals_the_later_row_wins():
    table = deduplicate(to_table([row("a", at=2.0, error="late"), row("a", at=1.0, error="early"), row("b")]))
    assert [one.error for one in to_rows(table)] == ["late", None]


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(["a", "b", "a/c"]),
        st.sampled_from(["zar", "zero_shot"]),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from([None, "x", "y"]),
        label_id=st.sampled_from([None, 0, 1]),
        worker=st.sampled_from([None, "h:1", "h:2"]),
    ),
    max_size=12,
)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_parts(rows: list[ResultRow], shuffle: random.Random):
    chosen = deduplicate(to_table(rows))
    keys = list(zip(chosen["video_id"].to_pylist(), chosen["case_id"].to_pylist(), strict=True))
    assert keys == sorted({(one.video_id, one.case_id) for one in rows})
    assert all(one in rows for one in to_rows(chosen))

    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    middle = len(rows) // 2
    parts = pa.concat_tables([to_table(shuffled[:middle]), to_table(shuffled[middle:])])
    assert deduplicate(parts).equals(chosen)
    assert deduplicate(pa.concat_tables([chosen, parts])).equals(chosen)
