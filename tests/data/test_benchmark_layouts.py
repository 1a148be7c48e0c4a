"""Each benchmark's official layout in miniature: official-looking annotations, real little videos."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from zar_ray.commands.main import main
from zar_ray.data.benchmarks.adapters import ADAPTERS, list_benchmark
from zar_ray.data.benchmarks.layout import Files, LayoutReport
from zar_ray.data.classes import class_list
from zar_ray.data.datasets import load_benchmark
from zar_ray.data.index import run_index
from zar_ray.data.manifest import Manifest, read_manifest
from zar_ray.data.options import IndexConfig
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ConfigError, ManifestError

pytestmark = pytest.mark.usefixtures("probes_here")

Put = Callable[[Path], Path]
PARTS = {0: "unused", 1: "train", 2: "test"}


POINTER = "version https://git-lfs.github.com/spec/v1"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def listed(data: str, root: Path, **options: object):
    """What is listed without opening files: videos by id, and the report."""
    listing, report = list_benchmark(data, root, **options)  # type: ignore[arg-type]
    return {v.video_id: v for v in listing.videos}, report


def indexed(name: str, root: Path) -> tuple[Manifest, LayoutReport]:
    """The manifest of a benchmark's dataset, and the report."""
    listing, report = list_benchmark(name, root)
    return probe_listing(listing, workers=1), report


def hmdb51(root: Path, put: Callable[[Path], object]) -> None:
    """Three videos a class, in turn training, test and unused."""
    for name in class_list("hmdb51"):
        folder = name.replace(" ", "_")
        videos = [f"some_film_{folder}_u_nm_np1_fr_med_{n}.avi" for n in range(3)]
        for video in videos:
            put(root / "hmdb51_org" / folder / video)
        for split in (1, 2, 3):
            lines = [f"{video} {(n + split) % 3} " for n, video in enumerate(videos)]
            write(root / "testTrainMulti_7030_splits" / f"{folder}_test_split{split}.txt", *lines)


def test_hmdb51(tmp_path: Path, put_video: Put) -> None:
    few = {"brush_hair", "kick_ball"}
    hmdb51(tmp_path, lambda path: put_video(path) if path.parent.name in few else touch(path))
    manifest, report = indexed("hmdb51", tmp_path)
    assert manifest.class_names == class_list("hmdb51")
    assert len(manifest) == 153
    rows = {row.video_id: row for row in manifest.rows()}
    one = rows["hmdb51_org/kick_ball/some_film_kick_ball_u_nm_np1_fr_med_0.avi"]
    assert (one.class_name, one.label_id, one.split, one.frames, one.error) == ("kick ball", 21, "all", 6, None)
    assert one.memberships == ("train1", "test2")
    assert manifest.splits == ("test1", "test2", "test3", "train1", "train2", "train3")
    splits = load_benchmark("hmdb51").evaluations(manifest)
    assert [len(s) for s in splits] == [51, 51, 51]
    assert len({i for s in splits for i in s.video_ids}) == 153
    assert len(load_benchmark("hmdb51-full").evaluations(manifest)[0]) == 153
    assert [len(s) for s in load_benchmark("hmdb51-base2novel").evaluations(manifest)] == [26, 25]
    assert [s.relabelled for s in splits] == [4, 4, 4]
    assert report.missing == {}
    assert report.listed["test1"] == 51


def test_hmdb51_variants_and_what_is_missing(tmp_path: Path) -> None:
    hmdb51(tmp_path / "all", touch)
    videos = sorted((tmp_path / "all" / "hmdb51_org").rglob("*.avi"))
    for n, video in enumerate(videos):  # flat, another extension and other punctuation; two are gone
        if video.stem.endswith("_0") and video.parent.name in ("kick", "wave"):
            continue
        touch(tmp_path / "flat" / f"{video.stem.replace('_u_', ' u_') if n % 2 else video.stem}.mp4")
    touch(tmp_path / "flat" / "holiday.mp4")
    rows, report = listed("hmdb51", tmp_path / "flat", annotations=tmp_path / "all")
    assert len(rows) == 153
    gone = "kick/some_film_kick_u_nm_np1_fr_med_0.avi"
    assert rows[gone].path == str(tmp_path / "flat" / gone)
    assert report.missing == {(split, name): 1 for split in ("train1", "test2") for name in ("kick", "wave")}
    assert report.unused == ("holiday.mp4",)
    text = "\n".join(report.lines())
    assert "test2: 51 videos, 2 missing (kept, with an error each)\n  kick: 1 missing\n  wave: 1 missing" in text
    assert "1 files are in no annotation, such as holiday.mp4" in text
    rows, report = listed("hmdb51", tmp_path / "flat", annotations=tmp_path / "all", available_only=True)
    assert len(rows) == 151
    assert "2 missing (left out)" in "\n".join(report.lines())


