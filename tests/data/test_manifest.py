import dataclasses
import os
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zar_ray.data.manifest import MANIFEST_SCHEMA, Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.errors import ManifestError
from zar_ray.options.base import fingerprint

GOOD = VideoRow("a/1.mp4", "/data/a/1.mp4", 0, "a", "test", 10, 25.0, 32, 24, 0.4, 100, "decord")
CLASSES = ("a", "b")
relaxed = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def manifest_of(*rows: VideoRow) -> Manifest:
    return Manifest.of(rows, CLASSES, "/data", "set")


def numbered(count: int) -> Manifest:
    return manifest_of(*(dataclasses.replace(GOOD, video_id=f"{n:05d}") for n in range(count)))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
    class_names = draw(st.lists(text.filter(str.strip), unique=True, max_size=4))
    rows = []
    for video_id in draw(st.lists(text, unique=True, max_size=8)):
        label = draw(st.none() | st.sampled_from(range(len(class_names)))) if class_names else None
        row = VideoRow(
            video_id,
            f"/data/{video_id}",
            label,
            None if label is None else class_names[label],
            draw(st.sampled_from(["train", "val", "test"])),
        )
        if draw(st.booleans()):
            size = st.integers(1, 2**31 - 1)
            row = dataclasses.replace(
                row, frames=draw(size), width=draw(size), height=draw(size), fps=draw(st.floats(1, 240))
            )
        else:
            row = dataclasses.replace(row, error=draw(text))
        rows.append(row)
    return Manifest.of(rows, class_names, "/data", draw(text))


@relaxed
@given(manifest=manifests())
def test_a_manifest_survives_the_disk(manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    write_manifest(manifest, file)
    again = read_manifest(file)
    assert again.table.equals(manifest.table)
    assert list(again.rows()) == list(manifest.rows())
    assert (again.class_names, again.root, again.name) == (manifest.class_names, manifest.root, manifest.name)
    assert again.fingerprint() == manifest.fingerprint()


@relaxed
@given(manifest=manifests(), data=st.data())
def test_the_fingerprint_does_not_depend_on_the_order_or_the_place(manifest: Manifest, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(list(manifest.rows())))
    elsewhere = [dataclasses.replace(row, path=f"/elsewhere/{row.video_id}") for row in rows]
    shuffled = Manifest.of(rows, manifest.class_names, manifest.root, "other")
    assert shuffled.fingerprint() == manifest.fingerprint()
    moved = Manifest.of(elsewhere, manifest.class_names, "/elsewhere", manifest.name)
    assert moved.fingerprint() == manifest.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"video_id": "a/2.mp4"},
        {"label_id": 1, "class_name": "b"},
        {"label_id": None, "class_name": None},
        {"split": "val"},
        {"frames": 11},
        {"width": 33},
        {"size": 101},
        {"error": "broken"},
        {"group": "a film"},
    ],
)
def test_the_fingerprint_sees_what_results_depend_on(change: dict[str, object]) -> None:
    assert manifest_of(dataclasses.replace(GOOD, **change)).fingerprint() != manifest_of(GOOD).fingerprint()


def test_the_fingerprint_sees_the_class_names() -> None:
    other = Manifest.of([GOOD], ("a", "c"), "/data", "set")
    assert other.fingerprint() != manifest_of(GOOD).fingerprint()


@relaxed
@given(count=st.integers(1, 60), limit=st.integers(1, 70), seed=st.randoms(use_true_random=False))
def test_a_limit_spreads_over_the_sorted_videos_whatever_their_order(count: int, limit: int, seed: object) -> None:
    rows = list(numbered(count).rows())
    seed.shuffle(rows)  # type: ignore[attr-defined]
    chosen = sorted(int(i) for i in manifest_of(*rows).select(limit=limit).table["video_id"].to_pylist())
    assert len(chosen) == len(set(chosen)) == min(limit, count)
    gaps = [right - left for left, right in pairwise(chosen)]
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1


