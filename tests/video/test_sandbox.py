"""The decoding process: its pixels are the decoder's own, and whatever a file does to it costs that file alone."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from deadly_decoders import DEADLY

from zar_ray.errors import ConfigError, DecoderClosedError, DecoderStartError, VideoError, VideoTooLargeError
from zar_ray.video.decoding import decode_video
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.reading import open_video
from zar_ray.video.sandbox import BACKGROUND, DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing, resize_frame
from zar_ray.video.windows import WindowCut, cut_windows

pytestmark = pytest.mark.process

PIXELS = Preprocessing(32)
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into /proc, which only Linux has")


def request(name="a.mp4", needs_views=True, preprocessing=PIXELS, views=None, seed=0) -> DecodeRequest:
    return DecodeRequest(name, views or ViewConfig(), seed, preprocessing, needs_views)


def cut(window, stride=None) -> WindowCut:
    return WindowCut(window, stride)


def assert_same_plan(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b), field.name
        else:
            assert a == b, field.name


def refusal(decoder, source, timeout=60.0, kind=VideoError, **wanted) -> VideoError | ConfigError:
    with pytest.raises(kind) as caught:
        decoder.decode(source, request(**wanted), timeout)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert "/proc/" not in str(caught.value)
    return caught.value


def eventually(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def decoder():
    with DecoderProcess() as process:
        yield process


@pytest.fixture(scope="module")
def deadly():
    """Does what a file's name says."""
    limits = DecodeLimits(side=4096, memory=512 * 2**20)
    with DecoderProcess(limits, DEADLY) as process:
        yield process


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("sandbox") / "good.mp4", frames=60)


@pytest.fixture
def file_of(video, tmp_path):
    """A copy of the good video under a name that says what it does."""

    def named(kind: str) -> Path:
        path = tmp_path / f"{kind}.mp4"
        path.write_bytes(video.read_bytes())
        return path

    return named


@pytest.mark.parametrize("needs_views", [True, False])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_pixels_and_plan_are_the_decoders(decoder, video, needs_views, as_bytes):
    wanted = request(needs_views=needs_views, seed=5)
    source = np.fromfile(video, np.uint8) if as_bytes else video
    if as_bytes:
        source.setflags(write=False)  # as it comes out of Ray's object store
    got = decoder.decode(source, wanted, 60)
    expected = decode_video(video, wanted.plan)
    assert np.array_equal(got.frames, expected.frames)
    assert got.frames.flags.c_contiguous
    assert (got.info, got.warning) == (expected.info, expected.warning)
    assert got.seconds > 0
    assert_same_plan(got.plan, wanted.plan(expected.info))


@pytest.fixture(scope="module")
def decoded_here(shared):
    """What the decoder itself makes of the samples that it can read, by their names."""
    found = {}
    for path in sorted((shared / "videos").glob("*.*")):
        with contextlib.suppress(VideoError):
            found[path.name] = decode_video(path, request(path.name, preprocessing=Preprocessing(224)).plan)
    return found


@pytest.mark.parametrize("as_bytes", [True, False])
def test_real_files(decoder, shared, decoded_here, as_bytes):
    """Every sample is the decoder's own to the bit, or refused in one line."""
    refused = {}
    for path in sorted((shared / "videos").glob("*.*")):
        wanted = request(path.name, preprocessing=Preprocessing(224))
        source = np.fromfile(path, np.uint8) if as_bytes else str(path)
        try:
            got = decoder.decode(source, wanted, 60)
        except VideoError as error:
            refused[path.name] = str(error)
            continue
        expected = decoded_here[path.name]
        assert np.array_equal(got.frames, expected.frames)
        assert (got.info, got.warning) == (expected.info, expected.warning)
    assert refused.keys().isdisjoint(decoded_here)
    assert not [detail for detail in refused.values() if str(shared) in detail]
    assert {name: detail for name, detail in refused.items() if name not in ("README.md", "text.mp4")} == {
        "corrupt_decode_error.mp4": "decoding fails near frame 30 of 50: Invalid data found when processing input",
        "empty.mp4": "empty file",
        "truncated.mp4": "not a video, or a damaged one: moov atom not found",
    }
    # bytes have no suffix that FFmpeg could believe
    assert refused["text.mp4"].startswith("not a video, or a damaged one: ")


def test_one_frame(decoder, make_video, tmp_path):
    got = decoder.decode(make_video(tmp_path / "one.mp4", frames=1), request(), 60)
    assert got.info.frames == 1
    assert got.frames.shape == (1, 32, 42, 3)
    ((window),) = decoder.decode_windows(tmp_path / "one.mp4", request(), cut(10), 60)
    span = window.span
    assert (span.number, span.start_frame, span.frames, span.end) == (0, 0, 1, pytest.approx(0.04))


