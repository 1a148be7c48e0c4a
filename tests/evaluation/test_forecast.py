"""What `zar plan` measures and computes: forecasts from made-up samples, and a sample through the real stages."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zar_ray.commands.main import main
from zar_ray.data.datasets import list_dataset
from zar_ray.data.probing import probe_listing
from zar_ray.data.protocols import whole_split
from zar_ray.errors import RunError
from zar_ray.evaluation import sampling
from zar_ray.evaluation.blocks import expected_costs
from zar_ray.evaluation.forecast import Cluster, forecast, with_trial
from zar_ray.evaluation.planning import AskedModel, asked_settings, plan_model
from zar_ray.evaluation.sampling import Sample, chosen, measure
from zar_ray.evaluation.trial import Trial, steady_rate
from zar_ray.evaluation.workload import Workload
from zar_ray.study.forecasts import SIZES, cluster_of, trial_cluster, trial_size
from zar_ray.study.options import EvalConfig, PlanConfig

SAMPLE = Sample(
    videos=20,
    failed=0,
    decode_cpu=0.4,
    adapt_cpu=3.0,
    adapt_seconds=1.6,
    device="cpu",
    threads=2,
    encoder_operations=430 * 17.6 * 2e9,
    tuning_operations=50e9,
    bytes_read=2e6,
    bytes_shipped=6e7,
    bytes_written=5e3,
    largest=60_000_000,
    decode_start=1.0,
    adapt_start=5.0,
)
SMALL = dataclasses.replace(SAMPLE, bytes_shipped=3e6, largest=3_000_000)
VIEWS = ("--views.frames", "2", "--views.eval-frames", "2", "--views.views-per-rate", "1", "--views.crops", "1")
positive = st.floats(1e-3, 1e3)
samples = st.builds(
    dataclasses.replace,
    st.just(SAMPLE),
    decode_cpu=positive,
    adapt_cpu=positive,
    adapt_seconds=positive,
    bytes_read=st.none() | st.floats(0, 1e9),
    bytes_shipped=st.floats(1, 1e9),
    largest=st.integers(1, 10**9),
)


def on(**given) -> Cluster:
    return cluster_of(PlanConfig.model_validate({"dataset": "k600", **given}))


@given(sample=samples, gpus=st.integers(0, 64), cores=st.integers(1, 512), videos=st.integers(1, 10**6))
def test_a_run_is_as_fast_as_what_is_short(sample, gpus, cores, videos):
    found = forecast(sample, on(gpus=gpus, cores=cores, gpu="A100", price=2.0), videos, 8)
    assert found.videos_per_second == min(found.rates.values())
    assert max(found.used.values()) == pytest.approx(1.0)
    assert found.seconds == pytest.approx(found.start_seconds + videos / found.videos_per_second)
    assert found.dollars == pytest.approx(2.0 * found.seconds / 3600 * (gpus or cores))
    assert found.gpu_hours == pytest.approx(gpus * found.seconds / 3600)
    assert (found.bytes_read is None) == (sample.bytes_read is None)
    assert found.bytes_shipped == pytest.approx(videos * sample.bytes_shipped)
    assert found.estimated == (gpus > 0)
    twice = forecast(sample, on(gpus=gpus, cores=cores, gpu="A100", price=4.0), videos, 8)
    assert twice.dollars == pytest.approx(2 * found.dollars)


@given(sample=samples, workers=st.integers(2, 16), cores=st.integers(1, 8))
def test_workers_beyond_the_cores_give_nothing(sample, workers, cores):
    """Each has a thread at least; what all need of the cores is the same however many share it."""
    sample = dataclasses.replace(sample, threads=1, adapt_seconds=sample.adapt_cpu)
    few = forecast(sample, on(cores=cores, num_workers=cores), 1000, 8)
    many = forecast(sample, on(cores=cores, num_workers=cores * workers), 1000, 8)
    assert many.videos_per_second <= few.videos_per_second * (1 + 1e-9)
    assert many.start_seconds >= few.start_seconds


@given(
    sample=samples,
    cores=st.integers(1, 16),
    workers=st.integers(1, 8),
    share=st.floats(1.0, 3.0),
    start=st.floats(0.0, 60.0),
    videos=st.integers(50, 5000),
)
@example(
    sample=dataclasses.replace(SAMPLE, bytes_read=78125001.0, decode_cpu=0.25, adapt_cpu=0.25, adapt_seconds=0.5),
    cores=16,
    workers=8,
    share=2.0,
    start=0.0,
    videos=834,
).via("as short of network as of workers: what the trial took more was not seen")
def test_a_trial_says_what_the_job_takes_beside_its_stages(sample, cores, workers, share, start, videos):
    """What a machine does with a few videos it does with many; the driver's own part is not scaled with the others."""
    sample = dataclasses.replace(sample, decode_cpu=max(0.2, sample.decode_cpu))
    here = on(cores=cores, num_workers=workers)
    alone = forecast(sample, here, videos, 8)
    rate = alone.videos_per_second / share
    ran = Trial(videos, alone.start_seconds + start + videos / rate, rate)
    assert ran.start_seconds == pytest.approx(alone.start_seconds + start)
    known = with_trial(sample, ran, here, 8)
    assert known.job_start == pytest.approx(start, abs=1e-6)
    for count in (videos, 10 * videos):
        found = forecast(known, here, count, 8)
        assert found.seconds == pytest.approx(ran.start_seconds + count / rate, rel=0.02)


