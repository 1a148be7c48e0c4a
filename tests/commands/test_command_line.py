"""Options come from defaults, the benchmark's file, --config and the command line, in that order; a mistake is one
line that says what was meant."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from stages_here import without_ray

from zar_ray.adaptation.options import PredictConfig
from zar_ray.commands.main import main
from zar_ray.commands.parsing import command, parse, parse_run
from zar_ray.data.datasets import known_benchmarks, load_benchmark
from zar_ray.data.options import AuditConfig, IndexConfig, ShotsConfig
from zar_ray.data.synthetic import write_video
from zar_ray.errors import ConfigError, DeviceLostError
from zar_ray.options.base import fingerprint, meaning
from zar_ray.options.layers import merge
from zar_ray.study.options import EvalConfig
from zar_ray.terminal import output_console
from zar_ray.video.options import ViewConfig


def options(*words):
    return parse_run(EvalConfig, words, "zar eval").options


def complaint(*words):
    with pytest.raises(ConfigError) as caught:
        options(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_that_the_output_has_no_letters_for_end_no_command(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", output)

    @command
    def say(words):
        output_console().print(words[0])
        print(words[0])
        return 0

    assert not say(["\u8df3"])
    output.flush()
    assert output.buffer.getvalue() == b"\\u8df3\n" * 2


def test_the_command_line_lies_over_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"seed": 3, "views": {"frames": 8, "crops": 1}, "zar": {"lr": 0.1}}))
    got = options("--config", str(file), "--views.frames", "4", "--method", "zero_shot", "zar")
    assert (got.seed, got.views.frames, got.views.crops, got.zar.lr) == (3, 4, 1, 0.1)
    assert got.zar.confidence == EvalConfig().zar.confidence
    assert got.method == ("zero_shot", "zar")


@pytest.mark.parametrize("name", known_benchmarks())
def test_the_options_that_a_benchmark_brings_are_right(name, monkeypatch, tmp_path):
    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    brought = load_benchmark(name).eval_options()
    got = options("--dataset", name).model_dump(mode="json")
    assert merge(got, brought) == got


def test_wrong_options_of_a_benchmark_name_its_file(monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "tiny.yaml").write_text("title: Tiny\noptions: {framse: 3}\n")
    monkeypatch.setattr("zar_ray.data.datasets.conf_dir", lambda: tmp_path)
    assert "tiny.yaml, options: framse" in complaint("--dataset", "tiny")


@pytest.mark.process
def test_commands_that_need_no_method_load_no_pytorch():
    code = "import sys; from zar_ray.commands import data, main, parsing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_saved_config_repeats_a_run(tmp_path):
    first = options("--dataset", "x", "--views.rates", "1", "0.5", "--max-failed", "30%", "--zar.steps", "2")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(first.model_dump(mode="json")))
    assert options("--config", str(file)) == first


def test_a_share_may_be_a_percentage():
    assert options("--max-failed", "30%").max_failed == 0.3
    assert options("--max-failed", "0.3").max_failed == 0.3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lmit", "3"], "unknown option --lmit; did you mean --limit?"),
        (["--views.frmaes", "3"], "did you mean --views.frames?"),
        (["--view.frames=3"], "did you mean --views.frames?"),
        (["--precision", "fp31"], "'bf16'"),
        (["--views.crops", "4"], "--views.crops"),
        (["--views.frames", "0"], "greater than or equal to 1"),
        (["--limit", "x"], "--limit"),
        (["--limit"], "--limit"),
        (["--max-failed", "300%"], "max_failed"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["stray"], "unknown word stray"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(words, said):
    assert said in complaint(*words)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "ascii", "latin-1"])
def test_a_mistake_reads_the_same_whatever_the_output_can_show(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert complaint("--limit", "0") == "zar eval: limit Input should be greater than or equal to 1 (see --help)"
    assert complaint("--views.frames", "x") == (
        "zar eval: Error parsing --views.frames: invalid literal for int() with base 10: 'x' (see --help)"
    )


@pytest.mark.parametrize("words", [("methods",), ("methods", "--json"), ("predict", "--help-all")])
def test_signs_that_the_output_lacks_end_no_command(words, monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    if "--help-all" in words:
        with pytest.raises(SystemExit):
            main(words)
    else:
        assert main(words) == 0
    sys.stdout.flush()
    assert b"\\" in output.getvalue()


def test_what_is_given_without_its_name_is_no_option(capsys):
    assert main(["cost", "--models", "a5"]) == 2
    assert capsys.readouterr().err == "zar: zar cost: unknown option --models; it is given without its name\n"


@pytest.mark.parametrize("words", [("data", "show"), ("features", "show"), ("report", "run"), ("eval", "--dataset")])
def test_a_name_that_is_no_text_is_one_line(words, monkeypatch):
    said = io.BytesIO()
    # As Python makes it.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, encoding="utf-8", errors="backslashreplace"))
    assert main([*words, "n\udcff"]) == 1
    sys.stderr.flush()
    assert b"n\\udcff" in said.getvalue()
    assert said.getvalue().count(b"\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "--dataset", "~nobody-here/videos", "--no-mlflow"),
        ("eval", "--dataset", "~nobody-here/videos.parquet", "--no-mlflow"),
        ("eval", "--dataset", "hmdb51", "--data-root", "~nobody-here", "--no-mlflow"),
        ("eval", "--dataset", "videos", "--checkpoint", "~nobody-here/a.pt"),
        ("eval", "--dataset", "videos", "--model", "local-dir:~nobody-here/a"),
        ("eval", "--dataset", "videos", "--interpolate-with", "~nobody-here/b.pt", "--alphas", "0", "1"),
        ("eval", "--dataset", "videos", "--class-texts", "~nobody-here/texts.json"),
        ("eval", "--dataset", "videos", "--context", "~nobody-here/context.safetensors"),
        ("ablate", "--dataset", "videos", "--sweep", "~nobody-here/sweep.yaml"),
        ("train", "--dataset", "~nobody-here/videos", "--output", "a.safetensors"),
        ("predict", "~nobody-here/a.mp4", "--labels", "a,b"),
        ("predict", "--list", "~nobody-here/list.txt", "--labels", "a,b"),
        ("data", "index", "~nobody-here/videos"),
        ("data", "show", "~nobody-here/videos"),
        ("cost", "~nobody-here/a.pt"),
        ("report", "run", "~nobody-here/run"),
    ],
    ids=" ".join,
)
def test_a_home_folder_of_nobodys_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_video(tmp_path / "videos" / name / "1.mp4", np.zeros((8, 32, 48, 3), np.uint8), 8)
    with without_ray():
        assert main(list(words)) in (1, 2)
    said = capsys.readouterr().err
    assert "nobody-here" in said
    assert said.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["videos"]


def test_a_wrong_key_in_a_file_names_the_file_and_the_key(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("views: {frame: 3}\n")
    message = complaint("--config", str(file))
    assert str(file) in message
    assert "views.frame" in message
    file.write_text("- a\n- b\n")
    assert "must hold options" in complaint("--config", str(file))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    assert f"{file}: is a Git LFS pointer" in complaint("--config", str(file))


def test_naming_weights_on_the_command_line_drops_the_files_checkpoint(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("checkpoint: /weights/tiny.safetensors\n")
    assert str(options("--config", str(file)).checkpoint) == "/weights/tiny.safetensors"
    got = options("--config", str(file), "--pretrained", "random")
    assert got.checkpoint is None
    assert got.pretrained == "random"


@pytest.mark.parametrize("words", [("--views", "4x3"), ("--views=4x3",), ("--views.eval-views", "4x3")])
def test_views_are_written_as_in_papers(words):
    assert parse_run(EvalConfig, words, "zar eval").options.views == ViewConfig(eval_views="4x3")


def test_a_protocol_brings_its_own_options():
    words = ("--dataset", "hmdb51", "--protocol", "base_to_novel")
    options = parse_run(EvalConfig, words, "zar eval").options
    assert (options.views.frames, options.seeds) == (8, (0, 1, 2))
    given = parse_run(EvalConfig, (*words, "--seeds", "4"), "zar eval").options
    assert (given.views.frames, given.seeds) == (8, (4,))


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(before, after):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if before is not None:
        environment["OMP_WAIT_POLICY"] = before
    code = "import zar_ray, os; print(os.environ['OMP_WAIT_POLICY'])"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == after


def test_flags_of_the_invocation_are_no_options():
    invocation = parse_run(EvalConfig, ["--dry-run", "--limit", "3"], "zar eval")
    assert invocation.dry_run
    assert not invocation.show_config
    assert invocation.options.limit == 3


def test_predict_takes_files_without_a_name():
    got = parse_run(PredictConfig, ["a.mp4", "b.mp4", "--labels", "x,y"], "zar predict").options
    assert got.videos == ("a.mp4", "b.mp4")
    assert got.method == ("zar",)


def test_operational_options_do_not_change_a_runs_meaning():
    base = fingerprint(meaning(options("--dataset", "x")))
    assert base == fingerprint(meaning(options("--dataset", "x", "--num-workers", "2", "--batch-size", "8")))
    assert base == fingerprint(meaning(options("--dataset", "x", "--output", "/else", "--max-failed", "1")))
    assert base != fingerprint(meaning(options("--dataset", "x", "--seed", "1")))
    assert base != fingerprint(meaning(options("--dataset", "x", "--zar.lr", "0.006")))


def test_every_option_says_what_it_is():
    for kind in (EvalConfig, PredictConfig, IndexConfig, AuditConfig, ShotsConfig):
        for name, field in kind.model_fields.items():
            assert field.description, name


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--version"], 0, "zar-ray 0.1"),
        ([], 2, "zar eval"),
        (["evl"], 2, 'did you mean "eval"?'),
        (["data", "indx"], 2, 'did you mean "data index"?'),
        (["eval"], 2, "--dataset"),
        (["eval", "--dataset", "x", "--method", "zarr"], 2, 'did you mean "zar"?'),
        (["eval", "--dataset", "k600"], 1, 'make one with "zar data index'),
        (["eval", "--dataset", "k60"], 1, 'did you mean "k600"?'),
        (["eval", "--dataset", "demo", "--dry-run"], 1, 'make one with "zar eval --dataset demo"'),
        (["predict", "a.mp4"], 2, "--labels"),
        (["train"], 2, "--dataset"),
        (["data", "show", "nowhere.parquet"], 1, "nowhere.parquet: no such manifest"),
        (["report", "mlflow", "nowhere"], 1, "nowhere"),
    ],
)
def test_a_command_ends_with_a_line_and_a_status(words, status, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    assert main(words) == status
    output = capsys.readouterr()
    assert said in output.out + output.err
    assert output.err.count("\n") == (1 if status and words else 0)


@pytest.mark.process
def test_a_lost_device_is_one_line_too(capsys):
    @command
    def predict(argv):
        raise DeviceLostError("cuda: answers nothing any more (an illegal memory access was encountered)")

    assert predict([]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "zar: cuda: answers nothing any more (an illegal memory access was encountered)"
    ]


@pytest.mark.process
def test_a_mistake_in_a_process_of_its_own_shows_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "zar_ray.commands.main", "eval", "--lmit", "3"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stderr == "zar: zar eval: unknown option --lmit; did you mean --limit?\n"


def test_a_password_in_an_address_is_not_shown():
    shown = options("--mlflow-uri", "http://me:secret@host/").model_dump(mode="json")
    assert shown["mlflow_uri"] == "http://me:***@host/"


def test_a_relative_output_is_refused_in_a_job(monkeypatch, tmp_path):
    from zar_ray.study.plan import kept_folder

    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    assert kept_folder("output", "somewhere/else").endswith("/somewhere/else")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for option, folder in (("output", "somewhere/else"), ("features", "runs")):
        with pytest.raises(ConfigError, match=f"--{option} {folder}: .* give an absolute path or a URI"):
            kept_folder(option, folder)
    with pytest.raises(ConfigError, match="give an absolute path or a URI"):
        kept_folder("output", "somewhere/else")
    assert kept_folder("output", "/data/runs") == "/data/runs"
    assert kept_folder("output", "s3://bucket/runs") == "s3://bucket/runs"
    assert kept_folder("output", "runs") == str(tmp_path / "runs")


@pytest.mark.process
def test_output_that_nobody_reads_is_no_mistake_to_explain():
    """`| head` closes the pipe early."""
    for words, said in (("data list", "benchmark"), ("eval --help", "usage: zar eval")):
        command = f'"{sys.executable}" -m zar_ray.commands.main {words} | head -c 200'
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, errors="replace", timeout=120, check=False
        )
        assert said in done.stdout
        assert done.stderr == ""


def test_a_command_runs_only_when_the_whole_line_is_right_and_may_speak_on_stderr(capsys):
    calls = []

    def command(word: str, count: int = 1) -> int:
        """Says a word."""
        calls.append((word, count))
        print("a remark", file=sys.stderr)
        return 7

    with pytest.raises(ConfigError, match="unknown option --cuont; did you mean --count"):
        parse(command, ["--word", "hello", "--cuont", "2"], "zar say")
    assert calls == []
    assert parse(command, ["--word", "hello", "--count", "2"], "zar say") == 7
    assert calls == [("hello", 2)]
    assert capsys.readouterr().err == "a remark\n"

    def failing() -> int:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as end:
        parse(failing, [], "zar say")
    assert end.value.code == 3


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b", "a\nb"])
@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--dataset", "x"],
        ["ablate", "--dataset", "x", "--sweep", "confidence"],
        ["train", "--dataset", "x", "--output", "y.safetensors"],
        ["data", "index", "x"],
    ],
)
def test_a_name_is_one_folders_name(words, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--name", name]) == 2
    said = capsys.readouterr().err
    assert "is not the name of one folder; take letters, digits, - and _" in said
    assert "name" in said.partition("is not the name")[0]
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "a\0b"])
def test_a_name_in_a_file_is_one_folders_name_too(name, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": name}))
    said = complaint("--config", str(tmp_path / "run.yaml"))
    assert "run.yaml: name: " in said
    assert "is not the name of one folder" in said


def test_the_name_of_a_list_is_one_folders_name_too(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    words = ["--list", f"../../x={tmp_path / 'list.txt'}", "--labels", str(tmp_path / "labels.txt")]
    status = main(["data", "index", *words, "--root", str(tmp_path), "--data-root", str(tmp_path / "in" / "here")])
    assert status == 2
    assert "is not the name of one folder" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"list.txt", "labels.txt"}


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 600,
        "a: " + "[" * 150 + "]" * 150,
        "".join(f"{'  ' * level}a:\n" for level in range(2000)),
        "x0: &x0 [1, 2]\n" + "".join(f"x{n + 1}: &x{n + 1} [*x{n}, *x{n}]\n" for n in range(40)),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: 2001-99-99",
        "a: " + "9" * 5000,
        "a: !!timestamp nothing",
        "a: !!bool nothing",
        "a: !!float ''",
        "a: !!python/object/apply:os.getcwd []",
        "a: [",
    ],
)
def test_yaml_that_is_not_plain_is_one_line(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    said = complaint("--config", str(tmp_path / "run.yaml"))
    assert "run.yaml: cannot be read as YAML (" in said
    assert len(said) < 1000
