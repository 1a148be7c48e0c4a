from collections.abc import Callable
from pathlib import Path

import pytest

from zar_ray.commands.main import main
from zar_ray.data.audit import AuditReport, audit, check_labels, identity, run_audit
from zar_ray.data.benchmarks.adapters import list_benchmark
from zar_ray.data.classes import class_list
from zar_ray.data.listing import Listing
from zar_ray.data.manifest import Manifest, VideoRow, write_manifest
from zar_ray.data.options import AuditConfig
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ConfigError, ManifestError

SWAPS = {"kick": "kick ball", "kick ball": "kick", "sword": "sword exercise", "sword exercise": "sword"}


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def swapped(path: Path, classes: str) -> str:
    """A label file with the mistake that several repositories publish."""
    names = class_list(classes)
    return write(path, *(SWAPS[n] if n in SWAPS and SWAPS[n] in names else n for n in names))


def found(report: AuditReport, check: str) -> list[tuple[str, int, int]]:
    return [(f.level, f.count, f.total) for f in report.findings if f.check == check]


@pytest.mark.parametrize(
    ("place", "classes", "wrong", "total"),
    [
        ("hmdb_splits/val1.txt", "hmdb51", 120, 1530),
        ("hmdb_splits/val2.txt", "hmdb51", 120, 1530),
        ("hmdb_splits/val3.txt", "hmdb51", 120, 1530),
        ("base2novel_splits/hmdb_splits/base_val.txt", "hmdb51_base", 60, 780),
        ("base2novel_splits/hmdb_splits/novel_val.txt", "hmdb51_novel", 60, 750),
    ],
)
def test_the_hmdb51_swap_is_found(
    place: str, classes: str, wrong: int, total: int, shared: Path, tmp_path: Path
) -> None:
    file = str(shared / "benchmarks" / "lists" / place)
    report = run_audit(AuditConfig(list=(file,), labels=(swapped(tmp_path / "labels.txt", classes),)))
    assert found(report, "labels") == [("wrong", wrong, total)]
    assert report.wrong
    (finding,) = [f for f in report.findings if f.check == "labels"]
    exchanged = [line for line in finding.details if "are exchanged in the label map" in line]
    expected = {
        "hmdb51": [
            'labels 20 "kick ball" and 21 "kick" are exchanged in the label map',
            'labels 44 "sword exercise" and 45 "sword" are exchanged in the label map',
        ],
        "hmdb51_base": ['labels 19 "sword exercise" and 20 "sword" are exchanged in the label map'],
        "hmdb51_novel": ['labels 20 "kick ball" and 21 "kick" are exchanged in the label map'],
    }
    assert exchanged == expected[classes]
    assert not run_audit(AuditConfig(list=(file,), labels=(classes,))).wrong


def test_published_training_and_test_lists_share_no_video(shared: Path) -> None:
    folder = shared / "benchmarks" / "lists"
    for data, classes, half in [("hmdb", "hmdb51", 750), ("ucf", "ucf101", 1695), ("ssv2", "ssv2", 7215)]:
        place = folder / "base2novel_splits" / f"{data}_splits"
        train = tuple(str(place / f"fs_base_s{seed}_train.txt") for seed in (1, 2, 3))
        request = AuditConfig(
            list=(str(place / "novel_val.txt"),),
            labels=(f"{classes}_novel",),
            train=train,
            train_labels=f"{classes}_base",
        )
        report = run_audit(request)
        assert not report.wrong
        assert found(report, "overlap") == [("ok", 0, half)]
        assert found(report, "zero-shot")[0][:2] == ("ok", 0)


@pytest.mark.slow
def test_the_published_k600_lists_are_right_and_zero_shot(shared: Path) -> None:
    folder = shared / "benchmarks" / "lists" / "k600_splits"
    files = tuple(str(folder / f"ZS_split{n}_K600_eval.txt") for n in (1, 2, 3))
    report = run_audit(AuditConfig(list=files, dataset="k600", train_labels="kinetics400"))
    assert not report.wrong
    assert found(report, "counts") == [("ok", n, n) for n in (14084, 13978, 14136)]
    assert found(report, "lists") == [("note", 16105, 19058)]
    assert found(report, "zero-shot") == [("ok", 0, 217)]
    swapped_files = (files[1], files[0], files[2])
    report = run_audit(AuditConfig(list=swapped_files, labels=("kinetics600_zero_shot_1",), dataset="k600"))
    assert [level for level, _, _ in found(report, "counts")] == ["wrong", "wrong", "ok"]


def lists(tmp_path: Path, lines: list[str], names: list[str], **more: object) -> AuditReport:
    file, labels = write(tmp_path / "list.txt", *lines), write(tmp_path / "names.txt", *names)
    return run_audit(AuditConfig(list=(file,), labels=(labels,), **more))  # type: ignore[arg-type]