@given(sample=samples, cores=st.integers(1, 16), faster=st.floats(1.0, 3.0))
def test_a_trial_that_had_decoded_its_videos_beforehand_makes_no_run_quicker_than_its_stages(sample, cores, faster):
    here = on(cores=cores, num_workers=2)
    rate = faster * forecast(dataclasses.replace(sample, bytes_read=None), here, 100, 8).videos_per_second
    known = with_trial(sample, Trial(100, 9.0 + 100 / rate, rate), here, 8)
    assert known.job_share == 1.0
    assert forecast(known, here, 5000, 8).rates == forecast(sample, here, 5000, 8).rates


def test_a_trial_on_gpus_does_not_make_them_slower():
    """They take what they take; what a trial of so few videos waits for is not theirs."""
    measured = dataclasses.replace(SAMPLE, device="NVIDIA H100 80GB HBM3", adapt_seconds=5.0)
    here = on(gpus=1, gpu="H100", cores=64)
    assert forecast(measured, here, 100, 8).short == "GPUs"
    known = with_trial(measured, Trial(100, 900.0, 0.15), here, 8)
    assert known.job_share == 1.0
    assert known.job_start > 0


def test_the_rate_of_a_run_is_that_with_all_workers_and_decoders_at_it():
    rng = np.random.default_rng(4)
    slow, fast = 10.0 + 2.0 * np.arange(20), 50.0 + 0.25 * np.arange(60)
    alone = fast[-1] + 0.125 * np.arange(1, 41)
    every = rng.permutation([*slow, *fast, *alone])
    assert steady_rate(every, ahead=40) == pytest.approx(4.0)
    assert steady_rate(every, ahead=70) == pytest.approx(60 / (20 * 0.25 + 40 * 0.125), rel=0.05)
    blocks = np.repeat(7.0 + 3.0 * np.arange(6), 8)
    assert steady_rate(blocks, ahead=9) == pytest.approx(8 / 3)
    assert steady_rate(blocks, ahead=0) == pytest.approx(8 / 3)
    assert steady_rate(np.full(5, 3.0), ahead=1) is None


def test_a_trial_is_of_this_machine_and_a_small_share_of_the_run(monkeypatch):
    monkeypatch.setattr("zar_ray.study.forecasts.usable_cpus", lambda: 6)
    options = PlanConfig.model_validate({"dataset": "k600", "num_workers": 5, "sample": 7})
    same, larger = (
        trial_cluster(options, SAMPLE, cluster_of(options.model_copy(update={"cores": cores}))) for cores in (6.0, 60.0)
    )
    assert (same.cores, same.workers, same.gpus) == (6, 5, 0)
    assert (larger.cores, larger.workers) == (6, 3)
    of_gpu = trial_cluster(options, dataclasses.replace(SAMPLE, device="NVIDIA A100-SXM4-40GB"), same)
    assert (of_gpu.gpus, of_gpu.workers) == (1, 1)
    assert trial_size(100_000, 50.0, options, same) == 500
    assert trial_size(100_000, 0.1, options, same) == 4 * 5 * 8
    assert trial_size(100, 0.1, options, same) == 25
    assert trial_size(10, 50.0, options, same) == 7
    assert trial_size(3, 50.0, options, same) == 3


def test_what_is_short_is_named():
    def short(sample, **given):
        return forecast(sample, on(gpu="H100", **given), 1_000_000, 8).short

    assert short(SAMPLE, gpus=8, cores=32) in ("CPU cores", "decoders")
    assert short(SAMPLE, gpus=8, cores=4000) == "GPUs"
    assert short(SAMPLE, gpus=16, cores=4000, bandwidth=0.5) == "network"
    assert short(SMALL, gpus=1000, cores=100_000, memory=1.0, bandwidth=1e3, requests=1e6) == "driver"
    assert short(SMALL, gpus=1000, cores=100_000, memory=1e6, bandwidth=1e3, requests=100) == "storage"
    assert short(dataclasses.replace(SAMPLE, adapt_seconds=9.0), cores=64, num_workers=2) == "workers"


def test_a_gpu_that_measured_is_not_estimated():
    measured = dataclasses.replace(SAMPLE, device="NVIDIA H100 80GB HBM3", adapt_seconds=0.05)
    same, other = (forecast(measured, on(gpus=8, cores=4000, gpu=name), 60_000, 8) for name in ("h100", "l4"))
    assert not same.estimated
    assert same.rates["GPUs"] == pytest.approx(8 / 0.05)
    assert other.estimated
    assert other.rates["GPUs"] < same.rates["GPUs"]


