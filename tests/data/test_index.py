import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from zar_ray.data.datasets import list_dataset
from zar_ray.data.listing import list_csv, list_folder
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ConfigError, ManifestError

Put = Callable[[Path], Path]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def labels(listing: object) -> dict[str, tuple[str | None, str]]:
    return {v.video_id: (v.class_name, v.split) for v in listing.videos}  # type: ignore[attr-defined]


def by_id(manifest: Manifest) -> dict[str, VideoRow]:
    return {row.video_id: row for row in manifest.rows()}


def test_a_folder_becomes_a_manifest_with_its_broken_files(tmp_path: Path, put_video: Put) -> None:
    put_video(tmp_path / "walk_run" / "1.mp4")
    put_video(tmp_path / "jump" / "deeper" / "2.MP4")
    (tmp_path / "jump" / "empty.mp4").write_bytes(b"")
    (tmp_path / "jump" / "text.mp4").write_text("not a video, though its name says so")
    manifest = probe_listing(list_dataset(tmp_path), workers=2)

    assert manifest.class_names == ("jump", "walk_run")
    assert (manifest.root, manifest.name) == (str(tmp_path), tmp_path.name)
    assert manifest.table["video_id"].to_pylist() == sorted(by_id(manifest))
    good = by_id(manifest)["walk_run/1.mp4"]
    assert good == VideoRow(
        video_id="walk_run/1.mp4",
        path=str(tmp_path / "walk_run" / "1.mp4"),
        label_id=1,
        class_name="walk_run",
        split="all",
        frames=6,
        fps=12.0,
        width=48,
        height=32,
        duration=0.5,
        size=(tmp_path / "walk_run" / "1.mp4").stat().st_size,
        decoder=good.decoder,
    )
    assert good.decoder in ("decord", "pyav")
    assert by_id(manifest)["jump/deeper/2.MP4"].class_name == "jump"
    for name in ("jump/empty.mp4", "jump/text.mp4"):
        row = by_id(manifest)[name]
        assert row.error
        assert "\n" not in row.error
        assert row.label_id == 0
        assert row.frames is row.decoder is None
    assert by_id(manifest)["jump/empty.mp4"].size == 0


def test_hidden_files_are_passed_over_and_others_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "a/.hidden.mp4", ".cache/a/2.mp4", "a/readme.txt", "a/noextension", "notes/x.pdf")
    listing = list_folder(tmp_path)
    assert [v.video_id for v in listing.videos] == ["a/1.mp4"]
    assert listing.ignored == 3
    assert listing.class_names == ("a",)  # a folder without a video is no class


def test_every_kind_of_video_file_is_found_whatever_its_case(tmp_path: Path) -> None:
    kinds = ["mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "gif", "ts", "3gp", "MP4", "Avi"]
    touch(tmp_path, *(f"a/{n}.{kind}" for n, kind in enumerate(kinds)))
    assert len(list_folder(tmp_path).videos) == len(kinds)


def test_split_folders_above_class_folders_become_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/1.mp4", "val/run/1.mp4", "test/jump/high/3.mp4", "test/loose.mp4", "meta/list.txt")
    listing = list_folder(tmp_path)
    assert listing.class_names == ("jump", "run")
    assert labels(listing) == {
        "train/run/1.mp4": ("run", "train"),
        "val/run/1.mp4": ("run", "val"),
        "test/jump/high/3.mp4": ("jump", "test"),
        "test/loose.mp4": (None, "test"),
    }


def test_a_class_called_test_among_other_classes_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "test/1.mp4", "run/2.mp4")
    assert labels(list_folder(tmp_path)) == {"test/1.mp4": ("test", "all"), "run/2.mp4": ("run", "all")}


