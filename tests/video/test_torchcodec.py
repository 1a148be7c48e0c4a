"""torchcodec's reader, with a stand-in that keeps to its rules and, where it can be loaded, with itself."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import av
import hard_videos
import numpy as np
import pytest
import torch

from zar_ray.data import probing
from zar_ray.data.listing import list_folder
from zar_ray.errors import ConfigError, VideoError
from zar_ray.evaluation.feature_store import feature_space
from zar_ray.video.options import ViewConfig
from zar_ray.video.reading import open_video, probe_video
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.torchcodec_reader import load_torchcodec
from zar_ray.video.transforms import Preprocessing

REFUSED = {"h264 avi", "mpeg4 avi", "motion jpeg", "grey", "gif", "transport stream", "mpeg", "flash"}
READ = (
    "arm_wrestling_k400.mp4",
    "basketball_shooting.mp4",
    "clean_and_jerk.mp4",
    "cleaning_pool_32frames.mp4",
    "cleaning_pool_k400.mp4",
    "flipping_pancake_k400.mkv",
    "man_and_dog_5fps.mp4",
    "rotated_270.mov",
    "rotated_90.mov",
)


class StandIn:
    """Gives frames as torchcodec does: by their times, and where there is none of a time, the next one."""

    made: list[dict] = []  # noqa: RUF012  the options of all that were made
    drops: frozenset[int] = frozenset()  # frames that the decoder does not give
    fallback = False

    def __init__(self, path, **options):
        self.made.append(options)
        self.cpu_fallback = self.fallback
        self.listed = [entry["pts"] for entry in json.loads(options["custom_frame_mappings"])["frames"]]
        assert self.listed == sorted(set(self.listed))
        self.given = []
        with av.open(path) as file:
            self.tick = file.streams.video[0].time_base or Fraction(1)
            for number, frame in enumerate(file.decode(video=0)):
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                if number not in self.drops:
                    self.given.append((frame.pts, turned))

    def get_frame_at(self, index):
        for time, pixels in self.given:
            if time >= self.listed[index]:
                return SimpleNamespace(data=torch.from_numpy(pixels.copy()), pts_seconds=float(time * self.tick))
        raise IndexError("Requested next frame while there are no more frames left to decode.\n\nmore")


@pytest.fixture
def stand_in(monkeypatch) -> type[StandIn]:
    """A package of that name, whatever is installed."""
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    own = type("Own", (StandIn,), {"made": []})
    package.__dict__.update(__path__=[], ffmpeg_major_version=8, decoders=decoders)
    decoders.__dict__["VideoDecoder"] = own
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return own


@pytest.fixture(params=["stand-in", "itself"])
def either(request):
    """The stand-in, and then torchcodec itself."""
    if request.param == "stand-in":
        return request.getfixturevalue("stand_in")
    return request.getfixturevalue("itself")


@pytest.fixture
def itself():
    try:
        return load_torchcodec()
    except ConfigError as error:
        pytest.skip(str(error))


def read(path, decoder="torchcodec", indices=None):
    with open_video(path, decoder) as reader:
        return list(reader.read(range(reader.info.frames) if indices is None else indices)), reader.info


def assert_equal(path) -> None:
    """All frames, and any of them, are those that PyAV gives."""
    expected, info = read(path, "pyav")
    last = info.frames - 1
    for indices in (
        range(info.frames),
        [last],
        sorted({0, last // 3, last // 2, last}),
        range(last % 2, info.frames, 3),
    ):
        found, own = read(path, "torchcodec", indices)
        assert own.decoder == "torchcodec"
        assert (own.frames, own.height, own.width) == (info.frames, info.height, info.width)
        assert len(found) == len(indices)
        assert all(np.array_equal(frame, expected[index]) for index, frame in zip(indices, found, strict=True))


def test_every_kind_is_read_alike_or_refused(either, sample, kind):
    if kind not in REFUSED:
        assert_equal(sample.path)
        return
    with pytest.raises(VideoError, match=r"^torchcodec .*; PyAV reads it$") as caught:
        read(sample.path)
    assert caught.value.stage == "open"


@pytest.mark.parametrize("name", READ)
def test_real_files_are_read_alike(itself, shared, name):
    assert_equal(shared / "videos" / name)


def test_packed_frames_of_an_avi_file_are_refused(either, shared):
    with pytest.raises(VideoError, match="torchcodec is given mp4, mov, mkv and webm files, not avi; PyAV reads it"):
        probe_video(shared / "videos" / "apply_eye_makeup_ucf101.avi", "torchcodec")


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_is_undone(either, tmp_path, write_video, picture_of, angle):
    assert_equal(write_video(tmp_path / "turned.mp4", [picture_of(n) for n in range(12, 15)], rotation=angle))


@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
def test_hidden_pictures_do_not_shift_the_others(either, tmp_path, name, write_video, picture_of):
    assert_equal(hard_videos.write_hidden(tmp_path / name, [number % 4 != 2 for number in range(30)]))
    how = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "crf": "20"}
    pictures = [picture_of(number) for number in range(40)]
    assert_equal(write_video(tmp_path / f"vp9-{name}", pictures, codec="libvpx-vp9", options=how))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_two_fields_are_one_frame(either, tmp_path, suffix):
    assert_equal(hard_videos.write_h264(tmp_path / f"fields{suffix}", [True, False, True] * 8))


def test_pixels_that_are_not_square_are_not_stretched(either, tmp_path):
    assert_equal(hard_videos.write_plain(tmp_path / "wide.mp4", 6, aspect="4/3"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_repeated_frames_are_refused(either, tmp_path, suffix):
    path = hard_videos.write_mpeg4(tmp_path / f"repeats{suffix}", 40, {5, 17})
    with pytest.raises(VideoError, match="leaves out frames that repeat the one before; PyAV reads it"):
        probe_video(path, "torchcodec")


def test_a_size_that_changes_is_refused(either, tmp_path):
    path = hard_videos.write_sizes(tmp_path / "sizes.webm", [64, 32])
    with pytest.raises(VideoError, match="not odd matroska; PyAV reads it"):
        probe_video(path, "torchcodec")


def test_a_frame_that_is_not_given_is_never_replaced(stand_in, samples):
    stand_in.drops = frozenset({7, 29})
    path = samples["variable rate"].path
    with pytest.raises(VideoError, match="gives no frame 7 of 30; PyAV says what is wrong"):
        read(path, indices=[3, 7])
    with pytest.raises(VideoError, match=r"gives up at frame 29: Requested next frame .* left to decode\.$"):
        read(path, indices=[28, 29])
    assert len(read(path, indices=[6, 8, 28])[0]) == 3


def test_damage_is_an_error(itself, shared, cut, hurt_tail, hurt_middle, headless_groups):
    for path in (shared / "videos" / "corrupt_decode_error.mp4", cut, hurt_tail, hurt_middle, headless_groups):
        with pytest.raises(
            VideoError,
            match=r"^torchcodec gives (no frame \d+ of \d+; PyAV says what is wrong|up at frame \d+: [^/]+)$",
        ):
            read(path)


def test_it_is_told_every_frame_and_one_key_frame(stand_in, samples):
    read(samples["open groups"].path)
    (options,) = stand_in.made
    frames = json.loads(options["custom_frame_mappings"])["frames"]
    assert [frame["key_frame"] for frame in frames] == [1] + [0] * 99
    assert all(frame["duration"] > 0 for frame in frames)
    assert (options["device"], options["num_ffmpeg_threads"], options["dimension_order"]) == ("cpu", 1, "NHWC")


def test_on_a_gpu(stand_in, samples, monkeypatch):
    """As far as it can be seen without one: the device, and what is said where there is none or it falls back."""
    path = samples["long group"].path
    assert probe_video(path, "torchcodec-nvdec").decoder == "torchcodec-nvdec"
    assert stand_in.made == [], "a process that only looks at files needs no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="wants a GPU that PyTorch can use; use --decoder torchcodec"):
        read(path, "torchcodec-nvdec")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    frames, _ = read(path, "torchcodec-nvdec", [0, 50])
    assert len(frames) == 2
    assert stand_in.made[-1]["device"] == "cuda"
    stand_in.fallback = True
    with pytest.raises(VideoError, match="NVDEC does not decode such files; --decoder torchcodec reads them"):
        read(path, "torchcodec-nvdec")


def test_what_is_missing_is_said_once_and_with_the_way_out(tmp_path, stand_in, samples, monkeypatch):
    def message(call) -> str:
        with pytest.raises(ConfigError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "use --decoder pyav" in str(caught.value)
        return str(caught.value)

    path = samples["one frame"].path
    (tmp_path / "files" / "a").mkdir(parents=True)
    (tmp_path / "files" / "a" / "1.mp4").write_bytes(path.read_bytes())
    sys.modules["torchcodec"].__dict__["ffmpeg_major_version"] = None
    assert "finds no FFmpeg" in message(lambda: probe_video(path, "torchcodec"))
    assert "finds no FFmpeg" in message(lambda: probing.probe_listing(list_folder(tmp_path / "files"), "torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert "install zar-ray[torchcodec]" in message(lambda: probe_video(path, "torchcodec"))
    broken = tmp_path / "broken" / "torchcodec"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('undefined symbol: x\\nand more')")
    monkeypatch.syspath_prepend(broken.parent)
    monkeypatch.delitem(sys.modules, "torchcodec")
    assert "does not load here (undefined symbol: x)" in message(lambda: probe_video(path, "torchcodec-nvdec"))


def test_features_belong_to_its_version(monkeypatch):
    def space(decoder: str) -> dict:
        return feature_space("weights", "fp32", decoder, Preprocessing(32))

    found = []
    for number in ("1", "2"):
        versions = {"torchcodec": number}
        monkeypatch.setattr(
            "zar_ray.evaluation.feature_store.package_version", lambda name, own=versions: own.get(name)
        )
        found.append([space(decoder) for decoder in ("torchcodec", "torchcodec-nvdec", "auto")])
    (one, on_gpu, auto), (other, _, auto_again) = found
    assert one["decoder"] == "torchcodec 1"
    assert one not in (other, on_gpu)
    assert auto == auto_again, "those of others stay"


@pytest.mark.process
def test_a_decoding_process_loads_it_once(itself, samples):
    """Before its memory is limited: else it would be over half of that, and every video would get a new process."""
    request = DecodeRequest("a", ViewConfig(frames=2, eval_frames=2), 0, Preprocessing(32), False, decoder="torchcodec")
    with DecoderProcess(decoder="torchcodec") as process:
        process.start()
        pid = process.pid
        for _ in range(2):
            assert process.decode(samples["long group"].path, request, 60).info.decoder == "torchcodec"
        assert process.pid == pid


@pytest.mark.process
def test_probing_processes_load_it_once(itself, samples, tmp_path, monkeypatch):
    """Each as it starts; else it would be replaced after its first file, for the memory that it has taken."""
    started = []

    class Counted(probing._Worker):
        def __init__(self, *args):
            started.append(self)
            super().__init__(*args)

    monkeypatch.setattr(probing, "_Worker", Counted)
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.mp4").write_bytes(samples["one frame"].path.read_bytes())
    rows = list(probing.probe_listing(list_folder(tmp_path), "torchcodec", workers=1).rows())
    assert [row.decoder for row in rows] == ["torchcodec"] * 3
    assert len(started) == 1
