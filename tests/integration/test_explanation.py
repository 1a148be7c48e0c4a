"""Maps of a real run: the run's own video, weights and tuning, or a refusal that says what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.errors import ModelError, RunError
from zar_ray.explain import explanation
from zar_ray.models.attention import class_relevance
from zar_ray.reporting import html_report
from zar_ray.reporting.attention_figures import attention_figure
from zar_ray.reporting.run_data import StudyData
from zar_ray.video.sandbox import DecoderProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed():
    """Filled by the first test that needs a run; none changes it."""
    return {}


@pytest.fixture
def ran(undisturbed, evaluate, video_folder, tmp_path_factory):
    if not undisturbed:
        # A passing test's own folder goes with it.
        output = str(tmp_path_factory.mktemp("explained"))
        undisturbed["ran"] = evaluate(
            video_folder, here=True, name="explained", output=output, limit=3, zar={"lr": 0.05}
        )
    return undisturbed["ran"]


def place(ran) -> str:
    return ran.folder.storage.path()


def maps_of(run: str, video_ids) -> tuple[explanation.VideoMaps, ...]:
    with DecoderProcess(idle=True) as decoder:
        return html_report.maps_of(StudyData.read(run).cells[0], video_ids, decoder)


def zar_rows(ran):
    return {row.video_id: row for row in ran.rows if row.method == "zar"}


def test_figures_are_of_the_run_s_own_decisions(ran):
    rows = zar_rows(ran)
    figures = [attention_figure(maps, frames_shown=2) for maps in maps_of(place(ran), list(rows))]
    assert [figure.caption.split(". ")[0] for figure in figures] == list(rows)
    names = ("blue bar", "green square", "red circle")
    for figure, row in zip(figures, rows.values(), strict=True):
        assert figure.picture.uri.startswith("data:image/png;base64,")
        assert f"{names[row.top5_after[0]]} (predicted)" in figure.caption
        assert ("(right)" in figure.caption) == (not row.correct_after)
        assert "differ from the run's" not in figure.caption


def test_maps_are_of_the_view_and_the_text_that_decided(ran, monkeypatch):
    """The logit that relevance is taken of, computed from what the maps are computed from, is the run's own."""
    given = []

    def recorded(model, pixels, texts):
        given.append((model, pixels, texts))
        return class_relevance(model, pixels, texts)

    monkeypatch.setattr(explanation, "class_relevance", recorded)
    row = next(row for row in zar_rows(ran).values() if not row.correct_after)
    maps_of(place(ran), [row.video_id])
    ((model, pixels, texts),) = given
    view = normalize(model.encode_images(pixels).mean(dim=0), dim=-1)
    before, after = (model.logit_scale * texts @ view).reshape(2, 2)
    for (predicted, right), when in ((before, "before"), (after, "after")):
        scores = dict(zip(getattr(row, f"top5_{when}"), getattr(row, f"top5_scores_{when}"), strict=True))
        odds = scores[row.top5_after[0]] / scores[row.label_id]
        assert (predicted - right).exp().item() == pytest.approx(odds, rel=1e-3)
    assert not torch.allclose(before, after, atol=1e-3)


def test_several_evaluation_views_are_explained_by_one(evaluate, video_folder):
    views = {"frames": 4, "eval_frames": 4, "eval_views": "2x3"}
    ran = evaluate(video_folder, here=True, name="several", limit=1, views=views)
    (maps,) = maps_of(place(ran), list(zar_rows(ran)))
    assert maps.remarks == ("The run averages its 2x3 evaluation views; shown is the centre crop.",)


def test_what_is_not_the_run_s_is_refused_in_one_line(ran, evaluate, video_folder, tmp_path):
    run = place(ran)
    with pytest.raises(RunError, match=r'has no video "blue bar/9.mp4"; did you mean'):
        maps_of(run, ["blue bar/9.mp4"])
    with pytest.raises(RunError, match=r"holds no run\.json"):
        maps_of(str(tmp_path), [])
    untuned = evaluate(video_folder, here=True, name="untuned", limit=1, method=["zero_shot"])
    with pytest.raises(RunError, match="tunes nothing"):
        maps_of(place(untuned), [])
    online = evaluate(video_folder, here=True, name="online", limit=1, method=["zar"], zar={"stream": True})
    with pytest.raises(RunError, match="its context went on from video to video"):
        maps_of(place(online), [row.video_id for row in online.rows])

    changed = Path(shutil.copytree(run, tmp_path / "changed"))
    record = json.loads((changed / "run.json").read_text())
    (cell,) = record["study"]["cells"]
    cell["summary"]["model_fingerprint"] = "0123456789ab"
    (changed / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="its model was 0123456789ab"):
        maps_of(str(changed), [])
    cell["config"]["checkpoint"] = str(tmp_path / "gone.safetensors")
    (changed / "run.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        maps_of(str(changed), [])


def test_class_texts_that_have_changed_are_noticed(evaluate, video_folder, tmp_path):
    texts = tmp_path / "texts.csv"
    texts.write_text("class,text\nblue bar,a bar\ngreen square,a square\nred circle,a circle\n")
    whole = {"class_texts": texts, "template": "a video of a {}."}
    ran = evaluate(video_folder, here=True, name="texts", limit=1, **whole)
    assert len(maps_of(place(ran), list(zar_rows(ran)))) == 1
    texts.write_text(texts.read_text().replace("a circle", "a disc"))
    with pytest.raises(RunError, match="its texts of the classes have changed since"):
        maps_of(place(ran), [])


def test_a_video_that_failed_is_damaged_or_gone_is_named(evaluate, make_video, tmp_path, shared):
    kept = make_video(tmp_path / "videos" / "a" / "0.mp4")
    (tmp_path / "videos" / "b").mkdir()
    (tmp_path / "videos" / "b" / "1.mp4").write_text("no video")
    ran = evaluate(tmp_path / "videos", here=True, name="gone", max_failed=1.0)
    with pytest.raises(RunError, match=r"^b/1.mp4: failed in this run"):
        maps_of(place(ran), ["b/1.mp4"])
    shutil.copyfile(shared / "videos" / "hard" / "aborts_decord.avi", kept)
    with pytest.raises(RunError, match=r"a/0\.mp4: 58 frames of 128×96"):
        maps_of(place(ran), ["a/0.mp4"])
    kept.unlink()
    with pytest.raises(RunError, match=r"a/0\.mp4: "):
        maps_of(place(ran), ["a/0.mp4"])