def test_a_stream_has_one_worker_and_blocks_of_one_video():
    found = forecast(SAMPLE, on(gpus=8, gpu="H100", cores=4000), 1000, 8, stream=True)
    assert found.block == 1
    assert found.rates["GPUs"] == pytest.approx(forecast(SAMPLE, on(gpus=1, gpu="H100"), 1000, 8).rates["GPUs"])


def test_memory_bounds_blocks_and_so_the_drivers_ceiling():
    large, small = (
        forecast(one, on(gpus=1000, gpu="H100", cores=16_000), 1_000_000, 8).rates["driver"] for one in (SAMPLE, SMALL)
    )
    assert small >= 10_000 > large


def test_a_sample_stands_for_all_and_leaves_out_what_cannot_be_opened():
    rng = np.random.default_rng(5)
    count = 3000
    table = pa.table(
        {
            "video_id": [f"v{n}" for n in range(count)],
            "frames": rng.lognormal(5, 0.9, count).astype(int) + 1,
            "height": [240] * count,
            "width": [320] * count,
            "error": [None if n % 3 else "broken" for n in range(count)],
        }
    )
    ids = chosen(table, 25)
    assert len(set(ids)) == 25
    picked = table.filter(pa.array(np.isin(table["video_id"].to_pylist(), ids)))
    assert picked["error"].null_count == 25
    whole = table.filter(pa.array(table["error"].is_null().to_pylist()))
    costs = dict(zip(whole["video_id"].to_pylist(), expected_costs(whole).tolist(), strict=True))
    assert np.mean([costs[one] for one in ids]) == pytest.approx(np.mean([*costs.values()]), rel=0.08)
    assert len(chosen(table.slice(0, 6), 20)) == 4


@pytest.fixture
def quick_start(monkeypatch):
    monkeypatch.setattr(sampling, "_start_of", lambda module: 0.5)
    monkeypatch.setattr(sampling, "usable_cpus", lambda: 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", [("zero_shot", "zar"), ("tda",)])
def test_a_sample_goes_through_the_jobs_stages(method, video_folder, tiny_checkpoint, tmp_path, quick_start):
    folder = shutil.copytree(video_folder, tmp_path / "videos")
    manifest = probe_listing(list_dataset(folder))
    spoilt = [] if method == ("tda",) else [Path(path) for path in manifest.table["path"].to_pylist()]
    for path in spoilt[:1]:
        path.write_bytes(b"no video")
    for path in spoilt[1:2]:  # since it was indexed
        path.unlink()
    workload = Workload.of(manifest, [whole_split(manifest)])
    small = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}
    asked = EvalConfig(dataset="x", checkpoint=tiny_checkpoint, views=small, method=method, device="cpu")
    own = AskedModel("tiny", (asked.model_copy(update={"features": str(tmp_path / "features")}),))
    model = plan_model("tiny", 0, asked_settings(own, workload))
    found = measure(workload, [model], ["default"], 12, 1)
    assert (found.videos, found.failed) == ((10, 2) if spoilt else (12, 0))
    assert found.bytes_read == np.mean(manifest.table["size"].to_pylist())
    assert min(found.decode_cpu, found.adapt_cpu, found.adapt_seconds, found.bytes_written) > 0
    assert found.bytes_shipped == pytest.approx(found.largest, rel=0.5)
    assert found.encoder_operations > 0
    assert found.tuning_operations > 0 or method == ("tda",)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["videos"]
    for path in spoilt:
        path.write_bytes(b"no video")
    if spoilt:
        with pytest.raises(RunError, match="none of 5 videos could be done"):
            measure(workload, [model], ["default"], 5, 1)


@pytest.mark.slow
def test_the_command_says_what_is_short_and_writes_nothing(
    video_folder, tiny_checkpoint, tmp_path, quick_start, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [
        "plan",
        "--dataset",
        str(video_folder),
        "--checkpoint",
        str(tiny_checkpoint),
        *VIEWS,
        "--sample",
        "3",
        "--no-trial",
    ]
    words += ["--gpus", "8", "--gpu", "h100", "--price", "2.5"]
    before = sorted(video_folder.rglob("*"))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "short of" in told
    assert "(est)" in told
    assert "dollars" in told
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["cluster"]["gpus"] for one in found["sizes"]] == list(SIZES)
    assert found["asked"]["videos"] == 12
    assert found["sample"]["videos"] == 3
    assert found["asked"]["estimated"]
    assert list(tmp_path.iterdir()) == []
    assert sorted(video_folder.rglob("*")) == before
    assert main([*words, "--gpu", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("zar: --gpu abacus: its speed is not known; known are ")


@pytest.mark.parametrize("name", ["cores", "memory", "bandwidth", "requests", "price"])
def test_a_cluster_without_bounds_is_refused_in_a_line(name, capsys):
    assert main(["plan", "--dataset", "k600", f"--{name}", "inf"]) == 2
    assert capsys.readouterr().err.startswith(f"zar: zar plan: {name} Input should be a finite number")
