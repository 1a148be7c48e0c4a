"""`zar predict`: given labels, given files, no manifest and no Ray."""

from __future__ import annotations

import csv
import json
import statistics

import pytest
from deadly_decoders import DEADLY

from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import predict as predictions
from zar_ray.commands.predict import predict_command
from zar_ray.models.loading import load_model
from zar_ray.study.options import EvalConfig
from zar_ray.video.sandbox import DecoderProcess

pytestmark = pytest.mark.process

LABELS = "jumping high,riding a bike,swimming"


@pytest.fixture
def predict(tiny_checkpoint, capsys):
    def run(*words):
        status = predict_command([*words, "--checkpoint", str(tiny_checkpoint), "--views.frames", "4"])
        return status, capsys.readouterr()

    return run


def test_labels_are_ranked_before_and_after(predict, video_folder):
    videos = [str(video_folder / "red circle" / "0.mp4"), str(video_folder / "blue bar" / "1.mp4")]
    status, said = predict(*videos, "--labels", LABELS, "--json-lines", "--method", "zero_shot", "zar")
    rankings = [json.loads(line) for line in said.out.splitlines()]
    assert status == 0
    assert [(r["video"], r["method"]) for r in rankings] == [(v, m) for v in videos for m in ("zero_shot", "zar")]
    for ranking in rankings:
        for when in ("before", "after"):
            scores = [one["score"] for one in ranking[when]]
            assert scores == sorted(scores, reverse=True)
            assert sum(scores) == pytest.approx(1)
            assert {one["label"] for one in ranking[when]} == set(LABELS.split(","))
    assert rankings[0]["before"] == rankings[0]["after"] == rankings[1]["before"]
    assert rankings[1]["before"] != rankings[1]["after"]


def test_every_method_ranks_files_without_ray(predict, video_folder):
    methods = ("zero_shot", "zar", "tpt", "memo", "tent", "tda")
    videos = [str(video_folder / "red circle" / f"{number}.mp4") for number in range(2)]
    words = ("--labels", LABELS, "--json-lines", "--method", *methods, "--tpt.views", "4", "--memo.lr", "0.001")
    status, said = predict(*videos, *words)
    rankings = [json.loads(line) for line in said.out.splitlines()]
    assert status == 0
    assert [one["method"] for one in rankings] == [*methods, *methods]
    scores = {(one["video"], one["method"]): {r["label"]: r["score"] for r in one["after"]} for one in rankings}
    for one in rankings:
        plain = scores[one["video"], "zero_shot"]
        assert {r["label"]: r["score"] for r in one["before"]} == pytest.approx(plain, abs=1e-5)
        assert (scores[one["video"], one["method"]] == pytest.approx(plain, abs=1e-7)) == (one["method"] == "zero_shot")


