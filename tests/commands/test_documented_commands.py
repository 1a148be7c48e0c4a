"""Every command of README and docs/ is understood, and runs on little data unless a table here says what it lacks."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import miniatures
import pytest
from finished_runs import write_finished_run

from zar_ray.commands import parsing
from zar_ray.commands.help import Helped
from zar_ray.commands.main import main
from zar_ray.data.classes import class_list
from zar_ray.serving.application import options_of

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```\w*\n(.*?)^```|((?:^    .*\n)+)", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(zar(?= [a-z-]+ )|python|make|serve|ray|mlflow|curl|docker|kubectl|pip|git)\b(?! {2,}|:)"
)
_VARIABLE = re.compile(r"[A-Z_]+=")
_OPTIONAL = re.compile(r" \[((?:--|runs/)[^\]]*?)(?: \.\.\.)?\]")

OTHERS = {"curl", "docker", "git", "kubectl", "mlflow", "pip", "ray"}
"""Programs of others: of their commands the files that they name are looked for."""

LACKING = {
    r"s3://": "an object store (tests/test_object_stores.py, tests/integration/test_object_store_job.py)",
    r"--server": "a service (tests/serving)",
    r"webli|hf-hub:|:openai|ViT-B-16": "weights from the network",
    r"^zar train": "trainings, and what they train on (tests/integration/test_demo_training.py)",
    r"^zar plan": "a while to measure, with Ray (tests/commands/test_costs.py)",
    r"^zar features|--features": "features that a run left (tests/evaluation/test_packs.py)",
    r"checkpoint import|theirs|model_best|openvclip|actionclip|ezclip|framewise|swa": "a published file (tests/models)",
    r"local-dir:": "a folder of Hugging Face's layout (tests/models)",
    r"view_mean|view-mean": "the page's package (tests/integration/test_extending_package.py)",
    r"RUN_ID|ROOT/NAME": "runs in a tracking store (tests/tracking)",
    r"index NAME|k600|k400|/data/shards|--dataset mine|--name mine": "that benchmark's files"
    " (tests/integration/test_benchmarks_end_to_end.py)",
    r"--dataset demo": "the demo's model, which is trained for minutes (tests/integration/test_demo_training.py)",
    r"--context|--interpolate-with": "what a training left (tests/integration)",
    r"data shots": "videos for so many shots (tests/data/test_few_shot_draws.py)",
    r"--format openai": "weights in OpenAI's layout (tests/models)",
    r"^zar cost|^zar models": "half a minute (tests/commands/test_costs.py, tests/commands/test_models_command.py)",
    r"--help": "nothing: it is the help",
}
"""What commands lack on the little data here, by what they are told by: these are parsed alone."""


def documented(page: Path) -> Iterator[str]:
    """The commands of a page's blocks without comments; of what may be left out, the line without it and with it."""
    for fenced, indented in _BLOCK.findall(page.read_text(encoding="utf-8")):
        text = re.sub(r"^    ", "", indented, flags=re.MULTILINE) if indented else fenced
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            if _COMMAND.match(line):
                for one in dict.fromkeys((_OPTIONAL.sub("", line), _OPTIONAL.sub(r" \1", line))):
                    yield shlex.join(shlex.split(one, comments=True))


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in documented(page)))


def ours(command: str) -> list[str] | None:
    """The words after `zar` of a command that is ours, also as a script of jobs/ and through Ray's job; else None."""
    words = shlex.split(command)
    while _VARIABLE.match(words[0]):
        del words[0]
    if words[0] == "zar":
        return words[1:]
    for place, word in enumerate(words):
        if (found := re.fullmatch(r"(?:/opt/zar-ray/)?(jobs/\w+\.py)", word)) is not None:
            script = (ROOT / found[1]).read_text(encoding="utf-8")
            return [*re.findall(r'main\(\["(\w+)"', script), *words[place + 1 :]]
    return None


def lacking(command: str) -> str | None:
    """What a command lacks to run here."""
    return next((reason for told, reason in LACKING.items() if re.search(told, command)), None)


ZAR = [command for command in COMMANDS if ours(command) is not None]
RUN = [command for command in ZAR if command.startswith("zar ") and lacking(command) is None]


class UnderstoodError(Exception):
    """A command's line has been parsed."""


