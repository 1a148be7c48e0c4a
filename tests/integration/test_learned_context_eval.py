"""`zar eval --context FILE.safetensors`, on a real local Ray: workers start from the file's vectors."""

from __future__ import annotations

import shutil

import pytest
import torch

from zar_ray.errors import ModelError, RunError
from zar_ray.models.learned_context import LearnedContext, save_context
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses

pytestmark = pytest.mark.slow

WORDS = "a video of a"


def test_a_run_is_of_the_contexts_content(evaluate, video_folder, tiny_checkpoint, tmp_path, monkeypatch):
    model = load_model(ModelOptions(checkpoint=tiny_checkpoint))
    words = PromptedClasses(model, ["one", "two"], WORDS).initial_context
    file, moved = tmp_path / "context.safetensors", tmp_path / "moved.safetensors"
    save_context(LearnedContext(words, WORDS, model.name, model.fingerprint), file)
    # Workers have working folders of their own.
    monkeypatch.chdir(tmp_path)
    learned = evaluate(video_folder, name="learned", context=file.name, limit=4)
    plain = evaluate(video_folder, here=True, name="plain", limit=4)

    def scores(ran):
        return {(row.video_id, row.method): row.top5_scores_after for row in ran.rows}

    assert scores(learned).keys() == scores(plain).keys()
    for key, expected in scores(plain).items():
        assert scores(learned)[key] == pytest.approx(expected, abs=1e-5)
    assert not {row.case_id for row in learned.rows} & {row.case_id for row in plain.rows}

    shutil.move(file, moved)
    again = evaluate(video_folder, here=True, name="learned", context=str(moved), resume=True, limit=4)
    assert (again.summary.resumed, again.summary.throughput.videos) == (4, 0)
    save_context(LearnedContext(words + torch.randn_like(words), WORDS, model.name, model.fingerprint), moved)
    with pytest.raises(RunError, match="prompts"):
        evaluate(video_folder, here=True, name="learned", context=str(moved), resume=True, limit=4)
    save_context(LearnedContext(words, WORDS, "another", "0123456789ab"), moved)
    with pytest.raises(ModelError, match=r"moved.safetensors: was learned for another \(0123456789ab\)"):
        evaluate(video_folder, here=True, name="refused", context=str(moved))
