import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from zar_ray.data.datasets import (
    known_benchmarks,
    list_dataset,
    load_benchmark,
    open_dataset,
    parse_class_names,
    resolve_dataset,
)
from zar_ray.data.manifest import Manifest, VideoRow, write_manifest
from zar_ray.errors import ConfigError, ManifestError, ZarError
from zar_ray.study.options import EvalConfig

pytestmark = pytest.mark.usefixtures("probes_here")

Put = Callable[[Path], Path]


def small(name: str = "set", split: str = "all") -> Manifest:
    row = VideoRow("a/1.mp4", "/data/a/1.mp4", 0, "a", split, 10, width=32, height=24)
    return Manifest.of([row], ["a"], "/data", name)


@pytest.fixture
def benchmark_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a benchmark's file into a configuration folder of the test's own."""
    folder = tmp_path / "conf" / "benchmarks"
    folder.mkdir(parents=True)
    monkeypatch.setattr("zar_ray.data.datasets.conf_dir", lambda: folder.parent)
    return lambda name, content: (folder / f"{name}.yaml").write_text(content, encoding="utf-8") and None


def test_the_shipped_benchmarks_are_right() -> None:
    known = {name: load_benchmark(name) for name in known_benchmarks()}
    assert {"k400": 400, "k600": 600, "hmdb51": 51, "ucf101": 101}.items() <= {
        name: benchmark.classes for name, benchmark in known.items()
    }.items()


def test_a_benchmark_without_data_says_how_to_make_it(tmp_path: Path) -> None:
    place = tmp_path / "k600" / "manifest.parquet"
    with pytest.raises(ManifestError) as caught:
        resolve_dataset("k600", tmp_path)
    assert str(caught.value) == (
        f'k600: no manifest at {place}; make one with "zar data index k600 --root FOLDER --output {place}"'
    )


def test_a_benchmark_with_data_is_opened_under_its_name(tmp_path: Path) -> None:
    write_manifest(small("whatever", "val"), tmp_path / "k600" / "manifest.parquet")
    source = resolve_dataset("k600", tmp_path)
    assert (source.name, source.benchmark) == ("k600", load_benchmark("k600"))
    manifest = open_dataset(source)
    assert manifest.name == "k600"
    benchmark = load_benchmark("k600")
    assert benchmark.split_of(manifest) == "val"
    assert benchmark.split_of(small(split="all")) is None
    assert benchmark.note(manifest) == (
        "k600: the manifest has 1 class names, Kinetics-600, zero-shot has 600; accuracies compare only with results "
        "over the same class names"
    )


def test_the_data_root_is_by_default_below_zar_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    with pytest.raises(ManifestError, match=str(tmp_path / "datasets" / "k400" / "manifest.parquet")):
        resolve_dataset("k400")


def test_a_benchmark_may_keep_its_manifest_elsewhere_and_bring_options(
    benchmark_file: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZAR_HOME", str(tmp_path / "home"))
    benchmark_file(
        "tiny",
        "title: Tiny\nmanifest: '{home}/tiny/manifest.parquet'\nmake: zar demo {name}\noptions: {views: {frames: 4}}\n",
    )
    benchmark = load_benchmark("tiny")
    assert benchmark.options == {"views": {"frames": 4}}
    assert EvalConfig.model_validate(benchmark.options).views.frames == 4
    with pytest.raises(ManifestError, match=r'home/tiny/manifest\.parquet; make one with "zar demo tiny"$'):
        resolve_dataset("tiny")
    write_manifest(small(), benchmark.manifest_path())
    assert resolve_dataset("tiny").path == str(tmp_path / "home" / "tiny" / "manifest.parquet")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("titel: X\n", "titel"),
        ("title: X\nname: other\n", "is named other inside"),
        ("title: X\nmanifest: '{hom}/x.parquet'\n", "{hom}"),
    ],
)
def test_a_wrong_benchmark_file_is_named(
    benchmark_file: Callable[[str, str], None], content: str, complaint: str
) -> None:
    benchmark_file("tiny", content)
    with pytest.raises(ConfigError) as caught:
        load_benchmark("tiny")
    assert "tiny.yaml" in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_places_get_precise_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = tmp_path / "one.mp4"
    video.write_bytes(b"")
    for dataset, complaint in [
        ("k60", 'no dataset "k60": neither a benchmark nor a manifest, CSV or folder; did you mean "k600"?'),
        ("./k600", "./k600: no such file or folder"),
        ("lists/x.csv", "lists/x.csv: no such file or folder"),
        (str(video), "is neither a manifest (.parquet), a list (.csv) nor a folder; `zar predict` takes single videos"),
    ]:
        with pytest.raises(ManifestError) as caught:
            resolve_dataset(dataset, tmp_path / "root")
        assert complaint in str(caught.value)
    with pytest.raises(ConfigError, match=r'no benchmark "ucf1001"; did you mean "ucf101"\?'):
        load_benchmark("ucf1001")


def test_manifests_lists_and_folders_are_told_apart(tmp_path: Path, put_video: Put) -> None:
    put_video(tmp_path / "videos" / "run" / "1.mp4")
    csv = tmp_path / "mine.csv"
    csv.write_text("path,label\nvideos/run/1.mp4,running\n")
    write_manifest(small(), tmp_path / "ready" / "manifest.parquet")
    write_manifest(small(), tmp_path / "other.parquet")

    folder = resolve_dataset(str(tmp_path / "videos"))
    assert (folder.name, folder.path) == ("videos", str(tmp_path / "videos"))
    assert open_dataset(folder, workers=1).class_names == ("run",)
    listed = resolve_dataset(str(csv))
    assert (listed.name, listed.benchmark) == ("mine", None)
    assert open_dataset(listed, workers=1).class_names == ("running",)
    for place, name in [("ready/manifest.parquet", "ready"), ("other.parquet", "other")]:
        source = resolve_dataset(str(tmp_path / place))
        assert source.name == name
        assert open_dataset(source).name == name
    # A name below the data root works as a benchmark's does.
    named = resolve_dataset("ready", tmp_path)
    assert (named.name, named.path) == ("ready", str(tmp_path / "ready" / "manifest.parquet"))
    remote = resolve_dataset("s3://bucket/sets/mine/manifest.parquet")
    assert (remote.name, remote.path) == ("mine", "s3://bucket/sets/mine/manifest.parquet")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no videos"):
        open_dataset(resolve_dataset(str(tmp_path)))


def test_indexing_says_what_it_does(tmp_path: Path, put_video: Put) -> None:
    put_video(tmp_path / "run" / "1.mp4")
    (tmp_path / "notes.txt").write_text("")
    console = Console(file=io.StringIO(), width=200)
    manifest = open_dataset(resolve_dataset(str(tmp_path)), console, workers=1)
    assert manifest.name == tmp_path.name
    assert console.file.getvalue() == f"{tmp_path}: opening 1 video, 1 class; 1 other file ignored\n"  # type: ignore[attr-defined]


def test_what_cannot_be_indexed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "one.mp4"
    file.write_bytes(b"")
    with pytest.raises(ManifestError, match=r"one\.mp4: is neither a folder of videos nor a list of them"):
        list_dataset(file)
    with pytest.raises(ManifestError, match="a root goes with a CSV"):
        list_dataset(tmp_path, tmp_path)
    with pytest.raises(ManifestError, match=r"gone\.csv: no such"):
        list_dataset(tmp_path / "gone.csv")


def test_class_names_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    assert parse_class_names("run, jump ,climb") == ("run", "jump", "climb")
    assert parse_class_names('run,"shoot, with a ball"') == ("run", "shoot, with a ball")
    assert parse_class_names("run") == ("run",)
    file = tmp_path / "names.txt"
    file.write_bytes('\ufeffrun\r\nshoot, with a "ball"\r\n\r\n'.encode())
    assert parse_class_names(str(file)) == ("run", 'shoot, with a "ball"')


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("run,,jump", "class names: name 2 is empty"),
        ("run,jump,run", 'class names: "run" is both name 1 and name 3'),
        ("", "no class names"),
        ("nowhere/names.txt", "nowhere/names.txt: no such file of class names"),
        ('"run', "cannot be read as a list"),
        ("run\njump", "class names run jump: cannot be read as a list"),
    ],
)
def test_wrong_class_names_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_class_names(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_lines_of_a_class_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("run\n\njump\n")
    with pytest.raises(ZarError, match=r"names\.txt: line 2 is empty$"):
        parse_class_names(str(file))
    file.write_text("run\njump\nrun\n")
    with pytest.raises(ZarError, match=r'names\.txt: "run" is both line 1 and line 3$'):
        parse_class_names(str(file))
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(ZarError, match=r"names\.txt: is not UTF-8 text"):
        parse_class_names(str(file))


def test_a_list_of_names_may_be_longer_than_a_files_name():
    names = tuple(f"action number {number}" for number in range(400))
    assert parse_class_names(",".join(names)) == names


def test_what_could_be_a_list_and_is_a_files_name_is_that_file(tmp_path):
    (tmp_path / "a,b").write_text("one, and the other\n")
    assert parse_class_names(str(tmp_path / "a,b")) == ("one, and the other",)