def test_a_split_keeps_its_order_and_all_class_names() -> None:
    rows = [dataclasses.replace(GOOD, video_id=i, split=s) for i, s in [("3", "val"), ("1", "test"), ("2", "val")]]
    selected = manifest_of(*rows).select("val")
    assert selected.table["video_id"].to_pylist() == ["3", "2"]
    assert selected.class_names == CLASSES
    assert manifest_of(*rows).splits == ("test", "val")


def test_chosen_videos_keep_their_order() -> None:
    assert [r.video_id for r in numbered(5).keep(["00003", "00001", "00003"]).rows()] == ["00001", "00003"]
    with pytest.raises(ManifestError, match=r'^set: no video "00009"$'):
        numbered(5).keep(["00001", "00009"])


def test_an_unknown_split_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ManifestError, match=r'^set: no split "tst"; did you mean "test"\?$'):
        manifest_of(GOOD).select("tst")
    with pytest.raises(ManifestError, match=r'^set: no split "q"; known: test$'):
        manifest_of(GOOD).select("q")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([GOOD, GOOD], 'video id "a/1.mp4" occurs more than once'),
        ([dataclasses.replace(GOOD, label_id=2)], 'video "a/1.mp4": label_id is not one of the 2 classes'),
        ([dataclasses.replace(GOOD, label_id=-1)], 'video "a/1.mp4": label_id is not one of the 2 classes'),
        ([dataclasses.replace(GOOD, label_id=1)], 'video "a/1.mp4": class_name is not the name of its label_id'),
        ([dataclasses.replace(GOOD, class_name=None)], "label_id and class_name must both be there or both be empty"),
        ([dataclasses.replace(GOOD, frames=0)], "frames, width and height must be there and positive"),
        ([dataclasses.replace(GOOD, height=None)], "frames, width and height must be there and positive"),
        ([dataclasses.replace(GOOD, path="a/1.mp4")], 'path "a/1.mp4" is not absolute'),
        ([dataclasses.replace(GOOD, video_id="")], "has rows with an empty video_id"),
        ([dataclasses.replace(GOOD, split=None)], "has rows without a split"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: list[VideoRow], complaint: str) -> None:
    with pytest.raises(ManifestError) as caught:
        manifest_of(*rows)
    assert str(caught.value).startswith("set: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("names", [("a", "a"), ("a", " ")])
def test_class_names_must_be_distinct_and_not_empty(names: tuple[str, ...]) -> None:
    with pytest.raises(ManifestError, match="class name"):
        Manifest.of([], names, "/data", "set")


def stored(tmp_path: Path, table: pa.Table) -> Path:
    """A file with a good manifest's metadata and the given columns."""
    file = tmp_path / "manifest.parquet"
    write_manifest(manifest_of(GOOD), file)
    metadata = pq.read_schema(file).metadata
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file


def test_columns_are_checked_on_reading(tmp_path: Path) -> None:
    table = manifest_of(GOOD).table
    cases = [
        (table.drop_columns(["fps", "size"]), "lacks the columns fps, size"),
        (table.drop_columns(["labels"]), "lacks the column labels; make one with"),
        (table.append_column("colour", pa.array(["red"])), "has the unknown column colour"),
        (
            table.set_column(2, "label_id", pa.array(["0"])),
            "column label_id holds string, must hold int32",
        ),
        (
            table.set_column(5, "frames", pa.array([2**40])),
            "column frames does not fit int32",
        ),
        (pa.concat_tables([table, table]), 'video id "a/1.mp4" occurs more than once'),
    ]
    for changed, complaint in cases:
        file = stored(tmp_path, changed)
        with pytest.raises(ManifestError) as caught:
            read_manifest(file)
        assert str(caught.value).startswith(f"{file}: {complaint}")
        assert "\n" not in str(caught.value)


def test_other_widths_of_the_same_kind_are_converted(tmp_path: Path) -> None:
    table = manifest_of(GOOD).table
    wide = table.set_column(0, "video_id", table["video_id"].cast(pa.large_string()))
    wide = wide.set_column(2, "label_id", table["label_id"].cast(pa.int64()))
    wide = wide.set_column(3, "class_name", table["class_name"].dictionary_encode())
    again = read_manifest(stored(tmp_path, wide.select(list(reversed(wide.column_names)))))
    assert again.table.schema.equals(MANIFEST_SCHEMA)
    assert list(again.rows()) == [GOOD]


def test_what_is_no_manifest_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(manifest_of(GOOD).table, foreign)
    for file, complaint in [
        (tmp_path / "none.parquet", "no such manifest"),
        (text, "cannot be read as a Parquet manifest"),
        (tmp_path, "cannot be read as a Parquet manifest"),
        (foreign, "is Parquet but not a manifest"),
        ("nowhere://x/manifest.parquet", "no such kind of place"),
    ]:
        with pytest.raises(ManifestError) as caught:
            read_manifest(file)
        assert str(caught.value).startswith(f"{file}: {complaint}")
        assert "\n" not in str(caught.value)


def test_a_folder_called_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    file = tmp_path / "split=train" / "manifest.parquet"
    write_manifest(manifest_of(GOOD), file)
    assert list(read_manifest(file).rows()) == [GOOD]


def test_a_uri_works_as_a_path_does(tmp_path: Path) -> None:
    uri = (tmp_path / "deep" / "manifest.parquet").as_uri()
    write_manifest(manifest_of(GOOD), uri)
    assert list(read_manifest(uri).rows()) == [GOOD]


def test_writing_replaces_the_file_at_once_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "manifest.parquet"
    write_manifest(numbered(2), file)
    before = file.read_bytes()

    def full_disk(*_: object) -> None:
        assert file.read_bytes() == before
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ManifestError, match=r"manifest\.parquet: cannot be written .*No space left"):
        write_manifest(numbered(3), file)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before


