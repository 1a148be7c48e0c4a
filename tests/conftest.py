"""What tests of several packages share: real little videos, a tiny CLIP, one local Ray for the whole session."""

from __future__ import annotations

import gc
import logging
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Half of hypothesis' own number of examples, and the same ones each time, so that what fails is what was changed;
# without a limit of time, as other processes take of it what they like. `--hypothesis-profile search` looks further.
settings.register_profile("zar-ray", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("search", max_examples=1000, deadline=None)
settings.load_profile("zar-ray")

# A token of one test's cluster must not be asked for by another's, nor end up in the user's home.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray makes its workers give way to everything else, so that on a busy machine tests would wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray Train looks at its processes, and takes their checkpoints, every two seconds: longer than these trainings' steps.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# No node here is announced to go away; the process that asks for it would be started with every training.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Its minute for processes to start is short where other tests start theirs, and it would begin again for ever.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
os.environ.setdefault("PYTHONWARNINGS", "ignore")
# Hundreds of processes would each compile all of zar_ray, where their caches are switched off.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# pytest-xdist sets it in its workers, and commands then print tables as on a terminal of that width.
os.environ.pop("COLUMNS", None)
# As zar_ray sets it, which is imported after PyTorch here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A process that has loaded PyTorch for a task is left to the next one; by default it ends after a second.
os.environ.setdefault("RAY_num_workers_soft_limit", "8")
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
# What a node's processes print is looked for twice a second, in all the files that there are by then.
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "5")
# For the processes that tests start, and for this one, which has begun already.
LARGER = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


STARTUP = Path(__file__).with_name("startup")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STARTUP), os.environ.get("PYTHONPATH"))))
runpy.run_path(str(STARTUP / "sitecustomize.py"))
if "PYTEST_XDIST_WORKER" in os.environ:
    # One of several test processes, which share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLASSES = ("red circle", "green square", "blue bar")


# What only a test that is marked as slow may use.
SLOW_FIXTURES = {"ray_cluster", "browser"}

