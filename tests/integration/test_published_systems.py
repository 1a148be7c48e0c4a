"""The published systems from training to decisions on a real local Ray: train, save, load, evaluate, ZAR."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import yaml
from rich.console import Console

from zar_ray.config import EvalConfig, ModelOptions, TrainConfig
from zar_ray.errors import ZarError
from zar_ray.evaluation.job import run_evaluation
from zar_ray.models.loading import load_model
from zar_ray.training.job import run_training

pytestmark = pytest.mark.slow

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SYSTEMS = {
    "actionclip": (
        {"fusion": {"head": "Transf", "layers": 1}, "evaluation_scale": 100},
        {"loss": "matching", "trains": "all", "template": "actionclip", "fusion_lr": 2.0, "lr": 3e-3},
    ),
    "ezclip": (
        {"temporal_adapters": {"frames": 4}, "evaluation_scale": 100},
        {"loss": "matching", "trains": "added", "motion_loss": 1.0, "lr": 1e-2},
    ),
    "a5": (
        {"learned_texts": {}, "fusion": {"head": "A5", "layers": 1, "frames": 4}, "evaluation_scale": 1 / 0.07},
        {"trains": "added", "lr": 3e-3},
    ),
    "vitaclip": ({"view_prompts": {"frames": 4}}, {"trains": "added", "lr": 3e-3}),
    "xclip": ({"cross_frames": {"frames": 4}}, {"trains": "image", "fusion_lr": 2.0, "lr": 3e-3}),
}
TUNED = ("actionclip", "ezclip", "vitaclip")
WHOLE = ("ezclip", "vitaclip", "xclip")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three classes, each of a colour that gets brighter, so that even a frozen tower of random weights sees them."""
    root = tmp_path_factory.mktemp("coloured")
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for length in (14, 17, 20):
            picture = np.full((48, 64, 3), 30, np.uint8)
            with av.open(str(root / name / f"{length}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for index in range(length):
                    picture[..., channel] = 160 + 4 * index
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode(None))
    return root


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_trains_and_its_file_evaluates_and_is_tuned(ray_cluster, videos, tmp_path, system):
    parts, options = SYSTEMS[system]
    (tmp_path / f"{system}.yaml").write_text(yaml.safe_dump({**TINY, **parts}))
    config = TrainConfig(
        dataset=str(videos),
        architecture=str(tmp_path / f"{system}.yaml"),
        frames=4,
        batch_size=6,
        micro_batch=6,
        steps=40,
        warmup_steps=2,
        decays="all",
        cache_frames=4,
        validation=str(videos),
        validation_epochs=1000,
        output=tmp_path / "trained.safetensors",
        storage=str(tmp_path / "storage"),
        mlflow=False,
        **options,
    )
    said = io.StringIO()
    result = run_training(config, Console(file=said, width=200))
    first = float(said.getvalue().split("step 1/40  loss ")[1].split()[0])
    assert result.loss < first
    assert result.validations[-1].failed == 0

    model = load_model(ModelOptions(checkpoint=config.output, device="cpu"))
    assert model.frame_independent == (system not in WHOLE)
    methods = ("zero_shot", "zar") if system in TUNED else ("zero_shot",)
    evaluation = EvalConfig(
        dataset=str(videos),
        checkpoint=config.output,
        method=methods,
        views={"frames": 4, "eval_frames": 4, "views_per_rate": 2, "crops": 1},
        output=str(tmp_path / "runs"),
        mlflow=False,
    )
    summary = run_evaluation(evaluation, Console(file=io.StringIO()))
    assert tuple(case.method for case in summary.cases) == methods
    assert {case.headline.videos for case in summary.cases} == {result.validations[-1].videos}
    assert summary.model_fingerprint == model.fingerprint
    if system == "ezclip":
        with pytest.raises(ZarError, match=r"--features: .* encodes a view as a whole"):
            run_evaluation(
                evaluation.model_copy(update={"features": str(tmp_path / "features")}), Console(file=io.StringIO())
            )
