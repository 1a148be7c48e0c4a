"""A run's folder: what it is, which videos are finished, and its result table.

ROOT/NAME/
identity.json        what the numbers depend on; another setting is refused
config.yaml          the resolved options, for --config
manifest.parquet     the videos of this run
parts/*.parquet      finished rows, one small file a block, each written whole or not at all
predictions.parquet  all rows, written when the run ends
predictions.csv      the same with class names, for others
run.json             options, versions, counts, metrics
study.csv            the tables of a study of several cells
run.log              why blocks were lost, what became of nodes
"""

from __future__ import annotations

import io
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zar_ray.errors import RunError, reason_of
from zar_ray.results.rows import KEYS, RESULT_SCHEMA
from zar_ray.results.sorting import bounds_of, in_order
from zar_ray.results.stored_rows import PREDICTIONS, StoredRows, as_results, write_rows
from zar_ray.storage import REQUESTS, Storage
from zar_ray.untrusted import parse_json

IDENTITY = "identity.json"
CONFIG = "config.yaml"
MANIFEST = "manifest.parquet"
SUMMARY = "run.json"
CELLS = "study.csv"
PARTS = "parts"

PARTS_AT_ONCE = 512
"""Parts that are read together, and after which a run puts them into one."""

# Rows are sorted by so many bytes of files at a time, and read from several files likewise; in memory they take a few
# times as much. With more than so many ranges of rows open at once, a process may run out of files.
_RANGE_BYTES = 2**25
_MOST_RANGES = 256
_COMPACTED = ".compacted.parquet"


def differences(before: Any, now: Any, at: str = "") -> list[str]:
    """What changed between two trees of JSON values, as lines such as ``zar.lr: 0.005 -> 0.01``."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in differences(before.get(key), now.get(key), f"{at}.{key}" if at else str(key))
        ]
    return [] if before == now else [f"{at}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_part(storage: Storage, table: pa.Table) -> None:
    """Adds finished rows to a run, from any process; each call makes one file."""
    storage.write(f"{PARTS}/{uuid.uuid4().hex}.parquet", _parquet(table))


def _parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    write_rows(buffer, [table])
    return buffer.getvalue().to_pybytes()


def _bundles(files: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """The files in bundles of so many bytes together and `PARTS_AT_ONCE` at most; the gathered rows by themselves."""
    names: list[str] = []
    size = 0
    for name, bytes_ in files.items():
        if names and (size + bytes_ > most or len(names) == PARTS_AT_ONCE or names == [PREDICTIONS]):
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_
    if names:
        yield names


class Ledger:
    """Which videos have a row, finished or failed, of which case; each file of rows is looked at once."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self._videos: dict[str, list[pa.Array]] = {}  # by case

    def refresh(self) -> None:
        """Takes in the rows that were added since."""
        files = {name: size for name, size in self._folder.row_files().items() if name not in self._seen}
        self._seen.update(files)
        for table in self._folder.tables(files, KEYS):
            for case in table["case_id"].unique().to_pylist():
                self._videos.setdefault(case, []).extend(table.filter(pc.field("case_id") == case)["video_id"].chunks)

    def has(self, case_id: str, videos: pa.ChunkedArray) -> np.ndarray:
        """Bool (N,): which of some videos have a row of a case."""
        known = pa.chunked_array(self._videos.get(case_id, []), pa.string())
        return pc.call_function("is_in", [videos], pc.SetLookupOptions(known)).to_numpy()