def test_hmdb51_mistakes_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "kick" / "a.avi")
    with pytest.raises(ManifestError, match=r"no CLASS_test_splitN\.txt below it.*--annotations$"):
        listed("hmdb51", tmp_path)
    file = write(tmp_path / "kick_test_split1.txt", "a.avi 2")
    with pytest.raises(ManifestError, match=r"no brush_hair_test_split1\.txt below it"):
        listed("hmdb51", tmp_path)
    for line in ("a.avi 3", "a.avi 1 0", "a.avi 1  2", POINTER):
        write(file, line)
        what = "is a Git LFS pointer" if line is POINTER else "line 1: must be a file name and 0, 1 or 2"
        with pytest.raises(ManifestError, match=rf"kick_test_split1\.txt(, |: ){what}"):
            listed("hmdb51", tmp_path)
    file.unlink()
    write(tmp_path / "kiss_ball_test_split1.txt", "a.avi 1")
    with pytest.raises(ManifestError, match=r'"kiss_ball" is no class of HMDB51; did you mean "kick ball"\?$'):
        listed("hmdb51", tmp_path)
    hmdb51(tmp_path / "other", touch)
    with pytest.raises(ManifestError, match=r"holds none of the 153 videos of hmdb51"):
        listed("hmdb51", tmp_path / "kick", annotations=tmp_path / "other")


def ucf101(root: Path, put: Callable[[Path], object], classes: tuple[str, ...]) -> None:
    """Three groups a class; group N is the test group of split N."""
    lists = root / "ucfTrainTestlist"
    names = class_list("ucf101")
    write(lists / "classInd.txt", *(f"{n} {name}" for n, name in enumerate(names, start=1)))
    for split in (1, 2, 3):
        test, train = [], []
        for name in classes:
            spelled = name.replace("HandstandPushups", "HandStandPushups")
            for group in (1, 2, 3):
                video = f"{name}/v_{spelled}_g{group:02d}_c01.avi"
                (test if group == split else train).append(video)
                put(root / "UCF-101" / video)
        write(lists / f"testlist{split:02d}.txt", *test)
        write(lists / f"trainlist{split:02d}.txt", *(f"{v} {names.index(v.split('/')[0]) + 1}" for v in train))


def test_ucf101(tmp_path: Path, put_video: Put) -> None:
    ucf101(tmp_path, put_video, ("ApplyLipstick", "HandstandPushups"))
    manifest, report = indexed("ucf101", tmp_path)
    rows = {row.video_id: row for row in manifest.rows()}
    one = rows["UCF-101/HandstandPushups/v_HandStandPushups_g02_c01.avi"]
    assert (one.class_name, one.memberships, one.error) == ("HandstandPushups", ("test2", "train1", "train3"), None)
    # A group's number is its class's own, so the class tells groups apart.
    assert len({row.group for row in rows.values()}) == 6
    assert one.group == "HandStandPushups g02"
    assert manifest.class_names == class_list("ucf101")
    splits = load_benchmark("ucf101").evaluations(manifest)
    assert [len(s) for s in splits] == [2, 2, 2]
    assert len(load_benchmark("ucf101-full").evaluations(manifest)[0]) == 6
    assert [len(s) for s in load_benchmark("ucf101-base2novel").evaluations(manifest)] == [1, 1]
    assert report.sources[0] == "testlist01.txt"
    assert report.missing == {}


