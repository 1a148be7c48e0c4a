"""Reading files: every kind of file, the right frame under every index, and a clear word on what is damaged."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import av.error
import numpy as np
import pytest
from whole_reads import needs_decord, read

from zar_ray.errors import ConfigError, VideoError
from zar_ray.video import reading
from zar_ray.video.inspection import inspect_video
from zar_ray.video.reading import DecordError, DecordReader, has_decord, open_video, probe_video
from zar_ray.video.streams import Deadline, ffmpeg_messages


def open_files(path: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link) == os.path.realpath(path) for link in links)


def test_every_kind_gives_every_frame_under_its_index(sample, number_of):
    frames, info, warning = read(sample.path)
    assert (info.frames, info.height, info.width) == (sample.frames, sample.height, sample.width)
    assert [number_of(frame) for frame in frames] == list(range(sample.frames))
    assert {(frame.shape, frame.dtype) for frame in frames} == {((sample.height, sample.width, 3), np.dtype("uint8"))}
    assert warning is None
    assert info.decoder == "pyav"
    assert info == probe_video(sample.path)
    assert info.duration > 0
    assert info.fps > 0


@pytest.mark.slow
def test_both_decoders_give_the_same_pixels_for_any_indices(sample):
    """Whatever decodes a file, its frames are the same; also where indices jump over key frames to the last one."""
    everything, info, _ = read(sample.path, "pyav")
    last = info.frames - 1
    by_decord = ["decord"] if has_decord() and sample.decoder == "decord" else []
    for indices in ([last], sorted({0, last}), sorted({0, last // 3, last // 2, last}), range(1, info.frames, 3)):
        for decoder in ("auto", "pyav", *by_decord):
            frames, _, _ = read(sample.path, decoder, indices)
            assert len(frames) == len(indices)
            for index, frame in zip(indices, frames, strict=True):
                assert np.array_equal(frame, everything[index])


def test_a_damaged_file_shows_the_same_whichever_frames_are_wanted(tmp_path, write_video):
    """What FFmpeg puts in the place of damage it takes from other frames, be these needless ones."""
    rng, path, hurt = np.random.default_rng(0), tmp_path / "hurt.mkv", 0
    scene = rng.integers(0, 255, (128, 192, 3), dtype=np.uint8)
    moving = [np.ascontiguousarray(scene[2 * n % 64 :][:64, 3 * n % 96 :][:, :96]) for n in range(60)]
    whole = write_video(path, moving, options={"x264-params": "keyint=12:bframes=1:refs=8", "crf": "30"}).read_bytes()
    for _ in range(20):
        content = bytearray(whole)
        content[int(rng.integers(len(whole) // 5, len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            everything, info, _ = read(path, "pyav")
        except VideoError:  # damage that spoils what follows
            continue
        hurt += 1
        for indices in (range(0, info.frames, 2), range(1, info.frames, 3), range(2, info.frames, 17)):
            for index, frame in zip(indices, read(path, "pyav", indices)[0], strict=True):
                assert np.array_equal(frame, everything[index])
    assert hurt > 9


@needs_decord
def test_a_decoder_that_is_asked_for_is_used_or_refused(sample):
    assert read(sample.path, "pyav")[1].decoder == "pyav"
    if sample.decoder == "decord":
        assert read(sample.path, "decord")[1].decoder == "decord"
    else:
        with pytest.raises(VideoError, match="decord") as caught:
            read(sample.path, "decord")
        assert caught.value.stage == "open"


def test_frame_rate_and_duration(samples):
    info = probe_video(samples["long group"].path)
    assert info.fps == pytest.approx(30)
    assert info.duration == pytest.approx(100 / 30, rel=0.01)
    # 30 frames that are shown for 33 ms, and three pauses: slower on average
    variable = probe_video(samples["variable rate"].path)
    assert 10 < variable.fps < 25
    assert variable.duration == pytest.approx(30 / variable.fps, rel=0.05)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_undone(tmp_path, write_video, rotation):
    """A file that says "turn me" is read upright, by both decoders alike."""
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = (220, 30, 30)
    upright[:32, 48:] = (30, 220, 30)
    upright[32:, :48] = (30, 30, 220)
    # a player turns the picture counter-clockwise by the angle
    stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
    path = write_video(tmp_path / "turned.mp4", [stored] * 3, rotation=rotation, options={"crf": "5"})
    results = [read(path, decoder) for decoder in ("decord" if has_decord() else "auto", "pyav")]
    for frames, info, _ in results:
        assert (info.height, info.width) == (64, 96)
        assert len(frames) == 3
        for frame in frames:
            assert frame.shape == (64, 96, 3)
            assert np.abs(frame.astype(int) - upright)[4:28, 4:44].max() < 40
            assert np.abs(frame.astype(int) - upright)[36:60, 52:92].max() < 40
    assert results[0][1].decoder == ("decord" if has_decord() else "pyav")
    assert np.array_equal(results[0][0][0], results[1][0][0])


def test_file_names_are_taken_literally(tmp_path, samples, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b%03d.mp4", "http:x.mp4", "jumping – ü.mp4", "-i.mp4", "no suffix"):
        (tmp_path / name).write_bytes(samples["three frames"].path.read_bytes())
        assert probe_video(name).frames == 3
        assert len(read(name)[0]) == 3
    strange = tmp_path / os.fsdecode(b"\xff\xfe.mp4")
    strange.write_bytes(samples["three frames"].path.read_bytes())
    assert len(read(strange)[0]) == 3


def test_a_cut_end_is_reported(cut, number_of):
    """Data are missing: what is left is read, its last frames stand for what cannot be decoded, and both are said."""
    frames, info, warning = read(cut)
    assert 95 <= info.frames < 100
    numbers = [number_of(frame) for frame in frames]
    assert numbers[:94] == list(range(94))
    assert max(numbers) < info.frames
    assert warning is not None
    assert f"{info.frames} of 100 frames are there" in warning
    if numbers != list(range(info.frames)):
        assert "cannot be decoded" in warning


def test_a_cut_matroska_file_is_reported(tmp_path, samples):
    data = samples["matroska"].path.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 2 // 3])
    frames, info, warning = read(path)
    assert len(frames) == info.frames < 100
    assert warning is not None
    assert warning.startswith(f"the file ends early, after {info.frames} frames")


def test_a_damaged_tail_is_reported_and_the_rest_is_exact(hurt_tail, whole_file):
    good, _, _ = read(whole_file, "pyav")
    frames, info, warning = read(hurt_tail, "pyav")
    assert len(frames) == info.frames == 100
    assert all(np.array_equal(a, b) for a, b in zip(frames[:90], good[:90], strict=True))
    assert warning is not None
    assert "cannot be decoded" in warning
    assert "from frame 9" in warning
    # who does not read that far is not warned
    assert read(hurt_tail, "pyav", range(50))[2] is None


@needs_decord
def test_decord_does_not_fill_a_damaged_tail(hurt_tail):
    with pytest.raises(VideoError, match="decord gives up on it: ") as caught:
        read(hurt_tail, "decord")
    assert caught.value.stage == "decode"
    assert "/" not in str(caught.value).replace("avcodec", "")


def test_damage_in_the_middle_is_an_error(hurt_middle):
    with pytest.raises(VideoError, match=r"decoding fails near frame .* of 100: Invalid data") as caught:
        read(hurt_middle, "pyav")
    assert caught.value.stage == "decode"


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path, samples, number_of):
    """A file trimmed without encoding keeps frames that are not shown: decord would count them and shift all others."""
    import av

    path = tmp_path / "trimmed.mp4"
    options = {"avoid_negative_ts": "disabled", "movflags": "faststart", "use_editlist": "1"}
    with av.open(str(samples["open groups"].path)) as source, av.open(str(path), "w", options=options) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(17 / 30 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = copy
                target.mux(packet)
    frames, info, warning = read(path)
    assert info.decoder == "pyav"
    assert [number_of(frame) for frame in frames] == list(range(100 - info.frames, 100))
    assert 80 <= info.frames < 92
    assert warning is None


def test_frames_keep_their_places_where_the_decoder_gives_none(headless_groups, number_of):
    frames, info, warning = read(headless_groups, "pyav")
    assert info.frames == 95
    numbers = [number_of(frame) for frame in frames]
    assert numbers[20:] == list(range(25, 100))
    assert numbers != list(range(5, 100))
    assert warning is not None
    assert "cannot be decoded" in warning


@needs_decord
def test_decord_repeats_no_frame_for_one_it_does_not_give(headless_groups):
    for indices in (range(95), [30, 40]):  # these two would be frames from further on
        with pytest.raises(VideoError, match="gives fewer frames than the file holds"):
            read(headless_groups, "decord", indices)


def test_frames_that_no_other_needs_are_left_out_of_h264_alone(samples, monkeypatch):
    """What is asked for is the same, whichever frames are wanted; fewer are decoded only where that is exact."""
    given = {}
    for name in ("long group", "open groups", "matroska", "variable rate", "hevc of ten bits", "vp9", "av1", "mpeg"):
        path = samples[name].path
        everything, info, _ = read(path)
        seen = []
        decode = reading.decode_all

        def counting(*args, decode=decode, seen=seen):
            for number, found in decode(*args):
                seen.extend(found)
                yield number, found

        with monkeypatch.context() as patch:
            patch.setattr(reading, "decode_all", counting)
            for step in (2, 5, 7):
                indices = range(info.frames % step, info.frames, step)
                frames, _, warning = read(path, indices=indices)
                assert warning is None
                assert all(np.array_equal(frame, everything[i]) for i, frame in zip(indices, frames, strict=True))
            given[name] = len(seen) / (3 * info.frames)
    assert {name for name, share in given.items() if share < 0.75} == {
        *("long group", "open groups", "matroska", "variable rate")
    }


def test_the_damage_of_a_file_counts_whichever_of_its_frames_are_wanted(headless_groups, hurt_tail):
    """Where a wanted frame is not given, all are decoded, so that stand-ins and warnings are those of a whole read."""
    for path in (headless_groups, hurt_tail):
        everything, info, _ = read(path)
        for step in (2, 3, 4):
            indices = range(0, info.frames, step)
            frames, _, warning = read(path, indices=indices)
            assert all(np.array_equal(frame, everything[i]) for i, frame in zip(indices, frames, strict=True))
            assert f"of the {len(indices)} read" in str(warning)


def test_without_decord(samples, monkeypatch):
    monkeypatch.setattr(reading, "has_decord", lambda: False)
    assert probe_video(samples["long group"].path).decoder == "pyav"
    with pytest.raises(ConfigError, match="decord is not installed here; use --decoder"):
        probe_video(samples["long group"].path, "decord")


def test_indices_are_checked(samples):
    with open_video(samples["three frames"].path) as reader:
        assert list(reader.read([])) == []
        for indices in ([1, 1], [2, 1], [-1, 0], [0, 3]):
            with pytest.raises(ValueError, match="frame"):
                reader.read(indices)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_reading_twice_starts_anew(samples, number_of, decoder):
    with open_video(samples["open groups"].path, decoder) as reader:
        first = reader.read([3, 40, 70])
        assert number_of(next(first)) == 3
        assert [number_of(frame) for frame in reader.read([0, 50])] == [0, 50]
        assert list(first) == []
        assert [number_of(frame) for frame in reader.read(np.array([99]))] == [99]


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_deadline_is_kept_between_frames_that_are_not_wanted(samples, decoder):
    with open_video(samples["long group"].path, decoder) as reader:
        frames = reader.read([0, 99], Deadline(0.2))
        next(frames)
        time.sleep(0.25)
        with pytest.raises(VideoError, match=r"took longer than 0\.2 s") as caught:
            next(frames)
        assert caught.value.stage == "decode"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_files_are_closed_whatever_happens(samples, hurt_middle, tmp_path, decoder):
    path = samples["long group"].path

    def abandon():
        with open_video(path, decoder) as reader:
            for _ in reader.read(range(100)):
                assert open_files(path) > 0
                raise KeyError("the reader's user fails")

    # while the errors, whose tracebacks hold on to all that the calls knew, still exist
    with pytest.raises(KeyError) as abandoned:
        abandon()
    assert open_files(path) == 0
    with pytest.raises(VideoError) as failed:
        read(hurt_middle, decoder)
    assert open_files(hurt_middle) == 0
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(VideoError) as refused:
        read(text, decoder)
    assert open_files(text) == 0
    assert all(error.tb is not None for error in (abandoned, failed, refused))


def test_what_decord_cannot_open_is_raised_and_not_written(samples, tmp_path, capfd):
    """As of files that its own, older FFmpeg refuses; here of one that goes away."""
    pytest.importorskip("decord")
    path = tmp_path / "gone.avi"
    path.write_bytes(Path(samples["h264 avi"].path).read_bytes())
    inspection = inspect_video(path)
    path.unlink()

    def refusal(_: int) -> str:
        with pytest.raises(DecordError, match="cannot open it") as caught:
            DecordReader(inspection)
        return str(caught.value)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(refusal, range(64)))) == 1
    os.write(2, b"the terminal is back")
    assert capfd.readouterr() == ("", "the terminal is back")


@pytest.mark.process
def test_nothing_is_written_to_the_terminal(hurt_tail, hurt_middle, samples, tmp_path):
    """Decoding libraries write by themselves; a job's output is for its own words."""
    (tmp_path / "text.mp4").write_text("not a video")
    paths = [hurt_tail, hurt_middle, tmp_path / "text.mp4", samples["av1"].path, samples["gif"].path]
    code = (
        "import sys\n"
        "from zar_ray.video.decoding import decode_video\n"
        "from zar_ray.video.plans import plan_views\n"
        "from zar_ray.video.transforms import Preprocessing\n"
        "from zar_ray.video.options import ViewConfig\n"
        "from zar_ray.errors import VideoError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        decode_video(path, lambda i: plan_views('x', i.frames, i.height, i.width, ViewConfig(),"
        " Preprocessing(32), 0))\n"
        "    except VideoError:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_ffmpeg_says_in_one_thread_is_heard_while_another_listens_and_leaves(tmp_path, capfd):
    (tmp_path / "not.mp4").write_bytes(b"\0" * 3000)
    heard, left = [], threading.Event()

    def listen_until_the_other_has_left():
        with ffmpeg_messages() as messages:
            left.wait(10)
            with contextlib.suppress(av.error.FFmpegError):
                av.open(str(tmp_path / "not.mp4"))
            heard.extend(messages)

    def speak():
        while not left.is_set():
            with contextlib.suppress(av.error.FFmpegError):
                av.open(str(tmp_path / "not.mp4"))

    threads = [threading.Thread(target=one) for one in (listen_until_the_other_has_left, speak)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with ffmpeg_messages(), contextlib.suppress(av.error.FFmpegError):
            av.open(str(tmp_path / "not.mp4"))
    left.set()
    for thread in threads:
        thread.join()
    assert heard
    assert capfd.readouterr().err == ""