def test_folders_carry_classes_too(tmp_path: Path) -> None:
    report = lists(tmp_path, ["val/Jump_High/1.mp4 0", "val/run/2.mp4 0", "loose.mp4 1"], ["jump high", "run"])
    assert found(report, "labels") == [("wrong", 1, 3)]
    (finding,) = [f for f in report.findings if f.check == "labels"]
    assert finding.details == ('1 of "run" are labelled "jump high"',)


def test_another_spelling_is_a_note_and_no_mistake(tmp_path: Path) -> None:
    report = lists(tmp_path, ["v_HandStandPushups_g01_c01.avi 0"], ["HandstandPushups"])
    assert found(report, "labels") == [("ok", 0, 1)]
    assert found(report, "spelling") == [("note", 1, 1)]


def test_a_title_that_ends_in_another_class_is_not_taken_for_it() -> None:
    ending = "u_cm_np1_fr_med_0.avi"
    videos = [
        ("kick_the_ball_kick_ball", "kick ball"),
        ("climb_climb_stairs", "climb stairs"),
        ("draw_sword", "draw sword"),
        ("sword", "sword"),
        ("x_shoot_gun", "shoot gun"),
    ]
    rows = tuple(VideoRow(f"{t}_{ending}", "", class_name=name) for t, name in videos)
    subject = Listing(rows, class_list("hmdb51"), name="x")
    assert [f.level for f in check_labels(subject)] == ["ok"]


def test_two_classes_that_are_only_partly_confused_are_not_called_exchanged(tmp_path: Path) -> None:
    report = lists(tmp_path, ["a/1.mp4 0", "a/2.mp4 1", "b/1.mp4 0", "b/2.mp4 1"], ["a", "b"])
    (finding,) = [f for f in report.findings if f.check == "labels"]
    assert finding.count == 2
    assert not [line for line in finding.details if "exchanged" in line]


def test_duplicates_overlaps_shared_classes_and_idle_ones(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "x/aaaaaaaaaaa_000000_000010.mp4 0", "bbbbbbbbbbb_000000_000010.mp4 1")
    report = lists(
        tmp_path,
        [
            "val/aaaaaaaaaaa_000000_000010.mp4 0",
            "val/bbbbbbbbbbb_000050_000060.mp4 0",
            "val/ccccccccccc_000000_000010.mp4 0",
            "val/ccccccccccc_000000_000010.mkv 0",
        ],
        ["dyeing hair", "yoga", "zumba"],
        train=(train,),
        train_labels=write(tmp_path / "k400.txt", "dying hair", "Yoga"),
    )
    assert found(report, "duplicates") == [("wrong", 1, 4)]
    assert found(report, "overlap") == [("wrong", 1, 4)]
    assert found(report, "sources") == [("warning", 1, 4)]
    assert found(report, "classes") == [("note", 2, 3)]
    assert found(report, "zero-shot") == [("warning", 2, 3)]
    text = "\n".join(report.lines())
    assert '"dyeing hair" is called "dying hair" there' in text
    assert "val/aaaaaaaaaaa_000000_000010.mp4" in text


def test_lists_that_contradict_each_other(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.txt", "a.mp4 0", "b.mp4 1"), write(tmp_path / "2.txt", "a.mp4 1", "c.mp4 0")
    report = run_audit(AuditConfig(list=(one, two), labels=(write(tmp_path / "names.txt", "x", "y"),)))
    assert found(report, "lists") == [("note", 1, 3), ("wrong", 1, 3)]


def test_missing_files_of_a_list(tmp_path: Path) -> None:
    for name in ("run/1.mp4", "2.mkv"):
        write(tmp_path / "videos" / name)
    report = lists(tmp_path, ["1.mp4 0", "2.mp4 0", "gone.mp4 1"], ["run", "walk"], root=tmp_path / "videos")
    assert found(report, "files") == [("wrong", 1, 3)]
    assert "walk: 1" in "\n".join(report.lines())
    with pytest.raises(ManifestError, match="nowhere: no such folder"):
        lists(tmp_path, ["1.mp4 0"], ["run"], root=tmp_path / "nowhere")


def test_a_missing_file_whose_name_another_folder_has_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "videos" / "run/1.mp4")
    report = lists(tmp_path, ["run/1.mp4 0", "walk/1.mp4 1"], ["run", "walk"], root=tmp_path / "videos")
    assert found(report, "files") == [("wrong", 1, 2)]
    assert "walk/1.mp4" in "\n".join(report.lines())


