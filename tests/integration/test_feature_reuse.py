"""Runs with `--features`: what is stored is neither decoded nor encoded again, and gives the same results."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from zar_ray.errors import RunError
from zar_ray.evaluation.packs import RECORD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(video_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "videos"
    for name in ("red circle/0.mp4", "red circle/1.mp4", "green square/2.mp4", "blue bar/3.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video_folder / name, root / name)
    return root


def test_features_are_computed_once(evaluate, folder, tmp_path, same_results, make_video):
    store = tmp_path / "features"
    first = evaluate(folder, name="first", features=str(store))
    assert "image features: 4 computed and stored" in first.printed
    second = evaluate(folder, here=True, name="second", features=str(store))
    assert "image features: 4 videos read from the store" in second.printed
    same_results(first.table, second.table, same_work=False)
    assert all(row.images_encoded > 0 for row in first.rows)
    for before, row in zip(first.rows, second.rows, strict=True):
        assert (row.images_encoded, row.frames_decoded, row.seconds_encode) == (0, 0, 0)
        assert (row.decoder, row.warning) == (before.decoder, before.warning)
        assert 0 < row.bytes_shipped < before.bytes_shipped

    # damaged and outdated features are computed anew, and it is said
    (damaged,) = store.glob("*/*.pack")
    content = bytearray(damaged.read_bytes())
    content[np.frombuffer(content[-4 * RECORD.itemsize :], RECORD)["offset"][-1] + 5] ^= 1
    damaged.write_bytes(content)
    make_video(folder / "blue bar" / "3.mp4", frames=33, seed=77)
    mended = evaluate(folder, here=True, name="mended", features=str(store))
    assert (
        "image features: 2 videos read from the store, 2 computed anew in place of what could not be used"
        in mended.printed
    )
    assert "blue bar/3.mp4: features computed anew (the file has changed since" in mended.printed
    assert f"{damaged.name}:damaged" in "".join(mended.printed.split())


def test_a_store_that_cannot_be_written_stops_the_run_at_once(evaluate, folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file"):
        evaluate(folder, name="blocked", features=str(tmp_path / "file" / "features"))
