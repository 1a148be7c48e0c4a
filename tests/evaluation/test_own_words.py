"""A model that was trained with words of its own: they are said, written down, and what its prompts start with."""

from __future__ import annotations

import pytest

from zar_ray.evaluation.planning import AskedModel, asked_settings, plan_model
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.study.options import EvalConfig


@pytest.fixture(scope="module")
def vificlip(tiny_checkpoint, tmp_path_factory):
    """The tiny CLIP as one of ViFi-CLIP's."""
    tiny, file = read_checkpoint(tiny_checkpoint), tmp_path_factory.mktemp("weights") / "vifi.safetensors"
    assert tiny.preprocessing is not None
    save_checkpoint(tiny.tensors, {**(tiny.architecture or {}), "system": "vificlip"}, tiny.preprocessing, file)
    return file


def planned(workload, checkpoint, **given):
    views = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}
    options = EvalConfig(checkpoint=checkpoint, views=views, device="cpu", method=("zero_shot",), **given)
    settings = asked_settings(AskedModel("it", (options,)), workload)
    return plan_model("it", 0, settings)


def test_they_are_said_and_written_down(workload, vificlip):
    model = planned(workload, vificlip)
    assert any('its prompts start with "a photo of a"' in remark for remark in model.remarks)
    (setting,) = model.settings
    assert setting.options.context == "a photo of a"
    assert {one.context for one in setting.prompts} == {"a photo of a"}
    named = planned(workload, vificlip, context="a photo of a")
    assert [case.case_id for case in named.cases] == [case.case_id for case in model.cases]


def test_other_words_go_before_them(workload, vificlip):
    model = planned(workload, vificlip, context="a video of a")
    assert model.settings[0].options.context == "a video of a"
    assert not any("prompts start" in remark for remark in model.remarks)


def test_a_plain_clip_says_nothing_and_writes_its_words_down(workload, tiny_checkpoint):
    model = planned(workload, tiny_checkpoint)
    assert model.settings[0].options.context == "a video of a"
    assert not any("prompts start" in remark for remark in model.remarks)


def test_a_template_stands_for_itself(workload, vificlip):
    model = planned(workload, vificlip, template="{}, an action")
    assert model.settings[0].options.context is None
    assert not any("prompts start" in remark for remark in model.remarks)