def test_ucf101_variants_and_mistakes(tmp_path: Path) -> None:
    ucf101(tmp_path, touch, ("Archery", "HandstandPushups"))
    folder = tmp_path / "UCF-101"
    (folder / "HandstandPushups").rename(folder / "handstand_pushups")
    moved = folder / "handstand_pushups" / "v_HandStandPushups_g01_c01.avi"
    moved.rename(moved.with_name("v_HandstandPushups_g01_c01.mp4"))
    rows, report = listed("ucf101", tmp_path)
    assert rows["UCF-101/handstand_pushups/v_HandstandPushups_g01_c01.mp4"].class_name == "HandstandPushups"
    assert not report.missing
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "testlist01.txt", "Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g01_c01.avi")
    with pytest.raises(ManifestError, match=r"testlist01\.txt, line 2: v_Archery_g01_c01 is listed before"):
        listed("ucf101", tmp_path)
    write(lists / "testlist01.txt", "v_Archery_g01_c01.avi")
    with pytest.raises(ManifestError, match=r"testlist01\.txt, line 1: must be CLASS/VIDEO\.avi"):
        listed("ucf101", tmp_path)
    write(lists / "classInd.txt", *(f"{n} {name}" for n, name in enumerate(reversed(class_list("ucf101")), start=1)))
    with pytest.raises(ManifestError, match=r'classInd\.txt: class 0 is "YoYo", expected "ApplyEyeMakeup"'):
        listed("ucf101", tmp_path)
    with pytest.raises(ManifestError, match=r"no testlistNN\.txt below it"):
        listed("ucf101", folder)


HEADER = "label,youtube_id,time_start,time_end,split,is_cc"


def test_k600(tmp_path: Path, put_video: Put) -> None:
    first, second, third = class_list("kinetics600_zero_shot_1")[:3]
    known = "yoga"
    csvs = tmp_path / "annotations"
    write(csvs / "train.csv", HEADER, f"{first},-aNccq2jvUA,55,65,train,0", f'"{known}",aaaaaaaaaaa,0,10,train,0')
    write(csvs / "val.csv", HEADER, f"{second},bbbbbbbbbbb,1,11,validate,0", f"{third},ccccccccccc,7,17,validate,1")
    write(csvs / "test.csv", HEADER, f"{third},ddddddddddd,100,110,test,0")
    put_video(tmp_path / "train" / first / "-aNccq2jvUA_000055_000065.mp4")  # in a class folder
    put_video(tmp_path / "train" / "aaaaaaaaaaa_000000_000010.mkv")  # flat
    put_video(tmp_path / "val" / second.replace(" ", "_") / "bbbbbbbbbbb_000001.webm")  # underscores, short name
    manifest, report = indexed("k600", tmp_path)
    rows = {row.video_id: row for row in manifest.rows()}
    assert {i: (r.class_name, r.split, r.error) for i, r in rows.items()} == {
        f"train/{first}/-aNccq2jvUA_000055_000065.mp4": (first, "train", None),
        "train/aaaaaaaaaaa_000000_000010.mkv": (known, "train", None),
        f"val/{second.replace(' ', '_')}/bbbbbbbbbbb_000001.webm": (second, "val", None),
        f"val/{third}/ccccccccccc_000007_000017.mp4": (third, "val", "no such file"),
    }
    assert report.left_out == {"test": 1}
    text = list(report.lines())
    assert text[0] == "read test.csv, train.csv, val.csv"
    assert "test: none of 1 videos is here; the split is left out" in text
    assert text[-2:] == ["val: 2 videos, 1 missing (kept, with an error each)", f"  {third}: 1 missing"]
    splits = load_benchmark("k600").evaluations(manifest)
    assert len(splits[0]) == 3
    assert all(known not in split.class_names for split in splits)
    assert len(load_benchmark("k600-val").evaluations(manifest, "1")[0]) == 2