# The files that take longest. They begin first, then all others that start Ray: much of their time is waiting, which
# the rest fills, and no process is left alone with one of them at the end.
LONGEST = (
    "test_training.py",
    "test_bench_soak.py",
    "test_eval_job.py",
    "test_lost_nodes.py",
    "test_growing_pool.py",
    "test_training_kills.py",
    "test_service.py",
    "test_methods_job.py",
    "test_ray_job.py",
    "test_serve_run.py",
    "test_study_job.py",
    "test_service_page.py",
    "test_extending_package.py",
    "test_sweeps_job.py",
    "test_published_systems.py",
    "test_demo_training.py",
    "test_notebook.py",
    "test_documented_commands.py",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Loads no file whose tests all have a mark that is left out, as by `make test-fast`: imports take seconds."""
    asked = config.option.markexpr.split(" and ")
    if collection_path.suffix != ".py" or not any(one.startswith("not ") for one in asked):
        return None
    text = collection_path.read_text(encoding="utf-8")
    of_all = re.search(r"^pytestmark = pytest\.mark\.(\w+)$", text, re.MULTILINE)
    return True if of_all and f"not {of_all[1]}" in asked else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts files by how long they take; refuses tests that would bring real processes into `make test-fast`."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path not in slow, places.get(item.path.name, len(places))))
    unmarked = [
        item.nodeid
        for item in items
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("slow") is None
    ]
    if unmarked:
        raise pytest.UsageError(f"mark as slow what starts Ray or a browser: {', '.join(unmarked)}")


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: whoever collects cycles passes it over.

    The product does, matplotlib and mlflow do, some hundreds of times, and each would look at a million objects.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries that look at the end for what is left of theirs are to find it gone."""
    gc.unfreeze()


def _ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.fixture(autouse=True)
def _starts_no_ray(request):
    """Fails a test that starts Ray by other means and is not marked as slow."""
    before = _ray_runs()
    yield
    assert before or request.node.get_closest_marker("slow") or not _ray_runs(), "mark as slow what starts Ray"


def write_video(path: Path, frames: int = 20, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    """A real H.264 file: a bright block that moves over noise, so that no two frames are alike."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        colour = rng.integers(120, 255, 3)
        for index in range(frames):
            picture = np.roll(noise, index, axis=1)
            left = (index * 3 + seed * 7) % (width - 16)
            picture[8:24, left : left + 16] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video():
    """The writer of real little videos."""
    return write_video


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory) -> Path:
    """Twelve videos in three class folders."""
    root = tmp_path_factory.mktemp("videos")
    for index, name in enumerate(CLASSES):
        for number in range(4):
            write_video(root / name / f"{number}.mp4", frames=14 + 3 * number, seed=10 * index + number)
    return root


@pytest.fixture
def probes_here(request):
    """Lists' videos are opened in this process, but by tests that are marked `process` or `slow`."""
    from probed_here import probed_here

    if any(request.node.get_closest_marker(name) for name in ("process", "slow")):
        yield
        return
    with probed_here():
        yield


def write_model(path: Path, architecture: dict, seed: int, **pixels) -> Path:
    """A model with random weights that were saved, so that it counts as trained."""
    import torch

    from zar_ray.models.architecture import build_clip
    from zar_ray.models.checkpoints import save_checkpoint
    from zar_ray.video.transforms import Preprocessing

    torch.manual_seed(seed)
    save_checkpoint(build_clip(architecture), architecture, Preprocessing(**pixels), path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A CLIP of 32-pixel pictures."""
    return write_model(tmp_path_factory.mktemp("weights") / "tiny.safetensors", TINY, 7, input_size=32)


@pytest.fixture(scope="session")
def larger_checkpoint(tmp_path_factory) -> Path:
    """A model of larger pictures than the tiny one's, resized by another filter."""
    path = tmp_path_factory.mktemp("weights") / "larger.safetensors"
    return write_model(path, LARGER, 3, input_size=48, interpolation="bilinear")


@pytest.fixture(scope="session")
def decoder():
    """A process that decodes, with the limits of commands; it starts with the first video."""
    from zar_ray.video.sandbox import DecoderProcess

    with DecoderProcess(idle=True) as process:
        yield process


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared(repository) -> Path:
    """The sample files beside the checkout; a test that needs them is skipped where they are not."""
    folder = repository.parent / "shared"
    if not (folder / "videos").is_dir():
        pytest.skip("needs the sample videos that lie beside the checkout in development (../shared)")
    return folder


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    """One local Ray of two CPUs with little memory for all tests; on loopback, in a folder of its own."""
    import ray

    from zar_ray.serving.front import prepare_environment
    from zar_ray.serving.options import ServeConfig

    # As `serve run` does, for the tests of the service.
    prepare_environment(ServeConfig())
    import deadly_stages
    import forked_workers

    from zar_ray.evaluation import pipeline

    ray.cloudpickle.register_pickle_by_value(deadly_stages)
    before = pipeline.DecodeStage, pipeline.AdaptStage
    pipeline.DecodeStage, pipeline.AdaptStage = deadly_stages.DeadlyDecode, deadly_stages.DeadlyAdapt
    # pytest would keep Ray Data's debug lines, thousands of them, and print them under a failed test.
    logging.getLogger("ray.data").propagate = False
    # A socket's path may have 107 characters, which pytest's own folders use up.
    folder = Path("/tmp") / f"zar-ray-tests-{os.getpid()}"
    folder.mkdir()
    with forked_workers.forking(folder) as as_python:
        with as_python():
            ray.init(
                address="local",
                num_cpus=2,
                _memory=8 * 2**30,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
                logging_level="ERROR",
                log_to_driver=False,
            )
        yield
        ray.shutdown()
    pipeline.DecodeStage, pipeline.AdaptStage = before


@pytest.fixture(scope="session")
def finished_run(ray_cluster, tiny_checkpoint, video_folder, tmp_path_factory) -> Path:
    """The folder of one evaluation of the twelve videos by the tiny CLIP, to be read or copied, not to be changed."""
    import io

    from rich.console import Console

    from zar_ray.study.options import EvalConfig
    from zar_ray.study.run import run_study

    options = EvalConfig(
        dataset=str(video_folder),
        checkpoint=tiny_checkpoint,
        output=str(tmp_path_factory.mktemp("finished")),
        name="shown",
        mlflow=False,
        views={"frames": 4, "eval_frames": 4},
    )
    run_study(options, Console(file=io.StringIO()))
    return Path(options.output) / "shown"
