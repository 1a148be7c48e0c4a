"""The benchmarks as they are downloaded, in miniature: official-looking annotations and real little videos.

Each function writes a benchmark below a folder, with videos by `put` (path, number), and returns the classes that have
videos.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from zar_ray.data.classes import class_list

Put = Callable[[Path, int], object]


def _write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def hmdb51(root: Path, put: Put) -> tuple[str, ...]:
    """Three videos of each of three classes, in turn training, test and unused; the others have annotations only."""
    present = ("kick", "kick ball", "wave")
    for name in class_list("hmdb51"):
        folder = name.replace(" ", "_")
        videos = [f"film_{folder}_u_nm_np1_fr_med_{n}.avi" for n in range(3)]
        for number, video in enumerate(videos if name in present else ()):
            put(root / "hmdb51_org" / folder / video, number)
        for split in (1, 2, 3):
            lines = [f"{video} {(n + split) % 3} " for n, video in enumerate(videos)]
            _write(root / "testTrainMulti_7030_splits" / f"{folder}_test_split{split}.txt", *lines)
    return present


def ucf101(root: Path, put: Put) -> tuple[str, ...]:
    """Three groups of two classes; group N is the test group of split N."""
    lists, names, present = root / "ucfTrainTestlist", class_list("ucf101"), ("ApplyLipstick", "HandstandPushups")
    _write(lists / "classInd.txt", *(f"{n} {name}" for n, name in enumerate(names, start=1)))
    videos = [
        (name, group, f"{name}/v_{name.replace('HandstandP', 'HandStandP')}_g{group:02d}_c01.avi")
        for name in present
        for group in (1, 2, 3)
    ]
    for _, group, video in videos:
        put(root / "UCF-101" / video, group)
    for split in (1, 2, 3):
        _write(lists / f"testlist{split:02d}.txt", *(video for _, group, video in videos if group == split))
        rest = [f"{video} {names.index(name) + 1}" for name, group, video in videos if group != split]
        _write(lists / f"trainlist{split:02d}.txt", *rest)
    return present


def k400(root: Path, put: Put) -> tuple[str, ...]:
    """Validation videos of two classes, one in class folders and one flat."""
    present = ("yoga", "zumba")
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number, name in enumerate(present):
        for copy in range(2):
            youtube_id = f"{name[0] * 10}{copy}"
            rows.append(f"{name},{youtube_id},{copy},{copy + 10},val")
            folder = root / "val" / name if number else root / "val"
            put(folder / f"{youtube_id}_{copy:06d}_{copy + 10:06d}.mp4", number + copy)
    _write(root / "annotations" / "val.csv", *rows)
    return present


def k600(root: Path, put: Put) -> tuple[str, ...]:
    """Two videos a class: of a class that all three zero-shot lists hold, and of one that each alone holds."""
    lists = [class_list(f"kinetics600_zero_shot_{n}") for n in (1, 2, 3)]
    everywhere = next(name for name in lists[0] if all(name in names for names in lists))
    alone = [
        next(name for name in names if not any(name in other for other in lists if other is not names))
        for names in lists
    ]
    for split, label in (("val", "validate"), ("test", "test")):
        rows = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for number, name in enumerate((everywhere, *alone)):
            youtube_id = f"counted{split[0]}{number}AA"
            rows.append(f'"{name}",{youtube_id},0,10,{label},0')
            put(root / split / name / f"{youtube_id}_000000_000010.mp4", number)
        _write(root / "annotations" / f"{split}.csv", *rows)
    return (everywhere, *alone)


def ssv2(root: Path, put: Put) -> tuple[str, ...]:
    """Two validation videos of two classes."""
    names = class_list("ssv2")
    present = (names[9], names[173])
    prefix = "something-something-v2-"
    entries = [
        {"id": str(n), "label": name, "template": name.replace("something", "[something]"), "placeholders": []}
        for n, name in enumerate(present * 2, start=1)
    ]
    _write(root / "labels" / f"{prefix}labels.json", json.dumps({name: str(n) for n, name in enumerate(names)}))
    _write(root / "labels" / f"{prefix}train.json", "[]")
    _write(root / "labels" / f"{prefix}validation.json", json.dumps(entries))
    for entry in entries:
        put(root / "20bn-something-something-v2" / f"{entry['id']}.webm", int(str(entry["id"])))
    return present


def charades(root: Path, put: Put) -> tuple[str, ...]:
    """Three test videos: two actions, one, none."""
    names, folder = class_list("charades"), root / "Charades"
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
    _write(folder / "Charades_v1_classes.txt", *(f"c{n:03d} {name}" for n, name in enumerate(names)))
    _write(folder / "Charades_v1_train.csv", header)
    _write(
        folder / "Charades_v1_test.csv",
        header,
        "AAAA1,X,Bed,5,6,Yes,Text.,a,b,c003 0.00 5.00;c001 1.00 2.00,30.0",
        "BBBB1,X,Bed,5,6,Yes,Text.,a,b,c003 0.00 5.00,30.0",
        "NONE1,X,Bed,5,6,Yes,Text.,a,b,,30.0",
    )
    for number, video in enumerate(("AAAA1", "BBBB1", "NONE1")):
        put(root / "Charades_v1_480" / f"{video}.mp4", number)
    return (names[1], names[3])
