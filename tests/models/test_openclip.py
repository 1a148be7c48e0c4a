"""open_clip without the libraries of towers that hardly any model has, and with them where one has them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from zar_ray.models.architecture import build_clip
from zar_ray.models.openclip import _Compiler, _uploads, open_clip

IMPORTS = """
import sys
import zar_ray.evaluation.stages.adapt
heavy = {"huggingface_hub.hf_api", "sympy", "timm", "torch._dynamo", "torch._dynamo.utils", "transformers"}
print(*heavy & sys.modules.keys())
"""


@pytest.mark.process
def test_what_predicts_loads_no_compiler_and_no_towers_of_others():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_stands_in_for_the_compiler_is_gone_and_hands_on_what_it_is_asked():
    roi_align = sys.modules["torchvision.ops.roi_align"]
    stand_in = _Compiler("torch._dynamo.utils")
    assert not hasattr(stand_in, "__file__")
    assert roi_align.is_compile_supported("cpu") is stand_in.is_compile_supported("cpu") is True
    assert stand_in.counters is sys.modules["torch._dynamo.utils"].counters


def test_an_upload_is_open_clips_own(monkeypatch):
    asked = []
    own = importlib.import_module("open_clip.push_to_hf_hub")
    for number, name in enumerate(("push_to_hf_hub", "push_pretrained_to_hf_hub")):
        monkeypatch.setattr(own, name, lambda *args, **more: asked.append((args, more)))
        monkeypatch.setattr(open_clip, name, getattr(_uploads(), name))
        getattr(open_clip, name)(number, repo_id="someone/model")
        assert getattr(open_clip, name) is getattr(own, name), "from then on it is open_clip's own"
    assert asked == [((0,), {"repo_id": "someone/model"}), ((1,), {"repo_id": "someone/model"})]


def test_an_image_tower_of_timms_is_built_and_computes(architecture):
    architecture["vision_cfg"] = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "mlp"}
    clip = build_clip(architecture).eval()
    assert type(clip.visual.trunk).__module__ == "timm.models.resnet"
    with torch.no_grad():
        assert clip.encode_image(torch.randn(2, 3, 32, 32)).shape == (2, architecture["embed_dim"])
    assert isinstance(clip.visual, open_clip.model.TimmModel), "from then on it is open_clip's own"


def test_a_text_tower_of_hugging_faces_is_open_clips_to_build(tmp_path):
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_proj_type": "mlp"}
    tower = open_clip.model._build_text_tower(4, open_clip.CLIPTextCfg(**text))
    assert tower(torch.tensor([[101, 7, 102]])).shape == (1, 4)
