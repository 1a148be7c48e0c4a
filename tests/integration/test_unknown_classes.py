"""Classes that are held out, from the command to the tables: stream methods, several models' settings, resumption."""

from __future__ import annotations

import pytest

from zar_ray.errors import RunError

pytestmark = [pytest.mark.slow, pytest.mark.process]


def test_a_run_with_unknown_classes_is_one_of_its_own_and_goes_on(evaluate, video_folder, tmp_path):
    named = sorted(path.name for path in video_folder.iterdir() if path.is_dir())
    options = {"here": True, "name": "held", "method": ["zero_shot", "zar", "tda"], "unknown_classes": named[0]}
    ran = evaluate(video_folder, **options)
    whole, rows = ran.record.whole, ran.folder.results().to_pylist()
    unknown = {row["video_id"] for row in rows if row["label_id"] is None and row["label"] == named[0]}
    assert unknown
    assert {row["video_id"] for row in rows if row["label"] == named[0]} == unknown
    assert whole.unknown == len(unknown)
    for case in whole.cases:
        assert (case.classes, case.unknown) == (len(named) - 1, len(unknown))
        assert case.labelled + case.unknown == case.videos == whole.videos
        assert case.headline.videos == case.labelled
        assert case.trust["auroc_max_probability"].after is not None
    assert f"{len(unknown)} of unknown classes" in ran.printed
    again = evaluate(video_folder, **options, resume=True)
    assert again.record.whole.resumed == whole.videos
    assert again.record.whole.cases == whole.cases
    with pytest.raises(RunError, match="holds a run with other settings"):
        evaluate(video_folder, **{**options, "unknown_classes": named[1]})