def test_kinetics_ids_that_differ_by_case_alone_are_two_videos(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", HEADER, "yoga,AAAAAAAAAAA,0,10,val,0", "zumba,aaaaaaaaaaa,0,10,val,0")
    touch(tmp_path / "val" / "aaaaaaaaaaa_000000_000010.mp4")
    rows, report = listed("k400", tmp_path)
    assert rows["val/aaaaaaaaaaa_000000_000010.mp4"].class_name == "zumba"
    assert report.missing == {("val", "yoga"): 1}


def test_kinetics_parts_of_one_video_under_one_name_are_not_counted_twice(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", HEADER, "yoga,aaaaaaaaaaa,0,10,val,0", "zumba,aaaaaaaaaaa,20,30,val,0")
    touch(tmp_path / "aaaaaaaaaaa.mp4")
    rows, report = listed("k400", tmp_path)
    assert {v.class_name for v in rows.values()} == {"yoga", "zumba"}
    assert report.missing == {("val", "zumba"): 1}
    assert report.notes == ("1 entries share a file with another one; they count as missing",)


def test_k400_of_class_folders_alone(tmp_path: Path) -> None:
    for path in [
        "k400/train_256/training_dog/a.mp4",
        "k400/val_256/massaging_person's_head/b.mkv",
        "k400/val_256/passing American football (in game)/c.webm",
        "k400/val_256/replacement/d.mp4",
    ]:
        touch(tmp_path / path)
    rows, report = listed("k400", tmp_path)
    assert {i: (v.class_name, v.split) for i, v in rows.items()} == {
        "k400/train_256/training_dog/a.mp4": ("training dog", "train"),
        "k400/val_256/massaging_person's_head/b.mkv": ("massaging person's head", "val"),
        "k400/val_256/passing American football (in game)/c.webm": ("passing American football (in game)", "val"),
    }
    assert report.notes == ("1 folders are no class, such as k400/val_256/replacement; their videos are left out",)
    rows, _ = listed("k400", tmp_path / "k400" / "train_256")
    assert [v.split for v in rows.values()] == ["all"]


def test_kinetics_mistakes_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    with pytest.raises(ManifestError, match=r"no CSV with the columns .* and no class folder of Kinetics-400 below it"):
        listed("k400", tmp_path)
    csv = write(tmp_path / "labels.csv", POINTER)
    with pytest.raises(ManifestError, match=r"labels\.csv: is a Git LFS pointer"):
        listed("k400", tmp_path)
    write(csv, HEADER, "yoga,aaaaaaaaaaa,0,10,,0")
    with pytest.raises(ManifestError, match=r"labels\.csv, line 2: no split \(train, val or test\)"):
        listed("k400", tmp_path)
    write(csv, HEADER, "yogaa,aaaaaaaaaaa,0,10,val,0")
    with pytest.raises(ManifestError, match=r'line 2: "yogaa" is no class of Kinetics-400; did you mean "yoga"\?$'):
        listed("k400", tmp_path)
    for start in ("x", "inf", "nan"):
        write(csv, HEADER, f"yoga,aaaaaaaaaaa,{start},10,val,0")
        with pytest.raises(ManifestError, match=rf'line 2: start and end must be seconds, not "{start}"'):
            listed("k400", tmp_path)
    write(csv, HEADER, "yoga,aaaaaaaaaaa,0,10,val,0", "zumba,aaaaaaaaaaa,0,10,train,0")
    touch(tmp_path / "aaaaaaaaaaa.mp4")
    rows, report = listed("k400", tmp_path)
    assert [(v.class_name, v.splits) for v in rows.values()] == [("yoga", ("train", "val"))]
    assert report.notes[0].startswith("1 entries repeat a video with another class; the first holds (")


def ssv2_entry(number: int, name: str, **more: str) -> dict[str, object]:
    template = name.replace("something", "[something]")
    return {"id": str(number), "label": name, "template": template, "placeholders": [], **more}


def test_ssv2(tmp_path: Path, put_video: Put) -> None:
    names = class_list("ssv2")
    labels = tmp_path / "labels"
    prefix = "something-something-v2-"
    write(labels / f"{prefix}labels.json", json.dumps({name: str(n) for n, name in enumerate(names)}))
    write(labels / f"{prefix}train.json", json.dumps([ssv2_entry(1, names[5])]))
    write(labels / f"{prefix}validation.json", json.dumps([ssv2_entry(2, names[9]), ssv2_entry(3, names[173])]))
    write(labels / f"{prefix}test.json", json.dumps([{"id": "4"}]))
    for number in (1, 2):
        put_video(tmp_path / "20bn-something-something-v2" / f"{number}.webm")
    manifest, report = indexed("ssv2", tmp_path)
    assert {r.video_id: (r.class_name, r.split, r.error) for r in manifest.rows()} == {
        "20bn-something-something-v2/1.webm": (names[5], "train", None),
        "20bn-something-something-v2/2.webm": (names[9], "val", None),
        "3.webm": (names[173], "val", "no such file"),
    }
    assert report.left_out == {"test": 1}
    (split,) = load_benchmark("ssv2").evaluations(manifest)
    assert split.labels == ((9,), (173,))
    halves = [class_list(f"ssv2_{half}") for half in ("base", "novel")]
    for name, number in ((names[9], 2), (names[173], 3)):
        half = 0 if name in halves[0] else 1
        evaluation = load_benchmark("ssv2-base2novel").evaluations(manifest, ("base", "novel")[half])[0]
        assert any(video.endswith(f"{number}.webm") for video in evaluation.video_ids)


def test_ssv2_mistakes_are_named(tmp_path: Path) -> None:
    names = class_list("ssv2")
    touch(tmp_path / "1.mp4")
    with pytest.raises(ManifestError, match=r"no train\.json, validation\.json or test\.json below it"):
        listed("ssv2", tmp_path)
    file = write(tmp_path / "validation.json", json.dumps([ssv2_entry(1, "Folding everything")]))
    with pytest.raises(ManifestError, match=r'validation\.json, video 1: "Folding everything" is no class of Some'):
        listed("ssv2", tmp_path)
    for entry in ({"id": "1"}, {"id": "1", "template": 7}, {"id": "1", "template": ["Folding"]}):
        write(file, json.dumps([entry]))
        with pytest.raises(ManifestError, match=r"validation\.json, video 1: has no template"):
            listed("ssv2", tmp_path)
    write(file, POINTER)
    with pytest.raises(ManifestError, match=r"validation\.json: is a Git LFS pointer"):
        listed("ssv2", tmp_path)
    write(file, "{}")
    with pytest.raises(ManifestError, match=r"validation\.json: must hold a JSON list"):
        listed("ssv2", tmp_path)
    write(file, json.dumps([ssv2_entry(1, names[0]), ssv2_entry(1, names[0])]))
    with pytest.raises(ManifestError, match=r"video 1: is listed before, in val"):
        listed("ssv2", tmp_path)
    write(tmp_path / "labels.json", json.dumps({name: str(n) for n, name in enumerate(names[:100])}))
    with pytest.raises(ManifestError, match=r"labels\.json: has 100 classes, expected 174"):
        listed("ssv2", tmp_path)


CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


def test_charades(tmp_path: Path, put_video: Put) -> None:
    names = class_list("charades")
    folder = tmp_path / "Charades"
    write(folder / "Charades_v1_classes.txt", *(f"c{n:03d} {name}" for n, name in enumerate(names)))
    write(
        folder / "Charades_v1_train.csv",
        CHARADES,
        '46GP8,HR43,Kitchen,6,7,Yes,"A person cooks, and eats.",food;stove,-,c092 11.90 21.20;c147 0.00 12.60,24.83',
    )
    write(
        folder / "Charades_v1_test.csv",
        CHARADES,
        "YSKX3,X,Bed,5,6,Yes,Text.,a,b,c003 0.00 5.00;c001 1.00 2.00;c003 7.00 9.00,30.0",
        "NONE1,X,Bed,5,6,Yes,Text.,a,b,,30.0",
    )
    for video in ("46GP8", "YSKX3", "NONE1"):
        put_video(tmp_path / "Charades_v1_480" / f"{video}.mp4")
    manifest, report = indexed("charades", tmp_path)
    rows = {row.video_id: row for row in manifest.rows()}
    assert rows["Charades_v1_480/46GP8.mp4"].labels == (names[92], names[147])
    assert rows["Charades_v1_480/YSKX3.mp4"].label_id is None
    (split,) = load_benchmark("charades").evaluations(manifest)
    assert dict(zip(split.video_ids, split.labels, strict=True)) == {
        "Charades_v1_480/NONE1.mp4": (),
        "Charades_v1_480/YSKX3.mp4": (1, 3),
    }
    assert not report.missing
    write(folder / "Charades_v1_test.csv", CHARADES, "YSKX3,X,Bed,5,6,Yes,Text.,a,b,c157 0.00 5.00,30.0")
    with pytest.raises(
        ManifestError, match=r'test\.csv, line 2: "c157 0.00 5.00" is not one of the actions c000 to c156'
    ):
        listed("charades", tmp_path)
    with pytest.raises(ManifestError, match=r"no Charades_v1_train\.csv or Charades_v1_test\.csv below it"):
        listed("charades", tmp_path / "Charades_v1_480")


def test_every_dataset_that_a_benchmark_names_has_an_adapter() -> None:
    from zar_ray.data.datasets import known_benchmarks

    assert {load_benchmark(n).data for n in known_benchmarks()} - {None} == set(ADAPTERS)
    with pytest.raises(ConfigError, match='no dataset "hmdb" that can be indexed by name; did you mean "hmdb51"'):
        list_benchmark("hmdb", ".")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere: no such folder$"):
        Files(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"gone: no such folder$"):
        Files(tmp_path, tmp_path / "gone")


def test_the_command_writes_where_the_benchmark_looks(
    tmp_path: Path, put_video: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    ucf101(tmp_path / "ucf", put_video, ("Archery",))
    words = ["data", "index", "ucf101", "--root", str(tmp_path / "ucf"), "--data-root", str(tmp_path), "--workers", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/ucf101/manifest.parquet: 3 videos, 101 classes, 0 broken" in said
    assert "--dataset ucf101 --split 2: 1 of 3,734 videos, 101 classes" in said
    assert "--dataset ucf101-full --split full: 3 of 13,320 videos, 101 classes" in said
    assert read_manifest(tmp_path / "ucf101" / "manifest.parquet").name == "ucf101"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "give a folder, a CSV, --list FILE or a benchmark's name (charades"),
        (["hmdb51"], 2, "zar data index hmdb51: give the folder of its videos with --root"),
        (["hmdb51", "--root", "nowhere"], 1, "nowhere: no such folder"),
        (["hmdb52"], 1, 'hmdb52: no such folder, nor a benchmark; did you mean "hmdb51"?'),
        (["hmdb52", "--available-only"], 2, '"hmdb52" is no benchmark; did you mean "hmdb51"?'),
        (["hmdb51", "--root", ".", "--class-names", "a,b"], 2, "a benchmark has its own class names"),
        (["hmdb51", "--root", ".", "--labels", "x"], 2, "--labels goes with --list"),
        (["demo", "--root", "."], 2, 'demo: is not found in a folder; make it with "zar eval --dataset demo"'),
        (["--list", "a.txt"], 2, "give the folder of the videos with --root"),
        (["--list", "a.txt", "--root", "."], 2, "give the names of its labels with --labels FILE"),
        (["--list", "a.txt", "--root", ".", "--labels", "hmdb51"], 1, "a.txt: no such file"),
        (
            ["--list", "a.txt", "--root", ".", "--labels", "hmdb"],
            1,
            'hmdb: no such file of class names; did you mean "hm',
        ),
        (["hmdb51", "--root", ".", "--list", "a.txt"], 2, "say which split a.txt is, as SPLIT=FILE (splits: 1, 2, 3)"),
        (["hmdb51", "--root", ".", "--list", "4=a.txt"], 2, '--list: no split "4"; known: 1, 2, 3'),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    words: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "index", *words]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_broken_files_of_a_benchmark_are_told_apart_from_missing_ones(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", HEADER, "yoga,aaaaaaaaaaa,0,10,val,0", "yoga,bbbbbbbbbbb,0,10,val,0")
    touch(tmp_path / "aaaaaaaaaaa.mp4")
    console = Console(file=io.StringIO(), width=200)
    request = IndexConfig(source="k400", output=str(tmp_path / "m.parquet"), root=str(tmp_path), workers=1)
    assert run_index(request, console) == str(tmp_path / "m.parquet")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "val: 2 videos, 1 missing (kept, with an error each)\n  yoga: 1 missing\n" in said
    assert "m.parquet: 2 videos, 400 classes, 2 broken\n  aaaaaaaaaaa.mp4: " in said
    assert "bbbbbbbbbbb" not in said
