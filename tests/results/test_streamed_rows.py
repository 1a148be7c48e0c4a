"""A table that is never whole in memory is the one that would be: whatever its parts, and however little is read."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.errors import RunError
from zar_ray.results import folder as module
from zar_ray.results import metrics, stored_rows
from zar_ray.results.case_rows import CASE_COLUMNS, CaseRows
from zar_ray.results.folder import PARTS, RunFolder
from zar_ray.results.rows import RESULT_SCHEMA, ResultRow, deduplicate, to_table
from zar_ray.results.stored_rows import PREDICTIONS, write_rows
from zar_ray.storage import Storage

CASES = ("zar-0", "zar-1", "zero_shot-0")
LISTS = [field.name for field in RESULT_SCHEMA if pa.types.is_large_list(field.type)]


def some_rows(videos: list[str], seed: int, values: int = 4) -> pa.Table:
    """A row of each video, a few of them failed or the same as others, with lists of many values."""
    rng = np.random.default_rng(seed)
    rows = []
    for video in videos:
        case, at = CASES[rng.integers(len(CASES))], float(rng.integers(3))
        if rng.random() < 0.2:
            row = ResultRow.failed(video, case, "zar", error=f"broken {rng.integers(2)}", stage="decode")
        else:
            top5 = tuple(map(int, rng.permutation(9)[:5]))
            scores = tuple(map(float, rng.random(values)))
            row = ResultRow(
                *(video, case, "zar"),
                label_id=int(rng.integers(9)),
                top5_before=top5,
                top5_after=top5,
                top5_scores_before=scores[:5],
                top5_scores_after=scores[:5],
                correct_before=True,
                correct_after=bool(rng.integers(2)),
                scores_after=None if rng.random() < 0.5 else scores,
                video_feature=None if rng.random() < 0.5 else scores,
                seconds_adapt=float(rng.random()),
            )
        rows.append(replace(row, recorded_at=at))
    return to_table(rows)


# Names that sort in other ways than their lengths or their first letters do.
video_ids = st.sampled_from(
    [f"{a}{b}" for a, b in itertools.product(("a", "ä/", "b/b", "𝄞", "Z"), ("", "0", "10", "9"))]
)
parts = st.lists(st.lists(video_ids, min_size=1, max_size=9), max_size=7)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    parts, st.integers(0, 9), st.sampled_from([1, 700, 2500, 2**25]), st.integers(0, 7), st.sampled_from([2, 5, 512])
)
def test_a_streamed_table_is_the_whole_one(tmp_path_factory, parts, seed, at_once, earlier, files_at_once):
    """With duplicates in and across parts, a session before, parts put together on the way, and tiny row groups."""
    place = tmp_path_factory.mktemp("run")
    run, tables = RunFolder(Storage(str(place))), [some_rows(one, seed + n) for n, one in enumerate(parts)]
    expected = deduplicate(pa.concat_tables(tables) if tables else RESULT_SCHEMA.empty_table())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_RANGE_BYTES", at_once)
        patch.setattr(module, "PARTS_AT_ONCE", files_at_once)
        for number, table in enumerate(tables):
            run.add(table)
            if number == earlier:
                run.gather()
            if number % 3 == 2:
                run.compact()
        assert run.results().equals(expected)
        stored = run.gather()
        assert (run.storage.names(PARTS), list(run.row_files())) == ([], [PREDICTIONS])
        assert stored.read(RESULT_SCHEMA.names).equals(expected)
        assert run.gather().read(["error", "video_id"]).equals(expected.select(["error", "video_id"]))
        of_case = stored.of(CASES[:2]).read(["scores_after"], pc.field("scores_after").is_valid())
        chosen = expected.filter(pc.field("case_id").isin(CASES[:2]) & pc.field("scores_after").is_valid())
        assert of_case.equals(chosen.select(["scores_after"]))
        run.forget_failed()
        failed = expected.filter(pc.field("error").is_valid())["video_id"]
        kept = expected.filter(~pc.field("video_id").isin(failed.combine_chunks()))
        assert run.results().equals(kept)
    shutil.rmtree(place)


def test_a_damaged_part_stops_it_and_what_was_there_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RANGE_BYTES", 500)
    run = RunFolder(Storage(str(tmp_path)))
    for number in range(6):
        run.add(some_rows([f"v{number}{one}" for one in range(5)], number))
    run.gather()
    before, content = run.results(), run.storage.read(PREDICTIONS)
    run.add(some_rows(["w"], 9))
    run.storage.write(f"{PARTS}/z.parquet", content[:400])
    with pytest.raises(RunError, match=r"z\.parquet: is damaged"):
        run.gather()
    assert run.storage.read(PREDICTIONS) == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [PARTS, PREDICTIONS]
    run.storage.delete(f"{PARTS}/z.parquet")
    assert len(run.gather().read(["video_id"])) == len(before) + 1


def test_metrics_read_no_lists_but_those_of_the_best_five(tmp_path, monkeypatch):
    run = RunFolder(Storage(str(tmp_path)))
    run.add(some_rows([f"v{one}" for one in range(40)], 3))
    stored, read = run.gather(), set()
    original = pq.ParquetFile.read_row_group

    def noted(file, number, columns):
        read.update(columns)
        return original(file, number, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    whole = run.results()
    read.clear()
    counted = stored.read(metrics.COUNT_COLUMNS)
    assert metrics.video_counts(counted) == metrics.video_counts(whole)
    assert metrics.failure_groups(counted) == metrics.failure_groups(whole)
    assert metrics.costs(stored.read(metrics.COST_COLUMNS)) == metrics.costs(whole)
    for case in CASES:
        table = stored.of([case]).read(metrics.columns_of_case(multi_label=False))
        assert metrics.case_metrics(table, case, "zar", 9) == metrics.case_metrics(whole, case, "zar", 9)
        rows = CaseRows.of(stored.of([case]).read(CASE_COLUMNS), case, 9)
        assert (rows.after == CaseRows.of(whole, case, 9).after).all()
    assert read.intersection(LISTS) == {
        "labels",
        *(f"top5{of}_{at}" for of in ("", "_scores") for at in ("before", "after")),
    }


@pytest.mark.slow
def test_rows_are_sorted_in_less_memory_than_they_take(tmp_path, monkeypatch):
    """Sixty megabytes of features by half a megabyte, as a million videos' gigabytes go by some megabytes."""
    monkeypatch.setattr(module, "_RANGE_BYTES", 2**19)
    run, order = RunFolder(Storage(str(tmp_path))), np.random.default_rng(0).permutation(600)
    for some in np.array_split(order, 20):
        rows = some_rows([f"v{one:03}" for one in some], int(some[0]))
        values = np.random.default_rng(1).random(len(some) * 50_000, np.float32).astype(np.float16)
        feature = pa.LargeListArray.from_arrays(pa.array(np.arange(len(some) + 1) * 50_000), values)
        index = RESULT_SCHEMA.get_field_index("video_feature")
        run.add(rows.set_column(index, RESULT_SCHEMA.field(index), feature))
    before = pa.total_allocated_bytes()
    peak, pieces = 0, []
    for piece in run._in_order():
        peak = max(peak, pa.total_allocated_bytes() - before)
        pieces.append(piece["video_id"].to_pylist())
    assert len(pieces) > 50
    assert list(itertools.chain.from_iterable(pieces)) == [f"v{one:03}" for one in range(600)]
    assert peak < 2**24


@pytest.mark.slow
@pytest.mark.parametrize(("width", "ahead"), [(1, 8), (2**10, 8), (2**13, 3), (2**17, 1)])
def test_of_wide_rows_fewer_pieces_are_read_ahead(tmp_path, monkeypatch, width, ahead):
    monkeypatch.setattr(stored_rows, "_AHEAD_BYTES", 2**19)
    tables = []
    for name in "abcdefghij":
        rows = some_rows([name], 0).slice(0, 1)
        feature = pa.LargeListArray.from_arrays(pa.array([0, 8 * width]), np.arange(8 * width).astype(np.float16))
        index = RESULT_SCHEMA.get_field_index("video_feature")
        tables.append(rows.set_column(index, RESULT_SCHEMA.field(index), feature))
    write_rows(tmp_path / "rows.parquet", tables)
    known = pq.read_metadata(tmp_path / "rows.parquet")
    assert known.num_row_groups == 10
    assert stored_rows._pieces_ahead(known, ["video_id", "video_feature"]) == ahead
    assert stored_rows._pieces_ahead(known, ["video_id"]) == 8