def test_frames_may_be_written_to_and_outlive_the_process(video):
    with DecoderProcess() as own:
        first, second = (own.decode(video, request(), 60) for _ in range(2))
    kept = second.frames.copy()
    first.frames[:] = 7
    assert np.array_equal(second.frames, kept)


@pytest.mark.parametrize(
    ("deed", "detail"),
    [
        ("kill", "its decoder was killed by SIGKILL (out of memory?)"),
        ("abort", "its decoder was killed by SIGABRT (out of memory?)"),
        ("segv", "its decoder was killed by SIGSEGV"),
        ("exit", "its decoder ended with exit code 3"),
        ("hang", "took longer than 1 s to decode"),
        ("bomb", f"decoding it takes more memory than the limit of {512 * 2**20} bytes"),
    ],
)
def test_a_file_that_ends_or_hangs_its_process_costs_itself_alone(deadly, file_of, video, deed, detail):
    deadly.start()
    before = deadly.pid
    error = refusal(deadly, file_of(deed), timeout=1 if deed == "hang" else 60)
    assert str(error) == detail
    assert deadly.pid not in (before, None)
    assert not alive(before)
    assert deadly.decode(video, request(), 60).info.frames == 60


def test_what_a_decoder_raises_names_no_path_and_keeps_the_process(deadly, file_of, tmp_path):
    deadly.start()
    before = deadly.pid
    tells = refusal(deadly, file_of("tells"), name="mine.mp4")
    assert str(tells) == "cannot open mine.mp4 or mine.mp4"
    assert not hasattr(tells, "__notes__")
    bug = refusal(deadly, file_of("bug"), name="mine.mp4")
    assert str(bug).startswith("KeyError: ")
    assert str(tmp_path) not in f"{tells}{bug}"
    assert "Traceback" in bug.__notes__[0]
    missing = refusal(deadly, tmp_path / "missing.mp4")
    assert (str(missing), missing.stage) == ("no such file", "open")
    assert str(refusal(deadly, tmp_path)) == "is a folder, not a video"
    assert str(refusal(deadly, np.zeros(0, np.uint8))) == "empty file"
    assert deadly.pid == before


@needs_proc
def test_what_the_process_may_use(deadly, file_of):
    facts = json.loads(str(refusal(deadly, file_of("limits"))))
    assert facts["limits"] == [[0, 0], [64, 64]]
    assert facts["stderr"] == os.devnull
    assert facts["interrupt"]
    assert facts["files"] < 16
    used = int(Path(f"/proc/{deadly.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    assert used < facts["memory"] < used + 530 * 2**20


def test_a_process_in_the_background_gives_way(decoder, video):
    with DecoderProcess(program=BACKGROUND) as process:
        assert len(list(process.decode_windows(video, request(), cut(1.0), 60))) == 3
        assert process.pid is not None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, decoder.pid) + 5)


def test_options_that_do_not_fit_are_not_the_files_fault(decoder, video):
    error = refusal(decoder, video, views=ViewConfig(short_side=16), kind=ConfigError)
    assert "short_side" in str(error)


def test_limits_of_a_video(video, make_video, tmp_path):
    wide = make_video(tmp_path / "wide.mp4", frames=20, width=2000, height=32)
    limits = DecodeLimits(duration=1.0, side=2400, decoded_bytes=2**20)
    with DecoderProcess(limits) as process:
        long = refusal(process, video, kind=VideoTooLargeError)
        assert str(long) == "lasts 2.4 s; the limit is 1 s"
        aspect = refusal(process, wide, kind=VideoTooLargeError)
        assert (aspect.stage, str(aspect)) == (
            "plan",
            "20 frames of 2000×32 pixels after resizing take 3840000 bytes; the limit is 1048576 bytes",
        )
        with pytest.raises(VideoTooLargeError, match="after resizing take"):
            list(process.decode_windows(wide, request(), cut(0.8, 0.04), 60))
        # by turns no more than a few frames are held
        assert len(list(process.decode_windows(wide, request(), cut(0.1), 60))) == 8
        large = make_video(tmp_path / "large.mp4", frames=2, width=2432, height=64)
        side = refusal(process, large, kind=VideoTooLargeError)
        assert (side.stage, str(side)) == ("open", "2432×64 pixels; the limit is 2400 pixels a side")


