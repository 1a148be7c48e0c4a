"""The system ``vificlip``, on a fixture whose reference numbers open_clip's own forward passes give."""

import open_clip
import pytest
import torch

from zar_ray.models.architecture import build_clip
from zar_ray.parity.recipe import recipe_input, recipe_state_dict
from zar_ray.parity.run import check_fixtures

SEED = 77
NAMES = ["Apply_Make_up", "ride bike", "jump"]
ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 64},
    "text_cfg": {"width": 64, "heads": 1, "layers": 2},
}


def missed(checks):
    return [check.name for check in checks if not check.ok]


def official_name(name):
    if name.startswith("visual."):
        return f"module.image_encoder.{name.removeprefix('visual.')}"
    return f"module.{name}" if name == "logit_scale" else f"module.text_encoder.{name}"


@pytest.fixture
def fixture_folder(tmp_path, write_fixture):
    reference = build_clip(ARCHITECTURE).eval()
    shapes = {name: list(tensor.shape) for name, tensor in reference.state_dict().items()}
    saved = {official_name(name): shape for name, shape in shapes.items() if name != "token_embedding.weight"}
    weights = recipe_state_dict(saved, SEED)
    base = recipe_state_dict(shapes, SEED)
    state = {name: base[name] if name == "token_embedding.weight" else weights[official_name(name)] for name in shapes}
    reference.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})

    frames = torch.from_numpy(recipe_input((2, 3, 3, 32, 32), SEED))
    with torch.no_grad():
        embeddings = reference.encode_image(frames.flatten(0, 1)).unflatten(0, (2, 3))
        video = embeddings.mean(dim=1)
        scale = reference.logit_scale.exp()

        def logits(ids):
            text = reference.encode_text(ids)
            return text, scale * video / video.norm(dim=-1, keepdim=True) @ (text / text.norm(dim=-1, keepdim=True)).T

        ids = open_clip.tokenize([f"a photo of a {name}." for name in NAMES])
        bare = open_clip.tokenize(NAMES)
        text, found = logits(ids)
        arrays = {
            "token_ids": ids,
            "token_ids_zs_eval": bare,
            "frame_embeddings": embeddings,
            "video_features": video,
            "text_features": text,
            "logits": found,
            "similarity": found.softmax(dim=-1),
            "logits_zs_eval": logits(bare)[1],
        }
        reference.token_embedding.weight.copy_(reference.token_embedding.weight.half().float())
        arrays["logits_fp16_rounded_tokens"] = logits(ids)[1]
    description = {
        "system": "vificlip",
        "seed": SEED,
        "config": {"trainer": {"CTX_INIT": "a photo of a"}},
        "class_names": NAMES,
        "checkpoint": {
            "model": saved,
            "base_clip": shapes,
            "derived_keys_in_model": {"module.prompt_learner.complete_text_embeddings": [3, 77, 64]},
        },
        "input_shape": list(frames.shape),
        "arrays": {name: {"what": "…"} for name in arrays},
    }
    return write_fixture(tmp_path / "vificlip", description, {name: value.numpy() for name, value in arrays.items()})


def test_every_array_is_within_tolerance(fixture_folder):
    checks = check_fixtures(fixture_folder)
    assert missed(checks) == []
    assert len(checks) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "amount"), [("token_ids", 1), ("logits", 1e-3), ("text_features", 1e-4), ("similarity", 1e-3)]
)
@pytest.mark.usefixtures("made_once")
def test_a_perturbed_array_is_the_only_miss(fixture_folder, change, name, amount):
    def perturb(arrays):
        arrays[name].flat[1] += amount

    change(fixture_folder, arrays=perturb)
    assert missed(check_fixtures(fixture_folder)) == [f"vificlip/{name}"]


def test_tensors_that_are_not_the_official_ones_to_drop_are_a_miss(fixture_folder, change):
    def describe(content):
        content["checkpoint"]["derived_keys_in_model"] = {}
        content["checkpoint"]["model"]["module.prompt_learner.token_prefix"] = [3, 1, 64]

    change(fixture_folder, describe=describe)
    assert missed(check_fixtures(fixture_folder)) == ["vificlip/left_out"]


def test_the_published_fixture(shared):
    folder = shared / "golden" / "open" / "vificlip"
    if not folder.is_dir():
        pytest.skip("needs the reference vectors that lie beside the checkout in development (../shared/golden)")
    checks = check_fixtures(folder)
    assert missed(checks) == []
    assert len(checks) == 13