@pytest.fixture
def parsed_alone(monkeypatch):
    """Commands end where their line is understood."""
    parse, deferred = parsing.parse, parsing._deferred

    def only_parse(*args, **more):
        parse(*args, **more)
        raise UnderstoodError

    def only_bind(function):
        @functools.wraps(function)
        def understood(*args, **more):
            raise UnderstoodError

        return deferred(understood)

    monkeypatch.setattr(parsing, "parse", only_parse)
    monkeypatch.setattr(parsing, "_deferred", only_bind)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, video_folder, tiny_checkpoint, make_video) -> Path:
    """A folder with all that the pages' commands name: videos, lists, weights, finished runs, and `data` for /data."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "conf").symlink_to(ROOT / "conf")
    shutil.copytree(video_folder, desk / "data" / "my_videos")
    shutil.copytree(video_folder, desk / "data" / "mine")
    for name in ("clips", "more"):
        shutil.copytree(video_folder, desk / name)
    for number, name in enumerate(("clip1", "clip2", "egg")):
        make_video(desk / f"{name}.mp4", seed=number)
    present = miniatures.hmdb51(desk / "data", lambda path, number: make_video(path, frames=6, seed=number))
    shutil.copytree(desk / "data" / "hmdb51_org", desk / "VIDEOS")
    names = class_list("hmdb51")
    write(desk / "names.txt", *names)
    # Of split 1, as `miniatures.hmdb51` divides it.
    for number, name in enumerate(("train1.txt", "val1.txt")):
        folders = {one.replace(" ", "_"): names.index(one) for one in present}
        write(desk / name, *(f"{one}/film_{one}_u_nm_np1_fr_med_{number}.avi {at}" for one, at in folders.items()))
    classes = sorted(one.name for one in video_folder.iterdir())
    write(desk / "data" / "list.csv", "path,label", *(f"my_videos/{one}/0.mp4,{one}" for one in classes))
    write(desk / "own.yaml", "grid: {zar.steps: [1, 2]}")
    for name in ("vifi", "vificlip", "clip", "k400-clip", "pretrained", "tuned", "epoch8", "epoch9", "epoch10"):
        shutil.copy(tiny_checkpoint, desk / f"{name}.safetensors")
    shutil.copy(tiny_checkpoint, desk / "model.safetensors")
    own = {"dataset": str(desk / "data" / "my_videos"), "checkpoint": str(tiny_checkpoint)}
    for draw, name in enumerate(("NAME", "A", "B", "C")):
        write_finished_run(desk / "runs" / name, draw=draw, **own)
    cells = {
        (("setting", f"lr {lr}"), ("seed", str(seed))): {"zar": {"lr": lr}, "seed": seed}
        for lr in (0.01, 0.02)
        for seed in (0, 1)
    }
    write_finished_run(desk / "runs" / "STUDY", cells=cells, **own)
    write(desk / "runs" / "NAME" / "config.yaml", *(f"{name}: {value}" for name, value in own.items()))
    return desk


@pytest.fixture(scope="module")
def indexed(desk) -> Path:
    """A home that knows HMDB51, and the manifest of the folder of videos beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setenv("ZAR_HOME", str(desk / "home"))
        for words in (
            ["hmdb51", "--root", "data/hmdb51_org", "--annotations", "data/testTrainMulti_7030_splits"],
            ["data/my_videos", "--output", "data/my_videos.parquet"],
        ):
            assert main(["data", "index", *words]) == 0
    return desk / "home"


@pytest.mark.parametrize("command", ZAR)
def test_a_command_is_understood(command, parsed_alone, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    words = ours(command)
    if any(word.startswith("--view-mean") for word in words):
        assert main(words) == 2
        assert re.fullmatch(r"zar: zar eval: unknown option --view-mean.*\n", capsys.readouterr().err)
        return
    with pytest.raises(Helped if words[-1].startswith("--help") else UnderstoodError):
        main(words)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs_on_little_data(command, desk, indexed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("ZAR_HOME", str(shutil.copytree(indexed, tmp_path / "home")))
    words = [word.replace("/data/", f"{desk}/data/") for word in ours(command)]
    words = [word.replace("~/.cache/zar-ray", f"{tmp_path}/home") for word in words]
    words = [f"{desk}/data/my_videos.parquet" if word == "MANIFEST" else word for word in words]
    if words[0] in ("eval", "ablate", "predict") and not {"--checkpoint", "--config"} & set(words):
        words += ["--checkpoint", "clip.safetensors"]
    if words[0] in ("eval", "ablate") and "--dry-run" not in words:
        words += ["--dry-run"]
    status = main(words)
    said = capsys.readouterr()
    assert said.err == "" or words[:2] == ["data", "index"], said.err
    # An audit of so few videos finds that most are missing.
    assert status == (1 if words[:2] == ["data", "audit"] and "hmdb51" in " ".join(words) else 0), said.out
    assert said.out


@pytest.mark.parametrize("told", LACKING)
def test_what_a_command_lacks_is_still_asked_for(told):
    assert [command for command in ZAR if re.search(told, command)]


@pytest.mark.parametrize("command", [command for command in COMMANDS if ours(command) is None])
def test_another_program_s_command_names_what_is_there(command):
    program, *words = [word for word in shlex.split(command) if not _VARIABLE.match(word)]
    for word in words:
        if word.startswith(("deploy/", "serve/", "bench/", "jobs/", "conf/")):
            assert (ROOT / word).exists()
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program == "serve" and words[0] == "run":
        assert words[1] == "serve.app:app"
        told = dict(word.split("=", 1) for word in words[2:])
        told.pop("config", None)  # a file of the reader's
        if "view_mean" not in told:
            assert options_of(told).model_fields_set >= told.keys()
    elif program == "python":
        assert words[0] == "-c"
        compile(words[1], command, "exec")
    else:
        assert program in {*OTHERS, "serve"}