def test_a_manifest(tmp_path: Path, put_video: Callable[[Path], Path]) -> None:
    names = ("a", "b")
    there = put_video(tmp_path / "a" / "1.mp4")
    good = VideoRow("a/1.mp4", str(there), 0, "a", "all", 6, width=48, height=32, size=10, splits=("train1", "test2"))
    rows = [
        good,
        VideoRow("b/2.mp4", str(tmp_path / "b/2.mp4"), 1, "b", "test1", error="no such file"),
        VideoRow("b/3.mp4", str(there), 0, "a", "all", error="is empty", splits=("train1", "test1")),
        VideoRow("c/4.mp4", str(there), None, None, "val", 6, width=48, height=32),
    ]
    write_manifest(Manifest.of(rows, names, tmp_path, "mine"), tmp_path / "m.parquet")
    report = run_audit(AuditConfig(manifest=str(tmp_path / "m.parquet")))
    assert found(report, "labels") == [("wrong", 1, 4)]
    assert found(report, "overlap") == [("wrong", 1, 2)]
    assert found(report, "files") == [("wrong", 1, 4), ("wrong", 1, 4)]
    assert found(report, "duplicates") == [("ok", 0, 4)]
    assert found(report, "counts") == []
    assert found(AuditReport(tuple(audit(Listing((), names, name="none")))), "duplicates") == [("ok", 0, 0)]


def test_copies_of_a_file_in_other_folders_are_found() -> None:
    paths = ["a/run.mp4", "b/run.mp4", "c/run.mp4", "c/jump.mp4"]
    sizes = [100, 100, 101, 100]
    videos = (VideoRow(p, "", class_name="x", size=s) for p, s in zip(paths, sizes, strict=True))
    (finding,) = [f for f in audit(Listing(tuple(videos), ("x",), name="set")) if f.check == "duplicates"]
    assert (finding.level, finding.count, finding.details) == ("wrong", 1, ("run.mp4",))


def test_a_benchmarks_manifest_is_held_against_its_counts(
    tmp_path: Path, put_video: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ucf"
    video = "Archery/v_Archery_g01_c01.avi"
    put_video(folder / video)
    write(folder / "testlist01.txt", video)
    manifest = probe_listing(list_benchmark("ucf101", folder)[0], workers=1)
    write_manifest(manifest, tmp_path / "m.parquet")
    report = run_audit(AuditConfig(manifest=str(tmp_path / "m.parquet")))
    wrong = [f.text for f in report.findings if f.check == "counts" and f.level == "wrong"]
    assert "ucf101, split 1: 1 videos, 3,783 published" in wrong
    assert "ucf101-full, split full: 1 videos, 13,320 published" in wrong
    assert main(["data", "audit", str(tmp_path / "m.parquet"), "--dataset", "ucf101"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "wrong    counts      ucf101, split 1: 1 videos, 3,783 published" in lines
    assert any(
        line.startswith("wrong    counts      ucf101, split 2: the manifest has no videos of test2") for line in lines
    )


def test_the_command_says_what_is_wrong_by_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, names = write(tmp_path / "good.txt", "run/1.mp4 0"), write(tmp_path / "names.txt", "run")
    assert main(["data", "audit", "--list", good, "--labels", names]) == 0
    assert capsys.readouterr().out == (
        "ok       labels      good.txt: the 1 labels that names carry agree\n"
        "ok       duplicates  good.txt: each of 1 videos occurs once\n"
        "ok       classes     good.txt: all 1 classes have videos\n"
    )
    assert main(["data", "audit", "--list", good, "--labels", write(tmp_path / "l.txt", "walk", "run")]) == 1
    assert main(["data", "audit"]) == 2
    assert "give a manifest, or --list FILE with --labels FILE" in capsys.readouterr().err


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    file = write(tmp_path / "list.txt", "a.mp4 0")
    with pytest.raises(ConfigError, match="--labels goes with --list; a manifest holds its class names"):
        run_audit(AuditConfig(manifest="m.parquet", labels=("x",)))
    with pytest.raises(ConfigError, match=r"is a list; name its labels with --train-labels FILE"):
        run_audit(AuditConfig(list=(file,), labels=("hmdb51",), train=(file,)))
    with pytest.raises(ManifestError, match=r"m\.parquet: no such manifest"):
        run_audit(AuditConfig(manifest=str(tmp_path / "m.parquet")))
    with pytest.raises(ConfigError, match='no benchmark "hmdb"; did you mean "hmdb51"'):
        run_audit(AuditConfig(list=(file,), dataset="hmdb"))


def test_what_tells_videos_apart() -> None:
    assert identity("val/x/aaaaaaaaaaa_000000_000010.mp4") == identity("aaaaaaaaaaa_000000_000010.webm")
    assert identity("a/1.mp4") != identity("b/1.mp4")
