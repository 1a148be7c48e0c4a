"""Whether cores feed GPUs is said before a run and by `zar doctor`, where there are GPUs that are known."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.commands import doctor
from zar_ray.evaluation import supply
from zar_ray.training.options import TrainConfig
from zar_ray.training.samples import threads_ahead
from zar_ray.video import resampling
from zar_ray.video.options import DecodeOptions, ViewConfig
from zar_ray.video.reading import VideoInfo
from zar_ray.video.resampling import order_of
from zar_ray.video.transforms import Preprocessing, as_pillow

KINETICS = VideoInfo(300, 30.0, 340, 256, 10.0, "pyav")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("A100-80G", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Tesla T4", 65.0),
        ("A10G", 70.0),
        ("NVIDIA GeForce RTX 2080", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("", None),
    ],
)
def test_gpus_are_known_by_the_words_of_their_names(name, peak):
    assert supply.peak_of(name) == peak


@given(gpus=st.integers(1, 16), cores=st.integers(1, 256), decode=st.floats(0.01, 10.0), encode=st.floats(0.001, 1.0))
def test_cores_that_suffice_are_not_spoken_of(gpus, cores, decode, encode):
    found = supply.Supply(gpus, "H100", cores, decode, encode)
    assert found.wanted == pytest.approx(gpus * decode / encode)
    assert (found.warning is None) == (found.wanted <= cores)


def test_the_line_names_gpus_cores_and_what_to_expect():
    found = supply.Supply(8, "NVIDIA H100", 32, 0.3, 0.03)
    assert found.warning == (
        "8 × NVIDIA H100 want about 80 cores to decode for them, there are 32: expect 40% of their speed "
        "(docs/performance.md)"
    )


def test_without_gpus_or_with_unknown_ones_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(supply, "decode_seconds", lambda *_: pytest.fail("measured"))
    assert supply.supply([], 8) is None
    assert supply.supply(["a GPU of next year"], 8) is None


def test_encoding_is_counted_by_the_images_of_a_plan(monkeypatch):
    """427 images of 17.6 GFLOPs at half of an H100's peak take 30 ms: the issue's own figure."""
    monkeypatch.setattr(supply, "decode_seconds", lambda *_: 0.278)
    found = supply.supply(["H100"] * 2, 4)
    assert found is not None
    assert found.encode_seconds == pytest.approx(0.030, rel=0.06)
    assert found.wanted == pytest.approx(18.5, rel=0.06)
    larger = supply.supply(["H100"], 4, plans=[(ViewConfig(), Preprocessing(224), 81.1)] * 2)
    assert larger is not None
    assert larger.encode_seconds == pytest.approx(found.encode_seconds * 2 * 81.1 / 17.6)


@pytest.mark.slow
def test_the_measurement_follows_the_kernel_and_the_videos_size(monkeypatch):
    def measured(resize="pil", info=KINETICS):
        return supply.decode_seconds(DecodeOptions(resize=resize), ViewConfig(), Preprocessing(224), info, True)

    asked, decode = [], supply.decode_video

    def noted(*args, **how):
        asked.append(how["resizer"])
        return decode(*args, **how)

    monkeypatch.setattr(supply, "decode_video", noted)
    assert order_of(256, 340, 224, 297, "bicubic") is not None  # which asks Pillow
    # It is of a run that goes on, whose frames are resized by compiled code.
    monkeypatch.setattr(as_pillow, "pays", None)
    monkeypatch.setattr(resampling, "_by_pillow", lambda *_: pytest.fail("Pillow resized"))
    small = measured()
    assert 0.005 < small < 10
    assert 0.005 < measured("torch") < 10
    assert asked == ["pil", "pil", "torch", "torch"]
    assert 5 * small < measured(info=VideoInfo(300, 30.0, 1920, 1080, 10.0, "pyav"))


def planned(gflops: float) -> SimpleNamespace:
    options = SimpleNamespace(views=ViewConfig(), decoder="auto", resize="pil")
    return SimpleNamespace(
        settings=[SimpleNamespace(options=options)],
        preprocessing=Preprocessing(224),
        costs=[SimpleNamespace(image_gflops=gflops)],
        views=lambda: SimpleNamespace(needs_views=True),
    )


def test_a_run_says_so_where_its_cluster_has_gpus(monkeypatch):
    videos = pa.table({"frames": [300, 100], "width": [340] * 2, "height": [256] * 2, "duration": [10.0, 3.0]})
    asked = []

    def seconds(options, views, pixels, video, needs_views):
        asked.append(video.frames)
        return 0.278

    monkeypatch.setattr(supply, "decode_seconds", seconds)
    resources = SimpleNamespace(decoders=4, workers=2, worker_gpus=1.0)
    for cluster, told in (
        ({"CPU": 8.0}, False),
        ({"CPU": 8.0, "GPU": 2.0}, False),  # of a kind that Ray does not know
        ({"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}, True),
    ):
        monkeypatch.setattr(supply.ray, "cluster_resources", lambda cluster=cluster: cluster)
        line = supply.warning_for_run([planned(17.6)], resources, videos)
        assert (line is not None) == told
        if line is not None:
            assert line.startswith("2 × H100 want about ")
            assert ", there are 4: expect " in line
    assert asked == [200]
    on_cpus = SimpleNamespace(decoders=4, workers=2, worker_gpus=0.0)
    assert supply.warning_for_run([planned(17.6)], on_cpus, videos) is None


def test_the_doctor_says_so_where_there_are_gpus(monkeypatch):
    assert doctor._supply() == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(supply, "decode_seconds", lambda *_: 0.278)
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 32)
    (few,) = doctor._supply()
    assert few.status == "warning"
    assert "8 × NVIDIA H100 80GB HBM3 want about " in few.detail
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 192)
    (enough,) = doctor._supply()
    assert enough.status == "ok"
    assert "there are 192" in enough.detail


def test_gpus_whose_driver_is_too_old_are_no_fault_of_the_supply(monkeypatch):
    """PyTorch counts by NVML the GPUs that it cannot use, and raises when it is asked for their names."""

    def refuse(index):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12080).")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", refuse)
    assert doctor._supply() == []


def test_a_trainings_threads_are_its_cpus_beside_a_gpu(monkeypatch):
    config = TrainConfig(dataset="demo")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert threads_ahead(config, torch.device("cuda")) == 12
    assert threads_ahead(config, torch.device("cpu")) == 2
    assert threads_ahead(config.model_copy(update={"decode_threads": 5}), torch.device("cuda")) == 5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert threads_ahead(config, torch.device("cuda")) == 2
