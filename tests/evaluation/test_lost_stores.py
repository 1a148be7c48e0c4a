"""A store that does not answer is no video's fault."""

import pyarrow as pa
import pytest

from zar_ray.errors import StorageError, VideoError
from zar_ray.evaluation import preflight
from zar_ray.evaluation.spec import Failure, attempt

PATHS = ["s3://a/1.mp4", "s3://a/2.mp4", "/local/3.mp4", "gs://a/4.mp4", "http://h:80/5.mp4"]


def test_each_store_of_lost_videos_is_asked_once_and_a_dead_one_stops_the_run(monkeypatch):
    asked, dead = [], []

    def state(self):
        asked.append(self.path)
        if self.path in dead:
            raise StorageError(f"{self.path}: cannot be looked at")
        raise VideoError("no such file")

    monkeypatch.setattr(preflight.VideoFile, "state", state)
    preflight.check_stores(pa.table({"path": PATHS}))
    assert sorted(asked) == ["gs://a/4.mp4", "http://h:80/5.mp4", "s3://a/2.mp4"]
    dead.append("gs://a/4.mp4")
    with pytest.raises(StorageError, match=r"gs://a/4\.mp4"):
        preflight.check_stores(pa.table({"path": PATHS}))


def test_a_stage_lets_a_dead_store_through():
    def work():
        raise StorageError("s3://a: cannot be read")

    with pytest.raises(StorageError):
        attempt("decode", work)
    assert isinstance(attempt("decode", lambda: 1 / 0), Failure)
