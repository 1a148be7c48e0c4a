"""The published systems on the numbers that their official code gave (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zar_ray.models.architecture import build_clip
from zar_ray.parity.run import check_fixtures

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden"
DERIVED = {"module.prompt_learner.token_prefix": [7, 1, 64], "module.prompt_learner.token_suffix": [7, 68, 64]}
POSITIONS = [77, 64]  # of the table that every head is saved with


def missed(checks):
    return [check.name for check in checks if not check.ok]


def shapes_of(architecture):
    return {name: list(tensor.shape) for name, tensor in build_clip(architecture).state_dict().items()}


def a5_shapes(architecture, layers):
    """Under the official names, with the table of positions that is saved even where nothing reads it."""
    whole = shapes_of({**architecture, "frame_layers": {"layers": max(1, layers), "frames": 4}})
    clip = {f"clipmodel.{name}": shape for name, shape in whole.items() if not name.startswith("fusion.")}
    head = {name.removeprefix("fusion."): shape for name, shape in whole.items() if name.startswith("fusion.")}
    kept = {name: shape for name, shape in head.items() if layers or name == "temporalEmbedding.weight"}
    return {**clip, "embedding.weight": POSITIONS, **kept}


def vita_shapes(architecture, context):
    """Under the official names: queries, keys and values apart in the image tower, and a bias of its patches."""
    whole = shapes_of({**architecture, "view_prompts": {"frames": 4, "context": None}})
    renamed = {
        "visual.class_embedding": "visual.cls_token",
        "visual.positional_embedding": "visual.pos_embed",
        "visual.conv1.weight": "visual.patch_embed.proj.weight",
    }
    parts = (("ln_1.", "norm1."), ("ln_2.", "norm2."), ("mlp.c_fc.", "mlp.fc1."), ("mlp.c_proj.", "mlp.fc2."))
    found = {"visual.patch_embed.proj.bias": whole["visual.conv1.weight"][:1], "prompt_learner.ctx": context}
    for name, shape in whole.items():
        if not name.startswith("visual."):
            found[name if name == "logit_scale" else f"textual.{name}"] = shape
            continue
        name = renamed.get(name, name).replace("transformer.resblocks.", "blocks.")
        for ours, theirs in parts:
            name = name.replace(ours, theirs)
        if ".attn.in_proj_" in name:
            kind = name.rpartition("_")[2]
            third = [shape[0] // 3, *shape[1:]]
            found |= {name.replace(f"in_proj_{kind}", f"{one}_proj.{kind}"): third for one in "qkv"}
        else:
            found[name] = shape
    return {"model": {f"module.{name}": shape for name, shape in found.items()}, "derived_keys": DERIVED}


def checkpoint_of(system, facts, architecture):
    if system == "ezclip":
        return {"model_state_dict": shapes_of({**architecture, "temporal_adapters": {"frames": 4}})}
    if system == "xclip":
        whole = shapes_of({**architecture, "cross_frames": {"frames": 4}})
        return {"model": {f"module.{name.removeprefix('fusion.')}": shape for name, shape in whole.items()}}
    if system == "vitaclip":
        return {"csc": vita_shapes(architecture, [7, 8, 64]), "generic": vita_shapes(architecture, [8, 64])}
    if system == "a5":
        return {"state_dict": {name: a5_shapes(architecture, count) for name, count in facts["layers"].items()}}
    plain, heads = shapes_of(architecture), {}
    for head, settings in facts["heads"].items():
        whole = shapes_of({**architecture, "fusion": {"head": head, **settings}})
        own = {f"module.{name.removeprefix('fusion.')}": whole[name] for name in whole.keys() - plain.keys()}
        heads[head] = {**own, "module.frame_position_embeddings.weight": POSITIONS} if own else {}
    return {"model_state_dict": plain, "fusion_model_state_dict": heads}


@pytest.fixture(scope="session")
def golden():
    return json.loads((GOLDEN / "systems.json").read_text())


@pytest.fixture
def make(tmp_path, write_fixture, golden):
    def write(system):
        facts = golden[system]
        with np.load(GOLDEN / f"{system}.npz") as file:
            arrays = dict(file)
        description = {
            "system": system,
            "config": {"combos": facts.get("combos"), "text_num_prompts": 8},
            "checkpoint": checkpoint_of(system, facts, golden["architecture"]),
            "arrays": {name: {"what": "…"} for name in arrays},
            **{name: value for name, value in facts.items() if name not in ("heads", "source", "combos", "layers")},
        }
        return write_fixture(tmp_path / system, description, arrays)

    return write


@pytest.mark.parametrize(
    ("system", "count"), [("actionclip", 43), ("ezclip", 16), ("a5", 33), ("vitaclip", 14), ("xclip", 14)]
)
@pytest.mark.usefixtures("made_once")
def test_every_array_is_within_tolerance(make, system, count):
    checks = check_fixtures(make(system))
    assert missed(checks) == []
    assert len(checks) == count


@pytest.mark.parametrize(
    ("system", "config", "others"),
    [
        ("a5", {"tfm_heads": 2}, {"p16_t1/pixels/logits", "p4_t1/features/logits"}),
        ("vitaclip", {"text_prompt_pos": "middle"}, {"csc/text_features", "generic/logits"}),
    ],
)
def test_what_no_tensor_tells_is_what_the_fixture_says(make, change, system, config, others):
    folder = make(system)
    change(folder, describe=lambda content: content["config"].update(config))
    found = {name.removeprefix(f"{system}/") for name in missed(check_fixtures(folder))}
    assert others <= found
    assert not {name for name in found if name.startswith("p16_t0/")}  # which has no layers, and so no heads


@pytest.mark.parametrize(
    ("system", "name", "factor"),
    [
        ("actionclip", "Transf/video_features", 1.01),
        ("actionclip", "Transf_cls/logits", 1.0001),
        ("actionclip", "Conv_1D/losses", 1.0001),
        ("actionclip", "LSTM/grad_norms", 1.01),
        ("actionclip", "meanP/similarity", 1.01),
        ("ezclip", "frame_embeddings", 1.01),
        ("ezclip", "losses", 1.0001),
        ("ezclip", "grad_norms", 1.01),
        ("ezclip", "grad_T_prompt_embeddings", 1.01),
        ("a5", "p16_t1/text_features", 1.01),
        ("a5", "p4_t1/features/video_features", 1.01),
        ("a5", "p16_t0/grad_norms", 1.01),
        ("a5", "p4_t1/prompt_actiontoken", 2),
        ("xclip", "text_prompts", 1.01),
        ("xclip", "frame_patch_tokens", 1.001),
        ("xclip", "logits", 1.001),
        ("xclip", "grad_norms", 1.01),
        ("vitaclip", "video_features", 1.01),
        ("vitaclip", "csc/text_features", 1.01),
        ("vitaclip", "generic/logits", 1.001),
        ("vitaclip", "grad_norms", 1.01),
    ],
)
@pytest.mark.usefixtures("made_once")
def test_a_perturbed_array_is_the_only_miss(make, change, system, name, factor):
    folder = make(system)

    def perturb(arrays):
        arrays[name] = arrays[name] * np.float32(factor)

    change(folder, arrays=perturb)
    assert missed(check_fixtures(folder)) == [f"{system}/{name}"]


@pytest.mark.usefixtures("made_once")
def test_the_smallest_gradient_norm_is_held_to_its_own_size(make, change):
    folder = make("actionclip")

    def perturb(arrays):
        norms = arrays["Transf/grad_norms"]
        norms[norms.argmin()] *= 1.002

    change(folder, arrays=perturb)
    assert missed(check_fixtures(folder)) == ["actionclip/Transf/grad_norms"]


def test_another_parameter_in_training_is_a_miss(make, change):
    folder = make("ezclip")
    change(folder, describe=lambda content: content["trainable"].append("visual.temporal_embedding"))
    assert missed(check_fixtures(folder)) == ["ezclip/trainable"]


@pytest.mark.parametrize("system", ["actionclip", "ezclip", "a5", "vitaclip", "xclip"])
def test_the_published_fixture(shared, system):
    folder = shared / "golden" / "open" / system
    if not folder.is_dir():
        pytest.skip("needs the reference vectors that lie beside the checkout in development (../shared/golden)")
    assert missed(check_fixtures(folder)) == []
