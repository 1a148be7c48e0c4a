"""`zar predict --server`: what it prints is what `zar predict` prints, without the model."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from serving_backends import served_here

from zar_ray.adaptation.options import AdaptationOptions, PredictConfig
from zar_ray.adaptation.rankings import Ranking
from zar_ray.client import ServiceError
from zar_ray.commands.main import main
from zar_ray.commands.predict import ASKED, _asked
from zar_ray.options.base import meaning

LABELS = 'jumping high,"riding, on a bike",swimming'
TOKEN = "let-me-in"
VIEWS = {"frames": 4}


@pytest.fixture(scope="module")
def service(tiny_checkpoint, tmp_path_factory):
    """The application under uvicorn, with everything behind it in this process."""
    options = {
        "checkpoint": tiny_checkpoint,
        "views": VIEWS,
        "tokens": [hashlib.sha256(TOKEN.encode()).hexdigest()],
    }
    with served_here(options, tmp_path_factory.mktemp("uploads")) as address:
        yield SimpleNamespace(url=address)


@pytest.fixture
def predict(capsys, monkeypatch):
    """Runs `zar predict`; what it printed, and its status."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("ZAR_TOKEN", raising=False)

    def run(*words):
        status = main(["predict", *map(str, words)])
        said = capsys.readouterr()
        return SimpleNamespace(status=status, out=said.out, err=said.err)

    return run


@pytest.fixture
def both(predict, service, tiny_checkpoint):
    """The same command by the service and in this process."""

    def run(*words):
        local = predict(*words, "--checkpoint", tiny_checkpoint, "--device", "cpu", "--views.frames", VIEWS["frames"])
        return predict(*words, "--server", service.url, "--token", TOKEN), local

    return run


@pytest.fixture
def videos(make_video, tmp_path):
    return [make_video(tmp_path / f"vidéo {number}.mp4", frames=20 + number, seed=number) for number in range(2)]


@pytest.mark.process
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "zero_shot", "zar", "--top-k", "2", "--seed", "3"],
        ["--seeds", "3", "1", "--top-k", "2", "--reject-below", "0.9"],
        ["--reject-below=-0.1", "--reject-score", "entropy"],
        ["--zar.steps", "2", "--template", "someone is {} now"],
        ["--zar.betas", "0.5", "0.9", "--zar.lr=0.1", "--zar.loss", "mean_entropy", "--zar.weight-decay", "1e-2"],
    ],
)
def test_json_lines_are_those_of_the_model_here(both, videos, options):
    served, local = both(*videos, "--labels", LABELS, "--json-lines", *options)
    assert (served.status, served.err) == (0, "")
    rankings, expected = ([json.loads(line) for line in one.out.splitlines()] for one in (served, local))
    assert len(rankings) == len(expected) == (4 if "--method" in options else 2)
    for ranking, other in zip(rankings, expected, strict=True):
        assert list(ranking) == list(other)
        for when in ("before", "after"):
            found, wanted = ranking.pop(when), other.pop(when)
            assert [one["label"] for one in found] == [one["label"] for one in wanted]
            assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-6)
            assert [one["std"] is None for one in found] == [one["std"] is None for one in wanted]
        certainty = ranking.pop("certainty")
        assert certainty == pytest.approx(other.pop("certainty"), abs=1e-6)
        assert (certainty is None) == (not any("reject" in word for word in options))
        assert ranking == other


