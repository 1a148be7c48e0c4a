"""The inputs on which something was wrong, as commands and the service take them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from zar_ray.data.listing import list_folder
from zar_ray.data.probing import probe_listing
from zar_ray.errors import VideoError
from zar_ray.serving.options import LimitConfig
from zar_ray.video.options import ViewConfig
from zar_ray.video.reading import has_decord
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing

pytestmark = pytest.mark.process

# Frames and rate of those that are read, the beginning of the error of the others.
READ = {"freh6.ts": (100, 25.0), "vp8_lag8.webm": (60, 30.0), "nvop12.avi": (60, 25.0)}
REFUSED = {
    "audio_with_cover.mp4": "has no video stream",
    "aborts_decord.avi": "decoding fails near frame 0 of 58: ",
    "strip2000x4.mp4": "100 frames of 112000×224 pixels after resizing take 7526400000 bytes; the limit is ",
}
VIEWS = {"frames": 4, "eval_frames": 100, "short_side": 224}


@pytest.fixture
def folder(shared, make_video, tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for name in (*READ, *REFUSED):
        shutil.copyfile(shared / "videos" / "hard" / name, tmp_path / "videos" / "a" / name)
    make_video(tmp_path / "videos" / "b" / "good.mp4")
    return tmp_path / "videos"


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"] if has_decord() else ["auto", "pyav"])
def test_an_index_has_what_is_shown(folder, decoder):
    rows = {row.stem: row for row in probe_listing(list_folder(folder), decoder, workers=1).rows()}
    assert rows["good"].error is None
    assert rows["audio_with_cover"].error == "has no video stream"
    for name, (frames, fps) in READ.items():
        row = rows[name.partition(".")[0]]
        if decoder == "decord":
            assert str(row.error).startswith("decord ")
        else:
            assert (row.error, row.frames, row.fps, row.decoder) == (None, frames, fps, "pyav")


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_an_evaluation_reads_them_or_says_why_not(evaluate, folder, decoder):
    ran = evaluate(folder, here=True, name=f"hard-{decoder}", max_failed=1.0, decoder=decoder, views=VIEWS)
    rows = {row.video_id.rpartition("/")[2]: row for row in ran.rows}
    for name in (*READ, "good.mp4"):
        assert (rows[name].error, rows[name].warning) == (None, None), name
    for name, reason in REFUSED.items():
        assert str(rows[name].error).startswith(reason), name


def test_the_service_and_predict_decode_them_one_after_another(folder):
    """By path and as bytes, under the limits of both."""
    for limits in (None, LimitConfig().decoding):
        with DecoderProcess(limits) as decoder:
            process = decoder.pid
            for path in sorted(folder.glob("a/*")):
                request = DecodeRequest(path.name, ViewConfig(**VIEWS), 0, Preprocessing(32), needs_views=True)
                for source in (path, np.fromfile(path, np.uint8)):
                    if path.name in READ:
                        found = decoder.decode(source, request, 60)
                        assert (found.info.frames, found.info.fps, found.warning) == (*READ[path.name], None)
                    else:
                        # this one also says that it lasts for decades, which the service looks at first
                        reason = REFUSED[path.name].partition(";")[0]
                        with pytest.raises(VideoError, match=f"^({reason}|lasts 1534497076.4 s)"):
                            decoder.decode(source, request, 60)
            assert decoder.pid == process
