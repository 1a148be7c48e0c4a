"""Every command of README and docs/ is understood, and runs on little data."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
from documented_desk import bench, make_desk, make_home, on_little_data, package_here, prepared, write, write_framewise
from object_store import object_store
from outside_package import files_of, install_files, run_with
from serving_backends import served_here

from zar_ray.commands import models, parsing
from zar_ray.commands.help import Helped
from zar_ray.commands.main import main
from zar_ray.models.catalogue import known_models
from zar_ray.serving.application import options_of
from zar_ray.tracking import log_run_folder

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

FETCHED = re.compile(r"webli|hf-hub:|:openai|--model ViT-B-16")
"""Tells the commands whose weights come from a network, which says why it cannot be reached."""


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


ZAR = [command for command in COMMANDS if ours(command) is not None]
IN_PACKAGE = [command for command in ZAR if re.search("view_mean|view-mean|--help-all", command)]
RUN = [command for command in ZAR if command not in IN_PACKAGE]


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


@pytest.fixture(scope="module")
def desk(tmp_path_factory, video_folder, make_video) -> Path:
    """A folder with all that the pages' commands name, and a home that knows its benchmarks."""
    desk = tmp_path_factory.mktemp("desk")
    make_desk(desk, video_folder, make_video)
    with pytest.MonkeyPatch.context() as patch, on_little_data(desk, desk / "home"):
        patch.chdir(desk)
        make_home(desk)
    return desk


@pytest.fixture(scope="module")
def store(desk) -> Iterator[str]:
    """A bucket with videos, which are indexed, and tar files of them."""
    with pytest.MonkeyPatch.context() as patch, object_store(patch) as store:
        store.bucket("bucket")
        for path in [*desk.glob("data/my_videos/*/0.mp4"), *desk.glob("data/shards/*")]:
            place = path.relative_to(desk / "data").as_posix().replace("my_videos", "videos")
            store.put("bucket", place, path.read_bytes())
        with on_little_data(desk, desk / "home"):
            assert main(["data", "index", "s3://bucket/videos"]) == 0
        store.put("bucket", "videos/a.mp4", (desk / "clip1.mp4").read_bytes())
        yield "s3://bucket"


@pytest.fixture(scope="module")
def service(desk, tmp_path_factory) -> Iterator[str]:
    """The address of a service that has everything behind it in this process."""
    with served_here({"checkpoint": desk / "clip.safetensors"}, tmp_path_factory.mktemp("uploads")) as address:
        yield address


@pytest.fixture(scope="module")
def framewise(desk, tmp_path_factory) -> Path:
    """The folder that the page's model is installed in; the desk has files of it."""
    folder = tmp_path_factory.mktemp("outside") / "packages"
    with package_here(install_files(folder, files_of("extending.md", "A new model"))):
        write_framewise(desk)
    return folder


@pytest.fixture(scope="module")
def sent(desk) -> Mapping[str, str]:
    """A tracking store of two runs, by what stands for it and for them in commands."""
    uri = f"sqlite:///{desk}/runs/mlflow.db"
    first, other = (
        log_run_folder(f"{desk}/runs/{name}", uri, describe=lambda study: study.whole.name).run_id for name in "AB"
    )
    return {"RUN_ID": first, "OTHER_ID": other, "URI": uri, "sqlite:///runs/mlflow.db": uri}


@pytest.fixture
def run(desk, tmp_path, monkeypatch, capsys, request):
    """Runs a command on little data; its status, and what it printed."""

    def run_command(command: str, known: Mapping[str, str] | None = None, **more) -> tuple[int, str, str]:
        known = dict(known or {})
        if "s3://" in command:
            known["s3://bucket/runs"] = f"{request.getfixturevalue('store')}/{tmp_path.name}"
        if "--server" in command and not known:
            known["http://127.0.0.1:8000"] = request.getfixturevalue("service")
        if re.search("RUN_ID|ROOT/NAME", command):
            known |= request.getfixturevalue("sent")
        of_page = "framewise" in command or "theirs" in command
        package = package_here(request.getfixturevalue("framewise")) if of_page else nullcontext()
        home = shutil.copytree(desk / "home", tmp_path / "home", symlinks=True)
        words = prepared(ours(command), desk, home, tmp_path / "runs", known)
        monkeypatch.chdir(bench(desk, tmp_path / "bench", words))
        for name, value in re.findall(r"(ZAR_\w+)=(\S+)", command):
            monkeypatch.setenv(name, value)
        if not command.startswith(("zar ", "ZAR_")):
            monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as in a job
        if "--sizes" in words:  # of all it takes a minute or two
            monkeypatch.setattr(models, "known_models", lambda: known_models()[:12])
        with package, on_little_data(desk, home, **more):
            status = main(words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_command


@pytest.mark.parametrize("command", ZAR)
def test_a_command_is_understood(command, parsed_alone, tmp_path, monkeypatch, capsys):
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    write(tmp_path / "runs" / "NAME" / "config.yaml", "dataset: mine")
    monkeypatch.chdir(tmp_path)
    words = ours(command)
    if any(word.startswith("--view-mean") for word in words):
        assert main(words) == 2
        assert re.fullmatch(r"zar: zar eval: unknown option --view-mean.*\n", capsys.readouterr().err)
        return
    with pytest.raises(Helped if words[-1].startswith("--help") else UnderstoodError):
        main(words)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs_on_little_data(command, run):
    """In this process: trainings take one step; Ray's part alone, which places stages and processes, is left out."""
    status, out, err = run(command)
    words = ours(command)
    assert err == "" or words[:2] == ["data", "index"], err
    # An audit of so few videos finds that most are missing.
    assert status == (1 if words[:2] == ["data", "audit"] and "hmdb51" in " ".join(words) else 0), out
    assert out
    assert "forecast  none" not in out


@pytest.mark.slow
@pytest.mark.parametrize("command", list(filter(FETCHED.search, RUN)))
def test_without_a_network_a_command_says_so_in_a_line(command, run):
    status, _, err = run(command, empty_hub=True)
    assert status == 1
    assert re.fullmatch(r"zar: .*cannot be downloaded \(HF_HUB_OFFLINE is set\); .*\n", err)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in RUN if "--server" in command])
def test_without_a_service_a_command_says_so_in_a_line(command, run):
    with socket.socket() as taken:  # which takes no connections
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        status, _, err = run(command, {"http://127.0.0.1:8000": address})
    assert status == 1
    assert re.fullmatch(rf"zar: {address}: nothing answers there .*\n", err)


@pytest.mark.slow
def test_commands_of_the_page_s_package_run_where_it_is_installed(desk, tmp_path):
    """In another process, as methods are known when zar-ray is imported."""
    package = install_files(tmp_path / "packages", files_of("extending.md", "A new method"))
    home = shutil.copytree(desk / "home", tmp_path / "home")
    commands = [prepared(ours(one), desk, home, tmp_path / "runs", {}) for one in IN_PACKAGE]
    commands = [[f"{desk}/{word}" if word == "keep.yaml" else word for word in one] for one in commands]
    here, tests = Path(__file__).parent, Path(__file__).parents[1]
    script = str(here / "documented_desk.py")
    ran = run_with([package, tests], script, str(desk), str(home), json.dumps(commands), check=False)
    assert ran.stdout.splitlines()[-1:] == [json.dumps([0] * len(commands))], ran.stdout + ran.stderr
    assert "--view-mean.mean-of" in ran.stdout


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