def test_videos_without_class_folders_are_unlabelled(tmp_path: Path) -> None:
    touch(tmp_path, "1.mp4", "2.mp4")
    listing = list_folder(tmp_path)
    assert labels(listing) == {"1.mp4": (None, "all"), "2.mp4": (None, "all")}
    assert listing.class_names == ()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "store", "b/1.mp4", "2.mp4")
    root = touch(tmp_path / "set", "a/0.mp4")
    (root / "b").symlink_to(tmp_path / "store" / "b")
    (root / "a" / "linked.mp4").symlink_to(tmp_path / "store" / "2.mp4")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert labels(list_folder(root)) == {
        "a/0.mp4": ("a", "all"),
        "a/linked.mp4": ("a", "all"),
        "a/gone.mp4": ("a", "all"),
        "b/1.mp4": ("b", "all"),
    }
    assert by_id(probe_listing(list_dataset(root), workers=1))["a/gone.mp4"].error == "no such file"


def test_class_names_are_composed_and_ids_are_the_names_on_the_disk(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    touch(tmp_path, f"{decomposed}/1.mp4")
    listing = list_folder(tmp_path)
    assert listing.class_names == (unicodedata.normalize("NFC", "café"),)
    assert listing.videos[0].video_id == f"{decomposed}/1.mp4"
    assert Path(listing.root, listing.videos[0].video_id).exists()


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="other systems refuse such names")
def test_a_name_that_is_not_unicode_is_a_row_with_an_error(tmp_path: Path, tiny_video: Path) -> None:
    folder = os.fsencode(tmp_path / "a")
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/bad\xff.mp4")).write_bytes(tiny_video.read_bytes())
    (row,) = probe_listing(list_dataset(tmp_path), workers=1).rows()
    assert row.error == "the file's name is not UTF-8; rename it"
    assert row.video_id == "a/bad\\udcff.mp4"


def test_given_class_names_set_the_label_ids(tmp_path: Path) -> None:
    touch(tmp_path, "run/1.mp4")
    assert list_folder(tmp_path, ["walk", "run"]).class_names == ("walk", "run")
    with pytest.raises(ManifestError, match=r'class "run" is not among the class names; did you mean "runs"\?$'):
        list_folder(tmp_path, ["walk", "runs"])
    with pytest.raises(ManifestError, match='"run" is both class name 1 and class name'):
        list_folder(tmp_path, ["run", "run"])


def test_a_folder_that_cannot_be_indexed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none: no such folder$"):
        list_folder(tmp_path / "none")
    file = tmp_path / "x.txt"
    file.write_text("")
    with pytest.raises(ManifestError, match=r"x\.txt: is not a folder$"):
        list_folder(file)
    with pytest.raises(
        ManifestError, match=r"holds no videos \(looked below it for .*\.mp4.*; 1 other file ignored\)$"
    ):
        list_folder(tmp_path)


def test_a_csv_becomes_a_manifest(tmp_path: Path, put_video: Put) -> None:
    put_video(tmp_path / "set" / "a" / "1, first.mp4")
    outside = put_video(tmp_path / "outside.mp4")
    csv = tmp_path / "set" / "list.csv"
    csv.write_bytes(
        "\ufeffpath,label,split\r\n"
        '"a/1, first.mp4", running ,test\r\n'
        "\r\n"
        f"{outside},,\r\n"
        'gone.mp4,"shooting, with a ball",val\r\n'.encode()
    )
    manifest = probe_listing(list_dataset(csv), workers=1)
    assert manifest.class_names == ("running", "shooting, with a ball")
    assert (manifest.name, manifest.root) == ("list", str(tmp_path / "set"))
    rows = by_id(manifest)
    first = rows["a/1, first.mp4"]
    assert (first.class_name, first.label_id, first.split, first.frames, first.error) == ("running", 0, "test", 6, None)
    unlabelled = rows[str(outside)]
    assert (unlabelled.class_name, unlabelled.label_id, unlabelled.split) == (None, None, "all")
    missing = rows["gone.mp4"]
    assert (missing.label_id, missing.split, missing.error, missing.size) == (1, "val", "no such file", None)


