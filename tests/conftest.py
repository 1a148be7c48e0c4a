"""What tests of several packages share: real little videos, a tiny CLIP, one local Ray for the whole session."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Half of hypothesis' own number of examples; without a limit of time, as other processes take of it what they like.
settings.register_profile("zar-ray", max_examples=50, deadline=None)
settings.load_profile("zar-ray")

# A token of one test's cluster must not be asked for by another's, nor end up in the user's home.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("PYTHONWARNINGS", "ignore")
# As zar_ray sets it, which is imported after PyTorch here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses tests that would bring real processes into `make test-fast`."""
    unmarked = [
        item.nodeid
        for item in items
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("slow") is None
    ]
    if unmarked:
        raise pytest.UsageError(f"mark as slow what starts Ray or a browser: {', '.join(unmarked)}")


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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A CLIP of 32-pixel pictures with random weights that were saved, so that it counts as trained."""
    import torch

    from zar_ray.models.architecture import build_clip
    from zar_ray.models.checkpoints import save_checkpoint
    from zar_ray.video.transforms import Preprocessing

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(7)
    save_checkpoint(build_clip(TINY), TINY, Preprocessing(input_size=32), path)
    return path


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


def _deadly_files() -> None:
    """Runs in every Ray worker: a file's name says how it kills or hangs the process that touches it.

    A file that really crashes a decoder would depend on the decoder's version; the process's death is real.
    """
    import hashlib
    import importlib.abc
    import importlib.machinery
    import sys

    def note(path, line):
        with path.open("a") as file:
            file.write(f"{line}\n")

    def make_decoding_deadly(stage):
        decode = stage.decode_video

        def deadly_decode(path, *args, **kwargs):
            if "kills-decoder" in path:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hangs-decoder" in path:
                time.sleep(600)
            if "counted" in path:
                note(Path(path).parents[2] / "decoded.txt", path)
            if "surprises-decoder" in path:
                raise KeyError("nobody foresaw this")
            return decode(path, *args, **kwargs)

        stage.decode_video = deadly_decode

    def note_images(stage):
        model = stage.adapter.model
        if "encode_images" in vars(model):
            return
        encode = model.encode_images

        def noted(pixels):
            digests = (hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in pixels)
            note(Path(stage.spec.storage.path("encoded.txt")), "\n".join(digests))
            return encode(pixels)

        model.encode_images = noted

    def make_adapting_deadly(stage):
        predict = stage.AdaptStage._predict

        def deadly_predict(self, videos):
            names = " ".join(video.row["video_id"] for video in videos)
            if "kills-model" in names:
                os.kill(os.getpid(), signal.SIGKILL)
            for video in videos:
                if "counted" in video.row["video_id"]:
                    note(Path(self.spec.storage.path("adapted.txt")), video.row["video_id"])
            if "slow-model" in names:
                time.sleep(1)
            if "counted" in names:
                note_images(self)
            return predict(self, videos)

        stage.AdaptStage._predict = deadly_predict

    patches = {
        "zar_ray.evaluation.decode_stage": make_decoding_deadly,
        "zar_ray.evaluation.adapt_stage": make_adapting_deadly,
    }

    class PatchOnImport(importlib.abc.MetaPathFinder):
        """Waits for the import: a worker that never evaluates must not load PyTorch for this."""

        def find_spec(self, name, path, target=None):
            if name not in patches:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            load = spec.loader.exec_module

            def load_and_patch(module):
                load(module)
                patches[name](module)

            spec.loader.exec_module = load_and_patch
            return spec

    sys.meta_path.insert(0, PatchOnImport())


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    """One local Ray of two CPUs for all tests; on loopback, in a folder of its own."""
    import ray

    from zar_ray.serving.front import prepare_environment
    from zar_ray.serving.options import ServeConfig

    # As `serve run` does, for the tests of the service.
    prepare_environment(ServeConfig())
    # By value: workers cannot import the module that pytest calls conftest, and which of several bears that name here
    # depends on the tests that were chosen.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # pytest would keep Ray Data's debug lines, thousands of them, and print them under a failed test.
    logging.getLogger("ray.data").propagate = False
    # A socket's path may have 107 characters, which pytest's own folders use up.
    folder = Path("/tmp") / f"zar-ray-tests-{os.getpid()}"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": _deadly_files},
    )
    yield
    ray.shutdown()