def test_a_bad_file_costs_its_own_line_and_the_status(predict, video_folder, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    good = str(video_folder / "red circle" / "0.mp4")
    status, said = predict(str(tmp_path / "text.mp4"), good, "--labels", LABELS)
    assert status == 1
    assert "failed:" in said.out
    assert "swimming" in said.out
    assert "Traceback" not in said.out + said.err


def test_files_that_would_abort_decord_or_swell_cost_their_own_lines(predict, video_folder, shared):
    hard, good = shared / "videos" / "hard", str(video_folder / "red circle" / "0.mp4")
    bad = [str(hard / name) for name in ("aborts_decord.avi", "strip2000x4.mp4")]
    status, said = predict(bad[0], good, bad[1], "--labels", LABELS, "--json-lines", "--views.short-side", "224")
    aborts, ranked, swells = (json.loads(line) for line in said.out.splitlines())
    assert (status, said.err) == (1, "")
    assert aborts["error"].startswith("decoding fails near frame 0 of 58: ")
    assert "frames of 112000×224 pixels after resizing take" in swells["error"]
    assert (ranked["video"], ranked["error"]) == (good, None)


def test_a_file_that_hangs_its_decoder_costs_its_own_line(tiny_checkpoint, video_folder, tmp_path):
    good = video_folder / "red circle" / "0.mp4"
    videos = [tmp_path / "hang.mp4", tmp_path / "segv.mp4", good]
    for video in videos[:2]:
        video.write_bytes(good.read_bytes())
    options = PredictConfig(
        checkpoint=tiny_checkpoint, videos=tuple(map(str, videos)), method=("zero_shot",), decode_timeout=1.0
    )
    with DecoderProcess(program=DEADLY) as decoder:
        hangs, crashes, ranked = predictions(load_model(options), tuple(LABELS.split(",")), options, decoder)
    assert hangs.error == "took longer than 1 s to decode"
    assert crashes.error == "its decoder was killed by SIGSEGV"
    assert (ranked.error, len(ranked.after)) == (None, 3)


def test_the_folder_a_file_lies_in_does_not_matter(predict, video_folder, tmp_path):
    video = video_folder / "red circle" / "3.mp4"
    (tmp_path / "3.mp4").write_bytes(video.read_bytes())
    scores = []
    for path in (video, tmp_path / "3.mp4"):
        _, said = predict(str(path), "--labels", LABELS, "--json-lines")
        scores.append(json.loads(said.out)["after"])
    assert scores[0] == scores[1]


def test_several_seeds_show_how_much_a_score_is_worth(predict, video_folder):
    video, words = str(video_folder / "red circle" / "3.mp4"), ("--labels", LABELS, "--method", "zar", "tda")
    alone = []
    for seed in ("4", "0", "9"):
        _, said = predict(video, *words, "--json-lines", "--seed", seed)
        alone.append([json.loads(line) for line in said.out.splitlines()])
    _, said = predict(video, *words, "--json-lines", "--seeds", "4", "0", "9")
    for number, together in enumerate(json.loads(line) for line in said.out.splitlines()):
        assert together["seeds"] == [4, 0, 9]
        scores = [{one["label"]: one["score"] for one in of_seed[number]["after"]} for of_seed in alone]
        assert len({tuple(of_seed.values()) for of_seed in scores}) == (3 if together["method"] == "zar" else 1)
        for one in together["after"]:
            own = [of_seed[one["label"]] for of_seed in scores]
            assert one["score"] == pytest.approx(statistics.fmean(own), abs=1e-6)
            assert one["std"] == pytest.approx(statistics.stdev(own), abs=1e-6)
    _, shown = predict(video, *words, "--seeds", "4", "0", "9")
    assert shown.out.count("mean ± standard deviation over the seeds 4, 0, 9") == 2
    assert "--seeds" not in shown.out


def test_that_scores_depend_on_the_files_name_is_said_beneath_them(predict, video_folder):
    video = str(video_folder / "red circle" / "3.mp4")
    said = (
        "after: of the views that are drawn by the file's name and the seed (6); --seeds 0 1 2 shows how much that is"
    )
    assert said in predict(video, "--labels", LABELS, "--seed", "6")[1].out
    # No view is drawn without tuning.
    assert "--seeds" not in predict(video, "--labels", LABELS, "--method", "zero_shot")[1].out


def test_a_folder_becomes_a_table_and_a_summary(predict, video_folder, tmp_path):
    (tmp_path / "clips" / "deep").mkdir(parents=True)
    for place, video in (("b.mp4", "red circle/0.mp4"), ("deep/a.mp4", "blue bar/1.mp4")):
        (tmp_path / "clips" / place).write_bytes((video_folder / video).read_bytes())
    for name in ("text.mp4", ".hidden.mp4", "notes.md"):
        (tmp_path / "clips" / name).write_text("no video")
    clips, table = tmp_path / "clips", tmp_path / "found.csv"
    (tmp_path / "list").write_text(f"{clips / 'b.mp4'}\n")
    words = ("--labels", LABELS, "--method", "zero_shot", "zar", "--top-k", "2", "--list", str(tmp_path / "list"))
    status, said = predict(*words, "--csv", str(table), "--seeds", "3", str(clips))
    assert status == 1
    assert said.err == "skipped: 1 hidden, 1 no videos, 1 named more than once\n"
    assert "3 files, 1 failed" in said.out
    rows = list(csv.DictReader(table.open(newline="")))
    videos = [str(clips / name) for name in ("b.mp4", "deep/a.mp4", "text.mp4")]
    assert [row["video"] for row in rows] == [video for video in videos for _ in range(2)]
    assert [bool(row["error"]) for row in rows] == [False] * 4 + [True] * 2
    assert {"label_2", "score_2"} <= set(rows[0])
    assert "label_3" not in rows[0]
    _, lines = predict(*videos[:2], *words[:-2], "--json-lines", "--seeds", "3")
    for row, line in zip(rows, map(json.loads, lines.out.splitlines()), strict=False):
        assert [row["label_1"], row["label_2"]] == [one["label"] for one in line["after"]]
        assert float(row["score_1"]) == line["after"][0]["score"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{video}", "none.mp4", "--labels", LABELS], "none.mp4: no such file or folder"),
        (["{empty}", "--labels", LABELS], "holds no videos"),
        (["{video}", "--labels", "jumping"], '"jumping" alone; choosing needs two'),
        (["{video}", "--labels", "a,b,a"], '"a" is both name 1 and name 3'),
        (["--labels", LABELS], "before the options or behind --"),
        (["{video}", "--labels", LABELS, "--csv", "{empty}"], "is a folder"),
        (["--labels", LABELS, "--method", "zar", "{empty}", "--list", "x"], "holds no videos"),
    ],
)
def test_files_and_labels_are_looked_at_before_the_model(predict, video_folder, tmp_path, monkeypatch, words, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x").write_text(str(video_folder / "red circle" / "0.mp4"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zar_ray.models.loading.load_model", lambda options: pytest.fail("the model was loaded"))
    places = {"video": video_folder / "red circle" / "0.mp4", "empty": tmp_path / "empty"}
    status, found = predict(*(word.format(**places) for word in words))
    assert (status, found.out) == (2, "")
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_seed_that_is_named_twice_is_refused(predict, video_folder):
    status, said = predict("a.mp4", "--labels", LABELS, "--seeds", "1", "2", "1")
    assert (status, said.err) == (2, "zar: zar predict: --seeds 1 2 1: names a seed twice\n")


@pytest.mark.slow
def test_predict_and_eval_agree(predict, evaluate, video_folder, tmp_path, make_video):
    make_video(tmp_path / "flat" / "one.mp4", frames=25, seed=3)
    make_video(tmp_path / "flat" / "two.mp4", frames=25, seed=4)
    views = {"frames": 4, **_evaluation_frames()}
    ran = evaluate(tmp_path / "flat", here=True, class_names=LABELS, method=["zar"], views=views)
    names = LABELS.split(",")
    for row in ran.rows:
        _, said = predict(str(tmp_path / "flat" / row.video_id), "--labels", LABELS, "--json-lines")
        after = json.loads(said.out)["after"]
        assert [one["label"] for one in after] == [names[index] for index in row.top5_after]
        assert [one["score"] for one in after] == pytest.approx(row.top5_scores_after, abs=1e-3)


def _evaluation_frames():
    return {"eval_frames": EvalConfig().views.eval_frames}