@pytest.mark.parametrize(
    ("name", "said", "group"),
    [
        ("v_PlayingGuitar_g07_c03.avi", "", "PlayingGuitar g07"),
        ("train/x/v_PlayingGuitar_g07_c04.mp4", "", "PlayingGuitar g07"),
        ("-_-aBcDeFgH_000010_000020.mp4", "", "-_-aBcDeFgH"),
        ("y/-_-aBcDeFgH_000110_000120.webm", "", "-_-aBcDeFgH"),
        ("v_PlayingGuitar_g07_c05.avi", "session 3", "session 3"),
        ("holiday_000010.mp4", "", None),
        ("holiday.mp4", " film ", "film"),
    ],
)
def test_a_videos_group_is_what_its_list_says_or_else_its_name(
    tmp_path: Path, name: str, said: str, group: str | None
) -> None:
    csv = tmp_path / "list.csv"
    csv.write_text(f"path,group\n{name},{said}\n")
    (video,) = list_csv(csv).videos
    assert video.group == group
    if not said:
        touched = tmp_path / "folder" / name
        touched.parent.mkdir(parents=True)
        touched.touch()
        assert [one.group for one in list_folder(tmp_path / "folder").videos] == [group]


def test_a_csv_with_a_root_of_its_own(tmp_path: Path) -> None:
    csv = tmp_path / "list.csv"
    csv.write_text("label,path\nrun,sub/../x/1.mp4\n")
    listing = list_csv(csv, root=tmp_path / "data")
    (video,) = listing.videos
    assert (video.video_id, video.path) == ("x/1.mp4", str(tmp_path / "data" / "x" / "1.mp4"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("path,label\na.mp4,x\nb.mp4,x\n./a.mp4,y\n", "line 4: ./a.mp4 is already in {csv}, line 2"),
        ("a.mp4,x\n", 'must begin with a header that has the columns "path"'),
        ("", "lists no videos"),
        ("path,label\n", "lists no videos"),
        ("path,lable\na.mp4,x\n", 'unknown column "lable"; did you mean "label"?'),
        ("path,path\na.mp4,x\n", 'column "path" occurs more than once'),
        ("path,label\na,b.mp4,x\n", "line 2: has 3 cells, the header has 2"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ('path,label\n"a.mp4,x\n', "is not a CSV"),
    ],
)
def test_a_wrong_csv_is_answered_with_the_line(tmp_path: Path, content: str, complaint: str) -> None:
    csv = tmp_path / "list.csv"
    csv.write_text(content)
    with pytest.raises(ManifestError) as caught:
        list_csv(csv)
    assert str(caught.value).startswith(str(csv))
    assert complaint.format(csv=csv) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    csv = tmp_path / "list.csv"
    csv.write_bytes("path,label\ncafé.mp4,x\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="is not UTF-8 text"):
        list_csv(csv)
    with pytest.raises(ManifestError, match=r"none\.csv: no such file$"):
        list_csv(tmp_path / "none.csv")


def test_a_csv_label_outside_the_class_names_is_answered_with_its_line(tmp_path: Path) -> None:
    csv = tmp_path / "list.csv"
    csv.write_text("path,label\na.mp4,run\nb.mp4,wlak\n")
    with pytest.raises(ManifestError, match=r'line 3: label "wlak" is not among the class names; did you mean "walk"'):
        list_csv(csv, class_names=["walk", "run"])
    assert list_csv(csv, class_names=["wlak", "run"]).class_names == ("wlak", "run")


@pytest.mark.slow
def test_the_same_files_give_the_same_manifest_however_many_processes(tmp_path: Path, put_video: Put) -> None:
    for n in range(5):
        put_video(tmp_path / f"class_{n % 2}" / f"{n}.mp4")
    one, two = probe_listing(list_dataset(tmp_path), workers=1), probe_listing(list_dataset(tmp_path), workers=2)
    assert one.table.equals(two.table)


def test_a_decoder_that_is_not_installed_is_one_error_and_not_one_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.mp4")
    monkeypatch.setattr("zar_ray.video.reading.has_decord", lambda: False)
    with pytest.raises(ConfigError, match="decord is not installed here; use --decoder auto or --decoder pyav"):
        probe_listing(list_dataset(tmp_path), "decord")