@pytest.mark.process
def test_a_files_own_options_of_methods_are_asked_beneath_those_of_the_command_line(both, videos, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("zar: {lr: 0.1, steps: 3, betas: [0.5, 0.9]}\ntpt: {views: 3}\n")
    words = (videos[0], "--labels", LABELS, "--json-lines", "--config", file, "--zar.steps", "2")
    served, local = both(*words)
    assert (served.status, local.status) == (0, 0), served.err
    after = [[one["score"] for one in json.loads(said.out)["after"]] for said in (served, local)]
    assert after[0] == pytest.approx(after[1], abs=1e-6)


@pytest.mark.process
def test_tables_are_those_of_the_model_here(both, videos):
    served, local = both(*videos, "--labels", LABELS, "--method", "zero_shot", "zar")
    assert served.out == local.out
    assert "riding, on a bike" in served.out


@pytest.mark.process
def test_a_bad_file_costs_its_own_line_and_the_status(both, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    bad = [tmp_path / name for name in ("text.mp4", "empty.mp4")]
    served, local = both(*bad, videos[0], "--labels", LABELS, "--json-lines")
    assert served.status == local.status == 1
    rankings, expected = ([json.loads(line) for line in one.out.splitlines()] for one in (served, local))
    assert [one["video"] for one in rankings] == [one["video"] for one in expected]
    assert all(one["error"] for one in rankings[:2])
    assert rankings[1]["error"] == expected[1]["error"]
    assert rankings[2]["error"] is None


def test_the_token_may_come_from_the_environment(predict, service, videos, monkeypatch):
    words = (videos[0], "--labels", LABELS, "--server", service.url)
    refused = predict(*words)
    assert refused.status == 1
    assert "401 unauthorized" in refused.err
    assert refused.err.count("\n") == 1
    monkeypatch.setenv("ZAR_TOKEN", TOKEN)
    assert predict(*words).status == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--checkpoint", "a.pt", "--views.frames", "4"], 2, "decides --checkpoint, --views.frames;"),
        (["--precision", "fp32"], 2, "decides --precision;"),
        (["--views", "4x3"], 2, "decides --views.eval-views;"),
        (["--no-compile", "--zar.lr=0.01"], 2, "decides --compile;"),
        (["--config", "{config}"], 2, "decides --model;"),
        (["--tpt.views", "8"], 2, "--tpt: no such method is asked for"),
        (["--labels", "a,,b"], 2, "name 2 is empty"),
        (["--labels", "none.txt"], 2, "no such file of class names"),
        (["--method", "nothing"], 1, '"nothing" is not served here'),
        (["--zar.steps", "1000"], 1, "options.steps: 1000 is greater than the maximum of 10"),
        (["--zar.stesp", "1"], 1, 'options.stesp: zar has no such option; did you mean "steps"'),
        (["none.mp4"], 2, "none.mp4: no such file"),
        (["--zar.lr", "much"], 1, "options.lr: 'much' is not of type 'number'"),
    ],
)
def test_mistakes_are_one_line(predict, service, videos, tmp_path, words, status, said):
    config = tmp_path / "options.yaml"
    config.write_text("model: ViT-B-32\nzar:\n  confidence: 0.5\n  steps: 2\n")
    words = [word.replace("{config}", str(config)) for word in words]
    labels = [] if "--labels" in words else ["--labels", LABELS]
    ran = predict(videos[0], *labels, "--server", service.url, "--token", TOKEN, *words)
    assert ran.status == status
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not ran.out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["a.mp4", "--server", "http://127.0.0.1:1"], 2, "--labels"),
        (["--server", "http://127.0.0.1:1", "--labels", "a,b"], 2, "give the video files"),
        (["a.mp4", "--labels", "a,b", "--server", "127.0.0.1:1"], 2, "is no URL"),
        (["a.mp4", "--labels", "a,b", "--server", "http://127.0.0.1:1"], 1, "nothing answers there"),
        (["a.mp4", "--labels", "a,b", "--token", "x"], 2, "--token goes with --server"),
    ],
)
def test_nothing_to_ask_or_nobody(predict, tmp_path, monkeypatch, words, status, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    ran = predict(*words)
    assert ran.status == status
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_a_token_is_not_shown(predict):
    shown = predict("--server", "http://127.0.0.1:1", "--token", "s3cret", "--show-config")
    assert "***" in shown.out
    assert "s3cret" not in shown.out
    # Nor does it change what numbers mean.
    assert meaning(PredictConfig(server="http://a", token="s3cret")) == meaning(PredictConfig())


def test_a_dry_run_asks_nobody(predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    ran = predict("a.mp4", "--labels", "a,b", "--server", "http://127.0.0.1:1/", "--dry-run")
    assert (ran.status, ran.out) == (0, "1 videos, 2 labels, methods zar, http://127.0.0.1:1\n")


def test_every_option_is_either_asked_or_the_server_s():
    """A new option of the model must not be passed over in silence."""
    own = set(PredictConfig.model_fields) - set(AdaptationOptions.model_fields)
    assert ASKED - own == {"method", "template", "seed"}
    assert own <= ASKED


@pytest.mark.process
def test_loads_neither_ray_nor_pytorch(service, videos):
    program = (
        "import sys; from zar_ray.commands.main import main; status = main(sys.argv[1:]);"
        " print(status, {'ray', 'torch', 'open_clip'} & set(sys.modules))"
    )
    words = ["predict", str(videos[0]), "--labels", "a,b", "--server", service.url, "--token", TOKEN]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"


@pytest.mark.process
def test_a_folder_several_at_a_time_gives_the_same_table(both, videos, tmp_path):
    tables = [tmp_path / "served.csv", tmp_path / "local.csv"]
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, video in enumerate(videos):
        (folder / f"{number}.mp4").write_bytes(video.read_bytes())
    words = ("--labels", LABELS, "--method", "zero_shot", "zar", "--at-once", "3", "--zar.betas", "0.5", "0.9", folder)
    served, local = both("--csv", tables[0], *words)
    assert served.out == local.out
    assert "2 files, 0 failed" in served.out
    rows = list(csv.DictReader(tables[0].open(newline="")))
    assert [(row["video"], row["method"]) for row in rows] == [
        (str(folder / f"{number}.mp4"), method) for number in range(2) for method in ("zero_shot", "zar")
    ]


class Crowded:
    """A service that answers so many at a time, and refuses the others at once.

    Attributes:
        most: The most that were there at a time.
        refused: How many were.
    """

    def __init__(self, room: int, together: int) -> None:
        self._room, self._together = threading.Semaphore(room), threading.Barrier(together)
        self._lock, self._first, self._there = threading.Lock(), together, 0
        self.most = self.refused = 0

    def __call__(self, question: tuple[str, str]) -> Ranking:
        with self._lock:
            waits, self._first = self._first > 0, self._first - 1
            self._there += 1
            self.most = max(self.most, self._there)
        try:
            has_room = self._room.acquire(blocking=False)
            if waits:
                self._together.wait(10)  # the first ones are there at a time
            if not has_room:
                self.refused += 1
                raise ServiceError("http://a", "busy", 503, "overloaded")
            self._room.release()
            return Ranking(*question, (), ())
        finally:
            with self._lock:
                self._there -= 1


@pytest.mark.parametrize(("room", "at_once"), [(1, 4), (2, 5), (4, 4)])
def test_a_busy_service_is_asked_about_fewer_at_a_time(room, at_once):
    service = Crowded(room, at_once)
    questions = [(f"{number}.mp4", "zar") for number in range(23)]
    answers = list(_asked(service, questions, at_once))
    assert [(one.video, one.method) for one in answers] == questions
    assert service.most == at_once
    assert (service.refused > 0) == (room < at_once)


def test_a_service_that_has_no_room_for_one_ends_the_command():
    def refuses(question):
        raise ServiceError("http://a", "busy", 503, "overloaded")

    with pytest.raises(ServiceError, match="busy"):
        list(_asked(refuses, [("a.mp4", "zar")] * 3, 2))