SEVERAL = dataclasses.replace(GOOD, video_id="s", split="all", splits=("test1", "train2"))
MANY = dataclasses.replace(GOOD, video_id="m", label_id=None, class_name=None, labels=("a", "b"))
NONE = dataclasses.replace(MANY, video_id="n", labels=())


def test_a_video_may_be_in_several_splits_and_have_several_labels(tmp_path: Path) -> None:
    manifest = manifest_of(GOOD, SEVERAL, MANY, NONE)
    write_manifest(manifest, tmp_path / "m.parquet")
    again = read_manifest(tmp_path / "m.parquet")
    assert list(again.rows()) == [GOOD, SEVERAL, MANY, NONE]
    assert again.splits == ("test", "test1", "train2")
    assert [row.video_id for row in again.select("train2").rows()] == ["s"]
    assert [row.video_id for row in again.select("test").rows()] == ["a/1.mp4", "m", "n"]
    assert [row.memberships for row in (GOOD, SEVERAL)] == [("test",), ("test1", "train2")]
    for changed in (dataclasses.replace(SEVERAL, splits=("test1",)), dataclasses.replace(SEVERAL, splits=None)):
        assert manifest_of(changed).fingerprint() != manifest_of(SEVERAL).fingerprint()
    assert manifest_of(MANY).fingerprint() != manifest_of(dataclasses.replace(MANY, labels=("a",))).fingerprint()


def test_the_fingerprint_of_a_manifest_stays_what_it_is() -> None:
    assert manifest_of(GOOD).fingerprint() == "e9f87d9d0744"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (dataclasses.replace(GOOD, labels=("a",)), "has both a label_id and several labels"),
        (dataclasses.replace(GOOD, splits=()), "has a list of splits with none in it"),
        (dataclasses.replace(MANY, labels=("c",)), 'has the label "c", which is not among its class names'),
    ],
)
def test_wrong_splits_and_labels_are_refused(wrong: VideoRow, complaint: str) -> None:
    with pytest.raises(ManifestError, match=complaint):
        manifest_of(wrong)


