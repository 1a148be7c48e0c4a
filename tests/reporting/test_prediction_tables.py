"""``predictions.csv``: the result table with class names, as any program reads it."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pytest
from finished_runs import write_finished_run

from zar_ray.reporting.prediction_tables import PREDICTIONS_CSV, classes_of, named_rows, write_predictions_csv
from zar_ray.reporting.run_data import StudyData

NAMES = ("=1+1", "a, b", 'say "hi"', "ü\n")


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_file_holds_every_row_with_names_and_no_formula(tmp_path, multi_label):
    cells = {(("model", "-one"),): {}, (("model", "two"),): {"seed": 2}}
    folder = write_finished_run(tmp_path / "run", cells=cells, classes=NAMES, videos=9, multi_label=multi_label)
    data = StudyData.read(str(folder))
    classes = classes_of(data.record, {split.name: split.class_names for split in data.splits})
    write_predictions_csv(data.storage, data.stored, classes)
    with Path(folder / PREDICTIONS_CSV).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = pa.concat_tables(named_rows(data.stored, classes)).to_pylist()
    assert len(rows) == len(expected) == 9 * 2 * 2
    assert {row["cell"] for row in rows} == {"'-one", "two"}
    for row, one in zip(rows, expected, strict=True):
        right = one["labels"] if multi_label else one["label"]
        shown = row["labels"] if multi_label else row["label"]
        assert shown == ("" if right is None else f"'{right}" if right.startswith("=") else right)
        assert (row["predicted_after"] == "") == (one["error"] is not None) == (row["error"] != "")
        if one["error"] is None:
            assert row["predicted_after"].removeprefix("'") == one["predicted_after"]
            assert float(row["confidence_after"]) == pytest.approx(one["confidence_after"], rel=1e-6)
    assert {one["predicted_before"] for one in expected} - {None} <= set(NAMES)
