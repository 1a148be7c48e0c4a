"""Models that came after CLIP through `zar eval` and `zar predict`, from folders that describe them."""

from __future__ import annotations

import pytest
from text_kits import TINY_MODELS, tiny_model

from zar_ray.commands.main import main

pytestmark = pytest.mark.slow

VIEWS = {"frames": 4, "eval_frames": 4, "views_per_rate": 2, "crops": 1}


@pytest.fixture
def videos(make_video, tmp_path):
    for name in ("run", "jump"):
        for seed in (1, 2):
            make_video(tmp_path / "videos" / name / f"{seed}.mp4", frames=20, seed=seed)
    return tmp_path / "videos"


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_a_folder_without_a_network_is_evaluated_and_predicts(evaluate, videos, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = f"local-dir:{tiny_model(kind, tmp_path / kind)}"
    ran = evaluate(videos, here=True, model=named, checkpoint=None, views=VIEWS, method=["zero_shot", "zar"])
    assert [row.error for row in ran.rows] == [None] * 8
    by_method = {row.case_id.partition("-")[0]: row for row in ran.rows}
    assert len(by_method) == 2
    assert kind in ran.printed
    words = ["predict", str(videos / "run" / "1.mp4"), "--labels", "run,jump", "--model", named]
    assert main([*words, "--views.frames", "4", "--views.eval-frames", "4", "--device", "cpu"]) == 0
    assert "jump" in capsys.readouterr().out