@pytest.mark.parametrize("packed", [True, False])
def test_a_few_bytes_that_stand_for_many_rows_are_refused(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal values take no room in Parquet: gigabytes of text would be a file of some kilobytes."""
    monkeypatch.setattr("zar_ray.data.manifest._SPARE_BYTES", 2**24)
    one = manifest_of(dataclasses.replace(GOOD, error="x" * 1000)).table.take([0] * 20_000)
    place = one.schema.get_field_index("error")
    error = one["error"].combine_chunks().dictionary_encode()
    table = one.set_column(place, "error", error) if packed else one
    header = {b"zar_ray.manifest": b'{"format": 1, "name": "a", "root": "/", "class_names": ["a", "b"]}'}
    table = table.replace_schema_metadata(header)
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, write_statistics=False) as writer:
        for _ in range(5):
            writer.write_table(table)
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    with pytest.raises(ManifestError, match=r"a\.parquet: unpacks to more than \d+ bytes"):
        read_manifest(tmp_path / "a.parquet")


def test_a_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    write_manifest(manifest_of(dataclasses.replace(GOOD, error="QQQQ")), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    assert b"QQQQ" in content
    (tmp_path / "a.parquet").write_bytes(content.replace(b"QQQQ", b"Q\xff\xffQ"))
    with pytest.raises(ManifestError, match=r"a\.parquet: cannot be read as a Parquet manifest"):
        read_manifest(tmp_path / "a.parquet")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pq.read_table(_written(tmp_path))
    schema = pa.schema([*table.schema, table.schema.field("error")], table.schema.metadata)
    twice = pa.Table.from_arrays([*table.columns, table["error"]], schema=schema)
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ManifestError, match=r"twice\.parquet: has two columns of one name"):
        read_manifest(tmp_path / "twice.parquet")


def test_what_lies_there_instead_of_a_manifest_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(ManifestError, match=r"a\.parquet: is a Git LFS pointer"):
        read_manifest(tmp_path / "a.parquet")


def _written(folder: Path) -> Path:
    write_manifest(numbered(3), folder / "m.parquet")
    return folder / "m.parquet"


def test_a_fingerprint_hashed_bit_by_bit_is_that_of_the_whole(monkeypatch):
    """Whatever is hashed at a time: runs know their data by it."""
    made = Manifest.of(
        [
            VideoRow(
                f'ä{n}/𝄞"{n}.mp4',
                f"/data/{n}.mp4",
                *((None, None) if n == 1 else (n % 2, "ab"[n % 2])),
                splits=("x", "y") if n == 2 else None,
                error="broken" if n == 3 else None,
                **dict.fromkeys(("frames", "width", "height", "size"), None if n == 3 else 7 + n),
            )
            for n in range(5)
        ],
        ("a", "b"),
        "/data",
        "d",
    )
    names = (
        "video_id",
        "label_id",
        "class_name",
        "split",
        "frames",
        "width",
        "height",
        "size",
        "splits",
        "labels",
        "group",
    )
    table = made.table.sort_by("video_id")
    columns = {name: table[name].to_pylist() for name in names}
    failed = table["error"].is_valid().to_pylist()
    whole = fingerprint({"class_names": ("a", "b"), "columns": columns, "failed": failed})
    for at_once in (1, 2, 5, 9):
        monkeypatch.setattr("zar_ray.data.manifest._HASHED_AT_ONCE", at_once)
        assert made.fingerprint() == whole
    assert Manifest.of([], ("a",), "/", "d").fingerprint() == fingerprint(
        {"class_names": ["a"], "columns": {name: [] for name in names}, "failed": []}
    )