def gif(path: Path, width: int, height: int) -> Path:
    """A little animation whose header declares another size."""
    from PIL import Image

    pictures = [Image.fromarray(np.full((8, 8), 40 * i, np.uint8)) for i in range(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    data = bytearray(path.read_bytes())
    data[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("side", [5000, 16000, 65535])
def test_a_huge_declared_size(deadly, video, tmp_path, side):
    """A few bytes that claim gigabytes of picture; also where the memory is gone before the size is known."""
    path = gif(tmp_path / "huge.gif", side, side)
    assert path.stat().st_size < 2000
    ours = side < 65535  # which FFmpeg itself refuses
    error = refusal(deadly, path, kind=VideoTooLargeError if ours else VideoError)
    assert not ours or str(error) == f"{side}×{side} pixels; the limit is 4096 pixels a side"
    assert deadly.decode(video, request(), 60).info.frames == 60


def test_a_decoder_that_runs_out_of_memory(make_video, tmp_path, video):
    """Real decoders under a real limit, as opposed to the stand-in's hoard."""
    large = make_video(tmp_path / "large.mp4", frames=8, width=2560, height=2560)
    with DecoderProcess(DecodeLimits(memory=64 * 2**20)) as process:
        error = refusal(process, large)
        assert "memory" in str(error)
        assert process.decode(video, request(), 60).info.frames == 60


def test_a_process_that_ended_between_videos_is_nobodys_fault(decoder, video):
    decoder.start()
    os.kill(decoder.pid, signal.SIGKILL)
    eventually(lambda: not alive(decoder.pid))
    assert decoder.decode(video, request(), 60).info.frames == 60


def test_a_process_that_cannot_start_is_not_the_files_fault(video):
    with DecoderProcess(program="import there_is_no_such_module") as process:
        error = refusal(process, video, kind=DecoderStartError)
        assert "does not start: it ended with exit code 1" in str(error)


def test_threads_take_turns(decoder, make_video, tmp_path):
    paths = [make_video(tmp_path / f"{number}.mp4", frames=10 + number, seed=number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda path: decoder.decode(path, request(path.name), 60), paths))
    for path, got in zip(paths, results, strict=True):
        assert np.array_equal(got.frames, decode_video(path, request(path.name).plan).frames)


def test_closing_ends_the_process_and_whoever_waits_for_it(file_of, video):
    process = DecoderProcess(program=DEADLY)
    process.start()
    pid = process.pid
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(process.decode, file_of("hang"), request(), 60)
        time.sleep(0.3)
        process.close()
        with pytest.raises(DecoderClosedError):
            waiting.result(5)
    assert not Path(f"/proc/{pid}").exists()
    assert process.pid is None
    process.close()
    refusal(process, video, kind=DecoderClosedError)


def test_closing_while_a_stream_is_half_read(video):
    process = DecoderProcess()
    windows = process.decode_windows(video, request(), cut(0.2), 60)
    assert next(windows).span.number == 0
    process.close()
    with pytest.raises(DecoderClosedError):
        list(windows)


def descriptors(pid: int | str = "self") -> int:
    gc.collect()
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@needs_proc
def test_nothing_is_left_of_many_decodes(make_video, tmp_path, monkeypatch, file_of):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    small = make_video(tmp_path / "small.mp4", frames=6)
    content = np.fromfile(small, np.uint8)
    with DecoderProcess(program=DEADLY) as process:
        process.decode(content, request(), 60)
        before, inside = descriptors(), descriptors(process.pid)
        for number in range(40):
            process.decode(content if number % 2 else small, request(needs_views=False), 60)
        assert sum(1 for _ in process.decode_windows(content, request(), cut(0.04), 60)) == 6
        next(process.decode_windows(content, request(), cut(0.04), 60))
        refusal(process, np.arange(100, dtype=np.uint8))
        assert descriptors() == before
        assert descriptors(process.pid) == inside
        refusal(process, file_of("kill"))
        refusal(process, file_of("hang"), timeout=0.1)
        assert descriptors() == before
    assert descriptors() == before - 2  # the connection and the lifeline
    assert not list((tmp_path / "temporary").iterdir())


@needs_proc
def test_nothing_is_left_of_a_killed_parent(video, tmp_path):
    """The child hangs in a decoder and must go with its parent all the same."""
    script = (
        "import sys, numpy as np\n"
        "from deadly_decoders import SLOW\n"
        "from zar_ray.video.sandbox import DecoderProcess\n"
        "from zar_ray.video.sandbox_process import DecodeRequest\n"
        "from zar_ray.video.options import ViewConfig\n"
        "from zar_ray.video.transforms import Preprocessing\n"
        "process = DecoderProcess(program=SLOW)\n"
        "print(process.pid, flush=True)\n"
        "request = DecodeRequest('a', ViewConfig(), 0, Preprocessing(32), True)\n"
        f"process.decode(np.fromfile({str(video)!r}, np.uint8), request, 60)\n"
    )
    temporary, mark = tmp_path / "temporary", tmp_path / "begun"
    temporary.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TMPDIR": str(temporary),
        "ZAR_TEST_MARK": str(mark),
    }
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        eventually(mark.exists, 60)
        assert alive(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    eventually(lambda: not alive(child))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(("length", "stride"), [(0.5, None), (0.5, 0.2), (0.3, 0.7), (100.0, None), (0.013, 0.1)])
def test_windows_are_those_of_a_cut_video(decoder, video, length, stride):
    wanted = request("long.mp4", seed=3)
    with open_video(video, "pyav") as reader:
        info, pictures = reader.info, list(reader.read(range(reader.info.frames)))
    windows = list(decoder.decode_windows(np.fromfile(video, np.uint8), wanted, cut(length, stride), 60))
    spans = cut_windows(60, 25.0, cut(length, stride or length), 100)
    assert [window.span.number for window in windows] == list(range(len(spans)))
    for window, span in zip(windows, spans, strict=True):
        own = pictures[window.first_frame : window.first_frame + window.span.frames]
        assert window.span == span
        assert len(own) == span.frames
        plan = plan_views(f"long.mp4#{span.number}", len(own), 48, 64, wanted.views, PIXELS, 3)
        assert_same_plan(window.plan, plan)
        assert np.array_equal(window.frames, [resize_frame(own[index], 32) for index in plan.frames])
        assert window.info == info


def test_a_stream_that_is_left_early_keeps_its_process(deadly, file_of, video):
    deadly.start()
    before = deadly.pid
    windows = deadly.decode_windows(file_of("noted"), request(), cut(0.2, 0.1), 60)
    assert [next(windows).span.number for _ in range(3)] == [0, 1, 2]
    windows.close()
    assert deadly.decode(video, request(), 60).info.frames == 60
    assert deadly.pid == before


def test_frames_are_read_once_and_not_far_ahead(deadly, file_of):
    """Five frames a window: with one window taken and two more finished, the process waits."""
    path = file_of("noted")
    notes = path.with_suffix(".txt")

    def read():
        return [int(line) for line in notes.read_text().split()]

    windows = deadly.decode_windows(path, request(), cut(0.2), 60)
    next(windows)
    eventually(lambda: len(read()) >= 15)
    time.sleep(0.3)
    assert read() == list(range(15))
    next(windows)
    eventually(lambda: len(read()) >= 20)
    time.sleep(0.1)
    assert read() == list(range(20))
    assert len(list(windows)) == 10
    notes.unlink()
    assert len(list(deadly.decode_windows(path, request(), cut(1.0, 0.04), 60))) == 60
    assert read() == list(range(60))


@pytest.mark.parametrize(
    ("deed", "detail", "timeout"),
    [("hang", "took longer than 2 s to decode", 2), ("kill", "its decoder was killed by SIGKILL", 60)],
)
def test_a_stream_whose_decoder_dies_on_the_way(deadly, file_of, video, deed, detail, timeout):
    deadly.start()
    windows = deadly.decode_windows(file_of(deed), request(), cut(0.2), timeout)
    assert [next(windows).span.number for _ in range(2)] == [0, 1]
    with pytest.raises(VideoError, match=detail):
        next(windows)
    assert deadly.decode(video, request(), 60).info.frames == 60


def test_a_slow_reader_of_a_stream_is_not_timed_out(deadly, file_of):
    """The time is the decoder's, not the client's."""
    numbers = []
    for window in deadly.decode_windows(file_of("good"), request(), cut(0.4), 1.5):
        numbers.append(window.span.number)
        time.sleep(0.4)
    assert numbers == list(range(6))


def test_windows_that_cannot_be_cut(video):
    with DecoderProcess(DecodeLimits(windows=23)) as process, pytest.raises(VideoTooLargeError) as caught:
        list(process.decode_windows(video, request(), cut(0.1), 60))
    assert str(caught.value) == "24 windows; the limit is 23 windows"
    with pytest.raises(VideoError, match="frame rate is unknown"):
        cut_windows(100, 0.0, cut(1.0, 1.0), 10)
    with pytest.raises(VideoTooLargeError, match="the limit is 10 windows"):
        cut_windows(10**9, 25.0, cut(1e-9, 1e-9), 10)