class RunFolder:
    """One run's files, in a folder of its own."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def open(self, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> bool:
        """Starts the run, or continues it if it is there; returns whether it did.

        Args:
            identity: What the run's numbers depend on, as JSON values.
            resume: Insist that the run is there already.
            overwrite: Delete a run that is there first.

        Raises:
            RunError: The folder holds a run with another identity, or something else; or there is nothing to resume.
        """
        here = self.storage.path()
        if overwrite and self.storage.exists(IDENTITY):
            self.storage.delete_folder()
        if self.storage.exists(IDENTITY):
            try:
                earlier = parse_json(self.storage.read(IDENTITY))
            except ValueError as error:
                at = self.storage.path(IDENTITY)
                raise RunError(f"{at}: is not JSON ({reason_of(error)}); --overwrite the run") from None
            changed = differences(earlier, identity)
            if changed:
                raise RunError(
                    f"{here}: holds a run with other settings ({'; '.join(changed)}); "
                    "give this one a --name of its own, or --overwrite the other"
                )
            return True
        if resume:
            raise RunError(f"{here}: no run to resume; check --output and --name, or leave out --resume to start one")
        if self.storage.names():
            raise RunError(f"{here}: holds files that are not a run's; choose another --output or --name")
        self.storage.write(IDENTITY, json.dumps(identity, indent=2, ensure_ascii=False).encode())
        return False

    def row_files(self) -> dict[str, int]:
        """The files that hold rows, and how many bytes each has."""
        whole = {name: size for name, size in self.storage.sizes().items() if name == PREDICTIONS}
        parts = {f"{PARTS}/{name}": size for name, size in self.storage.sizes(PARTS).items()}
        return whole | {name: size for name, size in parts.items() if name.endswith(".parquet")}

    def gather(self) -> StoredRows:
        """Puts all finished rows into one file, in place of those that they were in.

        A kill between two steps loses nothing: rows that are in both that file and a part count once.
        """
        if list(self.row_files()) != [PREDICTIONS]:
            self._rewrite()
        return StoredRows(self.storage)

    def results(self) -> pa.Table:
        """All finished rows, one a (video, case), sorted by both; see `deduplicate` for which row stands."""
        return pa.concat_tables([RESULT_SCHEMA.empty_table(), *self._in_order()]).combine_chunks()

    def _in_order(self) -> Iterator[pa.Table]:
        files = self.row_files()
        ranges = min(_MOST_RANGES, -(-sum(files.values()) // _RANGE_BYTES))
        with tempfile.TemporaryDirectory(prefix="zar-rows-") as scratch:
            ids = (table["video_id"] for table in self.tables(files, ["video_id"])) if ranges > 1 else ()
            yield from in_order(self.tables(files, RESULT_SCHEMA.names), bounds_of(ids, ranges), Path(scratch))

    def tables(self, files: Mapping[str, int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of files of rows, a piece of bounded size at a time.

        The rows of many files are one piece: thousands of small tables take memory.
        """
        with ThreadPoolExecutor(REQUESTS) as pool:
            for names in _bundles(files, _RANGE_BYTES):
                if names == [PREDICTIONS]:
                    yield from StoredRows(self.storage).pieces(columns)
                else:
                    yield pa.concat_tables(pool.map(lambda name: self.rows_of(name, columns), names)).combine_chunks()

    def compact(self) -> None:
        """Puts the parts that workers have written so far into larger ones, while nobody else reads them.

        A kill meanwhile leaves rows twice, which count once.
        """
        small = {
            name: size
            for name, size in self.row_files().items()
            if name != PREDICTIONS and not name.endswith(_COMPACTED) and size < _RANGE_BYTES / 2
        }
        for names in _bundles(small, _RANGE_BYTES):
            for table in self.tables({name: small[name] for name in names}, RESULT_SCHEMA.names):
                self.storage.write(f"{PARTS}/{uuid.uuid4().hex}{_COMPACTED}", _parquet(table))
            # Before the next ones, which may be damaged: what is tried again would write these once more.
            self.storage.delete_many(names)

    def rows_of(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of one of them."""
        try:
            # A small part is a request as a whole, and several by its columns.
            by_columns = name.endswith(_COMPACTED)
            with self.storage.opened(name) if by_columns else io.BytesIO(self.storage.read(name)) as file:
                return as_results(pq.ParquetFile(file, pre_buffer=True).read(list(columns)), columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            at = self.storage.path(name)
            raise RunError(f"{at}: is damaged ({reason_of(error)}); delete it, and the same command goes on") from error

    def add(self, table: pa.Table) -> None:
        """Adds finished rows."""
        write_part(self.storage, table)

    def forget_failed(self) -> None:
        """Drops all rows of videos that have a failed one, so that they are done again."""
        failed = self.gather().read(["video_id", "error"], pc.field("error").is_valid())["video_id"].unique()
        if len(failed):
            self._rewrite(without=failed)

    def _rewrite(self, without: pa.Array | None = None) -> None:
        """Writes all rows into one file and deletes the others; `without` those of some videos."""
        parts = [name for name in self.row_files() if name != PREDICTIONS]
        tables = self._in_order()
        if without is not None:
            tables = (table.filter(~pc.field("video_id").isin(without)) for table in tables)
        with self.storage.filling(PREDICTIONS) as file:
            write_rows(file, tables)
        self.storage.delete_many(parts)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file."""
        self.storage.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
