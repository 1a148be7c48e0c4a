"""The published systems from training to decisions on a real local Ray: train, save, load, evaluate, ZAR."""

from __future__ import annotations

import av
import numpy as np
import pytest
import yaml

from zar_ray.errors import ZarError
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.training.options import TrainConfig

pytestmark = pytest.mark.slow

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SYSTEMS = {
    "vificlip": ({}, {"trains": "both", "lr": 3e-3}),
    "prompted": ({}, {"trains": "prompts", "prompt_vectors": 2, "prompt_depth": 2, "lr": 0.1}),
    "actionclip": (
        {"fusion": {"head": "Transf", "layers": 1}, "evaluation_scale": 100},
        {"loss": "matching", "trains": "all", "template": "actionclip", "fusion_lr": 2.0, "lr": 3e-3},
    ),
    "ezclip": (
        {"temporal_adapters": {"frames": 4}, "evaluation_scale": 100},
        {"loss": "matching", "trains": "added", "motion_loss": 1.0, "lr": 1e-2},
    ),
    "a5": (
        {"learned_texts": {}, "frame_layers": {"layers": 1, "frames": 4}, "evaluation_scale": 1 / 0.07},
        {"trains": "added", "lr": 3e-3},
    ),
    "vitaclip": ({"view_prompts": {"frames": 4}}, {"trains": "added", "lr": 3e-3}),
    "openvclip": (
        {"neighbour_frames": {"frames": 4}},
        {"trains": "image", "lr": 3e-3, "interpolated_loss": 0.5, "template": "clip_kinetics"},
    ),
    "tcclip": (
        {"video_context": {"frames": 4, "context": 3, "seeds": 0.5, "merged": 3}},
        {"trains": "both", "fusion_lr": 2.0, "lr": 3e-3},
    ),
    "xclip": ({"cross_frames": {"frames": 4}}, {"trains": "image", "fusion_lr": 2.0, "lr": 3e-3}),
}
TUNED = ("vificlip", "prompted", "actionclip", "ezclip", "openvclip", "vitaclip")
WHOLE = ("ezclip", "openvclip", "tcclip", "vitaclip", "xclip")
STEPS = 40
VIEWS = {"frames": 4, "eval_frames": 4, "views_per_rate": 2, "crops": 1}


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


@pytest.fixture(scope="module")
def trained(ray_cluster, videos, train, in_this_process, tmp_path_factory):
    """Trains a system once: its file, what the training returned, and the loss of its first step.

    In this process, as test_training.py has processes for both losses.
    """
    root, made = tmp_path_factory.mktemp("trained"), {}

    def trained_once(system):
        if system in made:
            return made[system]
        parts, options = SYSTEMS[system]
        (root / f"{system}.yaml").write_text(yaml.safe_dump({**TINY, **parts}))
        config = TrainConfig(
            dataset=str(videos),
            architecture=str(root / f"{system}.yaml"),
            frames=4,
            batch_size=6,
            micro_batch=6,
            steps=STEPS,
            warmup_steps=2,
            decays="all",
            cache_frames=4,
            validation=str(videos),
            validation_epochs=1000,
            output=root / f"{system}.safetensors",
            storage=str(root / "storage"),
            mlflow=False,
            **options,
        )
        with in_this_process():
            result, said = train(config)
        first = float(said.split(f"step 1/{STEPS}  loss ")[1].split()[0])
        made[system] = config.output, result, first
        return made[system]

    return trained_once


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_trains_and_its_file_is_the_system(trained, system):
    file, result, first = trained(system)
    assert result.steps == STEPS
    assert result.loss < first
    assert result.validations[-1].failed == 0
    model = load_model(ModelOptions(checkpoint=file, device="cpu"))
    assert (model.name, model.random_weights) == (system, False)
    assert model.frame_independent == (system not in WHOLE)


@pytest.mark.parametrize(
    ("methods", "systems"),
    [(("zero_shot", "zar"), TUNED), (("zero_shot",), [system for system in SYSTEMS if system not in TUNED])],
    ids=["tuned", "not tuned"],
)
def test_the_files_evaluate_side_by_side(trained, evaluate, videos, methods, systems):
    files = [trained(system)[0] for system in systems]
    # Prompts as files hold them travel to other processes in one of the two.
    here, names = systems != TUNED, [str(file) for file in files]
    ran = evaluate(videos, here=here, checkpoint=None, models=names, method=methods, views=VIEWS)
    assert [cell.coordinates["model"] for cell in ran.record.cells] == list(systems)
    for system, file, cell in zip(systems, files, ran.record.cells, strict=True):
        cases = cell.summary.cases
        assert tuple(case.method for case in cases) == methods
        expected = trained(system)[1].validations[-1].videos
        assert {case.headline.videos for case in cases} == {expected} == {9}
        assert cell.summary.model_fingerprint == load_model(ModelOptions(checkpoint=file, device="cpu")).fingerprint


def test_features_of_images_are_not_kept_where_a_view_is_a_whole(trained, evaluate, videos, tmp_path):
    options = {"checkpoint": trained("ezclip")[0], "method": ("zero_shot",), "views": VIEWS}
    with pytest.raises(ZarError, match=r"--features: .* encodes a view as a whole"):
        evaluate(videos, features=str(tmp_path / "features"), **options)
