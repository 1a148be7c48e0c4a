"""The embedded default: what `--dataset demo` needs before it can be evaluated, made on first use.

Both parts lie in ZAR_HOME/demo: the videos, and a tiny CLIP trained on them by the training job that `zar train` runs.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from zar_ray.data.synthetic import TRAINING_MANIFEST, write_synthetic
from zar_ray.options.layers import conf_dir, read_yaml, validate, zar_home
from zar_ray.study.options import EvalConfig
from zar_ray.training.options import TrainConfig

BENCHMARKS = ("demo", "demo-shifted")


def videos_folder() -> Path:
    """Where the demo's videos and manifests lie."""
    return zar_home() / "demo" / "videos"


def checkpoint_file() -> Path:
    """Where the demo's trained model lies."""
    return zar_home() / "demo" / "tiny-clip.safetensors"


def ensure_demo(options: EvalConfig, console: Console) -> None:
    """Writes the demo's videos and trains its model, where a run needs them and they are not there yet.

    Args:
        options: A run's options; of another dataset than the demo's nothing is made.
        console: Where progress is shown.

    Raises:
        ZarError: They cannot be written, or training failed.
    """
    if options.dataset not in BENCHMARKS:
        return
    folder = videos_folder()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("writing videos", total=None)
        if not folder.exists():
            console.print(f"writing the demo's videos into {folder}")
        write_synthetic(folder, progress=lambda done, total: bar.update(task, completed=done, total=total))
    if options.checkpoint != checkpoint_file() or checkpoint_file().is_file():
        return
    from zar_ray.training.job import run_training

    console.print("training a tiny CLIP on the training classes (about two minutes on two cores)")
    path, videos = conf_dir() / "train" / "demo.yaml", str(folder / TRAINING_MANIFEST)
    places = {"dataset": videos, "validation": videos, "output": str(checkpoint_file()), "mlflow": False}
    told = {name: getattr(options, name) for name in ("address", "device", "gpus_per_worker")}
    config = validate(TrainConfig, {**read_yaml(path), **places, **told}, str(path))
    run_training(config, console)
