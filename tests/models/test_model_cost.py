"""What models hold and compute, against papers and against the real thing."""

import pytest
import torch

from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip, named_architecture
from zar_ray.models.clip import ClipModel
from zar_ray.models.cost import counted, image_gflops, parameter_count, view_gflops, weightless
from zar_ray.models.systems.registry import find_system
from zar_ray.video.transforms import Preprocessing

PIXELS = Preprocessing(input_size=224)
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def shape_of(name):
    system = find_system(name)
    additions = {} if system is None else system.additions
    return weightless({**named_architecture(system.clip if system else name), **additions}, name, PIXELS)


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "vificlip"])
def test_a_view_of_sixteen_frames_is_the_papers_281_gflops(name):
    shape = shape_of(name)
    assert view_gflops(shape, 16) == pytest.approx(281, rel=0.03)
    assert parameter_count(shape) == 149_620_737


def test_prompt_vectors_are_tokens_more():
    prompted = {**named_architecture("ViT-B-16-quickgelu"), "deep_prompts": {"vectors": 10, "depth": 12}}
    # Beside 197 in every layer.
    assert view_gflops(weightless(prompted, "vificlip", PIXELS), 16) == pytest.approx(281 * (1 + 10 / 197), rel=0.03)


def test_xclips_view_of_eight_frames_is_the_papers_145_gflops():
    # Ni et al., ECCV 2022, table 1: X-CLIP-B/16, 8 frames.
    assert view_gflops(shape_of("xclip"), 8) == pytest.approx(145, rel=0.03)


def test_no_weight_is_held():
    assert all(one.device.type == "meta" for one in shape_of("ezclip").parameters())


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"fusion": {"head": "Transf", "layers": 1}},
        {"temporal_adapters": {"frames": 4}},
        {"view_prompts": {"frames": 4}},
        {"cross_frames": {"frames": 4}},
        {"video_context": {"frames": 4, "context": 2, "seeds": 0.5, "merged": 3}},
    ],
    ids=lambda parts: next(iter(parts), "clip"),
)
def test_what_is_counted_without_weights_is_what_weights_compute(parts):
    architecture, pixels = {**TINY, **parts}, Preprocessing(input_size=32)
    model = ClipModel(build_clip(architecture), "tiny", pixels, architecture)
    shape = weightless(architecture, "tiny", pixels)
    assert view_gflops(shape, 4) == view_gflops(model, 4) > 0
    images = torch.randn(4, 3, 32, 32)
    assert 4 * image_gflops(shape) == pytest.approx(counted(lambda: model.clip.visual(images)), rel=1e-12)
    assert parameter_count(shape) == parameter_count(model)


@pytest.mark.parametrize("frames", [1, 8, 16])
def test_an_image_costs_the_same_alone_and_in_a_published_view(frames):
    tiny = weightless(TINY, "tiny", Preprocessing(input_size=32))
    for shape in (shape_of("ViT-B-16-quickgelu"), tiny):
        assert frames * image_gflops(shape) == pytest.approx(view_gflops(shape, frames), rel=1e-12)


def test_what_is_no_clip_is_refused():
    with pytest.raises(ModelError, match="not an open_clip model config"):
        weightless({**TINY, "embed_dim": "wide"}, "odd", PIXELS)
