"""What is shown is what is counted and read, whatever the packets are: fields, hidden and repeated pictures, covers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import av.error
import hard_videos
import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from zar_ray.data.listing import list_folder
from zar_ray.data.probing import probe_listing
from zar_ray.errors import VideoError, VideoTooLargeError
from zar_ray.serving.options import LimitConfig
from zar_ray.training.options import TrainConfig
from zar_ray.training.samples import Sample, SampleReader
from zar_ray.video.decoding import decode_video
from zar_ray.video.inspection import inspect_video
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.reading import DecordError, has_decord, open_video, probe_video
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing
from zar_ray.video.windows import WindowCut

DECODERS = ("auto", "pyav", "decord") if has_decord() else ("auto", "pyav")
few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def readings(path: Path) -> dict[str, list[int]]:
    """The numbers of all frames by each decoder that takes the file, each of which counts them right."""
    found = {}
    for decoder in DECODERS:
        with contextlib.ExitStack() as stack:
            if decoder == "decord":
                # before it has given frames
                stack.enter_context(contextlib.suppress(DecordError))
            reader = stack.enter_context(open_video(path, decoder))
            pictures = reader.read(range(reader.info.frames))
            found[decoder] = [hard_videos.number_of(picture) for picture in pictures]
            assert reader.warning is None
    return found


def assert_read_as(path: Path, numbers: list[int]) -> None:
    """Every decoder gives these frames, also where single ones are wanted."""
    for decoder, read in readings(path).items():
        assert read == numbers, decoder
    some = sorted({0, len(numbers) // 3, len(numbers) // 2, len(numbers) - 1})
    with open_video(path) as reader:
        assert [hard_videos.number_of(picture) for picture in reader.read(some)] == [numbers[index] for index in some]


@few
@given(
    fields=st.lists(st.booleans(), min_size=2, max_size=20),
    suffix=st.sampled_from([".ts", ".mp4", ".mkv", ".mov", ".flv", ".h264"]),
    begin=st.integers(0, 6),
)
def test_two_fields_are_one_frame(tmp_path, fields, suffix, begin):
    """Whether they come from the first picture on, or headers on the way allow them."""
    begin = begin if suffix in (".ts", ".h264") and begin < len(fields) else 0
    fields = [False] * begin + fields[begin:]
    path = hard_videos.write_h264(tmp_path / f"fields{suffix}", fields, begin)
    assert_read_as(path, list(range(len(fields))))
    assert inspect_video(path).shown.packets == len(fields) + sum(fields)


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv", ".mov"])
def test_fields_are_not_counted_as_frames_a_second(tmp_path, suffix):
    info = probe_video(hard_videos.write_h264(tmp_path / f"fields{suffix}", [True] * 20))
    assert (info.frames, info.fps) == (20, pytest.approx(25, rel=1e-3))


@few
@given(
    hidden=st.sets(st.integers(1, 18), max_size=12),
    kind=st.sampled_from(
        [("libvpx", 12, suffix) for suffix in (".webm", ".mkv", ".avi", ".ivf")]
        + [("libvpx-vp9", 1, suffix) for suffix in (".webm", ".mp4", ".avi", ".ivf")]
    ),
)
def test_hidden_pictures_are_no_frames(tmp_path, hidden, kind):
    codec, gop, suffix = kind
    shown = [number not in hidden for number in range(20)]
    try:
        path = hard_videos.write_hidden(tmp_path / f"hidden{suffix}", shown, codec, gop)
    except av.error.InvalidDataError:  # the container's writer refuses some of these packets
        reject()
    assert_read_as(path, [number for number in range(20) if shown[number]])


def repeated(count: int, repeats: set[int]) -> list[int]:
    return [max(shown for shown in range(number + 1) if shown not in repeats) for number in range(count)]


@few
@given(
    repeats=st.sets(st.integers(1, 39), max_size=15),
    suffix=st.sampled_from([".avi", ".mp4", ".mkv", ".mov"]),
    gop=st.sampled_from([1, 5, 12]),
)
def test_a_picture_that_is_not_coded_repeats_the_one_before(tmp_path, repeats, suffix, gop):
    path = hard_videos.write_mpeg4(tmp_path / f"repeats{suffix}", 40, repeats, gop)
    assert_read_as(path, repeated(40, repeats))


@few
@given(rests=st.sets(st.integers(1, 38), max_size=15), codec=st.sampled_from(["mjpeg", "mpeg4"]))
def test_avi_frames_without_content_repeat_the_one_before(tmp_path, rests, codec):
    path = hard_videos.write_rests(tmp_path / "rests.avi", 40, rests, codec)
    assert_read_as(path, repeated(40, rests))


def test_repeats_are_no_damage_even_if_they_are_many(tmp_path):
    """A tenth of a video may be missing, but nothing is missing here."""
    repeats = {number for number in range(40) if number % 3}
    assert_read_as(hard_videos.write_mpeg4(tmp_path / "many.avi", 40, repeats), repeated(40, repeats))


@pytest.mark.parametrize(
    ("name", "audio"), [("a.mp4", "aac"), ("a.mov", "aac"), ("a.mp3", "libmp3lame"), ("a.flac", "flac")]
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_picture_that_goes_with_sound_is_no_video(tmp_path, name, audio, decoder):
    path = hard_videos.write_cover(tmp_path / name, audio)
    with pytest.raises(VideoError, match=r"^has no video stream$") as caught:
        probe_video(path, decoder)
    assert caught.value.stage == "open"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_beside_an_attached_picture_is_the_video(tmp_path, name):
    path = hard_videos.write_cover(tmp_path / name, "aac", video=True)
    assert_read_as(path, list(range(10)))
    assert probe_video(path).decoder == "pyav", "decord chooses among streams by rules of its own"


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".avi"])
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_size_that_changes_is_brought_to_the_first_and_said(tmp_path, suffix, decoder):
    path = hard_videos.write_sizes(tmp_path / f"sizes{suffix}", [64, 32, 128])
    with open_video(path, decoder) as reader:
        pictures = list(reader.read(range(reader.info.frames)))
        warning = reader.warning
    assert {picture.shape for picture in pictures} == {(64, 64, 3)}
    numbers = [hard_videos.number_of(picture) for picture in pictures]
    assert np.abs(np.array(numbers) - np.arange(30)).max() <= 1
    assert warning == (
        "the picture's size changes: from frame 10 of 30 on 32×32 pixels are stored; all frames are brought to the "
        "size of the first"
    )


@pytest.mark.process
def test_pixels_that_are_not_square_are_said_and_pictures_not_stretched(tmp_path, capsys):
    from rich.console import Console

    (tmp_path / "a").mkdir()
    hard_videos.write_plain(tmp_path / "a" / "wide.mp4", 5, aspect="4/3")
    hard_videos.write_plain(tmp_path / "a" / "square.mp4", 5, aspect="1")
    assert probe_video(tmp_path / "a" / "wide.mp4").pixel_aspect == pytest.approx(4 / 3)
    manifest = probe_listing(list_folder(tmp_path), workers=1, console=Console(soft_wrap=True), place="here")
    assert {(row.width, row.height) for row in manifest.rows()} == {(64, 64)}
    assert "here: 1 video with pixels that are not square" in capsys.readouterr().out


@few
@given(
    long=st.integers(40, 1500),
    short=st.sampled_from([2, 4, 6, 16]),
    upright=st.booleans(),
    short_side=st.sampled_from([32, 224, 336]),
)
def test_no_shape_takes_more_than_the_limit(tmp_path, long, short, upright, short_side):
    """What is refused is refused before anything is made, and names the limit."""
    long -= long % 2
    size = (short, long) if upright else (long, short)
    path = hard_videos.write_plain(tmp_path / "strip.mkv", 6, codec="mjpeg", size=size)
    limits = DecodeLimits(decoded_bytes=4 * 2**20)
    resized = short_side * (short_side * long // short)
    views = ViewConfig(frames=3, eval_frames=6, rates=(1.0,), views_per_rate=1, short_side=short_side)

    def plan(info):
        return plan_views("a", info.frames, info.height, info.width, views, Preprocessing(32), 0)

    if 3 * 6 * resized > limits.decoded_bytes:
        with pytest.raises(VideoTooLargeError, match=f"the limit is {limits.decoded_bytes} bytes"):
            decode_video(path, plan, limits=limits)
    else:
        assert decode_video(path, plan, limits=limits).frames.nbytes == 3 * 6 * resized


@pytest.mark.process
def test_plans_windows_and_training_name_the_same_frames(tmp_path):
    """Of files of each kind, whole, cut into windows and as training samples."""
    repeats = set(range(3, 40, 7))
    files = {
        hard_videos.write_h264(tmp_path / "fields.ts", [True, False] * 20): list(range(40)),
        hard_videos.write_mpeg4(tmp_path / "repeats.avi", 40, repeats): repeated(40, repeats),
        hard_videos.write_hidden(tmp_path / "hidden.webm", [n % 5 != 3 for n in range(50)]): [
            n for n in range(50) if n % 5 != 3
        ],
    }
    views = ViewConfig(frames=4, eval_frames=8)
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    with DecoderProcess(LimitConfig().decoding) as decoder:
        for path, numbers in files.items():
            request = DecodeRequest(path.name, views, 0, Preprocessing(32), needs_views=True)
            whole = decoder.decode(path, request, 60)
            assert [hard_videos.number_of(frame) for frame in whole.frames] == [numbers[i] for i in whole.plan.frames]
            windows = list(decoder.decode_windows(path, request, WindowCut(0.5), 60))
            assert sum(window.span.frames for window in windows if window.span) == len(numbers) == whole.info.frames
            for window in windows:
                read = [hard_videos.number_of(frame) for frame in window.frames]
                assert read == [numbers[window.first_frame + index] for index in window.plan.frames]
            path.rename(data / "a" / path.name)
    manifest = probe_listing(list_folder(data), workers=1)
    config = TrainConfig(frames=8, cache_frames=40)
    reader = SampleReader(list(manifest.rows()), Preprocessing(32), config)
    for number, row in enumerate(manifest.rows()):
        numbers = next(found for path, found in files.items() if path.name == Path(row.path).name)
        assert row.frames == len(numbers)
        reader.read(Sample(0, number))
        assert [hard_videos.number_of(frame) for frame in reader._cache[number]] == numbers
