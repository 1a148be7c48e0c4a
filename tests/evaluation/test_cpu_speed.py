"""How long videos take on CPUs is said before a run, by `--dry-run` and by `zar doctor`, with what would be faster."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from zar_ray.commands import doctor, plan
from zar_ray.commands.main import main
from zar_ray.evaluation import cpu_speed, sampling
from zar_ray.evaluation.cpu_speed import CpuTime, operations_a_second, said_at_start, spoken
from zar_ray.evaluation.supply import KINETICS
from zar_ray.study import forecasts
from zar_ray.video.options import ViewConfig
from zar_ray.video.transforms import Preprocessing

VIEWS = ("--views.frames", "2", "--views.eval-frames", "2", "--views.views-per-rate", "1", "--views.crops", "1")


@pytest.fixture
def rates(monkeypatch):
    """Operations a second of a thread, by precision."""
    told = {"fp32": 8e10, "bf16": 2e11}
    monkeypatch.setattr(cpu_speed, "operations_a_second", lambda precision="fp32": told[precision])
    monkeypatch.setattr(cpu_speed, "_smaller_gflops", lambda: 4.4)
    return told


def found(gflops=17.6, threads=2, precision="fp32", tuning=0.0, **views):
    plans = [(ViewConfig(**views), Preprocessing(224), gflops)]
    return CpuTime(plans, tuning, KINETICS, threads, precision, needs_views=True)


def test_a_video_takes_its_operations_at_the_speed_of_the_threads(rates):
    one = found()
    assert one.seconds == pytest.approx(one.images * 17.6 * 2e9 / (2 * 8e10))
    assert found(threads=8).seconds == pytest.approx(one.seconds / 4)
    assert found(gflops=35.2).seconds == pytest.approx(2 * one.seconds)
    assert found(tuning=3e12).seconds == pytest.approx(one.seconds + 3e12 / (2 * 8e10))
    # Texts are tuned in float32 all the same.
    assert found(tuning=3e12, precision="bf16").seconds == pytest.approx(one.seconds * 0.4 + 3e12 / (2 * 8e10))
    assert found(views_per_rate=2).images < one.images


def test_only_what_is_faster_is_advised(rates):
    ways = found().ways
    assert "a GPU (est: L4 " in ways
    assert "--precision bf16 (encodes 2.5 times as fast here)" in ways
    assert f"--views.views-per-rate 1: {found(views_per_rate=1).images} images" in ways
    assert "ViT-B-32-quickgelu: 25% of the operations" in ways
    rates["bf16"] = rates["fp32"]
    ways = found(gflops=4.4, views_per_rate=1).ways
    assert not any(word in ways for word in ("bf16", "views", "ViT"))
    assert "bf16" not in found(precision="bf16").ways


def test_the_speed_is_measured_here_and_threads_stay_as_they_were():
    operations_a_second.cache_clear()
    before = torch.get_num_threads()
    assert 1e8 < operations_a_second() < 1e13
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.034, "0.034 s"), (12.3, "12 s"), (119, "119 s"), (150, "2.5 min"), (9000, "2.5 h")]
)
def test_times_are_spoken(seconds, words):
    assert spoken(seconds) == words


def test_a_long_run_on_cpus_begins_with_a_line(rates):
    options = SimpleNamespace(views=ViewConfig(), precision="fp32")
    model = SimpleNamespace(
        settings=[SimpleNamespace(options=options)],
        preprocessing=Preprocessing(224),
        costs=[SimpleNamespace(image_gflops=17.6, tuning_gflops={"zar": 40.0})],
        views=lambda: SimpleNamespace(needs_views=True),
    )
    many, one = (
        pa.table({"frames": [300] * n, "width": [340] * n, "height": [256] * n, "duration": [10.0] * n})
        for n in (40, 1)
    )
    on_cpus = SimpleNamespace(worker_gpus=0.0, device="cpu", threads=2, workers=2)
    line = said_at_start([model], on_cpus, many)
    whole = found(tuning=80e9)
    assert line == whole.described(40, 2)
    assert f"a video takes about {whole.seconds:.0f} s of 2 threads" in line
    assert f"40 videos {spoken(20 * whole.seconds)}" in line
    rates["fp32"] *= 100
    assert said_at_start([model], on_cpus, one) is None
    on_gpus = SimpleNamespace(worker_gpus=1.0, device="cuda", threads=1, workers=1)
    assert said_at_start([model], on_gpus, many) is None
    assert said_at_start([model], on_cpus, many.slice(0, 0)) is None


@pytest.fixture
def dry_run(video_folder, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "_start_of", lambda module: 0.5)
    monkeypatch.setattr(sampling, "usable_cpus", lambda: 2)

    def run(*words: str) -> str:
        model = () if "--model" in words else ("--checkpoint", str(tiny_checkpoint))
        assert (
            main(["eval", "--dataset", str(video_folder), *model, *VIEWS, "--device", "cpu", "--dry-run", *words]) == 0
        )
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out

    return run


@pytest.mark.process
def test_a_dry_run_measures_a_few_videos_and_says_what_a_run_takes(dry_run, monkeypatch):
    monkeypatch.setattr(forecasts, "_FEW", 2)
    told = dry_run()
    assert "measured  2 videos" in told
    assert "videos a second, 12 in all" in told
    assert "memory    about " in told
    assert "disk      about " in told
    assert "advice    short of " in told
    assert "faster: a GPU" in told


@pytest.mark.process
def test_what_takes_long_is_computed_instead(dry_run, rates, monkeypatch):
    rates.update(fp32=1.0, bf16=1.0)
    monkeypatch.setattr(forecasts, "measure", lambda *_: pytest.fail("measured"))
    told = dry_run()
    assert "forecast  on CPUs as here a video takes about" in told
    assert "`zar plan` measures" in told


@pytest.mark.process
def test_a_model_that_is_not_there_is_said_and_the_rest_too(dry_run):
    told = dry_run("--model", "ViT-B-16", "--pretrained", "nobody")
    assert "methods   zero_shot, zar" in told
    assert "forecast  none: " in told


def test_cores_that_gpus_wait_for_are_counted(rates, monkeypatch):
    asked = SimpleNamespace(
        cluster=SimpleNamespace(gpus=4, cores=16.0, workers=4),
        short="decoders",
        used={"GPUs": 0.25},
        object_store=1e9,
    )
    costs = SimpleNamespace(asked=asked, sample=SimpleNamespace(bytes_written=2e3), ways=None)
    monkeypatch.setattr(plan, "cost_here", lambda *_: costs)
    monkeypatch.setattr(plan, "described", lambda _: [])
    storage = SimpleNamespace(is_local=False, location="s3://bucket")
    study = SimpleNamespace(workload=SimpleNamespace(manifest=[0] * 500), folder=SimpleNamespace(storage=storage))
    memory, disk, advice = plan.before_run(study, None)
    assert "4 x " in memory
    assert disk == "disk      about 1 MB of rows"
    assert "about 64 cores would feed them" in advice


def test_the_doctor_says_how_long_a_video_takes_without_gpus(rates, monkeypatch):
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 4)
    (check,) = doctor._speed()
    assert check.status == "ok"
    assert f"about {spoken(found(threads=4).seconds)} of all CPUs" in check.detail
    assert "faster: a GPU" in check.detail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor._speed() == []
