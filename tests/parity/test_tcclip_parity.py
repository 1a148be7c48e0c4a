"""TC-CLIP on the numbers that its authors' code gave (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zar_ray.errors import ConfigError
from zar_ray.parity.run import check_fixtures

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden"


def missed(checks):
    return [check.name for check in checks if not check.ok]


@pytest.fixture
def folder(tmp_path, write_fixture):
    with np.load(GOLDEN / "tcclip.npz") as file:
        arrays = dict(file)
    return write_fixture(tmp_path / "tcclip", json.loads((GOLDEN / "tcclip.json").read_text()), arrays)


@pytest.mark.usefixtures("made_once")
def test_every_array_is_within_tolerance(folder):
    checks = check_fixtures(folder)
    assert missed(checks) == []
    assert len(checks) == 10


@pytest.mark.parametrize(
    ("name", "perturb"),
    [
        ("context_tokens", lambda one: one * np.float32(1.001)),
        ("frame_embeddings", lambda one: one * np.float32(1.001)),
        ("text_features", lambda one: one * np.float32(1.001)),
        ("logits", lambda one: one * np.float32(1.001)),
        ("source_layer0_groups", lambda one: np.where(one == 3, 4, one)),
        ("token_ids", lambda one: one + 1),
    ],
)
@pytest.mark.usefixtures("made_once")
def test_a_perturbed_array_is_the_only_miss(folder, change, name, perturb):
    change(folder, arrays=lambda arrays: arrays.update({name: perturb(arrays[name])}))
    assert missed(check_fixtures(folder)) == [f"tcclip/{name}"]


def test_a_setting_that_no_tensor_tells_is_followed(folder, change):
    change(folder, describe=lambda content: content["config"]["trainer"].update(tome_r=60))
    assert "tcclip/logits" in missed(check_fixtures(folder))


@pytest.mark.parametrize("settings", [{"tome_d": 2}, {"prompt_generation_layer_level": 1}])
def test_what_is_not_known_is_refused(folder, change, settings):
    change(folder, describe=lambda content: content["config"]["trainer"].update(settings))
    with pytest.raises(ConfigError, match="tome_d is 0 here, and prompts are made in front of the last text layer"):
        check_fixtures(folder)


def test_the_published_fixture(shared):
    folder = shared / "golden" / "open" / "tcclip"
    if not folder.is_dir():
        pytest.skip("needs the reference vectors that lie beside the checkout in development (../shared/golden)")
    assert missed(check_fixtures(folder)) == []
