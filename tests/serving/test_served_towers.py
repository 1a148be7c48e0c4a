"""Models that came after CLIP behind the service, from folders that describe them, without a network."""

from __future__ import annotations

import pytest
from text_kits import TINY_MODELS, tiny_model

from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import predict
from zar_ray.video.options import ViewConfig

LABELS = ("riding a horse", "walking the dog", "cooking an egg", "playing chess")
VIEWS = {"frames": 4, "eval_frames": 4, "views_per_rate": 2, "crops": 3}


@pytest.mark.process
@pytest.mark.parametrize("kind", TINY_MODELS)
def test_answers_are_those_of_zar_predict(served, make_video, tmp_path, monkeypatch, kind, decoder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = f"local-dir:{tiny_model(kind, tmp_path / kind)}"
    video = make_video(tmp_path / "one.mp4", frames=30, seed=3)
    client, backend = served(model=named, checkpoint=None, views=VIEWS)
    with video.open("rb") as stream:
        data = {"candidate_labels": list(LABELS), "method": "zar", "seed": "5", "top_k": "4"}
        answer = client.post("/v1/classify", files={"video": (video.name, stream)}, data=data).json()
    options = PredictConfig(
        model=named, videos=(str(video),), method=("zar",), seed=5, views=ViewConfig(**VIEWS), device="cpu"
    )
    (local,) = predict(backend.classifier.model, LABELS, options, decoder)
    for ours, theirs in ((answer["before"], local.before), (answer["after"], local.after)):
        assert [one["label"] for one in ours] == [one.label for one in theirs]
        assert [one["score"] for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-6)
    before, after = ([one["score"] for one in answer[when]] for when in ("before", "after"))
    assert before != after, "tuning moved nothing"
    assert answer["model"]["name"] == kind
