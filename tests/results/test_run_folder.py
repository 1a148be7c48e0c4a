"""A run folder holds one setting only, and what is finished survives whatever happens next."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zar_ray.errors import RunError
from zar_ray.results.case import Case
from zar_ray.results.folder import PARTS, Ledger, RunFolder, differences
from zar_ray.results.rows import RESULT_SCHEMA, ResultRow, to_rows, to_table
from zar_ray.results.study_record import FinishedStudy
from zar_ray.storage import Storage

IDENTITY = {"options": {"seed": 0, "zar": {"lr": 0.005}}, "classes": ["a", "b"]}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(Storage(str(tmp_path / "run")))


def rows(*videos, error=None):
    return to_table(
        ResultRow.failed(v, "c", "zar", error=error, stage="decode") if error else ResultRow(v, "c", "zar", views=1)
        for v in videos
    )


def test_the_same_run_is_continued_and_another_one_refused_with_what_changed(folder):
    assert not folder.open(IDENTITY, resume=False, overwrite=False)
    folder.add(rows("v1"))
    assert folder.open(IDENTITY, resume=False, overwrite=False)
    other = {"options": {"seed": 0, "zar": {"lr": 0.01}}, "classes": ["a", "b"]}
    with pytest.raises(RunError, match=r"options\.zar\.lr: 0\.005 -> 0\.01"):
        folder.open(other, resume=True, overwrite=False)
    assert folder.results().num_rows == 1
    assert not folder.open(other, resume=False, overwrite=True)
    assert folder.results().num_rows == 0


def test_resuming_what_is_not_there_is_an_error_that_makes_nothing(folder, tmp_path):
    with pytest.raises(RunError, match="no run to resume"):
        folder.open(IDENTITY, resume=True, overwrite=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_files_is_left_alone(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="files that are not a run's"):
            folder.open(IDENTITY, resume=False, overwrite=overwrite)
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_finishing_puts_parts_into_one_table_that_later_parts_add_to(folder):
    folder.add(rows("v2"))
    folder.add(rows("v1"))
    folder.gather()
    assert folder.storage.names(PARTS) == []
    folder.add(rows("v3"))
    assert [row.video_id for row in to_rows(folder.results())] == ["v1", "v2", "v3"]


def test_a_kill_between_table_and_parts_counts_no_row_twice(folder, monkeypatch):
    folder.add(rows("v1"))
    folder.add(rows("v2"))
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            folder.gather()
    assert len(folder.storage.names(PARTS)) == 2
    assert folder.results().num_rows == 2


@pytest.mark.parametrize("finished", [0, 3])
def test_parts_are_put_into_one_and_say_the_same(folder, finished, monkeypatch):
    """Whatever was there before, however many at once, and where it is cut off between writing and deleting."""
    monkeypatch.setattr("zar_ray.results.folder.PARTS_AT_ONCE", 4)
    for number in range(finished):
        folder.add(rows(f"v{number}"))
    folder.gather()
    for number in range(2, 13):
        folder.add(rows(f"v{number}", error="broken" if number % 3 == 0 else None))
    before = folder.results()
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            folder.compact()
    assert len(folder.storage.names(PARTS)) == 11 + 1
    assert folder.results().equals(before)
    folder.compact()
    assert len(folder.storage.names(PARTS)) == 1 + 3
    assert folder.results().equals(before)
    folder.compact()
    assert len(folder.storage.names(PARTS)) == 1 + 3
    folder.gather()
    assert (folder.storage.names(PARTS), folder.results().equals(before)) == ([], True)


def test_a_damaged_part_has_no_others_written_again_at_every_try(folder, monkeypatch):
    """A run puts parts together every so many blocks, and a damaged one stays where it is."""
    monkeypatch.setattr("zar_ray.results.folder.PARTS_AT_ONCE", 2)
    for number in range(7):
        folder.add(rows(f"v{number}"))
    damaged = list(folder.row_files())[-1]
    folder.storage.write(damaged, b"PAR1" * 10)
    for _ in range(3):
        with pytest.raises(RunError, match="is damaged"):
            folder.compact()
    others = [name for name in folder.row_files() if name != damaged]
    assert sum(len(folder.rows_of(name, ["video_id"])) for name in others) == 6


def test_lists_have_room_for_more_values_than_32_bits_count():
    """Features of 4.2 million videos; as many values would take 4 GB here."""
    assert any(pa.types.is_large_list(column.type) for column in RESULT_SCHEMA)
    assert not any(pa.types.is_list(column.type) for column in RESULT_SCHEMA)


def test_forgetting_failures_keeps_the_rest(folder):
    folder.add(rows("good"))
    folder.add(rows("bad", error="broken"))
    folder.forget_failed()
    assert [row.video_id for row in to_rows(folder.results())] == ["good"]


def test_an_empty_run_has_an_empty_table(folder):
    assert folder.results().schema == RESULT_SCHEMA
    assert isinstance(folder.results(), pa.Table)


def test_differences_name_the_way_to_what_changed():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "d": None}) == ["a.b: 1 -> 2"]


def test_rows_of_a_run_before_a_column_came_are_read(tmp_path):
    """A run folder of an earlier version is continued: what it did not measure is unknown."""
    storage = Storage(str(tmp_path / "run"))
    old = to_table([ResultRow("v", "zar-1", "zar", seconds_adapt=0.5)]).drop_columns(["seconds_case", "peak_memory"])
    buffer = pa.BufferOutputStream()
    pq.write_table(old, buffer)
    storage.write(f"{PARTS}/old.parquet", buffer.getvalue().to_pybytes())
    (row,) = to_rows(RunFolder(storage).results())
    assert (row.seconds_adapt, row.seconds_case, row.peak_memory) == (0.5, None, None)


def test_what_is_still_lacking_is_told_from_two_columns_of_each_file_once(folder, monkeypatch):
    folder.open(IDENTITY, resume=False, overwrite=False)
    cases = [Case("zar-a", "zar"), Case("zar-b", "zar", model=1), Case("zero_shot-b", "zero_shot", model=1)]
    made = [
        ResultRow.failed(f"v{n}.mp4", case.case_id, case.method, error="x", stage="open")
        for n in (0, 1)
        for case in cases
    ]
    for row in made[:4]:  # all of the first video, and the first model's of the second
        folder.add(to_table([row]))
    read = []
    original = pq.ParquetFile.read
    monkeypatch.setattr(pq.ParquetFile, "read", lambda file, columns: read.append(columns) or original(file, columns))
    videos = pa.chunked_array([["v0.mp4"], ["v1.mp4", "v2.mp4"]])
    ledger = Ledger(folder)
    ledger.refresh()
    assert read == [["video_id", "case_id"]] * 4
    found = [ledger.has(case.case_id, videos).tolist() for case in cases]
    assert found == [[True, True, False], [True, False, False], [True, False, False]]
    folder.add(to_table(made[4:]))
    ledger.refresh()
    assert len(read) == 5
    assert ledger.has("zero_shot-b", videos).tolist() == [True, True, False]


def test_an_identity_that_is_damaged_is_one_line(folder):
    for content in (b"{", b"\xff", b"[" * 100_000):
        folder.storage.write("identity.json", content)
        with pytest.raises(RunError, match=r"identity\.json: is not JSON .*--overwrite"):
            folder.open({"a": 1}, resume=False, overwrite=False)


def test_damaged_rows_are_one_line(folder):
    folder.open(IDENTITY, resume=False, overwrite=False)
    folder.add(rows("v1"))
    (name,) = folder.row_files()
    content = folder.storage.read(name)
    for damaged in (b"", content[:-20], content[: len(content) // 2], b"PAR1" * 10):
        folder.storage.write(name, damaged)
        with pytest.raises(RunError, match=rf"{name}: is damaged \(.*\); delete it"):
            folder.results()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"config":' * 200 + b"1" + b"}" * 200, b"\xff", b"{"])
def test_a_record_that_is_no_json_is_one_line(content):
    with pytest.raises(RunError, match=r"run/run\.json: is not JSON"):
        FinishedStudy.parse(content, "run")
