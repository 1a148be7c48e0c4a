"""A run's folder: what it is, which videos are finished, and its result table.

ROOT/NAME/
identity.json        what the numbers depend on; another setting is refused
config.yaml          the resolved options, for --config
manifest.parquet     the videos of this run
parts/*.parquet      finished rows, one small file a block, each written whole or not at all
predictions.parquet  all rows, written when the run ends
run.json             options, versions, counts, metrics
study.csv            the tables of a study of several cells
run.log              why blocks were lost, what became of nodes
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zar_ray.errors import RunError, reason_of
from zar_ray.results.case import Case
from zar_ray.results.rows import RESULT_SCHEMA, deduplicate
from zar_ray.storage import Storage
from zar_ray.untrusted import parse_json

IDENTITY = "identity.json"
CONFIG = "config.yaml"
MANIFEST = "manifest.parquet"
PREDICTIONS = "predictions.parquet"
SUMMARY = "run.json"
CELLS = "study.csv"
PARTS = "parts"

PARTS_AT_ONCE = 512
"""Parts that are read together, and after which a run puts them into one."""

# An object store answers each request after a while, and many at a time.
_REQUESTS = 16
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
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


class Ledger:
    """Which cases of which videos have a row, finished or failed; each file of rows is looked at once."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self._cases: dict[str, frozenset[str]] = {}
        # Most videos have the same cases: one set for all of these.
        self._sets: dict[frozenset[str], frozenset[str]] = {}

    def refresh(self) -> None:
        """Takes in the rows that were added since."""
        names = [name for name in self._folder.row_files() if name not in self._seen]
        self._seen.update(names)
        for table in self._folder.tables(names, ["video_id", "case_id"]):
            for video, case in zip(table["video_id"].to_pylist(), table["case_id"].to_pylist(), strict=True):
                cases = self._cases.get(video, frozenset()) | {case}
                self._cases[video] = self._sets.setdefault(cases, cases)

    def lacks(self, video: str, cases: Collection[Case]) -> list[int]:
        """The models that lack a row of a video for some of the cases that it is of, in order."""
        done = self._cases.get(video, frozenset())
        return sorted({case.model for case in cases if case.case_id not in done})


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

    def row_files(self) -> list[str]:
        """The files that hold rows."""
        parts = [f"{PARTS}/{name}" for name in self.storage.names(PARTS) if name.endswith(".parquet")]
        return [*([PREDICTIONS] if self.storage.exists(PREDICTIONS) else []), *parts]

    def results(self) -> pa.Table:
        """All finished rows, one a (video, case), sorted by both; see `deduplicate` for which row stands."""
        tables = list(self.tables(self.row_files(), RESULT_SCHEMA.names))
        return deduplicate(pa.concat_tables(tables) if tables else RESULT_SCHEMA.empty_table())

    def tables(self, names: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of files of rows, the rows of many files in one piece: thousands of small ones take memory."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for first in range(0, len(names), PARTS_AT_ONCE):
                some = pool.map(lambda name: self.rows_of(name, columns), names[first : first + PARTS_AT_ONCE])
                yield pa.concat_tables(some).combine_chunks()

    def compact(self) -> None:
        """Puts the parts that workers have written so far into one, while nobody else reads them.

        A kill meanwhile leaves rows twice, which count once.
        """
        names = [name for name in self.row_files() if name != PREDICTIONS and not name.endswith(_COMPACTED)]
        for first in range(0, len(names), PARTS_AT_ONCE):
            some = names[first : first + PARTS_AT_ONCE]
            for table in self.tables(some, RESULT_SCHEMA.names):
                self.storage.write(f"{PARTS}/{uuid.uuid4().hex}{_COMPACTED}", _parquet(table))
            # Before the next ones, which may be damaged: what is tried again would write these once more.
            self._delete(some)

    def _delete(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(self.storage.delete, names))

    def rows_of(self, name: str, columns: list[str]) -> pa.Table:
        """Some columns of one of them."""
        schema = pa.schema([RESULT_SCHEMA.field(column) for column in columns])
        try:
            return pq.read_table(io.BytesIO(self.storage.read(name)), columns=columns, schema=schema)
        except (OSError, ValueError, pa.ArrowException) as error:
            at = self.storage.path(name)
            raise RunError(f"{at}: is damaged ({reason_of(error)}); delete it, and the same command goes on") from error

    def add(self, table: pa.Table) -> None:
        """Adds finished rows."""
        write_part(self.storage, table)

    def forget_failed(self) -> None:
        """Drops all rows of videos that have a failed one, so that they are done again."""
        table = self.results()
        failed = table.filter(pc.field("error").is_valid())["video_id"].to_pylist()
        self._rewrite(table.filter(~pc.field("video_id").isin(pa.array(failed, pa.string()))))

    def finish(self, table: pa.Table, summary: dict[str, Any]) -> None:
        """Writes the whole table in place of the parts it was made of, and the summary.

        A kill between two steps loses nothing: rows that are in both the table and a part count once.
        """
        self._rewrite(table)
        self.write_json(SUMMARY, summary)

    def _rewrite(self, table: pa.Table) -> None:
        parts = [name for name in self.row_files() if name != PREDICTIONS]
        self.storage.write(PREDICTIONS, _parquet(table))
        self._delete(parts)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file."""
        self.storage.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
