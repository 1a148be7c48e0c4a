import hashlib
import zlib

import numpy as np
import pytest

from zar_ray.parity.recipe import recipe_digest, recipe_input, recipe_state_dict, recipe_tensor


def noise(name, shape, seed):
    state = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    return state.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "shape", "scale", "shift"),
    [
        ("module.prompts_generator.alpha", (4,), 0.02, 0.1),
        ("token_embedding.weight", (6, 4), 0.05, 0),
        ("visual.class_embedding", (6,), 0.05, 0),
        ("prompt_learner.ctx", (4, 8), 0.05, 0),
        ("module.transformer.cls_token", (1, 1, 8), 0.05, 0),
        ("ln_final.weight", (6,), 0.1, 1),
        ("ln_final.bias", (6,), 0.02, 0),
        ("something", (), 0.02, 0),
        ("visual.proj", (16, 4), 1 / 4, 0),
        ("text_projection", (64, 4), 1 / 8, 0),
        ("visual.conv1.weight", (5, 4, 2, 2), 1 / 4, 0),
        ("attn.out_proj.weight", (4, 16), 1 / 4, 0),
    ],
)
def test_rules(name, shape, scale, shift):
    for seed in (1234, 2**31 + 5):
        tensor = recipe_tensor(name, shape, seed)
        assert tensor.dtype == np.float32
        assert tensor.shape == shape
        assert np.allclose(tensor, noise(name, shape, seed) * scale + shift, atol=1e-7)


def test_logit_scale_is_clips():
    assert np.exp(recipe_tensor("module.logit_scale", (), 5)) == pytest.approx(100)


def test_input_is_keyed_by_the_seed_alone():
    expected = np.random.RandomState(8).standard_normal((2, 3)).astype(np.float32)
    assert np.array_equal(recipe_input((2, 3), 7), expected)


def test_digest_is_over_names_shapes_and_values():
    arrays = recipe_state_dict({"b": [2, 2], "a": []}, 3)
    expected = hashlib.sha256(b"a()" + arrays["a"].tobytes() + b"b(2, 2)" + arrays["b"].tobytes()).hexdigest()
    assert recipe_digest(arrays) == expected
    assert recipe_digest({"a": arrays["b"], "b": arrays["a"]}) != expected
